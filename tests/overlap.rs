//! Two passes over one target: on two hosts that share nothing but the catalog, and on one host.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::{Case, HASH_OF_BRONZE, Output, Place, TRADES, only_table};

const ROUNDS: u64 = 20;
/// On the lake, where a round takes longer.
const ROUNDS_ON_LAKE: u64 = 8;
/// Passes at once, and whether each one has a state folder of its own.
const CROWDS: [(usize, bool); 4] = [(2, true), (5, true), (2, false), (5, false)];
const JSON_RUN: [&str; 3] = ["--format", "json", "run"];

/// A second host: the same catalog and warehouse, a state file of its own.
fn second_host(case: &Case) {
    case.config_file("second.toml", "", "[state]\npath = 'second.db'", TRADES);
}

/// Configurations of `passes` hosts, or of as many calls on one host.
fn crowd(case: &Case, (passes, separate): (usize, bool)) -> Vec<String> {
    let config = |number| {
        let (name, state) = (format!("host_{number}.toml"), if separate { number } else { 0 });
        case.config_file(&name, "", &format!("[state]\npath = 'host_{state}.db'"), TRADES);
        name
    };
    (0..passes).map(config).collect()
}

/// What a pass did of `offloaded`, `nothing` and `conflict`.
fn result(output: &Output) -> (String, Value) {
    assert!(matches!(output.code, Some(0 | 1)), "{}", output.all());
    let table = only_table(&output.json());
    let result = match table["error"]["kind"].as_str() {
        None => table["status"].as_str().unwrap().to_owned(),
        Some(kind) => kind.to_owned(),
    };
    (result, table)
}

#[test]
fn of_several_passes_that_commit_at_once_exactly_one_offloads() {
    exactly_one_offloads(Place::Local, ROUNDS);
}

#[test]
fn of_several_passes_that_commit_at_once_over_the_lake_exactly_one_offloads() {
    support::in_parallel(3, vec![Place::Rest, Place::Guarded, Place::Postgres], |place| {
        exactly_one_offloads(place, ROUNDS_ON_LAKE);
    });
}

fn exactly_one_offloads(place: Place, rounds: u64) {
    let case = Case::with_trades_at(place, "released");
    let target = case.target("trades");
    for round in 1..=rounds {
        case.trades("trades", &format!("2024-03-{:02} 23:59:00", round + 1), 500);
        let gate = case.gate(&format!("gate_{round}"));
        let failpoints = format!("guard=skip;written={}", gate.pause());
        let configs = crowd(&case, CROWDS[usize::try_from(round).unwrap() % CROWDS.len()]);
        let mut passes: Vec<_> = configs.iter().map(|config| case.spawn(config, &failpoints, &JSON_RUN)).collect();
        for pass in &mut passes {
            gate.wait_for(pass);
        }
        gate.open();
        let results: Vec<_> = passes.into_iter().map(|pass| result(&pass.wait()).0).collect();
        let of = |status: &str| results.iter().filter(|result| *result == status).count();
        let good = of("offloaded") == 1 && of("offloaded") + of("nothing") + of("conflict") == results.len();
        assert!(good, "round {round}: {results:?}");
        assert_eq!(target.icebergs(HASH_OF_BRONZE), case.sql(&format!("{HASH_OF_BRONZE} trades")), "round {round}");
        assert_eq!(case.pass_one()["status"], "nothing", "round {round}");
        target.hint_is_right(&format!("{place:?}, round {round}"));
    }
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    assert_eq!(target.snapshots().len() as u64, rounds);
    if place.is_rest() {
        // The files of losers are the server's.
        return;
    }
    // icebergLocal without a catalog trusts the folder: the loser's metadata must be gone too.
    let metadata = support::files_below(&target.folder().join("metadata"));
    let is_version = |file: &&std::path::PathBuf| file.to_string_lossy().ends_with(".metadata.json");
    assert_eq!(metadata.iter().filter(is_version).count() as u64, rounds + 1, "{metadata:#?}");
}

#[test]
fn a_pass_that_comes_late_to_its_commit_adds_nothing_twice() {
    let case = Case::with_trades("late");
    second_host(&case);
    let target = case.target("trades");
    for (round, point) in ["counted", "written", "commit-swap"].iter().enumerate() {
        case.trades("trades", &format!("2024-03-{} 23:59:00", 10 + round), 500);
        let gate = case.gate(point);
        let mut late = case.spawn("offload.toml", &format!("guard=skip;{point}={}", gate.pause()), &JSON_RUN);
        gate.wait_for(&mut late);
        let mut other = case.command_with("second.toml", &JSON_RUN);
        let first = support::finish(other.env("K2_OFFLOAD_FAILPOINTS", "guard=skip"));
        assert_eq!(only_table(&first.expect(0).json())["rows_written"], 500);
        // More than the late pass has planned for.
        case.trades("trades", &format!("2024-03-{} 12:00:00", 11 + round), 100);
        gate.open();
        let (result, table) = result(&late.wait());
        assert!(result == "conflict" || table["rows_written"] == 100, "{point}: {table:#}");
        case.pass();
        target.holds_all("trades");
        target.has_no_other_files();
    }
}

/// P13: the watermark is again the one that the late pass was planned on, its commit-id is not.
#[test]
fn p13_a_pass_that_was_planned_before_a_reset_to_the_same_watermark_adds_nothing_twice() {
    let case = Case::with_trades("same_watermark");
    second_host(&case);
    case.trades("trades", "2024-03-10 10:00:00", 100);
    let watermark = case.pass_one()["watermark"].as_str().unwrap().to_owned();
    case.trades("trades", "2024-03-11 10:00:00", 100);
    let gate = case.gate("gate");
    let mut late = case.spawn("offload.toml", &format!("guard=skip;written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut late);
    let other = case.run_with("second.toml", &JSON_RUN).expect(0);
    assert_eq!(only_table(&other.json())["rows_written"], 100);
    let reset = ["watermark", "reset", "--table", "trades", "--yes", "--to", &watermark];
    case.run_with("second.toml", &reset).expect(0);
    gate.open();
    assert_eq!(result(&late.wait()).1["rows_written"], 0);
    case.pass();
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").has_no_other_files();
}

#[test]
fn a_foreign_commit_in_between_does_not_stop_a_pass() {
    let case = Case::with_trades("between");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    let target = case.target("trades");
    // Into a table without a commit of ours, foreign rows are refused; so they come as a table property and as rows deleted again.
    target.ask("set_properties", json!({"properties": {"owner": "somebody else"}}));
    gate.open();
    assert_eq!(only_table(&pass.wait().expect(0).json())["rows_written"], 100);

    case.trades("trades", "2024-03-11 00:00:00", 100);
    let gate = case.gate("second_gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    target.ask("append", json!({"rows": 3, "micros": 0}));
    gate.open();
    assert_eq!(only_table(&pass.wait().expect(0).json())["rows_written"], 100);
    target.holds_with_foreign_rows("trades", 3);
    assert_eq!(target.ask("properties", json!({}))["owner"], "somebody else");
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn a_table_that_was_made_anew_in_between_gets_its_rows_once() {
    let case = Case::with_trades("anew");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    let target = case.target("trades");
    target.ask("drop", json!({}));
    // The new table has their ids the other way round.
    case.sql("ALTER TABLE trades MODIFY COLUMN quantity Decimal(18, 8) AFTER symbol");
    case.init_tables();
    gate.open();
    let (result, table) = result(&pass.wait());
    assert!(result == "conflict" || table["rows_written"] == 100, "{table:#}");
    case.pass();
    target.holds_all("trades");
    target.has_no_other_files();
}

#[test]
fn a_table_that_was_dropped_in_between_gets_nothing() {
    let case = Case::with_trades("dropped");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    let files = case.target("trades").state().1;
    assert_eq!(files.iter().filter(|file| file.to_string_lossy().ends_with(".parquet")).count(), 1);
    case.target("trades").ask("drop", json!({}));
    gate.open();
    support::fails(&only_table(&pass.wait().expect(3).json()), "refused", &["`cold.trades`", "init-tables"]);
    let left = support::files_below(&case.path("warehouse"));
    assert_eq!(left.len(), 1, "the dropped table's metadata alone: {left:#?}");
}

#[test]
fn a_second_pass_on_this_host_is_skipped_and_says_who_holds_the_table() {
    let case = Case::with_trades("guarded");
    second_host(&case);
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let gate = case.gate("gate");
    let mut first = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut first);
    for config in ["offload.toml", "second.toml"] {
        let second = case.run_with(config, &JSON_RUN).expect(4).says(&[&first.pid().to_string()]);
        let table = only_table(&second.json());
        assert_eq!((&table["status"], &table["rows_written"]), (&json!("skipped"), &json!(0)));
    }
    case.run(&["watermark", "show"]).expect(0);
    case.run(&["run", "--dry-run"]).expect(0);
    gate.open();
    assert_eq!(only_table(&first.wait().expect(0).json())["rows_written"], 100);
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn of_several_passes_at_once_on_this_host_one_offloads_and_none_fails() {
    let case = Case::with_trades("crowd");
    for (round, crowded) in CROWDS.into_iter().enumerate() {
        case.trades("trades", &format!("2024-03-{} 23:59:00", 10 + round), 500);
        let passes: Vec<_> = crowd(&case, crowded).iter().map(|config| case.spawn(config, "", &JSON_RUN)).collect();
        let tables: Vec<Value> = passes
            .into_iter()
            .map(|pass| {
                let output = pass.wait();
                assert!(matches!(output.code, Some(0 | 4)), "{crowded:?}\n{}", output.all());
                only_table(&output.json())
            })
            .collect();
        let written: u64 = tables.iter().map(|table| table["rows_written"].as_u64().unwrap()).sum();
        assert_eq!(written, 500, "{crowded:?}: {tables:#?}");
        assert_eq!(case.pass_one()["status"], "nothing", "{crowded:?}");
    }
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").has_no_other_files();
    assert_eq!(case.target("trades").snapshots().len(), CROWDS.len());
}

#[test]
fn a_table_that_is_held_does_not_hold_back_the_others() {
    let case = Case::new("held");
    let mut config = String::new();
    for table in ["one", "two"] {
        case.bronze(table);
        case.trades(table, "2024-03-10 00:00:00", 20);
        config += &format!("[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'exchange_timestamp'\n");
    }
    case.config(&config);
    case.init_tables();
    let gate = case.gate("gate");
    let mut first = case.spawn(
        "offload.toml",
        &format!("counted={}", gate.pause()),
        &["--format", "json", "run", "--table", "one"],
    );
    gate.wait_for(&mut first);
    let document = case.run(&JSON_RUN).expect(4).json();
    assert_eq!(support::table_of(&document, "cold.one")["status"], "skipped");
    assert_eq!(support::table_of(&document, "cold.two")["status"], "offloaded");
    gate.open();
    first.wait().expect(0);
    case.target("one").holds_all("one");
    case.target("two").holds_all("two");
}

#[test]
fn the_lock_of_a_killed_pass_is_free() {
    let case = Case::with_trades("freed");
    case.trades("trades", "2024-03-10 00:00:00", 20);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    pass.signal("KILL");
    pass.wait();
    assert_eq!(case.pass_one()["rows_written"], 20);
}
