//! Facts -> text or JSON on stdout. No other module prints results.

mod audit;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

pub use self::audit::{AuditBucket, AuditReport, AuditTable};
use crate::cli::Format;
use crate::error::{Error, Kind, Result};

/// An error, as the JSON contract has it.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorReport {
    /// What it means.
    pub kind: Kind,
    /// The chain of causes.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl From<&Error> for ErrorReport {
    fn from(error: &Error) -> Self {
        Self { kind: error.kind(), message: error.to_string(), hint: error.hint_text().to_owned() }
    }
}

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
    /// Late rows; null: this version does not look for them.
    pub rows_late: Option<u64>,
    /// Rows that changed after they left; null: this version does not look for them.
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
    /// Duration of the table.
    pub duration_ms: u64,
    /// `--dry-run`: the chunks that would be committed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub planned: Vec<PlannedChunk>,
    /// Why it failed.
    pub error: Option<ErrorReport>,
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

/// One table of `watermark show`.
#[derive(Debug, Serialize)]
pub struct WatermarkTable {
    /// Source table.
    pub source: String,
    /// Target table.
    pub target: String,
    /// Every row below it is in the target.
    pub watermark: Option<String>,
    /// Highest watermark ever committed.
    pub offloaded_to: Option<String>,
    /// How far the source was looked at.
    pub checked_to: Option<String>,
    /// Seconds between what a pass could have looked at by now and `checked_to`; null where nothing has left or the source is down.
    pub lag_seconds: Option<i64>,
    /// Seconds until the source's TTL deletes the first row that has not left, below 0 where it may already; null where it deletes none.
    pub ttl_seconds_left: Option<i64>,
    /// End of the last pass that succeeded.
    pub last_success_at: Option<String>,
    /// Start of the last pass that moved rows; null where none did in the 90 days that are remembered.
    pub last_offload_at: Option<String>,
    /// How many rows it moved.
    pub last_offload_rows: Option<i64>,
    /// Duration of the last pass.
    pub last_duration_ms: Option<i64>,
    /// Failures since the last success.
    pub failure_count: i64,
    /// `initialized`, `running`, `success` or `failed`.
    pub status: String,
    /// Error of the last pass.
    pub last_error: Option<String>,
    /// Why this table could not be looked at now.
    pub error: Option<ErrorReport>,
}

/// The document of `watermark show`.
#[derive(Debug, Serialize)]
pub struct WatermarkReport {
    /// One entry per table.
    pub tables: Vec<WatermarkTable>,
}

/// What `init-tables` did about a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InitStatus {
    /// It was made.
    Created,
    /// It was there.
    Exists,
    /// `--dry-run`: it would be made.
    Planned,
    /// See `error`.
    Failed,
}

/// One table of `init-tables`.
#[derive(Debug, Serialize)]
pub struct InitTable {
    /// Source table.
    pub source: String,
    /// Target table.
    pub target: String,
    /// What was done.
    pub status: InitStatus,
    /// Where it is or would be.
    pub location: Option<String>,
    /// Differences between source, configuration and an existing table.
    pub drift: Vec<String>,
    /// Why it failed.
    pub error: Option<ErrorReport>,
}

/// The document of `init-tables`.
#[derive(Debug, Serialize)]
pub struct InitReport {
    /// One entry per table.
    pub tables: Vec<InitTable>,
}

/// What became of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetStatus {
    /// It was committed.
    Reset,
    /// `--dry-run`: it would be.
    Planned,
    /// There was nothing to do, or the answer was no.
    Unchanged,
}

/// The document of `watermark reset`.
#[derive(Debug, Clone, Serialize)]
pub struct ResetReport {
    /// Source table.
    pub source: String,
    /// Target table.
    pub target: String,
    /// What was done.
    pub status: ResetStatus,
    /// Where the watermark was; null where nothing had left.
    pub from: Option<String>,
    /// Where it was put; null with `--to-earliest` where nothing had left.
    pub to: Option<String>,
    /// Rows of the source between both: no pass offloads them.
    pub rows_skipped: u64,
    /// The commit's snapshot.
    pub snapshot_id: Option<i64>,
}

/// A document that people can read too.
pub trait Report: Serialize {
    /// Its lines for people.
    fn lines(&self) -> Vec<String>;

    /// Tables that something went wrong with, and what.
    fn errors(&self) -> Vec<(&str, &ErrorReport)>;
}

/// Prints a document on stdout and, for people, its errors on stderr. A reader that went away is no error.
pub fn print(report: &impl Report, format: Format) {
    match format {
        Format::Json => {
            let _ = writeln!(io::stdout(), "{}", serde_json::to_string_pretty(report).unwrap_or_default());
        }
        Format::Text => {
            let _ = writeln!(io::stdout(), "{}", report.lines().join("\n"));
            for (table, error) in report.errors() {
                let _ = writeln!(io::stderr(), "k2-offload: {table}: {}\nhint: {}", error.message, error.hint);
            }
        }
    }
}

/// Asks on the terminal whether a reset shall be made.
pub fn confirm(reset: &ResetReport) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Error::new(Kind::Config, format!("{}, and stdin is no terminal to ask on", reset.what()))
            .hint("look at it with --dry-run, then confirm it with --yes"));
    }
    let _ = write!(io::stderr(), "{}. They stay in the source until its TTL. Go on? [y/N] ", reset.what());
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Prints why the process ends, on stderr.
pub fn print_error(error: &Error) {
    let _ = writeln!(io::stderr(), "k2-offload: {error}\nhint: {}", error.hint_text());
}

/// A number of seconds, without its sign.
fn span(seconds: i64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.unsigned_abs())).to_string()
}

fn or_dash(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("-")
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
            RunStatus::Planned => format!(
                "would offload {} rows in {} commit(s)",
                HumanCount(self.planned.iter().map(|chunk| chunk.rows).sum()),
                self.planned.len()
            ),
        };
        let future = match self.rows_future {
            Some(rows @ 1..) => format!(", {} rows from the future wait", HumanCount(rows)),
            _ => String::new(),
        };
        let mut lines = vec![format!("{} -> {}: {what}{future}", self.source, self.target)];
        lines.extend(self.planned.iter().map(|chunk| {
            let (low, high) = (chunk.low.as_deref().unwrap_or("beginning"), or_dash(&chunk.high));
            format!("  [{low}, {high}): {} rows, {} file(s)", HumanCount(chunk.rows), chunk.files)
        }));
        lines
    }
}

impl Report for WatermarkReport {
    fn lines(&self) -> Vec<String> {
        let lines = self.tables.iter().flat_map(|table| {
            let lag = table.lag_seconds.map_or("-".to_owned(), span);
            let expiry = match table.ttl_seconds_left {
                Some(left @ 0..) => format!(", first expiry in {}", span(left)),
                Some(left) => format!(", first expiry {} ago", span(left)),
                None => String::new(),
            };
            let mut lines = vec![format!(
                "{}: {}, watermark {}, checked to {}, lag {lag}{expiry}, last success {}, failures {}",
                table.target,
                table.status,
                or_dash(&table.watermark),
                or_dash(&table.checked_to),
                or_dash(&table.last_success_at),
                table.failure_count
            )];
            lines.extend(
                table
                    .last_offload_at
                    .iter()
                    .zip(table.last_offload_rows)
                    .map(|(at, rows)| format!("  last rows: {} at {at}", HumanCount(rows.unsigned_abs()))),
            );
            lines.extend(table.last_error.iter().map(|error| format!("  last error: {error}")));
            lines
        });
        lines.collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.tables.iter().filter_map(|table| Some((table.target.as_str(), table.error.as_ref()?))).collect()
    }
}

impl ResetReport {
    fn what(&self) -> String {
        let from = self.from.as_deref().unwrap_or("the beginning");
        format!(
            "{}: from {from} to {} skips {} source rows, which no pass will offload",
            self.target,
            or_dash(&self.to),
            HumanCount(self.rows_skipped)
        )
    }
}

impl Report for ResetReport {
    fn lines(&self) -> Vec<String> {
        let status = match self.status {
            ResetStatus::Reset => "done",
            ResetStatus::Planned => "not done, only planned",
            ResetStatus::Unchanged => "nothing was changed",
        };
        vec![format!("{}; {status}", self.what())]
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        Vec::new()
    }
}

impl Report for InitReport {
    fn lines(&self) -> Vec<String> {
        let lines = self.tables.iter().flat_map(|table| {
            let what = match table.status {
                InitStatus::Created => "created at",
                InitStatus::Exists => "exists at",
                InitStatus::Planned => "would be created at",
                InitStatus::Failed => "failed",
            };
            let mut lines = vec![format!("{}: {what} {}", table.target, table.location.as_deref().unwrap_or_default())];
            lines.extend(table.drift.iter().map(|drift| format!("  drift: {drift}")));
            lines
        });
        lines.collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.tables.iter().filter_map(|table| Some((table.target.as_str(), table.error.as_ref()?))).collect()
    }
}
