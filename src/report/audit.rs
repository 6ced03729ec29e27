//! The document of `audit`.

use std::collections::BTreeMap;

use indicatif::HumanCount;
use serde::Serialize;

use super::{ErrorReport, Report, or_dash};
use crate::audit::Verdict;
use crate::error::{Kind, worst_exit};

/// A bucket, half-open. Timestamps are RFC 3339 in UTC.
#[derive(Debug, Serialize)]
pub struct AuditBucket {
    /// Inclusive.
    pub from: String,
    /// Exclusive.
    pub to: String,
    /// Rows of the source.
    pub source_rows: u64,
    /// Rows of the target.
    pub target_rows: u64,
    /// Rows that the source has more.
    pub missing: u64,
    /// Rows that the target has more.
    pub extra: u64,
    /// Rows of the target whose key the source has with other content; only where rows were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// What they say.
    pub verdict: Verdict,
}

/// One table of `audit`.
#[derive(Debug, Serialize)]
pub struct AuditTable {
    /// Source table.
    pub source: String,
    /// Target table.
    pub target: String,
    /// Nothing at or above it is compared; null where nothing has left yet.
    pub watermark: Option<String>,
    /// Inclusive beginning of what was compared; null where that is nothing.
    pub from: Option<String>,
    /// Exclusive end of it.
    pub to: Option<String>,
    /// Rows that `--repair` added before the buckets were compared; null without it, and where none was missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_repaired: Option<u64>,
    /// Buckets in which either side has rows.
    pub buckets: Vec<AuditBucket>,
    /// Why it could not be compared.
    pub error: Option<ErrorReport>,
}

/// The document of `audit`.
#[derive(Debug, Serialize)]
pub struct AuditReport {
    /// Every table was compared, and no row is missing or extra.
    pub ok: bool,
    /// One entry per table.
    pub tables: Vec<AuditTable>,
}

impl AuditReport {
    /// Over the given tables.
    pub fn new(tables: Vec<AuditTable>) -> Self {
        Self { ok: tables.iter().all(|table| table.exit_code() == 0), tables }
    }

    /// The exit code over all tables.
    pub fn exit_code(&self) -> u8 {
        worst_exit(self.tables.iter().map(AuditTable::exit_code))
    }
}

impl AuditTable {
    fn exit_code(&self) -> u8 {
        match (&self.error, self.mismatches()) {
            (Some(error), _) => error.kind.policy().exit,
            (None, Some(1..)) => Kind::Refused.policy().exit,
            (None, _) => 0,
        }
    }

    /// Buckets with missing or extra rows; `None` where it could not be compared.
    pub fn mismatches(&self) -> Option<u64> {
        let mismatches = self.buckets.iter().filter(|bucket| bucket.verdict.is_mismatch()).count();
        self.error.is_none().then_some(mismatches as u64)
    }

    /// Where the first such bucket begins.
    pub fn first_mismatch(&self) -> Option<&str> {
        self.buckets.iter().find(|bucket| bucket.verdict.is_mismatch()).map(|bucket| bucket.from.as_str())
    }

    fn summary(&self) -> String {
        if self.error.is_some() {
            return "not compared".to_owned();
        }
        let Some(watermark) = &self.watermark else {
            return "nothing to compare, no pass has committed yet".to_owned();
        };
        if self.from.is_none() {
            return format!("nothing to compare below the watermark {watermark}");
        }
        let sum = |rows: fn(&AuditBucket) -> u64| HumanCount(self.buckets.iter().map(rows).sum());
        let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
        for bucket in &self.buckets {
            *verdicts.entry(bucket.verdict).or_default() += 1;
        }
        let verdicts: Vec<String> = verdicts.iter().map(|(verdict, number)| format!("{number} {verdict}")).collect();
        format!(
            "[{}, {}): source {} rows, target {}, {} bucket(s){}{}",
            or_dash(&self.from),
            or_dash(&self.to),
            sum(|bucket| bucket.source_rows),
            sum(|bucket| bucket.target_rows),
            self.buckets.len(),
            if verdicts.is_empty() { "" } else { ": " },
            verdicts.join(", ")
        )
    }

    /// The summary, then what is not equal: neighbours of one verdict on one line, because a skipped month has hundreds of hours.
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}: {}", self.target, self.summary())];
        lines.extend(
            self.rows_repaired.map(|rows| format!("  {} rows were missing and have been added", HumanCount(rows))),
        );
        let alike = |a: &AuditBucket, b: &AuditBucket| a.verdict == b.verdict && a.to == b.from;
        let unequal = self.buckets.chunk_by(alike).filter(|run| run.iter().all(|b| b.verdict != Verdict::Equal));
        lines.extend(unequal.filter_map(|run| {
            let (first, last) = run.first().zip(run.last())?;
            let sum = |rows: fn(&AuditBucket) -> u64| HumanCount(run.iter().map(rows).sum());
            let (source, target) = (sum(|bucket| bucket.source_rows), sum(|bucket| bucket.target_rows));
            let (verdict, mut exactly) = (first.verdict, String::new());
            if first.changed.is_some() && verdict != Verdict::Skipped {
                let (missing, extra) = (sum(|bucket| bucket.missing), sum(|bucket| bucket.extra));
                let changed = sum(|bucket| bucket.changed.unwrap_or(0));
                exactly = format!(": {missing} missing, {extra} extra, {changed} changed");
            }
            Some(format!("  [{}, {}): {verdict}, source {source} rows, target {target}{exactly}", first.from, last.to))
        }));
        lines
    }
}

impl Report for AuditReport {
    fn lines(&self) -> Vec<String> {
        self.tables.iter().flat_map(AuditTable::lines).collect()
    }

    fn errors(&self) -> Vec<(&str, &ErrorReport)> {
        self.tables.iter().filter_map(|table| Some((table.target.as_str(), table.error.as_ref()?))).collect()
    }
}
