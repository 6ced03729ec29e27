//! The command line: clap types only.

mod examples;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::cursor::parse_instant;

const EXIT_CODES: &str = "\
Exit codes:
  0        done, or nothing to do
  1        failed; the next pass may succeed by itself (server down, query cut, conflict, disk full)
  2        usage or configuration (misspelt key, wrong password, missing table or cursor)
  3        a person is needed (value or type refused, missing target, rollback, audit mismatch,
           lag over --max-lag, rows lost to the source's TTL)
  4        skipped: another pass holds the lock
  143 130  stopped by SIGTERM, SIGINT, after cleaning up
Over several tables the worst one counts: 3, then 2, 1, 4, 0.";

const VERDICTS: &str = "\
Verdicts:
  equal              the same on both sides
  missing            the source has more: rows that came late, or that left the target; --repair adds them
  pending            as missing, and the next pass will bring them: they came within late_lookback
  extra              the target has more: rows that left the source, or that others wrote
  changed            rows with a known key and other content (--checksum, tables with `key`)
  expired_in_source  the target has more, and the source's TTL explains it
  skipped            left out on purpose, by `start_at` or a reset
They are told from the numbers of rows or, with --checksum, from the rows; `missing` and `extra` make the exit code 3.";

/// Moves the new rows of ClickHouse tables into Apache Iceberg tables, exactly once.
///
/// One call of `run` is one idempotent pass, made for cron. The watermark is committed together with the rows, in one
/// Iceberg snapshot: a pass that dies at any moment, or that runs twice, neither loses nor doubles a row.
#[derive(Debug, Parser)]
#[command(version, about, long_about, after_help = format!("{}\n\n{EXIT_CODES}", examples::PROGRAM), max_term_width = 110)]
pub struct Cli {
    /// Configuration file [default: ./offload.toml, then /etc/k2-offload/offload.toml]
    #[arg(short, long, global = true, value_name = "FILE", env = "K2_OFFLOAD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Format of the logs on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Format of the results on stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
    /// Log more: -v each step, -vv what the libraries say too
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log warnings and errors only; of a pass, print only what is new, with its time
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Format of logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line per event, for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create the Iceberg namespaces and tables of the configuration; tables that exist stay as they are
    #[command(after_help = examples::INIT_TABLES)]
    InitTables(InitTables),
    /// One pass: move the rows that are new
    #[command(after_help = examples::RUN)]
    Run(Run),
    /// Show how far each table has left, or move its watermark
    #[command(subcommand, after_help = examples::WATERMARK)]
    Watermark(Watermark),
    /// Compare source and target: rows of each hour below the watermark
    ///
    /// Counts the rows that the source still holds and those of the target in each hour (each day where the cursor is a Date) below the
    /// watermark, and lists the hours that differ. Changes nothing, unless --repair is given: then the rows that the target misses are added, once,
    /// also those that somebody deleted there; nothing is ever removed from it.
    #[command(after_help = examples::AUDIT, after_long_help = format!("{}\n\n{VERDICTS}", examples::AUDIT))]
    Audit(Audit),
    /// Whether all is well, on one screen; exit 0, or 3 where somebody has to look
    ///
    /// Says of each table its lag, watermark, last passes, failures, time left by the source's TTL, late and duplicate rows, files and last audit, from
    /// the state cache and the targets. The source is not asked. A table is not well that lags more than max_lag, that failed more than three times in
    /// a row or needs a person, whose rows wait and expire within ttl_margin, or whose last audit found a mismatch.
    #[command(after_help = examples::STATUS)]
    Status(Status),
    /// Past passes and commits, and why something failed
    #[command(after_help = examples::HISTORY)]
    History(History),
    /// Look at the configuration, and at all that it names
    #[command(subcommand, after_help = examples::CONFIG)]
    Config(ConfigCommand),
    /// Print the completions of a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(Completions),
    /// Write the man pages, one for each command
    #[command(after_help = examples::MAN)]
    Man(Man),
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Which tables.
    #[command(flatten)]
    pub tables: Tables,
    /// Lag above which a table is not well (30m, 2h) [default: max_lag of the configuration, else 30m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub max_lag: Option<std::time::Duration>,
}

/// Options of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// Which tables.
    #[command(flatten)]
    pub tables: Tables,
    /// Passes that began at or after this instant (RFC 3339, or a date)
    #[arg(long, value_name = "TIMESTAMP", value_parser = parse_instant, conflicts_with = "last")]
    pub since: Option<DateTime<Utc>>,
    /// Passes of the last hours or days (24h, 7d) by this host's clock
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub last: Option<std::time::Duration>,
    /// Only this pass
    #[arg(long, value_name = "RUN_ID")]
    pub run: Option<String>,
    /// Only what failed
    #[arg(long)]
    pub failed: bool,
    /// With the commits of each pass
    #[arg(long)]
    pub chunks: bool,
    /// The newest N of them
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// Which tables a command is about.
#[derive(Debug, Args)]
pub struct Tables {
    /// Only this table: the target (cold.trades) or, where unambiguous, the source; may be repeated
    #[arg(long = "table", value_name = "T")]
    pub tables: Vec<String>,
}

/// Options of `init-tables`.
#[derive(Debug, Args)]
pub struct InitTables {
    /// Which tables.
    #[command(flatten)]
    pub tables: Tables,
    /// Say what would be created, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take over a table that the catalog does not know, such as Spark's, or one whose catalog is lost: its newest metadata file
    /// (TABLE/metadata/v7.metadata.json) or its folder, by path or URI
    ///
    /// The catalog learns the table as it lies, after checks that it is whole and fits the source. A table that passes filled goes on where they stopped. An old catalog must not be
    /// written to any more, nor cleaned up: version-hint.text and the old metadata files stay as they are, and show the old state.
    #[arg(long, value_name = "METADATA", requires = "tables")]
    pub register: Option<String>,
    /// With --register: where the table's watermark shall be (RFC 3339, or a date), above all its rows
    ///
    /// It is exclusive: rows at or above it are offloaded by the next pass, rows below it never. A predecessor that remembered the last
    /// timestamp that it offloaded needs that and one tick more (the next millisecond, for milliseconds).
    #[arg(long, value_name = "TIMESTAMP", value_parser = parse_instant, requires = "register")]
    pub watermark: Option<DateTime<Utc>>,
    /// With --watermark: do not ask where rows of the source lie between the table's last and the watermark
    #[arg(long, requires = "watermark")]
    pub yes: bool,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Which tables.
    #[command(flatten)]
    pub tables: Tables,
    /// Only tables of this layer; may be repeated
    #[arg(long = "layer", value_name = "L")]
    pub layers: Vec<String>,
    /// Say which rows would leave, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Leave rows at or above this instant for a later pass (RFC 3339, or a date)
    #[arg(long, value_name = "TIMESTAMP", value_parser = parse_instant)]
    pub until: Option<DateTime<Utc>>,
}

/// Subcommands of `watermark`.
#[derive(Debug, Subcommand)]
pub enum Watermark {
    /// Show watermark, lag, time left by the source's TTL, and the last passes of each table
    #[command(after_help = examples::WATERMARK_SHOW)]
    Show(Show),
    /// Put the watermark of a table forward or back, take over a table that others filled, or keep a rollback
    ///
    /// Forward, rows of the source between the old watermark and the new one never leave, until a reset goes back over them. Back, the next
    /// passes compare source and target from there on and add the rows that the target does not hold: none is doubled, however often. The
    /// command says how many rows that concerns and asks. It is a commit of its own, without rows, so that every other pass sees it.
    #[command(after_help = examples::WATERMARK_RESET)]
    Reset(Reset),
}

/// Options of `watermark reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// The table: the target (cold.trades) or, where unambiguous, the source
    #[arg(long, value_name = "T")]
    pub table: String,
    /// Where the watermark shall be (RFC 3339, or a date); rows at or above it are offloaded, or compared, by later passes
    #[arg(long, value_name = "TIMESTAMP", value_parser = parse_instant, required_unless_present = "to_earliest", conflicts_with = "to_earliest")]
    pub to: Option<DateTime<Utc>>,
    /// Before the first row of the source
    #[arg(long)]
    pub to_earliest: bool,
    /// Say what would be skipped or compared, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Options of `watermark show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Which tables.
    #[command(flatten)]
    pub tables: Tables,
    /// Exit with 3 where a table lags further than this (30m, 2h) [default: max_lag of the configuration, if any]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub max_lag: Option<std::time::Duration>,
}

/// Options of `audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// Which tables.
    #[command(flatten)]
    pub tables: Tables,
    /// Compare from this instant on (RFC 3339, or a date) [default: the hour of the source's earliest row]
    #[arg(long, value_name = "TIMESTAMP", value_parser = parse_instant, conflicts_with = "last")]
    pub since: Option<DateTime<Utc>>,
    /// Compare up to this instant, without it [default: the watermark]
    #[arg(long, value_name = "TIMESTAMP", value_parser = parse_instant)]
    pub until: Option<DateTime<Utc>>,
    /// Compare the last hours or days (24h, 7d) by the source's clock
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub last: Option<std::time::Duration>,
    /// Compare the rows themselves, value by value; takes about as long as the offload did
    #[arg(long)]
    pub checksum: bool,
    /// Add the rows that are missing, and compare again; with --orphans, delete them
    #[arg(long)]
    pub repair: bool,
    /// List files of ours that nothing refers to, at least 3 days old: what kill -9 leaves behind. Rows are not compared
    #[arg(long)]
    pub orphans: bool,
}

/// Subcommands of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration, say what it means, and try everything that a pass needs
    ///
    /// Prints every key with the value that counts, where the passwords come from, and a line for each check: ClickHouse and every source, catalog
    /// and every target, warehouse, locks, state cache and records, metrics, notifications. Then the least that the users of ClickHouse
    /// and of a PostgreSQL catalog must be granted, what a bucket's policy must allow, and the files and folders that this process must be able to
    /// write. Nothing is changed: what it writes to try a folder or a bucket is deleted again, and the commit by which it tries a REST catalog
    /// cannot succeed.
    #[command(after_help = examples::CONFIG_CHECK)]
    Check(ConfigCheck),
}

/// Options of `config check`.
#[derive(Debug, Args)]
pub struct ConfigCheck {
    /// Only check the file itself: ask no server, touch no folder
    #[arg(long)]
    pub offline: bool,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Where to write them; made where it does not exist
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The calls of ours on a line as a shell takes them, without comments, redirections and what reads from their pipes.
    fn calls(line: &str) -> Vec<Vec<String>> {
        let line = line.trim_start().trim_start_matches("$ ").trim_start_matches("*/15 * * * *").trim_start();
        let line = line.split(" #").next().unwrap_or_default();
        let commands = line.split("&&").map(|command| command.split(['|', '>']).next().unwrap_or_default().trim());
        let ours = commands.filter(|command| command.starts_with("k2-offload "));
        ours.map(|command| command.split_whitespace().map(str::to_owned).collect()).collect()
    }

    #[track_caller]
    fn is_understood(call: &[String]) {
        let placeholders = |word: &String| match word.as_str() {
            "TIMESTAMP" => "2026-11-20".to_owned(),
            "COMMAND" => "run".to_owned(),
            "SHELL" => "bash".to_owned(),
            _ => word.clone(),
        };
        let parsed = Cli::try_parse_from(call.iter().map(placeholders));
        let is_help = |error: &clap::Error| error.kind() == clap::error::ErrorKind::DisplayHelp;
        assert!(parsed.as_ref().err().is_none_or(is_help), "{call:?}: {}", parsed.unwrap_err());
    }

    fn all_commands(command: clap::Command) -> Vec<clap::Command> {
        let further = command.get_subcommands().filter(|command| command.get_name() != "help").cloned();
        let further: Vec<clap::Command> = further.flat_map(all_commands).collect();
        [command].into_iter().chain(further).collect()
    }

    #[test]
    fn every_command_has_examples_that_it_understands() {
        let mut program = Cli::command();
        program.build();
        for command in all_commands(program) {
            let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
            for help in [command.get_after_help(), command.get_after_long_help().or(command.get_after_help())] {
                let help = help.map(ToString::to_string).unwrap_or_default();
                let calls: Vec<Vec<String>> = help.lines().flat_map(calls).collect();
                assert!(help.starts_with("Examples:\n") && !calls.is_empty(), "{name} has no examples");
                calls.iter().for_each(|call| is_understood(call));
                let is_own = |call: &Vec<String>| name.split(' ').all(|word| call.iter().any(|given| given == word));
                assert!(calls.iter().any(is_own), "the examples of `{name}` are of other commands");
            }
        }
    }

    #[test]
    fn every_call_in_the_readme_is_understood() {
        let readme = include_str!("../README.md");
        let blocks = readme.lines().filter(|line| line.starts_with("    ")).map(str::to_owned);
        let inline = readme.split('`').skip(1).step_by(2).map(str::to_owned);
        let calls: Vec<Vec<String>> = blocks.chain(inline).flat_map(|line| calls(&line)).collect();
        assert!(calls.len() > 15, "{calls:?}");
        calls.iter().for_each(|call| is_understood(call));
    }
}
