//! `audit --checksum`: rows are compared value by value, whatever their counts are (invariant 10, protocol.md P21, P26).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::data::hours_ago;
use support::{Case, Output, TRADES, only_table};

/// A case whose target holds 300 rows of three days, 14 minutes 24 seconds apart, in several chunks and partitions.
fn offloaded(name: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.config(&format!("[defaults]\nsettle_delay = '0s'\nlate_lookback = '0s'\nchunk_rows = 100\n{TRADES}"));
    case.init_tables();
    case.trades_over_days("trades", "2024-03-09", 300, 3);
    assert!(case.pass_one()["chunks"].as_u64().unwrap() > 2);
    case
}

fn checksum(case: &Case, options: &[&str]) -> Output {
    case.run(&[&["--format", "json", "audit", "--checksum"], options].concat())
}

/// The buckets that are not equal, as "from verdict: missing extra changed".
fn found_with(case: &Case, code: i32, options: &[&str]) -> Vec<String> {
    let output = checksum(case, options);
    assert_eq!(output.code, Some(code), "{}", output.all());
    let table = only_table(&output.json());
    assert_eq!(table["error"], Value::Null, "{table:#}");
    let buckets = table["buckets"].as_array().unwrap().iter().filter(|bucket| bucket["verdict"] != "equal");
    let text = |bucket: &Value| {
        let (from, verdict) = (bucket["from"].as_str().unwrap(), bucket["verdict"].as_str().unwrap());
        format!("{} {verdict}: {} {} {}", &from[..13], bucket["missing"], bucket["extra"], bucket["changed"])
    };
    buckets.map(text).collect()
}

fn found(case: &Case, code: i32) -> Vec<String> {
    found_with(case, code, &[])
}

/// Rows of the third hour of the second day.
const HOUR: &str =
    "exchange_timestamp >= '2024-03-10T02:00:00+00:00' and exchange_timestamp < '2024-03-10T03:00:00+00:00'";
/// One of them.
const ROW: &str = "exchange_timestamp == '2024-03-10T02:24:00+00:00'";

#[test]
fn what_a_pass_moved_is_equal_and_nothing_is_left_behind() {
    let case = offloaded("equal");
    let before = case.contents_but_state();
    let table = only_table(&checksum(&case, &[]).expect(0).json());
    let plain = only_table(&case.run(&["--format", "json", "audit"]).expect(0).json());
    let mut same = table.clone();
    for bucket in same["buckets"].as_array_mut().unwrap() {
        assert_eq!((&bucket["verdict"], &bucket["changed"]), (&json!("equal"), &json!(0)));
        bucket.as_object_mut().unwrap().remove("changed");
    }
    assert_eq!(same, plain, "what counts say is the same");
    assert_eq!(table["buckets"].as_array().unwrap().len(), 72);
    assert!(case.contents_but_state() == before, "an audit changes nothing");
}

#[test]
fn a_single_other_value_is_found() {
    let case = offloaded("value");
    let target = case.target("trades");
    assert_eq!(target.ask("change", json!({"filter": ROW, "column": "price", "value": 7})), 1);
    case.run(&["audit"]).expect(0).says(&["72 equal"]);
    assert_eq!(found(&case, 3), ["2024-03-10T02 missing: 1 1 0"]);
    let output = case.run(&["audit", "--checksum"]).expect(3);
    output.says(&["71 equal, 1 missing", "source 4 rows, target 4: 1 missing, 1 extra, 0 changed"]);
    assert_eq!(found_with(&case, 0, &["--since", "2024-03-10T02:24:00.001Z"]), [""; 0]);
    assert_eq!(found_with(&case, 0, &["--until", "2024-03-10T02:24:00Z"]), [""; 0]);
    let between = ["--since", "2024-03-10T02:24:00Z", "--until", "2024-03-10T02:24:00.001Z"];
    assert_eq!(found_with(&case, 3, &between), ["2024-03-10T02 missing: 1 1 0"]);
}

#[test]
fn deleted_doubled_and_late_rows_are_counted_in_their_hours() {
    let case = offloaded("rows");
    let target = case.target("trades");
    target.ask("delete", json!({"filter": HOUR}));
    let other = HOUR.replace("T02:", "T05:").replace("T03:", "T06:");
    assert_eq!(target.ask("double", json!({"filter": other})), 4);
    // As many as are missing: counts would say nothing.
    target.ask("append", json!({"rows": 4, "micros": 1_710_037_000_000_000_i64}));
    case.sql("INSERT INTO trades SELECT * FROM trades WHERE exchange_timestamp >= '2024-03-11 10:00:00' AND exchange_timestamp < '2024-03-11 11:00:00'");
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-11 10:00:00.001', 'LATE')");
    assert_eq!(
        found(&case, 3),
        ["2024-03-10T02 missing: 4 4 0", "2024-03-10T05 extra: 0 4 0", "2024-03-11T10 missing: 5 0 0"]
    );
}

#[test]
fn position_deletes_of_other_engines_are_applied() {
    let case = offloaded("positions");
    let target = case.target("trades");
    target.ask("delete_positions", json!({"every": 7}));
    let left = target.count();
    let table = only_table(&checksum(&case, &[]).expect(3).json());
    let sum = |key: &str| table["buckets"].as_array().unwrap().iter().map(|b| b[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("missing"), sum("extra"), sum("target_rows")), (300 - left, 0, left));
    target.ask("delete_equal", json!({"column": "symbol", "value": "BTC-USD"}));
    checksum(&case, &[]).expect(3).says(&["equality deletes", "\"refused\""]);
}

const ORDERS: &str = "[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\npartition_by = ['day(ts)', 'exchange']\nkey = ['exchange', 'id']\n";

/// A keyed case with 60 orders a minute apart.
fn with_orders(name: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.sql(
        "CREATE TABLE orders (ts DateTime64(3, 'UTC'), exchange LowCardinality(String), id String, price Decimal(18, 2), version UInt32) \
         ENGINE = MergeTree ORDER BY id",
    );
    case.config(&format!("{ORDERS}{keys}"));
    case.init_tables();
    orders(&case, 0, 60, 1);
    case.pass();
    case
}

fn orders(case: &Case, from: u32, rows: u32, version: u32) {
    case.sql(&format!(
        "INSERT INTO orders SELECT toDateTime64('2024-03-10 12:00:00', 3, 'UTC') + number * 60, if(number % 3 = 0, 'kraken', 'binance'), \
         toString(number), number + {version} * 1000, {version} FROM numbers({from}, {rows})"
    ));
}

#[test]
fn a_row_of_a_key_with_other_content_is_changed() {
    let case = with_orders("keyed", "");
    assert_eq!(found(&case, 0), [""; 0]);
    let target = case.target("orders");
    assert_eq!(target.ask("change", json!({"filter": "id == '7'", "column": "price", "value": 1})), 1);
    assert_eq!(found(&case, 0), ["2024-03-10T12 changed: 0 0 1"]);
    case.run(&["audit", "--checksum"]).expect(0).says(&["1 changed", "0 missing, 0 extra, 1 changed"]);
    target.ask("double", json!({"filter": "id == '8' or id == '9'"}));
    target.ask("delete", json!({"filter": "id == '10'"}));
    assert_eq!(found(&case, 3), ["2024-03-10T12 missing: 1 2 1"]);
}

#[test]
fn p27_duplicates_in_the_source_are_no_difference_whether_they_left_or_not() {
    let case = with_orders("duplicates", "");
    // Equal ones below the watermark, and two versions above it, of which one leaves.
    orders(&case, 0, 20, 1);
    orders(&case, 60, 60, 1);
    orders(&case, 60, 30, 2);
    case.pass();
    // One pass each: both left.
    orders(&case, 130, 1, 1);
    case.pass();
    case.sql("INSERT INTO orders SELECT ts + 60, exchange, id, price, version FROM orders WHERE id = '130'");
    case.pass();
    assert_eq!(found(&case, 0), [""; 0]);
    case.target("orders").ask("double", json!({"filter": "id == '100'"}));
    assert_eq!(found(&case, 3), ["2024-03-10T13 extra: 0 1 0"]);
}

/// What the engine of a source drops is dropped on both sides; without a key a row that it replaced later is another row.
#[test]
fn a_source_that_is_read_with_final_is_compared_so() {
    let case = Case::new("final");
    case.sql("CREATE TABLE orders (ts DateTime64(3, 'UTC'), exchange String, id String, price Decimal(18, 2), version UInt32) ENGINE = ReplacingMergeTree(version) ORDER BY id");
    case.config(&format!("{}final = true\n", ORDERS.replace("key = ['exchange', 'id']\n", "")));
    case.init_tables();
    orders(&case, 0, 60, 1);
    orders(&case, 0, 20, 2);
    case.pass();
    assert_eq!(found(&case, 0), [""; 0]);
    orders(&case, 3, 1, 5);
    assert_eq!(found(&case, 3), ["2024-03-10T12 missing: 1 1 0"]);
}

#[test]
fn a_candle_that_a_late_trade_changed_is_said_to_be() {
    let case = Case::new("candles");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 10:00:00", 2000);
    let query = "SELECT symbol, toStartOfInterval(exchange_timestamp, INTERVAL 5 MINUTE, 'UTC') AS opened, max(price) AS high, \
         sum(quantity) AS volume, count() AS trades FROM trades WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high} \
         GROUP BY symbol, opened";
    case.config(&format!(
        "[[table]]\nname = 'candles'\nquery = \"{query}\"\ntarget = 'cold.candles'\ncursor = 'opened'\nkey = ['symbol', 'opened']\n\
         window = '5m'\nchunk_span = '10m'\npartition_by = ['month(opened)', 'symbol']\n"
    ));
    case.init_tables();
    case.pass();
    case.trades("trades", "2024-03-11 10:00:00", 2000);
    case.pass();
    assert_eq!(found(&case, 0), [""; 0]);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol, quantity) VALUES ('2024-03-10 10:07:00', 'BTC-USD', 1), ('2024-03-10 10:08:00', 'ETH-USD', 1)");
    case.run(&["audit"]).expect(0).says(&["2 equal"]);
    assert_eq!(found(&case, 0), ["2024-03-10T10 changed: 0 0 2"]);
    assert_eq!(found_with(&case, 0, &["--since", "2024-03-10T10:10:00Z"]), [""; 0]);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:01:00', 'NEW')");
    assert_eq!(found(&case, 3), ["2024-03-10T10 missing: 1 0 2"]);
}

/// P21: a column is compared where every file of the window holds it and the source still has it.
#[test]
fn p21_columns_that_came_or_went_make_no_row_another() {
    let case = Case::new("evolved");
    case.sql(
        "CREATE TABLE t (ts DateTime64(3, 'UTC'), n Int32, gone String, pair Tuple(a Int32)) ENGINE = MergeTree ORDER BY ts",
    );
    case.config("[[table]]\nsource = 't'\ntarget = 'cold.t'\ncursor = 'ts'\n");
    case.init_tables();
    case.sql("INSERT INTO t SELECT toDateTime64('2024-03-10 10:00:00', 3, 'UTC') + number, number, 'x', tuple(number) FROM numbers(10)");
    case.pass();
    let alter = |what: &str| case.sql(&format!("ALTER TABLE t {what} SETTINGS mutations_sync = 2"));
    alter("ADD COLUMN extra String DEFAULT 'from the default'");
    alter("DROP COLUMN gone");
    alter("MODIFY COLUMN pair Tuple(a Int32, b String)");
    alter("MODIFY COLUMN n Int64");
    assert_eq!(found(&case, 0), [""; 0], "before the target follows");
    case.sql("INSERT INTO t (ts, n, pair, extra) SELECT toDateTime64('2024-03-10 20:00:00', 3, 'UTC') + number, number, tuple(number, 'b'), 'new' FROM numbers(10)");
    case.run(&["run"]);
    assert_eq!(found(&case, 0), [""; 0]);
    // What is compared is compared, in each part of the range by its own columns.
    alter("UPDATE extra = 'other' WHERE toSecond(ts) = 3");
    assert_eq!(found(&case, 3), ["2024-03-10T20 missing: 1 1 0"]);
    alter("UPDATE pair = tuple(99, 'b') WHERE toSecond(ts) = 4");
    assert_eq!(found(&case, 3), ["2024-03-10T10 missing: 1 1 0", "2024-03-10T20 missing: 2 2 0"]);
}

#[test]
fn floats_are_compared_as_bits() {
    let case = Case::new("floats");
    case.sql("CREATE TABLE t (ts DateTime('America/New_York'), f Float64, g Nullable(Float32)) ENGINE = MergeTree ORDER BY ts");
    case.config("[[table]]\nsource = 't'\ntarget = 'cold.t'\ncursor = 'ts'\npartition_by = ['hour(ts)']\n");
    case.init_tables();
    // Both hours that New York calls 01:00 on that day.
    case.sql("INSERT INTO t SELECT toDateTime(1730610000 + number * 600, 'UTC'), [nan, -0.0, 0.0, inf][number % 4 + 1], if(number % 3 = 0, NULL, nan) FROM numbers(18)");
    case.pass();
    assert_eq!(found(&case, 0), [""; 0]);
    case.sql(
        "ALTER TABLE t UPDATE f = -0.0 WHERE toUnixTimestamp(ts) = 1730610000 + 6 * 600 SETTINGS mutations_sync = 2",
    );
    assert_eq!(found(&case, 3), ["2024-11-03T06 missing: 1 1 0"]);
    case.sql(
        "ALTER TABLE t UPDATE g = NULL WHERE toUnixTimestamp(ts) = 1730610000 + 13 * 600 SETTINGS mutations_sync = 2",
    );
    assert_eq!(found(&case, 3), ["2024-11-03T06 missing: 1 1 0", "2024-11-03T07 missing: 1 1 0"]);
}

/// 180,000 rows of one tick, and 20,000 that are equal, in one hour: 25 MB of hashes.
#[test]
fn p26_an_hour_that_does_not_fit_into_memory_is_compared_in_slices() {
    let case = Case::new("slices");
    case.sql("CREATE TABLE t (ts DateTime, n UInt32) ENGINE = MergeTree ORDER BY n");
    let table = "[[table]]\nsource = 't'\ntarget = 'cold.t'\ncursor = 'ts'\n";
    let small = "[defaults]\nsettle_delay = '0s'\nlate_lookback = '0s'\nmerge_memory = '1MB'\n";
    case.config(&format!("{small}{table}"));
    case.init_tables();
    case.sql("INSERT INTO t SELECT toDateTime('2024-03-10 12:00:00', 'UTC'), number FROM numbers(180000)");
    case.sql("INSERT INTO t SELECT toDateTime('2024-03-10 12:00:01', 'UTC'), 7 FROM numbers(20000)");
    case.pass();
    let target = case.target("t");
    target.ask("delete", json!({"filter": "n >= 500 and n < 510"}));
    target.ask("double", json!({"filter": "n >= 700 and n < 703"}));
    case.sql("INSERT INTO t SELECT toDateTime('2024-03-10 12:00:01', 'UTC'), 7 FROM numbers(5)");
    let expected = ["2024-03-10T12 missing: 15 3 0"];
    assert_eq!(found(&case, 3), expected);
    case.config(table);
    assert_eq!(found(&case, 3), expected);
    case.config("[defaults]\nsettle_delay = '0s'\nlate_lookback = '0s'\nmerge_memory = '64KB'\n[[table]]\nsource = 't'\ntarget = 'cold.t'\ncursor = 'ts'\n");
    checksum(&case, &[]).expect(2).says(&["defaults.merge_memory", "1MB"]);
}

#[test]
fn rows_that_the_sources_ttl_has_deleted_are_no_mismatch() {
    let case = Case::with_trades("ttl");
    case.config(&format!("{TRADES}late_lookback = '0s'\n"));
    let insert = |hours: u32, symbol: &str, rows: u32| {
        case.sql(&format!(
            "INSERT INTO trades (exchange_timestamp, symbol) SELECT {} + number, '{symbol}' FROM numbers({rows})",
            hours_ago(hours)
        ))
    };
    for hours in [30, 26, 3, 1] {
        insert(hours, "A", 10);
    }
    let since = case.sql("SELECT formatDateTime(now('UTC') - INTERVAL 35 HOUR, '%Y-%m-%dT%H:%i:%SZ', 'UTC')");
    case.pass();
    case.sql("ALTER TABLE trades MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL 24 HOUR");
    case.sql("OPTIMIZE TABLE trades FINAL");
    assert_eq!(case.sql("SELECT count() FROM trades"), "20");
    let verdicts = |code: i32| -> Vec<String> {
        let found = found_with(&case, code, &["--since", &since]);
        found.iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    };
    assert_eq!(verdicts(0), ["expired_in_source: 0 10 0"; 2]);
    // A late row in an hour that has expired is missing, although the target has more rows.
    case.sql("SYSTEM STOP MERGES trades");
    insert(26, "LATE", 1);
    assert_eq!(verdicts(3), ["expired_in_source: 0 10 0", "missing: 1 10 0"]);
    // A row that is too young for the TTL.
    let young = case.sql("SELECT toUnixTimestamp64Micro(max(toDateTime64(exchange_timestamp, 6))) FROM trades");
    case.target("trades").ask("append", json!({"rows": 1, "micros": young.parse::<i64>().unwrap()}));
    assert_eq!(verdicts(3).last().unwrap(), "extra: 0 1 0");
}

/// Of an hour in which rows expire, the TTL explains those whose time is over and no other.
#[test]
fn a_row_that_went_before_its_time_is_extra() {
    let case = Case::with_trades("before");
    case.config(&format!("{TRADES}late_lookback = '0s'\n"));
    // The hour that began three hours before this one: what lies in its first half has expired.
    let bound = format!("{} + INTERVAL 30 MINUTE", hours_ago(3));
    let insert = |minutes: i32| {
        case.sql(&format!(
            "INSERT INTO trades (exchange_timestamp, symbol) SELECT {bound} + toIntervalMinute({minutes}), 'A'"
        ))
    };
    for minutes in [-20, -10, 20, 100] {
        insert(minutes);
    }
    case.pass();
    let seconds = case.sql(&format!("SELECT toUnixTimestamp(now()) - toUnixTimestamp({bound})"));
    case.sql(&format!("ALTER TABLE trades MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL {seconds} SECOND"));
    case.sql("OPTIMIZE TABLE trades FINAL");
    assert_eq!(case.sql("SELECT count() FROM trades"), "2");
    let since = case.sql("SELECT formatDateTime(now('UTC') - INTERVAL 5 HOUR, '%Y-%m-%dT%H:%i:%SZ', 'UTC')");
    let verdicts = |code| found_with(&case, code, &["--since", &since]);
    assert!(verdicts(0)[0].ends_with("expired_in_source: 0 2 0"), "{:?}", verdicts(0));
    case.sql(&format!("DELETE FROM trades WHERE exchange_timestamp < {bound} + INTERVAL 30 MINUTE"));
    assert!(verdicts(3)[0].ends_with("extra: 0 3 0"), "{:?}", verdicts(3));
    case.run(&["audit", "--since", &since]).expect(0).says(&["expired_in_source"]);
}

#[test]
fn p25_what_was_skipped_is_not_compared() {
    let case = offloaded("skipped");
    case.trades_over_days("trades", "2024-03-12", 48, 1);
    case.run(&["watermark", "reset", "--table", "trades", "--to", "2024-03-12T11:30:00Z", "--yes"]).expect(0);
    case.pass();
    let found = found(&case, 0);
    assert_eq!((found.len(), found[0].as_str()), (12, "2024-03-12T00 skipped: 2 0 null"));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let case = offloaded("refused");
    let arguments = json!({"column": "symbol", "partition": [19_792], "ids": false});
    case.target("trades").ask("append_without", arguments);
    checksum(&case, &[]).expect(3).says(&["field ids", "\"refused\""]);
    let case = offloaded("drifted");
    case.sql("ALTER TABLE trades DROP COLUMN symbol, ADD COLUMN symbol Array(String)");
    checksum(&case, &[]).expect(3).says(&["source and target differ", "`symbol`"]);
}
