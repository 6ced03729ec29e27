//! One pass: the order of its steps and the points where it can die.
//!
//! ```text
//! guard -> target state -> source facts -> plan -> count -> read and write -> check -> commit -> state cache
//! ```
//!
//! Crash safety: before *write* nothing is durable. Between *write* and *commit* only files exist that nothing refers to; they are deleted
//! when the pass fails, and left behind by kill -9. After *commit* the next pass reads the watermark from the table.

use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use futures::FutureExt;
use iceberg::io::FileIO;
use tracing::Instrument;
use uuid::Uuid;

use crate::chunk::{Chunk, Files, Route};
use crate::commit::{self, Commit, Failure};
use crate::config::{Config, Table};
use crate::cursor::{Cursor, Tick, micros_of};
use crate::error::{Error, Kind, Result, worst_exit};
use crate::failpoint::{self, Action, Failpoint};
use crate::guard::Guard;
use crate::plan::{Situation, Window};
use crate::report::{ErrorReport, RunReport, RunStatus, RunTable};
use crate::source::Server;
use crate::state::State;
use crate::stop::Stop;
use crate::storage::local_file_io;
use crate::target::{Catalog, Target};
use crate::telemetry::Telemetry;
use crate::watermark::Marker;

/// Tries of a table within one pass.
const TRIES: u32 = 3;
/// Wait before the second try; doubled before each further one.
const BACKOFF: Duration = Duration::from_millis(500);
/// Two hosts whose clocks differ by more are worth a warning.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// What a pass was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Plan and count, change nothing.
    pub dry_run: bool,
    /// Leave rows at or above this instant (microseconds since 1970).
    pub until_micros: Option<i64>,
}

/// Moves the new rows of `tables`; every table gets its entry, whatever became of the others.
pub async fn run(
    config: &Config,
    tables: &[&Table],
    options: Options,
    stop: &Stop,
    telemetry: &Telemetry,
) -> RunReport {
    let started = Instant::now();
    let started_at = now();
    let pass = Pass {
        config,
        options,
        run_id: Uuid::now_v7().simple().to_string(),
        file_io: local_file_io(),
        state: State::open(&config.state),
        stop,
        telemetry,
    };
    let tables = pass.tables(tables, started).instrument(tracing::info_span!("pass", run_id = pass.run_id)).await;
    let exit = worst_exit(tables.iter().map(RunTable::exit_code));
    let exit = if exit == Kind::Stopped.policy().exit { stop.exit_code().unwrap_or(exit) } else { exit };
    RunReport { run_id: pass.run_id, started_at, duration_ms: millis(started), exit, tables }
}

/// A pass under way.
struct Pass<'a> {
    config: &'a Config,
    options: Options,
    run_id: String,
    file_io: FileIO,
    state: State,
    stop: &'a Stop,
    telemetry: &'a Telemetry,
}

/// What became of a table.
struct Outcome {
    status: RunStatus,
    cursor: Cursor,
    window: Option<Window>,
    marker: Option<Marker>,
    checked_to: Option<Tick>,
    rows_future: u64,
    rows_read: u64,
    rows_written: u64,
    bytes_written: u64,
    files: u64,
    snapshot_id: Option<i64>,
}

impl Pass<'_> {
    async fn tables(&self, tables: &[&Table], started: Instant) -> Vec<RunTable> {
        let server = self.retry(async || Server::connect(&self.config.clickhouse, &self.run_id).await).await;
        let mut reports = Vec::with_capacity(tables.len());
        for table in tables {
            let span = tracing::info_span!("table", target = %table.target);
            reports.push(self.table(table, &server, started).instrument(span).await);
        }
        reports
    }

    /// Runs `work` up to [`TRIES`] times while its errors may pass by themselves.
    async fn retry<T>(&self, mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let mut wait = BACKOFF;
        for attempt in 1..TRIES {
            match work().await {
                Err(error) if error.kind().policy().retry => {
                    tracing::info!(%error, attempt, "failed, trying again");
                    self.stop.or(tokio::time::sleep(wait).map(Ok)).await?;
                    wait *= 2;
                }
                result => return result,
            }
        }
        work().await
    }

    /// One table, from the guard to the state cache.
    async fn table(&self, table: &Table, server: &Result<Server>, pass_started: Instant) -> RunTable {
        let started = Instant::now();
        let key = table.target.to_string();
        if !self.options.dry_run {
            self.state.begin(&key);
        }
        let result = if pass_started.elapsed() > self.config.pass_deadline {
            Err(Error::new(Kind::Unavailable, "not begun: pass_deadline is over").hint("the next pass begins with it"))
        } else {
            match server {
                Ok(server) => self.guarded(table, server).await,
                Err(error) => Err(error.repeat()),
            }
        };
        let duration_ms = millis(started);
        self.remember(&key, &result, duration_ms);
        report(table, &result, duration_ms)
    }

    async fn guarded(&self, table: &Table, server: &Server) -> Result<Outcome> {
        let mut catalog = Catalog::open(&self.config.catalog)?;
        let free = failpoint::hit(Failpoint::Guard)? == Action::Skip || self.options.dry_run;
        let _guard = if free { None } else { Some(Guard::acquire(&self.config.catalog, &table.target, &self.run_id)?) };
        self.retry(async || self.offload(table, server, &mut catalog).await).await
    }

    /// One try of a table.
    async fn offload(&self, table: &Table, server: &Server, catalog: &mut Catalog) -> Result<Outcome> {
        failpoint::hit(Failpoint::Target)?;
        let target = Target::load_existing(catalog, &self.file_io, &table.target).await?;
        let marker = target.marker(&self.file_io, &table.target).await?;
        let database = &self.config.clickhouse.database;
        let route = self.stop.or(Route::open(server, database, table, target)).await?;
        route.check(marker.as_ref())?;

        let cursor = route.cursor();
        let mut situation = Situation {
            cursor: cursor.kind,
            watermark: marker.as_ref().map(|marker| marker.watermark),
            start_at: table.start_at.map(|start| cursor.kind.tick_from(start.timestamp_micros())),
            source_clock_micros: 0,
            settle_delay: table.settle_delay,
            newest: None,
            until: self.options.until_micros.map(|until| cursor.kind.tick_at(until)),
        };
        let facts = self.stop.or(route.source.facts(cursor, situation.low())).await?;
        warn_of_clock_skew(facts.clock_micros);
        situation.source_clock_micros = facts.clock_micros;
        situation.newest = facts.newest;
        let plan = situation.plan();

        let mut outcome = Outcome::nothing(cursor.clone(), marker, plan.checked_to, facts.future);
        let Some(window) = plan.window else { return Ok(outcome) };
        let Some(chunk) = self.stop.or(route.count(window)).await? else { return Ok(outcome) };
        if chunk.window != window {
            outcome.checked_to = Some(chunk.window.high);
        }
        outcome.window = Some(chunk.window);
        if self.options.dry_run {
            outcome.status = RunStatus::Planned;
            outcome.files = chunk.partitions.len() as u64;
            outcome.rows_read = chunk.source_rows();
            return Ok(outcome);
        }
        failpoint::hit(Failpoint::Counted)?;

        let mut files = Files::default();
        let bar = self.telemetry.bar(&table.target.to_string());
        let written = self.stop.or(route.write(&chunk, &mut files, &bar)).await;
        bar.finish_and_clear();
        let committed = match written {
            Ok(()) => self.commit(catalog, &route, outcome.marker.as_ref(), &chunk, &files).await,
            Err(error) => Err(Failure::Rejected(error)),
        };
        match committed {
            Ok((snapshot_id, marker)) => {
                failpoint::hit(Failpoint::Committed)?;
                outcome.finish(&files, snapshot_id, marker);
                Ok(outcome)
            }
            Err(Failure::Rejected(error)) => {
                files.discard();
                Err(error)
            }
            Err(Failure::Undecided(error)) => {
                tracing::warn!(files = ?files.begun, "kept, because nobody could tell whether the commit landed");
                Err(error)
            }
        }
    }

    /// Commits what was written; a signal no longer interrupts.
    async fn commit(
        &self,
        catalog: &mut Catalog,
        route: &Route<'_>,
        planned_on: Option<&Marker>,
        chunk: &Chunk,
        files: &Files,
    ) -> Result<(i64, Marker), Failure> {
        failpoint::hit(Failpoint::Written).map_err(Failure::Rejected)?;
        let marker = chunk.marker(&route.identity, planned_on, files);
        let commit = Commit {
            name: &route.table.target,
            planned_on: planned_on.map(|marker| marker.commit_id),
            planned_for: &route.target.metadata,
            marker: &marker,
            files: &files.finished,
        };
        let snapshot_id = commit::commit(catalog, &self.file_io, &commit).await?;
        Ok((snapshot_id, marker))
    }

    /// Tells the log and the state cache.
    fn remember(&self, key: &str, result: &Result<Outcome>, duration_ms: u64) {
        let cached_ms = i64::try_from(duration_ms).unwrap_or(i64::MAX);
        match result {
            Ok(outcome) => {
                tracing::info!(status = ?outcome.status, rows = outcome.rows_written, duration_ms, "done");
                if !self.options.dry_run {
                    self.state.succeed(key, outcome.checked_to, &now(), cached_ms);
                }
            }
            Err(error) => {
                match error.kind() {
                    Kind::Locked | Kind::Stopped => tracing::info!(%error, "not done"),
                    Kind::Unavailable | Kind::Conflict => tracing::warn!(%error, "failed, the next pass tries again"),
                    Kind::Refused | Kind::Internal | Kind::Config => {
                        tracing::error!(%error, "failed");
                    }
                }
                if !self.options.dry_run && error.kind() != Kind::Locked {
                    self.state.fail(key, &error.to_string(), cached_ms);
                }
            }
        }
    }
}

impl Outcome {
    fn nothing(cursor: Cursor, marker: Option<Marker>, checked_to: Option<Tick>, rows_future: u64) -> Self {
        Self {
            status: RunStatus::Nothing,
            cursor,
            window: None,
            marker,
            checked_to,
            rows_future,
            rows_read: 0,
            rows_written: 0,
            bytes_written: 0,
            files: 0,
            snapshot_id: None,
        }
    }

    fn finish(&mut self, files: &Files, snapshot_id: i64, marker: Marker) {
        self.status = RunStatus::Offloaded;
        self.rows_read = files.rows();
        self.rows_written = files.rows();
        self.bytes_written = files.bytes();
        self.files = files.finished.len() as u64;
        self.snapshot_id = Some(snapshot_id);
        self.marker = Some(marker);
    }
}

fn report(table: &Table, result: &Result<Outcome>, duration_ms: u64) -> RunTable {
    let outcome = result.as_ref().ok();
    let error = result.as_ref().err();
    let time = |tick: fn(&Outcome) -> Option<Tick>| outcome.and_then(|o| Some(o.cursor.kind.format(tick(o)?)));
    let number = |of: fn(&Outcome) -> u64| outcome.map_or(0, of);
    RunTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        layer: table.layer.clone(),
        status: match error {
            None => outcome.map_or(RunStatus::Nothing, |outcome| outcome.status),
            Some(error) if error.kind() == Kind::Locked => RunStatus::Skipped,
            Some(_) => RunStatus::Failed,
        },
        low: time(|o| o.window?.low),
        high: time(|o| Some(o.window?.high)),
        watermark: time(|o| Some(o.marker.as_ref()?.watermark)),
        offloaded_to: time(|o| Some(o.marker.as_ref()?.offloaded_to)),
        checked_to: time(|o| o.checked_to),
        rows_read: number(|o| o.rows_read),
        rows_written: number(|o| o.rows_written),
        rows_duplicate: 0,
        rows_rejected: 0,
        rows_late: None,
        rows_changed: None,
        rows_future: outcome.map(|o| o.rows_future),
        bytes_written: number(|o| o.bytes_written),
        files: number(|o| o.files),
        chunks: u64::from(outcome.is_some_and(|o| o.status == RunStatus::Offloaded)),
        snapshot_id: outcome.and_then(|o| o.snapshot_id),
        duration_ms,
        error: error.map(ErrorReport::from),
    }
}

fn warn_of_clock_skew(source_micros: i64) {
    let skew = source_micros.abs_diff(Utc::now().timestamp_micros());
    if skew > micros_of(CLOCK_SKEW).unsigned_abs() {
        tracing::warn!(
            skew_seconds = skew / 1_000_000,
            "this host's clock and the source's differ; the source's counts"
        );
    }
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
