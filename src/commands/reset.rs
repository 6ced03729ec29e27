//! `watermark reset`: one commit without rows that puts the watermark elsewhere.

use super::select;
use crate::chunk::check_mergeable;
use crate::cli::{Format, Reset, Tables};
use crate::commit::{self, Base, Commit, Failure};
use crate::config::{Config, Table};
use crate::cursor::{Cursor, Tick};
use crate::error::Result;
use crate::guard::Locks;
use crate::plan::{Window, check_bound, floor, step};
use crate::report::{self, ResetReport, ResetStatus};
use crate::reset::{Reset as Plan, Situation, needs_largest};
use crate::source::{Server, Source, new_run_id};
use crate::state::{Ledger, Record, State};
use crate::target::{Catalog, Standing, Target, deleted_by_others};
use crate::watermark::SourceIdentity;

pub async fn execute(config: &Config, args: &Reset, format: Format) -> Result<u8> {
    let run_id = new_run_id();
    for table in select(config, &Tables { tables: vec![args.table.clone()] })? {
        let report = Box::pin(reset(config, table, args, &run_id)).await?;
        report::print(&report, format);
    }
    Ok(0)
}

async fn reset(config: &Config, table: &Table, args: &Reset, run_id: &str) -> Result<ResetReport> {
    let catalog = Catalog::open(config).await?;
    let target = Target::load_existing(&catalog, &table.target).await?;
    target.check_format()?;
    let standing = target.standing(catalog.file_io(), &table.target).await?;

    let server = Server::connect(&config.clickhouse, run_id).await?;
    let source = server.open(&config.clickhouse.database, table).await?;
    let cursor = source.cursor(&table.cursor)?;
    let largest = match needs_largest(&standing) {
        true => target.largest(catalog.file_io(), &table.target, &cursor).await?,
        false => None,
    };
    let identity = SourceIdentity { id: table.source_id.clone(), uuid: source.uuid, cursor };
    let kind = identity.cursor.kind;
    let step = step(table.window, kind)?;
    let now = kind.tick_at(server.clock_micros().await?);
    let deleted = match &standing {
        Standing::Filled(marker) => deleted_by_others(&target.metadata, marker).is_some(),
        _ => false,
    };
    let situation = Situation { standing: &standing, largest, source: &identity, now, deleted };
    let time = |tick| kind.format(tick);
    let mut report = ResetReport {
        source: table.source.clone(),
        target: table.target.to_string(),
        status: ResetStatus::Unchanged,
        from: situation.filled_to().map(time),
        to: None,
        rows_skipped: 0,
        rows_compared: None,
        snapshot_id: None,
    };
    let to = match (args.to, report.from.is_none()) {
        (Some(to), _) => kind.tick_from(to.timestamp_micros()),
        // Nothing has left, so that the next pass begins with the first row anyway.
        (None, true) if standing == Standing::Empty => return Ok(report),
        // Nothing is left in a target that was rolled back.
        (None, true) => floor(earliest(&source, &identity.cursor, now).await?, step),
        (None, false) => {
            let first = floor(earliest(&source, &identity.cursor, now).await?, step);
            situation.filled_to().map_or(first, |from| first.min(from))
        }
    };
    check_bound(to, step, kind)?;
    let plan = situation.plan(to)?;
    report.rows_skipped = source.rows(&identity.cursor, plan.window()).await?;
    if let Some(again) = plan.again() {
        check_mergeable(&source, table)?;
        plan.check_adopted(!table.key.is_empty())?;
        report.rows_compared = Some(source.rows(&identity.cursor, again).await?);
    }
    report.to = Some(time(plan.to));
    report.status = ResetStatus::Planned;
    if args.dry_run {
        return Ok(report);
    }
    if !args.yes && !report::confirm(&report)? {
        return Ok(ResetReport { status: ResetStatus::Unchanged, ..report });
    }
    // Not before the answer: passes go on while the question stands. What they commit meanwhile makes the commit fail.
    let ledger = Ledger::new(config, run_id);
    let locks = Locks::new(config, run_id, &ledger);
    let _guard = locks.acquire(&table.target).await?;
    let snapshot_id = commit_reset(config, &ledger, &catalog, table, &target, &plan, report.rows_skipped).await?;
    Ok(ResetReport { status: ResetStatus::Reset, snapshot_id: Some(snapshot_id), ..report })
}

/// Commits a reset, which skips so many rows of the source.
pub async fn commit_reset(
    config: &Config,
    ledger: &Ledger,
    catalog: &Catalog,
    table: &Table,
    target: &Target,
    plan: &Plan,
    rows_skipped: u64,
) -> Result<i64> {
    let marker = plan.marker(rows_skipped);
    // The very snapshot: where the watermark may be depends on all rows that are there.
    let commit = Commit {
        name: &table.target,
        planned_on: target,
        base: Base::Snapshot,
        marker: &marker,
        files: &[],
        schema: None,
    };
    let snapshot_id = match Box::pin(commit::commit(catalog, &commit)).await {
        Ok((snapshot_id, _)) => snapshot_id,
        Err(Failure::Rejected(error) | Failure::Undecided(error)) => return Err(error),
    };
    let (target, to) = (table.target.to_string(), plan.to);
    State::open(&config.state).forget_checked_to(&target);
    ledger.publish(&[Record::reset(&target, marker.source.cursor.kind.format(to), to)]).await;
    Ok(snapshot_id)
}

/// The day of the source's first row; without rows, now.
async fn earliest(source: &Source<'_>, cursor: &Cursor, now: Tick) -> Result<Tick> {
    let all = Window { low: None, high: now.saturating_add(1) };
    let days = source.histogram(cursor, all, &[], &[], cursor.kind.ticks_per_day()).await?;
    Ok(days.first().map_or(now, |day| day.low))
}
