//! Going back over rows that have left: both sides are compared, and what the target does not hold is added, however often (invariant 7,
//! protocol.md P13, P21 to P27).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::data::hours_ago;
use support::{Case, only_table};

fn reset(case: &Case, table: &str, arguments: &[&str]) -> Value {
    case.run(&[&["--format", "json", "watermark", "reset", "--yes", "--table", table], arguments].concat())
        .expect(0)
        .json()
}

/// Three days of trades, ties and equal rows among them, have left.
fn three_days(name: &str) -> Case {
    let case = Case::with_trades(name);
    for day in ["2024-03-09", "2024-03-10", "2024-03-11"] {
        case.trades("trades", &format!("{day} 10:00:00"), 200);
    }
    case.pass();
    case
}

/// What a pass read, wrote, and found changed.
fn rows(table: &Value) -> [u64; 3] {
    ["rows_read", "rows_written", "rows_changed"].map(|key| table[key].as_u64().unwrap_or(99))
}

#[test]
fn offloading_again_doubles_no_row_however_often() {
    let case = three_days("again");
    let target = case.target("trades");
    for to in [&["--to", "2024-03-10T10:00:05Z"][..], &["--to-earliest"], &["--to", "2024-03-09T10:00:00.003Z"]] {
        let report = reset(&case, "trades", to);
        assert!(report["rows_compared"].as_u64().unwrap() >= 200 && report["rows_skipped"] == 0, "{report:#}");
        let marker = target.marker();
        assert!(marker["watermark"].as_i64() < marker["offloaded_to"].as_i64(), "{marker:#}");
        let table = case.pass_one();
        assert_eq!((&table["rows_written"], &table["rows_changed"]), (&json!(0), &json!(0)));
        let marker = target.marker();
        assert_eq!((&marker["mode"], &marker["watermark"]), (&json!("merge"), &marker["offloaded_to"]));
        target.holds_for_all_readers("trades");
        assert_eq!(case.pass_one()["status"], "nothing");
    }
}

#[test]
fn rows_that_came_late_and_rows_that_somebody_deleted_are_added() {
    let case = three_days("added");
    let target = case.target("trades");
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:00:00.001', 'LATE'), ('2024-03-08 10:00:00', 'OLD')");
    // An equal row once more is one row more.
    case.sql("INSERT INTO trades SELECT * FROM trades WHERE exchange_timestamp < '2024-03-10' ORDER BY exchange_timestamp, sequence_number LIMIT 1 BY exchange_timestamp LIMIT 3");
    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-11T10:00:05+00:00' and exchange_timestamp < '2024-03-11T10:00:20+00:00'"}));
    let deleted = 600 - target.count();
    assert!(deleted > 20);
    case.trades("trades", "2024-03-12 10:00:00", 100);
    reset(&case, "trades", &["--to-earliest"]);
    let table = case.pass_one();
    assert_eq!(table["rows_written"], json!(100 + 5 + deleted), "{table:#}");
    target.holds_for_all_readers("trades");
    case.run(&["audit", "--checksum"]).expect(0);
    assert_eq!(target.marker()["total_records"], json!(705));
}

/// P21: what both sides physically hold is compared.
#[test]
fn a_column_that_came_with_a_default_doubles_nothing() {
    let case = three_days("default");
    case.sql("ALTER TABLE trades ADD COLUMN venue String DEFAULT 'somewhere'");
    case.trades("trades", "2024-03-12 10:00:00", 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
    case.sql(
        "INSERT INTO trades (exchange_timestamp, symbol, venue) VALUES ('2024-03-10 10:00:00.001', 'LATE', 'here')",
    );
    reset(&case, "trades", &["--to-earliest"]);
    assert_eq!(rows(&case.pass_one())[1..], [1, 0]);
    assert_eq!(case.target("trades").count(), 701);
    assert_eq!(case.target("trades").icebergs("SELECT venue FROM").lines().filter(|line| *line == "here").count(), 1);
}

/// P21: who deletes some rows of a file writes the others anew, with columns that came after them, as null.
#[test]
fn a_column_that_came_with_a_default_doubles_nothing_of_what_others_wrote_anew() {
    let case = three_days("rewritten");
    let target = case.target("trades");
    case.sql("ALTER TABLE trades ADD COLUMN venue String DEFAULT 'somewhere'");
    case.trades("trades", "2024-03-12 10:00:00", 100);
    case.pass();
    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-11T10:00:05+00:00' and exchange_timestamp < '2024-03-11T10:00:20+00:00'"}));
    let deleted = 700 - target.count();
    assert!(deleted > 20 && deleted < 200, "{deleted}");
    reset(&case, "trades", &["--to", "2024-03-11"]);
    assert_eq!(case.pass_one()["rows_written"], deleted);
    assert_eq!(target.count(), 700);
    case.run(&["audit", "--checksum"]).expect(0);
}

/// P26: a budget in which no day fits.
#[test]
fn a_budget_that_is_too_small_takes_more_readings_and_gives_the_same() {
    let case = Case::new("budget");
    case.bronze("trades");
    let config = format!("{}chunk_rows = 100000\n", support::TRADES);
    case.config_file(
        "offload.toml",
        "",
        "[defaults]\nsettle_delay = '0s'\nmerge_memory = '1MB'\n",
        &format!("{config}settle_delay = '0s'\n"),
    );
    case.init_tables();
    case.trades("trades", "2024-03-10", 60_000);
    case.pass();
    case.sql("INSERT INTO trades SELECT * FROM trades WHERE sequence_number % 97 = 0");
    let wanted: u64 = case.sql("SELECT count() - 60000 FROM trades").parse().unwrap();
    reset(&case, "trades", &["--to-earliest"]);
    assert_eq!(case.pass_one()["rows_written"], wanted);
    case.target("trades").holds_for_all_readers("trades");
}

/// P26: of a tick, neither the rows that are there nor those that are missing fit at once.
#[test]
fn p26_a_tick_that_does_not_fit_is_merged_in_slices() {
    let case = Case::new("slices");
    case.sql("CREATE TABLE ticks (ts DateTime, n UInt32) ENGINE = MergeTree ORDER BY n");
    case.config("[defaults]\nsettle_delay = '0s'\nmerge_memory = '1MB'\n[[table]]\nsource = 'ticks'\ntarget = 'cold.ticks'\ncursor = 'ts'\n");
    case.init_tables();
    case.sql("INSERT INTO ticks SELECT '2024-03-10 12:00:00', number FROM numbers(30000)");
    case.pass();
    // A third of them are equal to one that is there.
    case.sql("INSERT INTO ticks SELECT '2024-03-10 12:00:00', 20000 + number FROM numbers(30000)");
    reset(&case, "ticks", &["--to-earliest"]);
    assert_eq!(rows(&case.pass_one())[1..], [30_000, 0]);
    case.target("ticks").holds_for_all_readers("ticks");
}

#[test]
fn a_key_that_is_there_with_other_content_is_counted_and_left() {
    let case = Case::new("keyed");
    case.sql("CREATE TABLE orders (ts DateTime64(3), id UInt32, price Int32) ENGINE = ReplacingMergeTree ORDER BY id");
    case.sql(
        "INSERT INTO orders SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, number, number FROM numbers(100)",
    );
    case.config("[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\nkey = ['id']\nfinal = true\n");
    case.init_tables();
    case.pass();
    case.sql("INSERT INTO orders SELECT ts, id, price + 1000 FROM orders WHERE id < 7");
    case.sql("INSERT INTO orders SELECT toDateTime64('2024-03-10', 3, 'UTC') + 0.5, number, 5 FROM numbers(500, 3)");
    reset(&case, "orders", &["--to-earliest"]);
    assert_eq!(rows(&case.pass_one())[1..], [3, 7]);
    assert_eq!(case.target("orders").count(), 103);

    case.config("[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\nfinal = true\n");
    let refused = case.run(&["watermark", "reset", "--table", "orders", "--to-earliest", "--yes"]);
    refused.expect(3).says(&["ReplacingMergeTree", "without a key"]);
}

/// A key that does not name a row, because the numbers begin again each day.
fn ambiguous_key(name: &str) -> Case {
    let case = Case::new(name);
    case.sql("CREATE TABLE orders (ts DateTime64(3), id UInt32, price Int32) ENGINE = MergeTree ORDER BY ts");
    case.config("[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\nkey = ['id']\npartition_by = ['day(ts)']\n");
    case.init_tables();
    for day in ["2024-03-09", "2024-03-10"] {
        orders(&case, day, 0, 50);
        case.pass();
    }
    case
}

/// Orders of a day, one a minute, each with another price.
fn orders(case: &Case, day: &str, from: u32, rows: u32) {
    case.sql(&format!(
        "INSERT INTO orders SELECT toDateTime64('{day}', 3, 'UTC') + number * 60, number, cityHash64(number, '{day}') % 1000000 FROM numbers({from}, {rows})"
    ));
}

#[test]
fn a_key_that_is_not_unique_loses_and_doubles_no_row_that_has_left() {
    let case = ambiguous_key("ambiguous");
    let target = case.target("orders");
    target.holds_for_all_readers("orders");
    orders(&case, "2024-03-10", 50, 5);
    for (back, new) in [("2024-03-10T00:00:00Z", 5), ("2024-03-01T00:00:00Z", 0), ("2024-03-09T00:20:00Z", 0)] {
        reset(&case, "orders", &["--to", back]);
        assert_eq!(rows(&case.pass_one())[1..], [new, 0], "{back}");
        target.holds_all("orders");
        case.run(&["audit", "--checksum"]).expect(0);
    }
}

/// The merge cannot know whether they are the rows that left, changed since, or others.
#[test]
fn rows_of_a_known_key_with_other_content_are_counted_and_warned_of() {
    let case = ambiguous_key("known");
    case.sql("DELETE FROM orders WHERE id < 7");
    case.sql(
        "INSERT INTO orders SELECT toDateTime64('2024-03-10', 3, 'UTC') + number * 60 + 1, number, 5 FROM numbers(7)",
    );
    case.sql("INSERT INTO orders VALUES ('2024-03-10 00:20:30', 777, 5)");
    let output = case.run(&["--format", "json", "run"]).expect_warning("key is in the target with other content");
    assert_eq!(rows(&only_table(&output.says(&["rows=7 ", "key=\"id\""]).json()))[1..], [1, 7]);
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn candles_are_compared_by_their_key() {
    let case = Case::new("candles");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 10:00:00", 2000);
    let query = "SELECT symbol, toStartOfFiveMinutes(exchange_timestamp) AS opened, count() AS trades FROM trades \
                 WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high} GROUP BY symbol, opened";
    case.config(&format!("[[table]]\nname = 'candles'\nquery = \"{query}\"\ntarget = 'cold.candles'\ncursor = 'opened'\nkey = ['symbol', 'opened']\nwindow = '5m'\npartition_by = ['symbol']\n"));
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 12);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:01:00', 'LATE'), ('2024-03-10 10:01:00', 'BTC-USD')");
    reset(&case, "candles", &["--to", "2024-03-10T10:00:00Z"]);
    assert_eq!(rows(&case.pass_one())[1..], [1, 1]);
    assert_eq!(case.target("candles").count(), 13);
}

/// The source may have dropped what has left: the watermark comes back to where it was.
#[test]
fn what_the_source_has_dropped_stays_in_the_target() {
    let case = three_days("dropped");
    reset(&case, "trades", &["--to", "2024-03-09T00:00:00Z"]);
    case.sql("TRUNCATE TABLE trades");
    assert_eq!(case.pass_one()["rows_written"], 0);
    assert_eq!(case.target("trades").count(), 600);
    let marker = case.target("trades").marker();
    assert_eq!(marker["watermark"], marker["offloaded_to"]);
    case.trades("trades", "2024-03-12 10:00:00", 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
}

#[test]
fn p25_what_was_skipped_is_offloaded_when_a_reset_goes_back_over_it() {
    let case = Case::with_trades("skipped");
    case.trades("trades", "2024-03-09 10:00:00", 100);
    case.pass();
    case.trades("trades", "2024-03-10 10:00:00", 100);
    reset(&case, "trades", &["--to", "2024-03-11T00:00:00Z"]);
    case.trades("trades", "2024-03-11 10:00:00", 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
    reset(&case, "trades", &["--to", "2024-03-10T00:00:00Z"]);
    assert_eq!(case.pass_one()["rows_written"], 100);
    case.target("trades").holds_for_all_readers("trades");
    let skipped = case.target("trades").marker()["skipped"].clone();
    assert_eq!(
        (skipped.as_array().unwrap().len(), &skipped[0][1]),
        (1, &json!(1_710_028_800_000_u64)),
        "only what lies below"
    );
}

/// P13: whoever commits between reading and committing makes the merge compare again, else two hosts would add the same row.
#[test]
fn two_merges_at_once_add_a_row_once() {
    let case = three_days("twice");
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:00:00.001', 'LATE')");
    reset(&case, "trades", &["--to-earliest"]);
    let gate = case.gate("gate");
    let failpoints = format!("guard=skip;written={}", gate.pause());
    let mut passes: Vec<_> = (0..2).map(|_| case.spawn("offload.toml", &failpoints, &["run"])).collect();
    passes.iter_mut().for_each(|pass| gate.wait_for(pass));
    gate.open();
    passes.into_iter().for_each(|pass| assert!(matches!(pass.wait().code, Some(0 | 1))));
    case.pass();
    case.target("trades").holds_for_all_readers("trades");
}

/// P13: also a commit that leaves our marker as it was.
#[test]
fn p13_rows_that_others_delete_while_a_merge_is_under_way_are_added_too() {
    let case = three_days("between");
    let target = case.target("trades");
    reset(&case, "trades", &["--to-earliest"]);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-11T00:00:00+00:00'"}));
    assert_eq!(target.count(), 400);
    gate.open();
    pass.wait().says(&["trying again"]);
    target.holds_for_all_readers("trades");
}

/// What the passes of these tests begin with: rows of two hours of today, which have left in two passes.
fn two_hours(name: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.config(&format!("{}{keys}", support::TRADES));
    case.init_tables();
    for hours in [5, 3] {
        insert(&case, hours, 100);
        case.pass();
    }
    case
}

/// Inserts rows so many hours ago, three each second.
fn insert(case: &Case, hours: u32, rows: u32) {
    case.sql(&format!(
        "INSERT INTO trades (exchange_timestamp, sequence_number, symbol) \
         SELECT {} + intDiv(number, 3), number, 'BTC' FROM numbers({rows})",
        hours_ago(hours)
    ));
}

#[test]
fn p23_rows_that_come_late_arrive_with_the_next_pass_and_once() {
    let case = two_hours("late", "");
    insert(&case, 5, 7);
    insert(&case, 4, 10);
    insert(&case, 1, 20);
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["rows_late"]), (&json!(37), &json!(17)));
    case.target("trades").holds_for_all_readers("trades");
    let again = case.pass_one();
    assert_eq!((&again["status"], &again["rows_late"]), (&json!("nothing"), &json!(0)));
    // Also into a range that was merged already, and when as many expired.
    insert(&case, 4, 10);
    case.sql(&format!(
        "DELETE FROM trades WHERE toStartOfHour(exchange_timestamp) = {} AND sequence_number < 3",
        hours_ago(4)
    ));
    case.pass();
    let target = case.target("trades");
    case.sql("CREATE VIEW wanted AS SELECT * FROM trades");
    target.holds_with_foreign_rows("wanted", 3);
    case.run(&["audit", "--checksum"]).expect(3).says(&["3 extra"]);
}

/// P23: any difference counts, not only growth: a TTL, or somebody, may have taken more rows than came.
#[test]
fn p23_late_rows_arrive_where_the_source_has_fewer_rows_than_before() {
    let case = two_hours("fewer", "");
    insert(&case, 3, 4);
    case.sql(&format!(
        "DELETE FROM trades WHERE toStartOfHour(exchange_timestamp) = {} AND sequence_number >= 90",
        hours_ago(3)
    ));
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["rows_late"]), (&json!(4), &json!(4)));
    case.target("trades").holds_with_foreign_rows("trades", 10);
}

#[test]
fn p23_rows_later_than_the_lookback_are_left_to_audit() {
    let case = two_hours("lookback", "late_lookback = '30m'\n");
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) SELECT now() - INTERVAL 3 DAY, 'OLD'");
    assert_eq!(case.pass_one()["rows_written"], 0);
    case.run(&["audit"]).expect(3).says(&["missing"]);
    let off = two_hours("off", "late_lookback = '0s'\n");
    insert(&off, 4, 10);
    assert_eq!(off.pass_one()["rows_written"], 0);
}

#[test]
fn p24_rows_that_somebody_deleted_do_not_come_back_by_themselves() {
    let case = two_hours("purpose", "");
    let target = case.target("trades");
    target.ask("delete", json!({"filter": "sequence_number < 50"}));
    case.alarmed_pass_one("were deleted from the target");
    insert(&case, 3, 5);
    assert_eq!(case.alarmed_pass_one("were deleted from the target")["rows_written"], 0);
    let deleted = 200 - target.count();
    reset(&case, "trades", &["--to-earliest"]);
    assert_eq!(case.pass_one()["rows_written"], json!(deleted + 5), "who asks for it gets all");
    target.holds_for_all_readers("trades");
}

#[test]
fn p23_late_rows_of_a_keyed_table_arrive_and_duplicates_do_not() {
    let case = two_hours("late_keyed", "key = ['exchange_timestamp', 'sequence_number']\n");
    insert(&case, 5, 50);
    assert_eq!(case.pass_one()["rows_written"], 0);
    case.sql(&format!("INSERT INTO trades (exchange_timestamp, sequence_number) SELECT {}, 777", hours_ago(5)));
    assert_eq!(case.pass_one()["rows_late"], 1);
    assert_eq!(case.pass_one()["status"], "nothing");
}

/// Candles of the trades of today, which left in two passes; what they are computed from is told, or not.
fn candles(name: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    let query = "SELECT symbol, toStartOfInterval(exchange_timestamp, INTERVAL 5 MINUTE, 'UTC') AS opened, sum(sequence_number) AS volume \
                 FROM trades WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high} GROUP BY symbol, opened";
    case.config(&format!("[[table]]\nname = 'candles'\nquery = \"{query}\"\ntarget = 'cold.candles'\ncursor = 'opened'\nkey = ['symbol', 'opened']\nwindow = '5m'\n{keys}"));
    case.init_tables();
    for hours in [5, 3] {
        insert(&case, hours, 100);
        case.pass();
    }
    case
}

/// P23: only windows whose input changed are computed again; a candle that has left stays as it is.
#[test]
fn p23_late_rows_of_a_querys_input_bring_the_rows_that_they_add() {
    let input = "input = 'SELECT exchange_timestamp, symbol, sequence_number FROM trades'\ninput_cursor = 'exchange_timestamp'\n";
    for (name, keys) in [("input_told", input), ("input_of_itself", "")] {
        let case = candles(name, keys);
        let table = case.pass_one();
        assert_eq!((&table["status"], &table["rows_late"]), (&json!("nothing"), &json!(0)), "{table:#}");
        let late = |hours: u32, symbol: &str| {
            let columns = "exchange_timestamp, sequence_number, symbol";
            case.sql(&format!("INSERT INTO trades ({columns}) SELECT {}, 1, '{symbol}'", hours_ago(hours)));
        };
        // One candle that is new, one that has left with another content, one in a window where there was none.
        late(5, "LATE");
        late(5, "BTC");
        late(4, "LATE");
        let table = case.pass_one();
        assert_eq!(
            (&table["rows_late"], &table["rows_changed"], &table["rows_written"]),
            (&json!(2), &json!(1), &json!(2))
        );
        assert_eq!(case.target("candles").count(), 4);
        assert_eq!(case.pass_one()["status"], "nothing", "what was looked at is not looked at again");
        // As many rows, and others.
        case.sql("ALTER TABLE trades UPDATE symbol = 'OTHER' WHERE symbol = 'LATE' SETTINGS mutations_sync = 2");
        assert_eq!(case.pass_one()["rows_late"], 2, "{name}");
        case.run(&["audit", "--checksum"]).expect(3).says(&["1 extra, 1 changed"]);
    }
}

/// P23: what a query is computed from is told before it is read.
#[test]
fn p23_what_comes_behind_the_select_of_a_query_arrives_with_the_next_pass() {
    let case = candles("behind", "");
    insert(&case, 1, 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("file-sync={}@1", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    case.sql(&format!("INSERT INTO trades (exchange_timestamp, symbol) SELECT {}, 'BEHIND'", hours_ago(1)));
    gate.open();
    pass.wait().expect(0);
    assert_eq!(case.target("candles").count(), 3);
    assert_eq!(case.pass_one()["rows_late"], 1);
    assert_eq!(case.pass_one()["status"], "nothing");
}

/// P21: a label that an Enum renamed is no reason to add the row again.
#[test]
fn p21_a_renamed_label_doubles_nothing() {
    let case = Case::new("labels");
    case.sql("CREATE TABLE orders (ts DateTime64(3), side Enum8('BUY' = 1, 'SELL' = 2), tags Array(Enum8('x' = 1, 'y' = 2))) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO orders SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, 1 + number % 2, [1 + number % 2] FROM numbers(100)");
    case.config("[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\n");
    case.init_tables();
    case.pass();
    case.sql("ALTER TABLE orders MODIFY COLUMN side Enum8('bought' = 1, 'SELL' = 2), MODIFY COLUMN tags Array(Enum8('x' = 1, 'z' = 2)) SETTINGS mutations_sync = 2");
    reset(&case, "orders", &["--to-earliest"]);
    assert_eq!(case.warned_pass_one()["rows_written"], 0);
    assert_eq!(case.target("orders").count(), 100);
}

/// P22: what left may be another row by now, or a part of one.
#[test]
fn p22_what_engines_and_queries_compute_is_not_merged_without_a_key() {
    let case = Case::new("computed");
    let engines = ["ReplacingMergeTree", "SummingMergeTree", "AggregatingMergeTree", "CollapsingMergeTree(sign)"];
    let mut config = String::new();
    for (number, engine) in engines.iter().enumerate() {
        let name = format!("table_{number}");
        case.sql(&format!(
            "CREATE TABLE {name} (ts DateTime64(3), n UInt32, sign Int8) ENGINE = {engine} ORDER BY (ts, n)"
        ));
        case.sql(&format!("INSERT INTO {name} SELECT '2024-03-10 10:00:00', number, 1 FROM numbers(10)"));
        config += &format!("[[table]]\nsource = '{name}'\ntarget = 'cold.{name}'\ncursor = 'ts'\n");
    }
    let query = "SELECT ts, n FROM table_0 WHERE ts >= {low} AND ts < {high}";
    config += &format!("[[table]]\nname = 'rows'\nquery = '{query}'\ntarget = 'cold.rows'\ncursor = 'ts'\n");
    case.config(&config);
    case.init_tables();
    case.pass();
    for number in 0..engines.len() {
        case.sql(&format!("INSERT INTO table_{number} VALUES ('2024-03-10 09:00:00', 77, 1)"));
    }
    for table in case.pass()["tables"].as_array().unwrap() {
        assert_eq!(table["status"], "nothing", "late rows are not looked for: {table:#}");
        let name = table["source"].as_str().unwrap();
        case.run(&["watermark", "reset", "--table", name, "--yes", "--to", "2024-03-10T00:00:00Z"])
            .expect(3)
            .says(&["cannot be compared without a key", "hint: set `key`"]);
    }
}

/// P17: rows of a predecessor are told apart by a key only.
#[test]
fn p17_rows_of_others_are_not_merged_without_a_key() {
    let case = Case::with_trades("adopted");
    let target = case.target("trades");
    target.ask("append", json!({"rows": 5, "micros": 1_710_072_000_000_000_u64}));
    case.trades("trades", "2024-03-10 08:00:00", 100);
    case.trades("trades", "2024-03-10 20:00:00", 30);
    reset(&case, "trades", &["--to", "2024-03-10T18:00:00Z"]);
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["rows_late"]), (&json!(30), &json!(0)));
    case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to-earliest"])
        .expect(3)
        .says(&["predecessor", "2024-03-10T18:00:00.000Z"]);
    reset(&case, "trades", &["--to", "2024-03-10T18:00:00Z"]);
    assert_eq!(case.pass_one()["rows_written"], 0);
}
