//! The document of `watermark reset`, and the question that comes before it.

use std::io::{self, IsTerminal, Write};

use indicatif::HumanCount;
use serde::Serialize;

use super::{ErrorReport, Report, or_dash};
use crate::error::{Error, Kind, Result};

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
    /// Rows of the source that have left from there on: the next passes compare them with the target and add what that does not hold; null where none
    /// has.
    pub rows_compared: Option<u64>,
    /// The commit's snapshot.
    pub snapshot_id: Option<i64>,
}

/// Asks on the terminal whether a reset shall be made.
pub fn confirm(reset: &ResetReport) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Error::new(Kind::Config, format!("{}, and stdin is no terminal to ask on", reset.what()))
            .hint("look at it with --dry-run, then confirm it with --yes"));
    }
    let _ = write!(io::stderr(), "{}. Go on? [y/N] ", reset.what());
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

impl ResetReport {
    fn what(&self) -> String {
        let from = self.from.as_deref().unwrap_or("the beginning");
        let what = match self.rows_compared {
            None => format!(
                "skips {} source rows, which no pass will offload and which stay in the source until its TTL",
                HumanCount(self.rows_skipped)
            ),
            Some(rows) => format!(
                "makes the next passes compare {} source rows with the target and add those that it does not hold",
                HumanCount(rows)
            ),
        };
        format!("{}: from {from} to {} {what}", self.target, or_dash(&self.to))
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
