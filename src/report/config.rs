//! The document of `config check`.

use std::path::PathBuf;

use serde::Serialize;

use super::{ErrorReport, Report};
use crate::config::Resolved;
use crate::error::{Error, worst_exit};
use crate::storage::Rights;

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// It is as it should be.
    Ok,
    /// See `error`.
    Failed,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at: `configuration`, `clickhouse`, `source`, `catalog`, `target`, `warehouse`, `locks`, `state`, `records`, `metrics`,
    /// `notify`.
    pub check: &'static str,
    /// Which of them.
    pub of: String,
    /// What became of it.
    pub status: CheckStatus,
    /// What was found.
    pub found: Option<String>,
    /// Why it failed.
    pub error: Option<ErrorReport>,
}

impl Check {
    /// What `result` says of `of`.
    pub fn new(check: &'static str, of: impl Into<String>, result: Result<String, &Error>) -> Self {
        let status = if result.is_ok() { CheckStatus::Ok } else { CheckStatus::Failed };
        let (found, error) = match result {
            Ok(found) => (Some(found), None),
            Err(error) => (None, Some(ErrorReport::from(error))),
        };
        Self { check, of: of.into(), status, found, error }
    }

    fn line(&self) -> String {
        let (check, of) = (self.check, &self.of);
        match &self.error {
            Some(error) => format!("failed  {check} {of}: {}; hint: {}", error.message, error.hint),
            None => format!("ok      {check} {of}: {}", self.found.as_deref().unwrap_or_default()),
        }
    }
}

/// A right that a user of a database needs.
#[derive(Debug, Serialize)]
pub struct GrantLine {
    /// The statement that grants it.
    pub statement: String,
    /// What goes on without it, if anything does.
    pub without: Option<String>,
}

impl GrantLine {
    fn line(&self) -> String {
        match &self.without {
            None => format!("{};", self.statement),
            Some(without) => format!("{}; -- without it, {without}", self.statement),
        }
    }
}

/// What this process does to a file or folder.
#[derive(Debug, Serialize)]
pub struct Access {
    /// The file or folder.
    pub path: PathBuf,
    /// What it needs there.
    pub needs: &'static str,
}

/// The document of `config check`.
#[derive(Default, Serialize)]
pub struct ConfigReport {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What it means: `offload.toml` with absolute paths and all defaults.
    pub configuration: Option<Resolved>,
    /// All checks.
    pub checks: Vec<Check>,
    /// What the ClickHouse user must be granted.
    pub grants: Vec<GrantLine>,
    /// What the user of a PostgreSQL catalog must be granted.
    pub catalog_grants: Vec<GrantLine>,
    /// What the storage must allow, one for each bucket.
    pub storage: Vec<Rights>,
    /// What the grants leave open.
    pub notes: Vec<String>,
    /// Files and folders that this process uses.
    pub files: Vec<Access>,
    /// Numeric id of the user that checked them.
    pub uid: Option<u32>,
}

impl ConfigReport {
    /// That of the worst check.
    pub fn exit_code(&self) -> u8 {
        worst_exit(self.checks.iter().filter_map(|check| Some(check.error.as_ref()?.kind.policy().exit)))
    }
}

impl Report for ConfigReport {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let (Some(file), Some(configuration)) = (&self.file, &self.configuration) {
            lines.push(format!("# {}, with everything that it does not say", file.display()));
            lines.extend(configuration.toml().lines().map(str::to_owned));
            lines.push(String::new());
        }
        lines.push("# checks".to_owned());
        lines.extend(self.checks.iter().map(Check::line));
        if !self.grants.is_empty() {
            lines.extend([String::new(), "-- what the ClickHouse user needs".to_owned()]);
            lines.extend(self.grants.iter().map(GrantLine::line));
            lines.extend(self.notes.iter().map(|note| format!("-- {note}")));
        }
        if !self.catalog_grants.is_empty() {
            lines.extend([
                String::new(),
                "-- what the catalog's PostgreSQL user needs (where the tables lie in `public`)".to_owned(),
            ]);
            lines.extend(self.catalog_grants.iter().map(GrantLine::line));
        }
        for rights in &self.storage {
            lines.extend([String::new(), format!("# what {} must allow", rights.bucket)]);
            lines.push(rights.policy.as_ref().map_or_else(|| rights.needs.clone(), |policy| format!("{policy:#}")));
        }
        if !self.files.is_empty() {
            let user = self.uid.map(|uid| format!(" (checked as uid {uid})")).unwrap_or_default();
            lines.extend([String::new(), format!("# files of the user that runs k2-offload{user}")]);
            lines.extend(self.files.iter().map(|access| format!("{}: {}", access.path.display(), access.needs)));
        }
        lines
    }

    /// They stand among the checks.
    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        Vec::new()
    }
}
