//! The process: runtime, printing the error, the exit code.

use std::process::ExitCode;

use clap::Parser;
use k2_offload::cli::Cli;
use k2_offload::error::{Classify, Kind, Result};
use k2_offload::telemetry::Telemetry;
use k2_offload::{commands, report};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let telemetry = Telemetry::init(&cli);
    let code = run(&cli, &telemetry).unwrap_or_else(|error| {
        report::print_error(&error);
        error.kind().policy().exit
    });
    ExitCode::from(code)
}

/// One thread does it all: the work is the server's, ours is to wait for bytes and pass them on.
fn run(cli: &Cli, telemetry: &Telemetry) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_error(Kind::Internal, "start the runtime")?;
    let code = runtime.block_on(commands::dispatch(cli, telemetry));
    // A name server that does not answer a webhook is not waited for.
    runtime.shutdown_background();
    code
}
