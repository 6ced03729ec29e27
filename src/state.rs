//! The state cache: what `watermark show` tells beside the truth, and the history of passes.
//!
//! A SQLite file that may be deleted at any time: nothing in it feeds a plan (protocol.md P20). So a cache that cannot be
//! read or written is a warning, never a reason to stop a pass; and no pass waits for it to reach the disk.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;

use crate::cursor::Tick;
use crate::error::{Classify, Kind, Result};
use crate::report::RunTable;
use crate::storage::try_folder;

/// What makes each version of the tables from the one before; `user_version` of SQLite counts them.
const MIGRATIONS: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS target_state (
        target TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        checked_to INTEGER,
        last_success_at TEXT,
        last_duration_ms INTEGER,
        failure_count INTEGER NOT NULL DEFAULT 0,
        last_error TEXT) WITHOUT ROWID;",
    "CREATE TABLE passes (
        run_id TEXT NOT NULL,
        target TEXT NOT NULL,
        started_at TEXT NOT NULL,
        duration_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        low TEXT,
        high TEXT,
        watermark TEXT,
        rows_read INTEGER NOT NULL,
        rows_written INTEGER NOT NULL,
        bytes_written INTEGER NOT NULL,
        files INTEGER NOT NULL,
        chunks INTEGER NOT NULL,
        error_kind TEXT,
        error TEXT,
        PRIMARY KEY (target, started_at, run_id)) WITHOUT ROWID;
    CREATE INDEX passes_by_start ON passes (started_at);",
    "ALTER TABLE target_state ADD COLUMN told_drift TEXT NOT NULL DEFAULT '';",
];

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a pass is remembered.
const HISTORY: TimeDelta = TimeDelta::days(90);

/// What is remembered of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// `running`, `success` or `failed`.
    pub status: String,
    /// The bound up to which the source was looked at.
    pub checked_to: Option<Tick>,
    /// End of the last pass that succeeded, RFC 3339.
    pub last_success_at: Option<String>,
    /// Duration of the last pass.
    pub last_duration_ms: Option<i64>,
    /// Failures since the last success.
    pub failure_count: i64,
    /// Error of the last failure since the last success.
    pub last_error: Option<String>,
    /// Start of the last pass that moved rows, RFC 3339, and how many; of those in the history.
    pub last_offload: Option<(String, i64)>,
}

/// The end of a pass over a table.
#[derive(Debug)]
pub struct Finished<'a> {
    /// The pass.
    pub run_id: &'a str,
    /// Its start, RFC 3339.
    pub started_at: &'a str,
    /// What it says of the table.
    pub report: &'a RunTable,
    /// The bound up to which it looked at the source.
    pub checked_to: Option<Tick>,
}

/// The open cache; without a connection it remembers nothing.
#[derive(Debug)]
pub struct State {
    connection: Option<Connection>,
}

impl State {
    /// Opens the cache, or goes on without it.
    pub fn open(path: &Path) -> Self {
        let opened = open(path).inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "the state cache cannot be used, going on without it");
        });
        Self { connection: opened.ok() }
    }

    /// A pass over `target` begins.
    pub fn begin(&self, target: &str) {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO target_state (target, status) VALUES (?1, 'running') \
                 ON CONFLICT (target) DO UPDATE SET status = 'running'",
                [target],
            )
        });
    }

    /// Whether this differs from the drift that was told last, empty for none; with `remember` it is what was told last from now on.
    pub fn tell_drift(&self, target: &str, drift: &str, remember: bool) -> bool {
        let Some(connection) = &self.connection else { return true };
        let query = "SELECT told_drift FROM target_state WHERE target = ?1";
        let told = connection.query_row(query, [target], |row| row.get::<_, String>(0)).optional();
        let told = told.inspect_err(|error| tracing::warn!(%error, "the state cache cannot be read"));
        let is_new = told.ok().flatten().unwrap_or_default() != drift;
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
            transaction.execute("UPDATE target_state SET checked_to = NULL WHERE target = ?1", [target])
        });
    }

    /// A pass over a table has ended.
    pub fn finish(&self, finished: &Finished<'_>) {
        let now = Utc::now();
        self.write(|transaction| {
            finished.update_state(transaction, now)?;
            finished.append_to_history(transaction)?;
            transaction.execute("DELETE FROM passes WHERE started_at < ?1", [rfc3339(now - HISTORY)])
        });
    }

    /// What is remembered of `target`.
    pub fn table(&self, target: &str) -> Option<TableState> {
        let found = read(self.connection.as_ref()?, target);
        found.inspect_err(|error| tracing::warn!(%error, "the state cache cannot be read")).ok().flatten()
    }

    fn write(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<usize>) {
        let Some(connection) = &self.connection else { return };
        let written = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
            .and_then(|transaction| work(&transaction).and_then(|_| transaction.commit()));
        if let Err(error) = written {
            tracing::warn!(%error, "the state cache cannot be written");
        }
    }
}

impl Finished<'_> {
    /// A signal is no failure, and a pass that found the table locked knows nothing of it.
    fn update_state(&self, transaction: &Transaction<'_>, now: DateTime<Utc>) -> rusqlite::Result<usize> {
        let RunTable { target, duration_ms, error, .. } = self.report;
        match error.as_ref().map(|error| (error.kind, &error.message)) {
            None => transaction.execute(
                "UPDATE target_state SET status = 'success', checked_to = ?2, last_success_at = ?3, last_duration_ms = ?4, \
                 failure_count = 0, last_error = NULL WHERE target = ?1",
                params![target, self.checked_to, rfc3339(now), integer(*duration_ms)],
            ),
            Some((Kind::Locked, _)) => Ok(0),
            Some((Kind::Stopped, _)) => transaction.execute(
                "UPDATE target_state SET status = CASE WHEN failure_count > 0 THEN 'failed' \
                 WHEN last_success_at IS NOT NULL THEN 'success' ELSE 'initialized' END WHERE target = ?1",
                [target],
            ),
            Some((_, message)) => transaction.execute(
                "INSERT INTO target_state (target, status, checked_to, last_error, last_duration_ms, failure_count) \
                 VALUES (?1, 'failed', ?2, ?3, ?4, 1) ON CONFLICT (target) DO UPDATE SET status = 'failed', \
                 checked_to = max(ifnull(checked_to, excluded.checked_to), ifnull(excluded.checked_to, checked_to)), \
                 last_error = excluded.last_error, last_duration_ms = excluded.last_duration_ms, \
                 failure_count = failure_count + 1",
                params![target, self.checked_to, message, integer(*duration_ms)],
            ),
        }
    }

    fn append_to_history(&self, transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
        let report = self.report;
        let error = report.error.as_ref();
        transaction.execute(
            "INSERT OR REPLACE INTO passes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                self.run_id,
                report.target,
                self.started_at,
                integer(report.duration_ms),
                word(report.status),
                report.low,
                report.high,
                report.watermark,
                integer(report.rows_read),
                integer(report.rows_written),
                integer(report.bytes_written),
                integer(report.files),
                integer(report.chunks),
                error.and_then(|error| word(error.kind)),
                error.map(|error| &error.message),
            ],
        )
    }
}

fn read(connection: &Connection, target: &str) -> rusqlite::Result<Option<TableState>> {
    let query = "SELECT status, checked_to, last_success_at, last_duration_ms, failure_count, last_error \
                 FROM target_state WHERE target = ?1";
    let state = connection.query_row(query, [target], |row| {
        Ok(TableState {
            status: row.get(0)?,
            checked_to: row.get(1)?,
            last_success_at: row.get(2)?,
            last_duration_ms: row.get(3)?,
            failure_count: row.get(4)?,
            last_error: row.get(5)?,
            last_offload: None,
        })
    });
    let Some(state) = state.optional()? else { return Ok(None) };
    let query = "SELECT started_at, rows_written FROM passes WHERE target = ?1 AND rows_written > 0 \
                 ORDER BY started_at DESC LIMIT 1";
    let last_offload = connection.query_row(query, [target], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(Some(TableState { last_offload, ..state }))
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
    migrate(&mut connection)?;
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
        let (found, known) = (version(&connection)?, MIGRATIONS.len() as i64);
        anyhow::ensure!(found <= known, "its version is {found}, this program knows {known}");
        let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?;
        transaction.execute_batch("CREATE TABLE k2_offload_try (x)")?;
        Ok(transaction.rollback()?)
    };
    tried().or_error(Kind::Unavailable, format!("use the state cache {}", path.display())).map_err(|error| {
        error.hint(
            "passes go on without it, and `watermark show` tells less; delete it, or make it and its folder writable",
        )
    })
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn migrate(connection: &mut Connection) -> anyhow::Result<()> {
    let known = MIGRATIONS.len() as i64;
    match version(connection)? {
        found if found == known => return Ok(()),
        found if found > known => anyhow::bail!("its version is {found}, this program knows {known}"),
        _ => {}
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another pass may have done it meanwhile.
    let found = usize::try_from(version(&transaction)?).unwrap_or_default();
    transaction.execute_batch(&MIGRATIONS.get(found..).unwrap_or_default().concat())?;
    transaction.pragma_update(None, "user_version", known)?;
    Ok(transaction.commit()?)
}

/// As the JSON of `run` spells it.
fn word(value: impl Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

/// SQLite's integers are signed.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;
    use crate::error::Error;
    use crate::progress::Progress;

    const STARTED: &str = "2026-11-20T10:00:00.000Z";

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
        state.begin("c.t");
        state.finish(&Finished { run_id: "r", started_at, report: &report, checked_to });
    }

    #[test]
    fn remembers_failures_until_a_success() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        assert_eq!(state.table("c.t"), None);
        pass(&state, STARTED, None, Some(Kind::Unavailable), 0);
        pass(&state, STARTED, None, Some(Kind::Unavailable), 0);
        let failed = state.table("c.t").unwrap();
        assert_eq!((failed.status.as_str(), failed.failure_count, failed.last_duration_ms), ("failed", 2, Some(7)));
        pass(&state, STARTED, Some(9), None, 0);
        let succeeded = State::open(&path).table("c.t").unwrap();
        assert_eq!((succeeded.failure_count, succeeded.last_error, succeeded.checked_to), (0, None, Some(9)));
    }

    #[test]
    fn a_pass_that_is_stopped_or_skipped_is_no_failure() {
        let (_folder, path) = cache();
        let state = State::open(&path);
        pass(&state, STARTED, None, Some(Kind::Stopped), 0);
        let stopped = state.table("c.t").unwrap();
        assert_eq!((stopped.status.as_str(), stopped.failure_count, stopped.last_error), ("initialized", 0, None));
        pass(&state, STARTED, Some(9), None, 0);
        let succeeded = state.table("c.t").unwrap();
        pass(&state, STARTED, None, Some(Kind::Stopped), 0);
        assert_eq!(state.table("c.t").unwrap(), succeeded);
        pass(&state, STARTED, None, Some(Kind::Refused), 0);
        pass(&state, STARTED, None, Some(Kind::Stopped), 0);
        let failed = state.table("c.t").unwrap();
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
            assert_eq!(state.table("c.t").unwrap().checked_to, expected);
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
        assert_eq!(state.table("c.t").unwrap().last_offload, Some((offload.clone(), 9)));
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
        state.begin("c.t");
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
        let remembered = State::open(&path).table("c.t").unwrap();
        assert_eq!((remembered.checked_to, remembered.failure_count, remembered.last_offload), (Some(9), 3, None));
        pass(&State::open(&path), STARTED, Some(10), None, 11);
        let remembered = State::open(&path).table("c.t").unwrap();
        assert_eq!((remembered.checked_to, remembered.failure_count), (Some(10), 0));
    }

    #[test]
    fn goes_on_without_a_usable_file() {
        let (_folder, path) = cache();
        std::fs::write(&path, "no database at all, but long enough to have a header of 100 bytes".repeat(9)).unwrap();
        let state = State::open(&path);
        pass(&state, STARTED, None, None, 0);
        assert_eq!(state.table("c.t"), None);
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(State::open(&path).table("c.t"), None);
    }
}
