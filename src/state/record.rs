//! What passes and audits leave in the cache.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{OptionalExtension, Params, Row, Transaction, named_params, params};
use serde::Serialize;

use super::{Record, State};
use crate::clock::rfc3339;
use crate::cursor::Tick;
use crate::error::Kind;
use crate::report::RunTable;

/// `error_kind` of a pass that left no record of its end.
const DIED: &str = "died";

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

/// What an audit found in a table. Bounds are RFC 3339, as the audit reports them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Audited<'a> {
    /// Hours (days of a Date cursor) with missing or extra rows.
    pub mismatches: u64,
    /// Where the first of them begins.
    pub first: Option<&'a str>,
    /// Where the audit began; `None` where it looked at all that there is.
    pub from: Option<&'a str>,
    /// Whether it ended before the watermark, or had nothing to compare.
    pub is_cut: bool,
    /// Whether it compared rows, and not their numbers only.
    pub is_exact: bool,
}

/// What is remembered of audits: how many hours differ, where the first of them begins, and whether rows were compared to know.
type Known = (i64, Option<String>, bool);

impl Audited<'_> {
    fn alone(&self) -> Known {
        (integer(self.mismatches), self.first.map(str::to_owned), self.is_exact)
    }

    /// What is known after it, where an audit before had found `mismatches`, of which the earliest begins at `first`: what it did not look at, or
    /// not as closely, stays as it was.
    fn after(&self, mismatches: i64, first: &str, was_exact: bool) -> Known {
        let looked_there = !self.is_cut && self.from.is_none_or(|from| from <= first);
        match looked_there && (self.is_exact || !was_exact) {
            true => self.alone(),
            false => {
                let first = self.first.map_or(first, |own| own.min(first));
                (integer(self.mismatches).max(mismatches), Some(first.to_owned()), was_exact)
            }
        }
    }
}

impl State {
    /// A pass over `target` begins, whose lock it holds. One that began and left no record of its end has died: what is to be told of that, and
    /// what to do.
    pub fn begin(&self, target: &str, run_id: &str, started_at: &str) -> Option<(String, String)> {
        let mut death = None;
        self.write(|transaction| {
            let query = "SELECT run_id, started_at FROM target_state WHERE target = ?1 AND status = 'running'";
            let pass = |row: &Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?));
            if let Some((Some(run_id), Some(started_at))) =
                transaction.prepare_cached(query)?.query_row([target], pass).optional()?
            {
                death = Some(died(transaction, target, &run_id, &started_at)?);
            }
            execute(
                transaction,
                "INSERT INTO target_state (target, status, run_id, started_at) VALUES (?1, 'running', ?2, ?3) \
                 ON CONFLICT (target) DO UPDATE SET status = 'running', run_id = ?2, started_at = ?3",
                [target, run_id, started_at],
            )
        });
        death
    }

    /// What another host told of tables, of which nothing is remembered here. One that is at work there now is not at work here.
    pub fn seed<'a>(&self, told: impl Iterator<Item = &'a Record>) {
        let told: Vec<_> = told.map(|record| (&record.target, record.remembered())).collect();
        if told.is_empty() {
            return;
        }
        self.write(|transaction| {
            for (target, known) in &told {
                let status = match (known.failure_count, &known.last_success_at) {
                    (1.., _) => "failed",
                    (_, Some(_)) => "success",
                    (_, None) => "initialized",
                };
                execute(
                    transaction,
                    "INSERT OR IGNORE INTO target_state (target, status, checked_to, watermark, last_success_at, last_duration_ms, \
                     failure_count, last_error, caught_up_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        target,
                        status,
                        known.checked_to,
                        known.watermark,
                        known.last_success_at,
                        known.last_duration_ms,
                        known.failure_count,
                        known.last_error,
                        known.caught_up_ms,
                    ],
                )?;
            }
            Ok(0)
        });
    }

    /// A pass over a table has ended; whether that is remembered now.
    pub fn finish(&self, finished: &Finished<'_>) -> bool {
        let now = Utc::now();
        self.write(|transaction| {
            finished.append_to_history(transaction)?;
            // A pass that found the table locked knows nothing of it.
            if finished.error_kind() == Some(Kind::Locked) {
                return Ok(0);
            }
            finished.add_what_was_seen(transaction, now, true)?;
            finished.update_status(transaction, now)
        })
    }

    /// Remembers what [`Self::finish`] could not: a moment's lock must not make passes look dead. The first that fails again is the last.
    pub fn finish_late<'a>(&self, mut finished: impl Iterator<Item = Finished<'a>>) {
        self.be_patient();
        while finished.next().is_some_and(|finished| self.finish(&finished)) {}
    }

    /// A repair has ended: its rows count, and it is remembered, but it is no pass.
    pub fn repaired(&self, finished: &Finished<'_>) {
        self.write(|transaction| {
            finished.append_to_history(transaction)?;
            finished.add_what_was_seen(transaction, Utc::now(), false)
        });
    }

    /// A pass has ended; what began earlier than `keep` ago is forgotten.
    pub fn end_pass(&self, duration_ms: u64, keep: Duration) {
        let now = Utc::now();
        let oldest = TimeDelta::from_std(keep).ok().and_then(|keep| now.checked_sub_signed(keep));
        self.write(|transaction| {
            if let Some(oldest) = oldest.map(rfc3339) {
                execute(transaction, "DELETE FROM chunks WHERE started_at < ?1", [&oldest])?;
                execute(transaction, "DELETE FROM passes WHERE started_at < ?1", [&oldest])?;
            }
            execute(
                transaction,
                "INSERT OR REPLACE INTO last_pass VALUES (0, ?1, ?2)",
                params![now.timestamp_millis(), integer(duration_ms)],
            )
        });
    }

    /// An audit has compared `target`.
    pub fn audited(&self, target: &str, audited: &Audited<'_>) {
        let now = Utc::now().timestamp_millis();
        self.write(|transaction| {
            let query = "SELECT audit_mismatches, audit_first, audit_exact FROM target_state WHERE target = ?1";
            let before = |row: &Row<'_>| {
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, bool>(2)?))
            };
            let (mismatches, first, is_exact) = match transaction.query_row(query, [target], before).optional()? {
                Some((Some(mismatches @ 1..), Some(first), was_exact)) => audited.after(mismatches, &first, was_exact),
                _ => audited.alone(),
            };
            execute(transaction,
                "INSERT INTO target_state (target, status, audited_ms, audit_mismatches, audit_first, audit_exact) \
                 VALUES (?1, 'initialized', ?2, ?3, ?4, ?5) \
                 ON CONFLICT (target) DO UPDATE SET audited_ms = ?2, audit_mismatches = ?3, audit_first = ?4, audit_exact = ?5",
                params![target, now, mismatches, first, is_exact],
            )
        });
    }
}

impl Finished<'_> {
    fn error_kind(&self) -> Option<Kind> {
        self.report.error.as_ref().map(|error| error.kind)
    }

    /// Totals go on; of what was not seen now, what was seen last stays.
    fn add_what_was_seen(
        &self,
        transaction: &Transaction<'_>,
        now: DateTime<Utc>,
        is_pass: bool,
    ) -> rusqlite::Result<usize> {
        let report = self.report;
        let now = now.timestamp_millis();
        let caught_up = report.lag_seconds.map(|lag| now.saturating_sub(lag.saturating_mul(1000)));
        // A pass that moved all, and found no row that tells how long rows live, leaves as much time as there was.
        let is_ttl_seen = is_pass && (report.error.is_none() || report.ttl_seconds_left.is_some());
        let counted = is_pass && self.error_kind() != Some(Kind::Stopped);
        execute(
            transaction,
            "INSERT OR IGNORE INTO target_state (target, status) VALUES (?1, 'initialized')",
            [&report.target],
        )?;
        execute(
            transaction,
            "UPDATE target_state SET last_pass_ms = iif(:is_pass, :now, last_pass_ms), watermark = ifnull(:watermark, watermark), \
             checked_to_at = max(ifnull(checked_to_at, :checked_to), ifnull(:checked_to, checked_to_at)), \
             target_rows = ifnull(:target_rows, target_rows), caught_up_ms = ifnull(:caught_up, caught_up_ms), \
             ttl_seconds_left = iif(:no_ttl, NULL, ifnull(:ttl_left, ttl_seconds_left)), ttl_seen_ms = iif(:ttl_seen, :now, ttl_seen_ms), \
             passes = passes + :passes, rows = rows + :rows, rows_late = rows_late + :late, rows_duplicate = rows_duplicate + :duplicate, \
             rows_rejected = rows_rejected + :rejected, bytes = bytes + :bytes, files = files + :files, conflicts = conflicts + :conflicts \
             WHERE target = :target",
            named_params! {
                ":target": report.target,
                ":now": now,
                ":is_pass": is_pass,
                ":watermark": report.watermark,
                ":checked_to": report.checked_to,
                ":target_rows": report.target_rows.map(integer),
                ":caught_up": caught_up,
                ":no_ttl": report.has_ttl == Some(false),
                ":ttl_left": report.ttl_seconds_left,
                ":ttl_seen": is_ttl_seen,
                ":passes": counted,
                ":rows": integer(report.rows_written),
                ":late": integer(report.rows_late.unwrap_or(0)),
                ":duplicate": integer(report.rows_duplicate),
                ":rejected": integer(report.rows_rejected),
                ":bytes": integer(report.bytes_written),
                ":files": integer(report.files),
                ":conflicts": integer(report.conflicts),
            },
        )
    }

    /// A signal is no failure.
    fn update_status(&self, transaction: &Transaction<'_>, now: DateTime<Utc>) -> rusqlite::Result<usize> {
        let RunTable { target, duration_ms, error, .. } = self.report;
        let Some(error) = error else {
            return execute(
                transaction,
                "UPDATE target_state SET status = 'success', checked_to = ?2, last_success_at = ?3, last_duration_ms = ?4, \
                 failure_count = 0, last_error = NULL, last_hint = NULL, needs_person = 0 WHERE target = ?1",
                params![target, self.checked_to, rfc3339(now), integer(*duration_ms)],
            );
        };
        if error.kind == Kind::Stopped {
            return execute(
                transaction,
                "UPDATE target_state SET status = CASE WHEN failure_count > 0 THEN 'failed' \
                 WHEN last_success_at IS NOT NULL THEN 'success' ELSE 'initialized' END WHERE target = ?1",
                [target],
            );
        }
        count_error(transaction, target, &word(error.kind).unwrap_or_default())?;
        execute(
            transaction,
            "UPDATE target_state SET status = 'failed', checked_to = max(ifnull(checked_to, ?2), ifnull(?2, checked_to)), \
             last_error = ?3, last_hint = ?4, last_duration_ms = ?5, failure_count = failure_count + 1, needs_person = ?6 WHERE target = ?1",
            params![
                target,
                self.checked_to,
                error.message,
                error.hint,
                integer(*duration_ms),
                error.kind.needs_person()
            ],
        )
    }

    fn append_to_history(&self, transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
        let report = self.report;
        let error = report.error.as_ref();
        for (number, commit) in (0_i64..).zip(&report.commits) {
            execute(
                transaction,
                "INSERT OR REPLACE INTO chunks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    report.target,
                    self.started_at,
                    self.run_id,
                    number,
                    word(commit.mode),
                    commit.low,
                    commit.high,
                    integer(commit.rows),
                    integer(commit.files),
                    integer(commit.bytes),
                    commit.snapshot_id,
                    commit.committed_at,
                ],
            )?;
        }
        execute(
            transaction,
            "INSERT OR REPLACE INTO passes (run_id, target, started_at, duration_ms, status, low, high, watermark, rows_read, rows_written, \
             bytes_written, files, chunks, error_kind, error, rows_late, rows_duplicate, rows_rejected, hint) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
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
                report.rows_late.map(integer),
                integer(report.rows_duplicate),
                integer(report.rows_rejected),
                error.map(|error| &error.hint),
            ],
        )
    }
}

/// Passes over several tables send the same statements.
fn execute(transaction: &Transaction<'_>, statement: &str, values: impl Params) -> rusqlite::Result<usize> {
    transaction.prepare_cached(statement)?.execute(values)
}

/// A failure like others: a pass that is killed for its memory must not look like none.
fn died(
    transaction: &Transaction<'_>,
    target: &str,
    run_id: &str,
    started_at: &str,
) -> rusqlite::Result<(String, String)> {
    let message = format!("the pass that began at {started_at} left no record of its end");
    let hint = "it was killed, ran out of memory or lost power, or the state cache could not be written; what it had committed stays";
    count_error(transaction, target, DIED)?;
    execute(
        transaction,
        "INSERT OR IGNORE INTO passes (run_id, target, started_at, duration_ms, status, rows_read, rows_written, bytes_written, files, \
         chunks, error_kind, error, hint) VALUES (?1, ?2, ?3, 0, 'failed', 0, 0, 0, 0, 0, ?4, ?5, ?6)",
        [run_id, target, started_at, DIED, &message, hint],
    )?;
    execute(
        transaction,
        "UPDATE target_state SET failure_count = failure_count + 1, passes = passes + 1, last_error = ?2, last_hint = ?3 WHERE target = ?1",
        [target, &message, hint],
    )?;
    Ok((message, hint.to_owned()))
}

fn count_error(transaction: &Transaction<'_>, target: &str, kind: &str) -> rusqlite::Result<usize> {
    execute(
        transaction,
        "INSERT INTO errors VALUES (?1, ?2, 1) ON CONFLICT (target, kind) DO UPDATE SET passes = passes + 1",
        [target, kind],
    )
}

/// As the JSON of `run` spells it.
fn word(value: impl Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(str::to_owned)
}

/// SQLite's integers are signed.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_says_nothing_of_what_it_did_not_look_at() {
        let found = Audited { mismatches: 2, first: Some("2026-11-10T05:00:00Z"), ..Audited::default() };
        let (mismatches, first, was_exact) = found.alone();
        let after = |audited: Audited<'_>| {
            let (mismatches, first, _) = audited.after(mismatches, first.as_deref().unwrap(), was_exact);
            (mismatches, first)
        };
        assert_eq!(after(Audited::default()), (0, None), "all of it");
        assert_eq!(after(Audited { from: Some("2026-11-10T05:00:00Z"), ..Audited::default() }), (0, None));
        let last_night = Audited { from: Some("2026-11-19T00:00:00Z"), ..Audited::default() };
        assert_eq!(after(last_night), (2, first.clone()));
        assert_eq!(after(Audited { is_cut: true, ..Audited::default() }), (2, first.clone()));
        let more = Audited { mismatches: 3, first: Some("2026-11-19T05:00:00Z"), ..last_night };
        assert_eq!(after(more), (3, first.clone()));
    }

    #[test]
    fn numbers_of_rows_say_nothing_of_rows_that_differ() {
        let exact = |is_exact| Audited { is_exact, ..Audited::default() };
        assert_eq!(exact(false).after(2, "2026-11-10T05:00:00Z", true).0, 2);
        assert_eq!(exact(true).after(2, "2026-11-10T05:00:00Z", true).0, 0);
        assert_eq!(exact(true).after(2, "2026-11-10T05:00:00Z", false).0, 0);
    }
}
