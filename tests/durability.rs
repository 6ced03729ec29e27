//! Durable before visible (invariant 11, protocol.md P18), as the kernel sees it: strace writes down what a pass does.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Case, Running};

/// Positions in the trace. A call that waited counts from where it began, unless its end is what matters (sync).
#[derive(Debug, Default)]
struct Trace {
    /// Creation of files and directories.
    created: BTreeMap<PathBuf, usize>,
    /// Last write to a file.
    written: BTreeMap<PathBuf, usize>,
    /// Ends of successful syncs of a file or directory.
    synced: BTreeMap<PathBuf, Vec<usize>>,
    /// First write to the catalog or its journal.
    first_write_to_catalog: Option<usize>,
}

#[test]
fn p18_every_file_and_its_directory_is_synced_before_the_catalog_is_written() {
    let has_strace = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    assert!(has_strace, "no strace for the test of durability: apt-get install strace");
    let case = Case::with_trades("durable");
    case.trades("trades", "2024-03-09 23:59:00", 500);
    // The first pass creates data/ and the directories of the days, the second one a directory beside them.
    for start in ["2024-03-10 12:00:00", "2024-03-11 12:00:00"] {
        case.trades("trades", start, 500);
        let before = support::files_below(&case.path("warehouse"));
        let trace = traced_pass(&case);
        let swap = trace.first_write_to_catalog.expect("the pass never wrote to the catalog");
        let files = support::files_below(&case.path("warehouse"));
        // The version hint comes after the swap: no reader of the catalog knows of it.
        let new: Vec<_> =
            files.iter().filter(|file| !before.contains(file) && !file.ends_with("version-hint.text")).collect();
        for suffix in [".parquet", "-m0.avro", ".metadata.json"] {
            assert!(new.iter().any(|file| file.to_string_lossy().ends_with(suffix)), "no new {suffix} in {new:#?}");
        }
        assert!(new.len() >= 4, "data file, manifest, manifest list, metadata: {new:#?}");
        for file in new {
            let last_write =
                trace.written.get(file).unwrap_or_else(|| panic!("no write to {} was seen", file.display()));
            is_synced_between(&trace, file, *last_write, swap);
        }
        for (created, position) in trace.created.iter().filter(|(_, position)| **position < swap) {
            if created.starts_with(case.path("warehouse")) {
                is_synced_between(&trace, created.parent().unwrap(), *position, swap);
            }
        }
    }
}

/// Nobody may be told of a commit that a power cut takes back: the pass itself says that it is done, and ClickHouse may drop the rows.
#[test]
fn invariant_11_the_catalogs_swap_is_synced_before_a_pass_says_so() {
    let case = Case::with_trades("swap");
    case.trades("trades", "2024-03-10 12:00:00", 100);
    let trace = traced_pass(&case);
    let written = |name: &str| trace.written.get(&case.path(name)).copied().unwrap_or_else(|| panic!("no {name}"));
    is_synced_between(&trace, &case.path("catalog.db-journal"), 0, written("catalog.db"));
    is_synced_between(&trace, &case.path("catalog.db"), written("catalog.db"), usize::MAX);
}

fn is_synced_between(trace: &Trace, path: &Path, after: usize, before: usize) {
    let synced = trace.synced.get(path).is_some_and(|ends| ends.iter().any(|end| (after..before).contains(end)));
    assert!(
        synced,
        "{} is not synced between line {after} and the first write to the catalog in line {before}: {:?}",
        path.display(),
        trace.synced.get(path)
    );
}

fn traced_pass(case: &Case) -> Trace {
    let log = case.path("trace");
    let calls = "trace=fsync,fdatasync,open,openat,creat,mkdir,mkdirat,write,writev,pwrite64,pwritev,rename,renameat,renameat2,ftruncate";
    let pass = case.command(&["run"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-s", "0", "-e", calls, "-o"]).arg(&log).arg(pass.get_program()).args(pass.get_args());
    Running::start(&mut strace).wait().expect(0);
    let text = fs::read_to_string(&log).unwrap();
    parse(&text, case.folder())
}

/// Reads the lines of `strace -f -y`. A call that another thread interrupts stands in two lines.
fn parse(text: &str, folder: &Path) -> Trace {
    let mut trace = Trace::default();
    let mut unfinished: BTreeMap<&str, (String, usize)> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (begun.to_owned(), number));
        } else if let Some((_, rest)) = call.split_once(" resumed>") {
            let (begun, start) = unfinished.remove(thread).unwrap_or_default();
            note(&mut trace, folder, &format!("{begun}{rest}"), start, number);
        } else {
            note(&mut trace, folder, call, number, number);
        }
    }
    trace
}

fn note(trace: &mut Trace, folder: &Path, call: &str, start: usize, end: usize) {
    let Some((name, rest)) = call.split_once('(') else { return };
    let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
    if result.starts_with('-') || result.starts_with('?') {
        return;
    }
    let Some(path) = path_of(name, arguments, folder) else { return };
    match name {
        "fsync" | "fdatasync" => trace.synced.entry(path).or_default().push(end),
        "mkdir" | "mkdirat" => _ = trace.created.insert(path, start),
        "open" | "openat" | "creat" => {
            if name == "creat" || arguments.contains("O_CREAT") {
                trace.created.insert(path, start);
            }
        }
        _ => {
            let of_catalog =
                ["catalog.db", "catalog.db-journal", "catalog.db-wal"].iter().any(|name| path == folder.join(name));
            if of_catalog {
                trace.first_write_to_catalog.get_or_insert(start);
            }
            trace.written.insert(path, start);
        }
    }
}

/// The path that a call is about: between quotes where it takes a name, between `<` and `>` where it takes a descriptor.
fn path_of(name: &str, arguments: &str, folder: &Path) -> Option<PathBuf> {
    let takes_name =
        name.starts_with("open") || name.starts_with("mkdir") || name.starts_with("rename") || name == "creat";
    let path = if takes_name { arguments.rsplit('"').nth(1)? } else { arguments.split_once('<')?.1.split_once('>')?.0 };
    Some(folder.join(path))
}
