//! `run`: one pass.

use super::select;
use crate::cli::{Format, Run};
use crate::config::{Config, Table};
use crate::error::{Error, Kind, Result};
use crate::pass::{self, Options};
use crate::report;
use crate::stop::Stop;
use crate::telemetry::Telemetry;

pub async fn execute(config: &Config, args: &Run, format: Format, telemetry: &Telemetry) -> Result<u8> {
    let tables = of_layers(select(config, &args.tables)?, &args.layers)?;
    let options = Options { dry_run: args.dry_run, until_micros: args.until.map(|until| until.timestamp_micros()) };
    let report = pass::run(config, &tables, options, &Stop::listen()?, telemetry).await;
    report::print(&report, format);
    Ok(report.exit)
}

fn of_layers<'a>(tables: Vec<&'a Table>, layers: &[String]) -> Result<Vec<&'a Table>> {
    if let Some(unknown) = layers.iter().find(|layer| !tables.iter().any(|table| table.layer == **layer)) {
        return Err(Error::new(
            Kind::Config,
            format!("--layer {unknown}: no table of this layer is configured or chosen"),
        ));
    }
    Ok(tables.into_iter().filter(|table| layers.is_empty() || layers.contains(&table.layer)).collect())
}
