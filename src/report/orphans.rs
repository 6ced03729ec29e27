//! The document of `audit --orphans`.

use chrono::{DateTime, SecondsFormat, Utc};
use indicatif::HumanBytes;
use serde::{Serialize, Serializer};

use super::{ErrorReport, Report};
use crate::error::worst_exit;

/// A file that nothing refers to.
#[derive(Debug, Serialize)]
pub struct OrphanFile {
    /// Where it is.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written.
    #[serde(serialize_with = "rfc3339")]
    pub modified_at: DateTime<Utc>,
    /// Whether it was deleted.
    pub removed: bool,
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// One table of `audit --orphans`.
#[derive(Debug, Serialize)]
pub struct OrphanTable {
    /// Target table.
    pub target: String,
    /// By path.
    pub orphans: Vec<OrphanFile>,
    /// Why the search ended early.
    pub error: Option<ErrorReport>,
}

/// The document of `audit --orphans`.
#[derive(Debug, Serialize)]
pub struct OrphanReport {
    /// One entry per table.
    pub tables: Vec<OrphanTable>,
}

impl OrphanReport {
    /// Files that take space are no reason to wake anybody: only errors count.
    pub fn exit_code(&self) -> u8 {
        worst_exit(self.tables.iter().filter_map(|table| Some(table.error.as_ref()?.kind.policy().exit)))
    }
}

impl Report for OrphanReport {
    fn lines(&self) -> Vec<String> {
        let lines = self.tables.iter().flat_map(|table| {
            let bytes = table.orphans.iter().map(|orphan| orphan.bytes).sum();
            let removed = if table.orphans.iter().any(|orphan| orphan.removed) { ", removed" } else { "" };
            let count = table.orphans.len();
            let head = format!("{}: {count} orphaned file(s), {}{removed}", table.target, HumanBytes(bytes));
            let time = |orphan: &OrphanFile| orphan.modified_at.to_rfc3339_opts(SecondsFormat::Secs, true);
            let each = |orphan: &OrphanFile| format!("  {} {} {}", time(orphan), HumanBytes(orphan.bytes), orphan.path);
            [head].into_iter().chain(table.orphans.iter().map(each)).collect::<Vec<_>>()
        });
        lines.collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.tables.iter().filter_map(|table| Some((table.target.as_str(), table.error.as_ref()?))).collect()
    }
}
