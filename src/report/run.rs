//! The document of `run`.

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::{ErrorReport, Report, or_dash};
use crate::watermark::Mode;

/// What a pass did about a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Rows were committed.
    Offloaded,
    /// There was nothing new.
    Nothing,
    /// Another pass holds the table.
    Skipped,
    /// See `error`.
    Failed,
    /// `--dry-run`: rows would leave.
    Planned,
}

/// One table of `run`. Timestamps are RFC 3339 in UTC.
#[derive(Debug, Clone, Serialize)]
pub struct RunTable {
    /// Source table.
    pub source: String,
    /// Target table.
    pub target: String,
    /// Its layer.
    pub layer: String,
    /// What was done.
    pub status: RunStatus,
    /// Inclusive lower bound of the window; null where it has none.
    pub low: Option<String>,
    /// Exclusive upper bound of the window.
    pub high: Option<String>,
    /// Watermark after the pass.
    pub watermark: Option<String>,
    /// Highest watermark ever committed.
    pub offloaded_to: Option<String>,
    /// How far the source was looked at.
    pub checked_to: Option<String>,
    /// Rows that came from the source; with `--dry-run`, that would.
    pub rows_read: u64,
    /// Rows that were committed.
    pub rows_written: u64,
    /// Duplicates that were dropped.
    pub rows_duplicate: u64,
    /// Rows that were kept out.
    pub rows_rejected: u64,
    /// Late rows among them; null where none were looked for.
    pub rows_late: Option<u64>,
    /// Where rows may have come late and were not added, because others had deleted rows there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_alone: Vec<LeftAlone>,
    /// Rows whose key the target holds with other content, where rows that had left were compared; they are left as they are.
    pub rows_changed: Option<u64>,
    /// Rows whose cursor is in the source's future; null where the source was not asked.
    pub rows_future: Option<u64>,
    /// Bytes of the new data files.
    pub bytes_written: u64,
    /// New data files.
    pub files: u64,
    /// Commits.
    pub chunks: u64,
    /// The last commit's snapshot.
    pub snapshot_id: Option<i64>,
    /// The commits, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<CommittedChunk>,
    /// Tries that found the source or the target changed meanwhile, and were planned again or given up.
    pub conflicts: u64,
    /// Rows in the target after the pass; null where it does not say.
    pub target_rows: Option<u64>,
    /// Seconds between what the pass could have looked at and `checked_to`; null where nothing has left or the source was not asked.
    pub lag_seconds: Option<i64>,
    /// Whether the source has a TTL; null where it was not asked.
    pub has_ttl: Option<bool>,
    /// Seconds until the source's TTL deletes the first row that has not left; after a pass that moved all, until it would delete the next one
    /// to come. Null where it deletes none.
    pub ttl_seconds_left: Option<i64>,
    /// Duration of the table.
    pub duration_ms: u64,
    /// `--dry-run`: the chunks that would be committed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub planned: Vec<PlannedChunk>,
    /// What the first commit changed in the target's schema, or with `--dry-run` would.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schema_changes: Vec<String>,
    /// Why it failed.
    pub error: Option<ErrorReport>,
}

/// A range that passes leave alone.
#[derive(Debug, Clone, Serialize)]
pub struct LeftAlone {
    /// Inclusive lower bound; null where it has none.
    pub low: Option<String>,
    /// Exclusive upper bound.
    pub high: Option<String>,
}

/// A chunk of `run --dry-run`.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedChunk {
    /// Inclusive lower bound; null where it has none.
    pub low: Option<String>,
    /// Exclusive upper bound.
    pub high: Option<String>,
    /// Raw rows in the source.
    pub rows: u64,
    /// Data files that are expected.
    pub files: u64,
    /// Whether they have left, and would be compared with the target.
    pub compared: bool,
}

/// One commit of a pass.
#[derive(Debug, Clone, Serialize)]
pub struct CommittedChunk {
    /// New rows (`append`), or rows that had left and were compared (`merge`, `late`).
    pub mode: Mode,
    /// Inclusive lower bound; null where it has none.
    pub low: Option<String>,
    /// Exclusive upper bound.
    pub high: Option<String>,
    /// Rows that it added.
    pub rows: u64,
    /// New data files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Its snapshot.
    pub snapshot_id: i64,
    /// When it had landed.
    pub committed_at: String,
}

/// The document of `run`.
#[derive(Debug, Serialize)]
pub struct RunReport {
    /// Names the pass in logs, query ids and locks.
    pub run_id: String,
    /// Start of the pass.
    pub started_at: String,
    /// Duration of the pass.
    pub duration_ms: u64,
    /// Exit code.
    pub exit: u8,
    /// One entry per table.
    pub tables: Vec<RunTable>,
}

impl RunReport {
    /// Whether other passes held all tables.
    pub fn is_skipped(&self) -> bool {
        self.tables.iter().all(|table| table.status == RunStatus::Skipped)
    }
}

/// What is new of a pass, for a log: with its time, and without the tables that had nothing.
#[derive(Debug, Serialize)]
pub struct News<'a>(pub &'a RunReport);

impl Report for News<'_> {
    fn lines(&self) -> Vec<String> {
        let news = self.0.tables.iter().filter(|table| table.status != RunStatus::Nothing);
        news.flat_map(RunTable::lines).map(|line| format!("{} {line}", self.0.started_at)).collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.0.errors()
    }
}

impl Report for RunReport {
    fn lines(&self) -> Vec<String> {
        self.tables.iter().flat_map(RunTable::lines).collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.tables.iter().filter_map(|table| Some((table.target.as_str(), table.error.as_ref()?))).collect()
    }
}

impl RunTable {
    /// The exit code that this table alone would give.
    pub fn exit_code(&self) -> u8 {
        self.error.as_ref().map_or(0, |error| error.kind.policy().exit)
    }

    fn lines(&self) -> Vec<String> {
        let seconds = self.duration_ms as f64 / 1000.0;
        let what = match self.status {
            RunStatus::Offloaded => format!(
                "offloaded {} rows in {} file(s), {}, watermark {}, {seconds:.2} s",
                HumanCount(self.rows_written),
                self.files,
                HumanBytes(self.bytes_written),
                or_dash(&self.watermark)
            ),
            RunStatus::Nothing => format!("nothing new up to {}", or_dash(&self.checked_to)),
            RunStatus::Skipped => "skipped".to_owned(),
            RunStatus::Failed if self.chunks > 0 => {
                format!(
                    "failed, but offloaded {} rows, watermark {}",
                    HumanCount(self.rows_written),
                    or_dash(&self.watermark)
                )
            }
            RunStatus::Failed => "failed".to_owned(),
            RunStatus::Planned => {
                let rows = |compared: bool| {
                    let chunks = self.planned.iter().filter(move |chunk| chunk.compared == compared);
                    HumanCount(chunks.map(|chunk| chunk.rows).sum())
                };
                let compared = if self.planned.iter().any(|chunk| chunk.compared) {
                    format!(", and compare {} rows that have left", rows(true))
                } else {
                    String::new()
                };
                format!("would offload {} rows{compared} in {} commit(s)", rows(false), self.planned.len())
            }
        };
        let told = |rows: Option<u64>, what: &str| match rows {
            Some(rows @ 1..) => format!(", {} {what}", HumanCount(rows)),
            _ => String::new(),
        };
        let future = told(self.rows_future, "rows from the future wait");
        let late = told(self.rows_late, "of them late");
        let duplicate = told(Some(self.rows_duplicate), "duplicates dropped");
        let rejected = told(Some(self.rows_rejected), "rejected");
        let changed = told(self.rows_changed, "rows changed after they left, and stay as they were");
        let mut lines =
            vec![format!("{} -> {}: {what}{late}{duplicate}{rejected}{changed}{future}", self.source, self.target)];
        lines.extend(self.schema_changes.iter().map(|change| format!("  schema: {change}")));
        lines.extend(self.left_alone.iter().map(|range| {
            let (low, high) = (range.low.as_deref().unwrap_or("beginning"), or_dash(&range.high));
            format!("  [{low}, {high}): rows may have come late; not added, because others deleted rows there (`audit --repair` adds both)")
        }));
        lines.extend(self.planned.iter().map(|chunk| {
            let (low, high) = (chunk.low.as_deref().unwrap_or("beginning"), or_dash(&chunk.high));
            let rows = HumanCount(chunk.rows);
            match chunk.compared {
                true => format!("  [{low}, {high}): {rows} rows to compare"),
                false => format!("  [{low}, {high}): {rows} rows, {} file(s)", chunk.files),
            }
        }));
        lines
    }
}
