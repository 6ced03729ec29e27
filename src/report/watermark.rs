//! The document of `watermark show`.

use std::time::Duration;

use indicatif::HumanCount;
use serde::Serialize;

use super::{ErrorReport, Report, or_dash};

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

/// A number of seconds, without its sign.
fn span(seconds: i64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.unsigned_abs())).to_string()
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
