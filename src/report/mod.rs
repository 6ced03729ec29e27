//! Facts -> text or JSON on stdout, a document per command. No other module prints results.

mod audit;
mod config;
mod grid;
mod history;
mod init;
mod man;
mod orphans;
mod reset;
mod run;
mod status;
mod watermark;

use std::io::{self, Write};

use serde::Serialize;

pub use self::audit::{AuditBucket, AuditReport, AuditTable};
pub use self::config::{Access, Check, CheckStatus, ConfigReport, GrantLine};
pub use self::grid::span;
pub use self::history::HistoryReport;
pub use self::init::{InitReport, InitStatus, InitTable, Seam};
pub use self::man::ManReport;
pub use self::orphans::{OrphanFile, OrphanReport, OrphanTable};
pub use self::reset::{ResetReport, ResetStatus, confirm};
pub use self::run::{CommittedChunk, LeftAlone, News, PlannedChunk, RunReport, RunStatus, RunTable};
pub use self::status::{StatusReport, StatusState, StatusTable};
pub use self::watermark::{WatermarkReport, WatermarkTable};
use crate::cli::Format;
use crate::error::{Error, Kind};

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
            let lines: String = report.lines().into_iter().map(|line| line + "\n").collect();
            let _ = io::stdout().write_all(lines.as_bytes());
            for (table, error) in report.errors() {
                let _ = writeln!(io::stderr(), "k2-offload: {table}: {}\nhint: {}", error.message, error.hint);
            }
        }
    }
}

/// Prints what is no document.
pub fn print_text(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Prints why the process ends, on stderr.
pub fn print_error(error: &Error) {
    let _ = writeln!(io::stderr(), "k2-offload: {error}\nhint: {}", error.hint_text());
}

fn or_dash(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("-")
}
