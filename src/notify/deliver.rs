//! One document, to a program or to a webhook.

use std::process::Stdio;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config::{Notify, Secret};
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
