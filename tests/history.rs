//! The history of passes in the state cache: all that a pass reported, for people; nothing that a pass depends on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use rusqlite::Connection;
use serde_json::{Value, json};
use support::{Case, TRADES, only_table};

/// The remembered passes, oldest first, as the fields of the JSON of `run` that they share.
fn history(case: &Case) -> Vec<Value> {
    let state = Connection::open(case.path("state.db")).unwrap();
    let fields = "'run_id', run_id, 'started_at', started_at, 'target', target, 'status', status, 'low', low, 'high', high, \
                  'watermark', watermark, 'rows_read', rows_read, 'rows_written', rows_written, 'bytes_written', bytes_written, \
                  'files', files, 'chunks', chunks, 'duration_ms', duration_ms, 'error_kind', error_kind, 'error', error";
    let mut rows = state.prepare(&format!("SELECT json_object({fields}) FROM passes ORDER BY run_id")).unwrap();
    let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|row| serde_json::from_str(&row.unwrap()).unwrap()).collect()
}

/// What the history must hold of the only table of a document.
fn entry(document: &Value) -> Value {
    let table = only_table(document);
    let mut entry = json!({"run_id": document["run_id"], "started_at": document["started_at"]});
    for field in [
        "target",
        "status",
        "low",
        "high",
        "watermark",
        "rows_read",
        "rows_written",
        "bytes_written",
        "files",
        "chunks",
        "duration_ms",
    ] {
        entry[field] = table[field].clone();
    }
    entry["error_kind"] = table["error"]["kind"].clone();
    entry["error"] = table["error"]["message"].clone();
    entry
}

fn shown(case: &Case) -> Value {
    only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json())
}

#[test]
fn the_history_holds_what_each_pass_reported() {
    let case = Case::with_trades("history");
    let mut expected = Vec::new();
    case.trades("trades", "2024-03-10", 100);
    expected.push(entry(&case.pass()));
    expected.push(entry(&case.pass()));
    case.trades("trades", "2024-03-11", 50);
    case.run(&["run", "--dry-run"]).expect(0);
    let failed = case.run_failing("counted=error", &["--format", "json", "run"]).expect(1);
    expected.push(entry(&failed.json()));

    let gate = case.gate("gate");
    let mut holder = case.spawn("offload.toml", &format!("target={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut holder);
    let skipped = case.run(&["--format", "json", "run"]).expect(4).json();
    gate.open();
    expected.push(entry(&holder.wait().expect(0).json()));
    expected.push(entry(&skipped));

    let statuses: Vec<&Value> = expected.iter().map(|entry| &entry["status"]).collect();
    assert_eq!(statuses, ["offloaded", "nothing", "failed", "offloaded", "skipped"]);
    assert_eq!(history(&case), expected);
    let shown = shown(&case);
    assert_eq!((&shown["last_offload_rows"], &shown["last_offload_at"]), (&json!(50), &expected[3]["started_at"]));
    case.run(&["watermark", "show"]).expect(0).says(&["last rows: 50 at", "failures 0"]);
}

#[test]
fn a_pass_that_reaches_no_server_is_remembered_for_each_table() {
    let case = Case::new("unreached");
    case.bronze("trades");
    let second = TRADES.replace("cold.trades", "cold.again");
    case.config(&format!("{TRADES}{second}"));
    case.init_tables();
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), config.replace(&case.url, "http://127.0.0.1:1")).unwrap();
    case.run(&["run"]).expect(1);
    let passes = history(&case);
    let targets: Vec<&Value> = passes.iter().map(|pass| &pass["target"]).collect();
    assert_eq!(targets, ["cold.again", "cold.trades"]);
    assert!(
        passes.iter().all(|pass| pass["error_kind"] == "unavailable" && pass["watermark"].is_null()),
        "{passes:#?}"
    );
}

/// P20
#[test]
fn a_cache_that_cannot_be_used_is_a_warning_and_stops_no_pass() {
    let case = Case::with_trades("unusable");
    Connection::open(case.path("newer.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    for (day, path) in ["newer.db", "offload.toml/state.db", "warehouse"].into_iter().enumerate() {
        case.config_file("offload.toml", "", &format!("[state]\npath = '{path}'"), TRADES);
        case.trades("trades", &format!("2024-03-{}", 10 + day), 10);
        let output = case.run(&["--format", "json", "run"]).expect_warning("state cache");
        assert_eq!(only_table(&output.json())["rows_written"], 10, "{path}");
        case.run(&["watermark", "show"]).expect_warning("state cache");
    }
    case.target("trades").holds_all("trades");
}

#[test]
fn a_cache_of_the_first_version_goes_on() {
    let case = Case::with_trades("first_version");
    Connection::open(case.path("state.db"))
        .unwrap()
        .execute_batch(
            "CREATE TABLE target_state (target TEXT PRIMARY KEY, status TEXT NOT NULL, checked_to INTEGER, last_success_at TEXT, \
             last_duration_ms INTEGER, failure_count INTEGER NOT NULL DEFAULT 0, last_error TEXT) WITHOUT ROWID; \
             INSERT INTO target_state VALUES ('cold.trades', 'failed', NULL, '2024-03-10T00:00:00.000Z', 5, 3, 'no server'); \
             PRAGMA user_version = 1",
        )
        .unwrap();
    let before = shown(&case);
    assert_eq!((&before["failure_count"], &before["last_error"]), (&json!(3), &json!("no server")), "{before:#}");
    case.trades("trades", "2024-03-10", 10);
    let passed = case.pass();
    assert_eq!(history(&case), [entry(&passed)]);
    assert_eq!(shown(&case)["failure_count"], 0);
}
