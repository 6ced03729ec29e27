//! `audit --repair` adds what is missing, once and nothing else, and `pending` tells what passes will bring by themselves (protocol.md "Audit").
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::data::hours_ago;
use support::{Case, Place, failpoints_at, in_parallel, only_table};

/// Two days of trades have left, and a part of the first was deleted from the target: so many rows of 400.
fn damaged(name: &str) -> (Case, u64) {
    damaged_at(Place::Local, name)
}

/// The same with the target there.
fn damaged_at(place: Place, name: &str) -> (Case, u64) {
    let case = Case::with_trades_at(place, name);
    for day in ["2024-03-09", "2024-03-10"] {
        case.trades("trades", &format!("{day} 10:00:00"), 200);
        case.pass();
    }
    let filter =
        "exchange_timestamp >= '2024-03-09T10:00:05+00:00' and exchange_timestamp < '2024-03-09T10:00:20+00:00'";
    case.target("trades").ask("delete", json!({"filter": filter}));
    let deleted = 400 - case.target("trades").count();
    assert!(deleted > 20);
    (case, deleted)
}

fn audit(case: &Case, arguments: &[&str], code: i32) -> Value {
    only_table(&case.run(&[&["--format", "json", "audit"], arguments].concat()).expect(code).json())
}

#[test]
fn what_is_missing_is_added_and_nothing_else() {
    for arguments in [&["--repair"][..], &["--repair", "--checksum"]] {
        let (case, deleted) = damaged("repair");
        case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:00:00.001', 'LATE')");
        let table = audit(&case, arguments, 0);
        assert_eq!(table["rows_repaired"], json!(deleted + 1));
        assert!(table["buckets"].as_array().unwrap().iter().all(|bucket| bucket["verdict"] == "equal"), "{table:#}");
        case.target("trades").holds_for_all_readers("trades");
        assert_eq!(audit(&case, arguments, 0)["rows_repaired"], Value::Null, "nothing is left to do");
        // All is there again; that others deleted rows stays told until it is acknowledged.
        case.alarmed_pass_one("were deleted from the target");
        let to = case.run(&["--format", "json", "watermark", "show"]).expect(0).json();
        let to = only_table(&to)["watermark"].as_str().unwrap().to_owned();
        case.run(&["watermark", "reset", "--table", "trades", "--to", &to, "--yes"]).expect(0);
        assert_eq!(case.pass_one()["status"], "nothing");
    }
}

#[test]
fn rows_of_others_are_never_touched() {
    let (case, deleted) = damaged("extra");
    case.target("trades").ask("append", json!({"rows": 3, "micros": 1_709_978_410_000_000_u64}));
    let table = audit(&case, &["--repair", "--checksum"], 3);
    assert_eq!(table["rows_repaired"], json!(deleted));
    let extra: u64 = table["buckets"].as_array().unwrap().iter().map(|bucket| bucket["extra"].as_u64().unwrap()).sum();
    assert_eq!((extra, case.target("trades").count()), (3, 403));
}

#[test]
fn p25_what_was_skipped_is_not_repaired() {
    let case = Case::with_trades("skipped");
    case.trades("trades", "2024-03-09 10:00:00", 100);
    case.pass();
    case.trades("trades", "2024-03-10 10:00:00", 100);
    case.run(&["watermark", "reset", "--table", "trades", "--to", "2024-03-11", "--yes"]).expect(0);
    assert_eq!(audit(&case, &["--repair"], 0)["rows_repaired"], Value::Null);
    assert_eq!(case.target("trades").count(), 100);
}

#[test]
fn p17_rows_of_a_predecessor_are_not_repaired_without_a_key() {
    let case = Case::with_trades("adopted");
    case.target("trades").ask("append", json!({"rows": 5, "micros": 1_710_072_000_000_000_u64}));
    case.trades("trades", "2024-03-10 08:00:00", 100);
    case.run(&["watermark", "reset", "--table", "trades", "--to", "2024-03-10T12:00:01Z", "--yes"]).expect(0);
    case.run(&["audit", "--repair"]).expect(3).says(&["predecessor", "a `key`"]);
    assert_eq!(case.target("trades").count(), 5);
}

#[test]
fn candles_are_repaired_by_their_key() {
    let case = Case::new("candles");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 10:00:00", 2000);
    let query = "SELECT symbol, toStartOfFiveMinutes(exchange_timestamp) AS opened, count() AS trades FROM trades \
                 WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high} GROUP BY symbol, opened";
    case.config(&format!("[[table]]\nname = 'candles'\nquery = \"{query}\"\ntarget = 'cold.candles'\ncursor = 'opened'\nkey = ['symbol', 'opened']\nwindow = '5m'\n"));
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 12);
    case.target("candles").ask("delete", json!({"filter": "opened >= '2024-03-10T10:05:00+00:00'"}));
    let table = audit(&case, &["--repair", "--checksum"], 0);
    assert_eq!(table["rows_repaired"], json!(9), "{table:#}");
    assert_eq!(case.target("candles").count(), 12);
}

#[test]
fn a_repair_waits_for_no_pass() {
    let (case, _) = damaged("locked");
    case.trades("trades", "2024-03-11 10:00:00", 10);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    case.run(&["audit", "--repair"]).expect(4).says(&["is locked by pid"]);
    gate.open();
    pass.wait();
}

/// Rows that came within the lookback are no mismatch; those that somebody deleted are.
#[test]
fn what_the_next_pass_brings_is_pending() {
    let case = Case::new("pending");
    case.bronze("trades");
    case.config(support::TRADES);
    case.init_tables();
    let insert = |hours: u32, rows: u32| {
        case.sql(&format!(
            "INSERT INTO trades (exchange_timestamp, sequence_number) \
             SELECT {} + number, number FROM numbers({rows})",
            hours_ago(hours)
        ));
    };
    for hours in [30, 5, 3] {
        insert(hours, 100);
        case.pass();
    }
    insert(5, 7);
    let verdicts = |table: &Value| -> Vec<String> {
        table["buckets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|bucket| bucket["verdict"].as_str().unwrap().to_owned())
            .collect()
    };
    for arguments in [&[][..], &["--checksum"]] {
        let found = verdicts(&audit(&case, arguments, 0));
        assert!(found.contains(&"pending".to_owned()) && !found.contains(&"missing".to_owned()), "{found:?}");
    }
    insert(30, 1);
    let found = verdicts(&audit(&case, &[], 3));
    assert!(found.contains(&"pending".to_owned()) && found.contains(&"missing".to_owned()), "{found:?}");
    assert_eq!(case.pass_one()["rows_late"], 7);
    assert!(!verdicts(&audit(&case, &[], 3)).contains(&"pending".to_owned()));
    assert_eq!(audit(&case, &["--repair"], 0)["rows_repaired"], 1);
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").ask("delete", json!({"filter": "sequence_number < 10"}));
    let found = verdicts(&audit(&case, &[], 3));
    assert!(!found.contains(&"pending".to_owned()), "{found:?}");
}

#[test]
fn a_repair_that_dies_anywhere_is_made_good_by_the_next() {
    let all =
        [Place::Local, Place::Rest].into_iter().flat_map(|place| failpoints_at(place).map(move |point| (place, point)));
    let all = all.flat_map(|(place, point)| ["error", "kill"].map(|action| (place, point, action)));
    in_parallel(4, all.collect(), |(place, point, action)| {
        let (case, _) = damaged_at(place, "dies");
        case.run_failing(&format!("{point}={action}"), &["audit", "--repair"]);
        audit(&case, &["--repair", "--checksum"], 0);
        assert_eq!(case.target("trades").count(), 400, "{place:?}, {point}={action}");
        case.target("trades").holds_all("trades");
    });
}
