//! Files that nothing refers to: what is left where a pass dies, and nothing else.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{Case, Place, failpoints, files_below, only_table};

/// Makes every file below a folder look as old.
fn age(folder: &Path, days: u32) {
    for file in files_below(folder) {
        let touched = Command::new("touch").args(["-d", &format!("{days} days ago")]).arg(&file).status().unwrap();
        assert!(touched.success());
    }
}

fn orphans(case: &Case, options: &[&str]) -> BTreeSet<PathBuf> {
    let document = case.run(&[&["--format", "json", "audit", "--orphans"], options].concat()).expect(0).json();
    let table = only_table(&document);
    let paths = table["orphans"].as_array().unwrap().iter().map(|orphan| case.file(orphan["path"].as_str().unwrap()));
    paths.collect()
}

/// What the table needs, and what names its newest version to who reads it by its folder.
fn referenced(case: &Case) -> BTreeSet<PathBuf> {
    let target = case.target("trades");
    let mut files: BTreeSet<PathBuf> = serde_json::from_value(target.ask("referenced_files", json!({}))).unwrap();
    files.insert(target.folder().join("metadata/version-hint.text"));
    files
}

#[test]
fn what_killed_passes_leave_is_found_when_it_is_old_and_removed_when_asked_for() {
    is_found_and_removed(Place::Local);
}

#[test]
fn what_killed_passes_leave_on_the_lake_is_found_when_it_is_old_and_removed_when_asked_for() {
    support::in_parallel(2, vec![Place::Rest, Place::Postgres], is_found_and_removed);
}

fn is_found_and_removed(place: Place) {
    let case = Case::with_trades_at(place, "killed");
    // A transaction of the catalog of ours is none of a server's.
    let failpoints = || failpoints().into_iter().filter(|point| !place.is_rest() || *point != "commit-swapped");
    for (day, point) in (10..).zip(failpoints()) {
        case.trades("trades", &format!("2024-03-{day} 10:00:00"), 100);
        assert_eq!(case.run_failing(&format!("{point}=kill"), &["run"]).code, None, "{point}");
        case.pass();
    }
    // Merges die too: late rows after a reset.
    for point in failpoints().filter(|_| place == Place::Local) {
        case.sql(&format!(
            "INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:00:00.001', '{point}')"
        ));
        case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to", "2024-03-10T00:00:00Z"]).expect(0);
        assert_eq!(case.run_failing(&format!("{point}=kill"), &["run"]).code, None, "{point}");
        case.pass();
    }
    let folder = case.target("trades").folder();
    let known = referenced(&case);
    // Apache's JDBC catalog leaves one of those for a table that it refuses to make in a namespace that is not there.
    let is_first = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with("00000-");
    let is_servers = |file: &&PathBuf| place.is_rest() && is_first(file) && !known.contains(*file);
    files_below(&folder).iter().filter(is_servers).for_each(|file| fs::remove_file(file).unwrap());
    let left: BTreeSet<PathBuf> =
        files_below(&folder).into_iter().collect::<BTreeSet<_>>().difference(&known).cloned().collect();
    let of = |suffix: &str| left.iter().filter(|path| path.to_str().unwrap().ends_with(suffix)).count();
    assert!(of(".parquet") > 0 && of(".avro") > 1, "{left:#?}");
    assert!(of(".metadata.json") > 0 || place.is_rest(), "{left:#?}");
    assert!(orphans(&case, &[]).is_empty(), "a commit may still be about to use them");
    age(&folder, 4);
    assert_eq!(orphans(&case, &[]), left);
    case.run(&["audit", "--orphans"]).expect(0).says(&["orphaned file(s)", "k2-offload-"]);
    assert_eq!(orphans(&case, &["--repair"]), left);
    assert_eq!(files_below(&folder).into_iter().collect::<BTreeSet<_>>(), referenced(&case));
    assert!(orphans(&case, &[]).is_empty());
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn files_of_others_and_of_branches_tags_and_old_versions_stay() {
    let case = Case::with_trades("others");
    let target = case.target("trades");
    case.trades("trades", "2024-03-10 10:00:00", 100);
    case.pass();
    target.ask("tag", json!({"name": "audited"}));
    target.ask("branch", json!({"name": "work"}));
    target.ask("append", json!({"rows": 5, "micros": 1_710_000_000_000_000_u64}));
    target.ask("delete", json!({"filter": "exchange_timestamp < '2024-03-10T10:00:05+00:00'"}));
    let folder = target.folder();
    // As where the table's properties let old versions go: the snapshots alone tell what tag and branch need.
    let is_old = |file: &&PathBuf| file.extension().is_some_and(|e| e == "json") && **file != target.metadata_file();
    files_below(&folder).iter().filter(is_old).for_each(|file| fs::remove_file(file).unwrap());
    let theirs = [
        "data/notes.txt",
        "data/00000-0-6f1e7b1c-8a43-4bd5-9c40-0d2d7f7f7a11.parquet",
        "metadata/k2-offload.json",
        "metadata/junk.metadata.json",
        "metadata/00009-6f1e7b1c-8a43-4bd5-9c40-0d2d7f7f7a11.gz.metadata.json",
    ];
    for name in theirs {
        fs::write(folder.join(name), "theirs").unwrap();
    }
    age(&folder, 30);
    let before = files_below(&folder);
    let run = case.run(&["audit", "--orphans", "--repair"]).expect_warning("junk.metadata.json");
    run.says(&["0 orphaned file(s)"]);
    assert_eq!(files_below(&folder), before);
}

/// Whoever goes back to that version, or reads it meanwhile, needs what it names.
#[test]
fn files_that_an_old_version_of_the_metadata_names_stay() {
    let case = Case::with_trades("old_versions");
    let target = case.target("trades");
    for day in ["2024-03-10", "2024-03-11"] {
        case.trades("trades", day, 100);
        case.pass();
    }
    target.ask("append", json!({"rows": 5, "micros": 0}));
    target.ask("expire", json!({}));
    assert_eq!(target.snapshots().len(), 1);
    age(&target.folder(), 30);
    assert_eq!(orphans(&case, &["--repair"]), BTreeSet::new());
    assert_eq!(target.count(), 205);
}

#[test]
fn removing_waits_for_nobody_and_says_what_it_cannot() {
    let case = Case::with_trades("locked");
    case.trades("trades", "2024-03-10 10:00:00", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    let document = case.run(&["--format", "json", "audit", "--orphans", "--repair"]).expect(4).json();
    assert_eq!(only_table(&document)["error"]["kind"], "locked");
    gate.open();
    pass.wait().expect(0);
    case.run(&["audit", "--orphans", "--last", "24h"]).expect(2).says(&["files, not at rows"]);
    let nothing: Value = case.run(&["--format", "json", "audit", "--orphans"]).expect(0).json();
    assert_eq!(only_table(&nothing)["orphans"], json!([]));
}
