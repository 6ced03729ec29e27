//! The state cache: what passes leave for people and monitoring, and the history of passes.
//!
//! A SQLite file that may be deleted at any time: nothing in it feeds a plan (protocol.md P20). So a cache that is locked, full, damaged or of a
//! newer version is one warning, never a reason to stop a pass, which then goes on without it; and no pass waits for it to reach the disk.

mod incidents;
mod read;
mod record;
mod records;
mod schema;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};

pub use self::incidents::Incident;
pub use self::read::{Day, Filter, LastPass, PastChunk, PastPass, Recent, TableState, Totals};
pub use self::record::{Audited, Finished};
pub use self::records::{Ledger, Record, Records};

use crate::error::{Classify, Kind, Result};
use crate::storage::try_folder;

/// How long a statement waits for another process. Passes hold the file for milliseconds; whoever holds it longer is not waited for again.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The open cache; without a connection it remembers nothing.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    connection: Option<Connection>,
    /// What was wrong first; after it nobody is waited for any more.
    problem: RefCell<Option<String>>,
}

impl State {
    /// Opens the cache, or goes on without it.
    pub fn open(path: &Path) -> Self {
        let mut state = Self { path: path.to_owned(), connection: None, problem: RefCell::new(None) };
        match open(path) {
            Ok(connection) => state.connection = Some(connection),
            Err(error) => state.failed("cannot be used, going on without it", &error),
        }
        state
    }

    /// Opens the cache if it is there. A screen does not make it: it would be the file of whoever looks, and passes could not write it.
    pub fn open_to_read(path: &Path) -> Self {
        let state = |connection| Self { path: path.to_owned(), connection, problem: RefCell::new(None) };
        match (path.try_exists(), open_read_only(path)) {
            (Ok(false), _) => state(None),
            (_, Ok(connection)) => state(Some(connection)),
            // Of an older version, or not to be read at all.
            (_, Err(_)) => Self::open(path),
        }
    }

    /// Why the cache could not be read or written; `None` as long as it could.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this differs from the drift that was told last, empty for none; with `remember` it is what was told last from now on.
    pub fn tell_drift(&self, target: &str, drift: &str, remember: bool) -> bool {
        let query = "SELECT told_drift FROM target_state WHERE target = ?1";
        let told = |connection: &Connection| {
            connection.prepare_cached(query)?.query_row([target], |row| row.get::<_, String>(0)).optional()
        };
        let is_new = self.read(told).flatten().unwrap_or_default() != drift;
        if is_new && remember {
            self.write(|transaction| {
                transaction.execute("UPDATE target_state SET told_drift = ?2 WHERE target = ?1", [target, drift])
            });
        }
        is_new
    }

    /// The watermark of `target` was moved by hand: how far passes have looked no longer says anything.
    pub fn forget_checked_to(&self, target: &str) {
        self.write(|transaction| {
            transaction
                .execute("UPDATE target_state SET checked_to = NULL, checked_to_at = NULL WHERE target = ?1", [target])
        });
    }

    /// Whether it was written.
    fn write(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<usize>) -> bool {
        let Some(connection) = &self.connection else { return false };
        let written = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
            .and_then(|transaction| work(&transaction).and_then(|_| transaction.commit()));
        written.inspect_err(|error| self.failed("cannot be written", error)).is_ok()
    }

    /// Whoever held it may have let it go: waits for it once more.
    fn be_patient(&self) {
        self.wait(BUSY_TIMEOUT);
    }

    fn wait(&self, limit: Duration) {
        if let Some(Err(error)) = self.connection.as_ref().map(|connection| connection.busy_timeout(limit)) {
            tracing::debug!(%error, "the busy timeout cannot be set");
        }
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Option<T> {
        let found = work(self.connection.as_ref()?);
        found.inspect_err(|error| self.failed("cannot be read", error)).ok()
    }

    /// Said once: more tables would say the same.
    fn failed(&self, what: &str, error: &dyn std::fmt::Display) {
        self.wait(Duration::ZERO);
        let mut problem = self.problem.borrow_mut();
        if problem.is_none() {
            tracing::warn!(path = %self.path.display(), %error, "the state cache {what}");
            *problem = Some(format!("the state cache {} {what}: {error}", self.path.display()));
        }
    }
}

/// Opens a cache of this version for who may not write it. Without its log and without leave to make one, SQLite reads it as a file that nobody
/// changes.
fn open_read_only(path: &Path) -> anyhow::Result<Connection> {
    let uri = url::Url::from_file_path(path).map_err(|()| anyhow::anyhow!("it is no absolute path"))?;
    let open = |how| -> anyhow::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(format!("{uri}?{how}"), flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        anyhow::ensure!(schema::version(&connection)? == schema::VERSION, "it is of another version");
        Ok(connection)
    };
    open("mode=ro").or_else(|_| open("immutable=1"))
}

fn open(path: &Path) -> anyhow::Result<Connection> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // With a write-ahead log no commit waits for an fsync; where it cannot be had now, a later pass tries again.
    let _ = connection.pragma_update(None, "journal_mode", "wal");
    connection.pragma_update(None, "synchronous", "normal")?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Tries whether passes can use the cache, which may not exist yet; changes nothing.
pub fn try_cache(path: &Path) -> Result<()> {
    if !path.exists() {
        return try_folder(path.parent().unwrap_or(path));
    }
    let tried = || -> anyhow::Result<()> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let (found, known) = (schema::version(&connection)?, schema::VERSION);
        anyhow::ensure!(found <= known, "its version is {found}, this program knows {known}");
        let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?;
        transaction.execute_batch("CREATE TABLE k2_offload_try (x)")?;
        Ok(transaction.rollback()?)
    };
    tried().or_error(Kind::Unavailable, format!("use the state cache {}", path.display())).map_err(|error| {
        error.hint(
            "passes go on without it, and `status` and metrics tell less; delete it, or make it and its folder writable",
        )
    })
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, Utc};
    use tempfile::TempDir;

    use super::*;
    use crate::clock::rfc3339;
    use crate::config::Config;
    use crate::cursor::Tick;
    use crate::error::{Error, Kind};
    use crate::progress::Progress;
    use crate::report::RunTable;

    const STARTED: &str = "2026-11-20T10:00:00.000Z";
    const KEEP: Duration = Duration::from_secs(90 * 24 * 60 * 60);

    fn cache() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        (folder, path)
    }

    /// A pass over `c.t` that began at `started_at` ended so.
    fn pass(state: &State, started_at: &str, checked_to: Option<Tick>, error: Option<Kind>, rows_written: u64) {
        let text = "[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n";
        let config = Config::parse(text, Path::new("/"), |_| None).unwrap();
        let error = error.map(|kind| Error::new(kind, "no server"));
        let report = Progress::default().report(&config.tables[0], error.as_ref(), 7);
        let report = RunTable { rows_written, watermark: Some("2026-11-20T09:00:00Z".into()), ..report };
        state.begin("c.t", "r", started_at);
        state.finish(&Finished { run_id: "r", started_at, report: &report, checked_to });
        state.end_pass(7, KEEP);
    }

    #[test]
    fn remembers_failures_until_a_success() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        assert_eq!(state.tables().remove("c.t"), None);
        pass(&state, STARTED, None, Some(Kind::Unavailable), 0);
        pass(&state, STARTED, None, Some(Kind::Unavailable), 0);
        let failed = state.tables().remove("c.t").unwrap();
        assert_eq!((failed.status.as_str(), failed.failure_count, failed.last_duration_ms), ("failed", 2, Some(7)));
        pass(&state, STARTED, Some(9), None, 0);
        let succeeded = State::open(&path).tables().remove("c.t").unwrap();
        assert_eq!((succeeded.failure_count, succeeded.last_error, succeeded.checked_to), (0, None, Some(9)));
    }

    #[test]
    fn a_pass_that_is_stopped_or_skipped_is_no_failure() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        pass(&state, STARTED, None, Some(Kind::Stopped), 0);
        let stopped = state.tables().remove("c.t").unwrap();
        assert_eq!((stopped.status.as_str(), stopped.failure_count, stopped.last_error), ("initialized", 0, None));
        pass(&state, STARTED, Some(9), None, 0);
        let succeeded = state.tables().remove("c.t").unwrap();
        pass(&state, STARTED, None, Some(Kind::Stopped), 0);
        let last_pass_ms = state.tables().remove("c.t").unwrap().last_pass_ms;
        assert_eq!(state.tables().remove("c.t").unwrap(), TableState { last_pass_ms, ..succeeded });
        pass(&state, STARTED, None, Some(Kind::Refused), 0);
        pass(&state, STARTED, None, Some(Kind::Stopped), 0);
        let failed = state.tables().remove("c.t").unwrap();
        assert_eq!((failed.status.as_str(), failed.failure_count), ("failed", 1));
    }

    #[test]
    fn a_failed_pass_only_adds_to_what_was_looked_at() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        for (checked_to, expected) in
            [(None, None), (Some(5), Some(5)), (Some(3), Some(5)), (None, Some(5)), (Some(8), Some(8))]
        {
            pass(&state, STARTED, checked_to, Some(Kind::Refused), 0);
            assert_eq!(state.tables().remove("c.t").unwrap().checked_to, expected);
        }
    }

    #[test]
    fn the_history_keeps_passes_for_90_days() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        let days_ago = |days: i64| rfc3339(Utc::now() - TimeDelta::days(days));
        let (old, offload, idle) = (days_ago(89), days_ago(2), days_ago(1));
        pass(&state, &old, None, None, 8);
        pass(&state, &offload, None, None, 9);
        pass(&state, &idle, None, Some(Kind::Config), 0);
        pass(&state, &days_ago(91), None, None, 10);
        assert_eq!(state.last_offload("c.t"), Some((offload.clone(), 9)));
        let query =
            "SELECT started_at, status, error_kind, watermark FROM passes WHERE target = 'c.t' ORDER BY started_at";
        let reader = Connection::open(&path).unwrap();
        let mut rows = reader.prepare(query).unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
        let rows: Vec<(String, String, Option<String>, String)> = rows.map(Result::unwrap).collect();
        let entry = |at: &String, status: &str, kind: Option<&str>| {
            (at.clone(), status.to_owned(), kind.map(str::to_owned), "2026-11-20T09:00:00Z".to_owned())
        };
        assert_eq!(
            rows,
            [entry(&old, "nothing", None), entry(&offload, "nothing", None), entry(&idle, "failed", Some("config"))]
        );
    }

    #[test]
    fn drift_is_told_when_it_changes() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        state.begin("c.t", "r", STARTED);
        assert!(!state.tell_drift("c.t", "", true));
        assert!(state.tell_drift("c.t", "a", false) && state.tell_drift("c.t", "a", true));
        pass(&state, STARTED, None, None, 0);
        assert!(!State::open(&path).tell_drift("c.t", "a", true), "told before");
        assert!(state.tell_drift("c.t", "", true) && state.tell_drift("c.t", "a", true));
        assert!(state.tell_drift("c.other", "a", false));
    }

    /// As version 0.1 left it.
    #[test]
    fn a_cache_of_version_1_goes_on() {
        let (_folder, path) = cache();
        let old = Connection::open(&path).unwrap();
        old.execute_batch(
            "CREATE TABLE target_state (target TEXT PRIMARY KEY, status TEXT NOT NULL, checked_to INTEGER, last_success_at TEXT, \
             last_duration_ms INTEGER, failure_count INTEGER NOT NULL DEFAULT 0, last_error TEXT) WITHOUT ROWID; \
             INSERT INTO target_state VALUES ('c.t', 'failed', 9, '2026-11-20T10:00:00.000Z', 5, 3, 'no server'); \
             PRAGMA user_version = 1",
        )
        .unwrap();
        drop(old);
        let remembered = State::open(&path).tables().remove("c.t").unwrap();
        assert_eq!((remembered.checked_to, remembered.failure_count), (Some(9), 3));
        pass(&State::open(&path), STARTED, Some(10), None, 11);
        let remembered = State::open(&path).tables().remove("c.t").unwrap();
        assert_eq!((remembered.checked_to, remembered.failure_count), (Some(10), 0));
    }

    #[test]
    fn a_moment_of_lock_is_no_death() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        state.begin("c.t", "r", STARTED);
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        let text = "[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n";
        let config = Config::parse(text, Path::new("/"), |_| None).unwrap();
        let report = Progress::default().report(&config.tables[0], None, 7);
        let finished = Finished { run_id: "r", started_at: STARTED, report: &report, checked_to: Some(1) };
        assert!(!state.finish(&finished) && state.problem().is_some());
        assert!(!state.finish(&finished), "nobody waits for the holder again");
        drop(holder);
        state.finish_late([finished].into_iter());
        assert_eq!(State::open(&path).begin("c.t", "next", STARTED), None, "it has not died");
    }

    #[test]
    fn goes_on_without_a_usable_file() {
        let (_folder, path) = cache();
        std::fs::write(&path, "no database at all, but long enough to have a header of 100 bytes".repeat(9)).unwrap();
        let state = State::open(&path);
        pass(&state, STARTED, None, None, 0);
        assert_eq!(state.tables().remove("c.t"), None);
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(State::open(&path).tables().remove("c.t"), None);
    }
}
