//! `init-tables`: creates what is missing, says what differs, changes nothing that exists. Tables of others are [`super::register`]'s.

use super::register::{Request, register};
use super::select;
use crate::cli::{Format, InitTables};
use crate::config::{Config, Table};
use crate::error::{Error, Kind, Result, worst_exit};
use crate::plan::{span_ticks, step};
use crate::report::{self, ErrorReport, InitReport, InitStatus, InitTable};
use crate::schema::{Evolution, evolve};
use crate::source::{Server, Source, new_run_id};
use crate::storage::Storage;
use crate::target::{Catalog, NewTable, Target, check_vacant};

pub async fn execute(config: &Config, args: &InitTables, format: Format) -> Result<u8> {
    let tables = select(config, &args.tables)?;
    let run_id = new_run_id();
    let server = Server::connect(&config.clickhouse, &run_id).await?;
    if let Some(metadata) = &args.register {
        return register_one(config, &tables, &server, &Request { metadata, args, run_id: &run_id }, format).await;
    }
    let catalog = match args.dry_run {
        true => Catalog::open_if_exists(config).await?,
        false => Some(Catalog::open_or_create(config).await?),
    };
    let mut report = InitReport { tables: Vec::new() };
    for table in tables {
        let entry = init(config, table, &server, catalog.as_ref(), args.dry_run).await;
        report.tables.push(entry.unwrap_or_else(|error| failed(table, &error)));
    }
    report::print(&report, format);
    Ok(worst_exit(report.tables.iter().filter_map(|t| Some(t.error.as_ref()?.kind.policy().exit))))
}

async fn register_one(
    config: &Config,
    tables: &[&Table],
    server: &Server,
    request: &Request<'_>,
    format: Format,
) -> Result<u8> {
    let [table] = tables else {
        return Err(Error::new(Kind::Config, "--register takes over one table, and needs one --table"));
    };
    let entry = register(config, table, server, request).await;
    let code = entry.as_ref().map_or_else(|error| error.kind().policy().exit, |_| 0);
    let entry = entry.unwrap_or_else(|error| failed(table, &error));
    report::print(&InitReport { tables: vec![entry] }, format);
    Ok(code)
}

async fn init(
    config: &Config,
    table: &Table,
    server: &Server,
    catalog: Option<&Catalog>,
    dry_run: bool,
) -> Result<InitTable> {
    let source = server.open(&config.clickhouse.database, table).await?;
    let new = new_table(config, table, &source)?;
    let existing = match catalog {
        Some(catalog) => Target::load(catalog, &table.target).await?,
        None => None,
    };
    match catalog {
        Some(catalog) if existing.is_none() => catalog.check_vacant(&new, &table.target).await?,
        Some(_) => {}
        None => check_vacant(&Storage::of(config), new.location(), &table.target).await?,
    }
    match (existing, catalog) {
        (Some(target), _) => Ok(exists(table, &source, &target)),
        (None, Some(catalog)) if !dry_run => {
            let created = catalog.create(&table.target, &new).await?;
            let status = if created { InitStatus::Created } else { InitStatus::Exists };
            let target = Target::load_existing(catalog, &table.target).await?;
            Ok(entry(table, status, target.metadata.location(), Vec::new()))
        }
        (None, Some(catalog)) if !catalog.takes_files() => {
            Ok(InitTable { location: None, ..entry(table, InitStatus::Planned, "", Vec::new()) })
        }
        (None, _) => Ok(entry(table, InitStatus::Planned, new.location(), Vec::new())),
    }
}

/// What the target of a source would be; refuses what cannot be offloaded.
pub(super) fn new_table(config: &Config, table: &Table, source: &Source<'_>) -> Result<NewTable> {
    let cursor = source.cursor(&table.cursor)?;
    step(table.window, cursor.kind)?;
    table.chunk_span.map(|span| span_ticks("chunk_span", span, cursor.kind)).transpose()?;
    for by in &table.partition_by {
        source.partition_field(by.clone())?;
    }
    NewTable::build(table, &source.columns, &config.catalog.warehouse)
}

/// An existing table, with all that differs; what `run` would refuse is refused here.
fn exists(table: &Table, source: &Source<'_>, target: &Target) -> InitTable {
    let evolution = evolve(&source.columns, &target.metadata, table.schema_evolution);
    let drift = differences(&evolution, table, target);
    let error = evolution.check().err().map(|error| ErrorReport::from(&error));
    let status = if error.is_some() { InitStatus::Failed } else { InitStatus::Exists };
    InitTable { error, ..entry(table, status, target.metadata.location(), drift) }
}

/// All that differs between source, configuration and an existing table.
pub(super) fn differences(evolution: &Evolution, table: &Table, target: &Target) -> Vec<String> {
    let partitions = target.partition_difference(table).unwrap_or_else(|error| Some(error.to_string()));
    let others = [partitions, target.key_difference(table), target.order_difference(table)];
    evolution.sentences().into_iter().chain(others.into_iter().flatten()).collect()
}

fn entry(table: &Table, status: InitStatus, location: &str, drift: Vec<String>) -> InitTable {
    InitTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        status,
        location: Some(location.to_owned()),
        drift,
        adoption: None,
        seam: None,
        next_step: None,
        error: None,
    }
}

fn failed(table: &Table, error: &Error) -> InitTable {
    InitTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        status: InitStatus::Failed,
        location: None,
        drift: Vec::new(),
        adoption: None,
        seam: None,
        next_step: None,
        error: Some(ErrorReport::from(error)),
    }
}
