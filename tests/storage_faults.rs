//! Disks that are full or read-only, files where folders should be, and a catalog that somebody holds: the pass says which file it was, leaves
//! nothing half done, and tables that lie elsewhere are done.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use support::{Case, Disk, Output, TRADES, fails, table_of};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];
/// Parquet of more than twice what is held back before the footer.
const MANY_TRADES: u64 = 100_000;
const COUNT: &str = "SELECT count() FROM";

/// Two tables, one after the other: `cold.trades` in a warehouse on a small disk, `cold.elsewhere` in one that works.
fn on_small_disk(name: &str) -> (Case, Disk) {
    let case = Case::new(name);
    let disk = Disk::mount(case.path("small"));
    case.bronze("trades");
    case.bronze("elsewhere");
    case.config_file("offload.toml", "", "[catalog]\nwarehouse = 'small'\n", TRADES);
    case.init_tables();
    let elsewhere = TRADES.replace("'trades'", "'elsewhere'").replace("cold.trades", "cold.elsewhere");
    case.config(&format!("{TRADES}{elsewhere}layer = 'second'\n"));
    case.init_tables();
    (case, disk)
}

/// `cold.trades` must fail with exit code 1, be as before, and give an error and a hint that say `texts`; `cold.elsewhere` gets its rows.
fn only_the_small_disk_fails(case: &Case, texts: &[&str], pass: impl FnOnce() -> Output) {
    let target = case.target("trades");
    let before = target.state();
    let next_day = case.sql("SELECT toDate('2024-03-10') + intDiv(count(), 100) FROM elsewhere");
    case.trades("elsewhere", &next_day, 100);
    let document = pass().expect(1).keeps_back(&["left behind", "was left"]).json();
    fails(table_of(&document, "cold.trades"), "unavailable", texts);
    assert_eq!((target.state(), target.icebergs(COUNT).as_str()), (before, "0"));
    assert_eq!(table_of(&document, "cold.elsewhere")["rows_written"], 100);
}

/// The next pass must bring everything.
fn is_made_good(case: &Case) {
    case.pass();
    for table in ["trades", "elsewhere"] {
        case.target(table).holds_all(table);
        case.target(table).has_no_other_files();
    }
}

#[test]
fn a_full_warehouse_fails_its_own_table_wherever_the_space_ends() {
    let (case, disk) = on_small_disk("full");
    case.trades("trades", "2024-03-10 00:00:00", MANY_TRADES);
    // In the first page, in the middle of the stream, in what was held back to its end.
    for free in [0, 200 << 10, 2 << 20] {
        disk.fill_but(free);
        let texts = ["write /", "/small/cold/trades/data/", ".parquet: No space left", "disk is full"];
        only_the_small_disk_fails(&case, &texts, || case.run(&JSON_RUN));
        disk.free();
    }
    is_made_good(&case);
}

#[test]
fn a_warehouse_that_is_full_at_the_commit_fails_its_own_table() {
    let (case, disk) = on_small_disk("full_commit");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let texts = ["`cold.trades`: write /", "/small/cold/trades/metadata/", "No space left", "disk is full"];
    only_the_small_disk_fails(&case, &texts, || {
        let gate = case.gate("gate");
        let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
        gate.wait_for(&mut pass);
        disk.fill_but(0);
        gate.open();
        pass.wait()
    });
    disk.free();
    is_made_good(&case);
}

#[test]
fn a_read_only_warehouse_fails_its_own_table() {
    let (case, disk) = on_small_disk("read_only");
    case.trades("trades", "2024-03-10 00:00:00", 100);
    disk.make_read_only();
    let texts = ["create /", "/small/cold/trades/data/", "Read-only file system", "must be writable"];
    only_the_small_disk_fails(&case, &texts, || case.run(&JSON_RUN));
    disk.make_writable();
    is_made_good(&case);
}

#[test]
fn tables_are_not_created_by_halves() {
    let case = Case::new("halves");
    let disk = Disk::mount(case.path("small"));
    case.bronze("trades");
    let config = |warehouse: &str| {
        case.config_file("offload.toml", "", &format!("[catalog]\nwarehouse = '{warehouse}'\n"), TRADES);
    };
    let in_vain = |code: i32, kind: &str, texts: &[&str]| {
        let document = case.run(&["--format", "json", "init-tables"]).expect(code).json();
        fails(table_of(&document, "cold.trades"), kind, texts);
        let rows =
            case.target("trades").catalog().query_row("SELECT count(*) FROM iceberg_tables", [], |row| row.get(0));
        assert_eq!(rows, Ok(0));
        assert_eq!(
            support::files_below(&case.path("small")).iter().filter(|file| !file.ends_with("filler")).count(),
            0
        );
    };
    config("small");
    disk.fill_but(0);
    in_vain(1, "unavailable", &["`cold.trades`", "/small/cold/trades/metadata/", "No space left", "disk is full"]);
    disk.free();
    disk.make_read_only();
    in_vain(1, "unavailable", &["`cold.trades`", "/small/cold/trades/metadata/", "Read-only", "must be writable"]);
    disk.make_writable();
    fs::write(case.path("file"), "").unwrap();
    config("file");
    in_vain(2, "config", &["`cold.trades`", "/file/cold/trades/metadata/", "Not a directory", "configuration"]);
    config("small");
    case.init_tables();
    assert_eq!(case.pass_one()["status"], "nothing");
}

/// A case whose catalog lies on a small disk.
fn with_catalog_on_small_disk(name: &str) -> (Case, Disk) {
    let case = Case::new(name);
    let disk = Disk::mount(case.path("small"));
    symlink(disk.path().join("catalog.db"), case.path("catalog.db")).unwrap();
    case.bronze("trades");
    case.config(TRADES);
    (case, disk)
}

#[test]
fn a_full_disk_of_the_catalog_leaves_the_target_as_it_was() {
    let (case, disk) = with_catalog_on_small_disk("full_catalog");
    disk.fill_but(0);
    case.run(&["init-tables"]).expect(1).says(&["catalog.db", "full", "hint: the disk of the catalog"]);
    assert!(!case.path("warehouse").exists());
    disk.free();
    case.init_tables();
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let target = case.target("trades");
    let before = target.state();
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    disk.fill_but(0);
    gate.open();
    let document = pass.wait().expect(1).json();
    fails(table_of(&document, "cold.trades"), "unavailable", &["catalog.db", "full", "disk of the catalog"]);
    assert_eq!((target.state(), target.icebergs(COUNT).as_str()), (before, "0"));
    disk.free();
    case.pass();
    target.holds_all("trades");
    target.has_no_other_files();
}

#[test]
fn a_read_only_catalog_can_be_looked_at_and_nothing_else() {
    let (case, disk) = with_catalog_on_small_disk("read_only_catalog");
    case.init_tables();
    case.trades("trades", "2024-03-10 00:00:00", 100);
    let before = support::files_below(&case.path("warehouse"));
    disk.make_read_only();
    case.run(&["run"]).expect(1).says(&["/small/catalog.db", "hint: ", "writable"]);
    case.run(&["watermark", "show"]).expect(0);
    case.run(&["init-tables"]).expect(0).says(&["exists"]);
    case.run(&["run", "--dry-run"]).expect(0).says(&["would offload 100 rows"]);
    case.config(&TRADES.replace("cold.trades", "cold.other"));
    case.run(&["init-tables"]).expect(1).says(&["cold.other", "catalog.db", "hint: ", "writable"]);
    assert_eq!(support::files_below(&case.path("warehouse")), before);
    disk.make_writable();
    case.config(TRADES);
    assert_eq!(case.pass_one()["rows_written"], 100);
}

#[test]
fn a_state_cache_that_cannot_be_written_stops_nobody() {
    let case = Case::new("state");
    let disk = Disk::mount(case.path("small"));
    case.bronze("trades");
    case.config_file("offload.toml", "", "[state]\npath = 'small/state.db'\n", TRADES);
    case.init_tables();
    let passes = |day: &str, told: &str| {
        case.trades("trades", day, 100);
        let output = case.run(&JSON_RUN).expect_warning("the state cache cannot be").says(&[told]);
        assert_eq!(support::only_table(&output.json())["rows_written"], 100);
        case.run(&["watermark", "show"]).says(&["cold.trades"]);
    };
    disk.fill_but(0);
    passes("2024-03-10", "full");
    disk.free();
    disk.make_read_only();
    passes("2024-03-11", "small/state.db");
    disk.make_writable();
    case.config_file("offload.toml", "", "[state]\npath = 'small'\n", TRADES);
    passes("2024-03-12", "/small");
    case.config_file("offload.toml", "", "[state]\npath = 'offload.toml/state.db'\n", TRADES);
    passes("2024-03-13", "offload.toml/state.db");
    case.target("trades").holds_all("trades");
}

#[test]
fn a_lock_that_cannot_be_taken_is_told() {
    let case = Case::with_trades("locks");
    case.trades("trades", "2024-03-10", 100);
    let before = case.target("trades").state();
    let disk = Disk::mount(case.path("catalog.db.locks"));
    disk.make_read_only();
    case.run(&["run"]).expect(1).says(&["lock /", "/catalog.db.locks/", "cold.trades.lock", "hint: ", "writable"]);
    drop(disk);
    fs::remove_dir(case.path("catalog.db.locks")).unwrap();
    fs::write(case.path("catalog.db.locks"), "").unwrap();
    case.run(&["run"]).expect(2).says(&["/catalog.db.locks/", "hint: ", "no such file or folder"]);
    assert_eq!(case.target("trades").state(), before);
    fs::remove_file(case.path("catalog.db.locks")).unwrap();
    assert_eq!(case.pass_one()["rows_written"], 100);
}

#[test]
fn p19_files_that_are_no_catalog_are_refused_by_name() {
    let case = Case::with_trades("no_catalog");
    fs::write(case.path("text.db"), "certainly no SQLite database ".repeat(100)).unwrap();
    fs::create_dir(case.path("folder.db")).unwrap();
    rusqlite::Connection::open(case.path("other.db")).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
    for file in ["text.db", "folder.db", "other.db"] {
        case.config_file("bad.toml", "", &format!("[catalog]\nuri = 'sqlite:///{file}'\n"), TRADES);
        let before = fs::read(case.path(file)).ok();
        for command in [&["run"][..], &["watermark", "show"]] {
            case.run_with("bad.toml", command).expect(2).says(&[file, "hint: ", "catalog.uri"]);
        }
        if file != "other.db" {
            case.run_with("bad.toml", &["init-tables"]).expect(2).says(&[file, "hint: ", "catalog.uri"]);
        }
        assert_eq!(fs::read(case.path(file)).ok(), before, "{file} was changed");
    }
    assert_eq!(support::files_below(&case.path("warehouse")), [case.target("trades").metadata_file()]);
}

#[test]
fn p19_a_catalog_that_somebody_holds_for_good_is_waited_for_once() {
    let case = Case::with_trades("held");
    case.bronze("others");
    case.config(&format!("{TRADES}{}", TRADES.replace("trades'", "others'")));
    case.init_tables();
    case.trades("trades", "2024-03-10", 100);
    case.trades("others", "2024-03-10", 100);
    let targets = [case.target("trades"), case.target("others")];
    let before = [targets[0].state(), targets[1].state()];
    let holder = targets[0].catalog();

    // Nobody may read: nothing is done.
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let calls = [&["run"][..], &["init-tables"], &["watermark", "show"]];
    for call in calls.map(|arguments| case.spawn("offload.toml", "", arguments)) {
        let output = call.wait().expect(1).says(&["catalog.db", "database is locked", "hint: another process holds"]);
        output.keeps_back(&["trying again"]);
    }
    // Nobody may write: rows are read, and not committed.
    holder.execute_batch("ROLLBACK; BEGIN IMMEDIATE").unwrap();
    let output = case.run(&JSON_RUN).expect(1);
    assert!(!output.stderr.contains("trying again") && !output.stderr.contains("left"), "{}", output.all());
    let document = output.json();
    for table in ["cold.trades", "cold.others"] {
        fails(table_of(&document, table), "busy", &["catalog.db", "another process holds"]);
    }
    holder.execute_batch("ROLLBACK").unwrap();
    assert_eq!([targets[0].state(), targets[1].state()], before);
    case.pass();
    targets[0].holds_all("trades");
    targets[1].holds_all("others");
}
