//! Windows of every kind of cursor, and sources that change while a pass reads them (protocol.md P1, P6, P7, P10).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::{Case, TRADES, only_table};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];

#[test]
fn p1_every_kind_of_cursor_moves_its_rows_once() {
    let kinds = [
        ("Date", 86_400),
        ("DateTime", 7_200),
        ("DateTime('America/New_York')", 7_200),
        ("DateTime64(0)", 7_200),
        ("DateTime64(1, 'Asia/Tokyo')", 7_200),
        ("DateTime64(3, 'America/New_York')", 7_200),
        ("DateTime64(6)", 7_200),
        ("Nullable(DateTime64(3))", 7_200),
        ("LowCardinality(DateTime)", 7_200),
    ];
    for (kind, step) in kinds {
        let case = Case::new("cursors");
        case.sql(&format!(
            "CREATE TABLE ticks (ts {kind}, n UInt32) ENGINE = MergeTree ORDER BY n SETTINGS allow_nullable_key = 1, allow_suspicious_low_cardinality_types = 1"
        ));
        case.config("[[table]]\nsource = 'ticks'\ntarget = 'cold.ticks'\ncursor = 'ts'\npartition_by = ['day(ts)']\n");
        case.init_tables();
        let plain = kind.replace("Nullable(", "").replace("LowCardinality(", "");
        let plain = if plain.len() < kind.len() { plain.strip_suffix(')').unwrap() } else { &plain };
        for start in [1_710_000_000_u64, 1_711_000_000] {
            // Three rows share each tick; the finest kind also has a microsecond.
            let at = format!("toDateTime64({start}, 6, 'UTC') + intDiv(number, 3) * {step} + toIntervalMicrosecond(1)");
            case.sql(&format!(
                "INSERT INTO ticks SELECT CAST(toTimeZone({at}, 'UTC'), '{}'), number FROM numbers(30)",
                plain.replace('\'', "\\'")
            ));
            let table = case.pass_one();
            assert_eq!(
                (&table["status"], &table["rows_written"]),
                (&json!("offloaded"), &json!(30)),
                "{kind}: {table:#}"
            );
            case.target("ticks").holds_for_all_readers("ticks");
            assert_eq!(case.pass_one()["status"], "nothing", "{kind}");
        }
    }
}

#[test]
fn p1_the_day_of_a_date_cursor_leaves_when_it_is_over() {
    let case = Case::new("today");
    case.sql("CREATE TABLE days (day Date, n UInt32) ENGINE = MergeTree ORDER BY n");
    case.config("[[table]]\nsource = 'days'\ntarget = 'cold.days'\ncursor = 'day'\n");
    case.init_tables();
    // Far enough from midnight on both sides, whenever the test runs.
    case.sql(
        "INSERT INTO days SELECT toDate(now('UTC'), 'UTC') - 2, 1 UNION ALL SELECT toDate(now('UTC'), 'UTC') + 1, 2",
    );
    assert_eq!(case.pass_one()["rows_written"], 1);
    case.target("days").holds(&["pyiceberg"], "days", "n = 1");
}

#[test]
fn p6_rows_of_a_new_day_that_come_while_a_pass_reads_are_not_lost() {
    changed_while_counted(
        "new_day",
        "INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2020-01-01 00:00:00', 'OLD'), ('2024-03-12 00:00:00', 'MID')",
    );
}

#[test]
fn p7_rows_that_come_into_a_counted_day_are_not_lost() {
    changed_while_counted(
        "same_day",
        "INSERT INTO trades (exchange_timestamp, symbol) SELECT '2024-03-11 00:00:00', 'SAME' FROM numbers(7)",
    );
}

#[test]
fn p7_rows_that_go_while_a_pass_reads_are_planned_for_again() {
    changed_while_counted(
        "deleted",
        "ALTER TABLE trades DELETE WHERE sequence_number % 2 = 0 SETTINGS mutations_sync = 2",
    );
}

#[test]
fn p8_rows_that_are_updated_while_a_pass_reads_arrive_once() {
    changed_while_counted(
        "updated",
        "ALTER TABLE trades UPDATE symbol = 'MOVED' WHERE sequence_number % 2 = 0 SETTINGS mutations_sync = 2",
    );
}

/// Each partition holds as many rows as before, and yet others: only the mutation itself tells.
#[test]
fn p8_rows_that_an_update_moves_between_two_selects_arrive_once() {
    let case = Case::new("swapped");
    case.bronze("trades");
    case.config(&TRADES.replace("day(exchange_timestamp)", "symbol"));
    case.init_tables();
    case.sql(
        "INSERT INTO trades (exchange_timestamp, sequence_number, symbol) \
         SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, number, ['A', 'B'][number % 2 + 1] FROM numbers(100)",
    );
    let pass = between_two_selects(
        &case,
        "ALTER TABLE trades UPDATE symbol = if(symbol = 'A', 'B', 'A') WHERE 1 SETTINGS mutations_sync = 2",
    );
    assert_eq!(pass["rows_written"], 100);
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").has_no_other_files();
}

/// What was counted before the first SELECT is what later passes compare with: a row that came behind its SELECT makes a difference.
#[test]
fn p7_rows_that_come_behind_the_select_of_their_day_arrive_with_the_next_pass() {
    let case = Case::new("behind");
    case.bronze("trades");
    case.config(&format!("{TRADES}late_lookback = '10days'\n"));
    case.init_tables();
    for day in ["2024-03-09", "2024-03-10", "2024-03-11"] {
        case.trades("trades", day, 200);
        if day == "2024-03-09" {
            case.pass();
        }
    }
    let pass = between_two_selects(
        &case,
        "INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 00:00:01', 'BEHIND')",
    );
    assert_eq!(pass["rows_written"], 400);
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["rows_late"]), (&json!(1), &json!(1)));
    case.target("trades").holds_for_all_readers("trades");
}

/// One pass, with a change of the source between its first two SELECTs.
fn between_two_selects(case: &Case, change: &str) -> Value {
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("file-sync={}@1", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    case.sql(change);
    gate.open();
    only_table(&pass.wait().expect(0).json())
}

/// Changes the source between the count and the first SELECT of a pass. What that pass leaves, the next one brings.
fn changed_while_counted(name: &str, change: &str) {
    let case = Case::with_trades(name);
    for start in ["2024-03-10 00:00:00", "2024-03-11 00:00:00", "2024-03-13 00:00:00"] {
        case.trades("trades", start, 200);
    }
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    case.sql(change);
    gate.open();
    let output = pass.wait().expect(0);
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").has_no_other_files();
    let table = only_table(&output.json());
    assert_eq!(table["rows_written"], case.target("trades").count(), "{table:#}");
    // What came behind the count makes a difference: the next pass looks, and has nothing to add (P23).
    assert_eq!(case.pass_one()["rows_written"], 0);
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn tables_may_be_created_by_several_at_once() {
    let case = Case::new("together");
    case.bronze("trades");
    case.config(TRADES);
    let calls: Vec<_> = (0..4).map(|_| case.spawn("offload.toml", "", &["--format", "json", "init-tables"])).collect();
    let statuses = calls.into_iter().map(|call| only_table(&call.wait().expect(0).json())["status"].clone());
    assert_eq!(statuses.filter(|status| status == "created").count(), 1);
    let files = support::files_below(&case.target("trades").folder());
    assert_eq!(files, [case.target("trades").metadata_file()], "metadata of a creation that lost");
    case.trades("trades", "2024-03-10", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn computed_columns_leave_where_they_are_stored() {
    let case = Case::new("computed");
    case.sql(
        "CREATE TABLE trades (ts DateTime64(3), n Int32, stored Int32 MATERIALIZED n + 1, given Int32 DEFAULT 7, \
         shown Int32 ALIAS n + 2) ENGINE = MergeTree ORDER BY ts",
    );
    case.sql("INSERT INTO trades (ts, n) VALUES ('2024-03-10 00:00:00', 1), ('2024-03-10 00:00:00', 2)");
    case.config("[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\n");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 2);
    case.sql("CREATE VIEW seen AS SELECT ts, n, stored, given FROM trades");
    case.target("trades").holds_for_all_readers("seen");
}
