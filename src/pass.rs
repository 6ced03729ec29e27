//! One pass: the order of its steps and the points where it can die.
//!
//! ```text
//! guard -> target state -> source facts -> plan -> count (a query: by reading it) -> read and write -> check -> commit -> state cache
//! ```
//!
//! Crash safety: before *write* nothing is durable. Between *write* and *commit* only files exist that nothing refers to; they are deleted
//! when the pass fails, and left behind by kill -9. After *commit* the next pass reads the watermark from the table.

mod repair;
mod telling;
mod windows;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, stream};
use tracing::Instrument;
use uuid::Uuid;

pub use self::repair::repair;
use self::telling::{tell_differences, tell_end, tell_table, warn_of_changed_rows, warn_of_clock_skew};
use crate::chunk::Route;
use crate::clock::now;
use crate::config::{Config, Table};
use crate::cursor::Tick;
use crate::error::{Kind, Result, worst_exit};
use crate::failpoint::{self, Action, Failpoint};
use crate::guard::{Guard, Locks};
use crate::notify::{self, Observed, Trouble};
use crate::plan::{Situation, lower_bound};
use crate::progress::Progress;
use crate::report::{RunReport, RunTable};
use crate::source::{Server, new_run_id};
use crate::state::{Finished, Ledger, State};
use crate::stop::Stop;
use crate::target::{Catalog, Target, deleted_by_others, live_records};
use crate::telemetry::Telemetry;
use crate::ttl;
use crate::watermark::Mode;

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
    let tables = Box::pin(pass.layers(tables)).instrument(tracing::info_span!("pass", run_id = pass.run_id)).await;
    let exit = worst_exit(tables.iter().map(RunTable::exit_code));
    let exit = if exit == Kind::Stopped.policy().exit { stop.exit_code().unwrap_or(exit) } else { exit };
    let unremembered = pass.unremembered.take();
    let (run_id, started_at) = (&pass.run_id, &pass.started_at);
    let finished = |(report, checked_to)| Finished { run_id, started_at, report, checked_to };
    state.finish_late(unremembered.iter().map(|(report, checked_to)| (report, *checked_to)).map(finished));
    let report =
        RunReport { duration_ms: millis(pass.started), run_id: pass.run_id, started_at: pass.started_at, exit, tables };
    tell_end(&report);
    // A pass that found all of them locked says nothing of how long passes take, and must not make one that hangs look alive.
    if !options.dry_run && !report.is_skipped() {
        state.end_pass(report.duration_ms, config.history_keep);
    }
    if !options.dry_run && !stop.finishes(pass.ledger.end(state, &report.tables)).await {
        tracing::warn!("stopped by a signal before the records were written");
    }
    report
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
    state: &'a State,
    stop: &'a Stop,
    telemetry: &'a Telemetry,
    ledger: Rc<Ledger>,
    locks: Locks<'a>,
    /// Ends of tables that the state cache could not take.
    unremembered: RefCell<Vec<(RunTable, Option<Tick>)>>,
    /// Of the images of rows: nobody outside can make two rows alike.
    seed: u64,
}

impl<'a> Pass<'a> {
    fn new(config: &'a Config, options: Options, state: &'a State, stop: &'a Stop, telemetry: &'a Telemetry) -> Self {
        let run_id = new_run_id();
        let ledger = Ledger::new(config, &run_id);
        Self {
            config,
            options,
            started: Instant::now(),
            deadline: Some(config.pass_deadline),
            started_at: now(),
            state,
            stop,
            telemetry,
            locks: Locks::new(config, &run_id, &ledger),
            ledger,
            run_id,
            unremembered: RefCell::default(),
            seed: Uuid::new_v4().as_u64_pair().0,
        }
    }

    /// Layer by layer, the tables of a layer side by side. Layers order work, they are no dependency: a failed one does not hold the next back.
    async fn layers(&self, tables: &[&Table]) -> Vec<RunTable> {
        // Once, and not by every table: what is not there now is not there for the others either.
        let connect = async || {
            let catalog = self.stop.or(Catalog::open(self.config)).await?;
            let server = self.stop.or(Server::connect(&self.config.clickhouse, &self.run_id)).await?;
            Ok((catalog, server))
        };
        let (ends, ()) = futures::join!(self.retry(connect), self.tell_begin(tables));
        let mut reports = Vec::with_capacity(tables.len());
        for layer in tables.chunk_by(|a, b| a.layer == b.layer) {
            let tables = layer
                .iter()
                .map(|table| self.table(table, &ends).instrument(tracing::info_span!("table", target = %table.target)));
            let mut side_by_side = stream::iter(tables).buffered(self.config.parallel_tables);
            while let Some(report) = side_by_side.next().await {
                reports.push(report);
            }
        }
        reports
    }

    /// Tells those who read the records that passes begin.
    async fn tell_begin(&self, tables: &[&Table]) {
        if !self.options.dry_run {
            let targets: Vec<String> = tables.iter().map(|table| table.target.to_string()).collect();
            // A signal ends the wait, and the pass a moment later.
            let told = self.stop.or(self.ledger.begin(self.state, &targets).map(Ok)).await;
            tracing::debug!(stopped = told.is_err(), "told that passes begin");
        }
    }

    /// Runs `work` up to [`TRIES`] times while its errors may pass by themselves.
    async fn retry<T>(&self, mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let mut wait = BACKOFF;
        for attempt in 1..TRIES {
            match work().await {
                // No chunk would be started any more.
                Err(error) if self.deadline.is_some_and(|deadline| self.started.elapsed() > deadline) => {
                    return Err(error);
                }
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
    async fn table(&self, table: &Table, ends: &Result<(Catalog, Server)>) -> RunTable {
        let started = Instant::now();
        let mut progress = Progress::default();
        // Held until the end is remembered: who takes it and finds a pass without an end counts it as dead.
        let mut guard = None;
        let result = match ends {
            Ok(ends) => self.guarded(table, ends, &mut guard, &mut progress).await,
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
        (catalog, server): &(Catalog, Server),
        guard: &mut Option<Guard>,
        progress: &mut Progress,
    ) -> Result<()> {
        let free = failpoint::hit(Failpoint::Guard)? == Action::Skip || self.options.dry_run;
        if !free {
            let acquire = async || self.stop.or(self.locks.acquire(&table.target)).await;
            *guard = Some(self.retry(acquire).await?);
        }
        let death = if self.options.dry_run { None } else { self.begin(table) };
        let tried = async || {
            let tried = Box::pin(self.offload(table, server, catalog, progress)).await;
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
    async fn offload(&self, table: &Table, server: &Server, catalog: &Catalog, progress: &mut Progress) -> Result<()> {
        failpoint::hit(Failpoint::Target)?;
        let target = self.stop.or(Target::load_existing(catalog, &table.target)).await?;
        let marker = self.stop.or(target.marker(catalog.file_io(), &table.target)).await?;
        if !self.options.dry_run {
            self.stop.or(target.check_hint(catalog.storage()).map(Ok)).await?;
        }
        let database = &self.config.clickhouse.database;
        let mut route = self.stop.or(Route::open(server, database, table, target, catalog.storage())).await?;
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
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
