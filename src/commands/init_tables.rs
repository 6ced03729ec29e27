//! `init-tables`: creates what is missing, says what differs, changes nothing that exists.

use iceberg::io::FileIO;

use super::select;
use crate::cli::{Format, InitTables};
use crate::config::{Config, Table};
use crate::error::{Error, Result, worst_exit};
use crate::report::{self, ErrorReport, InitReport, InitStatus, InitTable};
use crate::schema::evolve;
use crate::source::{Server, Source, new_run_id};
use crate::storage::local_file_io;
use crate::target::{Catalog, NewTable, Target};

pub async fn execute(config: &Config, args: &InitTables, format: Format) -> Result<u8> {
    let tables = select(config, &args.tables)?;
    let server = Server::connect(&config.clickhouse, &new_run_id()).await?;
    let mut catalog = match args.dry_run {
        true if !config.catalog.path.exists() => None,
        true => Some(Catalog::open(&config.catalog)?),
        false => Some(Catalog::open_or_create(&config.catalog)?),
    };
    let file_io = local_file_io();
    let mut report = InitReport { tables: Vec::new() };
    for table in tables {
        let entry = init(config, table, &server, catalog.as_mut(), &file_io, args.dry_run).await;
        report.tables.push(entry.unwrap_or_else(|error| failed(table, &error)));
    }
    report::print(&report, format);
    Ok(worst_exit(report.tables.iter().filter_map(|t| Some(t.error.as_ref()?.kind.policy().exit))))
}

async fn init(
    config: &Config,
    table: &Table,
    server: &Server,
    catalog: Option<&mut Catalog>,
    file_io: &FileIO,
    dry_run: bool,
) -> Result<InitTable> {
    let source = server.open(&config.clickhouse.database, table).await?;
    source.cursor(&table.cursor)?;
    for by in &table.partition_by {
        source.partition_field(by.clone())?;
    }
    let new = NewTable::build(table, &source.columns, &config.catalog.warehouse)?;
    let existing = match &catalog {
        Some(catalog) => Target::load(catalog, file_io, &table.target).await?,
        None => None,
    };
    match (existing, catalog) {
        (Some(target), _) => Ok(exists(table, &source, &target)),
        (None, Some(catalog)) if !dry_run => {
            let created = new.create(catalog, file_io, &table.target).await?;
            let status = if created { InitStatus::Created } else { InitStatus::Exists };
            Ok(entry(table, status, new.location(), Vec::new()))
        }
        (None, _) => Ok(entry(table, InitStatus::Planned, new.location(), Vec::new())),
    }
}

/// An existing table, with all that differs; what `run` would refuse is refused here.
fn exists(table: &Table, source: &Source<'_>, target: &Target) -> InitTable {
    let evolution = evolve(&source.columns, &target.metadata, table.schema_evolution);
    let mut drift = evolution.sentences();
    drift.extend(target.partition_difference(table).unwrap_or_else(|error| Some(error.to_string())));
    let error = evolution.check().err().map(|error| ErrorReport::from(&error));
    let status = if error.is_some() { InitStatus::Failed } else { InitStatus::Exists };
    InitTable { error, ..entry(table, status, target.metadata.location(), drift) }
}

fn entry(table: &Table, status: InitStatus, location: &str, drift: Vec<String>) -> InitTable {
    InitTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        status,
        location: Some(location.to_owned()),
        drift,
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
        error: Some(ErrorReport::from(error)),
    }
}
