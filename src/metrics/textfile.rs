//! Prometheus' text format, as node_exporter's textfile collector reads it.

use std::borrow::Cow;
use std::fmt::Write;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

use uuid::Uuid;

use super::{Family, Type};

/// Replaces the file as a whole: a reader never sees half of it.
pub fn write(file: &Path, families: &[Family<'_>]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    // Not `.prom`, or the collector would read it.
    name.push(format!(".{}", Uuid::new_v4().simple()));
    let new = file.with_file_name(name);
    // Whatever the umask: the collector is another user.
    let readable = || fs::set_permissions(&new, Permissions::from_mode(0o644));
    let written = fs::write(&new, render(families)).and_then(|()| readable()).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn render(families: &[Family<'_>]) -> String {
    let mut text = String::new();
    for Family { name, kind, help, samples } in families {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        // Writing into a String does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for sample in samples {
            text.push_str(name);
            for (number, (label, value)) in sample.labels.iter().enumerate() {
                let _ = write!(text, "{}{label}=\"{}\"", if number == 0 { '{' } else { ',' }, escaped(value));
            }
            let end = if sample.labels.is_empty() { "" } else { "}" };
            let _ = writeln!(text, "{end} {}", sample.value);
        }
    }
    text
}

fn escaped(label: &str) -> Cow<'_, str> {
    match label.contains(['\\', '"', '\n']) {
        true => label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into(),
        false => label.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Facts, families};
    use crate::state::{LastPass, TableState};

    #[test]
    fn a_table_has_all_that_is_known_of_it() {
        let mut table = TableState {
            caught_up_ms: Some(1_000_000),
            ttl_seconds_left: Some(600),
            ttl_seen_ms: Some(1_000_500),
            watermark: Some("1970-01-01T00:10:00.250Z".into()),
            ..TableState::default()
        };
        table.totals.rows = 7;
        table.errors.insert("busy".into(), 2);
        let last_pass = Some(LastPass { ended_ms: 1_060_000, duration_ms: 1500 });
        let facts = Facts { now_ms: 1_060_500, tables: vec![("c.\"t\"", &table)], last_pass, state_usable: true };
        let text = render(&families(&facts));
        for line in [
            "# TYPE k2_offload_rows_total counter",
            "k2_offload_rows_total{table=\"c.\\\"t\\\"\"} 7",
            "k2_offload_lag_seconds{table=\"c.\\\"t\\\"\"} 60",
            "k2_offload_caught_up_timestamp_seconds{table=\"c.\\\"t\\\"\"} 1000",
            "k2_offload_watermark_timestamp_seconds{table=\"c.\\\"t\\\"\"} 600.25",
            "k2_offload_ttl_seconds_left{table=\"c.\\\"t\\\"\"} 540",
            "k2_offload_errors_total{table=\"c.\\\"t\\\"\",kind=\"busy\"} 2",
            "k2_offload_errors_total{table=\"c.\\\"t\\\"\",kind=\"refused\"} 0",
            "k2_offload_pass_duration_seconds 1.5",
            "k2_offload_state_usable 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("target_rows") && !text.contains("audit"), "what is not known has no sample\n{text}");
    }

    #[test]
    fn without_the_cache_there_are_no_tables() {
        let text = render(&families(&Facts::default()));
        assert!(text.contains("k2_offload_state_usable 0") && !text.contains("table="), "{text}");
    }

    /// A kind of error without a series would be seen by nobody.
    #[test]
    fn every_kind_of_failure_has_its_series() {
        use crate::error::Kind::{self, *};
        for kind in [Config, Unavailable, Conflict, Unknown, Refused, Locked, Busy, Deadline, Stopped, Internal] {
            let is_failure = match kind {
                Locked | Stopped => false,
                Config | Unavailable | Conflict | Unknown | Refused | Busy | Deadline | Internal => true,
            };
            let name = serde_json::to_value::<Kind>(kind).unwrap();
            assert_eq!(crate::metrics::ERROR_KINDS.contains(&name.as_str().unwrap()), is_failure, "{name}");
        }
    }
}
