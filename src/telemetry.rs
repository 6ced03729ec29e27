//! Logs and progress, both on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::{Cli, LogFormat};

/// Draws progress on a terminal and keeps logs and bars apart.
#[derive(Debug, Clone)]
pub struct Telemetry {
    bars: MultiProgress,
}

impl Telemetry {
    /// Starts logging as the command line asks.
    pub fn init(cli: &Cli) -> Self {
        let drawn = can_draw() && !cli.quiet;
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let telemetry = Self { bars: MultiProgress::with_draw_target(target) };
        let level = match (cli.quiet, cli.verbose) {
            (true, _) => "warn",
            (false, 0) => "info",
            (false, 1) => "k2_offload=debug,info",
            (false, _) => "k2_offload=trace,debug",
        };
        // iceberg and the HTTP client speak of their own affairs at info; a pass has its own words for them. The ClickHouse client repeats what the
        // server says, which may quote rows: it never speaks.
        let others = if cli.verbose > 1 { "" } else { ",hyper=warn,iceberg=warn" };
        let filter = EnvFilter::new(format!("{level}{others},clickhouse=off"));
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(telemetry.clone())
            // It would say so on stderr, and panic where that is gone.
            .log_internal_errors(false)
            .with_target(cli.verbose > 0);
        match cli.log_format {
            LogFormat::Text => builder.with_ansi(can_draw() && !is_set("NO_COLOR")).init(),
            LogFormat::Json => builder.json().flatten_event(true).init(),
        }
        telemetry
    }

    /// A spinner for one table, which counts bytes.
    pub fn bar(&self, table: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {bytes}  {bytes_per_sec}  {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(table.to_owned());
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        bar
    }
}

/// Whether stderr is a terminal that understands more than text.
fn can_draw() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// As https://no-color.org has it: empty is not set.
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

impl Write for Telemetry {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bars.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Telemetry {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
