//! Clocks that are wrong: this host's decides nothing, the source's moves no watermark further than its rows and none back (invariant 5).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use support::shapes::PLAIN;
use support::{Case, finish, only_table, server};

const TWO_DAYS: i64 = 2 * 86_400;
const JSON_RUN: [&str; 3] = ["--format", "json", "run"];

/// Rows of a second ago, by the server's clock.
fn new_rows(case: &Case, rows: u32) {
    case.sql(&format!(
        "INSERT INTO trades (exchange_timestamp, sequence_number) SELECT now64(3, 'UTC') - 1, number FROM numbers({rows})"
    ));
}

/// A library that moves this host's clock as a process sees it.
fn wrong_clock(case: &Case) -> std::path::PathBuf {
    let library = case.path("clock.so");
    let source = server::repository().join("tests/support/clock.c");
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(built.success(), "gcc cannot build clock.so");
    library
}

#[test]
fn a_host_whose_clock_is_wrong_by_two_days_moves_the_same_rows() {
    let case = PLAIN.case("host_clock");
    let library = wrong_clock(&case);
    for seconds in [TWO_DAYS, -TWO_DAYS, 0] {
        new_rows(&case, 10);
        let mut pass = case.command(&JSON_RUN);
        pass.env("LD_PRELOAD", &library).env("CLOCK_SHIFT", seconds.to_string());
        let output = finish(&mut pass);
        let output = if seconds == 0 { output.expect(0) } else { output.expect_warning("clock") };
        assert_eq!(only_table(&output.json())["rows_written"], 10, "{seconds}");
        PLAIN.is_made_good(&case, &format!("a clock that is {seconds} s ahead"));
    }
    case.target("trades").holds_for_all_readers("wanted");
    assert_eq!(case.target("trades").snapshots().len(), 3);
}

#[test]
fn a_source_whose_clock_jumps_loses_and_doubles_nothing() {
    let case = PLAIN.case("source_clock");
    new_rows(&case, 10);
    case.pass();
    // Behind its watermark a pass has nothing to do; ahead of the rows the watermark stays with the newest of them.
    let jumps = [(-3_600, 0), (TWO_DAYS, 20), (-3_600, 0), (0, 20)];
    for (seconds, expected) in jumps {
        new_rows(&case, 10);
        let output = case.run_failing(&format!("facts=shift:{seconds}"), &JSON_RUN);
        assert_eq!(output.code, Some(0), "{}", output.all());
        assert_eq!(only_table(&output.json())["rows_written"], expected, "a shift by {seconds} s");
    }
    PLAIN.is_made_good(&case, "clocks that jump");
    case.target("trades").holds_for_all_readers("wanted");
}
