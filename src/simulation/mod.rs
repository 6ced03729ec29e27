//! Two hosts, an operator and strangers at one table: random schedules of all that the protocol must stand, and the invariants as oracles.
//!
//! Everything is deterministic: source, catalog and data files are in memory, and a seed decides what happens between any two steps. Hosts have no lock in
//! common. Rows come in time, late, from the future, and equal to others; they expire; columns come; the clock jumps; hosts and commands die at any step;
//! swaps get lost, lose their answer, or arrive when nobody waits for them any more; watermarks are reset meanwhile; strangers compact, delete, put back, roll
//! back and expire.
//!
//! What decides is the product itself: plan, lower bound, cuts, the check of what was read, markers, late pieces, the rows that a merge adds, resets, the
//! comparison before a commit, the metadata that it makes with the snapshots that it lets go, what history says of our commits and of a lost one. The model
//! only moves rows, and walks through the steps in the order of `pass`, `commit` and `commands::reset`. Metadata is iceberg's own.
//!
//! A [`Mutant`] makes one decision wrong, and must be found: an oracle that finds no mutant proves nothing.
//!
//! Not in the model: keys, queries and aggregates, `reject_where`, several files of one partition, adoption, merges of parts that hide rows, ALTERs that move
//! rows, and catalogs that are put back to an old location.
#![allow(clippy::print_stdout)]

mod attempt;
mod host;
mod operator;
mod oracle;
mod schedule;
mod source;
mod strangers;
mod target;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::oracle::Broken;
use self::schedule::Schedule;

/// Schedules in which nothing may break, and in which each mutant must be found.
const SCHEDULES: u64 = 10_000;

/// A decision that is made wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// P13: a commit compares watermarks, and not commit-ids.
    EqualWatermark,
    /// P12: a commit without files changes the table's property, and makes no snapshot.
    PropertyOnly,
    /// P7: the rows of a chunk are counted after its SELECTs.
    CountAfter,
    /// P13: a merge requires its marker, and not the snapshot that it compared with.
    MergeOnMarker,
    /// P16: a merge requires its snapshot, and not the marker: the table may have been rolled back to just that.
    MergeOnSnapshot,
    /// P14: a commit is taken for rejected while the table is as it was.
    UndecidedIsRejected,
    /// P14: files are deleted where nobody knows whether their commit landed.
    DeleteUnknown,
    /// P16: the marker stands in snapshots only.
    NoProperty,
    /// P21: all columns are compared, also those that files of the target do not hold, and nothing else tells a row.
    ImagesOnly,
    /// P23: only growth leads to a merge.
    LateByGrowth,
}

/// The first seed: K2_TEST_SEED repeats what failed.
fn first_seed() -> u64 {
    let given = std::env::var("K2_TEST_SEED").ok().map(|text| text.parse().expect("K2_TEST_SEED is no number"));
    given.unwrap_or(1)
}

/// What a schedule breaks first.
fn broken_by(seed: u64, mutant: Option<Mutant>) -> Option<Broken> {
    Schedule::new(seed, mutant).run().err().map(|(broken, _)| broken)
}

/// The same schedule, told step by step.
fn told(seed: u64, mutant: Option<Mutant>) -> String {
    let mut schedule = Schedule::new(seed, mutant);
    schedule.trace = Some(String::new());
    let result = schedule.run();
    format!("{}\n{result:?}, K2_TEST_SEED={seed}", schedule.trace.unwrap_or_default())
}

/// The first schedule that breaks what is looked for; all cores search, and find the same.
fn search(mutant: Option<Mutant>, is_wanted: impl Fn(Broken) -> bool + Sync) -> Option<u64> {
    let first = first_seed();
    let (next, found) = (AtomicU64::new(first), Mutex::new(None::<u64>));
    let work = || {
        while found.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(SCHEDULES) {
                break;
            }
            if broken_by(seed, mutant).is_some_and(&is_wanted) {
                let mut found = found.lock().unwrap();
                *found = Some(found.map_or(seed, |other| other.min(seed)));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    found.into_inner().unwrap()
}

#[test]
fn random_schedules_break_no_invariant() {
    let started = Instant::now();
    if let Some(seed) = search(None, |_| true) {
        panic!("{}", told(seed, None));
    }
    println!("{SCHEDULES} schedules from K2_TEST_SEED={} in {:.1?}", first_seed(), started.elapsed());
}

/// The mutant breaks just this, sooner or later.
fn is_found(mutant: Mutant, wanted: Broken) {
    let seed = search(Some(mutant), |broken| broken == wanted);
    let seed = seed.unwrap_or_else(|| panic!("{mutant:?} broke nothing, K2_TEST_SEED={}", first_seed()));
    println!("{mutant:?}: {wanted:?}, found by schedule {}", seed - first_seed() + 1);
}

#[test]
fn p13_an_equal_watermark_in_place_of_the_commit_id_is_found() {
    is_found(Mutant::EqualWatermark, Broken::Doubled);
}

#[test]
fn p12_a_marker_without_a_snapshot_is_found() {
    is_found(Mutant::PropertyOnly, Broken::Watermark);
}

#[test]
fn p7_counting_after_the_select_is_found() {
    is_found(Mutant::CountAfter, Broken::Lost);
}

#[test]
fn p13_a_merge_without_the_snapshot_is_found() {
    is_found(Mutant::MergeOnMarker, Broken::Doubled);
}

#[test]
fn p16_a_merge_over_a_rollback_is_found() {
    is_found(Mutant::MergeOnSnapshot, Broken::Rollback);
}

#[test]
fn p14_undecided_taken_for_rejected_is_found() {
    is_found(Mutant::UndecidedIsRejected, Broken::File);
}

#[test]
fn p14_files_deleted_too_early_are_found() {
    is_found(Mutant::DeleteUnknown, Broken::File);
}

#[test]
fn p16_a_marker_in_snapshots_only_is_found() {
    is_found(Mutant::NoProperty, Broken::Marker);
}

#[test]
fn p21_columns_that_no_file_holds_are_found() {
    is_found(Mutant::ImagesOnly, Broken::Doubled);
}

#[test]
fn p23_growth_as_the_only_sign_of_late_rows_is_found() {
    is_found(Mutant::LateByGrowth, Broken::Lost);
}
