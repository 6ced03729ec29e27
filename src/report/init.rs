//! The document of `init-tables`.

use serde::Serialize;

use super::{ErrorReport, Report, ResetReport};

/// What `init-tables` did about a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InitStatus {
    /// It was made.
    Created,
    /// It was there.
    Exists,
    /// It was there, and the catalog knows it now.
    Registered,
    /// `--dry-run`: it would be made.
    Planned,
    /// `--dry-run`: the catalog would learn it.
    #[serde(rename = "planned")]
    ToRegister,
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
    /// `--watermark`: the commit that takes the table over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption: Option<ResetReport>,
    /// `--register`: rows that the table lacks at its last tick.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seam: Option<Seam>,
    /// What is to be done before the first pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
    /// Why it failed.
    pub error: Option<ErrorReport>,
}

/// The last tick of a table that was taken over, where the source holds more rows of it.
#[derive(Debug, Serialize)]
pub struct Seam {
    /// The tick.
    pub at: String,
    /// Its rows in the source.
    pub source_rows: u64,
    /// Its rows in the table.
    pub target_rows: u64,
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
                InitStatus::Registered => "registered at",
                InitStatus::Planned => "would be created at",
                InitStatus::ToRegister => "would be registered at",
                InitStatus::Failed => "failed",
            };
            let mut lines = vec![format!("{}: {what} {}", table.target, table.location.as_deref().unwrap_or_default())];
            lines.extend(table.drift.iter().map(|drift| format!("  drift: {drift}")));
            lines.extend(table.adoption.iter().flat_map(ResetReport::lines).map(|line| format!("  watermark: {line}")));
            lines.extend(table.next_step.iter().map(|step| format!("  next: {step}")));
            lines
        });
        lines.collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.tables.iter().filter_map(|table| Some((table.target.as_str(), table.error.as_ref()?))).collect()
    }
}
