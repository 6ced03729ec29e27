//! A pass may die or fail anywhere: the next one leaves every row in the target exactly once. Random moments are in torture.rs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::process::Command;

use support::shapes::{CANDLES, CHUNKED, KEYED, PLAIN, Shape};
use support::{Case, Running, failpoints, in_parallel};

/// Points behind the swap: the rows have left.
const AFTER_COMMIT: [&str; 3] = ["commit-clean", "committed", "remember"];
/// Points that a pass comes by for every file.
const OF_FILES: [&str; 3] = ["file-create", "file-write", "file-sync"];
/// More files, or writes, than a pass of these tests makes.
const MANY: u32 = 60;

/// Every failpoint, with each shape of table.
fn everywhere() -> Vec<(&'static str, &'static Shape)> {
    let points = failpoints();
    [&PLAIN, &KEYED, &CANDLES].iter().flat_map(|shape| points.iter().map(|point| (*point, *shape))).collect()
}

/// Every data file on disk must be one that ClickHouse reads.
fn no_file_is_left(case: &Case) {
    let target = case.target("trades");
    let read = target.icebergs("SELECT uniqExact(_path) FROM");
    assert_eq!(target.files_on_disk().len().to_string(), read, "files on disk, files of the table");
}

#[test]
fn a_pass_that_fails_at_any_point_is_made_good_by_the_next() {
    in_parallel(6, everywhere(), |(point, shape)| {
        let case = shape.two_days("failed");
        let before = case.target("trades").state();
        let output = case.run_failing(&format!("{point}=error"), &["run"]);
        if AFTER_COMMIT.contains(&point) {
            assert!(matches!(output.code, Some(0 | 1)), "{point}\n{}", output.all());
        } else {
            let said = if OF_FILES.contains(&point) { "Input/output error" } else { &format!("failpoint {point}") };
            let output = output.expect(1).says(&[said]);
            assert_eq!(case.target("trades").state(), before, "{point}: nothing stays\n{}", output.all());
        }
        shape.is_made_good(&case, &format!("{point}=error"));
        no_file_is_left(&case);
    });
}

#[test]
fn a_pass_that_is_killed_at_any_point_is_made_good_by_the_next() {
    in_parallel(3, everywhere(), |(point, shape)| {
        let case = shape.two_days("killed");
        let output = case.run_failing(&format!("{point}=kill"), &["run"]);
        assert_eq!(output.code, None, "{point} did not kill\n{}", output.all());
        shape.is_made_good(&case, &format!("{point}=kill"));
        if shape.name == PLAIN.name {
            case.target("trades").holds_all("wanted");
        }
    });
}

/// Data files, manifest, manifest list, metadata: each file, each write to it and each sync, one run for each. The disk fails once, and the
/// pass itself tries again.
#[test]
fn a_disk_that_fails_at_the_nth_write_or_sync_is_made_good() {
    in_parallel(4, OF_FILES.to_vec(), |point| {
        let failures = (1..MANY).take_while(|n| {
            let case = CHUNKED.two_days("disk");
            let fault = format!("{point}=error@{n}");
            let output = case.run_failing(&fault, &["run"]).expect(0);
            CHUNKED.is_made_good(&case, &fault);
            no_file_is_left(&case);
            let failed = output.all().contains("trying again");
            assert!(!failed || output.all().contains("Input/output error"), "{fault}\n{}", output.all());
            failed
        });
        let failures = failures.count();
        println!("{point}: {failures} I/O errors survived");
        assert!(failures >= 4, "{point}: data file, manifest, manifest list, metadata");
    });
}

#[test]
fn a_pass_that_is_killed_at_the_nth_write_or_sync_is_made_good_by_the_next() {
    in_parallel(3, OF_FILES.to_vec(), |point| {
        let kills = (1..MANY).take_while(|n| {
            let case = PLAIN.two_days("nth");
            let fault = format!("{point}=kill@{n}");
            let killed = case.run_failing(&fault, &["run"]).code.is_none();
            PLAIN.is_made_good(&case, &fault);
            killed
        });
        let kills = kills.count();
        println!("{point}: {kills} kills survived");
        assert!(kills >= 4, "{point}: data file, manifest, manifest list, metadata");
    });
}

/// Every call by which SQLite writes the catalog and its journal fails, or is the last one, by strace. COMMIT itself may fail: its outcome is
/// unknown then (P14).
#[test]
fn p14_every_call_that_writes_the_catalog_may_fail_or_be_the_last() {
    let calls = ["pwrite64", "fsync", "unlink"];
    let faults = ["error=EIO", "error=ENOSPC", "signal=KILL"];
    let all = calls.iter().flat_map(|call| faults.iter().map(move |fault| (*call, *fault))).collect();
    in_parallel(4, all, |(call, fault)| {
        let injected = (1..MANY).take_while(|n| {
            let case = PLAIN.two_days("catalog");
            let log = case.path("trace");
            let catalog = case.path("catalog.db").canonicalize().unwrap();
            let journal = catalog.with_file_name("catalog.db-journal");
            let pass = case.command(&["run"]);
            let mut strace = Command::new("strace");
            strace.arg("-f").arg("-P").arg(&catalog).arg("-P").arg(journal).args(["-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:{fault}:when={n}"), "-o"]).arg(&log);
            let output = Running::start(strace.arg(pass.get_program()).args(pass.get_args())).wait();
            let trace = fs::read_to_string(&log).unwrap();
            let fault = format!("{call}:{fault}:when={n}");
            let happened = trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL");
            let is_killed = fault.contains("KILL") && happened;
            assert!(is_killed || matches!(output.code, Some(0 | 1)), "{fault}\n{}\n{trace}", output.all());
            PLAIN.is_made_good(&case, &format!("{fault}\n{}\n{trace}", output.all()));
            if !is_killed {
                no_file_is_left(&case);
            }
            happened
        });
        let injected = injected.count();
        println!("catalog, {call} {fault}: {injected} survived");
        assert!(injected > 0, "the catalog saw no {call}");
    });
}
