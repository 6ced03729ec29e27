//! `init-tables`: creates what is missing, says what differs, changes nothing that exists.

use iceberg::io::FileIO;

use super::select;
use crate::cli::{Format, InitTables};
use crate::config::{Config, Table};
use crate::error::{Error, Result, worst_exit};
use crate::partition::PartitionBy;
use crate::plan::{span_ticks, step};
use crate::report::{self, ErrorReport, InitReport, InitStatus, InitTable};
use crate::schema::drift;
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
    let cursor = source.cursor(&table.cursor)?;
    step(table.window, cursor.kind)?;
    table.chunk_span.map(|span| span_ticks("chunk_span", span, cursor.kind)).transpose()?;
    for by in &table.partition_by {
        source.partition_field(by.clone())?;
    }
    let new = NewTable::build(table, &source.columns, &config.catalog.warehouse)?;
    let existing = match &catalog {
        Some(catalog) => Target::load(catalog, file_io, &table.target).await?,
        None => None,
    };
    let entry = |status, location: &str, drift| InitTable {
        source: table.source.clone(),
        target: table.target.to_string(),
        status,
        location: Some(location.to_owned()),
        drift,
        error: None,
    };
    match (existing, catalog) {
        (Some(target), _) => {
            Ok(entry(InitStatus::Exists, target.metadata.location(), differences(table, &source, &target)))
        }
        (None, Some(catalog)) if !dry_run => {
            let created = new.create(catalog, file_io, &table.target).await?;
            let status = if created { InitStatus::Created } else { InitStatus::Exists };
            Ok(entry(status, new.location(), Vec::new()))
        }
        (None, _) => Ok(entry(InitStatus::Planned, new.location(), Vec::new())),
    }
}

/// Drift of the schema, and a partition that is another one than configured.
fn differences(table: &Table, source: &Source<'_>, target: &Target) -> Vec<String> {
    let mut all = drift(&source.columns, target.metadata.current_schema());
    let name = |fields: &[PartitionBy]| {
        let fields: Vec<String> = fields.iter().map(PartitionBy::to_string).collect();
        if fields.is_empty() { "nothing".to_owned() } else { fields.join(", ") }
    };
    match target.partition_by() {
        Ok(fields) if fields == table.partition_by => {}
        Ok(fields) => all.push(format!(
            "the target is partitioned by {}, the configuration says {}; the target's partitions are followed",
            name(&fields),
            name(&table.partition_by)
        )),
        Err(error) => all.push(error.to_string()),
    }
    all
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
