//! What `audit` says of source and target (protocol.md "Audit"): each number is compared with those of PyIceberg and ClickHouse.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use support::{Case, Output, TRADES, only_table, table_of};

/// 11 hours, 40 minutes after midnight: where rows are late in these tests.
const LATE: &str = "2024-03-10 11:40:00";
const LATE_HOUR: [&str; 2] = ["2024-03-10T11:00:00.000Z", "2024-03-10T12:00:00.000Z"];

/// No pass looks for late rows, so that they are missing (tests/repair.rs has what is pending).
/// A case whose target holds 300 rows of three days in several chunks and partitions.
fn offloaded(name: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.config(
        &format!("chunk_rows = 100\n{TRADES}")
            .replace("chunk_rows", "[defaults]\nsettle_delay = '0s'\nlate_lookback = '0s'\nchunk_rows"),
    );
    case.init_tables();
    case.trades_over_days("trades", "2024-03-09", 300, 3);
    assert!(case.pass_one()["chunks"].as_u64().unwrap() > 2);
    case
}

/// A case like that of other tests, in which no pass looks for late rows.
fn with_trades(name: &str) -> Case {
    let case = Case::with_trades(name);
    case.config(&format!("{TRADES}late_lookback = '0s'\n"));
    case
}

fn late_rows(case: &Case, rows: u64) {
    case.trades("trades", LATE, rows);
}

fn audit(case: &Case, options: &[&str]) -> Output {
    case.run(&[&["--format", "json", "audit"], options].concat())
}

/// Audits the only table; every bucket must hold as many rows as PyIceberg and ClickHouse find there, and the buckets together all rows of the range.
fn compared(case: &Case, code: i32, options: &[&str]) -> Value {
    let document = audit(case, options).expect(code).json();
    assert_eq!(document["ok"], json!(code == 0), "{document:#}");
    let table = only_table(&document);
    check_counts(case, &table, "exchange_timestamp");
    table
}

fn check_counts(case: &Case, table: &Value, cursor: &str) {
    let source = table["source"].as_str().unwrap();
    let buckets = table["buckets"].as_array().unwrap();
    let mut ranges: Vec<&Value> = buckets.iter().collect();
    ranges.push(table);
    let filters: Vec<String> = ranges.iter().map(|range| filter(range, cursor)).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let target = case.target(source).count_where(&filters);
    let counts: Vec<String> = ranges.iter().map(|range| format!("countIf({})", source_filter(range, cursor))).collect();
    let counts = case.sql(&format!("SELECT [{}] FROM `{source}`", counts.join(", ")));
    let source: Vec<u64> = serde_json::from_str(&counts).unwrap();
    let rows = |side: &str| -> Vec<u64> {
        let each: Vec<u64> = buckets.iter().map(|bucket| bucket[side].as_u64().unwrap()).collect();
        let all = each.iter().sum();
        [each, vec![all]].concat()
    };
    assert_eq!((rows("source_rows"), rows("target_rows")), (source, target), "{table:#}");
}

fn filter(range: &Value, cursor: &str) -> String {
    let literal = |bound: &Value| bound.as_str().unwrap().replace('Z', "+00:00");
    format!("{cursor} >= '{}' and {cursor} < '{}'", literal(&range["from"]), literal(&range["to"]))
}

fn source_filter(range: &Value, cursor: &str) -> String {
    let literal = |bound: &Value| {
        let micros = DateTime::parse_from_rfc3339(bound.as_str().unwrap()).unwrap().timestamp_micros();
        format!("fromUnixTimestamp64Micro(toInt64({micros}), 'UTC')")
    };
    format!("`{cursor}` >= {} AND `{cursor}` < {}", literal(&range["from"]), literal(&range["to"]))
}

/// The buckets of a verdict, as `[from, to]`.
fn of_verdict<'a>(table: &'a Value, verdict: &str) -> Vec<[&'a str; 2]> {
    let buckets = table["buckets"].as_array().unwrap().iter().filter(|bucket| bucket["verdict"] == verdict);
    buckets.map(|bucket| [bucket["from"].as_str().unwrap(), bucket["to"].as_str().unwrap()]).collect()
}

fn all_are(table: &Value, verdict: &str) -> bool {
    of_verdict(table, verdict).len() == table["buckets"].as_array().unwrap().len()
}

fn hours_ago(hours: i64) -> DateTime<Utc> {
    Utc::now() - TimeDelta::hours(hours)
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn insert_at(case: &Case, time: DateTime<Utc>, rows: u64) {
    case.sql(&format!(
        "INSERT INTO trades (exchange_timestamp) SELECT fromUnixTimestamp64Milli(toInt64({})) FROM numbers({rows})",
        time.timestamp_millis()
    ));
}

#[test]
fn what_a_pass_moved_is_equal_hour_by_hour() {
    let case = offloaded("equal");
    let table = compared(&case, 0, &[]);
    assert!(all_are(&table, "equal"), "{table:#}");
    assert_eq!(table["buckets"].as_array().unwrap().len(), 72, "an hour each, cut at the watermark");
    assert_eq!(table["from"], "2024-03-09T00:00:00.000Z");
    assert_eq!((&table["to"], &table["watermark"]), (&table["buckets"][71]["to"], &table["buckets"][71]["to"]));
    let text = case.run(&["audit"]).expect(0).stdout;
    assert_eq!(text.lines().count(), 1, "equal hours are not listed\n{text}");
    assert!(
        text.contains("cold.trades") && text.contains("source 300 rows, target 300") && text.contains("72 equal"),
        "{text}"
    );
}

#[test]
fn late_rows_are_missing_in_their_hour() {
    let case = offloaded("late");
    late_rows(&case, 7);
    let table = compared(&case, 3, &[]);
    assert_eq!(of_verdict(&table, "missing"), [LATE_HOUR]);
    assert_eq!(of_verdict(&table, "equal").len(), 71);
    let hour = &table["buckets"].as_array().unwrap().iter().find(|bucket| bucket["verdict"] == "missing").unwrap();
    assert_eq!((&hour["missing"], &hour["extra"]), (&json!(7), &json!(0)));
    let output = case.run(&["audit"]).expect(3);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", output.all());
    assert!(lines[0].contains("71 equal, 1 missing"), "{}", output.all());
    assert!(lines[1].contains(LATE_HOUR[0]) && lines[1].contains("missing, source"), "{}", output.all());
}

#[test]
fn rows_that_others_delete_or_add_in_the_target_are_missing_or_extra() {
    let case = offloaded("others");
    let target = case.target("trades");
    target.ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-09T03:00:00+00:00' and exchange_timestamp < '2024-03-09T05:00:00+00:00'"}));
    // Finer than the source's milliseconds, and the last of the hour.
    target.ask("append", json!({"rows": 5, "micros": 1_710_071_999_999_999_i64}));
    let table = compared(&case, 3, &[]);
    let missing = [
        ["2024-03-09T03:00:00.000Z", "2024-03-09T04:00:00.000Z"],
        ["2024-03-09T04:00:00.000Z", "2024-03-09T05:00:00.000Z"],
    ];
    assert_eq!(of_verdict(&table, "missing"), missing);
    assert_eq!(of_verdict(&table, "extra"), [LATE_HOUR]);
    let output = case.run(&["audit"]).expect(3);
    assert_eq!(output.stdout.lines().count(), 3, "neighbours share a line\n{}", output.all());
    output.says(&["[2024-03-09T03:00:00.000Z, 2024-03-09T05:00:00.000Z): missing, source 8 rows, target 0"]);
}

#[test]
fn rows_that_leave_a_source_without_ttl_are_extra() {
    let case = offloaded("deleted");
    case.sql("ALTER TABLE trades DELETE WHERE exchange_timestamp >= '2024-03-10 11:00:00' AND exchange_timestamp < '2024-03-10 12:00:00' SETTINGS mutations_sync = 2");
    assert_eq!(of_verdict(&compared(&case, 3, &[]), "extra"), [LATE_HOUR]);
}

#[test]
fn position_deletes_of_other_engines_are_applied() {
    let case = offloaded("positions");
    let target = case.target("trades");
    target.ask("delete_positions", json!({"every": 7}));
    let left = target.count();
    assert!(left < 300, "{left}");
    let table = compared(&case, 3, &[]);
    let rows: u64 = table["buckets"].as_array().unwrap().iter().map(|b| b["target_rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, left);
    compared(&case, 3, &["--since", "2024-03-10T01:30:00Z"]);
}

#[test]
fn what_would_be_counted_wrong_is_refused() {
    let case = offloaded("equality");
    case.target("trades").ask("delete_equal", json!({"column": "symbol", "value": "BTC-USD"}));
    audit(&case, &[]).expect(3).says(&["equality deletes", "\"refused\"", "hint"]);

    let case = offloaded("formats");
    case.target("trades")
        .ask("append_without", json!({"column": "symbol", "partition": [19_792], "name": "other.orc"}));
    audit(&case, &[]).expect(3).says(&["orc", "\"refused\""]);

    let case = Case::new("imported");
    case.sql("CREATE TABLE days (day Date, n UInt32) ENGINE = MergeTree ORDER BY n");
    case.config("[[table]]\nsource = 'days'\ntarget = 'cold.days'\ncursor = 'day'\npartition_by = ['day']\nlate_lookback = '0s'\n");
    case.init_tables();
    case.sql("INSERT INTO days SELECT toDate('2024-03-09') + number % 3, number FROM numbers(30)");
    case.pass();
    audit(&case, &[]).expect(0);
    case.target("days").ask("append_without", json!({"column": "day", "partition": [19_792]}));
    audit(&case, &[]).expect(3).says(&["`day`", "partition", "\"refused\""]);
}

#[test]
fn rows_at_and_above_the_watermark_do_not_count() {
    let case = with_trades("above");
    case.trades_over_days("trades", "2024-03-09", 300, 3);
    case.run(&["run", "--until", "2024-03-10T11:30:00.001Z"]).expect(0);
    case.target("trades").ask("append", json!({"rows": 3, "micros": 1_710_074_000_000_000_i64}));
    let table = compared(&case, 0, &["--until", "2024-03-12"]);
    assert!(all_are(&table, "equal"), "{table:#}");
    assert_eq!(table["to"], table["watermark"]);
    assert_eq!(table["to"], "2024-03-10T11:30:00.001Z");
    assert!(
        audit(&case, &["--since", "2024-03-11"]).expect(0).says(&["\"ok\": true"]).json()["tables"][0]["from"]
            .is_null()
    );
}

#[test]
fn only_the_range_that_was_asked_for_is_compared() {
    let case = offloaded("range");
    late_rows(&case, 7);
    let from = |table: &Value| table["from"].as_str().unwrap().to_owned();
    let until = compared(&case, 0, &["--until", "2024-03-10T11:40:00Z"]);
    assert_eq!(until["to"], "2024-03-10T11:40:00.000Z");
    assert_eq!(of_verdict(&until, "equal").last().unwrap(), &[LATE_HOUR[0], "2024-03-10T11:40:00.000Z"]);
    assert_eq!(of_verdict(&compared(&case, 3, &["--until", "2024-03-10T11:40:00.001Z"]), "missing").len(), 1);

    let since = compared(&case, 0, &["--since", "2024-03-10T12:00:00Z"]);
    assert_eq!(from(&since), "2024-03-10T12:00:00.000Z");
    assert_eq!(compared(&case, 3, &["--since", "2024-03-10T11:40:00.000Z"])["buckets"][0]["missing"], 7);
    let between = compared(&case, 3, &["--since", "2024-03-10T11:40:00.0001Z", "--until", "2024-03-11"]);
    assert_eq!(from(&between), "2024-03-10T11:40:00.001Z", "the first whole tick");

    audit(&case, &["--since", "2024-03-11", "--until", "2024-03-11"]).expect(2).says(&["--until", "--since"]);
    audit(&case, &["--since", "2024-03-11", "--last", "1h"]).expect(2).says(&["--since", "--last"]);
}

#[test]
fn the_last_hours_are_those_of_the_sources_clock() {
    let case = with_trades("last");
    for hours in [30, 2] {
        insert_at(&case, hours_ago(hours), 10);
    }
    case.pass();
    insert_at(&case, hours_ago(29), 1);
    compared(&case, 3, &[]);
    let before = rfc3339(hours_ago(24));
    let table = compared(&case, 0, &["--last", "24h"]);
    let from = table["from"].as_str().unwrap();
    assert!(from >= before.as_str() && from <= rfc3339(hours_ago(24)).as_str(), "{from}, {before}");
    assert_eq!(table["buckets"].as_array().unwrap().len(), 1);
    compared(&case, 3, &["--last", "48h"]);
}

#[test]
fn p1_ties_on_the_edge_of_an_hour_and_rows_before_1970_are_counted_once() {
    let case = with_trades("edges");
    let hour = 3_600_000_i64;
    for tick in [-hour - 1, -hour, -1, 0, 1, hour - 1, hour] {
        for _ in 0..2 {
            case.sql(&format!(
                "INSERT INTO trades (exchange_timestamp) SELECT fromUnixTimestamp64Milli(toInt64({tick})) FROM numbers(3)"
            ));
        }
    }
    case.pass();
    let table = compared(&case, 0, &[]);
    let rows: Vec<&Value> = table["buckets"].as_array().unwrap().iter().map(|b| &b["target_rows"]).collect();
    assert_eq!(rows, [6, 12, 18, 6]);
    assert_eq!(
        of_verdict(&table, "equal"),
        [
            ["1969-12-31T22:00:00.000Z", "1969-12-31T23:00:00.000Z"],
            ["1969-12-31T23:00:00.000Z", "1970-01-01T00:00:00.000Z"],
            ["1970-01-01T00:00:00.000Z", "1970-01-01T01:00:00.000Z"],
            ["1970-01-01T01:00:00.000Z", "1970-01-01T01:00:00.001Z"],
        ]
    );
}

#[test]
fn buckets_of_a_date_cursor_are_days() {
    let case = Case::new("days");
    case.sql("CREATE TABLE days (day Date, n UInt32) ENGINE = MergeTree ORDER BY n");
    case.config("[[table]]\nsource = 'days'\ntarget = 'cold.days'\ncursor = 'day'\npartition_by = ['month(day)']\nlate_lookback = '0s'\n");
    case.init_tables();
    case.sql("INSERT INTO days SELECT toDate('2024-02-28') + number % 3, number FROM numbers(30)");
    case.pass();
    case.sql("INSERT INTO days VALUES ('2024-02-29', 7), ('2024-03-02', 7)");
    let table = only_table(&audit(&case, &[]).expect(3).json());
    assert_eq!(of_verdict(&table, "missing"), [["2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"]]);
    assert_eq!(of_verdict(&table, "equal").len(), 2);
    let days = |side: &str| -> Vec<u64> {
        table["buckets"].as_array().unwrap().iter().map(|bucket| bucket[side].as_u64().unwrap()).collect()
    };
    assert_eq!(days("source_rows"), [10, 11, 10]);
    assert_eq!(
        days("target_rows"),
        case.target("days").count_where(&["day = '2024-02-28'", "day = '2024-02-29'", "day = '2024-03-01'"])
    );
}

#[test]
fn rows_that_the_sources_ttl_has_deleted_are_no_mismatch() {
    let case = with_trades("ttl");
    let since = rfc3339(hours_ago(35));
    for hours in [30, 26, 3, 1] {
        insert_at(&case, hours_ago(hours), 10);
    }
    case.pass();
    case.sql("ALTER TABLE trades MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL 24 HOUR");
    case.sql("OPTIMIZE TABLE trades FINAL");
    assert_eq!(case.sql("SELECT count() FROM trades"), "20");
    assert!(all_are(&compared(&case, 0, &[]), "equal"), "hours that are gone as a whole are not compared");

    let table = compared(&case, 0, &["--since", &since]);
    assert_eq!((of_verdict(&table, "expired_in_source").len(), of_verdict(&table, "equal").len()), (2, 2), "{table:#}");
    case.run(&["audit", "--since", &since]).expect(0).says(&["2 equal, 2 expired_in_source"]);
    let gone = compared(&case, 0, &["--since", &since, "--until", &rfc3339(hours_ago(25))]);
    assert!(all_are(&gone, "expired_in_source"), "what is left tells how long a row lives: {gone:#}");

    // A row that is too young for the TTL, one that the source has again, and no TTL at all.
    case.target("trades").ask("append", json!({"rows": 1, "micros": hours_ago(3).timestamp_micros()}));
    assert_eq!(of_verdict(&compared(&case, 3, &["--since", &since]), "extra").len(), 1);
    case.sql("ALTER TABLE trades REMOVE TTL");
    assert_eq!(of_verdict(&compared(&case, 3, &["--since", &since]), "extra").len(), 3);
    insert_at(&case, hours_ago(30), 11);
    assert_eq!(of_verdict(&compared(&case, 3, &["--since", &since]), "missing").len(), 1);
}

#[test]
fn a_ttl_that_says_nothing_of_a_row_explains_nothing() {
    let case = with_trades("odd_ttl");
    case.sql("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n");
    case.sql("SYSTEM STOP TTL MERGES trades");
    let ttl = "ALTER TABLE trades MODIFY TTL ingestion_timestamp + INTERVAL 1 DAY";
    case.sql(ttl);
    for (hours, ingested) in [(3, "now()"), (2, "toDateTime(86400)"), (1, "now()")] {
        let micros = hours_ago(hours).timestamp_micros();
        case.sql(&format!(
            "INSERT INTO trades (exchange_timestamp, ingestion_timestamp) SELECT fromUnixTimestamp64Micro(toInt64({micros})), {ingested}"
        ));
    }
    case.run(&["run"]).expect_warning("have expired");
    case.target("trades").ask("append", json!({"rows": 1, "micros": hours_ago(3).timestamp_micros()}));
    assert_eq!(of_verdict(&compared(&case, 3, &[]), "extra").len(), 1, "a row that was born expired tells of no other");

    case.sql(&format!(
        "{ttl} WHERE sequence_number NOT IN (SELECT n FROM {}.kept) SETTINGS materialize_ttl_after_modify = 0",
        case.database
    ));
    case.sql("DROP TABLE kept SETTINGS check_table_dependencies = 0, check_referential_table_dependencies = 0");
    let output = audit(&case, &[]).expect(3).says(&["WARN", "cannot evaluate the source's TTL"]);
    assert_eq!(of_verdict(&only_table(&output.json()), "extra").len(), 1);
}

#[test]
fn p25_what_a_reset_skipped_is_no_mismatch() {
    let case = offloaded("skipped");
    let to = "2024-03-12T11:30:00.000Z";
    case.trades_over_days("trades", "2024-03-12", 48, 1);
    case.run(&["watermark", "reset", "--table", "trades", "--to", to, "--yes"]).expect(0);
    assert_eq!(case.pass_one()["rows_written"], 25);
    let table = compared(&case, 0, &[]);
    let skipped = of_verdict(&table, "skipped");
    assert_eq!(
        (skipped.len(), skipped[0][0], skipped[11]),
        (12, "2024-03-12T00:00:00.000Z", ["2024-03-12T11:00:00.000Z", to])
    );
    assert_eq!(of_verdict(&table, "equal")[72], [to, "2024-03-12T12:00:00.000Z"], "cut where the reset went to");
    let output = case.run(&["audit"]).expect(0);
    assert_eq!(output.stdout.lines().count(), 2, "{}", output.all());
    output.says(&[
        "12 skipped",
        "[2024-03-12T00:00:00.000Z, 2024-03-12T11:30:00.000Z): skipped, source 23 rows, target 0",
    ]);
    case.trades("trades", "2024-03-12 11:30:00", 1);
    assert_eq!(of_verdict(&compared(&case, 3, &[]), "missing"), [[to, "2024-03-12T12:00:00.000Z"]]);
}

#[test]
fn rows_below_start_at_were_left_out_on_purpose() {
    let case = Case::with_trades("start_at");
    case.config(&format!("{TRADES}start_at = '2024-03-10T11:30:00Z'\n"));
    case.trades_over_days("trades", "2024-03-09", 300, 3);
    case.pass();
    let table = compared(&case, 0, &[]);
    assert_eq!(of_verdict(&table, "skipped").len(), 36);
    assert_eq!(of_verdict(&table, "skipped").last().unwrap(), &[LATE_HOUR[0], "2024-03-10T11:30:00.000Z"]);
    assert_eq!(of_verdict(&table, "equal")[0], ["2024-03-10T11:30:00.000Z", LATE_HOUR[1]]);
    let text = case.run(&["audit"]).expect(0).stdout;
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn before_the_first_pass_there_is_nothing_to_compare() {
    let case = with_trades("early");
    case.trades("trades", "2024-03-10", 10);
    case.run(&["audit"]).expect(0).says(&["cold.trades: nothing to compare", "no pass"]);
    let document = audit(&case, &[]).expect(0).json();
    let expected = json!({"ok": true, "tables": [{
        "source": "trades", "target": "cold.trades", "watermark": null, "from": null, "to": null, "buckets": [], "error": null,
    }]});
    assert_eq!(document, expected);
    case.pass();
    case.sql("TRUNCATE TABLE trades");
    case.run(&["audit"]).expect(0).says(&["nothing to compare below the watermark"]);
    case.run(&["audit", "--since", "2024-03-10"]).expect(3).says(&["extra"]);
}

#[test]
fn the_document_is_the_contracts() {
    let case = with_trades("shape");
    case.sql("INSERT INTO trades (exchange_timestamp) VALUES ('2024-03-10 11:00:00.000'), ('2024-03-10 12:00:00.007')");
    case.pass();
    case.sql("INSERT INTO trades (exchange_timestamp) VALUES ('2024-03-10 12:00:00.006')");
    let bucket = |from: &str, to: &str, source: u64, target: u64, missing: u64, verdict: &str| json!({"from": from, "to": to, "source_rows": source, "target_rows": target, "missing": missing, "extra": 0, "verdict": verdict});
    let (from, edge, to) = ("2024-03-10T11:00:00.000Z", "2024-03-10T12:00:00.000Z", "2024-03-10T12:00:00.008Z");
    let expected = json!({"ok": false, "tables": [{
        "source": "trades", "target": "cold.trades", "watermark": to, "from": from, "to": to,
        "buckets": [bucket(from, edge, 1, 1, 0, "equal"), bucket(edge, to, 2, 1, 1, "missing")],
        "error": null,
    }]});
    assert_eq!(audit(&case, &[]).expect(3).json(), expected);
}

#[test]
fn the_worst_table_is_the_exit_and_no_table_holds_another_up() {
    let case = Case::new("several");
    let mut tables = String::new();
    for table in ["good", "late", "gone"] {
        case.bronze(table);
        case.trades(table, "2024-03-10", 100);
        tables += &format!(
            "[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'exchange_timestamp'\nlate_lookback = '0s'\n"
        );
    }
    case.config(&tables);
    case.init_tables();
    case.pass();
    case.trades("late", "2024-03-10", 1);
    case.sql("DROP TABLE gone");
    let document = audit(&case, &[]).expect(3).json();
    assert_eq!(document["ok"], false);
    assert_eq!(table_of(&document, "cold.gone")["error"]["kind"], "config");
    assert_eq!(of_verdict(table_of(&document, "cold.late"), "missing").len(), 1);
    assert!(all_are(table_of(&document, "cold.good"), "equal"));
    let output = case.run(&["audit", "--table", "gone", "--table", "cold.good"]).expect(2);
    output.says(&["cold.gone: not compared", "cold.good: [2024", "k2-offload: cold.gone: ", "hint: "]);
    assert_eq!(audit(&case, &["--table", "good"]).expect(0).json()["tables"].as_array().unwrap().len(), 1);
}

#[test]
fn an_audit_beside_a_pass_sees_what_was_committed_before() {
    let case = offloaded("beside");
    let gate = case.gate("gate");
    case.trades("trades", "2024-03-12", 100);
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut pass);
    let table = compared(&case, 0, &[]);
    assert!(table["to"].as_str().unwrap() < "2024-03-12");
    gate.open();
    pass.wait().expect(0);
    let table = compared(&case, 0, &[]);
    assert!(table["to"].as_str().unwrap() > "2024-03-12");
}

#[test]
fn an_audit_changes_nothing() {
    let case = offloaded("unchanged");
    late_rows(&case, 7);
    let before = case.contents_but_state();
    audit(&case, &[]).expect(3);
    assert!(case.contents_but_state() == before);
}

#[test]
fn p15_p16_a_target_that_is_not_ours_is_an_error() {
    let case = offloaded("foreign");
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    case.config(&format!("{TRADES}source_id = 'staging.trades'\n"));
    audit(&case, &[]).expect(3).says(&["staging.trades", "\"ok\": false"]);
    case.config(&TRADES.replace("cursor = 'exchange_timestamp'", "cursor = 'event_time'"));
    audit(&case, &[]).expect(3).says(&["event_time"]);
    fs::write(case.path("offload.toml"), good).unwrap();
    case.target("trades").ask("rollback", json!({}));
    audit(&case, &[]).expect(3).says(&["rolled back"]);
}

#[test]
fn a_data_file_that_is_gone_is_named() {
    let case = Case::with_trades("lost_file");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    let is_data = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "parquet");
    let lost = support::files_below(&case.path("warehouse")).into_iter().find(is_data).unwrap();
    let aside = case.path("aside");
    fs::rename(&lost, &aside).unwrap();
    let name = lost.file_name().unwrap().to_str().unwrap();
    case.run(&["audit", "--checksum"]).expect(3).says(&[name, "lost a data file", "restore it"]);
    fs::rename(&aside, &lost).unwrap();
    case.run(&["audit", "--checksum"]).expect(0);
}
