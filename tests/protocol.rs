//! Rules of protocol.md, each broken on purpose: what a pass refuses, what it survives, and what it asks.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Case, Output, TRADES, only_table};

/// A case whose target holds two chunks of 100 rows, of two days.
fn two_chunks(name: &str) -> Case {
    let case = Case::with_trades(name);
    for day in ["2024-03-10", "2024-03-11"] {
        case.trades("trades", day, 100);
        case.pass();
    }
    case
}

fn run_json(case: &Case) -> Output {
    case.run(&["--format", "json", "run"])
}

/// A pass must refuse, change nothing, and say `texts`.
fn refuses(case: &Case, texts: &[&str]) {
    case.trades("trades", "2024-03-12", 10);
    let target = case.target("trades");
    let (metadata, files) = (target.metadata_file(), target.files_on_disk());
    let output = run_json(case).expect(3).says(texts);
    let table = only_table(&output.json());
    assert_eq!((&table["status"], &table["error"]["kind"]), (&json!("failed"), &json!("refused")), "{table:#}");
    assert!(!table["error"]["hint"].as_str().unwrap().is_empty());
    assert_eq!(
        (target.metadata_file(), target.files_on_disk()),
        (metadata, files),
        "a refused pass changed the target"
    );
}

/// Changes the marker in the properties of the target by PyIceberg; the newest snapshot is one of PyIceberg's, so that it counts.
fn with_marker(case: &Case, change: impl Fn(&mut Value)) {
    let target = case.target("trades");
    target.ask("append", json!({"rows": 1, "micros": 0}));
    target.ask("expire", json!({}));
    let mut marker = target.marker();
    change(&mut marker);
    target.ask("set_properties", json!({"properties": {"k2-offload.marker": marker.to_string()}}));
}

#[test]
fn p16_a_rollback_is_noticed() {
    let case = two_chunks("rollback");
    case.target("trades").ask("rollback", json!({}));
    assert_eq!(case.target("trades").count(), 100);
    refuses(&case, &["roll", "cold.trades"]);
}

#[test]
fn p16_a_rollback_to_before_the_first_commit_and_a_foreign_append_is_noticed() {
    let case = Case::with_trades("rollback_all");
    let target = case.target("trades");
    case.trades("trades", "2024-03-10", 10);
    case.pass();
    case.trades("trades", "2024-03-11", 10);
    case.pass();
    target.ask("rollback", json!({}));
    target.ask("append", json!({"rows": 3, "micros": 0}));
    refuses(&case, &["roll"]);
}

/// The history is whole and holds no commit of ours: however many rows there are where ours were, they are others'.
#[test]
fn p16_a_rollback_of_all_our_commits_is_noticed_whatever_was_written_in_their_place() {
    let case = Case::with_trades("rollback_adopted");
    let target = case.target("trades");
    target.ask("append", json!({"rows": 3, "micros": 0}));
    case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to", "2024-03-10"]).expect(0);
    case.trades("trades", "2024-03-10 10:00:00", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    target.ask("rollback", json!({}));
    target.ask("rollback", json!({}));
    target.ask("append", json!({"rows": 10, "micros": 1_710_064_800_000_000_i64}));
    assert_eq!(target.count(), 13);
    refuses(&case, &["roll"]);
}

#[test]
fn p16_the_marker_survives_the_expiry_of_its_snapshot() {
    let case = two_chunks("expiry");
    let target = case.target("trades");
    target.ask("append", json!({"rows": 5, "micros": 0}));
    let left = target.ask("expire", json!({}));
    assert_eq!(left.as_array().unwrap().len(), 1, "only PyIceberg's snapshot is left");
    assert_eq!(case.pass_one()["status"], "nothing");
    case.trades("trades", "2024-03-12", 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
    target.holds_with_foreign_rows("trades", 5);
    target.ask("expire", json!({}));
    assert_eq!(case.pass_one()["status"], "nothing", "our own snapshot without its parent");
}

#[test]
fn p16_expired_history_without_the_rows_of_the_newest_chunk_is_a_rollback() {
    let case = two_chunks("lost_chunk");
    let target = case.target("trades");
    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-11T00:00:00+00:00'"}));
    assert_eq!(target.count(), 100);
    target.ask("expire", json!({}));
    refuses(&case, &["roll"]);
}

#[test]
fn p15_a_marker_of_a_newer_version_is_refused() {
    let case = two_chunks("newer");
    with_marker(&case, |marker| marker["version"] = json!(999));
    refuses(&case, &["version 999"]);
}

#[test]
fn p15_a_marker_that_does_not_parse_is_refused() {
    let case = two_chunks("damaged");
    case.target("trades").ask("set_properties", json!({"properties": {"k2-offload.marker": "{\"version\": 1}"}}));
    refuses(&case, &["marker"]);
}

#[test]
fn p15_another_source_or_cursor_is_refused() {
    let case = two_chunks("identity");
    case.config(&TRADES.replace("cursor = 'exchange_timestamp'", "cursor = 'event_time'"));
    refuses(&case, &["event_time", "exchange_timestamp"]);
    case.config(&format!("{TRADES}source_id = 'staging.trades'\n"));
    refuses(&case, &["staging.trades", &format!("{}.trades", case.database)]);
    case.config(&format!("{TRADES}source_id = '{}.trades'\n", case.database));
    assert_eq!(case.pass_one()["rows_written"], 20);
}

#[test]
fn p15_a_source_that_moved_keeps_its_identity_by_name() {
    let case = two_chunks("moved");
    case.sql("RENAME TABLE trades TO moved");
    case.trades("moved", "2024-03-12", 10);
    let id = format!("{}.trades", case.database);
    case.config(&TRADES.replace("source = 'trades'", &format!("source = 'moved'\nsource_id = '{id}'")));
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_all("moved");
}

#[test]
fn p17_rows_of_others_without_a_marker_of_ours_are_refused() {
    let case = Case::with_trades("foreign");
    case.target("trades").ask("append", json!({"rows": 3, "micros": 0}));
    refuses(&case, &["did not write"]);
}

#[test]
fn p14_a_lost_reply_is_asked_about_and_the_rows_are_there_once() {
    let case = Case::with_trades("reply_lost");
    case.trades("trades", "2024-03-10", 100);
    let output = case.run_failing("commit-swap=reply-lost", &["--format", "json", "run"]);
    let table = only_table(&output.expect_warning("unknown").json());
    assert_eq!((&table["status"], &table["rows_written"]), (&json!("offloaded"), &json!(100)));
    let target = case.target("trades");
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    assert_eq!(target.snapshots().len(), 1);
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn p14_a_lost_request_is_repeated() {
    let case = Case::with_trades("request_lost");
    case.trades("trades", "2024-03-10", 100);
    let output = case.run_failing("commit-swap=request-lost", &["--format", "json", "run"]).expect_warning("unknown");
    assert_eq!(only_table(&output.json())["rows_written"], 100);
    let target = case.target("trades");
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    assert_eq!(target.snapshots().len(), 1);
}

#[test]
fn p14_files_stay_while_nobody_can_tell_whether_a_commit_landed() {
    let case = Case::with_trades("requests_lost");
    case.trades("trades", "2024-03-10", 100);
    case.run_failing("commit-swap=request-lost-always", &["--format", "json", "run"]).expect(1).says(&["kept"]);
    let target = case.target("trades");
    assert!(!target.files_on_disk().is_empty());
    assert_eq!(target.snapshots().len(), 0);
    case.pass();
    target.holds_for_all_readers("trades");
    assert_eq!(target.snapshots().len(), 1);
}

#[test]
fn p14_a_commit_that_lands_late_is_there_once() {
    // After the pass has given up, before the next one.
    let case = two_chunks("lands_late");
    let target = case.target("trades");
    case.trades("trades", "2024-03-12", 100);
    let base = target.metadata_file();
    case.run_failing("commit-swap=request-lost-always", &["run"]).expect(1).says(&["kept"]);
    assert!(target.lands_late(&base));
    assert_eq!(case.pass_one()["status"], "nothing");
    target.holds_for_all_readers("trades");
    target.has_no_other_files();

    // While the next one is about to commit the same rows.
    case.trades("trades", "2024-03-13", 100);
    let base = target.metadata_file();
    case.run_failing("commit-swap=request-lost-always", &["run"]).expect(1).says(&["kept"]);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut pass);
    assert!(target.lands_late(&base));
    gate.open();
    assert_eq!(only_table(&pass.wait().expect(0).json())["rows_written"], 0);
    target.holds_for_all_readers("trades");
    target.has_no_other_files();

    // After the next one has committed them.
    case.trades("trades", "2024-03-14", 100);
    let base = target.metadata_file();
    case.run_failing("commit-swap=request-lost-always", &["run"]).expect(1).says(&["kept"]);
    assert_eq!(case.pass_one()["rows_written"], 100);
    assert!(!target.lands_late(&base));
    assert_eq!(case.pass_one()["status"], "nothing");
    target.holds_all("trades");
    assert_eq!(target.snapshots().len(), 5);
}

#[test]
fn p14_a_commit_that_is_asked_for_twice_is_there_once() {
    let case = two_chunks("asked_twice");
    let target = case.target("trades");
    case.trades("trades", "2024-03-12", 100);
    let base = target.metadata_file();
    let gate = case.gate("gate");
    // The first request seems lost, and lands before it is repeated.
    let failpoints = format!("commit-swap=request-lost@1;commit-swap={}@2", gate.pause());
    let mut pass = case.spawn("offload.toml", &failpoints, &["--format", "json", "run"]);
    gate.wait_for(&mut pass);
    assert!(target.lands_late(&base));
    gate.open();
    assert_eq!(only_table(&pass.wait().expect_warning("unknown").json())["rows_written"], 100);
    assert_eq!(case.pass_one()["status"], "nothing");
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    assert_eq!(target.snapshots().len(), 3);
}

#[test]
fn p20_the_state_cache_may_be_lost_or_damaged() {
    let case = two_chunks("state");
    fs::remove_file(case.path("state.db")).unwrap();
    assert_eq!(case.pass_one()["status"], "nothing");
    case.trades("trades", "2024-03-12", 10);
    fs::write(case.path("state.db"), "not a database, and rather long ".repeat(100)).unwrap();
    let output = run_json(&case).expect_warning("state");
    assert_eq!(only_table(&output.json())["rows_written"], 10);
    case.run(&["watermark", "show"]).says(&["cold.trades"]);
    fs::remove_file(case.path("state.db")).unwrap();
    case.trades("trades", "2024-03-13", 10);
    case.pass();
    let target = case.target("trades");
    target.holds_all("trades");
    assert_eq!(target.snapshots().len(), 4);
}

#[test]
fn p20_a_state_cache_of_another_table_moves_no_watermark() {
    let case = two_chunks("other_state");
    let other = Case::with_trades("state_owner");
    other.sql("INSERT INTO trades (exchange_timestamp) VALUES (now64(3))");
    other.pass();
    fs::copy(other.path("state.db"), case.path("state.db")).unwrap();
    case.trades("trades", "2024-03-12", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_all("trades");
}

#[test]
fn p19_a_missing_catalog_or_target_is_told_with_the_way_on() {
    let case = Case::new("missing");
    case.bronze("trades");
    case.config(TRADES);
    case.run(&["run"]).expect(3).says(&["init-tables"]);
    assert!(!case.path("catalog.db").exists() && !case.path("warehouse").exists());
    case.target("trades").ask("create_catalog", json!({}));
    case.run(&["run"]).expect(3).says(&["cold.trades", "init-tables"]);
    case.init_tables();
    case.trades("trades", "2024-03-10", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn p19_the_journal_mode_of_the_catalog_stays_as_found() {
    let case = two_chunks("journal");
    let target = case.target("trades");
    let mode = || -> String { target.catalog().query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap() };
    assert_eq!(mode(), "delete");
    target.catalog().query_row("PRAGMA journal_mode = wal", [], |_| Ok(())).unwrap();
    case.trades("trades", "2024-03-12", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    assert_eq!(mode(), "wal");
    target.holds_all("trades");
}

#[test]
fn p19_tables_of_ours_are_no_views_and_views_are_no_tables() {
    let case = two_chunks("view");
    let target = case.target("trades");
    let kind = |catalog: rusqlite::Connection| -> String {
        catalog.query_row("SELECT iceberg_type FROM iceberg_tables", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(kind(target.catalog()), "TABLE");
    target.catalog().execute("UPDATE iceberg_tables SET iceberg_type = 'VIEW'", []).unwrap();
    run_json(&case).expect(3).says(&["`cold.trades` does not exist"]);
}

/// As PyIceberg made it before it knew views.
#[test]
fn p19_a_catalog_without_types_is_used_as_it_is() {
    let case = Case::new("untyped");
    case.bronze("trades");
    case.config(TRADES);
    case.target("trades").ask("create_catalog", json!({}));
    case.target("trades").catalog().execute("ALTER TABLE iceberg_tables DROP COLUMN iceberg_type", []).unwrap();
    case.init_tables();
    case.trades("trades", "2024-03-10", 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
    let columns = "SELECT count(*) FROM pragma_table_info('iceberg_tables') WHERE name = 'iceberg_type'";
    assert_eq!(case.target("trades").catalog().query_row(columns, [], |row| row.get::<_, u32>(0)).unwrap(), 0);
    assert_eq!(case.target("trades").icebergs("SELECT count() FROM"), "100");
}

#[test]
fn p19_a_catalog_that_another_process_holds_is_waited_for() {
    let case = Case::with_trades("busy");
    case.trades("trades", "2024-03-10", 10);
    let target = case.target("trades");
    let holder = target.catalog();
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut pass);
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.open();
    let metadata = target.folder().join("metadata");
    let staged =
        || support::files_below(&metadata).iter().filter(|f| f.extension().is_some_and(|e| e == "json")).count();
    support::wait_until("the commit is ready to swap", || pass.is_over() || staged() == 2);
    support::wait_until("the pass waits for the lock", || pass.is_over() || pass.sleeps());
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!(only_table(&pass.wait().expect(0).json())["rows_written"], 10);
}

#[test]
fn p5_null_cursors_are_refused_and_counted_at_every_pass() {
    let case = Case::new("nulls");
    case.sql("CREATE TABLE trades (ts Nullable(DateTime64(3)), n UInt64) ENGINE = MergeTree ORDER BY n");
    case.config("[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\n");
    case.init_tables();
    case.sql("INSERT INTO trades SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, number FROM numbers(10)");
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.sql("INSERT INTO trades VALUES (NULL, 7), ('2024-03-11 00:00:00', 8)");
    run_json(&case).expect(3).says(&["`ts`", "null", "1 row"]);
    case.sql("ALTER TABLE trades DELETE WHERE ts IS NULL SETTINGS mutations_sync = 2");
    assert_eq!(case.pass_one()["rows_written"], 1);
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn p5_null_partition_values_get_a_file_of_their_own() {
    let case = Case::new("null_days");
    case.sql("CREATE TABLE trades (ts DateTime64(3), settled Nullable(DateTime)) ENGINE = MergeTree ORDER BY ts");
    case.config(
        "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\npartition_by = ['days(settled)']\n",
    );
    case.init_tables();
    case.sql(
        "INSERT INTO trades SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, \
         if(number % 3 = 0, NULL, toDateTime('2024-03-10', 'UTC') + number * 3600) FROM numbers(48)",
    );
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["files"]), (&json!(48), &json!(3)));
    let target = case.target("trades");
    target.holds_for_all_readers("trades");
    assert_eq!(target.count_where(&["settled is null"]), [16]);
}

#[test]
fn p6_more_days_than_fit_one_chunk_make_more_chunks() {
    let case = Case::with_trades("many_days");
    case.trades_over_days("trades", "2023-01-01 00:00:00", 1000, 100);
    let table = case.pass_one();
    assert_eq!((&table["chunks"], &table["files"], &table["rows_written"]), (&json!(2), &json!(100), &json!(1000)));
    assert_eq!(case.pass_one()["status"], "nothing");
    case.target("trades").holds_for_all_readers("trades");
}

/// A foreign delete is told by every pass until somebody acknowledges it; new rows move meanwhile.
#[test]
fn rows_that_others_delete_are_told_until_it_is_acknowledged() {
    let case = Case::with_trades("deleted");
    let target = case.target("trades");
    case.trades("trades", "2024-03-10 10:00:00", 100);
    case.pass();
    target.ask("append", json!({"rows": 5, "micros": 1_700_000_000_000_000_u64}));
    case.trades("trades", "2024-03-11 10:00:00", 100);
    assert_eq!(case.pass_one()["rows_written"], 100, "what others add is no loss");
    assert_eq!(target.marker()["total_records"], 205);

    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-11T00:00:00+00:00'"}));
    let told = "100 rows were deleted from the target";
    assert_eq!(case.alarmed_pass_one(told)["rows_written"], 0);
    case.trades("trades", "2024-03-12 10:00:00", 50);
    assert_eq!(case.alarmed_pass_one(told)["rows_written"], 50);
    target.ask("append", json!({"rows": 20, "micros": 1_700_000_000_000_000_u64}));
    case.alarmed_pass_one("80 rows were deleted");

    let watermark =
        only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json())["watermark"].clone();
    case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to", watermark.as_str().unwrap()]).expect(0);
    assert_eq!(case.pass_one()["status"], "nothing");
    case.trades("trades", "2024-03-13 10:00:00", 50);
    assert_eq!(case.pass_one()["rows_written"], 50);
    // Position deletes take rows too.
    target.ask("delete_positions", json!({"every": 10}));
    case.run(&["run"]).expect(3).says(&["rows were deleted from the target"]);
}
