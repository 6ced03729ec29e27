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
use iceberg::io::FileIO;
use iceberg::spec::{DataFile, Literal, Struct};
use indicatif::ProgressBar;
use tracing::Instrument;
use uuid::Uuid;

use crate::commit::{self, Chunk, Failure};
use crate::config::{Config, Table};
use crate::cursor::{Cursor, Tick, micros_of};
use crate::error::{Error, Kind, Result, worst_exit};
use crate::failpoint::{self, Action, Failpoint};
use crate::guard::Guard;
use crate::plan::{MAX_PARTITIONS_PER_CHUNK, Partition, Situation, Window, cut_at_days};
use crate::report::{ErrorReport, RunReport, RunStatus, RunTable};
use crate::schema::drift;
use crate::source::{DayColumn, Server, Source};
use crate::state::State;
use crate::stop::Stop;
use crate::storage::{delete_own_file, local_file_io};
use crate::target::{Catalog, Target};
use crate::telemetry::Telemetry;
use crate::watermark::{Marker, Mode, SourceIdentity, VERSION};
use crate::write::{HOLD_BACK, Passthrough, Placement, Written};

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

/// How rows go from a source to its target.
struct Route<'a> {
    table: &'a Table,
    source: Source<'a>,
    target: Target,
    identity: SourceIdentity,
    day: Option<DayColumn>,
}

/// The files of a chunk before its commit.
#[derive(Default)]
struct Files {
    /// Every location that was begun.
    begun: Vec<String>,
    /// What is durable.
    finished: Vec<DataFile>,
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
                    self.stop.or(async { Ok(tokio::time::sleep(wait).await) }).await?;
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
        let route = self.stop.or(self.route(table, server, target)).await?;
        route.check(marker.as_ref())?;

        let cursor = &route.identity.cursor;
        let tick = |micros: i64| cursor.kind.tick_at(micros);
        let mut situation = Situation {
            cursor: cursor.kind,
            watermark: marker.as_ref().map(|marker| marker.watermark),
            start_at: table.start_at.map(|start| tick(start.timestamp_micros())),
            source_clock_micros: 0,
            settle_delay: table.settle_delay,
            newest: None,
            until: self.options.until_micros.map(tick),
        };
        let facts = self.stop.or(route.source.facts(cursor, situation.low())).await?;
        warn_of_clock_skew(facts.clock_micros);
        situation.source_clock_micros = facts.clock_micros;
        situation.newest = facts.newest;
        let plan = situation.plan();

        let mut outcome = Outcome::nothing(cursor.clone(), marker, plan.checked_to, facts.future);
        let Some(window) = plan.window else { return Ok(outcome) };
        let planned = window.high;
        let (window, partitions) = self.stop.or(route.count(window)).await?;
        let counted: u64 = partitions.iter().map(|partition| partition.rows).sum();
        if counted == 0 {
            return Ok(outcome);
        }
        outcome.window = Some(window);
        if window.high < planned {
            outcome.checked_to = Some(window.high);
        }
        outcome.files = partitions.len() as u64;
        outcome.rows_read = counted;
        if self.options.dry_run {
            outcome.status = RunStatus::Planned;
            return Ok(outcome);
        }
        failpoint::hit(Failpoint::Counted)?;

        let commit_id = Uuid::now_v7();
        let mut files = Files::default();
        let bar = self.telemetry.bar(&table.target.to_string());
        let written = self.stop.or(route.write(window, &partitions, commit_id, &mut files, &bar)).await;
        bar.finish_and_clear();
        let committed = match written {
            Ok(()) => self.commit(catalog, &route, &outcome, window, counted, commit_id, &files).await,
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

    async fn route<'r>(&self, table: &'r Table, server: &'r Server, target: Target) -> Result<Route<'r>> {
        target.check_format()?;
        let source = server.open(&self.config.clickhouse.database, &table.source).await?;
        let cursor = source.cursor(&table.cursor)?;
        let identity = SourceIdentity { id: table.source_id.clone(), uuid: source.uuid, cursor };
        let day = target.day_column()?.map(|column| source.day_column(column)).transpose()?;
        Ok(Route { table, source, target, identity, day })
    }

    /// Commits what was written; a signal no longer interrupts.
    #[expect(clippy::too_many_arguments, reason = "the facts of a chunk, gathered by its steps")]
    async fn commit(
        &self,
        catalog: &mut Catalog,
        route: &Route<'_>,
        outcome: &Outcome,
        window: Window,
        counted: u64,
        commit_id: Uuid,
        files: &Files,
    ) -> Result<(i64, Marker), Failure> {
        failpoint::hit(Failpoint::Written).map_err(Failure::Rejected)?;
        let planned_on = outcome.marker.as_ref();
        let marker = Marker {
            version: VERSION,
            commit_id,
            mode: Mode::Append,
            source: route.identity.clone(),
            low: window.low,
            high: window.high,
            watermark: window.high,
            offloaded_to: window.high,
            source_rows: counted,
            rows: files.rows(),
            skipped: planned_on.map(|marker| marker.skipped.clone()).unwrap_or_default(),
        };
        let chunk = Chunk {
            name: &route.table.target,
            planned_on: planned_on.map(|marker| marker.commit_id),
            schema_id: route.target.metadata.current_schema_id(),
            partition_spec_id: route.target.metadata.default_partition_spec_id(),
            marker: &marker,
            files: &files.finished,
        };
        let snapshot_id = commit::commit(catalog, &self.file_io, &chunk).await?;
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
                        tracing::error!(%error, hint = error.hint_text(), "failed");
                    }
                }
                if !self.options.dry_run && error.kind() != Kind::Locked {
                    self.state.fail(key, &error.to_string(), cached_ms);
                }
            }
        }
    }
}

impl Route<'_> {
    /// Refuses what does not fit: another source, a range that needs a merge, a schema that drifted.
    fn check(&self, marker: Option<&Marker>) -> Result<()> {
        if let Some(marker) = marker {
            marker.check_identity(&self.identity)?;
            if marker.source.uuid != self.identity.uuid {
                tracing::warn!(was = %marker.source.uuid, is = %self.identity.uuid, "the source table was made anew");
            }
            if marker.watermark != marker.offloaded_to {
                return Err(Error::refused("the watermark lies below what was offloaded before")
                    .hint("a newer k2-offload has reset it; this version cannot merge"));
            }
        }
        let drift = drift(&self.source.columns, self.target.metadata.current_schema());
        if drift.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!("source and target differ: {}", drift.join("; ")))
            .hint("`k2-offload init-tables` prints the differences; this version does not change a target's schema"))
    }

    /// Counts the window before any row is read, and cuts it where it has too many days.
    async fn count(&self, window: Window) -> Result<(Window, Vec<Partition>)> {
        let cursor = &self.identity.cursor;
        let limit = MAX_PARTITIONS_PER_CHUNK + 1;
        let partitions = self.source.count(cursor, window, self.day.as_ref(), limit).await?;
        let by_cursor = self.day.as_ref().is_some_and(|day| day.column == *cursor);
        if by_cursor {
            return Ok(cut_at_days(cursor.kind, window, partitions));
        }
        if partitions.len() > MAX_PARTITIONS_PER_CHUNK {
            let message = format!("the window holds more than {MAX_PARTITIONS_PER_CHUNK} days of the partition column");
            return Err(Error::refused(message)
                .hint("offload shorter windows with --until, or partition the target by the day of the cursor"));
        }
        Ok((window, partitions))
    }

    /// Streams one SELECT per partition into one file each, then checks that nothing was missed.
    async fn write(
        &self,
        window: Window,
        partitions: &[Partition],
        commit_id: Uuid,
        files: &mut Files,
        bar: &ProgressBar,
    ) -> Result<()> {
        for (number, partition) in partitions.iter().enumerate() {
            self.write_file(window, *partition, &format!("k2-offload-{commit_id}-{number}.parquet"), files, bar)
                .await?;
        }
        let counted: u64 = partitions.iter().map(|partition| partition.rows).sum();
        let unlisted = match &self.day {
            Some(day) => self.source.count_unlisted(&self.identity.cursor, window, day, partitions).await?,
            None => 0,
        };
        if unlisted > 0 || files.rows() < counted {
            let read = files.rows();
            let message = format!(
                "the source changed while it was read: {counted} rows counted, {read} read, {unlisted} on new days"
            );
            return Err(Error::new(Kind::Conflict, message).hint("nothing was committed; the chunk is planned again"));
        }
        Ok(())
    }

    async fn write_file(
        &self,
        window: Window,
        partition: Partition,
        name: &str,
        files: &mut Files,
        bar: &ProgressBar,
    ) -> Result<()> {
        let placement = self.placement(partition, name);
        files.begun.push(placement.location.clone());
        let part = self.day.as_ref().map(|day| (day, partition.day));
        let mut hold_back = HOLD_BACK;
        loop {
            let mut stream = self.source.parquet(&self.identity.cursor, window, part, &self.table.compression)?;
            let mut file = Passthrough::create(&placement.location, hold_back)?;
            while let Some(bytes) = stream.next().await? {
                bar.inc(bytes.len() as u64);
                file.write(bytes)?;
            }
            match file.finish(&placement)? {
                Written::File(file) => {
                    files.finished.push(*file);
                    return Ok(());
                }
                Written::Empty => return delete_own_file(&placement.location),
                Written::NeedsHoldBack(longer) => {
                    delete_own_file(&placement.location)?;
                    hold_back = longer;
                }
            }
        }
    }

    /// Below the table's `data` folder, in a folder for the partition as other writers name it.
    fn placement(&self, partition: Partition, name: &str) -> Placement<'_> {
        let metadata = &self.target.metadata;
        let mut folder = format!("{}/data", metadata.location());
        let mut values = Vec::new();
        if self.day.is_some() {
            values.push(partition.day);
            let value: Struct = [partition.day.map(Literal::int)].into_iter().collect();
            let path = metadata.default_partition_spec().partition_to_path(&value, metadata.current_schema().clone());
            let (field, day) = path.rsplit_once('=').unwrap_or((&path, ""));
            let field: String = url::form_urlencoded::byte_serialize(field.as_bytes()).collect();
            folder = format!("{folder}/{field}={day}");
        }
        Placement {
            location: format!("{folder}/{name}"),
            schema: metadata.current_schema(),
            partition_spec_id: metadata.default_partition_spec_id(),
            partition: values,
        }
    }
}

impl Files {
    fn rows(&self) -> u64 {
        self.finished.iter().map(DataFile::record_count).sum()
    }

    /// Deletes every file of a chunk that is known not to be in the table.
    fn discard(&self) {
        for location in &self.begun {
            if let Err(error) = delete_own_file(location) {
                tracing::warn!(location, %error, "a file of an abandoned chunk was left behind");
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
        self.bytes_written = files.finished.iter().map(DataFile::file_size_in_bytes).sum();
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
