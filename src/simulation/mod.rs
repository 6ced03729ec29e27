//! Two hosts, an operator and strangers at one table, in a deterministic model: source and catalog are in memory, and what happens, and when, is
//! decided by a seed. Plan, cuts, checks, markers, merges and the comparison before a commit are those of the product.

mod attempt;
mod host;
mod operator;
mod oracle;
mod source;
mod target;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::oracle::Broken;
use self::world::Schedule;

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
    /// P14: a commit is taken for rejected while the table is as it was.
    UndecidedIsRejected,
    /// P14: files are deleted where nobody knows whether their commit landed.
    DeleteUnknown,
    /// P16: the marker stands in snapshots only.
    NoProperty,
    /// P21: all columns are compared, also those that files of the target do not hold.
    CompareAllColumns,
    /// P21: columns that came later are compared with what others wrote anew, where they are null.
    TrustRewritten,
    /// P23: only growth leads to a merge.
    LateByGrowth,
}

/// Schedules of each test.
const SCHEDULES: u64 = 10_000;

/// The first seed: K2_TEST_SEED repeats what failed.
fn first_seed() -> u64 {
    let given = std::env::var("K2_TEST_SEED").ok().map(|text| text.parse().expect("K2_TEST_SEED is no number"));
    given.unwrap_or(1)
}

/// What a schedule breaks.
fn broken_by(seed: u64, mutant: Option<Mutant>) -> Option<Broken> {
    Schedule::new(seed, mutant).run().err().map(|(broken, _)| broken)
}

/// The schedule again, told.
fn tell(seed: u64, mutant: Option<Mutant>) -> String {
    let mut schedule = Schedule::new(seed, mutant);
    schedule.trace = Some(String::new());
    let result = schedule.run();
    format!("{}\nK2_TEST_SEED={seed} breaks: {result:?}", schedule.trace.unwrap_or_default())
}

/// Runs schedules on all cores; the first that breaks an invariant, and how many came before it.
fn first_broken(mutant: Option<Mutant>) -> Option<(u64, Broken)> {
    let first = first_seed();
    let next = AtomicU64::new(first);
    let found = Mutex::new(None);
    let work = || {
        while found.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + SCHEDULES {
                break;
            }
            let Some(broken) = broken_by(seed, mutant) else { continue };
            let mut found = found.lock().unwrap();
            if found.is_none_or(|(other, _)| seed < other) {
                *found = Some((seed, broken));
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
    if let Some((seed, _)) = first_broken(None) {
        panic!("{}", tell(seed, None));
    }
    println!("{SCHEDULES} schedules in {:.1?}", started.elapsed());
}

#[test]
fn mutants_are_found() {
    use Mutant as M;
    for mutant in [
        M::EqualWatermark,
        M::PropertyOnly,
        M::CountAfter,
        M::MergeOnMarker,
        M::UndecidedIsRejected,
        M::DeleteUnknown,
        M::NoProperty,
        M::CompareAllColumns,
        M::TrustRewritten,
        M::LateByGrowth,
    ] {
        match first_broken(Some(mutant)) {
            None => println!("{mutant:?}: not found"),
            Some((seed, broken)) => println!("{mutant:?}: {broken:?} after {}", seed - first_seed()),
        }
    }
}
