//! One pass: the order of its steps and the points where it can die.
//!
//! ```text
//! guard -> target state -> source facts -> plan -> count (a query: by reading it) -> read and write -> check -> commit -> state cache
//! ```
//!
//! Crash safety: before *write* nothing is durable. Between *write* and *commit* only files exist that nothing refers to; they are deleted
//! when the pass fails, and left behind by kill -9. After *commit* the next pass reads the watermark from the table.

mod telling;

use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, stream};
use iceberg::io::FileIO;
use tracing::Instrument;
use uuid::Uuid;

use self::telling::{tell_differences, tell_end, tell_table, warn_of_changed_rows, warn_of_clock_skew};
use crate::chunk::{Chunk, Files, Merger, Route};
use crate::clock::now;
use crate::commit::{self, Base, Commit, Failure};
use crate::config::{Config, Table};
use crate::cursor::Tick;
use crate::error::{Error, Kind, Result, worst_exit};
use crate::failpoint::{self, Action, Failpoint};
use crate::guard::Guard;
use crate::late::whole;
use crate::notify::{self, Observed, Trouble};
use crate::plan::{Situation, Window, lower_bound};
use crate::progress::Progress;
use crate::report::{RunReport, RunTable};
use crate::rows::Imager;
use crate::source::{Server, new_run_id};
use crate::state::{Finished, State};
use crate::stop::Stop;
use crate::storage::local_file_io;
use crate::target::{Catalog, Target, deleted_by_others, live_records, markers};
use crate::telemetry::{TableBar, Telemetry};
use crate::ttl;
use crate::watermark::{Marker, Mode};

/// Tries of a table within one pass.
const TRIES: u32 = 3;
/// Wait before the second try; doubled before each further one.
const BACKOFF: Duration = Duration::from_millis(500);

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
    state: &State,
    stop: &Stop,
    telemetry: &Telemetry,
) -> RunReport {
    let pass = Pass::new(config, options, state, stop, telemetry);
    let tables = pass.layers(tables).instrument(tracing::info_span!("pass", run_id = pass.run_id)).await;
    let exit = worst_exit(tables.iter().map(RunTable::exit_code));
    let exit = if exit == Kind::Stopped.policy().exit { stop.exit_code().unwrap_or(exit) } else { exit };
    for (report, checked_to) in pass.unremembered.take() {
        let (run_id, started_at) = (&pass.run_id, &pass.started_at);
        state.finish_late(&Finished { run_id, started_at, report: &report, checked_to });
    }
    let report =
        RunReport { duration_ms: millis(pass.started), run_id: pass.run_id, started_at: pass.started_at, exit, tables };
    tell_end(&report);
    // A pass that found all of them locked says nothing of how long passes take, and must not make one that hangs look alive.
    if !options.dry_run && !report.is_skipped() {
        state.end_pass(report.duration_ms, config.history_keep);
    }
    report
}

/// Adds what the target of a table does not hold of windows that have left (`audit --repair`): the merge of passes, under their guard, and as long as
/// it takes.
pub async fn repair(
    config: &Config,
    table: &Table,
    server: &Server,
    windows: &[Window],
    state: &State,
    stop: &Stop,
    telemetry: &Telemetry,
) -> Result<RunTable> {
    let pass = Pass { deadline: None, ..Pass::new(config, Options::default(), state, stop, telemetry) };
    let mut catalog = Catalog::open(&config.catalog)?;
    let _guard = Guard::acquire(&config.catalog, &table.target, &pass.run_id)?;
    let mut progress = Progress::default();
    let repair = async || Box::pin(pass.repair(table, server, &mut catalog, windows, &mut progress)).await;
    let repaired = pass.retry(repair).await;
    let report = progress.report(table, repaired.as_ref().err(), millis(pass.started));
    let (run_id, started_at) = (&pass.run_id, &pass.started_at);
    state.repaired(&Finished { run_id, started_at, report: &report, checked_to: None });
    repaired.map(|()| report)
}

/// A pass under way.
struct Pass<'a> {
    config: &'a Config,
    options: Options,
    started: Instant,
    /// No chunk is started later.
    deadline: Option<Duration>,
    started_at: String,
    run_id: String,
    file_io: FileIO,
    state: &'a State,
    stop: &'a Stop,
    telemetry: &'a Telemetry,
    /// Ends of tables that the state cache could not take.
    unremembered: RefCell<Vec<(RunTable, Option<Tick>)>>,
    /// Of the images of rows: nobody outside can make two rows alike.
    seed: u64,
}

impl<'a> Pass<'a> {
    fn new(config: &'a Config, options: Options, state: &'a State, stop: &'a Stop, telemetry: &'a Telemetry) -> Self {
        Self {
            config,
            options,
            started: Instant::now(),
            deadline: Some(config.pass_deadline),
            started_at: now(),
            run_id: new_run_id(),
            file_io: local_file_io(),
            state,
            stop,
            telemetry,
            unremembered: RefCell::default(),
            seed: Uuid::new_v4().as_u64_pair().0,
        }
    }

    /// Layer by layer, the tables of a layer side by side. Layers order work, they are no dependency: a failed one does not hold the next back.
    async fn layers(&self, tables: &[&Table]) -> Vec<RunTable> {
        let connect = async || self.stop.or(Server::connect(&self.config.clickhouse, &self.run_id)).await;
        // A catalog that cannot be opened is waited for once, and not by every table.
        let server = match Catalog::open(&self.config.catalog) {
            Ok(_) => self.retry(connect).await,
            Err(error) => Err(error),
        };
        let mut reports = Vec::with_capacity(tables.len());
        for layer in tables.chunk_by(|a, b| a.layer == b.layer) {
            let tables = layer.iter().map(|table| {
                self.table(table, &server).instrument(tracing::info_span!("table", target = %table.target))
            });
            let mut side_by_side = stream::iter(tables).buffered(self.config.parallel_tables);
            while let Some(report) = side_by_side.next().await {
                reports.push(report);
            }
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
    async fn table(&self, table: &Table, server: &Result<Server>) -> RunTable {
        let started = Instant::now();
        let mut progress = Progress::default();
        // Held until the end is remembered: who takes it and finds a pass without an end counts it as dead.
        let mut guard = None;
        let result = match server {
            Ok(server) => self.guarded(table, server, &mut guard, &mut progress).await,
            Err(error) => Err(error.repeat()),
        };
        let report = progress.report(table, result.as_ref().err(), millis(started));
        warn_of_changed_rows(table, report.rows_changed);
        tell_table(&report);
        if !self.options.dry_run && failpoint::hit(Failpoint::Remember).is_ok() {
            let (run_id, started_at) = (&self.run_id, &self.started_at);
            let checked_to = progress.checked_to();
            if !self.state.finish(&Finished { run_id, started_at, report: &report, checked_to }) {
                self.unremembered.borrow_mut().push((report.clone(), checked_to));
            }
        }
        report
    }

    async fn guarded(
        &self,
        table: &Table,
        server: &Server,
        guard: &mut Option<Guard>,
        progress: &mut Progress,
    ) -> Result<()> {
        let mut catalog = Catalog::open(&self.config.catalog)?;
        let free = failpoint::hit(Failpoint::Guard)? == Action::Skip || self.options.dry_run;
        if !free {
            *guard = Some(Guard::acquire(&self.config.catalog, &table.target, &self.run_id)?);
        }
        let death = if self.options.dry_run { None } else { self.begin(table) };
        let tried = async || {
            let tried = Box::pin(self.offload(table, server, &mut catalog, progress)).await;
            if tried.as_ref().is_err_and(|error| error.kind() == Kind::Conflict) {
                progress.conflict();
            }
            tried
        };
        let ((), offloaded) = futures::join!(self.tell_death(death), self.retry(tried));
        // Rows first, alarm afterwards; also where something else went wrong after a commit, because the next pass cannot tell any more.
        match (progress.alarm(), offloaded) {
            (Some(lost), Ok(())) => Err(lost),
            (Some(lost), Err(error)) if progress.has_committed() => Err(lost.context(error)),
            (_, offloaded) => offloaded,
        }
    }

    /// Remembers that a pass over a table is under way; what is to be told of the one before, if it died.
    fn begin(&self, table: &Table) -> Option<Observed> {
        let target = table.target.to_string();
        let (error, hint) = self.state.begin(&target, &self.run_id, &self.started_at)?;
        tracing::info!(error, hint, "the pass before died");
        Some(Observed { target, trouble: Trouble::Failed, found: Some((error, hint)) })
    }

    /// Tells of a death at once, because this pass may die too; rows do not wait for it.
    async fn tell_death(&self, death: Option<Observed>) {
        if let Some(death) = death.filter(|_| self.config.notify.is_wanted()) {
            notify::tell(self.config, self.state, &[death]).await;
        }
    }

    /// One try of a table: plans its window and moves it chunk by chunk.
    async fn offload(
        &self,
        table: &Table,
        server: &Server,
        catalog: &mut Catalog,
        progress: &mut Progress,
    ) -> Result<()> {
        failpoint::hit(Failpoint::Target)?;
        let target = self.stop.or(Target::load_existing(catalog, &self.file_io, &table.target)).await?;
        let marker = self.stop.or(target.marker(&self.file_io, &table.target)).await?;
        let database = &self.config.clickhouse.database;
        let mut route = self.stop.or(Route::open(server, database, table, target)).await?;
        route.check(marker.as_ref())?;
        tell_differences(&route, self.state, !self.options.dry_run);

        let cursor = route.cursor();
        let watermark = marker.as_ref().map(|marker| marker.watermark);
        let offloaded_to = marker.as_ref().map(|marker| marker.offloaded_to);
        let low = lower_bound(watermark, table.start_at, cursor.kind, route.step)?;
        let clock = failpoint::hit(Failpoint::Facts)?;
        // What has left before is not asked for: it may expire, and is no row that waits.
        let mut facts = self.stop.or(route.source.facts(cursor, low.max(offloaded_to))).await?;
        if let Action::Shift(micros) = clock {
            facts.clock_micros += micros;
        }
        warn_of_clock_skew(facts.clock_micros);
        progress.asked(&route, &facts);
        progress.target_rows(live_records(&route.target.metadata));
        let until = self.options.until_micros.map(|until| cursor.kind.tick_at(until));
        let situation = Situation {
            cursor: cursor.kind,
            watermark,
            offloaded_to,
            low,
            source_clock_micros: facts.clock_micros,
            settle_delay: table.settle_delay,
            newest: facts.newest,
            until,
            step: route.step,
        };
        let plan = situation.plan();
        if progress.is_new() {
            // P20: the cache feeds this alarm, and what is told of the lag. Without it, a table that was quiet for longer than its TTL may alarm once.
            let looked_to = self.state.checked_to(&table.target.to_string());
            progress.lost(ttl::guard(table, cursor.kind, offloaded_to.and(offloaded_to.max(looked_to)), &facts));
            progress.looked_to(looked_to);
        }
        progress.deleted(marker.as_ref().and_then(|marker| deleted_by_others(&route.target.metadata, marker)));
        progress.seen(cursor.kind, marker, facts.future);

        failpoint::hit(Failpoint::Planned)?;
        // What came late first: the next pass would look for it below a watermark that is higher by what this one appends. But new rows leave also
        // where that fails.
        let merged = match plan.merge {
            Some(window) => self.merge(catalog, &mut route, window, progress).await,
            None => self.late(catalog, &mut route, until, progress).await,
        };
        if let Some(stopped) = merged.as_ref().err().filter(|error| error.kind() == Kind::Stopped) {
            return Err(stopped.repeat());
        }
        if let Some(window) = plan.window {
            self.window(catalog, &mut route, (window, Mode::Append), self.deadline, progress).await?;
        }
        if !self.options.dry_run {
            progress.checked(plan.checked_to);
        }
        merged
    }

    /// Compares what has left, from a watermark on that was put back.
    async fn merge(
        &self,
        catalog: &mut Catalog,
        route: &mut Route<'_>,
        window: Window,
        progress: &mut Progress,
    ) -> Result<()> {
        route.check_merge(progress.marker(), window.low)?;
        self.window(catalog, route, (window, Mode::Merge), self.merge_deadline(), progress).await?;
        // Behind the last row of the source the target may hold what that has dropped.
        let rest = Window { low: progress.marker().map(|marker| marker.watermark), high: window.high };
        if self.options.dry_run || rest.is_empty() {
            return Ok(());
        }
        let bar = self.telemetry.bar(&route.table.target.to_string(), 0);
        self.chunk(catalog, route, &mut Chunk::of_nothing(rest), &bar, progress).await
    }

    /// However much there is to compare, new rows leave in the other half of the time that is left.
    fn merge_deadline(&self) -> Option<Duration> {
        let now = self.started.elapsed();
        self.deadline.map(|deadline| now + deadline.saturating_sub(now) / 2)
    }

    /// One try of a repair.
    async fn repair(
        &self,
        table: &Table,
        server: &Server,
        catalog: &mut Catalog,
        windows: &[Window],
        progress: &mut Progress,
    ) -> Result<()> {
        let target = self.stop.or(Target::load_existing(catalog, &self.file_io, &table.target)).await?;
        let marker = self.stop.or(target.marker(&self.file_io, &table.target)).await?;
        let database = &self.config.clickhouse.database;
        let mut route = self.stop.or(Route::open(server, database, table, target)).await?;
        route.check(marker.as_ref())?;
        let Some(newest) = &marker else { return Ok(()) };
        let windows = whole(&markers(&route.target.metadata)?, windows, newest.watermark, &newest.skipped);
        route.check_merge(marker.as_ref(), windows.first().and_then(|window| window.low))?;
        progress.seen(route.cursor().kind, marker, None);
        for window in windows {
            self.window(catalog, &mut route, (window, Mode::Merge), self.deadline, progress).await?;
        }
        Ok(())
    }

    /// Moves a window chunk by chunk; with `--dry-run` counts it.
    async fn window(
        &self,
        catalog: &mut Catalog,
        route: &mut Route<'_>,
        (window, mode): (Window, Mode),
        deadline: Option<Duration>,
        progress: &mut Progress,
    ) -> Result<()> {
        let mut chunks = self.stop.or(route.chunks(window, mode, self.merger().rows())).await?;
        let bar = self.telemetry.bar(&route.table.target.to_string(), chunks.rows);
        while let Some(mut chunk) = self.stop.or(route.next_chunk(&mut chunks)).await? {
            if self.options.dry_run {
                self.stop.or(route.count_unread(&mut chunk)).await?;
                progress.schema_changes(&route.evolution.changes);
                progress.planned(chunk);
                continue;
            }
            if deadline.is_some_and(|deadline| self.started.elapsed() > deadline) {
                return Err(Error::new(Kind::Deadline, "pass_deadline is over"));
            }
            self.chunk(catalog, route, &mut chunk, &bar, progress).await?;
        }
        Ok(())
    }

    /// Brings rows that came late (P23).
    async fn late(
        &self,
        catalog: &mut Catalog,
        route: &mut Route<'_>,
        until: Option<Tick>,
        progress: &mut Progress,
    ) -> Result<()> {
        let Some(marker) = progress.marker() else { return Ok(()) };
        let Some(late) = self.stop.or(route.late(&self.file_io, marker, until)).await? else { return Ok(()) };
        if !late.left_alone.is_empty() {
            tracing::warn!(
                ranges = late.left_alone.len(),
                "rows may have come late, and are not added, because others deleted rows there; `audit --repair` adds both"
            );
        }
        progress.looked_for_late_rows(&late.left_alone);
        let deadline = self.merge_deadline();
        let mut first = Ok(());
        for window in late.windows {
            let merged = self.window(catalog, route, (window, Mode::Late), deadline, progress).await;
            let is_over = merged.as_ref().is_err_and(|error| matches!(error.kind(), Kind::Stopped | Kind::Deadline));
            first = first.and(merged);
            // One that is refused does not hold the others back.
            if is_over {
                break;
            }
        }
        first
    }

    /// Reads, writes and commits one chunk, or leaves nothing of it.
    async fn chunk(
        &self,
        catalog: &mut Catalog,
        route: &mut Route<'_>,
        chunk: &mut Chunk,
        bar: &TableBar,
        progress: &mut Progress,
    ) -> Result<()> {
        failpoint::hit(Failpoint::Counted)?;
        let mut files = Files::default();
        let written = self.stop.or(route.write(chunk, &mut files, self.merger(), bar)).await;
        let committed = match written {
            // What a query holds is only known now.
            Ok(()) if chunk.source_rows() == 0 && !chunk.mode.is_merge() => return Ok(()),
            Ok(()) => self.commit(catalog, route, progress.marker(), chunk, &files).await,
            Err(error) => Err(Failure::Rejected(error)),
        };
        match committed {
            Ok((snapshot_id, target, marker)) => {
                let schema_changes = route.committed(target);
                if !schema_changes.is_empty() {
                    tracing::info!(changes = schema_changes.join("; "), "the target's schema changed");
                    progress.schema_changes(&schema_changes);
                }
                progress.target_rows(live_records(&route.target.metadata));
                progress.committed(chunk, &files, snapshot_id, marker);
                failpoint::hit(Failpoint::Committed).map(|_| ())
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
    ) -> Result<(i64, Target, Marker), Failure> {
        failpoint::hit(Failpoint::Written).map_err(Failure::Rejected)?;
        let marker = chunk.marker(&route.identity, planned_on, files);
        let commit = Commit {
            name: &route.table.target,
            planned_on: &route.target,
            base: match chunk.mode.is_merge() {
                // It was compared with all rows that are there (P13).
                true => Base::Snapshot,
                false => Base::Marker(planned_on.map(|marker| marker.commit_id)),
            },
            marker: &marker,
            files: &files.finished,
            // Without rows the target has no use for new columns.
            schema: route.new_schema().filter(|_| !files.finished.is_empty()),
        };
        let (snapshot_id, target) = Box::pin(commit::commit(catalog, &self.file_io, &commit)).await?;
        Ok((snapshot_id, target, marker))
    }

    /// What a merge needs beside source and target.
    fn merger(&self) -> Merger<'_> {
        Merger {
            file_io: &self.file_io,
            scratch: self.config.state.parent().unwrap_or(Path::new("/")),
            memory: self.config.merge_memory / self.config.parallel_tables.max(1) as u64,
            imager: Imager::new(self.seed),
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
