//! SIGTERM and SIGINT: a pass cleans up after itself, and the next one goes on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::json;
use support::{Case, Place, failpoints_at, in_parallel, only_table, wait_until};

/// Settings under which the SELECT of [`slow_case`] takes minutes.
const SLOW: &str =
    "settings = { max_block_size = 1000, max_threads = 1, function_sleep_max_microseconds_per_block = 0 }";

/// A source whose rows take their time, so that a signal finds the pass in the middle of its SELECT.
fn slow_case(name: &str) -> Case {
    let case = Case::new(name);
    case.bronze("fast");
    case.trades("fast", "2024-03-10 12:00:00", 100_000);
    case.sql("CREATE VIEW trades AS SELECT exchange_timestamp, symbol, sleepEachRow(0.002) AS slow FROM fast");
    case.config_file("offload.toml", SLOW, "", &support::TRADES.replace("partition_by", "# "));
    case.init_tables();
    case
}

fn running_selects(case: &Case) -> String {
    let ours = format!("query_id LIKE 'k2-offload/%/select/%' AND query LIKE '%{}%'", case.database);
    case.sql(&format!("SELECT count() FROM system.processes WHERE {ours}"))
}

fn is_stopped_by(signal: &str, code: i32) {
    let case = slow_case(&format!("stopped_by_{}", signal.to_lowercase()));
    let target = case.target("trades");
    let mut pass = case.spawn("offload.toml", "", &["--format", "json", "run"]);
    wait_until("the SELECT runs", || {
        assert!(!pass.is_over(), "the pass ended before its signal");
        running_selects(&case) == "1"
    });
    pass.signal(signal);
    let output = pass.wait().expect(code);
    let shown = only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json());
    assert_eq!((&shown["failure_count"], &shown["status"]), (&json!(0), &json!("initialized")), "{shown:#}");
    assert!(target.files_on_disk().is_empty() && target.snapshots().is_empty(), "{}", output.all());
    wait_until("the query is cancelled", || running_selects(&case) == "0");

    case.sql("DROP VIEW trades");
    case.sql("CREATE VIEW trades AS SELECT exchange_timestamp, symbol, toUInt8(0) AS slow FROM fast");
    assert_eq!(case.pass_one()["rows_written"], 100_000);
    target.holds_all("trades");
    target.has_no_other_files();
}

#[test]
fn sigterm_in_the_middle_of_a_select_leaves_nothing_behind() {
    is_stopped_by("TERM", 143);
}

#[test]
fn sigint_in_the_middle_of_a_select_leaves_nothing_behind() {
    is_stopped_by("INT", 130);
}

#[test]
fn a_signal_at_any_point_finishes_or_abandons_the_chunk() {
    let all =
        [Place::Local, Place::Rest].into_iter().flat_map(|place| failpoints_at(place).map(move |point| (place, point)));
    in_parallel(4, all.collect(), |(place, point)| {
        let what = format!("{place:?}, {point}");
        let case = Case::with_trades_at(place, "between_steps");
        case.trades("trades", "2024-03-10 00:00:00", 200);
        let gate = case.gate("gate");
        let mut pass = case.spawn("offload.toml", &format!("{point}={}", gate.pause()), &["run"]);
        gate.wait_for(&mut pass);
        pass.signal("TERM");
        gate.open();
        let output = pass.wait();
        assert!(matches!(output.code, Some(0 | 143)), "{what}\n{}", output.all());
        let target = case.target("trades");
        target.has_no_other_files();
        let left = (target.files_on_disk().len(), target.snapshots().len());
        assert!(matches!(left, (0, 0) | (1, 1)), "{what}: {left:?} files and snapshots, not one of each or none");
        case.pass();
        target.holds_all("trades");
    });
}

#[test]
fn a_query_that_takes_too_long_is_ended_and_leaves_nothing_behind() {
    let case = slow_case("too_long");
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), config.replace("[clickhouse]", "[clickhouse]\nquery_timeout = '1s'")).unwrap();
    case.run(&["run"]).expect(1);
    let target = case.target("trades");
    assert!(target.files_on_disk().is_empty() && target.snapshots().is_empty());
    wait_until("no query is left", || running_selects(&case) == "0");
}
