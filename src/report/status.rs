//! The document of `status`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use indicatif::HumanCount;
use serde::Serialize;

use super::grid::{self, Column, span, sparkline};
use super::{ErrorReport, Report};
use crate::state::Recent;

/// One table of `status`. Timestamps are RFC 3339 in UTC; what is not known is null.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StatusTable {
    /// Source table.
    pub source: String,
    /// Target table.
    pub target: String,
    /// Its layer.
    pub layer: String,
    /// What a person has to look at; a table without problems is well.
    pub problems: Vec<String>,
    /// What is worth knowing beside them.
    pub notes: Vec<String>,
    /// `initialized`, `running`, `success` or `failed`.
    pub status: String,
    /// Every row below it is in the target.
    pub watermark: Option<String>,
    /// How far the source was looked at.
    pub checked_to: Option<String>,
    /// Seconds since all that could leave had left.
    pub lag_seconds: Option<i64>,
    /// Above it a table is not well.
    pub max_lag_seconds: u64,
    /// End of the last pass.
    pub last_pass_at: Option<String>,
    /// End of the last pass that succeeded.
    pub last_success_at: Option<String>,
    /// Duration of the last pass.
    pub last_duration_ms: Option<i64>,
    /// Mean of the last ten.
    pub mean_duration_ms: Option<i64>,
    /// Failures since the last success.
    pub failure_count: i64,
    /// Error of the last pass.
    pub last_error: Option<String>,
    /// What to do about it.
    pub last_hint: Option<String>,
    /// Passes of the last 24 hours that ended.
    pub passes_24h: i64,
    /// Share of them that succeeded, 0 to 1.
    pub success_rate_24h: Option<f64>,
    /// Rows that they committed.
    pub rows_24h: i64,
    /// Late rows among them.
    pub rows_late_24h: i64,
    /// Duplicates that they dropped.
    pub rows_duplicate_24h: i64,
    /// Seconds until the source's TTL takes rows that have not left.
    pub ttl_seconds_left: Option<i64>,
    /// Rows in the target.
    pub target_rows: Option<u64>,
    /// Data files in the target.
    pub files: Option<u64>,
    /// Those below three quarters of `target_file_size`.
    pub small_files: Option<u64>,
    /// End of the last audit.
    pub last_audit_at: Option<String>,
    /// Hours that it found missing or extra.
    pub audit_mismatches: Option<i64>,
    /// The last passes, oldest first.
    pub recent: Vec<Recent>,
}

/// The state cache, from which most of it comes.
#[derive(Debug, Clone, Serialize)]
pub struct StatusState {
    /// Its file.
    pub path: PathBuf,
    /// Why it cannot be used; null where it can.
    pub problem: Option<String>,
}

/// The document of `status`.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    /// Whether nobody has to look at anything.
    pub ok: bool,
    /// When this was so.
    pub at: String,
    /// End of the last pass, over whichever tables.
    pub last_pass_at: Option<String>,
    /// The state cache.
    pub state: StatusState,
    /// One entry per table.
    pub tables: Vec<StatusTable>,
}

const COLUMNS: [Column; 16] = [
    Column::left("TABLE", 0),
    Column::left("", 1),
    Column::right("LAG", 2),
    Column::right("LAST PASS", 3),
    Column::left("WATERMARK", 5),
    Column::right("ROWS 24H", 6),
    Column::right("OK 24H", 7),
    Column::right("FAILURES", 4),
    Column::right("MEAN", 9),
    Column::right("TTL LEFT", 8),
    Column::right("AUDIT", 10),
    Column::right("LATE", 12),
    Column::right("DUPLICATE", 13),
    Column::right("FILES (SMALL)", 11),
    Column::left("ROWS", 14),
    Column::left("TIME", 15),
];

impl StatusTable {
    fn row(&self, now: &str) -> [String; 16] {
        let seconds =
            |millis: Option<i64>| millis.map_or(String::new(), |millis| format!("{:.1}s", millis as f64 / 1000.0));
        let some =
            |number: i64| if number == 0 { String::new() } else { HumanCount(number.unsigned_abs()).to_string() };
        let audit = match (self.audit_mismatches, ago(now, self.last_audit_at.as_deref())) {
            (Some(0), Some(ago)) => format!("ok, {ago} ago"),
            (Some(mismatches), Some(ago)) => format!("{mismatches} wrong, {ago} ago"),
            _ => String::new(),
        };
        let files = self.files.zip(self.small_files);
        [
            self.target.clone(),
            if self.problems.is_empty() { "ok".to_owned() } else { "LOOK".to_owned() },
            self.lag_seconds.map_or("unknown".to_owned(), span),
            ago(now, self.last_pass_at.as_deref()).map_or("never".to_owned(), |ago| format!("{ago} ago")),
            self.watermark.as_deref().unwrap_or("-").to_owned(),
            HumanCount(self.rows_24h.unsigned_abs()).to_string(),
            self.success_rate_24h.map_or(String::new(), |rate| format!("{:.0}%", (rate * 100.0).floor())),
            some(self.failure_count),
            seconds(self.mean_duration_ms),
            self.ttl_seconds_left.map_or(String::new(), span),
            audit,
            some(self.rows_late_24h),
            some(self.rows_duplicate_24h),
            files.map_or(String::new(), |(files, small)| format!("{files} ({small})")),
            sparkline(self.recent.iter().map(|pass| pass.rows)),
            sparkline(self.recent.iter().map(|pass| pass.duration_ms)),
        ]
    }

    fn remarks(&self) -> impl Iterator<Item = String> {
        let problems = self.problems.iter().map(|problem| format!("  ! {problem}"));
        problems.chain(self.notes.iter().map(|note| format!("  - {note}")))
    }
}

/// How long before `now` that was.
fn ago(now: &str, then: Option<&str>) -> Option<String> {
    let instant = |text: &str| DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc));
    Some(span((instant(now)? - instant(then?)?).num_seconds().max(0)))
}

impl Report for StatusReport {
    fn lines(&self) -> Vec<String> {
        let well = self.tables.iter().filter(|table| table.problems.is_empty()).count();
        let last = ago(&self.at, self.last_pass_at.as_deref())
            .map_or("no pass is known".to_owned(), |ago| format!("last pass {ago} ago"));
        let mut lines = vec![format!(
            "{}: {well} of {} tables are well, {last}",
            if self.ok { "ok" } else { "LOOK" },
            self.tables.len()
        )];
        lines.extend(self.state.problem.iter().map(|problem| format!("! {problem}")));
        let rows: Vec<_> = self.tables.iter().map(|table| table.row(&self.at)).collect();
        let mut grid = grid::lines(&COLUMNS, &rows, grid::terminal_width()).into_iter();
        lines.extend(grid.next());
        for (line, table) in grid.zip(&self.tables) {
            lines.push(line);
            lines.extend(table.remarks());
        }
        lines
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        Vec::new()
    }
}
