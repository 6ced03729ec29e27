//! Metadata that does not grow for ever: old snapshots go with what only they refer to, small manifests become few.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::PathBuf;

use serde_json::{Value, json};
use support::{Case, TRADES, Target, files_below};

/// Trades whose target lets every snapshot go that is older than the pass.
fn expiring(name: &str) -> Case {
    let case = Case::with_trades(name);
    set(&case.target("trades"), "history.expire.max-snapshot-age-ms", "0");
    case
}

fn set(target: &Target<'_>, key: &str, value: &str) {
    target.ask("set_properties", json!({"properties": {key: value}}));
}

/// Moves 100 trades of a day; two snapshots never bear the same millisecond, so that ages differ.
fn pass_of(case: &Case, day: &str) {
    case.trades("trades", day, 100);
    assert_eq!(case.pass_one()["rows_written"], 100);
}

const DELETED: &str = "were deleted from the target";

/// The same, of a target from which somebody has deleted rows.
fn pass_after_delete(case: &Case, day: &str) {
    case.trades("trades", day, 100);
    assert_eq!(case.alarmed_pass_one(DELETED)["rows_written"], 100);
}

/// What PyIceberg finds referred to must be what is on disk, no more and no less.
fn nothing_is_left_or_lost(target: &Target<'_>) {
    let referenced: Vec<PathBuf> = serde_json::from_value(target.ask("referenced_files", json!({}))).unwrap();
    let mut there = files_below(&target.folder());
    there.retain(|file| !file.ends_with("metadata/version-hint.text"));
    assert_eq!(there, referenced, "files on disk, files that are referred to");
}

#[test]
fn snapshots_that_are_too_old_go_with_their_files() {
    let case = expiring("expired");
    let target = case.target("trades");
    for day in ["2024-03-10", "2024-03-11", "2024-03-12", "2024-03-13"] {
        pass_of(&case, day);
    }
    assert_eq!(target.snapshots().len(), 2, "the newest marker's and its parent");
    nothing_is_left_or_lost(&target);
    target.holds_for_all_readers("trades");
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn snapshots_stay_for_seven_days_where_the_table_says_nothing_else() {
    let case = Case::with_trades("kept");
    let target = case.target("trades");
    assert_eq!(target.ask("properties", json!({}))["history.expire.max-snapshot-age-ms"], "604800000");
    for day in ["2024-03-10", "2024-03-11", "2024-03-12", "2024-03-13"] {
        pass_of(&case, day);
    }
    assert_eq!(target.snapshots().len(), 4);
    nothing_is_left_or_lost(&target);
}

#[test]
fn tags_branches_and_gc_enabled_are_respected() {
    let case = expiring("references");
    let target = case.target("trades");
    pass_of(&case, "2024-03-10");
    target.ask("tag", json!({"name": "eod"}));
    pass_of(&case, "2024-03-11");
    target.ask("branch", json!({"name": "experiment"}));
    pass_of(&case, "2024-03-12");
    set(&target, "gc.enabled", "false");
    pass_of(&case, "2024-03-13");
    pass_of(&case, "2024-03-14");
    assert_eq!(target.snapshots().len(), 5);
    set(&target, "gc.enabled", "true");
    pass_of(&case, "2024-03-15");
    assert_eq!(target.snapshots().len(), 4, "two of the passes, a tag and a branch");
    let count_at = |name: &str| target.ask("count_at", json!({"reference": name}));
    assert_eq!((count_at("eod"), count_at("experiment")), (json!(100), json!(200)));
    nothing_is_left_or_lost(&target);
    target.holds_for_all_readers("trades");
}

#[test]
fn a_number_of_snapshots_to_keep_is_respected() {
    let case = expiring("number");
    let target = case.target("trades");
    set(&target, "history.expire.min-snapshots-to-keep", "3");
    for day in ["2024-03-10", "2024-03-11", "2024-03-12", "2024-03-13"] {
        pass_of(&case, day);
    }
    assert_eq!(target.snapshots().len(), 3);
    set(&target, "history.expire.min-snapshots-to-keep", "many");
    pass_of(&case, "2024-03-14");
    assert_eq!(target.snapshots().len(), 4, "a property that does not parse keeps them all");
    nothing_is_left_or_lost(&target);
}

/// Files that other writers deleted go once no snapshot is left that has them; while a tag has them they stay.
#[test]
fn data_files_go_when_the_last_snapshot_that_has_them_goes() {
    let case = expiring("deleted");
    let target = case.target("trades");
    pass_of(&case, "2024-03-10");
    pass_of(&case, "2024-03-11");
    let both = target.files_on_disk();
    assert_eq!(both.len(), 2);
    target.ask("delete", json!({"filter": "exchange_timestamp < '2024-03-11T00:00:00+00:00'"}));
    assert_eq!(target.files_on_disk(), both, "PyIceberg deletes no files");
    pass_after_delete(&case, "2024-03-12");
    pass_after_delete(&case, "2024-03-13");
    let left = target.files_on_disk();
    assert_eq!((left.len(), left.contains(&both[0])), (3, false));
    target.ask("tag", json!({"name": "eod"}));
    target.ask("delete", json!({"filter": "exchange_timestamp < '2024-03-12T00:00:00+00:00'"}));
    pass_after_delete(&case, "2024-03-14");
    pass_after_delete(&case, "2024-03-15");
    assert!(target.files_on_disk().contains(&both[1]), "the tag has it");
    assert_eq!(target.ask("count_at", json!({"reference": "eod"})), 300);
    nothing_is_left_or_lost(&target);
    target.holds(&["pyiceberg", "duckdb", "clickhouse"], "trades", "exchange_timestamp >= '2024-03-12'");
}

#[test]
fn small_manifests_become_few_and_lose_no_file() {
    let case = Case::new("manifests");
    case.bronze("trades");
    case.config(&format!("{TRADES}chunk_rows = 10\n"));
    case.init_tables();
    let target = case.target("trades");
    // PyIceberg deletes what it deletes from every manifest, whoever wrote it.
    case.trades("trades", "2024-03-10", 200);
    assert_eq!(case.pass_one()["chunks"], 20);
    let manifests =
        |target: &Target<'_>| -> Vec<u64> { serde_json::from_value(target.ask("manifests", json!({}))).unwrap() };
    assert_eq!(manifests(&target), [16, 1, 1, 1, 1]);
    target.ask("delete", json!({"filter": "exchange_timestamp < '2024-03-10T00:00:10+00:00'"}));
    case.trades("trades", "2024-03-11", 300);
    assert_eq!(case.alarmed_pass_one(DELETED)["chunks"], 30);
    let after = manifests(&target);
    assert_eq!((after.len() < 20, after.iter().sum::<u64>()), (true, 48), "{after:?}");
    target.holds(&["pyiceberg", "duckdb", "clickhouse"], "trades", "exchange_timestamp >= '2024-03-10 00:00:10'");
    let planned = target.ask("plan_files", json!({"filters": ["exchange_timestamp < '2024-03-10T00:00:20+00:00'"]}));
    assert_eq!(planned, json!([2]), "the bounds of merged entries still hold");
    nothing_is_left_or_lost(&target);
    set(&target, "history.expire.max-snapshot-age-ms", "0");
    pass_of(&case, "2024-03-12");
    assert!(target.snapshots().len() <= 3);
    nothing_is_left_or_lost(&target);
    target.holds(&["pyiceberg"], "trades", "exchange_timestamp >= '2024-03-10 00:00:10'");
}

/// A snapshot that forked off has manifests that neither the oldest nor the newest snapshot of the current history has: those between need them.
#[test]
fn a_fork_that_goes_takes_nothing_with_it_that_others_need() {
    let case = Case::new("fork");
    case.bronze("trades");
    case.config(&format!("{TRADES}chunk_rows = 10\n"));
    case.init_tables();
    let target = case.target("trades");
    case.trades("trades", "2024-03-10", 30);
    assert_eq!(case.pass_one()["chunks"], 3);
    target.ask("append", json!({"rows": 5, "micros": 0}));
    target.ask("rollback", json!({}));
    case.trades("trades", "2024-03-11", 150);
    assert_eq!(case.pass_one()["chunks"], 15);
    set(&target, "history.expire.min-snapshots-to-keep", "100");
    set(&target, "history.expire.max-snapshot-age-ms", "0");
    pass_of_ten(&case);
    assert_eq!(target.snapshots().len(), 19, "the fork alone is gone");
    nothing_is_left_or_lost(&target);
    target.holds_for_all_readers("trades");
}

fn pass_of_ten(case: &Case) {
    case.trades("trades", "2024-03-12", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
}

/// A rolled-back snapshot is on no branch: it goes when it is too old, with the files that only it has.
#[test]
fn what_was_rolled_back_goes_with_its_files() {
    let case = expiring("rolled_back");
    let target = case.target("trades");
    pass_of(&case, "2024-03-10");
    target.ask("append", json!({"rows": 5, "micros": 0}));
    let all = target.files_on_disk();
    target.ask("rollback", json!({}));
    pass_of(&case, "2024-03-11");
    let left = target.files_on_disk();
    assert_eq!((all.len(), left.len()), (2, 2), "PyIceberg's file is gone, a new one is there: {left:?}");
    nothing_is_left_or_lost(&target);
    target.holds_for_all_readers("trades");
    let summary: Value = target.snapshots().last().unwrap()["summary"].clone();
    assert_eq!(summary["total-records"], "200");
}
