//! What a pass tells the log: one line for each table and one for the pass, at `info` where something happened; and what is worth a warning.

use std::time::Duration;

use chrono::Utc;

use crate::chunk::Route;
use crate::config::Table;
use crate::cursor::micros_of;
use crate::error::Kind;
use crate::report::{RunReport, RunStatus, RunTable};
use crate::schema::Evolution;
use crate::state::State;

/// Two hosts whose clocks differ by more are worth a warning.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Tells what became of a table.
pub fn tell_table(report: &RunTable) {
    let RunTable { status, rows_written: rows, duration_ms, error, .. } = report;
    let Some(error) = error else {
        match status {
            RunStatus::Nothing => tracing::debug!(?status, duration_ms, "done"),
            _ => tracing::info!(?status, rows, files = report.files, bytes = report.bytes_written, duration_ms, "done"),
        }
        return;
    };
    let (error, kind) = (&error.message, error.kind);
    match kind {
        Kind::Locked | Kind::Stopped => tracing::info!(error, "not done"),
        Kind::Unavailable | Kind::Conflict | Kind::Unknown | Kind::Busy | Kind::Deadline => {
            tracing::warn!(error, rows, duration_ms, "failed, the next pass tries again")
        }
        Kind::Refused | Kind::Internal | Kind::Config => tracing::error!(error, rows, duration_ms, "failed"),
    }
}

/// Tells how the pass ended.
pub fn tell_end(report: &RunReport) {
    let RunReport { run_id, duration_ms, exit, tables, .. } = report;
    let with = |status| tables.iter().filter(|table| table.status == status).count();
    let (offloaded, failed, nothing) = (with(RunStatus::Offloaded), with(RunStatus::Failed), with(RunStatus::Nothing));
    let rows: u64 = tables.iter().map(|table| table.rows_written).sum();
    if nothing == tables.len() {
        tracing::debug!(run_id, tables = nothing, duration_ms, "pass done, nothing new");
    } else {
        tracing::info!(run_id, offloaded, nothing, failed, rows, duration_ms, exit, "pass done");
    }
}

/// Warns of what stays different between source and target, once: as long as the cache remembers that it was told.
pub fn tell_differences(route: &Route<'_>, state: &State, remember: bool) {
    let Evolution { differences, renames, .. } = &route.evolution;
    let text = differences.join("; ");
    let is_new = state.tell_drift(&route.table.target.to_string(), &text, remember);
    if is_new && !text.is_empty() {
        let all: Vec<&str> = differences.iter().chain(renames).map(String::as_str).collect();
        tracing::warn!(differences = all.join("; "), "source and target differ, going on");
    }
}

pub fn warn_of_clock_skew(source_micros: i64) {
    let skew = source_micros.abs_diff(Utc::now().timestamp_micros());
    if skew > micros_of(CLOCK_SKEW).unsigned_abs() {
        tracing::warn!(
            skew_seconds = skew / 1_000_000,
            "this host's clock and the source's differ; the source's counts"
        );
    }
}

/// Candles, and rows of which the source has newer versions, are expected to change. Elsewhere a known key with other content means that the key
/// does not name a row, and that one of the two rows is in the target only; without a key, that rows were changed, or exchanged, in the source.
pub fn warn_of_changed_rows(table: &Table, rows: Option<u64>) {
    let changes = table.query.is_some() || table.is_final || table.version_column.is_some();
    let Some(rows @ 1..) = rows.filter(|_| !changes) else { return };
    match table.key.as_slice() {
        [] => tracing::warn!(
            rows,
            "rows that the target holds with other content were left as they are: their cursor and the columns that sort the source are the same"
        ),
        key => tracing::warn!(
            rows,
            key = key.join(", "),
            "rows whose key is in the target with other content were left as they are; if the key is not unique, they are missing there"
        ),
    }
}
