//! `audit`: counts both sides hour by hour, or compares their rows, and says where they differ; with `--repair` adds what is missing.

use uuid::Uuid;

use super::select;
use crate::audit::{self, Counts, Section, Verdict};
use crate::chunk::Route;
use crate::cli::{Audit, Format};
use crate::compare::Comparison;
use crate::config::{Config, Table};
use crate::cursor::{CursorType, Tick, micros_of};
use crate::error::{Error, Kind, Result};
use crate::histogram::Bucket;
use crate::pass;
use crate::plan::{Window, ceil, floor};
use crate::report::{self, AuditBucket, AuditReport, AuditTable, ErrorReport};
use crate::rows::Imager;
use crate::source::{Server, new_run_id};
use crate::state::{Audited, State};
use crate::stop::Stop;
use crate::target::{Catalog, Target};
use crate::telemetry::Telemetry;
use crate::watermark::Marker;
use crate::{metrics, notify};

/// How often a range is compared while rows go on coming late into it.
const MAX_LOOKS: u32 = 5;

pub async fn execute(config: &Config, args: &Audit, format: Format, telemetry: &Telemetry) -> Result<u8> {
    if args.since.zip(args.until).is_some_and(|(since, until)| since >= until) {
        return Err(Error::new(Kind::Config, "--until is not after --since"));
    }
    let tables = select(config, &args.tables)?;
    let stop = Stop::listen()?;
    let ends = async || {
        let catalog = stop.or(Catalog::open(config)).await?;
        Ok((catalog, stop.or(Server::connect(&config.clickhouse, &new_run_id())).await?))
    };
    let ends = ends().await;
    let state = State::open(&config.state);
    let job = Job { config, args, state: &state, stop: &stop, telemetry };
    let mut entries = Vec::with_capacity(tables.len());
    for table in tables {
        let compared = match &ends {
            Ok((catalog, server)) => Box::pin(job.table(table, catalog, server)).await,
            Err(error) => Err(Error::repeat(error)),
        };
        entries.push(
            compared.unwrap_or_else(|error| AuditTable { error: Some(ErrorReport::from(&error)), ..entry(table) }),
        );
    }
    let report = AuditReport::new(entries);
    report::print(&report, format);
    if !stop.finishes(leave_word(config, args, &state, &report)).await {
        tracing::warn!("stopped by a signal before all were told of the audit");
    }
    Ok(stop.exit_code().unwrap_or(report.exit_code()))
}

/// What the state cache remembers, monitoring sees and somebody is told of what was compared.
async fn leave_word(config: &Config, args: &Audit, state: &State, report: &AuditReport) {
    let is_whole = args.since.is_none() && args.last.is_none();
    for table in &report.tables {
        let Some(mismatches) = table.mismatches() else { continue };
        let (first, from) = (table.first_mismatch(), table.from.as_deref().filter(|_| !is_whole));
        let is_cut = args.until.is_some() || (table.from.is_none() && !is_whole);
        state.audited(&table.target, &Audited { mismatches, first, from, is_cut, is_exact: args.checksum });
    }
    let tables = state.tables();
    if config.metrics.is_wanted() {
        metrics::publish(config, state, &tables, None).await;
    }
    if config.notify.is_wanted() {
        let observed = report.tables.iter().filter_map(|table| notify::of_audit(table, tables.get(&table.target)));
        notify::tell(config, state, &observed.collect::<Vec<_>>()).await;
    }
}

/// A table of which nothing is known yet.
fn entry(table: &Table) -> AuditTable {
    AuditTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        watermark: None,
        from: None,
        to: None,
        rows_repaired: None,
        buckets: Vec::new(),
        error: None,
    }
}

/// What was asked for.
struct Job<'a> {
    config: &'a Config,
    args: &'a Audit,
    state: &'a State,
    stop: &'a Stop,
    telemetry: &'a Telemetry,
}

/// What an audit found in a table.
struct Found {
    range: Window,
    counts: Vec<Counts>,
    outlived_to: Option<Tick>,
}

impl Found {
    /// The buckets of which rows are missing, to multiples of `step`, neighbours together.
    fn missing(&self, step: Tick) -> Vec<Window> {
        let missing = self.counts.iter().filter(|counts| !counts.skipped && counts.missing() > 0);
        let mut windows: Vec<Window> = Vec::new();
        for (low, high) in missing.map(|counts| (floor(counts.low, step), ceil(counts.high, step))) {
            match windows.last_mut() {
                Some(last) if last.high >= low => last.high = high,
                _ => windows.push(Window { low: Some(low), high }),
            }
        }
        windows
    }
}

impl Job<'_> {
    /// Compares both sides of a table; with `--repair` adds what is missing, and compares again.
    async fn table(&self, table: &Table, catalog: &Catalog, server: &Server) -> Result<AuditTable> {
        let mut rows_repaired = None;
        loop {
            // Watermark and rows of the target are those of one snapshot: what a pass commits meanwhile lies above. The source is counted after it,
            // so that a row that comes late meanwhile is missing, which is true.
            let database = &self.config.clickhouse.database;
            let target = Target::load_existing(catalog, &table.target).await?;
            let marker = target.marker(catalog.file_io(), &table.target).await?;
            let opened = Route::open(server, database, table, target, catalog.storage());
            let route = self.stop.or(opened).await?;
            let Some(marker) = marker else { return Ok(entry(table)) };
            marker.check_identity(&route.identity)?;
            let found = self.stop.or(self.compare(&route, server, &marker)).await?;
            let missing = found.as_ref().map(|found| found.missing(route.step)).unwrap_or_default();
            if self.args.repair && rows_repaired.is_none() && !missing.is_empty() {
                let Self { config, state, stop, telemetry, .. } = *self;
                let repaired = pass::repair(config, (catalog, server), table, &missing, state, stop, telemetry).await?;
                rows_repaired = Some(repaired.rows_written);
                continue;
            }
            return Ok(AuditTable { rows_repaired, ..audited(route.cursor().kind, table, &marker, found) });
        }
    }

    /// Compares a table, until it is known which of the missing rows the next pass will bring; `None` where there is nothing to compare.
    async fn compare(&self, route: &Route<'_>, server: &Server, marker: &Marker) -> Result<Option<Found>> {
        let clock_micros = server.clock_micros().await?;
        let range = range(self.args, route.cursor().kind, clock_micros, marker.watermark, route.step);
        let sides = Sides { route };
        let mut late = Vec::new();
        for _ in 0..MAX_LOOKS {
            let sections = audit::sections(range, &marker.skipped, &late);
            let Some((range, counted)) = sides.count(range, sections).await? else { return Ok(None) };
            let mut counts: Vec<Counts> = match self.args.checksum {
                false => counted.into_iter().flat_map(|(_, counts)| counts).collect(),
                true => {
                    route.evolution.check()?;
                    compare_rows(self.config, route, counted).await?
                }
            };
            let is = |verdict| counts.iter().any(|counts| counts.verdict(None) == verdict);
            if is(Verdict::Missing) {
                let now = route.late(marker, None).await?.unwrap_or_default().windows;
                if now != late {
                    late = now;
                    continue;
                }
            }
            let is_extra = is(Verdict::Extra);
            if is_extra {
                sides.explain(&mut counts).await?;
            }
            let outlived_to = match is_extra {
                true if route.source.is_query() => audit::first_of_source(&counts),
                true => sides.outlived_to(range, clock_micros).await?,
                false => None,
            };
            return Ok(Some(Found { range, counts, outlived_to }));
        }
        Err(Error::new(Kind::Conflict, "rows come late faster than they can be compared")
            .hint("audit again, or with --until some hours ago"))
    }
}

/// What is told of a table.
fn audited(cursor: CursorType, table: &Table, marker: &Marker, found: Option<Found>) -> AuditTable {
    let time = |tick| cursor.format(tick);
    let entry = AuditTable { watermark: Some(time(marker.watermark)), ..entry(table) };
    let Some(Found { range, counts, outlived_to }) = found else { return entry };
    let buckets = counts.iter().map(|counts| AuditBucket {
        from: time(counts.low),
        to: time(counts.high),
        source_rows: counts.source,
        target_rows: counts.target,
        missing: counts.missing(),
        extra: counts.extra(),
        changed: counts.changed(),
        verdict: counts.verdict(outlived_to),
    });
    AuditTable { from: range.low.map(time), to: Some(time(range.high)), buckets: buckets.collect(), ..entry }
}

/// Compares the rows of what was counted, section by section.
async fn compare_rows(config: &Config, route: &Route<'_>, counted: Vec<(Section, Vec<Counts>)>) -> Result<Vec<Counts>> {
    let (_, seed) = Uuid::new_v4().as_u64_pair();
    let comparison = Comparison { route, memory: config.merge_memory, imager: Imager::new(seed) };
    let width = audit::bucket_width(route.cursor().kind);
    let mut compared = Vec::new();
    for (section, counts) in counted {
        match section.skipped {
            true => compared.extend(counts),
            false => compared.extend(comparison.compare(section, &counts, width).await?),
        }
    }
    Ok(compared)
}

/// What the command line asks for, as far as it has left; of aggregates those that lie in it as a whole (protocol.md P11).
fn range(args: &Audit, cursor: CursorType, clock_micros: i64, watermark: Tick, step: Tick) -> Window {
    let since = args.since.map(|since| since.timestamp_micros());
    let last = args.last.map(|last| clock_micros.saturating_sub(micros_of(last)));
    let until = args.until.map(|until| cursor.tick_from(until.timestamp_micros()));
    Window {
        low: since.or(last).map(|micros| ceil(cursor.tick_from(micros), step)),
        high: floor(until.map_or(watermark, |until| until.min(watermark)), step),
    }
}

/// Both sides of a table.
struct Sides<'a> {
    route: &'a Route<'a>,
}

impl Sides<'_> {
    /// Counts them. A range without lower bound begins with the bucket of the source's earliest row, because what lies before it has been dropped
    /// there; `None` where there is nothing to compare.
    async fn count(
        &self,
        range: Window,
        sections: Vec<Section>,
    ) -> Result<Option<(Window, Vec<(Section, Vec<Counts>)>)>> {
        let Route { table, target, .. } = self.route;
        let cursor = self.route.cursor();
        let width = audit::bucket_width(cursor.kind);
        let mut counted = Vec::new();
        for section in sections {
            counted.push((section, self.source_rows(section, width).await?));
        }
        let earliest = counted.iter().flat_map(|(_, rows)| rows).map(|(bucket, _)| bucket.low).next();
        let Some(low) = range.low.or(earliest).filter(|_| !counted.is_empty()) else { return Ok(None) };
        let mut counts = Vec::new();
        for (section, source_rows) in counted {
            let section = Section { window: section.window.intersect(low, range.high), ..section };
            let target_rows =
                target.histogram(self.route.storage.file_io(), &table.target, cursor, section.window, width).await?;
            counts.push((section, audit::pair(section, &source_rows, &target_rows)));
        }
        Ok(Some((Window { low: Some(low), ..range }, counts)))
    }

    /// Rows of the source. A query is asked span by span, as passes ask it, and not for what was skipped.
    async fn source_rows(&self, section: Section, width: Tick) -> Result<Vec<(Bucket, u64)>> {
        let Route { table, source, .. } = self.route;
        let cursor = self.route.cursor();
        let span = table.chunk_span.filter(|_| source.is_query());
        let Some(span) = span.and_then(|span| cursor.kind.ticks_in(span)) else {
            return source.leaving_histogram(cursor, section.window, width).await;
        };
        let mut rows = Vec::new();
        for window in section.spans(span) {
            rows.extend(source.leaving_histogram(cursor, window, width).await?);
        }
        Ok(rows)
    }

    /// Tells of hours whose rows were compared whether the TTL explains even the newest extra row, where it depends on the cursor only.
    async fn explain(&self, counts: &mut [Counts]) -> Result<()> {
        let ticks: Vec<Tick> = counts.iter().filter_map(Counts::last_extra).collect();
        let Some(expired) = self.route.source.have_expired(self.route.cursor(), &ticks).await? else { return Ok(()) };
        let told = counts.iter_mut().filter(|counts| counts.last_extra().is_some());
        told.zip(expired).for_each(|(counts, expired)| counts.expired = Some(expired));
        Ok(())
    }

    /// How far the source's TTL explains that rows are gone; `None` where it has none. Rows up to its clock tell how long a row lives: of a
    /// range that ends earlier, all may be gone.
    async fn outlived_to(&self, range: Window, clock_micros: i64) -> Result<Option<Tick>> {
        let cursor = self.route.cursor();
        let window = Window { high: range.high.max(cursor.kind.tick_at(clock_micros)), ..range };
        let lifetime = self.route.source.shortest_lifetime(cursor, window).await?;
        Ok(lifetime.map(|lifetime| audit::outlived_to(cursor.kind, clock_micros, lifetime)))
    }
}
