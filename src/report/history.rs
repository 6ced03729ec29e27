//! The document of `history`.

use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::grid::{self, Column};
use super::{ErrorReport, Report};
use crate::state::{PastChunk, PastPass};

/// The document of `history`.
#[derive(Debug, Serialize)]
pub struct HistoryReport {
    /// The passes, newest first; an entry for each table.
    pub passes: Vec<PastPass>,
}

const COLUMNS: [Column; 11] = [
    Column::left("STARTED", 0),
    Column::left("TABLE", 0),
    Column::left("STATUS", 1),
    Column::right("ROWS", 2),
    Column::right("LATE", 5),
    Column::right("DUPLICATE", 7),
    Column::right("BYTES", 6),
    Column::right("COMMITS", 8),
    Column::right("SECONDS", 3),
    Column::left("WATERMARK", 4),
    Column::left("RUN", 9),
];

fn row(pass: &PastPass) -> [String; 11] {
    let count = |number: i64| if number == 0 { String::new() } else { HumanCount(number.unsigned_abs()).to_string() };
    let bytes = pass.bytes_written.unsigned_abs();
    [
        pass.started_at.clone(),
        pass.target.clone(),
        pass.status.clone(),
        count(pass.rows_written),
        count(pass.rows_late.unwrap_or(0)),
        count(pass.rows_duplicate),
        if bytes == 0 { String::new() } else { HumanBytes(bytes).to_string() },
        count(pass.chunks),
        format!("{:.2}", pass.duration_ms as f64 / 1000.0),
        pass.watermark.clone().unwrap_or_default(),
        pass.run_id.clone(),
    ]
}

fn remarks(pass: &PastPass) -> Vec<String> {
    let error = pass.error_kind.iter().zip(&pass.error).map(|(kind, error)| format!("  {kind}: {error}"));
    let hint = pass.hint.iter().map(|hint| format!("  hint: {hint}"));
    let commits = pass.commits.iter().map(|commit| {
        let PastChunk { mode, low, high, rows, files, bytes, snapshot_id, committed_at } = commit;
        let (low, high) = (low.as_deref().unwrap_or("beginning"), high.as_deref().unwrap_or("-"));
        let (rows, bytes) = (HumanCount(rows.unsigned_abs()), HumanBytes(bytes.unsigned_abs()));
        format!(
            "  {mode} [{low}, {high}): {rows} rows, {files} file(s), {bytes}, snapshot {snapshot_id} at {committed_at}"
        )
    });
    commits.chain(error).chain(hint).collect()
}

impl Report for HistoryReport {
    fn lines(&self) -> Vec<String> {
        if self.passes.is_empty() {
            return vec!["no such pass is remembered".to_owned()];
        }
        let rows: Vec<_> = self.passes.iter().map(row).collect();
        let mut grid = grid::lines(&COLUMNS, &rows, grid::terminal_width()).into_iter();
        let mut lines: Vec<String> = grid.next().into_iter().collect();
        for (line, pass) in grid.zip(&self.passes) {
            lines.push(line);
            lines.extend(remarks(pass));
        }
        lines
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        Vec::new()
    }
}
