//! Logs and progress, both on stderr.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::{Cli, LogFormat};

/// How often a bar is drawn.
const TICK: Duration = Duration::from_millis(100);

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
        // iceberg and the clients of HTTP and of object stores speak of their own affairs at info; a pass has its own words for them. The ClickHouse client repeats what the
        // server says, which may quote rows: it never speaks.
        let others = if cli.verbose > 1 { "" } else { ",hyper=warn,iceberg=warn,object_store=warn" };
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

    /// A bar for one table, of which so many rows are to come; 0 where that is not known.
    pub fn bar(&self, table: &str, rows: u64) -> TableBar {
        if self.bars.is_hidden() {
            return TableBar { bar: None, rows: Cell::new(0), bytes: Cell::new(0) };
        }
        let (bar, template) = match rows {
            0 => (ProgressBar::new_spinner(), "{spinner} {prefix}  {human_pos} rows  {msg}  {elapsed}"),
            _ => (
                ProgressBar::new(rows),
                "{prefix}  {wide_bar}  {human_pos}/{human_len} rows  {per_sec}  {msg}  eta {eta}",
            ),
        };
        let bar = self.bars.add(bar).with_prefix(table.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        TableBar { bar: Some(bar), rows: Cell::new(0), bytes: Cell::new(0) }
    }
}

/// The progress of one table, on a terminal; elsewhere nothing. It goes with the value.
#[derive(Debug)]
pub struct TableBar {
    bar: Option<ProgressBar>,
    /// Of the files that are complete.
    rows: Cell<u64>,
    /// Of all.
    bytes: Cell<u64>,
}

impl TableBar {
    /// Bytes came. How many rows they are is known when their file is complete; until then they count as those before.
    pub fn bytes(&self, bytes: usize) {
        let Some(bar) = &self.bar else { return };
        let (rows, before) = (self.rows.get(), bar.position());
        self.bytes.set(self.bytes.get() + bytes as u64);
        bar.set_message(format!("{}", HumanBytes(self.bytes.get())));
        if rows > 0 {
            let more = u128::from(rows) * bytes as u128 / u128::from(self.bytes.get());
            let to = before.saturating_add(u64::try_from(more).unwrap_or(0));
            bar.set_position(bar.length().map_or(to, |length| to.min(length)));
        }
    }

    /// A file with so many rows is complete, or so many rows were compared.
    pub fn rows(&self, rows: u64) {
        let Some(bar) = &self.bar else { return };
        self.rows.set(self.rows.get() + rows);
        bar.set_position(self.rows.get());
    }
}

impl Drop for TableBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
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
