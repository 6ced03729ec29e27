//! `watermark reset`: forward over rows that are skipped, over a table that others filled, and over a rollback that is kept.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Case, Output, finish, only_table};

const EVENING: &str = "2024-03-10T18:00:00.000Z";

fn reset(case: &Case, arguments: &[&str]) -> Output {
    case.run(&[&["--format", "json", "watermark", "reset", "--table", "trades"], arguments].concat())
}

/// 100 trades of the morning have left, 70 of the afternoon and 30 of the night wait.
fn three_parts(name: &str) -> Case {
    let case = Case::with_trades(name);
    case.trades("trades", "2024-03-10 08:00:00", 100);
    case.pass();
    case.trades("trades", "2024-03-10 15:00:00", 70);
    case.trades("trades", "2024-03-10 20:00:00", 30);
    case
}

#[test]
fn p25_a_reset_forward_skips_rows_and_says_how_many() {
    let case = three_parts("forward");
    let target = case.target("trades");
    let watermark = only_table(&case.run(&["--format", "json", "watermark", "show"]).json())["watermark"].clone();
    let report = reset(&case, &["--to", EVENING, "--yes"]).expect(0).json();
    assert_eq!((&report["status"], &report["from"], &report["to"]), (&json!("reset"), &watermark, &json!(EVENING)));
    assert_eq!((&report["rows_skipped"], &report["target"]), (&json!(70), &json!("cold.trades")));

    let snapshots = target.snapshots();
    assert_eq!((snapshots.len(), &snapshots[1]["id"]), (2, &report["snapshot_id"]), "P12: a snapshot without files");
    let marker = target.marker();
    assert_eq!((&marker["mode"], &marker["rows"], &marker["source_rows"]), (&json!("reset"), &json!(0), &json!(70)));
    assert_eq!(marker["skipped"], json!([[marker["low"], marker["high"]]]));

    assert_eq!(case.pass_one()["rows_written"], 30);
    assert_eq!(target.marker()["skipped"], marker["skipped"], "later commits remember it");
    target.holds(
        &["pyiceberg", "duckdb", "clickhouse"],
        "trades",
        "toHour(exchange_timestamp, 'UTC') NOT BETWEEN 15 AND 17",
    );
    let shown = only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json());
    assert!(shown["watermark"].as_str().unwrap() > EVENING && shown["watermark"] == shown["offloaded_to"], "{shown:#}");
}

#[test]
fn a_reset_asks_before_it_skips() {
    let case = three_parts("asks");
    let before = case.target("trades").metadata_file();
    let planned = reset(&case, &["--to", EVENING, "--dry-run"]).expect(0).json();
    assert_eq!((&planned["status"], &planned["rows_skipped"]), (&json!("planned"), &json!(70)));
    reset(&case, &["--to", EVENING]).expect(2).says(&["skips 70 source rows", "--yes", "no terminal"]);
    assert_eq!(answered(&case, "n\n"), json!("unchanged"));
    assert_eq!(case.target("trades").metadata_file(), before);
    assert_eq!(answered(&case, "y\n"), json!("reset"));
    assert_eq!(case.pass_one()["rows_written"], 30);
}

/// Status of a reset whose question is answered on a terminal, which `script` makes.
fn answered(case: &Case, answer: &str) -> Value {
    let reset = case.command(&["--format", "json", "watermark", "reset", "--table", "trades", "--to", EVENING]);
    let words: Vec<String> = std::iter::once(reset.get_program())
        .chain(reset.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]).current_dir(case.folder());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), answer.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("skips 70 source rows"), "{said}");
    let document = &said[said.find('{').unwrap()..];
    serde_json::from_str::<Value>(document).unwrap()["status"].clone()
}

#[test]
fn what_makes_no_sense_is_refused() {
    let case = three_parts("nonsense");
    let before = case.target("trades").metadata_file();
    reset(&case, &["--to", "2999-01-01", "--yes"]).expect(2).says(&["2999-01-01", "future"]);
    reset(&case, &["--yes"]).expect(2).says(&["--to"]);
    reset(&case, &["--to", EVENING, "--to-earliest"]).expect(2);
    reset(&case, &["--to", EVENING, "--table", "nothing"]).expect(2);
    assert_eq!(case.target("trades").metadata_file(), before);
    assert_eq!(case.pass_one()["rows_written"], 100);
    case.target("trades").holds_all("trades");
}

#[test]
fn a_target_without_rows_may_begin_later() {
    let case = Case::with_trades("later");
    case.trades("trades", "2024-03-10 08:00:00", 100);
    case.trades("trades", "2024-03-10 20:00:00", 30);
    assert_eq!(reset(&case, &["--to-earliest", "--yes"]).expect(0).json()["status"], "unchanged");
    let report = reset(&case, &["--to", EVENING, "--yes"]).expect(0).json();
    assert_eq!((&report["from"], &report["rows_skipped"]), (&Value::Null, &json!(100)));
    assert_eq!(case.pass_one()["rows_written"], 30);
}

#[test]
fn p17_a_table_of_others_is_taken_over_above_its_rows() {
    let case = Case::with_trades("adopt");
    let target = case.target("trades");
    let noon = 1_710_072_000_000_000_i64;
    target.ask("append", json!({"rows": 5, "micros": noon}));
    case.trades("trades", "2024-03-10 08:00:00", 100);
    case.trades("trades", "2024-03-10 15:00:00", 70);
    case.trades("trades", "2024-03-10 20:00:00", 30);
    case.run(&["run"]).expect(3).says(&["k2-offload did not write", "watermark reset --table T --to"]);
    let refused = reset(&case, &["--to", "2024-03-10T12:00:00Z", "--yes"]).expect(3);
    refused.says(&["the target itself holds rows up to 2024-03-10T12:00:00.000Z"]);
    let report = reset(&case, &["--to", EVENING, "--yes"]).expect(0).json();
    assert_eq!((&report["from"], &report["rows_skipped"]), (&json!("2024-03-10T12:00:00.001Z"), &json!(70)));
    assert_eq!(target.marker()["mode"], "adopt");
    assert_eq!(case.pass_one()["rows_written"], 30);
    assert_eq!(target.count(), 35);
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn a_reset_lets_no_snapshot_go_and_the_next_pass_does() {
    let case = Case::with_trades("history");
    let target = case.target("trades");
    target.ask("set_properties", json!({"properties": {"history.expire.max-snapshot-age-ms": "0"}}));
    for _ in 0..3 {
        target.ask("append", json!({"rows": 1, "micros": 0}));
    }
    reset(&case, &["--to", EVENING, "--yes"]).expect(0);
    assert_eq!(target.snapshots().len(), 4);
    case.trades("trades", "2024-03-10 20:00:00", 30);
    assert_eq!(case.pass_one()["rows_written"], 30);
    assert_eq!((target.snapshots().len(), target.count()), (2, 33));
}

/// Trades of two days have left, and the second day's commit was rolled back; the watermark of the first.
fn rolled_back(name: &str) -> (Case, String) {
    let case = Case::with_trades(name);
    case.trades("trades", "2024-03-10", 100);
    let left = case.pass_one()["watermark"].as_str().unwrap().to_owned();
    case.trades("trades", "2024-03-11", 100);
    case.pass();
    case.target("trades").ask("rollback", json!({}));
    (case, left)
}

#[test]
fn p16_a_rollback_that_is_kept_offloads_again_what_is_gone() {
    let (case, left) = rolled_back("keep");
    let target = case.target("trades");
    case.run(&["run"]).expect(3).says(&["rolled back", "watermark reset --table T --to", &left]);
    let report = reset(&case, &["--to", &left, "--yes"]).expect(0).json();
    assert_eq!((&report["from"], &report["rows_skipped"]), (&json!(left), &json!(0)));
    let shown = only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json());
    assert_eq!(shown["checked_to"], json!(left), "how far passes looked before the rollback says nothing any more");
    assert_eq!(case.pass_one()["rows_written"], 100);
    target.holds_for_all_readers("trades");
}

#[test]
fn a_rollback_to_which_rows_came_back_is_kept_above_them() {
    let (case, left) = rolled_back("came_back");
    let target = case.target("trades");
    // 2024-03-11T12:00:00Z
    target.ask("append", json!({"rows": 1, "micros": 1_710_158_400_000_000_i64}));
    reset(&case, &["--to", &left, "--yes"])
        .expect(3)
        .says(&["the target itself holds rows up to 2024-03-11T12:00:00.000Z"]);
    reset(&case, &["--to", "2024-03-11T12:00:01Z", "--yes"]).expect(0);
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn a_target_that_lost_all_rows_begins_again_with_the_first() {
    let case = Case::with_trades("emptied");
    let target = case.target("trades");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-10T00:00:00+00:00'"}));
    target.ask("expire", json!({}));
    case.run(&["run"]).expect(3).says(&["rolled back"]);
    let report = reset(&case, &["--to-earliest", "--yes"]).expect(0).json();
    assert_eq!((&report["status"], &report["rows_skipped"]), (&json!("reset"), &json!(0)));
    assert_eq!(case.pass_one()["rows_written"], 100);
    target.holds_for_all_readers("trades");
}

#[test]
fn a_reset_waits_for_no_pass_and_no_other_writer() {
    let case = three_parts("conflict");
    let gate = case.gate("held");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    reset(&case, &["--to", EVENING, "--yes"]).expect(4).says(&["locked by pid"]);
    gate.open();
    pass.wait().expect(0);

    let case = three_parts("snapshot");
    let gate = case.gate("swap");
    let arguments = ["watermark", "reset", "--table", "trades", "--to", EVENING, "--yes"];
    let mut late = case.spawn("offload.toml", &format!("commit-swap={}", gate.pause()), &arguments);
    gate.wait_for(&mut late);
    case.target("trades").ask("append", json!({"rows": 1, "micros": 0}));
    gate.open();
    late.wait().expect(1).says(&["another writer has committed"]);
    case.target("trades").has_no_other_files();
    assert_eq!(case.pass_one()["rows_written"], 100);
}

#[test]
fn p14_a_reset_whose_reply_is_lost_is_looked_up() {
    let case = three_parts("lost");
    let arguments = ["--format", "json", "watermark", "reset", "--table", "trades", "--to", EVENING, "--yes"];
    for (failpoint, code) in [("commit-swap=reply-lost", Some(0)), ("commit-swap=kill", None)] {
        let case =
            case.command(&arguments).env("K2_OFFLOAD_FAILPOINTS", failpoint).stdin(Stdio::null()).status().unwrap();
        assert_eq!(case.code(), code, "{failpoint}");
    }
    assert_eq!(case.target("trades").snapshots().len(), 2);
    assert_eq!(case.pass_one()["rows_written"], 30);
    finish(&mut case.command(&["run"])).expect(0).says(&["nothing new"]);
}
