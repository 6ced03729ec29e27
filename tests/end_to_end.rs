//! Rows leave ClickHouse and arrive in Iceberg, row for row, in the eyes of three foreign readers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::json;
use support::{Case, Server, TRADES, files_below, only_table, table_of};

#[test]
fn trades_arrive_row_for_row_and_a_second_pass_finds_nothing() {
    let case = Case::new("trades");
    case.bronze("trades");
    case.config(TRADES);
    case.trades_over_days("trades", "2024-03-09 12:00:00", 4000, 1);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('1970-01-01 00:00:00.001', 'EPOCH')");

    let created = only_table(&case.init_tables());
    assert_eq!(
        (&created["target"], &created["status"], &created["drift"]),
        (&json!("cold.trades"), &json!("created"), &json!([]))
    );
    assert_eq!(only_table(&case.init_tables())["status"], "exists");

    let target = case.target("trades");
    let document = case.pass();
    assert_eq!(document["exit"], 0);
    let table = only_table(&document);
    let newest = case.sql(
        "SELECT replaceOne(toString(max(exchange_timestamp) + toIntervalMillisecond(1)), ' ', 'T') || 'Z' FROM trades",
    );
    for (field, expected) in [
        ("source", json!("trades")),
        ("target", json!("cold.trades")),
        ("status", json!("offloaded")),
        ("low", json!(null)),
        ("high", json!(newest)),
        ("watermark", json!(newest)),
        ("offloaded_to", json!(newest)),
        ("rows_read", json!(4001)),
        ("rows_written", json!(4001)),
        ("rows_future", json!(0)),
        ("files", json!(3)),
        ("chunks", json!(1)),
        ("error", json!(null)),
    ] {
        assert_eq!(table[field], expected, "{field} in {table:#}");
    }
    let bytes: u64 = target.files_on_disk().iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!(table["bytes_written"], bytes);
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    assert!(target.files_on_disk().iter().all(|f| f.file_name().unwrap().to_string_lossy().starts_with("k2-offload-")));

    let snapshots = target.snapshots();
    assert_eq!((snapshots.len(), &snapshots[0]["id"]), (1, &table["snapshot_id"]));
    assert_eq!(snapshots[0]["summary"]["k2-offload.marker"], target.ask("properties", json!({}))["k2-offload.marker"]);

    let again = case.pass_one();
    assert_eq!(
        (&again["status"], &again["rows_written"], &again["watermark"]),
        (&json!("nothing"), &json!(0), &json!(newest))
    );
    assert_eq!(target.snapshots().len(), 1);

    case.trades("trades", "2024-03-10 13:00:00", 500);
    let more = case.pass_one();
    assert_eq!((&more["rows_written"], &more["low"], &more["files"]), (&json!(500), &json!(newest), &json!(1)));
    target.holds_for_all_readers("trades");
    assert_eq!(target.ask("count_duckdb", json!({})), 4501);
}

#[test]
fn what_is_shown_of_the_watermark_follows_the_passes() {
    let case = Case::with_trades("shown");
    let show = || only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json());
    let before = show();
    assert_eq!((&before["status"], &before["watermark"]), (&json!("initialized"), &json!(null)));
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let passed = case.pass_one();
    let after = show();
    assert_eq!((&after["status"], &after["watermark"]), (&json!("success"), &passed["watermark"]));
    assert_eq!((&after["offloaded_to"], &after["checked_to"]), (&passed["offloaded_to"], &passed["checked_to"]));
    assert_eq!((&after["failure_count"], &after["last_error"]), (&json!(0), &json!(null)));
    assert!(after["last_success_at"].is_string() && after["lag_seconds"].as_i64().unwrap() < 3600, "{after:#}");

    case.trades("trades", "2024-03-11 00:00:00", 100);
    case.run_failing("counted=error", &["run"]).expect(1).says(&["failpoint counted"]);
    let failed = show();
    assert_eq!((&failed["status"], &failed["failure_count"]), (&json!("failed"), &json!(1)));
    assert_eq!((&failed["watermark"], &failed["last_success_at"]), (&after["watermark"], &after["last_success_at"]));
    assert!(failed["last_error"].as_str().unwrap().contains("failpoint counted"), "{failed:#}");
}

#[test]
fn a_table_without_rows_is_no_error() {
    let case = Case::with_trades("empty");
    let table = case.pass_one();
    assert_eq!((&table["status"], &table["watermark"]), (&json!("nothing"), &json!(null)));
    assert_eq!((case.target("trades").snapshots().len(), case.target("trades").count()), (0, 0));
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn rows_from_the_future_wait_and_do_not_carry_the_watermark() {
    let case = Case::with_trades("future");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES (now64(3) + INTERVAL 1 DAY, 'FUTURE'), (now64(3) + INTERVAL 2 DAY, 'FUTURE')");
    let first = case.pass_one();
    assert_eq!((&first["rows_written"], &first["rows_future"]), (&json!(100), &json!(2)));
    assert_eq!(first["watermark"], "2024-03-10T00:00:45.010Z", "above the newest row that is not from the future");

    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES (now64(3) - INTERVAL 1 SECOND, 'NOW')");
    let second = case.pass_one();
    assert_eq!((&second["rows_written"], &second["rows_future"]), (&json!(1), &json!(2)));
    case.target("trades").holds(&["pyiceberg"], "trades", "symbol != 'FUTURE'");
    case.run(&["run"]).expect(0).says(&["2 rows from the future"]);
}

#[test]
fn rows_younger_than_the_settle_delay_wait() {
    let case = Case::new("settle");
    case.bronze("trades");
    case.config(&format!("{TRADES}settle_delay = '1h'\n"));
    case.init_tables();
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES (now64(3) - INTERVAL 2 HOUR, 'OLD'), (now64(3) - INTERVAL 30 MINUTE, 'YOUNG')");
    assert_eq!(case.pass_one()["rows_written"], 1);
    case.target("trades").holds(&["pyiceberg"], "trades", "symbol = 'OLD'");
    case.config(TRADES);
    assert_eq!(case.pass_one()["rows_written"], 1);
    case.target("trades").holds_all("trades");
}

#[test]
fn rows_below_start_at_are_left_out() {
    let case = Case::new("start");
    case.bronze("trades");
    case.config(&format!("{TRADES}start_at = '2024-03-10T00:00:00Z'\n"));
    case.init_tables();
    case.trades_over_days("trades", "2024-03-09 00:00:00", 100, 2);
    let table = case.pass_one();
    assert_eq!(table["low"], "2024-03-10T00:00:00.000Z");
    case.target("trades").holds(&["pyiceberg"], "trades", "exchange_timestamp >= toDateTime64('2024-03-10', 3, 'UTC')");
}

#[test]
fn other_writers_of_the_table_and_of_the_catalog_are_left_alone() {
    let case = Case::with_trades("writers");
    let target = case.target("trades");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    case.pass();
    target.ask("append", json!({"rows": 5, "micros": 1_500_000_000_000_000_i64}));
    case.target("theirs").ask("create_other_table", json!({}));
    assert_eq!(case.pass_one()["status"], "nothing");

    case.trades("trades", "2024-03-11 00:00:00", 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
    target.holds_with_foreign_rows("trades", 5);
    assert_eq!(case.target("theirs").count(), 1);
    let parents: Vec<_> = target.snapshots().iter().map(|s| s["parent"].clone()).collect();
    let ids: Vec<_> = target.snapshots().iter().map(|s| s["id"].clone()).collect();
    assert_eq!(parents, [json!(null), ids[0].clone(), ids[1].clone()], "one history");
    let foreign = target.ask("append", json!({"rows": 1, "micros": 0}));
    assert_ne!(foreign, json!(null), "PyIceberg can still write on top of ours");
}

#[test]
fn until_leaves_rows_at_and_above_it_for_later() {
    let case = Case::with_trades("until");
    case.trades_over_days("trades", "2024-03-09 00:00:00", 200, 2);
    let midnight = "2024-03-10T00:00:00Z";
    let table = only_table(&case.run(&["--format", "json", "run", "--until", midnight]).expect(0).json());
    assert_eq!((&table["rows_written"], &table["watermark"]), (&json!(100), &json!("2024-03-10T00:00:00.000Z")));
    let again = only_table(&case.run(&["--format", "json", "run", "--until", "2024-03-10"]).expect(0).json());
    assert_eq!(again["status"], "nothing");
    assert_eq!(case.pass_one()["rows_written"], 100);
    case.target("trades").holds_all("trades");
}

#[test]
fn a_dry_run_says_what_would_leave_and_changes_nothing() {
    let case = Case::new("dry");
    case.bronze("trades");
    case.config(TRADES);
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let planned = only_table(&case.run(&["--format", "json", "init-tables", "--dry-run"]).expect(0).json());
    assert_eq!(planned["status"], "planned");
    assert_eq!(files_below(case.folder()).len(), 1, "offload.toml alone");

    case.init_tables();
    case.run(&["run", "--until", "2024-03-10T00:00:01Z"]).expect(0);
    let before = case.contents();
    let table = only_table(&case.run(&["--format", "json", "run", "--dry-run"]).expect(0).json());
    assert_eq!(
        (&table["status"], &table["rows_written"], &table["rows_read"]),
        (&json!("planned"), &json!(0), &json!(90))
    );
    assert!(before == case.contents(), "a dry run changed a file");
}

#[test]
fn layers_and_tables_can_be_chosen() {
    let case = Case::new("choice");
    let mut config = String::new();
    for (table, layer) in [("one", "bronze"), ("two", "silver"), ("three", "bronze")] {
        case.bronze(table);
        case.trades(table, "2024-03-10 00:00:00", 20);
        config += &format!(
            "[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'exchange_timestamp'\nlayer = '{layer}'\n"
        );
    }
    case.config(&config);
    case.init_tables();
    let run = |arguments: &[&str]| {
        let document = case.run(&[&["--format", "json", "run"], arguments].concat()).expect(0).json();
        let tables = document["tables"].as_array().unwrap().clone();
        tables
            .iter()
            .map(|t| format!("{} {}", t["source"].as_str().unwrap(), t["status"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(&["--layer", "silver"]), ["two offloaded"]);
    assert_eq!(run(&["--table", "cold.three"]), ["three offloaded"]);
    assert_eq!(run(&["--table", "two", "--table", "three"]).len(), 2);
    assert_eq!(run(&[]), ["one offloaded", "three nothing", "two nothing"], "in the order of the layers");
}

#[test]
fn values_that_do_not_fit_are_refused_and_other_tables_go_on() {
    let case = Case::new("refused");
    case.sql("CREATE TABLE numbers_ (ts DateTime64(3), filler String, how_many UInt64) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO numbers_ SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, toString(number), number FROM numbers(10000)");
    case.sql("INSERT INTO numbers_ VALUES ('2024-03-11 00:00:00', 'x', 9223372036854775808)");
    case.sql("CREATE TABLE texts (ts DateTime64(3), note Nullable(String)) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO texts SELECT '2024-03-10 00:00:00', concat('private', unhex('FF'))");
    case.bronze("good");
    case.trades("good", "2024-03-10 00:00:00", 20);
    let table = |source: &str, cursor: &str| {
        format!("[[table]]\nsource = '{source}'\ntarget = 'cold.{source}'\ncursor = '{cursor}'\n")
    };
    case.config(&[table("numbers_", "ts"), table("texts", "ts"), table("good", "exchange_timestamp")].concat());
    case.init_tables();

    let output = case.run(&["-vv", "--format", "json", "run"]).expect(3);
    let document = output.keeps_back(&["9223372036854775808", "private"]).json();
    for (source, column, kind) in [("numbers_", "how_many", "UInt64"), ("texts", "note", "String")] {
        let failed = table_of(&document, &format!("cold.{source}"));
        assert_eq!((&failed["status"], &failed["error"]["kind"]), (&json!("failed"), &json!("refused")));
        let message = failed["error"]["message"].as_str().unwrap();
        assert!([source, column, kind].iter().all(|part| message.contains(part)), "{message}");
        assert!(!failed["error"]["hint"].as_str().unwrap().is_empty());
        assert_eq!((case.target(source).files_on_disk().len(), case.target(source).snapshots().len()), (0, 0));
    }
    assert_eq!(table_of(&document, "cold.good")["status"], "offloaded");
    case.target("good").holds_all("good");

    case.sql("ALTER TABLE numbers_ DELETE WHERE how_many > 9223372036854775807 SETTINGS mutations_sync = 2");
    let document = case.run(&["--format", "json", "run"]).expect(3).json();
    assert_eq!(table_of(&document, "cold.numbers_")["status"], "offloaded", "a table recovers on its own");
    case.target("numbers_").holds_all("numbers_");
}

#[test]
fn days_are_days_of_utc_whatever_the_zone_of_server_and_user() {
    let server = Server::start("America/New_York");
    for user in ["default", "new_york"] {
        let case = Case::on(&server.url, "zones");
        case.bronze("trades");
        case.config_file("offload.toml", &format!("user = '{user}'"), "", TRADES);
        case.init_tables();
        // Two days of UTC that are one in New York, on the night of its change to summer time.
        case.trades("trades", "2024-03-10 06:59:00", 40);
        case.trades("trades", "2024-03-10 23:59:58", 20);
        let table = case.pass_one();
        assert_eq!(table["watermark"], "2024-03-11T00:00:03.010Z", "{table:#}");
        let target = case.target("trades");
        target.holds_for_all_readers("trades");
        let files = target.ask("data_files", json!({}));
        let partitions: Vec<_> =
            files.as_array().unwrap().iter().map(|f| (f["partition"].clone(), f["rows"].clone())).collect();
        assert!(
            partitions.contains(&(json!("[19792]"), json!(50))) && partitions.contains(&(json!("[19793]"), json!(10))),
            "{partitions:?}"
        );
        assert_eq!(target.count_where(&["exchange_timestamp >= '2024-03-11T00:00:00+00:00'"]), [10]);
    }
}
