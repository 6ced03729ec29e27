//! Bounded memory (invariant 9): a pass whose rows are many times its memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::process::Command;

use support::shapes::PLAIN;
use support::{Case, Gate, HASH_OF_BRONZE, Running, TRADES, in_parallel, only_table};

/// What the kernel lets the process write to: heap, stacks, anonymous mappings (`RLIMIT_DATA`). An allocation above it aborts the pass.
const LIMIT: u64 = 64 << 20;
/// What is resident, without the pages of the binary itself, which are other ones in a release build.
const LIMIT_RESIDENT_KB: u64 = 64 << 10;
/// Two tables side by side into S3: of each a part that fills and parts on their way.
const LIMIT_OF_TWO: u64 = 96 << 20;
/// Without compression 43 MB of Parquet, one file.
const ROWS: u64 = 1_000_000;
const DAYS: u64 = 1;

/// Streamed as they are, with and without a key, and decoded and encoded anew.
const CONFIGS: [(&str, &str); 3] = [
    ("table", ""),
    ("key", "key = ['exchange_timestamp', 'sequence_number', 'symbol']\n"),
    (
        "query",
        "name = 'trades'\nquery = 'SELECT * FROM trades WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high}'\n",
    ),
];

#[test]
fn a_pass_over_many_rows_fits_into_64_megabytes() {
    in_parallel(2, CONFIGS.to_vec(), |(name, further)| {
        let case = PLAIN.case("memory");
        let table = if name == "query" { TRADES.replace("source = 'trades'\n", "") } else { TRADES.to_owned() };
        case.config(&format!("{table}{further}compression = 'none'\n"));
        case.trades_over_days("trades", "2024-03-10", ROWS, DAYS);
        let gate = case.gate("gate");
        let peak = limited_pass(&case, LIMIT, &gate, &format!("remember={}", gate.pause()));
        let bytes: u64 = case.target("trades").files_on_disk().iter().map(|file| file.metadata().unwrap().len()).sum();
        println!("{name}: {ROWS} trades, {bytes} bytes, peak {peak} kB");
        assert!(peak < LIMIT_RESIDENT_KB, "{name}: {peak} kB");
        succeeds_once(&case, name);
    });
}

/// Parts of several files of two tables are on their way at once.
#[test]
fn a_pass_over_two_tables_side_by_side_into_s3_fits_into_96_megabytes() {
    let case = Case::on_lake("memory");
    let mut config = String::new();
    for table in ["one", "two"] {
        case.bronze(table);
        config += &format!(
            "[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'exchange_timestamp'\n\
             partition_by = ['day(exchange_timestamp)']\ncompression = 'none'\n"
        );
    }
    case.config(&config);
    case.init_tables();
    for table in ["one", "two"] {
        case.trades_over_days(table, "2024-03-10", ROWS, 2);
    }
    let gate = case.gate("gate");
    let peak = limited_pass(&case, LIMIT_OF_TWO, &gate, &format!("remember={}@2", gate.pause()));
    let files: Vec<u64> = ["one", "two"]
        .iter()
        .flat_map(|table| case.target(table).files_on_disk())
        .map(|file| file.metadata().unwrap().len())
        .collect();
    println!("two tables into S3: {} trades, {files:?} bytes, peak {peak} kB", 2 * ROWS);
    assert!(files.len() == 4 && files.iter().all(|bytes| *bytes > 20 << 20), "{files:?}");
    assert!(peak < LIMIT_OF_TWO >> 10, "{peak} kB");
    for table in ["one", "two"] {
        let wanted = case.sql(&format!("{HASH_OF_BRONZE} {table}"));
        assert_eq!(case.target(table).icebergs(HASH_OF_BRONZE), wanted, "{table}");
    }
}

/// A pass that may not have more memory, and waits at a failpoint; the kilobytes that were resident at most by then, without the pages of files.
fn limited_pass(case: &Case, limit: u64, gate: &Gate, failpoints: &str) -> u64 {
    let pass = case.command(&["run"]);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--data={limit}")).arg(pass.get_program()).args(pass.get_args());
    limited.envs(pass.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.current_dir(case.folder()).env("K2_OFFLOAD_FAILPOINTS", failpoints);
    let mut pass = Running::start(&mut limited);
    gate.wait_for(&mut pass);
    let status = fs::read_to_string(format!("/proc/{}/status", pass.pid())).unwrap();
    gate.open();
    pass.wait().expect(0);
    kilobytes(&status, "VmHWM") - kilobytes(&status, "RssFile")
}

/// P26: of a million rows of one tick, whose hashes do not fit below the limit, a third is in memory at a time.
#[test]
fn p26_a_merge_of_many_rows_of_one_tick_fits_into_64_megabytes() {
    let (case, rows) = (Case::new("merge_memory"), ROWS);
    case.sql("CREATE TABLE ticks (ts DateTime, n UInt32) ENGINE = MergeTree ORDER BY n");
    case.sql(&format!("INSERT INTO ticks SELECT '2024-03-10 12:00:00', number FROM numbers({rows})"));
    let defaults = "[defaults]\nsettle_delay = '0s'\nparallel_tables = 1\nmerge_memory = '32MB'\n";
    case.config(&format!("{defaults}[[table]]\nsource = 'ticks'\ntarget = 'cold.ticks'\ncursor = 'ts'\n"));
    case.init_tables();
    case.pass();
    case.sql(&format!("INSERT INTO ticks SELECT '2024-03-10 12:00:00', {rows} + number FROM numbers(7)"));
    case.run(&["watermark", "reset", "--table", "ticks", "--yes", "--to-earliest"]).expect(0);
    let pass = case.command(&["--format", "json", "run"]);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--data={LIMIT}")).arg(pass.get_program()).args(pass.get_args());
    let merged = Running::start(limited.current_dir(case.folder())).wait().expect(0).json();
    assert_eq!(only_table(&merged)["rows_written"], 7, "{merged:#}");
    assert_eq!(case.target("ticks").icebergs("SELECT uniqExact(n), count() FROM"), format!("{0}\t{0}", rows + 7));
}

/// Every row must be there, and the next pass find nothing.
fn succeeds_once(case: &Case, name: &str) {
    assert_eq!(PLAIN.hash_of_target(case), case.sql(&format!("{HASH_OF_BRONZE} {}", wanted(name))), "{name}");
    assert_eq!(case.pass_one()["status"], "nothing");
}

/// Of trades with one key, equal in every column, one leaves.
fn wanted(name: &str) -> &'static str {
    if name == "key" { "(SELECT DISTINCT * FROM trades)" } else { "trades" }
}

fn kilobytes(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.strip_suffix("kB"));
    value.unwrap_or_else(|| panic!("no {name} in {status}")).trim().parse().unwrap()
}
