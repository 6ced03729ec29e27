//! `[metrics]` and `[notify]`: where a pass leaves word beside its tables.

use std::path::Path;

use super::raw::{RawMetrics, RawNotify};
use super::validate::Problems;
use super::{Metrics, Notify};

pub(super) fn metrics(raw: RawMetrics, folder: &Path, problems: &mut Problems) -> Metrics {
    if let Some(url) = &raw.otlp {
        problems.http_url("metrics.otlp", url);
        if url::Url::parse(url).is_ok_and(|url| !url.username().is_empty() || url.password().is_some()) {
            problems.add("metrics.otlp", "credentials do not belong into the URL");
        }
    }
    let textfile = raw.textfile.map(|file| folder.join(file));
    if textfile.as_ref().is_some_and(|file| file.extension().is_none_or(|extension| extension != "prom")) {
        problems.add("metrics.textfile", "does not end in .prom, and node_exporter reads no other files");
    }
    Metrics { textfile, otlp: raw.otlp, timeout: problems.timeout("metrics.timeout", &raw.timeout) }
}

pub(super) fn notify(
    raw: RawNotify,
    folder: &Path,
    secrets: Vec<String>,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Notify {
    let secrets = secrets.into_iter().chain(raw.webhook_env.clone()).collect();
    // That nobody can be told must not keep rows from leaving.
    let mut unusable = Problems::default();
    let mut webhook = unusable.secret("notify.webhook", raw.webhook_env, raw.webhook_file, folder, environment);
    if let Some(url) = webhook.as_ref().filter(|_| unusable.0.is_empty()) {
        unusable.http_url("notify.webhook", url.expose());
    }
    let problem = unusable.0.pop();
    if problem.is_some() {
        webhook = None;
    }
    if (webhook.is_some() || problem.is_some()) && !raw.command.is_empty() {
        problems.add("notify.command", "give either a command or a webhook");
    }
    if raw.command.first().is_some_and(String::is_empty) {
        problems.add("notify.command", "names no program");
    }
    Notify {
        command: raw.command,
        webhook,
        secrets,
        problem,
        timeout: problems.timeout("notify.timeout", &raw.timeout),
    }
}
