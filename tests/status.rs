//! `status` and `history`: what they tell is what passes did, and what is wrong with a table makes the exit code 3.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::process::Command;

use rusqlite::Connection;
use serde_json::{Value, json};
use support::{Case, Disk, Output, TRADES, finish, only_table, table_of};

const RUN: [&str; 3] = ["--format", "json", "run"];
const STATUS: [&str; 3] = ["--format", "json", "status"];

/// The only table of `status`, which must end with this exit code.
fn status(case: &Case, exit: i32) -> Value {
    let document = case.run(&STATUS).expect(exit).json();
    assert_eq!(document["ok"], exit == 0, "{document:#}");
    only_table(&document)
}

/// The table must have one problem, which says this.
fn has_problem(table: &Value, said: &str) {
    let problems = table["problems"].as_array().unwrap();
    assert!(problems.len() == 1 && problems[0].as_str().unwrap().contains(said), "{said} in {table:#}");
}

fn history(case: &Case, arguments: &[&str]) -> Vec<Value> {
    let all = [&["--format", "json", "history"], arguments].concat();
    case.run(&all).expect(0).json()["passes"].as_array().unwrap().clone()
}

fn change_state(case: &Case, statement: &str) {
    let changed = Connection::open(case.path("state.db")).unwrap().execute(statement, []).unwrap();
    assert_eq!(changed, 1, "{statement}");
}

fn warnings(output: &Output) -> usize {
    output.stderr.lines().filter(|line| line.contains(" WARN ")).count()
}

#[test]
fn a_table_that_is_well_shows_what_its_passes_did() {
    let case = Case::with_trades("well");
    has_problem(&status(&case, 3), "no pass that is remembered");
    case.run(&["status"]).expect(3).says(&["LOOK: 0 of 1 tables", "cold.trades", "never"]);
    case.trades("trades", "2024-03-10", 300);
    let first = only_table(&case.pass());
    case.run(&["audit", "--checksum"]).expect(0);
    case.trades("trades", "2024-03-11", 200);
    let second = only_table(&case.pass());
    case.pass();
    let table = status(&case, 0);
    for field in ["watermark", "target_rows"] {
        assert_eq!(table[field], second[field], "{field} in {table:#}");
    }
    assert_eq!(
        (&table["passes_24h"], &table["rows_24h"], &table["success_rate_24h"]),
        (&json!(3), &json!(500), &json!(1.0))
    );
    assert_eq!((&table["files"], &table["small_files"], &table["audit_mismatches"]), (&json!(2), &json!(2), &json!(0)));
    assert!(table["lag_seconds"].as_i64().unwrap() < 60 && table["last_success_at"].is_string(), "{table:#}");
    let recent: Vec<&Value> = table["recent"].as_array().unwrap().iter().map(|pass| &pass["rows"]).collect();
    assert_eq!(recent, [&json!(300), &json!(200), &json!(0)]);
    assert_eq!(table["recent"][0]["duration_ms"], first["duration_ms"]);
    let text = case.run(&["status"]).expect(0).says(&["ok: 1 of 1 tables", "LAG", "100%", "2 (2)", "█▅▁", "AUDIT"]);
    assert!(!text.stdout.contains('!'), "{}", text.all());
}

#[test]
fn a_table_that_lags_fails_or_differs_is_not_well() {
    let case = Case::with_trades("unwell");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    status(&case, 0);
    change_state(&case, "UPDATE target_state SET caught_up_ms = caught_up_ms - 3600000");
    has_problem(&status(&case, 3), "lag 1h");
    case.run(&["status", "--max-lag", "2h"]).expect(0);
    case.pass();

    case.target("trades").ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-10T00:00:01+00:00'"}));
    case.run(&["audit"]).expect(3);
    has_problem(&status(&case, 3), "the last audit found 1 hour(s)");
    case.run(&["audit", "--repair"]).expect(0);
    status(&case, 0);

    for failures in 1..=4 {
        case.run_failing("target=error", &RUN).expect(1);
        let table = status(&case, if failures > 3 { 3 } else { 0 });
        assert_eq!((&table["failure_count"], &table["status"]), (&json!(failures), &json!("failed")));
    }
    has_problem(&status(&case, 3), "failed 4 time(s) in a row: ");
    fs::remove_file(case.path("catalog.db")).unwrap();
    let problems = status(&case, 3)["problems"].as_array().unwrap().len();
    assert_eq!(problems, 2, "a table that cannot be looked at, too");
}

#[test]
fn an_error_that_needs_a_person_is_a_problem_at_once() {
    let case = Case::with_trades("person");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    case.config(&TRADES.replace("cursor = 'exchange_timestamp'", "cursor = 'symbol'"));
    case.run(&RUN).expect(2);
    has_problem(&status(&case, 3), "`symbol`");
    case.run(&["status"]).expect(3).says(&["! failed 1 time(s) in a row", "(hint: "]);
}

#[test]
fn rows_that_expire_soon_are_a_problem_until_they_have_left() {
    let case = Case::with_trades("ttl_status");
    case.sql("ALTER TABLE trades MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL 7 DAY");
    let bronze = "exchange_timestamp, sequence_number, symbol, price, quantity, quote_volume, event_time, kafka_offset, kafka_partition, \
                  ingestion_timestamp";
    let row = "now64(3) - INTERVAL 160 HOUR, 1, 'A', 1, 1, 1, now64(3), 1, 1, now()";
    case.sql(&format!("INSERT INTO trades ({bronze}) SELECT {row}"));
    let failed = case.run_failing("counted=error", &RUN).expect(1);
    assert!(only_table(&failed.json())["ttl_seconds_left"].as_i64().unwrap() < 8 * 3600 + 60);
    let table = only_table(&case.run(&STATUS).expect(3).json());
    assert!(
        table["problems"].as_array().unwrap().iter().any(|problem| problem.as_str().unwrap().contains("TTL")),
        "{table:#}"
    );
    case.run(&RUN).expect_warning("soon expire");
    let left = status(&case, 0)["ttl_seconds_left"].as_i64().unwrap();
    assert!(left > 6 * 86_400, "the next row has its whole life before it: {left}");
    case.sql("ALTER TABLE trades REMOVE TTL");
    case.pass();
    assert_eq!(status(&case, 0)["ttl_seconds_left"], Value::Null);
}

#[test]
fn a_pass_that_was_killed_is_a_failure_that_the_next_one_finds() {
    let case = Case::with_trades("killed");
    case.trades("trades", "2024-03-10", 100);
    for _ in 0..2 {
        assert_eq!(case.run_failing("written=kill", &RUN).code, None);
    }
    assert_eq!(only_table(&case.run(&STATUS).expect(3).json())["failure_count"], 1, "the second may be under way");
    case.pass();
    let passes = history(&case, &[]);
    let kinds: Vec<&Value> = passes.iter().map(|pass| &pass["error_kind"]).collect();
    assert_eq!(kinds, [&Value::Null, &json!("died"), &json!("died")]);
    assert!(passes[1]["error"].as_str().unwrap().contains(passes[1]["started_at"].as_str().unwrap()), "{passes:#?}");
    let table = status(&case, 0);
    assert_eq!((&table["failure_count"], &table["passes_24h"]), (&json!(0), &json!(3)));
    case.run(&["history", "--failed"]).expect(0).says(&["died: ", "hint: it was killed"]);
}

#[test]
fn a_pass_holds_its_lock_until_its_end_is_remembered() {
    let case = Case::with_trades("remembered");
    case.trades("trades", "2024-03-10", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("remember={}", gate.pause()), &RUN);
    gate.wait_for(&mut pass);
    case.run(&RUN).expect(4);
    gate.open();
    pass.wait().expect(0);
    case.pass();
    assert_eq!(history(&case, &["--failed"]), [] as [Value; 0]);
}

#[test]
fn an_audit_of_a_quiet_table_is_an_audit() {
    let case = Case::with_trades("quiet_audit");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    case.run(&["audit", "--last", "48h", "--checksum"]).expect(0);
    let table = status(&case, 0);
    assert_eq!((table["last_audit_at"].is_string(), &table["audit_mismatches"]), (true, &json!(0)), "{table:#}");
}

#[test]
fn a_pass_that_was_stopped_is_no_failure() {
    let case = Case::with_trades("stopped_history");
    case.trades("trades", "2024-03-10", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &RUN);
    gate.wait_for(&mut pass);
    let running = only_table(&case.run(&STATUS).expect(3).json());
    assert_eq!(running["status"], "running");
    pass.signal("TERM");
    gate.open();
    pass.wait().expect(143);
    case.pass();
    let table = status(&case, 0);
    assert_eq!((&table["failure_count"], &table["passes_24h"]), (&json!(0), &json!(1)), "{table:#}");
}

#[test]
fn history_tells_what_was_asked_for() {
    let case = Case::new("told_history");
    case.bronze("trades");
    let other = TRADES.replace("cold.trades", "cold.other");
    case.config(&format!("{TRADES}chunk_rows = 60\n{other}"));
    case.init_tables();
    case.trades("trades", "2024-03-10", 150);
    let first = case.run(&RUN).expect(0).json();
    case.trades("trades", "2024-03-11", 50);
    case.run_failing("counted=error", &["run", "--table", "cold.other"]).expect(1);
    let third = case.run(&RUN).expect(0).json();

    assert_eq!(history(&case, &[]).len(), 5);
    assert_eq!(history(&case, &["--limit", "2"]), history(&case, &[])[..2]);
    let failed = history(&case, &["--failed"]);
    assert_eq!(failed.len(), 1);
    assert_eq!((&failed[0]["target"], &failed[0]["error_kind"]), (&json!("cold.other"), &json!("unavailable")));
    assert!(failed[0]["error"].is_string() && failed[0]["hint"].is_string());
    assert_eq!(history(&case, &["--table", "cold.trades"]).len(), 2);
    assert_eq!(history(&case, &["--last", "1h"]).len(), 5);
    assert_eq!(history(&case, &["--last", "500000years"]).len(), 5);
    assert_eq!(history(&case, &["--since", third["started_at"].as_str().unwrap()]).len(), 2);
    assert_eq!(history(&case, &["--since", "2100-01-01"]), [] as [Value; 0]);

    let run = first["run_id"].as_str().unwrap();
    let passes = history(&case, &["--run", run, "--table", "cold.trades", "--chunks"]);
    let reported = table_of(&first, "cold.trades");
    assert!(reported["commits"].as_array().unwrap().len() > 1, "{reported:#}");
    assert_eq!((passes.len(), &passes[0]["commits"]), (1, &reported["commits"]));
    case.run(&["history", "--chunks"]).expect(0).says(&["append [beginning, ", "snapshot ", "unavailable: ", run]);
    case.run(&["history", "--run", "none"]).expect(0).says(&["no such pass is remembered"]);
    case.run(&["history", "--table", "nowhere"]).expect(2).says(&["nowhere", "hint: "]);
}

#[test]
fn what_is_older_than_history_keep_is_forgotten() {
    let case = Case::with_trades("forgotten");
    case.config_file("offload.toml", "", "[state]\nhistory_keep = '2d'", TRADES);
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    let old = "strftime('%Y-%m-%dT%H:00:00.000Z', 'now', '-49 hours')";
    for table in ["passes", "chunks"] {
        change_state(&case, &format!("UPDATE {table} SET started_at = {old}"));
    }
    case.pass();
    assert_eq!(history(&case, &[]).len(), 1);
    let chunks: i64 = Connection::open(case.path("state.db"))
        .unwrap()
        .query_row("SELECT count(*) FROM chunks", [], |row| row.get(0))
        .unwrap();
    assert_eq!(chunks, 0);
}

/// P20: the state cache never blocks a pass.
#[test]
fn a_state_cache_that_somebody_holds_is_one_warning_and_the_screens_say_so() {
    let case = Case::with_trades("held");
    let second = TRADES.replace("cold.trades", "cold.second");
    case.config(&format!("{TRADES}{second}"));
    case.init_tables();
    case.trades("trades", "2024-03-10", 100);
    case.run(&RUN).expect(0);
    let holder = Connection::open(case.path("state.db")).unwrap();
    holder.execute_batch("PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE").unwrap();
    case.trades("trades", "2024-03-11", 100);
    let output = case.run(&RUN).expect_warning("the state cache cannot be");
    assert_eq!(warnings(&output), 1, "{}", output.all());
    assert_eq!(table_of(&output.json(), "cold.second")["rows_written"], 100);
    drop(holder);
    let shown = case.run(&["--format", "json", "status"]).expect(0).json();
    let notes = table_of(&shown, "cold.second")["notes"].to_string();
    assert!(notes.contains("newer commit than the last pass"), "{shown:#}");
}

#[test]
fn a_pass_without_an_end_is_noted() {
    let case = Case::with_trades("unended");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    let long_ago = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-29 minutes')";
    change_state(&case, &format!("UPDATE target_state SET status = 'running', started_at = {long_ago}"));
    assert!(status(&case, 0)["notes"].to_string().contains("left no record of its end"));
}

#[test]
fn a_ttl_that_is_shorter_than_the_margin_is_no_problem_where_nothing_waits() {
    let case = Case::with_trades("short_ttl");
    case.sql("ALTER TABLE trades MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL 12 HOUR");
    case.trades("trades", &case.sql("SELECT toString(now() - INTERVAL 1 HOUR)"), 100);
    case.run(&RUN).expect_warning("soon expire");
    case.pass();
    assert!(status(&case, 0)["ttl_seconds_left"].as_i64().unwrap() < 86_400);
}

#[test]
fn who_may_only_read_the_cache_sees_the_same() {
    let case = Case::with_trades("reader");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    let seen = status(&case, 0);
    let disk = Disk::mount(case.path("read_only"));
    fs::copy(case.path("state.db"), disk.path().join("state.db")).unwrap();
    disk.make_read_only();
    case.config_file("offload.toml", "", "[state]\npath = 'read_only/state.db'", TRADES);
    let shown = status(&case, 0);
    assert_eq!((&shown["watermark"], &shown["recent"]), (&seen["watermark"], &seen["recent"]));
    assert_eq!(history(&case, &[]).len(), 1);
    drop(disk);
}

#[test]
fn screens_fit_forty_columns() {
    let case = Case::with_trades("forty");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    for (command, kept) in [("status", "cold.trades  ok"), ("history", "cold.trades")] {
        let on_terminal = |columns: u32| {
            let run = format!(
                "stty rows 24 cols {columns}; '{}' -c '{}' {command}",
                env!("CARGO_BIN_EXE_k2-offload"),
                case.path("offload.toml").display()
            );
            let shown = finish(Command::new("script").args(["-qefc", &run, "/dev/null"])).expect(0).stdout;
            shown.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
        };
        let (narrow, wide) = (on_terminal(40), on_terminal(200));
        assert!(narrow.iter().any(|line| line.contains(kept)), "{narrow:#?}");
        // The first line of `status` is a sentence.
        assert!(narrow.iter().skip(1).all(|line| line.chars().count() <= 40), "{narrow:#?}");
        assert!(wide.iter().any(|line| line.contains("WATERMARK")), "{wide:#?}");
    }
}

#[test]
fn screens_make_no_state_cache() {
    let case = Case::with_trades("no_cache");
    case.run(&["status"]).expect(3).says(&["never"]);
    case.run(&["history"]).expect(0).says(&["no such pass is remembered"]);
    case.run(&["watermark", "show"]).expect(0);
    assert!(!case.path("state.db").exists(), "it would be the file of whoever looks");
}

#[test]
fn a_state_cache_that_cannot_be_read_is_told_by_the_screens() {
    let case = Case::with_trades("unreadable");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(case.path(&format!("state.db{suffix}")));
    }
    fs::remove_file(case.path("state.db")).unwrap();
    Connection::open(case.path("state.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let document = case.run(&STATUS).expect(3).json();
    let problem = document["state"]["problem"].as_str().unwrap();
    assert!(problem.contains("version is 99") && document["tables"][0]["watermark"].is_string(), "{document:#}");
    case.run(&["history"]).expect(1).says(&["version is 99", "hint: "]);
    let output = case.run(&RUN).expect_warning("version is 99");
    assert_eq!(warnings(&output), 1, "{}", output.all());
}
