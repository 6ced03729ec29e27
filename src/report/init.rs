//! The document of `init-tables`.

use serde::Serialize;

use super::{ErrorReport, Report};

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
