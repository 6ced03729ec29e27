//! The TTL guard: rows that the source is about to drop, or has dropped, before they left.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{BRONZE, Case, Output, Server, TRADES, only_table, server, table_of, wait_until};

const SEVEN_DAYS: i64 = 7 * 86_400;

/// A case whose source drops rows seven days after their ingestion.
fn expiring(name: &str) -> Case {
    let case = Case::new(name);
    create(&case, "ingestion_timestamp + INTERVAL 7 DAY");
    case.config(TRADES);
    case.init_tables();
    case
}

fn create(case: &Case, ttl: &str) {
    case.sql(&format!("CREATE TABLE trades ({BRONZE}) ENGINE = MergeTree ORDER BY exchange_timestamp TTL {ttl}"));
}

/// Inserts ten trades of this age, ingested so long ago; both such as `20 DAY`.
fn trades(case: &Case, age: &str, ingested: &str) {
    case.sql(&format!(
        "INSERT INTO trades (exchange_timestamp, ingestion_timestamp, symbol) \
         SELECT now64(3) - INTERVAL {age} + number / 1000, now() - INTERVAL {ingested}, 'BTC-USD' FROM numbers(10)"
    ));
}

fn run(case: &Case) -> Output {
    case.run(&["--format", "json", "run"])
}

fn show(case: &Case) -> Output {
    case.run(&["--format", "json", "watermark", "show"])
}

fn seconds_left(output: &Output) -> Option<i64> {
    only_table(&output.json())["ttl_seconds_left"].as_i64()
}

/// Makes the cache say that the last pass looked at the source ten days ago.
fn stalled_for_ten_days(case: &Case) {
    let ten_days_ago = case.sql("SELECT toUnixTimestamp64Milli(now64(3) - INTERVAL 10 DAY)");
    let state = rusqlite::Connection::open(case.path("state.db")).unwrap();
    assert_eq!(state.execute("UPDATE target_state SET checked_to = ?1", [ten_days_ago]).unwrap(), 1);
}

/// A source that dropped ten rows of 20 days ago, after its target had got those of 40 days ago and before any pass looked
/// again; ten rows of the last hour are there.
fn robbed(name: &str) -> Case {
    let case = expiring(name);
    trades(&case, "40 DAY", "1 HOUR");
    assert_eq!(case.pass_one()["rows_written"], 10);
    trades(&case, "20 DAY", "20 DAY");
    case.sql("OPTIMIZE TABLE trades FINAL");
    wait_until("the rows have expired", || case.sql("SELECT count() FROM trades") == "10");
    trades(&case, "1 HOUR", "1 HOUR");
    stalled_for_ten_days(&case);
    case
}

/// The pass must end with the alarm, and say it in the log too.
fn alarms(output: Output) -> Value {
    let output = output.expect(3).says(&["outlived", "backup"]);
    let table = only_table(&output.json());
    assert_eq!((&table["status"], &table["error"]["kind"]), (&json!("failed"), &json!("refused")), "{table:#}");
    table
}

#[test]
fn rows_that_expire_soon_are_warned_of_until_they_have_left() {
    let case = Case::new("soon");
    create(&case, "toDateTime(exchange_timestamp) + INTERVAL 7 DAY");
    case.config(TRADES);
    case.init_tables();
    trades(&case, "5 DAY", "5 DAY");
    let left = seconds_left(&show(&case).expect(0)).unwrap();
    assert!(left > 86_400 && left <= 2 * 86_400, "{left}");
    trades(&case, "9390 MINUTE", "1 HOUR");
    let output = show(&case).expect_warning("hours_left=\"11");
    let left = seconds_left(&output).unwrap();
    assert!(left > 0 && left <= 12 * 3600, "{left}");
    case.run(&["watermark", "show"]).expect_warning("trades").says(&["first expiry in 11h"]);
    case.run(&["run", "--dry-run"]).expect_warning("hours_left");
    let output = run(&case).expect_warning("hours_left");
    assert_eq!(only_table(&output.json())["rows_written"], 20);
    assert_eq!(output.stderr.matches("hours_left").count(), 1, "{}", output.all());
    assert_eq!(seconds_left(&show(&case).expect(0)), None, "nothing is left that could expire");
    case.pass();
    case.target("trades").holds_all("trades");
}

#[test]
fn rows_that_have_expired_but_are_still_there_are_warned_of_and_leave() {
    let case = expiring("expired");
    case.sql("SYSTEM STOP TTL MERGES trades");
    trades(&case, "10 DAY", "10 DAY");
    let output = show(&case).expect_warning("may drop them");
    assert!(seconds_left(&output).unwrap() <= -3 * 86_400, "{}", output.all());
    case.run(&["watermark", "show"]).expect_warning("hours_left=\"-72").says(&["first expiry 3days", " ago"]);
    assert_eq!(only_table(&run(&case).expect_warning("may drop them").json())["rows_written"], 10);
    case.target("trades").holds_all("trades");
}

#[test]
fn the_margin_is_that_of_the_table() {
    let case = expiring("margin");
    trades(&case, "30 DAY", "1 HOUR");
    let left = seconds_left(&show(&case).expect(0)).unwrap();
    assert!(left > 6 * 86_400 && left <= SEVEN_DAYS, "the age of the row does not count, its ingestion does: {left}");
    case.config(&format!("{TRADES}ttl_margin = '8days'\n"));
    show(&case).expect_warning("hours_left");
    case.config_file("offload.toml", "", "ttl_margin = '8days'", TRADES);
    run(&case).expect_warning("hours_left");
}

/// ClickHouse keeps the first expiry of each part as it computed it itself.
#[test]
fn the_time_left_is_the_servers_own_whatever_the_ttl_looks_like() {
    let ttls = [
        "dt + INTERVAL 30 DAY",
        "ts + INTERVAL 1 MONTH",
        "day + 40",
        "day32 + INTERVAL 1 MONTH",
        "toDateTime(ts) + INTERVAL 30 DAY DELETE",
        "tokyo + toIntervalWeek(9)",
        "if(n = 1, toDateTime(0), dt + INTERVAL 30 DAY)",
        "dt + INTERVAL 30 DAY WHERE n = 1",
        "dt + INTERVAL 30 DAY WHERE n = 1 AND s != ' SETTINGS it''s \\\\ \"', ts + INTERVAL 40 DAY",
        "dt + INTERVAL 30 DAY WHERE n = 99",
        "`a TTL b` + INTERVAL 30 DAY WHERE `q``SETTINGS 'x(` > '2020-01-01 00:00:00' AND NOT (`b\\\\s` = 5)",
        "`TTL` + INTERVAL 30 DAY WHERE `WHERE` > 0 AND `SETTINGS` != 9",
        "dt + INTERVAL 30 DAY TO DISK 'default', dt + INTERVAL 90 DAY, dt + INTERVAL 60 DAY RECOMPRESS CODEC(ZSTD(3))",
        "dt + INTERVAL 30 DAY TO DISK 'default'",
        "dt + INTERVAL 30 DAY GROUP BY n SET s = max(s), day = any(day)",
        "arrayMax(x -> (x + INTERVAL 30 DAY), [dt, `TTL`])",
    ];
    // Dates expire at midnight of the server's zone.
    let new_york = Server::start("America/New_York");
    for url in [server::shared_url(), new_york.url.clone()] {
        agrees_with_the_server(&Case::on(&url, "oracle"), &ttls);
    }
}

fn agrees_with_the_server(case: &Case, ttls: &[&str]) {
    let mut config = String::new();
    for (number, ttl) in ttls.iter().enumerate() {
        let table = format!("t{number}");
        case.sql(&format!(
            "CREATE TABLE {table} (ts DateTime64(3), dt DateTime, day Date, day32 Date32, tokyo DateTime('Asia/Tokyo'), n UInt8, s String, \
             `a TTL b` DateTime, `q``SETTINGS 'x(` DateTime, `b\\\\s` UInt8, `TTL` DateTime, `WHERE` UInt8, `SETTINGS` UInt8) \
             ENGINE = MergeTree ORDER BY n TTL {ttl}"
        ));
        case.sql(&format!(
            "INSERT INTO {table} WITH now() - INTERVAL 5 DAY + number * 3600 AS at SELECT at - number, at, toDate(at), toDate32(at), at, number, \
             'x', at, at, number, at, number, number FROM numbers(5)"
        ));
        config += &format!("[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'ts'\n");
    }
    case.config(&config);
    case.init_tables();
    let clock = || case.sql("SELECT toUnixTimestamp(now())").parse::<i64>().unwrap();
    let before = clock();
    let document = show(case).expect(0).json();
    let after = clock();
    for (number, ttl) in ttls.iter().enumerate() {
        let at = case.sql(&format!(
            "SELECT toInt64(arrayMin(arrayFilter(at -> at > 0, arrayMap(at -> toUnixTimestamp(at), arrayConcat([delete_ttl_info_min], \
             rows_where_ttl_info.min, group_by_ttl_info.min))) AS known)) FROM system.parts \
             WHERE active AND database = currentDatabase() AND table = 't{number}'"
        ));
        let expected = at.parse::<i64>().ok().filter(|at| *at > 0);
        let left = table_of(&document, &format!("cold.t{number}"))["ttl_seconds_left"].as_i64();
        let matches = match (expected, left) {
            (Some(at), Some(left)) => (at - after..=at - before).contains(&left),
            (expected, left) => expected.is_none() && left.is_none(),
        };
        assert!(matches, "{ttl}: {left:?} seconds left, the server says {at} between {before} and {after}");
    }
    let left =
        document["tables"].as_array().unwrap().iter().filter(|table| !table["ttl_seconds_left"].is_null()).count();
    assert_eq!(left, ttls.len() - 2, "no row expires in two of them");
}

#[test]
fn rows_lost_to_ttl_are_an_alarm_that_comes_once_after_the_rows_that_are_there() {
    let case = robbed("lost");
    let table = alarms(run(&case));
    assert_eq!((&table["rows_written"], &table["chunks"]), (&json!(10), &json!(1)), "{table:#}");
    assert_eq!(case.pass_one()["status"], "nothing");
    trades(&case, "0 SECOND", "0 SECOND");
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_all("trades");
}

/// After a commit the next pass cannot tell any more, and so the alarm outranks what ended the pass.
#[test]
fn the_alarm_outranks_an_error_after_a_commit() {
    let case = robbed("outranks");
    case.config(&format!("{TRADES}chunk_rows = 5\n"));
    case.sql("INSERT INTO trades (exchange_timestamp, ingestion_timestamp, sequence_number) VALUES (now64(3) - INTERVAL 1 MINUTE, now(), 18446744073709551615)");
    let table = alarms(run(&case));
    assert_eq!(table["chunks"], 1, "{table:#}");
    let message = table["error"]["message"].as_str().unwrap();
    assert!(["outlived", "sequence_number"].iter().all(|part| message.contains(part)), "{message}");
    let again = only_table(&run(&case).expect(3).json());
    assert!(!again["error"]["message"].as_str().unwrap().contains("outlived"), "{again:#}");
}

#[test]
fn the_alarm_comes_once_also_where_no_row_may_leave_yet() {
    let case = robbed("once");
    case.config(&format!("{TRADES}settle_delay = '2h'\n"));
    alarms(case.run(&["--format", "json", "run", "--dry-run"]));
    let table = alarms(run(&case));
    assert_eq!(table["rows_written"], 0, "{table:#}");
    assert_eq!(case.pass_one()["status"], "nothing");
    let shown = only_table(&show(&case).expect(0).json());
    assert_eq!((&shown["status"], &shown["last_error"]), (&json!("success"), &Value::Null), "{shown:#}");
}

#[test]
fn the_alarm_is_in_the_log_of_a_pass_that_dies_after_its_first_commit() {
    let case = robbed("dies");
    let output = case.run_failing("committed=kill", &["run"]).says(&["outlived"]);
    assert_eq!(output.code, None, "killed");
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn a_stalled_offload_whose_rows_are_all_there_is_no_loss() {
    let case = expiring("stalled");
    trades(&case, "40 DAY", "1 HOUR");
    case.pass();
    stalled_for_ten_days(&case);
    trades(&case, "9 DAY", "1 HOUR");
    assert_eq!(case.pass_one()["rows_written"], 10, "rows that came late live longer");
}

#[test]
fn a_backfill_that_takes_several_passes_is_no_loss() {
    let case = expiring("backfill");
    for age in ["40 DAY", "30 DAY", "1 HOUR"] {
        trades(&case, age, "1 HOUR");
    }
    let until = case.sql("SELECT toDate(now() - INTERVAL 35 DAY)");
    case.run(&["run", "--until", &until]).expect(0);
    assert_eq!(case.pass_one()["rows_written"], 20);
    case.target("trades").holds_all("trades");
}

#[test]
fn a_quiet_table_does_not_alarm_as_long_as_passes_look_at_it() {
    let case = expiring("quiet");
    trades(&case, "40 DAY", "1 HOUR");
    case.pass();
    assert_eq!(case.pass_one()["status"], "nothing");
    trades(&case, "0 SECOND", "0 SECOND");
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_all("trades");
}

/// What a lost cache costs: one alarm too many, no row.
#[test]
fn a_quiet_table_whose_cache_was_deleted_may_alarm_once() {
    let case = expiring("no_cache");
    trades(&case, "40 DAY", "1 HOUR");
    case.pass();
    fs::remove_file(case.path("state.db")).unwrap();
    trades(&case, "0 SECOND", "0 SECOND");
    assert_eq!(alarms(run(&case))["rows_written"], 10);
    assert_eq!(case.pass_one()["status"], "nothing");
    case.target("trades").holds_all("trades");
}

/// Rows of another time than that of their ingestion say nothing about how long rows live.
#[test]
fn rows_that_were_born_expired_or_lie_in_the_future_do_not_alarm() {
    let case = expiring("odd");
    case.sql("SYSTEM STOP TTL MERGES trades");
    trades(&case, "40 DAY", "1 HOUR");
    case.pass();
    case.sql("INSERT INTO trades (exchange_timestamp, ingestion_timestamp) VALUES (now64(3) - 2, 86400), (now64(3) + INTERVAL 1 YEAR, now())");
    let output = run(&case).expect_warning("have expired");
    let table = only_table(&output.json());
    assert_eq!((&table["rows_written"], &table["rows_future"]), (&json!(1), &json!(1)), "{table:#}");
    assert!(!output.all().contains("outlived"), "{}", output.all());
}

#[test]
fn a_ttl_that_cannot_be_evaluated_holds_no_row_back() {
    let case = Case::new("no_ttl");
    case.sql("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n");
    let kept = format!("(SELECT n FROM {}.kept)", case.database);
    create(&case, &format!("ingestion_timestamp + INTERVAL 7 DAY WHERE sequence_number NOT IN {kept}"));
    case.config(TRADES);
    case.init_tables();
    trades(&case, "10 DAY", "1 HOUR");
    case.sql("DROP TABLE kept SETTINGS check_table_dependencies = 0, check_referential_table_dependencies = 0");
    assert_eq!(only_table(&run(&case).expect_warning("cannot evaluate").json())["rows_written"], 10);
    case.target("trades").holds_all("trades");
}
