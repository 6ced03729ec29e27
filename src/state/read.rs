//! What screens and metrics read from the cache.

use std::collections::BTreeMap;

use chrono::{TimeDelta, Utc};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::State;
use crate::clock::rfc3339;
use crate::cursor::Tick;

/// What is remembered of a table. `_ms` are milliseconds since 1970 by this host's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// `initialized`, `running`, `success` or `failed`.
    pub status: String,
    /// Start of the pass under way, or of the last one, RFC 3339.
    pub started_at: Option<String>,
    /// The bound up to which the source was looked at.
    pub checked_to: Option<Tick>,
    /// The same as the last pass reported it, RFC 3339.
    pub checked_to_at: Option<String>,
    /// The watermark after the last pass, RFC 3339.
    pub watermark: Option<String>,
    /// End of the last pass that succeeded, RFC 3339.
    pub last_success_at: Option<String>,
    /// End of the last pass that was not skipped.
    pub last_pass_ms: Option<i64>,
    /// Duration of the last pass that did not stop for a signal.
    pub last_duration_ms: Option<i64>,
    /// Failures since the last success.
    pub failure_count: i64,
    /// Error of the last failure since the last success.
    pub last_error: Option<String>,
    /// What to do about it.
    pub last_hint: Option<String>,
    /// Whether the last failure stays until a person acts.
    pub needs_person: bool,
    /// Rows in the target.
    pub target_rows: Option<i64>,
    /// When everything that could leave had left.
    pub caught_up_ms: Option<i64>,
    /// Seconds until the source's TTL takes rows that have not left, at [`Self::ttl_seen_ms`].
    pub ttl_seconds_left: Option<i64>,
    /// When that was so.
    pub ttl_seen_ms: Option<i64>,
    /// End of the last audit.
    pub audited_ms: Option<i64>,
    /// Hours that it found missing or extra.
    pub audit_mismatches: Option<i64>,
    /// What passes did in all.
    pub totals: Totals,
    /// Passes that failed, by kind of error.
    pub errors: BTreeMap<String, i64>,
}

/// Sums over all passes since the cache was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the JSON of `run`")]
pub struct Totals {
    pub passes: i64,
    pub rows: i64,
    pub rows_late: i64,
    pub rows_duplicate: i64,
    pub rows_rejected: i64,
    pub bytes: i64,
    pub files: i64,
    pub conflicts: i64,
}

impl TableState {
    /// Seconds since everything that could leave had left, as of `now_ms`.
    pub fn lag_seconds(&self, now_ms: i64) -> Option<i64> {
        Some((now_ms.saturating_sub(self.caught_up_ms?) / 1000).max(0))
    }

    /// When the source's TTL takes rows that have not left, seconds since 1970.
    pub fn ttl_deadline_seconds(&self) -> Option<i64> {
        Some((self.ttl_seen_ms? / 1000).saturating_add(self.ttl_seconds_left?))
    }

    /// Seconds until the source's TTL takes rows that have not left, as of `now_ms`; below 0 where it may have.
    pub fn ttl_seconds_left(&self, now_ms: i64) -> Option<i64> {
        Some(self.ttl_deadline_seconds()?.saturating_sub(now_ms / 1000))
    }
}

/// The last pass, over whichever tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastPass {
    /// Its end, milliseconds since 1970.
    pub ended_ms: i64,
    /// Its duration.
    pub duration_ms: i64,
}

/// The last 24 hours of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Day {
    /// Passes that ended; neither skipped ones nor those that a signal stopped.
    pub passes: i64,
    /// Those that succeeded.
    pub succeeded: i64,
    /// Rows that they committed.
    pub rows: i64,
    /// Those of them that came late.
    pub rows_late: i64,
    /// Duplicates that they dropped.
    pub rows_duplicate: i64,
}

/// One of the last passes of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Recent {
    /// Rows that it committed.
    pub rows: i64,
    /// How long it took.
    pub duration_ms: i64,
}

/// Which passes [`State::history`] tells of.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these targets.
    pub targets: Vec<String>,
    /// Began at or after this, RFC 3339.
    pub since: Option<String>,
    /// This pass only.
    pub run_id: Option<String>,
    /// Those only that failed.
    pub failed: bool,
    /// The newest so many.
    pub limit: usize,
}

/// A pass over a table, as it was reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields of the JSON of `run`")]
pub struct PastPass {
    pub run_id: String,
    pub target: String,
    pub started_at: String,
    pub duration_ms: i64,
    pub status: String,
    pub low: Option<String>,
    pub high: Option<String>,
    pub watermark: Option<String>,
    pub rows_read: i64,
    pub rows_written: i64,
    pub rows_late: Option<i64>,
    pub rows_duplicate: i64,
    pub rows_rejected: i64,
    pub bytes_written: i64,
    pub files: i64,
    pub chunks: i64,
    pub error_kind: Option<String>,
    pub error: Option<String>,
    pub hint: Option<String>,
    /// Its commits, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<PastChunk>,
}

/// One commit of a past pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields of the JSON of `run`")]
pub struct PastChunk {
    pub mode: String,
    pub low: Option<String>,
    pub high: Option<String>,
    pub rows: i64,
    pub files: i64,
    pub bytes: i64,
    pub snapshot_id: i64,
    pub committed_at: String,
}

impl State {
    /// What is remembered of each target; of one, nothing before its first pass.
    pub fn tables(&self) -> BTreeMap<String, TableState> {
        self.read(tables).unwrap_or_default()
    }

    /// How far passes have looked at the source of `target`.
    pub fn checked_to(&self, target: &str) -> Option<Tick> {
        let query = "SELECT checked_to FROM target_state WHERE target = ?1";
        self.read(|connection| connection.prepare_cached(query)?.query_row([target], |row| row.get(0)).optional())
            .flatten()
            .flatten()
    }

    /// Start of the last pass over `target` that moved rows, RFC 3339, and how many; of those in the history.
    pub fn last_offload(&self, target: &str) -> Option<(String, i64)> {
        let query = "SELECT started_at, rows_written FROM passes WHERE target = ?1 AND rows_written > 0 \
                     ORDER BY started_at DESC LIMIT 1";
        let pair = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        self.read(|connection| connection.prepare_cached(query)?.query_row([target], pair).optional()).flatten()
    }

    /// The last pass.
    pub fn last_pass(&self) -> Option<LastPass> {
        let query = "SELECT ended_ms, duration_ms FROM last_pass";
        let pass = |row: &Row<'_>| Ok(LastPass { ended_ms: row.get(0)?, duration_ms: row.get(1)? });
        self.read(|connection| connection.prepare_cached(query)?.query_row([], pass).optional()).flatten()
    }

    /// The last 24 hours of `target`.
    pub fn day(&self, target: &str) -> Day {
        let query = "SELECT count(*) FILTER (WHERE ifnull(error_kind, '') NOT IN ('locked', 'stopped')), \
                     count(*) FILTER (WHERE error_kind IS NULL), ifnull(sum(rows_written), 0), ifnull(sum(rows_late), 0), \
                     ifnull(sum(rows_duplicate), 0) FROM passes WHERE target = ?1 AND started_at >= ?2";
        let day = |row: &Row<'_>| {
            let (passes, succeeded, rows) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(Day { passes, succeeded, rows, rows_late: row.get(3)?, rows_duplicate: row.get(4)? })
        };
        let since = rfc3339(Utc::now() - TimeDelta::hours(24));
        self.read(|connection| connection.prepare_cached(query)?.query_row([target, &since], day)).unwrap_or_default()
    }

    /// The last `limit` passes over `target` that came to an end of their own, oldest first.
    pub fn recent(&self, target: &str, limit: usize) -> Vec<Recent> {
        let query = "SELECT rows_written, duration_ms FROM passes \
                     WHERE target = ?1 AND ifnull(error_kind, '') NOT IN ('locked', 'stopped', 'died') \
                     ORDER BY started_at DESC LIMIT ?2";
        let recent = |row: &Row<'_>| Ok(Recent { rows: row.get(0)?, duration_ms: row.get(1)? });
        let found = self.read(|connection| {
            let mut statement = connection.prepare_cached(query)?;
            statement.query_map(params![target, limit as i64], recent)?.collect::<rusqlite::Result<Vec<_>>>()
        });
        let mut recent = found.unwrap_or_default();
        recent.reverse();
        recent
    }

    /// The newest passes that fit, newest first; with their commits where asked for. Empty where the cache cannot be read ([`Self::problem`]).
    pub fn history(&self, filter: &Filter, commits: bool) -> Vec<PastPass> {
        let found = self.read(|connection| {
            let mut passes = history(connection, filter)?;
            if commits {
                for pass in &mut passes {
                    pass.commits = chunks(connection, pass)?;
                }
            }
            Ok(passes)
        });
        found.unwrap_or_default()
    }
}

fn tables(connection: &Connection) -> rusqlite::Result<BTreeMap<String, TableState>> {
    let query = "SELECT target, status, checked_to, checked_to_at, watermark, last_success_at, last_pass_ms, last_duration_ms, failure_count, \
                 last_error, last_hint, needs_person, target_rows, caught_up_ms, ttl_seconds_left, ttl_seen_ms, audited_ms, audit_mismatches, \
                 passes, rows, rows_late, rows_duplicate, rows_rejected, bytes, files, conflicts, started_at FROM target_state";
    let mut statement = connection.prepare_cached(query)?;
    let states = statement.query_map([], |row| {
        let totals = Totals {
            passes: row.get(18)?,
            rows: row.get(19)?,
            rows_late: row.get(20)?,
            rows_duplicate: row.get(21)?,
            rows_rejected: row.get(22)?,
            bytes: row.get(23)?,
            files: row.get(24)?,
            conflicts: row.get(25)?,
        };
        let state = TableState {
            status: row.get(1)?,
            checked_to: row.get(2)?,
            checked_to_at: row.get(3)?,
            watermark: row.get(4)?,
            last_success_at: row.get(5)?,
            last_pass_ms: row.get(6)?,
            last_duration_ms: row.get(7)?,
            failure_count: row.get(8)?,
            last_error: row.get(9)?,
            last_hint: row.get(10)?,
            needs_person: row.get(11)?,
            target_rows: row.get(12)?,
            caught_up_ms: row.get(13)?,
            ttl_seconds_left: row.get(14)?,
            ttl_seen_ms: row.get(15)?,
            audited_ms: row.get(16)?,
            audit_mismatches: row.get(17)?,
            started_at: row.get(26)?,
            totals,
            errors: BTreeMap::new(),
        };
        Ok((row.get(0)?, state))
    });
    let mut states: BTreeMap<String, TableState> = states?.collect::<rusqlite::Result<_>>()?;
    let mut statement = connection.prepare_cached("SELECT target, kind, passes FROM errors")?;
    let mut errors = statement.query([])?;
    while let Some(row) = errors.next()? {
        if let Some(state) = states.get_mut(&row.get::<_, String>(0)?) {
            state.errors.insert(row.get(1)?, row.get(2)?);
        }
    }
    Ok(states)
}

fn history(connection: &Connection, filter: &Filter) -> rusqlite::Result<Vec<PastPass>> {
    let query = "SELECT * FROM passes WHERE target IN (SELECT value FROM json_each(?1)) AND (?2 IS NULL OR started_at >= ?2) \
                 AND (?3 IS NULL OR run_id = ?3) AND (NOT ?4 OR status = 'failed') ORDER BY started_at DESC, target LIMIT ?5";
    let targets = serde_json::to_string(&filter.targets).unwrap_or_default();
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(query)?;
    let passes = statement.query_map(params![targets, filter.since, filter.run_id, filter.failed, limit], |row| {
        Ok(PastPass {
            run_id: row.get("run_id")?,
            target: row.get("target")?,
            started_at: row.get("started_at")?,
            duration_ms: row.get("duration_ms")?,
            status: row.get("status")?,
            low: row.get("low")?,
            high: row.get("high")?,
            watermark: row.get("watermark")?,
            rows_read: row.get("rows_read")?,
            rows_written: row.get("rows_written")?,
            rows_late: row.get("rows_late")?,
            rows_duplicate: row.get("rows_duplicate")?,
            rows_rejected: row.get("rows_rejected")?,
            bytes_written: row.get("bytes_written")?,
            files: row.get("files")?,
            chunks: row.get("chunks")?,
            error_kind: row.get("error_kind")?,
            error: row.get("error")?,
            hint: row.get("hint")?,
            commits: Vec::new(),
        })
    });
    passes?.collect()
}

fn chunks(connection: &Connection, pass: &PastPass) -> rusqlite::Result<Vec<PastChunk>> {
    let query = "SELECT mode, low, high, rows, files, bytes, snapshot_id, committed_at FROM chunks \
                 WHERE target = ?1 AND started_at = ?2 AND run_id = ?3 ORDER BY number";
    let mut statement = connection.prepare_cached(query)?;
    let chunks = statement.query_map([&pass.target, &pass.started_at, &pass.run_id], |row| {
        Ok(PastChunk {
            mode: row.get(0)?,
            low: row.get(1)?,
            high: row.get(2)?,
            rows: row.get(3)?,
            files: row.get(4)?,
            bytes: row.get(5)?,
            snapshot_id: row.get(6)?,
            committed_at: row.get(7)?,
        })
    });
    chunks?.collect()
}
