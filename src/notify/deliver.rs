//! One document, to a program or to a webhook.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config::{Notify, Secret};
use crate::error::{Error, Kind, Result};
use crate::http::post_json;

/// Delivers the document; whoever takes longer than `timeout` is given up. The webhook's URL, which may be a secret, is in no error.
pub async fn deliver(whom: &Notify, document: &impl Serialize) -> anyhow::Result<()> {
    let document = serde_json::to_string(document)?;
    if let Some(url) = whom.webhook.as_ref().map(Secret::expose) {
        return post_json(url, document, whom.timeout).await.context("post to the webhook");
    }
    let Some((program, arguments)) = whom.command.split_first() else { return Ok(()) };
    let ran = tokio::time::timeout(whom.timeout, run(program, arguments, document)).await;
    ran.unwrap_or_else(|_| bail!("it takes longer than {}", humantime::format_duration(whom.timeout)))
        .with_context(|| format!("run {program}"))
}

/// Where a program is, as the system would find it to run it.
pub fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = match name.contains('/') {
        true => vec![PathBuf::from(name)],
        false => std::env::split_paths(&path).map(|folder| folder.join(name)).collect(),
    };
    let can_run =
        |place: &PathBuf| place.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    places.into_iter().find(can_run).ok_or_else(|| {
        Error::new(Kind::Config, format!("{name} is no program that can be run"))
            .hint("correct notify.command, or make it executable")
    })
}

/// Its standard output is not ours; its errors go where ours go. It is killed with the future.
async fn run(program: &str, arguments: &[String], document: String) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not read it may end first.
        let _ = input.write_all(document.as_bytes()).await;
    }
    let status = child.wait().await?;
    if status.success() { Ok(()) } else { bail!("{status}") }
}
