//! `run`: one pass.

use chrono::Utc;

use super::select;
use crate::cli::{Cli, Format, Run};
use crate::config::{Config, Table};
use crate::error::{Error, Kind, Result};
use crate::pass::{self, Options};
use crate::report::{self, News, RunReport, RunTable};
use crate::state::{LastPass, State};
use crate::stop::Stop;
use crate::telemetry::Telemetry;
use crate::{metrics, notify};

pub async fn execute(config: &Config, args: &Run, cli: &Cli, telemetry: &Telemetry) -> Result<u8> {
    let tables = of_layers(select(config, &args.tables)?, &args.layers)?;
    let options = Options { dry_run: args.dry_run, until_micros: args.until.map(|until| until.timestamp_micros()) };
    let state = State::open(&config.state);
    let stop = Stop::listen()?;
    let report = pass::run(config, &tables, options, &state, &stop, telemetry).await;
    match (cli.quiet, cli.format) {
        (true, Format::Text) => report::print(&News(&report), cli.format),
        _ => report::print(&report, cli.format),
    }
    if !args.dry_run && !stop.finishes(leave_word(config, &state, &report)).await {
        tracing::warn!("stopped by a signal before all were told of the pass");
    }
    Ok(report.exit)
}

/// Once all is done and said: what monitoring sees, and who is told.
async fn leave_word(config: &Config, state: &State, report: &RunReport) {
    if !config.metrics.is_wanted() && !config.notify.is_wanted() {
        return;
    }
    let tables = state.tables();
    let ended_ms = Utc::now().timestamp_millis();
    let duration_ms = i64::try_from(report.duration_ms).unwrap_or(i64::MAX);
    let last_pass = (!report.is_skipped()).then_some(LastPass { ended_ms, duration_ms });
    if config.metrics.is_wanted() {
        metrics::publish(config, state, &tables, last_pass).await;
    }
    if config.notify.is_wanted() {
        let max_lag = config.lag_limit();
        let of_pass = |table: &RunTable| notify::of_pass(table, tables.get(&table.target), max_lag, ended_ms);
        let observed: Vec<_> = report.tables.iter().flat_map(of_pass).collect();
        notify::tell(config, state, &observed).await;
    }
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
