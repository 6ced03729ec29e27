//! Queries in place of tables: aggregates leave once, when their window has closed (protocol.md P11).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Case, finish, only_table, wait_until};

const CANDLES: &str = "SELECT symbol, toStartOfInterval(exchange_timestamp, INTERVAL 5 MINUTE, 'UTC') AS opened, \
     argMin(price, (exchange_timestamp, sequence_number)) AS open, max(price) AS high, sum(quantity) AS volume, count() AS trades \
     FROM trades WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high} GROUP BY symbol, opened";

fn table(query: &str, keys: &str) -> String {
    format!(
        "[[table]]\nname = 'candles'\nquery = \"\"\"{query}\"\"\"\ntarget = 'cold.candles'\ncursor = 'opened'\n{keys}\n"
    )
}

const KEYS: &str = "key = ['symbol', 'opened']\nwindow = '5m'\npartition_by = ['month(opened)', 'symbol']\n";

/// A case with 2000 trades from 10:00:00 to 10:16:40 and the configuration of their candles.
fn with_candles(name: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.trades("trades", "2024-03-10 10:00:00", 2000);
    case.config(&table(CANDLES, keys));
    case.init_tables();
    case
}

/// The candles that ClickHouse makes of all trades up to a time, as a view to compare with.
fn view(case: &Case, until: &str) -> String {
    let until = format!("toDateTime64('{until}', 3, 'UTC')");
    let query = CANDLES.replace("{low}", "toDateTime64('1970-01-01', 3, 'UTC')").replace("{high}", &until);
    case.sql(&format!("CREATE OR REPLACE VIEW wanted AS SELECT * FROM ({query})"));
    "wanted".to_owned()
}

fn one(document: &Value) -> (Value, Value, Value) {
    (document["status"].clone(), document["rows_written"].clone(), document["watermark"].clone())
}

#[test]
fn p11_candles_leave_once_and_only_when_their_window_has_closed() {
    let case = with_candles("candles", KEYS);
    // The last trade came at 10:16:40: the clock is years later, but no candle above the newest one is claimed.
    let table = case.pass_one();
    assert_eq!(one(&table), (json!("offloaded"), json!(12), json!("2024-03-10T10:20:00Z")));
    assert_eq!((&table["low"], &table["files"], &table["rows_duplicate"]), (&Value::Null, &json!(3), &json!(0)));
    case.target("candles").holds_for_all_readers(&view(&case, "2024-03-10 10:20:00"));
    assert_eq!(case.pass_one()["status"], "nothing");

    // Of candles up to now, the open one waits.
    case.sql("INSERT INTO trades (exchange_timestamp, symbol, price) SELECT now64(3, 'UTC') - number * 20, 'NOW', number FROM numbers(60)");
    let table = case.pass_one();
    assert_eq!(table["status"], "offloaded");
    let watermark = table["watermark"].as_str().unwrap().replace('Z', "").replace('T', " ");
    assert_eq!(
        case.sql(&format!("SELECT toUnixTimestamp('{watermark}', 'UTC') % 300, '{watermark}' <= toString(now('UTC'))")),
        "0\t1"
    );
    case.target("candles").holds_for_all_readers(&view(&case, &watermark));
}

#[test]
fn p11_a_candle_that_closes_later_arrives_in_a_later_pass() {
    let case = with_candles("closing", KEYS);
    let until = |time: &str| case.run(&["--format", "json", "run", "--until", time]).expect(0).json();
    // 10:07 splits a candle: it waits.
    let table = only_table(&until("2024-03-10T10:07:00Z"));
    assert_eq!(one(&table), (json!("offloaded"), json!(3), json!("2024-03-10T10:05:00Z")));
    case.target("candles").holds_for_all_readers(&view(&case, "2024-03-10 10:05:00"));
    let table = only_table(&until("2024-03-10T10:12:00Z"));
    assert_eq!(one(&table), (json!("offloaded"), json!(3), json!("2024-03-10T10:10:00Z")));
    assert_eq!(case.pass_one()["rows_written"], 6);
    case.target("candles").holds_for_all_readers(&view(&case, "2024-03-10 10:20:00"));
}

#[test]
fn p11_commits_end_at_spans_and_months_of_nothing_cost_no_commit() {
    let case = with_candles("spans", &format!("{KEYS}chunk_span = '10m'\n"));
    case.trades("trades", "2024-05-10 10:00:00", 2000);
    let plan = only_table(&case.run(&["--format", "json", "run", "--dry-run"]).expect(0).json());
    let bounds: Vec<&str> = plan["planned"].as_array().unwrap().iter().map(|c| c["high"].as_str().unwrap()).collect();
    assert_eq!(
        bounds,
        ["2024-03-10T10:10:00Z", "2024-03-10T10:20:00Z", "2024-05-10T10:10:00Z", "2024-05-10T10:20:00Z"]
    );
    let table = case.pass_one();
    assert_eq!((&table["chunks"], &table["rows_written"]), (&json!(4), &json!(24)));
    case.target("candles").holds_for_all_readers(&view(&case, "2024-06-01 00:00:00"));
}

#[test]
fn a_query_may_begin_later_and_its_rows_bear_a_key() {
    let case = with_candles("later", &format!("{KEYS}start_at = '2024-03-10T10:05:00Z'\n"));
    assert_eq!(one(&case.pass_one()), (json!("offloaded"), json!(9), json!("2024-03-10T10:20:00Z")));
    case.target("candles").holds(
        &["pyiceberg", "duckdb"],
        &view(&case, "2024-06-01 00:00:00"),
        "opened >= '2024-03-10 10:05:00'",
    );
    let fields = case.target("candles").ask("schema", json!({}));
    let required: Vec<&str> = fields
        .as_array()
        .unwrap()
        .iter()
        .filter(|f| f["required"] == true)
        .map(|f| f["name"].as_str().unwrap())
        .collect();
    assert_eq!(required, ["symbol", "opened"]);
}

/// A query that is no aggregate: rows of a table, chosen and changed.
#[test]
fn a_query_without_window_moves_ticks() {
    let case = Case::new("plain");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 10:00:00", 2000);
    let query = "SELECT t.exchange_timestamp AS at, upper(symbol) AS symbol, price / 2 AS half FROM trades AS t \
                 WHERE symbol != 'ETH-USD' AND t.exchange_timestamp >= {low} AND t.exchange_timestamp < {high} -- both bounds";
    let config = "[[table]]\nname = 'halves'\ntarget = 'cold.halves'\ncursor = 'at'\npartition_by = ['day(at)']\n";
    case.config(&format!("{config}query = '''{query}\n;'''\n"));
    case.init_tables();
    case.sql("CREATE VIEW wanted AS SELECT exchange_timestamp AS at, upper(symbol) AS symbol, price / 2 AS half FROM trades WHERE symbol != 'ETH-USD'");
    let table = case.pass_one();
    assert_eq!(
        (&table["rows_written"], &table["rows_future"]),
        (&case.sql("SELECT count() FROM wanted").parse().unwrap(), &Value::Null)
    );
    case.trades("trades", "2024-03-12 10:00:00", 500);
    case.pass();
    case.target("halves").holds_for_all_readers("wanted");
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn p11_rows_outside_the_window_are_refused_and_nothing_is_written() {
    for (wrong, right) in [
        // A closed upper bound, a bound on another window, and no cursor at all.
        ("exchange_timestamp <= {high}", "exchange_timestamp < {high}"),
        ("exchange_timestamp >= {low} - 60", "exchange_timestamp >= {low}"),
        ("AS opened_, nullIf(opened_, opened_) AS opened,", "AS opened,"),
    ] {
        let query = CANDLES.replace(right, wrong).replace("GROUP BY symbol, opened", "GROUP BY ALL");
        let case = Case::new("outside");
        case.bronze("trades");
        case.trades("trades", "2024-03-10 10:00:00", 2000);
        case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:20:00', 'EDGE'), ('2024-03-10 09:59:59', 'EDGE')");
        let keys = "key = ['symbol']\nwindow = '5m'\nstart_at = '2024-03-10T10:00:00Z'\n";
        case.config(&table(&query, keys));
        case.init_tables();
        let run = case.run(&["run", "--until", "2024-03-10T10:20:00Z"]).expect(3);
        run.says(&["rows whose cursor does not lie in [{low}, {high})"]);
        assert!(case.target("candles").files_on_disk().is_empty());
        assert_eq!(case.target("candles").marker(), Value::Null);
    }
}

#[test]
fn p11_rows_that_come_into_the_past_of_a_chunk_are_refused() {
    let case = Case::new("late_outside");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 10:00:00", 2000);
    let query = "SELECT exchange_timestamp AS opened, symbol FROM trades WHERE exchange_timestamp < {high} AND {low} IS NOT NULL";
    case.config(&table(query, "start_at = '2024-03-10T10:00:00Z'\n"));
    case.init_tables();
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-09 00:00:00', 'OLD')");
    gate.open();
    pass.wait().expect(3).says(&["rows whose cursor does not lie in"]);
    assert!(case.target("candles").files_on_disk().is_empty());
}

#[test]
fn configurations_that_would_split_aggregates_are_told() {
    let case = Case::new("misfits");
    case.bronze("trades");
    for (query, keys, said) in [
        ("SELECT 1", KEYS, "{low}"),
        (CANDLES, "window = '5m'\n", "needs a key"),
        (CANDLES, "key = ['symbol']\nwindow = '7m'\n", "must divide the day"),
        (CANDLES, "key = ['symbol']\nwindow = '2d'\n", "must divide the day"),
        (CANDLES, "key = ['symbol']\nwindow = '0s'\n", "longer than nothing"),
        (CANDLES, "key = ['symbol']\nwindow = '1h'\nchunk_span = '90m'\n", "multiple of the window"),
        (CANDLES, "key = ['symbol']\nwindow = '1h'\nstart_at = '2024-03-10T00:30:00Z'\n", "multiple of the window"),
        (CANDLES, "key = ['symbol']\nwindow = '500ms'\n", "no whole number of ticks"),
        (CANDLES, "key = ['nothing']\n", "`nothing` is no column"),
        (CANDLES, "final = true\n", "write FINAL into the query"),
        (CANDLES, "reject_where = 'high < 0'\n", "write the condition into the query"),
        (&CANDLES.replace("AS high", "AS k2_key0"), KEYS, "`k2_key0` has a name that our queries use"),
        (CANDLES, "source = 'trades'\n", "either source, or name and query"),
        (&CANDLES.replace("max(", "maxx("), KEYS, "maxx"),
        (&CANDLES.replace("FROM trades", "FRM trades"), KEYS, "Syntax error"),
        (&CANDLES.replace("FROM trades", "FROM nowhere"), KEYS, "nowhere"),
    ] {
        case.config(&table(query, keys));
        case.run(&["init-tables"]).expect(2).says(&[said]);
    }
    assert!(!case.path("warehouse").exists());
}

#[test]
fn p11_a_window_that_changes_and_bounds_that_do_not_align_are_refused() {
    let case = with_candles("changed", KEYS);
    case.run(&["run", "--until", "2024-03-10T10:05:00Z"]).expect(0);
    let before = case.contents();
    let hourly = CANDLES.replace("5 MINUTE", "1 HOUR");
    case.config(&table(&hourly, &KEYS.replace("5m", "1h")));
    case.run(&["run"]).expect(3).says(&["2024-03-10T10:05:00Z is no multiple of `window`"]);
    case.config(&table(CANDLES, KEYS));
    let reset = ["watermark", "reset", "--table", "candles", "--yes", "--to"];
    case.run(&[&reset[..], &["2024-03-10T10:12:00Z"]].concat()).expect(2).says(&["no multiple", "10:10:00Z"]);
    assert_eq!(before.get(&case.path("catalog.db")), case.contents().get(&case.path("catalog.db")));
    case.run(&[&reset[..], &["2024-03-10T10:10:00Z"]].concat()).expect(0).says(&["skips 3 source rows"]);
    assert_eq!(case.pass_one()["rows_written"], 6);
}

#[test]
fn an_input_that_cannot_tell_the_windows_apart_is_refused() {
    let input = |cursor: &str| {
        format!(
            "{KEYS}input = 'SELECT exchange_timestamp, toDate(exchange_timestamp) AS day, symbol FROM trades'\ninput_cursor = '{cursor}'\n"
        )
    };
    let case = with_candles("input", &input("day"));
    case.run(&["run"]).expect(2).says(&["input_cursor `day` (Date) is too coarse", "hint: "]);
    case.config(&table(CANDLES, &input("symbol")));
    case.run(&["run"]).expect(2).says(&["input_cursor `symbol` has type String, which is not time"]);
    case.config(&table(CANDLES, &input("nobody")));
    case.run(&["run"]).expect(2).says(&["input_cursor `nobody` is no column of the input"]);
    case.config(&table(CANDLES, &input("exchange_timestamp")));
    assert_eq!(case.pass_one()["rows_written"], 12);
}

#[test]
fn a_mutation_of_a_table_that_a_query_names_makes_the_chunk_be_planned_again() {
    let case = with_candles("mutation", KEYS);
    case.sql("ALTER TABLE trades UPDATE price = throwIf(1) WHERE 1 SETTINGS mutations_sync = 0");
    case.run(&["run"]).expect(1).says(&["1 mutations are not finished"]);
    case.sql("KILL MUTATION WHERE database = currentDatabase()");
    assert_eq!(case.pass_one()["rows_written"], 12);
}

/// A table of aggregates, read as it is.
#[test]
fn a_table_with_a_window_leaves_what_has_closed() {
    let case = Case::new("closed");
    // It must be the same hour to the end of the test.
    wait_until("the hour has half a minute left", || case.sql("SELECT toUnixTimestamp(now()) % 3600 < 3570") == "1");
    case.sql("CREATE TABLE candles (opened DateTime, symbol String, trades UInt32) ENGINE = SummingMergeTree ORDER BY (opened, symbol)");
    case.sql("INSERT INTO candles SELECT toStartOfHour(now('UTC')) - 3600 * number, 'A', 1 FROM numbers(5)");
    case.config("[[table]]\nsource = 'candles'\ntarget = 'cold.candles'\ncursor = 'opened'\nkey = ['symbol', 'opened']\nwindow = '1h'\nfinal = true\n");
    case.init_tables();
    let table = case.pass_one();
    assert_eq!(table["rows_written"], 4, "the open hour waits: {table:#}");
    case.target("candles").holds(&["pyiceberg"], "candles", "opened < toStartOfHour(now('UTC'))");
    let shown = case.run(&["--format", "json", "watermark", "show"]).expect(0).json();
    assert!(only_table(&shown)["lag_seconds"].as_i64().unwrap() < 3600, "{shown:#}");
}

#[test]
fn audit_asks_a_query_span_by_span_and_knows_what_its_sources_have_dropped() {
    let case = with_candles("audit", &format!("{KEYS}start_at = '2024-03-10T00:00:00Z'\n"));
    case.trades("trades", "2024-03-12 10:00:00", 2000);
    assert_eq!(case.pass_one()["rows_written"], 24);
    let audit = |code: i32| {
        let document = case.run(&["--format", "json", "audit"]).expect(code).json();
        let buckets = only_table(&document)["buckets"].as_array().unwrap().clone();
        buckets
            .iter()
            .map(|b| (b["verdict"].as_str().unwrap().to_owned(), b["target_rows"].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    let bucket = |verdict: &str, rows| (verdict.to_owned(), rows);
    assert_eq!(audit(0), [bucket("equal", 12), bucket("equal", 12)]);
    case.target("candles").ask("delete", json!({"filter": "opened == '2024-03-12T10:05:00+00:00'"}));
    assert_eq!(audit(3), [bucket("equal", 12), bucket("missing", 9)]);
    // The oldest trades expire, and with them candles that have left.
    case.sql("DELETE FROM trades WHERE exchange_timestamp < '2024-03-10 10:10:00'");
    assert_eq!(audit(3), [bucket("expired_in_source", 12), bucket("missing", 9)]);
    case.sql("TRUNCATE TABLE trades");
    assert_eq!(audit(0), [], "no row is left to compare with");
}

/// What a table's files may be, those of a query are too.
#[test]
fn files_of_a_query_are_as_the_configuration_says() {
    let keys = "compression = 'gzip(5)'\nrow_group_size = 1024\nbloom_filter = ['symbol']\nsort_by = ['volume desc']\npartition_by = ['day(opened)']\nwindow = '5m'\nkey = ['symbol', 'opened']\n";
    let case = with_candles("files", keys);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol, quantity) SELECT '2024-03-10 12:00:00', concat('S', toString(number)), number FROM numbers(3000)");
    case.pass();
    let target = case.target("candles");
    target.holds_for_all_readers(&view(&case, "2024-06-01 00:00:00"));
    for file in target.ask("sorted_files", json!({})).as_array().unwrap() {
        assert_eq!((&file["is_sorted"], &file["sort_order_id"]), (&json!(true), &json!(1)), "{file:#}");
    }
    let files = target.ask("parquet", json!({}));
    let file = &files.as_array().unwrap()[0];
    assert_eq!((&file["rows"], &file["codecs"]), (&json!([1024, 1024, 964]), &json!(["GZIP"])));
    let filtered: Vec<Vec<&String>> =
        file["filters"].as_array().unwrap().iter().map(|group| group.as_object().unwrap().keys().collect()).collect();
    assert_eq!(filtered, vec![vec!["symbol"]; 3]);
    let arguments = json!({"column": "symbol", "values": ["S5", "nothing"]});
    assert_eq!(target.ask("bloom_probe", arguments), json!([1, 0]));
}

/// A row of the window with the same key, and a newer version, must not hide it.
#[test]
fn p11_a_row_outside_its_window_is_refused_even_as_a_duplicate() {
    let case = Case::new("hidden");
    case.sql("CREATE TABLE rows (at DateTime, id UInt32, version UInt32) ENGINE = MergeTree ORDER BY at");
    case.sql("INSERT INTO rows VALUES ('2024-03-10 10:00:00', 1, 2), ('2024-03-09 10:00:00', 1, 1)");
    let query = "SELECT at AS opened, id, version FROM rows WHERE at < {high} AND {low} IS NOT NULL";
    case.config(&table(query, "key = ['id']\nversion_column = 'version'\nstart_at = '2024-03-10T00:00:00Z'\n"));
    case.init_tables();
    case.run(&["run"]).expect(3).says(&["rows whose cursor does not lie in"]);
    assert!(case.target("candles").files_on_disk().is_empty());
}

/// P9: however little the manifests say, no clock carries the watermark on.
#[test]
fn the_watermark_of_a_query_ends_with_its_rows_where_manifests_have_no_bounds() {
    let case = with_candles("no_bounds", KEYS);
    case.target("candles").ask("set_properties", json!({"properties": {"write.metadata.metrics.default": "counts"}}));
    assert_eq!(case.pass_one()["watermark"], "2024-03-10T10:20:00Z");
    case.trades("trades", "2024-03-10 11:00:00", 2000);
    assert_eq!(case.pass_one()["rows_written"], 12);
    case.target("candles").holds_all(&view(&case, "2024-06-01 00:00:00"));
}

#[test]
fn values_stay_out_of_the_errors_of_a_query() {
    let case = Case::new("private");
    case.sql("CREATE TABLE rows (at DateTime, text String) ENGINE = MergeTree ORDER BY at");
    case.sql("INSERT INTO rows VALUES ('2024-03-10 10:00:00', 'hunter2')");
    let query = "SELECT at AS opened, toUInt32(text) AS number FROM rows WHERE at >= {low} AND at < {high}";
    case.config(&table(query, ""));
    case.init_tables();
    case.run(&["run"]).expect(3).says(&["candles", "does not fit"]).keeps_back(&["hunter2"]);
}

/// Invariant 9: a batch is as long as its rows are narrow.
#[test]
fn wide_rows_of_a_query_take_little_memory() {
    let case = Case::new("wide");
    case.sql("CREATE TABLE rows (at DateTime, text String) ENGINE = MergeTree ORDER BY at");
    case.sql("INSERT INTO rows SELECT toDateTime('2024-03-10 10:00:00', 'UTC') + number, randomString(300000) FROM numbers(500) SETTINGS max_block_size = 50");
    let query = "SELECT at AS opened, base64Encode(text) AS text FROM rows WHERE at >= {low} AND at < {high}";
    case.config(&table(query, ""));
    case.init_tables();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 400000 && exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_k2-offload"));
    finish(limited.arg("-c").arg(case.path("offload.toml")).arg("run")).expect(0);
    assert_eq!(case.target("candles").count(), 500);
}

/// A query is followed like a table, and refused like one.
#[test]
fn a_query_whose_columns_change_is_followed_or_refused() {
    let case = with_candles("columns", KEYS);
    case.run(&["run", "--until", "2024-03-10T10:05:00Z"]).expect(0);
    let files = case.target("candles").files_on_disk();
    let other = CANDLES.replace("max(price) AS high", "toString(max(price)) AS high");
    case.config(&table(&other, KEYS));
    case.run(&["run"]).expect(3).says(&["`high`", "String"]);
    assert_eq!(case.target("candles").files_on_disk(), files);
    let more = CANDLES.replace("max(price) AS high", "max(price) AS high, min(price) AS low");
    case.config(&table(&more, KEYS));
    let told = case.pass_one()["schema_changes"].to_string();
    assert!(told.contains("`low` is added as decimal(18, 8)"), "{told}");
    assert_eq!(case.target("candles").count(), 12);
    assert_eq!(case.target("candles").icebergs("SELECT countIf(low IS NULL) FROM"), "3");
}
