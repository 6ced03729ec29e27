//! Who reads a table by its folder, without its catalog, sees what is committed: `metadata/version-hint.text` names it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::json;
use support::{Case, Place, in_parallel};

/// The hint names the file that the catalog names, and all readers see `rows`.
fn shows(case: &Case, rows: u64, what: &str) {
    case.target("trades").hint_is_right(what);
    assert_eq!(case.target("trades").count_by_folder(), [rows; 3], "{what}");
}

#[test]
fn readers_of_a_folder_see_what_is_committed_and_no_commit_that_died() {
    in_parallel(2, vec![Place::Local, Place::Sqlite, Place::Postgres, Place::Rest], |place| {
        let case = Case::with_trades_at(place, "folder");
        let day = |number: u32| case.trades("trades", &format!("2024-03-{number} 10:00:00"), 100);
        day(10);
        case.pass();
        shows(&case, 100, "a commit");

        day(11);
        assert_eq!(case.run_failing("commit-swap=kill", &["run"]).code, None);
        shows(&case, 100, "one that died before its swap");
        case.pass();
        shows(&case, 200, "the next pass");

        day(12);
        assert_eq!(case.run_failing("commit-clean=kill", &["run"]).code, None);
        let behind = case.target("trades").count_by_folder();
        assert_eq!(behind, [200; 3], "one that died after its swap is seen as soon as a pass has looked");
        case.pass();
        shows(&case, 300, "a pass that found nothing new");

        case.target("trades").ask("append", json!({"rows": 5, "micros": 1_710_000_000_000_000_u64}));
        case.pass();
        shows(&case, 305, "a commit of others, after a pass");
    });
}

/// A hint that is a number is a Hadoop catalog's; one of ours must not name what is no longer the newest.
#[test]
fn hints_of_others_stay_and_none_of_ours_is_left_behind() {
    let case = Case::with_trades("kept");
    case.trades("trades", "2024-03-10 10:00:00", 100);
    let file = case.target("trades").folder().join("metadata/version-hint.text");
    fs::write(&file, "7").unwrap();
    case.pass();
    assert_eq!(case.target("trades").hint(), "7");
    fs::write(&file, "00001-of-nobody").unwrap();
    case.pass();
    shows(&case, 100, "a hint that was wrong");
}
