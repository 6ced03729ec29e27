//! Every place where a test can make a pass fail, die or wait.
//!
//! Compiled in debug builds only: in a release build [`hit`] is an empty function. A test names points and actions in the
//! variable `K2_OFFLOAD_FAILPOINTS`, for example `counted=pause:DIR;commit-swap=reply-lost`.

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
    /// After the rows of the chunk were counted, before the first SELECT.
    Counted,
    /// After the data files are durable, before the commit.
    Written,
    /// The compare-and-swap itself.
    CommitSwap,
    /// After the commit, before the state cache.
    Committed,
}

/// All points, for tests that iterate them.
pub const ALL: [(Failpoint, &str); 6] = [
    (Failpoint::Guard, "guard"),
    (Failpoint::Target, "target"),
    (Failpoint::Counted, "counted"),
    (Failpoint::Written, "written"),
    (Failpoint::CommitSwap, "commit-swap"),
    (Failpoint::Committed, "committed"),
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
    let Some((_, name)) = ALL.iter().find(|(p, _)| *p == point) else { return Ok(Action::None) };
    let Some(action) = list.split(';').find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')) else {
        return Ok(Action::None);
    };
    match action.split_once(':').unwrap_or((action, "")) {
        ("error", _) => Err(Error::new(Kind::Unavailable, format!("failpoint {name}"))),
        ("kill", _) => kill_9(),
        ("pause", dir) => pause(std::path::Path::new(dir)),
        ("skip", _) => Ok(Action::Skip),
        ("request-lost", _) if once() => Ok(Action::RequestLost),
        ("request-lost", _) => Ok(Action::None),
        ("request-lost-always", _) => Ok(Action::RequestLost),
        ("reply-lost", _) => Ok(Action::ReplyLost),
        _ => Err(Error::new(Kind::Config, format!("unknown action of failpoint {name}: {action}"))),
    }
}

/// Whether this is the first call in the process.
#[cfg(debug_assertions)]
fn once() -> bool {
    static CALLED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    !CALLED.swap(true, std::sync::atomic::Ordering::Relaxed)
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
