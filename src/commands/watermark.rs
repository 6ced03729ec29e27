//! `watermark show`: how far each table has left, from the target itself; the cache only adds what a target cannot know.

use iceberg::io::FileIO;
use uuid::Uuid;

use super::select;
use crate::cli::{Format, Show};
use crate::config::{Config, Table};
use crate::cursor::{Tick, micros_of};
use crate::error::{Kind, Result, worst_exit};
use crate::report::{self, ErrorReport, WatermarkReport, WatermarkTable};
use crate::source::Server;
use crate::state::{State, TableState};
use crate::storage::local_file_io;
use crate::target::{Catalog, Target};
use crate::watermark::Marker;

const MICROS_PER_SECOND: i64 = 1_000_000;

pub async fn show(config: &Config, args: &Show, format: Format) -> Result<u8> {
    let tables = select(config, &args.tables)?;
    let state = State::open(&config.state);
    let file_io = local_file_io();
    let clock = clock(config).await;
    let max_lag = args.max_lag.or(config.max_lag);
    let mut report = WatermarkReport { tables: Vec::with_capacity(tables.len()) };
    let mut exits = Vec::new();
    for table in tables {
        let remembered = state.table(&table.target.to_string()).unwrap_or_default();
        let marker = marker(config, table, &file_io).await;
        let mut entry =
            describe(table, remembered, marker.as_ref().ok().and_then(Option::as_ref), clock.as_ref().ok().copied());
        if let Some(error) = marker.as_ref().err().or(clock.as_ref().err()) {
            entry.error = Some(ErrorReport::from(error));
            exits.push(error.kind().policy().exit);
        }
        let too_late =
            max_lag.zip(entry.lag_seconds).is_some_and(|(max, lag)| lag.unsigned_abs() > max.as_secs() && lag > 0);
        if too_late {
            exits.push(Kind::Refused.policy().exit);
        }
        report.tables.push(entry);
    }
    report::print(&report, format);
    Ok(worst_exit(exits))
}

/// The source's clock in microseconds.
async fn clock(config: &Config) -> Result<i64> {
    let server = Server::connect(&config.clickhouse, &Uuid::now_v7().simple().to_string()).await?;
    server.clock_micros().await
}

async fn marker(config: &Config, table: &Table, file_io: &FileIO) -> Result<Option<Marker>> {
    let catalog = Catalog::open(&config.catalog)?;
    let target = Target::load_existing(&catalog, file_io, &table.target).await?;
    target.marker(file_io, &table.target).await
}

fn describe(table: &Table, remembered: TableState, marker: Option<&Marker>, clock: Option<i64>) -> WatermarkTable {
    let kind = marker.map(|marker| marker.source.cursor.kind);
    let time = |tick: Option<Tick>| Some(kind?.format(tick?));
    // checked_to is a cache: without it, the watermark is what is known to have been looked at (invariant 1).
    let checked_to = marker.map(|marker| remembered.checked_to.map_or(marker.watermark, |c| c.max(marker.watermark)));
    let lag_seconds = kind.zip(checked_to).zip(clock).and_then(|((kind, checked_to), clock)| {
        let reachable = kind.tick_at(clock.saturating_sub(micros_of(table.settle_delay)));
        let lag = kind.micros_at(reachable)?.checked_sub(kind.micros_at(checked_to)?)?;
        Some((lag / MICROS_PER_SECOND).max(0))
    });
    WatermarkTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        watermark: time(marker.map(|marker| marker.watermark)),
        offloaded_to: time(marker.map(|marker| marker.offloaded_to)),
        checked_to: time(checked_to),
        lag_seconds,
        ttl_seconds_left: None,
        last_success_at: remembered.last_success_at,
        last_duration_ms: remembered.last_duration_ms,
        failure_count: remembered.failure_count,
        status: if remembered.status.is_empty() { "initialized".to_owned() } else { remembered.status },
        last_error: remembered.last_error,
        error: None,
    }
}
