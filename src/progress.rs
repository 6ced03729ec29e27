//! What a pass has done about a table so far, and its report. It outlives failed tries: what was committed stays committed.

use crate::chunk::{Chunk, Files, Route};
use crate::clock::now;
use crate::config::Table;
use crate::cursor::{CursorType, Tick};
use crate::error::{Error, Kind};
use crate::plan::{Window, reachable, seconds_between};
use crate::report::{CommittedChunk, ErrorReport, LeftAlone, PlannedChunk, RunStatus, RunTable};
use crate::source::Facts;
use crate::ttl;
use crate::watermark::{Marker, Mode};

/// See the module.
#[derive(Debug, Default)]
pub struct Progress {
    cursor: Option<CursorType>,
    window: Option<Window>,
    marker: Option<Marker>,
    checked_to: Option<Tick>,
    /// How far passes before had looked.
    looked_to: Option<Tick>,
    rows_future: Option<u64>,
    rows: u64,
    /// Rows of the source that were compared and not added.
    compared: u64,
    duplicates: u64,
    rejected: u64,
    changed: Option<u64>,
    late: Option<u64>,
    left_alone: Vec<Window>,
    bytes: u64,
    files: u64,
    commits: Vec<CommittedChunk>,
    conflicts: u64,
    target_rows: Option<u64>,
    /// The highest bound that the pass could reach.
    reachable: Option<Tick>,
    has_ttl: Option<bool>,
    ttl_seconds_left: Option<i64>,
    /// How long the TTL lets a row live, seconds after its cursor; the source's clock, microseconds since 1970.
    lifetime: Option<(i64, i64)>,
    planned: Vec<Chunk>,
    schema_changes: Vec<String>,
    lost: Option<Window>,
    deleted: Option<u64>,
}

/// Rows that are not there any more, and did not go by a rollback.
fn deleted_by_others(rows: u64) -> Error {
    Error::refused(format!("{rows} rows were deleted from the target, and not by k2-offload")).hint(
        "new rows leave all the same, and passes say this until it is acknowledged: `k2-offload watermark reset --table T --to` its watermark",
    )
}

impl Progress {
    /// Whether source and target were not looked at yet.
    pub fn is_new(&self) -> bool {
        self.cursor.is_none()
    }

    /// The rows of this range expired before any pass looked at them.
    pub fn lost(&mut self, range: Option<Window>) {
        self.lost = range;
    }

    /// So many rows of the target were deleted by others.
    pub fn deleted(&mut self, rows: Option<u64>) {
        self.deleted = rows;
    }

    /// What a pass ends with although it moved what there was: rows lost to the source's TTL, or deleted from the target.
    pub fn alarm(&self) -> Option<Error> {
        let outlived = self.cursor.zip(self.lost).map(|(cursor, lost)| ttl::outlived(cursor, lost));
        outlived.or_else(|| self.deleted.map(deleted_by_others))
    }

    /// Whether a chunk was committed.
    pub fn has_committed(&self) -> bool {
        !self.commits.is_empty()
    }

    /// Source and target were looked at.
    pub fn seen(&mut self, cursor: CursorType, marker: Option<Marker>, rows_future: Option<u64>) {
        self.cursor = Some(cursor);
        self.checked_to = marker.as_ref().map(|marker| marker.watermark);
        self.marker = marker;
        self.rows_future = rows_future;
        self.planned.clear();
    }

    /// What the source said of its clock and its TTL.
    pub fn asked(&mut self, route: &Route<'_>, facts: &Facts) {
        self.reachable = Some(reachable(route.cursor().kind, facts.clock_micros, route.table.settle_delay, route.step));
        self.has_ttl = Some(route.source.ttl.is_some());
        self.ttl_seconds_left = ttl::seconds_left(facts);
        self.lifetime = facts.lifetime_seconds.map(|lifetime| (lifetime, facts.clock_micros));
    }

    /// How far passes before had looked at the source, as far as that is remembered.
    pub fn looked_to(&mut self, bound: Option<Tick>) {
        self.looked_to = bound;
    }

    /// The target holds so many rows.
    pub fn target_rows(&mut self, rows: Option<u64>) {
        self.target_rows = rows;
    }

    /// Somebody else changed what a try had planned on.
    pub fn conflict(&mut self) {
        self.conflicts += 1;
    }

    /// A commit changes this in the target's schema, or with `--dry-run` would.
    pub fn schema_changes(&mut self, changes: &[String]) {
        self.schema_changes = changes.to_vec();
    }

    /// Everything below this bound was looked at and, where there were rows, committed.
    pub fn checked(&mut self, to: Option<Tick>) {
        self.checked_to = to;
    }

    /// A chunk would be committed (`--dry-run`).
    pub fn planned(&mut self, chunk: Chunk) {
        if chunk.source_rows() == 0 {
            return;
        }
        self.extend(chunk.window);
        self.planned.push(chunk);
    }

    /// A chunk was committed.
    pub fn committed(&mut self, chunk: &Chunk, files: &Files, snapshot_id: i64, marker: Marker) {
        match chunk.mode {
            Mode::Late => self.late = Some(self.late.unwrap_or(0) + files.rows()),
            _ => self.extend(chunk.window),
        }
        self.checked_to = Some(marker.watermark);
        self.marker = Some(marker);
        if chunk.mode.is_merge() {
            self.compared += chunk.source_rows().saturating_sub(files.rows());
        }
        self.rows += files.rows();
        if chunk.mode.is_merge() {
            self.changed = Some(self.changed.unwrap_or(0) + chunk.changed);
        }
        if !chunk.mode.is_merge() {
            self.duplicates += chunk.duplicates();
            self.rejected += chunk.rejected();
        }
        self.bytes += files.bytes();
        self.files += files.finished.len() as u64;
        let time = |tick: Option<Tick>| Some(self.cursor?.format(tick?));
        let commit = CommittedChunk {
            mode: chunk.mode,
            low: time(chunk.window.low),
            high: time(Some(chunk.window.high)),
            rows: files.rows(),
            files: files.finished.len() as u64,
            bytes: files.bytes(),
            snapshot_id,
            committed_at: now(),
        };
        self.commits.push(commit);
    }

    fn extend(&mut self, chunk: Window) {
        let low = self.window.map_or(chunk.low, |window| window.low);
        self.window = Some(Window { low, high: chunk.high });
    }

    /// Late rows were looked for; in these windows others had deleted rows.
    pub fn looked_for_late_rows(&mut self, left_alone: &[Window]) {
        self.late = self.late.or(Some(0));
        self.left_alone = left_alone.to_vec();
    }

    /// The last marker, on which the next chunk is planned.
    pub fn marker(&self) -> Option<&Marker> {
        self.marker.as_ref()
    }

    /// For the state cache.
    pub fn checked_to(&self) -> Option<Tick> {
        self.checked_to
    }

    /// See [`RunTable::lag_seconds`].
    fn lag_seconds(&self) -> Option<i64> {
        seconds_between(self.cursor?, self.checked_to.max(self.looked_to)?, self.reachable?)
    }

    /// See [`RunTable::ttl_seconds_left`].
    fn ttl_seconds_left(&self, has_moved_all: bool) -> Option<i64> {
        let (lifetime, clock_micros) = self.lifetime?;
        match self.cursor.zip(self.checked_to).filter(|_| has_moved_all) {
            Some((cursor, next)) => {
                Some(lifetime.saturating_sub(seconds_between(cursor, next, cursor.tick_at(clock_micros))?))
            }
            None => self.ttl_seconds_left,
        }
    }

    fn status(&self, error: Option<&Error>) -> RunStatus {
        match error {
            Some(error) if error.kind() == Kind::Locked => RunStatus::Skipped,
            Some(_) => RunStatus::Failed,
            None if self.has_committed() => RunStatus::Offloaded,
            None if !self.planned.is_empty() => RunStatus::Planned,
            None => RunStatus::Nothing,
        }
    }

    /// The table's entry in the report.
    pub fn report(&self, table: &Table, error: Option<&Error>, duration_ms: u64) -> RunTable {
        let time = |tick: Option<Tick>| Some(self.cursor?.format(tick?));
        let planned = self.planned.iter().map(|chunk| PlannedChunk {
            low: time(chunk.window.low),
            high: time(Some(chunk.window.high)),
            rows: chunk.source_rows(),
            files: chunk.pieces.len() as u64,
            compared: chunk.mode.is_merge(),
        });
        RunTable {
            source: table.source.clone(),
            target: table.target.to_string(),
            layer: table.layer.clone(),
            status: self.status(error),
            low: time(self.window.and_then(|window| window.low)),
            high: time(self.window.map(|window| window.high)),
            watermark: time(self.marker.as_ref().map(|marker| marker.watermark)),
            offloaded_to: time(self.marker.as_ref().map(|marker| marker.offloaded_to)),
            checked_to: time(self.checked_to),
            rows_read: self.rows
                + self.compared
                + self.duplicates
                + self.rejected
                + self.planned.iter().map(Chunk::source_rows).sum::<u64>(),
            rows_written: self.rows,
            rows_duplicate: self.duplicates,
            rows_rejected: self.rejected,
            rows_late: self.late,
            left_alone: self
                .left_alone
                .iter()
                .map(|window| LeftAlone { low: time(window.low), high: time(Some(window.high)) })
                .collect(),
            rows_changed: self.changed,
            rows_future: self.rows_future,
            bytes_written: self.bytes,
            files: self.files,
            chunks: self.commits.len() as u64,
            snapshot_id: self.commits.last().map(|commit| commit.snapshot_id),
            commits: self.commits.clone(),
            conflicts: self.conflicts,
            target_rows: self.target_rows,
            lag_seconds: self.lag_seconds(),
            has_ttl: self.has_ttl,
            ttl_seconds_left: self.ttl_seconds_left(error.is_none()),
            duration_ms,
            planned: planned.collect(),
            schema_changes: self.schema_changes.clone(),
            error: error.map(ErrorReport::from),
        }
    }
}
