//! `watermark show`: how far each table has left, from the target itself; the cache only adds what a target cannot know.

use std::time::Duration;

use super::select;
use crate::cli::{Format, Show};
use crate::config::{Config, Table};
use crate::cursor::{CursorType, Tick};
use crate::error::{Kind, Result, worst_exit};
use crate::plan::{lower_bound, reachable, seconds_between, step};
use crate::report::{self, ErrorReport, WatermarkReport, WatermarkTable};
use crate::source::{Facts, Server, new_run_id};
use crate::state::{Ledger, State, TableState};
use crate::target::{Catalog, Target};
use crate::ttl;
use crate::watermark::Marker;

pub async fn show(config: &Config, args: &Show, format: Format) -> Result<u8> {
    let tables = select(config, &args.tables)?;
    let state = State::open_to_read(&config.state);
    let catalog = Catalog::open(config).await;
    let server = Server::connect(&config.clickhouse, &new_run_id()).await;
    let max_lag = args.max_lag.or(config.max_lag);
    let mut report = WatermarkReport { tables: Vec::with_capacity(tables.len()) };
    let mut exits = Vec::new();
    let mut remembered = state.tables();
    let targets: Vec<String> = tables.iter().map(|table| table.target.to_string()).collect();
    Ledger::new(config, &new_run_id()).complete(&mut remembered, &targets).await;
    for table in tables {
        let remembered = remembered.remove(&table.target.to_string()).unwrap_or_default();
        let last_offload = state.last_offload(&table.target.to_string());
        let marker = match &catalog {
            Ok(catalog) => marker(catalog, table).await,
            Err(error) => Err(error.repeat()),
        };
        let known = marker.as_ref().ok().and_then(Option::as_ref);
        let now = match &server {
            Ok(server) => Now::ask(server, config, table, known.map(|marker| marker.watermark)).await,
            Err(error) => Err(error.repeat()),
        };
        let mut entry = describe(table, (remembered, last_offload), known, now.as_ref().ok());
        ttl::warn(table, entry.ttl_seconds_left);
        if let Some(error) = marker.as_ref().err().or(now.as_ref().err()) {
            entry.error = Some(ErrorReport::from(error));
            exits.push(error.kind().policy().exit);
        } else if max_lag.is_some_and(|max| entry.lag_seconds.is_none_or(|lag| lag.unsigned_abs() > max.as_secs())) {
            // A table of which nothing was ever looked at lags without a bound.
            exits.push(Kind::Refused.policy().exit);
        }
        report.tables.push(entry);
    }
    report::print(&report, format);
    Ok(worst_exit(exits))
}

/// What the source says at this moment.
struct Now {
    cursor: CursorType,
    facts: Facts,
    step: Tick,
}

impl Now {
    async fn ask(server: &Server, config: &Config, table: &Table, watermark: Option<Tick>) -> Result<Self> {
        let source = server.open(&config.clickhouse.database, table).await?;
        let cursor = source.cursor(&table.cursor)?;
        let step = step(table.window, cursor.kind)?;
        let facts = source.facts(&cursor, lower_bound(watermark, table.start_at, cursor.kind, step)?).await?;
        Ok(Self { cursor: cursor.kind, facts, step })
    }

    /// Seconds between what a pass could have looked at by now and `checked_to`.
    fn lag_seconds(&self, settle_delay: Duration, checked_to: Tick) -> Option<i64> {
        let reachable = reachable(self.cursor, self.facts.clock_micros, settle_delay, self.step);
        seconds_between(self.cursor, checked_to, reachable)
    }
}

async fn marker(catalog: &Catalog, table: &Table) -> Result<Option<Marker>> {
    let target = Target::load_existing(catalog, &table.target).await?;
    target.marker(catalog.file_io(), &table.target).await
}

fn describe(
    table: &Table,
    (remembered, last_offload): (TableState, Option<(String, i64)>),
    marker: Option<&Marker>,
    now: Option<&Now>,
) -> WatermarkTable {
    let kind = marker.map(|marker| marker.source.cursor.kind).or(now.map(|now| now.cursor));
    let time = |tick: Option<Tick>| Some(kind?.format(tick?));
    let watermark = marker.map(|marker| marker.watermark);
    // checked_to is a cache: without it, the watermark is what is known to have been looked at (invariant 1).
    let checked_to = remembered.checked_to.max(watermark);
    let (last_offload_at, last_offload_rows) = last_offload.unzip();
    WatermarkTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        watermark: time(watermark),
        offloaded_to: time(marker.map(|marker| marker.offloaded_to)),
        checked_to: time(checked_to),
        lag_seconds: now.zip(checked_to).and_then(|(now, checked_to)| now.lag_seconds(table.settle_delay, checked_to)),
        ttl_seconds_left: now.and_then(|now| ttl::seconds_left(&now.facts)),
        last_success_at: remembered.last_success_at,
        last_offload_at,
        last_offload_rows,
        last_duration_ms: remembered.last_duration_ms,
        failure_count: remembered.failure_count,
        status: if remembered.status.is_empty() { "initialized".to_owned() } else { remembered.status },
        last_error: remembered.last_error,
        error: None,
    }
}
