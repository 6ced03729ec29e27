//! `audit`: counts both sides hour by hour, or compares their rows, and says where they differ. Changes nothing.

use std::path::Path;

use iceberg::io::FileIO;
use uuid::Uuid;

use super::select;
use crate::audit::{self, Counts, Section, Verdict};
use crate::chunk::Route;
use crate::cli::{Audit, Format};
use crate::compare::Comparison;
use crate::config::{Config, Table};
use crate::cursor::{Cursor, CursorType, Tick, micros_of};
use crate::error::{Error, Kind, Result};
use crate::histogram::Bucket;
use crate::plan::{Window, ceil, floor, step};
use crate::report::{self, AuditBucket, AuditReport, AuditTable, ErrorReport};
use crate::rows::Imager;
use crate::source::{Server, Source, new_run_id};
use crate::storage::local_file_io;
use crate::target::{Catalog, Target};
use crate::watermark::SourceIdentity;

pub async fn execute(config: &Config, args: &Audit, format: Format) -> Result<u8> {
    check(args)?;
    let tables = select(config, &args.tables)?;
    let file_io = local_file_io();
    let server = Server::connect(&config.clickhouse, &new_run_id()).await;
    let mut entries = Vec::with_capacity(tables.len());
    for table in tables {
        let compared = match &server {
            Ok(server) => compare(config, args, table, server, &file_io).await,
            Err(error) => Err(error.repeat()),
        };
        entries.push(
            compared.unwrap_or_else(|error| AuditTable { error: Some(ErrorReport::from(&error)), ..entry(table) }),
        );
    }
    let report = AuditReport::new(entries);
    report::print(&report, format);
    Ok(report.exit_code())
}

/// What the command line alone shows to be wrong.
fn check(args: &Audit) -> Result<()> {
    if args.repair {
        return Err(Error::new(Kind::Config, "--repair comes with a later version")
            .hint("without it, `audit` tells what is missing"));
    }
    if args.since.zip(args.until).is_some_and(|(since, until)| since >= until) {
        return Err(Error::new(Kind::Config, "--until is not after --since"));
    }
    Ok(())
}

/// A table of which nothing is known yet.
fn entry(table: &Table) -> AuditTable {
    AuditTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        watermark: None,
        from: None,
        to: None,
        buckets: Vec::new(),
        error: None,
    }
}

async fn compare(
    config: &Config,
    args: &Audit,
    table: &Table,
    server: &Server,
    file_io: &FileIO,
) -> Result<AuditTable> {
    // Watermark and rows of the target are those of one snapshot: what a pass commits meanwhile lies above. The source is counted after it,
    // so that a row that comes late meanwhile is missing, which is true.
    let catalog = Catalog::open(&config.catalog)?;
    let target = Target::load_existing(&catalog, file_io, &table.target).await?;
    target.check_format()?;
    let marker = target.marker(file_io, &table.target).await?;
    let source = server.open(&config.clickhouse.database, table).await?;
    let cursor = source.cursor(&table.cursor)?;
    let Some(marker) = marker else { return Ok(entry(table)) };
    marker.check_identity(&SourceIdentity {
        id: table.source_id.clone(),
        uuid: source.uuid,
        cursor: cursor.clone(),
    })?;

    let clock_micros = server.clock_micros().await?;
    let time = |tick| cursor.kind.format(tick);
    let mut entry = AuditTable { watermark: Some(time(marker.watermark)), ..entry(table) };
    let step = step(table.window, cursor.kind)?;
    let range = range(args, cursor.kind, clock_micros, marker.watermark, step);
    let sides = Sides { table, source: &source, target: &target, cursor: &cursor, file_io };
    let Some((range, counted)) = sides.count(range, &marker.skipped).await? else { return Ok(entry) };
    let counts: Vec<Counts> = match args.checksum {
        false => counted.into_iter().flat_map(|(_, counts)| counts).collect(),
        true => {
            let route = Route::open(server, &config.clickhouse.database, table, target.clone()).await?;
            route.evolution.check()?;
            compare_rows(config, &route, file_io, counted).await?
        }
    };
    let outlived_to = match counts.iter().any(|counts| counts.verdict(None) == Verdict::Extra) {
        true if source.is_query() => audit::first_of_source(&counts),
        true => sides.outlived_to(range, clock_micros).await?,
        false => None,
    };
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
    entry.buckets = buckets.collect();
    (entry.from, entry.to) = (range.low.map(time), Some(time(range.high)));
    Ok(entry)
}

/// Compares the rows of what was counted, section by section.
async fn compare_rows(
    config: &Config,
    route: &Route<'_>,
    file_io: &FileIO,
    counted: Vec<(Section, Vec<Counts>)>,
) -> Result<Vec<Counts>> {
    let (_, seed) = Uuid::new_v4().as_u64_pair();
    let comparison = Comparison {
        route,
        file_io,
        scratch: config.state.parent().unwrap_or(Path::new("/")),
        memory: config.merge_memory,
        imager: Imager::new(seed),
    };
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
    table: &'a Table,
    source: &'a Source<'a>,
    target: &'a Target,
    cursor: &'a Cursor,
    file_io: &'a FileIO,
}

impl Sides<'_> {
    /// Counts them. A range without lower bound begins with the bucket of the source's earliest row, because what lies before it has been dropped
    /// there; `None` where there is nothing to compare.
    async fn count(
        &self,
        range: Window,
        skipped: &[(Tick, Tick)],
    ) -> Result<Option<(Window, Vec<(Section, Vec<Counts>)>)>> {
        let width = audit::bucket_width(self.cursor.kind);
        let mut counted = Vec::new();
        for section in audit::sections(range, skipped) {
            counted.push((section, self.source_rows(section, width).await?));
        }
        let earliest = counted.iter().flat_map(|(_, rows)| rows).map(|(bucket, _)| bucket.low).next();
        let Some(low) = range.low.or(earliest).filter(|_| !counted.is_empty()) else { return Ok(None) };
        let mut counts = Vec::new();
        for (section, source_rows) in counted {
            let section = Section { window: section.window.intersect(low, range.high), ..section };
            let name = &self.table.target;
            let target_rows = self.target.histogram(self.file_io, name, self.cursor, section.window, width).await?;
            counts.push((section, audit::pair(section, &source_rows, &target_rows)));
        }
        Ok(Some((Window { low: Some(low), ..range }, counts)))
    }

    /// Rows of the source. A query is asked span by span, as passes ask it, and not for what was skipped.
    async fn source_rows(&self, section: Section, width: Tick) -> Result<Vec<(Bucket, u64)>> {
        let span = self.table.chunk_span.filter(|_| self.source.is_query());
        let Some(span) = span.and_then(|span| self.cursor.kind.ticks_in(span)) else {
            return self.source.leaving_histogram(self.cursor, section.window, width).await;
        };
        let mut rows = Vec::new();
        for window in section.spans(span) {
            rows.extend(self.source.leaving_histogram(self.cursor, window, width).await?);
        }
        Ok(rows)
    }

    /// How far the source's TTL explains that rows are gone; `None` where it has none. Rows up to its clock tell how long a row lives: of a
    /// range that ends earlier, all may be gone.
    async fn outlived_to(&self, range: Window, clock_micros: i64) -> Result<Option<Tick>> {
        let kind = self.cursor.kind;
        let window = Window { high: range.high.max(kind.tick_at(clock_micros)), ..range };
        let lifetime = self.source.shortest_lifetime(self.cursor, window).await?;
        Ok(lifetime.map(|lifetime| audit::outlived_to(kind, clock_micros, lifetime)))
    }
}
