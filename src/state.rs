//! The state cache: what `watermark show` tells beside the truth.
//!
//! A SQLite file that may be deleted at any time: nothing in it feeds a plan (protocol.md P20). So a cache that cannot be
//! read or written is a warning, never a reason to stop a pass.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::cursor::Tick;

/// Version of the tables, in SQLite's `user_version`.
const VERSION: i64 = 1;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS target_state (
        target TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        checked_to INTEGER,
        last_success_at TEXT,
        last_duration_ms INTEGER,
        failure_count INTEGER NOT NULL DEFAULT 0,
        last_error TEXT) WITHOUT ROWID;";

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
        self.write(
            "INSERT INTO target_state (target, status) VALUES (?1, 'running') \
             ON CONFLICT (target) DO UPDATE SET status = 'running'",
            params![target],
        );
    }

    /// A pass over `target` succeeded at `now`.
    pub fn succeed(&self, target: &str, checked_to: Option<Tick>, now: &str, duration_ms: i64) {
        self.write(
            "UPDATE target_state SET status = 'success', checked_to = ?2, last_success_at = ?3, last_duration_ms = ?4, \
             failure_count = 0, last_error = NULL WHERE target = ?1",
            params![target, checked_to, now, duration_ms],
        );
    }

    /// A pass over `target` failed.
    pub fn fail(&self, target: &str, error: &str, duration_ms: i64) {
        self.write(
            "INSERT INTO target_state (target, status, last_error, last_duration_ms, failure_count) \
             VALUES (?1, 'failed', ?2, ?3, 1) ON CONFLICT (target) DO UPDATE SET status = 'failed', \
             last_error = excluded.last_error, last_duration_ms = excluded.last_duration_ms, \
             failure_count = failure_count + 1",
            params![target, error, duration_ms],
        );
    }

    /// What is remembered of `target`.
    pub fn table(&self, target: &str) -> Option<TableState> {
        let query = "SELECT status, checked_to, last_success_at, last_duration_ms, failure_count, last_error \
                     FROM target_state WHERE target = ?1";
        let found = self.connection.as_ref()?.query_row(query, [target], |row| {
            Ok(TableState {
                status: row.get(0)?,
                checked_to: row.get(1)?,
                last_success_at: row.get(2)?,
                last_duration_ms: row.get(3)?,
                failure_count: row.get(4)?,
                last_error: row.get(5)?,
            })
        });
        found.optional().inspect_err(|error| tracing::warn!(%error, "the state cache cannot be read")).ok().flatten()
    }

    fn write(&self, statement: &str, parameters: impl rusqlite::Params) {
        let Some(connection) = &self.connection else { return };
        if let Err(error) = connection.execute(statement, parameters) {
            tracing::warn!(%error, "the state cache cannot be written");
        }
    }
}

fn open(path: &Path) -> anyhow::Result<Connection> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
        0 => {
            connection.execute_batch(SCHEMA)?;
            connection.pragma_update(None, "user_version", VERSION)?;
        }
        VERSION => {}
        newer => anyhow::bail!("its version is {newer}, this program knows {VERSION}"),
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_failures_until_a_success() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("s.db"));
        assert_eq!(state.table("t"), None);
        state.begin("t");
        state.fail("t", "no server", 5);
        state.begin("t");
        state.fail("t", "no server", 6);
        let failed = state.table("t").unwrap();
        assert_eq!((failed.status.as_str(), failed.failure_count, failed.last_duration_ms), ("failed", 2, Some(6)));
        state.succeed("t", Some(9), "2026-01-01T00:00:00Z", 7);
        let succeeded = State::open(&folder.path().join("s.db")).table("t").unwrap();
        assert_eq!((succeeded.failure_count, succeeded.last_error, succeeded.checked_to), (0, None, Some(9)));
    }

    #[test]
    fn goes_on_without_a_usable_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.db");
        std::fs::write(&path, "no database at all, but long enough to have a header of 100 bytes".repeat(9)).unwrap();
        let state = State::open(&path);
        state.begin("t");
        assert_eq!(state.table("t"), None);
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(State::open(&path).table("t"), None);
    }
}
