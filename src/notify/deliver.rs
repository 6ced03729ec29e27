//! One document, to a program or to a webhook.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
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
    if let Some(problem) = &whom.problem {
        bail!("{problem}");
    }
    let Some((program, arguments)) = whom.command.split_first() else { return Ok(()) };
    run(program, arguments, document, whom).await.with_context(|| format!("run {program}"))
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

/// Its standard output is not ours; its errors go where ours go. What takes too long is killed, with all that it started.
async fn run(program: &str, arguments: &[String], document: String, whom: &Notify) -> anyhow::Result<()> {
    let limit = whom.timeout;
    let mut command = Command::new(program);
    for name in &whom.secrets {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    let mut child = command.spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let told = async {
        if let Some(mut input) = child.stdin.take() {
            // A program that does not read it may end first.
            let _ = input.write_all(document.as_bytes()).await;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(limit, told).await;
    let Ok(status) = status else { bail!("it takes longer than {}", humantime::format_duration(limit)) };
    // What it left behind on purpose may go on.
    group.0 = None;
    let status = status?;
    if status.success() { Ok(()) } else { bail!("{status}") }
}

/// The processes of a program that has not ended; none of them outlives the value.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Where all have ended there is nobody to kill.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}
