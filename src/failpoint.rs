//! Every place where a test can make a pass fail, die or wait.
//!
//! Compiled in debug builds only: in a release build [`hit`] is an empty function. A test names points and actions in the
//! variable `K2_OFFLOAD_FAILPOINTS`, for example `counted=pause:DIR;commit-swap=reply-lost`. An action acts at every hit of its point, with
//! `@N` behind it at the Nth hit of the process alone: `file-write=kill@3`.

use std::io;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Result;
#[cfg(debug_assertions)]
use crate::error::{Classify, Error, Kind};

/// A place in a pass, in the order in which a pass comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failpoint {
    /// Before the lock of the table is taken.
    Guard,
    /// Before the target's state is read.
    Target,
    /// Before the source is asked for its clock, newest row and counts; `shift` moves the clock in its answer.
    Facts,
    /// After the window is planned, before it is cut into chunks and counted.
    Planned,
    /// After the rows of the chunk were counted, before the first SELECT.
    Counted,
    /// Before a file is created: data files first, in the commit manifest, manifest list and metadata.
    FileCreate,
    /// Before bytes are written to such a file.
    FileWrite,
    /// Before such a file is made durable.
    FileSync,
    /// After the data files are durable, before the commit.
    Written,
    /// The compare-and-swap itself: all of the commit's files are durable.
    CommitSwap,
    /// In the catalog's transaction, before its COMMIT.
    CommitSwapped,
    /// After the swap, before the files that it let go are deleted.
    CommitClean,
    /// After the commit.
    Committed,
    /// Before the end of the pass goes into the state cache.
    Remember,
}

/// All points, for tests that iterate them.
pub const ALL: [(Failpoint, &str); 14] = [
    (Failpoint::Guard, "guard"),
    (Failpoint::Target, "target"),
    (Failpoint::Facts, "facts"),
    (Failpoint::Planned, "planned"),
    (Failpoint::Counted, "counted"),
    (Failpoint::FileCreate, "file-create"),
    (Failpoint::FileWrite, "file-write"),
    (Failpoint::FileSync, "file-sync"),
    (Failpoint::Written, "written"),
    (Failpoint::CommitSwap, "commit-swap"),
    (Failpoint::CommitSwapped, "commit-swapped"),
    (Failpoint::CommitClean, "commit-clean"),
    (Failpoint::Committed, "committed"),
    (Failpoint::Remember, "remember"),
];

/// What a hit point asks its caller to do; `error`, `kill` and `pause:DIR` are carried out inside [`hit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    None,
    /// Leave this step out.
    Skip,
    /// The request got lost: do not do it, and report an unknown outcome.
    RequestLost,
    /// The reply got lost: do it, and report an unknown outcome.
    ReplyLost,
    /// What a clock says is to be moved by so many microseconds.
    Shift(i64),
    /// Fail as if the disk were full.
    Full,
}

/// Like [`hit`], where an error is one of the disk (EIO, ENOSPC).
pub fn hit_disk(point: Failpoint) -> io::Result<()> {
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    match hit(point) {
        Ok(Action::Full) => Err(io::Error::from_raw_os_error(ENOSPC)),
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::from_raw_os_error(EIO)),
    }
}

/// Does what the environment asks for at `point`.
#[cfg(not(debug_assertions))]
pub fn hit(_point: Failpoint) -> Result<Action> {
    Ok(Action::None)
}

/// Does what the environment asks for at `point`.
#[cfg(debug_assertions)]
pub fn hit(point: Failpoint) -> Result<Action> {
    let Ok(list) = std::env::var("K2_OFFLOAD_FAILPOINTS") else { return Ok(Action::None) };
    let Some(position) = ALL.iter().position(|(p, _)| *p == point) else { return Ok(Action::None) };
    let (name, number) = (ALL[position].1, HITS[position].fetch_add(1, Ordering::Relaxed) + 1);
    let actions = list.split(';').filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
    let Some(action) = actions.filter_map(|action| at_hit(action, number)).next() else { return Ok(Action::None) };
    match action.split_once(':').unwrap_or((action, "")) {
        ("error", _) => Err(Error::new(Kind::Unavailable, format!("failpoint {name}"))),
        ("kill", _) => kill_9(),
        ("pause", dir) => pause(std::path::Path::new(dir)),
        ("skip", _) => Ok(Action::Skip),
        ("request-lost", _) if once() => Ok(Action::RequestLost),
        ("request-lost", _) => Ok(Action::None),
        ("request-lost-always", _) => Ok(Action::RequestLost),
        ("reply-lost", _) => Ok(Action::ReplyLost),
        ("full", _) => Ok(Action::Full),
        ("shift", seconds) => {
            let seconds: i64 = seconds.parse().or_error(Kind::Config, "read the seconds of a shift")?;
            Ok(Action::Shift(seconds * 1_000_000))
        }
        _ => Err(Error::new(Kind::Config, format!("unknown action of failpoint {name}: {action}"))),
    }
}

/// How often each point was hit.
#[cfg(debug_assertions)]
static HITS: [AtomicU32; ALL.len()] = [const { AtomicU32::new(0) }; ALL.len()];

/// The action, if it is meant for this hit.
#[cfg(debug_assertions)]
fn at_hit(action: &str, number: u32) -> Option<&str> {
    match action.rsplit_once('@').and_then(|(action, at)| Some((action, at.parse::<u32>().ok()?))) {
        Some((action, at)) => (at == number).then_some(action),
        None => Some(action),
    }
}

/// Whether this is the first call in the process.
#[cfg(debug_assertions)]
fn once() -> bool {
    static CALLED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    !CALLED.swap(true, Ordering::Relaxed)
}

#[cfg(debug_assertions)]
fn kill_9() -> Result<Action> {
    let killed = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    Err(Error::new(Kind::Internal, format!("survived kill -9: {killed:?}")))
}

/// Says in `dir` that this process has arrived, then waits until a test creates the file `go` there.
#[cfg(debug_assertions)]
fn pause(dir: &std::path::Path) -> Result<Action> {
    std::fs::write(dir.join(format!("{}.arrived", std::process::id())), "").or_error(Kind::Internal, "pause")?;
    while !dir.join("go").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(Action::None)
}
