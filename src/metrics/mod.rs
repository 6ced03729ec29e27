//! What monitoring sees: the same series after every pass and audit, for all tables of the configuration.
//!
//! Values come from the state cache, in which totals live on between passes; [`families`] is pure. Names follow Prometheus' rules: base units,
//! `_total` for counters. A value that is not known has no sample.

mod otlp;
mod textfile;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::config::Config;
use crate::http::post_json;
use crate::state::{LastPass, State, TableState};

/// Kinds of errors that passes over a table end with: those of [`crate::error::Kind`] that are failures, and `died`.
const ERROR_KINDS: [&str; 9] =
    ["busy", "config", "conflict", "deadline", "died", "internal", "refused", "unavailable", "unknown"];

/// What a metric does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Only grows, except where the state cache was lost.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A metric with its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Family<'a> {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub kind: Type,
    /// What it means.
    pub help: &'static str,
    /// One for each set of labels.
    pub samples: Vec<Sample<'a>>,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, &'a str)>,
    /// The value.
    pub value: f64,
}

/// What there is to tell.
#[derive(Debug, Clone, Default)]
pub struct Facts<'a> {
    /// This moment, milliseconds since 1970.
    pub now_ms: i64,
    /// The configured tables, by target; none where the state cache cannot be used.
    pub tables: Vec<(&'a str, &'a TableState)>,
    /// The last pass.
    pub last_pass: Option<LastPass>,
    /// Whether the state cache could be read and written.
    pub state_usable: bool,
}

/// A metric of a table: name, type, help, value at a moment in milliseconds since 1970.
type OfTable = (&'static str, Type, &'static str, fn(&TableState, i64) -> Option<f64>);

const OF_TABLES: [OfTable; 21] = [
    ("k2_offload_rows_total", Type::Counter, "Rows committed to the target.", |table, _| number(table.totals.rows)),
    ("k2_offload_rows_late_total", Type::Counter, "Rows among them that came late.", |table, _| {
        number(table.totals.rows_late)
    }),
    (
        "k2_offload_rows_duplicate_total",
        Type::Counter,
        "Rows of the source dropped as duplicates of a key.",
        |table, _| number(table.totals.rows_duplicate),
    ),
    ("k2_offload_rows_rejected_total", Type::Counter, "Rows of the source kept out by reject_where.", |table, _| {
        number(table.totals.rows_rejected)
    }),
    ("k2_offload_bytes_total", Type::Counter, "Bytes of committed data files.", |table, _| number(table.totals.bytes)),
    ("k2_offload_files_total", Type::Counter, "Committed data files.", |table, _| number(table.totals.files)),
    (
        "k2_offload_passes_total",
        Type::Counter,
        "Passes over the table that ended, neither skipped nor stopped by a signal.",
        |table, _| number(table.totals.passes),
    ),
    (
        "k2_offload_commit_conflicts_total",
        Type::Counter,
        "Tries that found source or target changed, and were planned again or given up.",
        |table, _| number(table.totals.conflicts),
    ),
    ("k2_offload_consecutive_failures", Type::Gauge, "Failed passes since the last that succeeded.", |table, _| {
        number(table.failure_count)
    }),
    (
        "k2_offload_lag_seconds",
        Type::Gauge,
        "Seconds since all that could leave had left, when this was written.",
        |table, now| table.lag_seconds(now).and_then(number),
    ),
    (
        "k2_offload_caught_up_timestamp_seconds",
        Type::Gauge,
        "When all that could leave had left: now less this is the lag, also when no pass runs.",
        |table, _| table.caught_up_ms.map(seconds),
    ),
    (
        "k2_offload_checked_to_timestamp_seconds",
        Type::Gauge,
        "Bound of the cursor up to which the source was looked at.",
        |table, _| instant(table.checked_to_at.as_deref()),
    ),
    (
        "k2_offload_watermark_timestamp_seconds",
        Type::Gauge,
        "Watermark: every row seen below it is in the target.",
        |table, _| instant(table.watermark.as_deref()),
    ),
    (
        "k2_offload_last_success_timestamp_seconds",
        Type::Gauge,
        "End of the last pass over the table that succeeded.",
        |table, _| instant(table.last_success_at.as_deref()),
    ),
    ("k2_offload_table_duration_seconds", Type::Gauge, "Duration of the last pass over the table.", |table, _| {
        table.last_duration_ms.map(seconds)
    }),
    ("k2_offload_target_rows", Type::Gauge, "Rows in the target.", |table, _| table.target_rows.and_then(number)),
    (
        "k2_offload_ttl_seconds_left",
        Type::Gauge,
        "Seconds until the source's TTL takes rows that have not left, when this was written.",
        |table, now| table.ttl_seconds_left(now).and_then(number),
    ),
    (
        "k2_offload_ttl_deadline_timestamp_seconds",
        Type::Gauge,
        "When the source's TTL takes rows that have not left: this less now is what is left, also when no pass runs.",
        |table, _| table.ttl_deadline_seconds().and_then(number),
    ),
    (
        "k2_offload_audit_mismatches",
        Type::Gauge,
        "Hours (days of a Date cursor) with missing or extra rows in the last audit.",
        |table, _| table.audit_mismatches.and_then(number),
    ),
    ("k2_offload_last_audit_timestamp_seconds", Type::Gauge, "End of the last audit.", |table, _| {
        table.audited_ms.map(seconds)
    }),
    (
        "k2_offload_last_table_pass_timestamp_seconds",
        Type::Gauge,
        "End of the last pass over the table, however it ended.",
        |table, _| table.last_pass_ms.map(seconds),
    ),
];

/// All metrics, each with its samples.
pub fn families<'a>(facts: &Facts<'a>) -> Vec<Family<'a>> {
    let of_tables = OF_TABLES.iter().map(|(name, kind, help, value)| {
        let samples = facts.tables.iter().filter_map(|(target, table)| {
            Some(Sample { labels: vec![("table", *target)], value: value(table, facts.now_ms)? })
        });
        Family { name, kind: *kind, help, samples: samples.collect() }
    });
    let errors = facts.tables.iter().flat_map(|(target, table)| {
        ERROR_KINDS.iter().map(|kind| Sample {
            labels: vec![("table", *target), ("kind", kind)],
            value: table.errors.get(*kind).copied().unwrap_or(0) as f64,
        })
    });
    let errors = Family {
        name: "k2_offload_errors_total",
        kind: Type::Counter,
        help: "Passes over the table that failed, by kind of error.",
        samples: errors.collect(),
    };
    let one = |name, help, value: Option<f64>| Family {
        name,
        kind: Type::Gauge,
        help,
        samples: value.map(|value| Sample { labels: Vec::new(), value }).into_iter().collect(),
    };
    let mut build = one("k2_offload_build_info", "The program that wrote this.", Some(1.0));
    build.samples.iter_mut().for_each(|sample| sample.labels.push(("version", env!("CARGO_PKG_VERSION"))));
    let last = facts.last_pass;
    let all = of_tables.chain([
        errors,
        one(
            "k2_offload_pass_duration_seconds",
            "Duration of the last pass.",
            last.map(|pass| seconds(pass.duration_ms)),
        ),
        one("k2_offload_last_pass_timestamp_seconds", "End of the last pass.", last.map(|pass| seconds(pass.ended_ms))),
        one(
            "k2_offload_state_usable",
            "Whether the state cache, from which the series of tables come, could be read and written.",
            Some(f64::from(u8::from(facts.state_usable))),
        ),
        build,
    ]);
    all.filter(|family| !family.samples.is_empty()).collect()
}

/// Writes what the state cache knows of `tables` to where the configuration says, and without it when the last pass was. What cannot be written
/// is a warning.
pub async fn publish(
    config: &Config,
    state: &State,
    tables: &BTreeMap<String, TableState>,
    last_pass: Option<LastPass>,
) {
    let now = Utc::now();
    let names: Vec<String> = config.tables.iter().map(|table| table.target.to_string()).collect();
    let unseen = TableState::default();
    let of_tables = names.iter().map(|target| (target.as_str(), tables.get(target).unwrap_or(&unseen)));
    let state_usable = state.problem().is_none();
    let facts = Facts {
        now_ms: now.timestamp_millis(),
        // Totals that begin anew with each pass would be worse than none.
        tables: of_tables.filter(|_| state_usable).collect(),
        last_pass: state.last_pass().filter(|_| state_usable).or(last_pass),
        state_usable,
    };
    let families = families(&facts);
    if let Some(file) = &config.metrics.textfile
        && let Err(error) = textfile::write(file, &families)
    {
        tracing::warn!(file = %file.display(), %error, "the metrics cannot be written");
    }
    if let Some(url) = &config.metrics.otlp
        && let Err(error) = post_json(url, otlp::document(&families, now), config.metrics.timeout).await
    {
        tracing::warn!(error = format!("{error:#}"), "the metrics cannot be sent");
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the table of metrics has it")]
fn number(number: i64) -> Option<f64> {
    Some(number as f64)
}

fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

fn instant(text: Option<&str>) -> Option<f64> {
    Some(seconds(DateTime::parse_from_rfc3339(text?).ok()?.timestamp_millis()))
}
