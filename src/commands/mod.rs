//! One file per subcommand: build the clients, call the core, hand facts to [`crate::report`].

mod audit;
mod config_check;
mod history;
mod init_tables;
mod orphans;
mod register;
mod reset;
mod run;
mod shell;
mod status;
mod watermark;

use crate::cli::{Cli, Command, ConfigCommand, Tables, Watermark};
use crate::config::{self, Config, Table};
use crate::error::{Error, Kind, Result};
use crate::telemetry::Telemetry;

/// Does what the command line asks; returns the exit code.
pub async fn dispatch(cli: &Cli, telemetry: &Telemetry) -> Result<u8> {
    let config = || Config::load(&config::find(cli.config.clone())?);
    match &cli.command {
        Command::InitTables(args) => init_tables::execute(&config()?, args, cli.format).await,
        Command::Run(args) => run::execute(&config()?, args, cli, telemetry).await,
        Command::Audit(args) if args.orphans => orphans::execute(&config()?, args, cli.format).await,
        Command::Audit(args) => audit::execute(&config()?, args, cli.format, telemetry).await,
        Command::Watermark(Watermark::Show(args)) => watermark::show(&config()?, args, cli.format).await,
        Command::Watermark(Watermark::Reset(args)) => reset::execute(&config()?, args, cli.format).await,
        Command::Status(args) => status::execute(&config()?, args, cli.format).await,
        Command::History(args) => history::execute(&config()?, args, cli.format),
        Command::Config(ConfigCommand::Check(args)) => {
            config_check::execute(cli.config.clone(), args, cli.format).await
        }
        Command::Completions(args) => Ok(shell::completions(args.shell)),
        Command::Man(args) => shell::man(args, cli.format),
    }
}

/// The tables that `--table` names, all without it, in the order of the configuration.
fn select<'a>(config: &'a Config, wanted: &Tables) -> Result<Vec<&'a Table>> {
    for name in &wanted.tables {
        match config.tables.iter().filter(|table| is_named(table, name)).count() {
            1 => {}
            0 => {
                let known: Vec<String> = config.tables.iter().map(|table| table.target.to_string()).collect();
                return Err(Error::new(Kind::Config, format!("--table {name}: no such table in the configuration"))
                    .hint(format!("it has {}", known.join(", "))));
            }
            several => {
                return Err(Error::new(Kind::Config, format!("--table {name}: {several} tables have this source"))
                    .hint("name the target instead"));
            }
        }
    }
    let chosen = |table: &&Table| wanted.tables.is_empty() || wanted.tables.iter().any(|name| is_named(table, name));
    Ok(config.tables.iter().filter(chosen).collect())
}

fn is_named(table: &Table, name: &str) -> bool {
    table.target.to_string() == name || table.source == name
}
