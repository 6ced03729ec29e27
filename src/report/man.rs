//! The document of `man`.

use std::path::PathBuf;

use serde::Serialize;

use super::{ErrorReport, Report};

/// The document of `man`.
#[derive(Debug, Serialize)]
pub struct ManReport {
    /// The files that were written.
    pub pages: Vec<PathBuf>,
}

impl Report for ManReport {
    fn lines(&self) -> Vec<String> {
        self.pages.iter().map(|page| page.display().to_string()).collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        Vec::new()
    }
}
