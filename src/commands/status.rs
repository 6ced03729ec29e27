//! `status`: whether all is well, from the state cache and the targets. The source is not asked, so that it answers while ClickHouse is down.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::select;
use crate::cli::{Format, Status};
use crate::clock::rfc3339;
use crate::config::{Config, Table};
use crate::error::{Kind, Result};
use crate::report::{self, StatusReport, StatusState, StatusTable};
use crate::source::new_run_id;
use crate::state::{Day, Ledger, State, TableState};
use crate::target::{Catalog, DataFiles, Target, committed_ms, live_records};
use crate::ttl;
use crate::watermark::Mode;

/// Passes whose mean duration is told.
const MEAN_OF: usize = 10;
/// Passes that are drawn.
const DRAWN: usize = 24;
/// More failures in a row than this do not pass by themselves.
const MAX_FAILURES: i64 = 3;

pub async fn execute(config: &Config, args: &Status, format: Format) -> Result<u8> {
    let tables = select(config, &args.tables)?;
    let now = Utc::now();
    let state = State::open_to_read(&config.state);
    let catalog = Catalog::open(config).await;
    let max_lag = args.max_lag.unwrap_or(config.lag_limit());
    let mut entries = Vec::with_capacity(tables.len());
    let mut remembered = state.tables();
    let targets: Vec<String> = tables.iter().map(|table| table.target.to_string()).collect();
    Ledger::new(config, &new_run_id()).complete(&mut remembered, &targets).await;
    for table in tables {
        let known = remembered.remove(&table.target.to_string()).unwrap_or_default();
        let seen = match &catalog {
            Ok(catalog) => look(catalog, table).await,
            Err(error) => Err(error.repeat()),
        };
        entries.push(describe(config, table, &state, &known, seen, max_lag));
    }
    let problem = state.problem();
    let report = StatusReport {
        ok: problem.is_none() && entries.iter().all(|table| table.problems.is_empty()),
        at: rfc3339(now),
        last_pass_at: state.last_pass().and_then(|pass| time(pass.ended_ms)),
        state: StatusState { path: state.path().to_owned(), problem },
        tables: entries,
    };
    report::print(&report, format);
    Ok(if report.ok { 0 } else { Kind::Refused.policy().exit })
}

/// What a target says of itself.
struct Seen {
    watermark: Option<String>,
    /// When a pass committed the newest rows, milliseconds since 1970; `None` where our newest commit brought none.
    committed_ms: Option<i64>,
    rows: Option<u64>,
    files: DataFiles,
}

async fn look(catalog: &Catalog, table: &Table) -> Result<Seen> {
    let target = Target::load_existing(catalog, &table.target).await?;
    let marker = target.marker(catalog.file_io(), &table.target).await?;
    let appended = marker.as_ref().filter(|marker| marker.mode == Mode::Append);
    Ok(Seen {
        watermark: marker.as_ref().map(|marker| marker.source.cursor.kind.format(marker.watermark)),
        committed_ms: appended.and_then(|marker| committed_ms(&target.metadata, marker)),
        rows: live_records(&target.metadata),
        files: target.data_files(catalog.file_io(), table.target_file_size).await?,
    })
}

fn describe(
    config: &Config,
    table: &Table,
    state: &State,
    remembered: &TableState,
    seen: Result<Seen>,
    max_lag: Duration,
) -> StatusTable {
    let now = Utc::now();
    let target = table.target.to_string();
    let Day { passes, succeeded, rows, rows_late, rows_duplicate } = state.day(&target);
    let recent = state.recent(&target, DRAWN);
    let last: Vec<i64> = recent.iter().rev().take(MEAN_OF).map(|pass| pass.duration_ms).collect();
    let now_ms = now.timestamp_millis();
    let mut entry = StatusTable {
        source: table.source.clone(),
        target,
        layer: table.layer.clone(),
        problems: Vec::new(),
        notes: Vec::new(),
        status: if remembered.status.is_empty() { "initialized".to_owned() } else { remembered.status.clone() },
        watermark: remembered.watermark.clone(),
        checked_to: remembered.checked_to_at.clone(),
        lag_seconds: remembered.lag_seconds(now_ms),
        max_lag_seconds: max_lag.as_secs(),
        last_pass_at: remembered.last_pass_ms.and_then(time),
        last_success_at: remembered.last_success_at.clone(),
        last_duration_ms: remembered.last_duration_ms,
        mean_duration_ms: last.iter().sum::<i64>().checked_div(last.len() as i64),
        failure_count: remembered.failure_count,
        last_error: remembered.last_error.clone(),
        last_hint: remembered.last_hint.clone(),
        passes_24h: passes,
        success_rate_24h: (passes > 0).then(|| succeeded as f64 / passes as f64),
        rows_24h: rows,
        rows_late_24h: rows_late,
        rows_duplicate_24h: rows_duplicate,
        ttl_seconds_left: remembered.ttl_seconds_left(now_ms),
        target_rows: remembered.target_rows.map(i64::unsigned_abs),
        files: None,
        small_files: None,
        last_audit_at: remembered.audited_ms.and_then(time),
        audit_mismatches: remembered.audit_mismatches,
        recent,
    };
    match seen {
        Ok(seen) => {
            let missed = remembered.last_pass_ms.zip(seen.committed_ms).is_some_and(|(pass, commit)| commit > pass);
            if missed && remembered.status != "running" {
                entry.notes.push("the target has a newer commit than the last pass that is remembered".to_owned());
            }
            entry.notes.extend(unended(remembered, config, now_ms));
            entry.watermark = seen.watermark;
            entry.target_rows = seen.rows;
            (entry.files, entry.small_files) = (Some(seen.files.number), Some(seen.files.small));
        }
        Err(error) => entry.problems.push(format!("{error} (hint: {})", error.hint_text())),
    }
    entry.problems.extend(problems(table, remembered, &entry));
    entry
}

/// Said of a pass that should have ended long ago: it runs, it died, or its end could not be remembered.
fn unended(remembered: &TableState, config: &Config, now_ms: i64) -> Option<String> {
    let started_at = remembered.started_at.as_ref().filter(|_| remembered.status == "running")?;
    let started_ms = DateTime::parse_from_rfc3339(started_at).ok()?.timestamp_millis();
    let limit_ms = i64::try_from(config.pass_deadline.as_millis()).ok()?.saturating_mul(2);
    (now_ms.saturating_sub(started_ms) > limit_ms)
        .then(|| format!("the pass that began at {started_at} has left no record of its end"))
}

/// What a person has to look at.
fn problems(table: &Table, remembered: &TableState, entry: &StatusTable) -> Vec<String> {
    let mut problems = Vec::new();
    let span = report::span;
    match entry.lag_seconds {
        None => problems.push("no pass that is remembered has looked at the source".to_owned()),
        Some(lag) if lag.unsigned_abs() > entry.max_lag_seconds => {
            let limit = i64::try_from(entry.max_lag_seconds).unwrap_or(i64::MAX);
            problems.push(format!("lag {} is more than {}", span(lag), span(limit)));
        }
        Some(_) => {}
    }
    let failure = remembered.last_error.as_ref().map(|error| {
        let hint = remembered.last_hint.as_ref().map_or(String::new(), |hint| format!(" (hint: {hint})"));
        format!("failed {} time(s) in a row: {error}{hint}", remembered.failure_count)
    });
    if remembered.failure_count > MAX_FAILURES || remembered.needs_person {
        problems.extend(failure);
    }
    // A row that came now would leave with the next pass, however short it lives.
    let waits =
        remembered.failure_count > 0 || entry.lag_seconds.is_none_or(|lag| lag.unsigned_abs() > entry.max_lag_seconds);
    if let Some(left) = entry.ttl_seconds_left.filter(|left| waits && ttl::is_short(*left, table.ttl_margin)) {
        problems.push(format!("the source's TTL takes rows that have not left in {}", span(left)));
    }
    if let Some(mismatches @ 1..) = entry.audit_mismatches {
        problems.push(format!("the last audit found {mismatches} hour(s) with missing or extra rows"));
    }
    problems
}

fn time(millis: i64) -> Option<String> {
    DateTime::from_timestamp_millis(millis).map(rfc3339)
}
