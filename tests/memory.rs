//! Bounded memory (invariant 9): a pass whose rows are many times its memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;

use support::shapes::{CANDLES, KEYED, PLAIN, Shape};
use support::{Running, in_parallel};

/// What the kernel lets the process write to: heap, stacks, anonymous mappings (`RLIMIT_DATA`). An allocation above it aborts the pass.
const LIMIT: u64 = 64 << 20;
/// What is resident, with the binary's own pages, of which a debug build has many.
const LIMIT_RESIDENT_KB: u64 = 64 << 10;
const ROWS: u64 = 400_000;

#[test]
fn a_pass_over_many_rows_fits_into_64_megabytes() {
    in_parallel(2, vec![&PLAIN, &KEYED, &CANDLES], |shape: &Shape| {
        let case = shape.case("memory");
        case.trades_over_days("trades", "2024-03-10", ROWS, 3);
        let gate = case.gate("gate");
        let pass = case.command(&["run"]);
        let mut limited = std::process::Command::new("prlimit");
        limited.arg(format!("--data={LIMIT}")).arg(pass.get_program()).args(pass.get_args());
        limited.env("K2_OFFLOAD_FAILPOINTS", format!("remember={}", gate.pause()));
        let mut pass = Running::start(&mut limited);
        gate.wait_for(&mut pass);
        let status = fs::read_to_string(format!("/proc/{}/status", pass.pid())).unwrap();
        gate.open();
        pass.wait().expect(0);
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse().ok());
        let peak: u64 = peak.unwrap_or_else(|| panic!("no VmHWM in {status}"));
        println!("{}: {ROWS} trades, peak of resident memory {peak} kB", shape.name);
        assert!(peak < LIMIT_RESIDENT_KB, "{}: {peak} kB", shape.name);
        shape.is_made_good(&case, "a limit");
    });
}
