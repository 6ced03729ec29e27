//! Metrics: totals that live on between passes, files that are never half written, and outlets that stop no pass.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rusqlite::Connection;
use serde_json::{Value, json};
use support::{Case, Disk, Output, TRADES, Webhook, only_table, table_of};

const RUN: [&str; 3] = ["--format", "json", "run"];

/// A case with metrics in `metrics/k2.prom` and two targets, `cold.trades` and `cold.second`.
fn with_textfile(name: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    fs::create_dir(case.path("metrics")).unwrap();
    let second = TRADES.replace("cold.trades", "cold.second");
    case.config_file("offload.toml", "", "[metrics]\ntextfile = 'metrics/k2.prom'", &format!("{TRADES}{second}"));
    case.init_tables();
    case
}

/// The series of the textfile and their values.
fn series(case: &Case) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(case.path("metrics/k2.prom")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn of(case: &Case, metric: &str, table: &str) -> Option<f64> {
    series(case).get(&format!("k2_offload_{metric}{{table=\"{table}\"}}")).copied()
}

fn warnings(output: &Output) -> usize {
    output.stderr.lines().filter(|line| line.contains(" WARN ")).count()
}

#[test]
fn totals_live_on_between_passes() {
    let case = with_textfile("totals");
    case.trades("trades", "2024-03-10", 100);
    let first = case.run(&RUN).expect(0).json();
    case.trades("trades", "2024-03-11", 50);
    let second = case.run(&RUN).expect(0).json();
    let bytes = |document: &Value| table_of(document, "cold.trades")["bytes_written"].as_f64().unwrap();
    let value = |metric: &str| of(&case, metric, "cold.trades");
    assert_eq!((value("rows_total"), value("passes_total"), value("files_total")), (Some(150.0), Some(2.0), Some(2.0)));
    assert_eq!(value("bytes_total"), Some(bytes(&first) + bytes(&second)));
    assert_eq!((value("target_rows"), value("consecutive_failures")), (Some(150.0), Some(0.0)));
    let watermark = table_of(&second, "cold.trades")["watermark"]
        .as_str()
        .unwrap()
        .parse::<chrono::DateTime<chrono::Utc>>()
        .unwrap();
    assert_eq!(value("watermark_timestamp_seconds"), Some(watermark.timestamp_millis() as f64 / 1000.0));
    assert_eq!((value("ttl_seconds_left"), value("audit_mismatches")), (None, None), "not known");

    case.run_failing("counted=error", &["run", "--table", "cold.second"]).expect(0);
    case.trades("trades", "2024-03-12", 10);
    case.run_failing("counted=error", &["run", "--table", "cold.second"]).expect(1);
    let failed = "k2_offload_errors_total{table=\"cold.second\",kind=\"unavailable\"}";
    let all = series(&case);
    assert_eq!((all[failed], all[&failed.replace("unavailable", "refused")]), (1.0, 0.0));
    assert_eq!(
        (value("rows_total"), of(&case, "passes_total", "cold.second")),
        (Some(150.0), Some(4.0)),
        "both are there"
    );
    case.run(&["audit"]).expect(0);
    assert_eq!((value("audit_mismatches"), value("passes_total")), (Some(0.0), Some(2.0)));
}

#[test]
fn a_pass_that_finds_everything_locked_says_nothing_of_passes() {
    let case = with_textfile("locked_metrics");
    case.run(&RUN).expect(0);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("target={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    let before = series(&case);
    case.run(&["run", "--table", "cold.trades"]).expect(4);
    let after = series(&case);
    for metric in ["k2_offload_last_pass_timestamp_seconds", "k2_offload_pass_duration_seconds"] {
        assert_eq!(before[metric], after[metric], "{metric}");
    }
    gate.open();
    pass.wait().expect(0);
    assert!(series(&case)["k2_offload_last_pass_timestamp_seconds"] > before["k2_offload_last_pass_timestamp_seconds"]);
}

#[test]
fn a_reader_never_sees_half_a_file() {
    let case = with_textfile("half");
    case.run(&RUN).expect(0);
    let lines = fs::read_to_string(case.path("metrics/k2.prom")).unwrap().lines().count();
    let mut passes = case.spawn("offload.toml", "", &["run"]);
    let mut looks = 0;
    while looks < 500 || !passes.is_over() {
        let text = fs::read_to_string(case.path("metrics/k2.prom")).unwrap();
        assert!(text.lines().count() == lines && text.ends_with('\n'), "{text}");
        looks += 1;
    }
    passes.wait().expect(0);
    assert_eq!(fs::read_dir(case.path("metrics")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn the_collector_may_read_the_file_whatever_the_umask() {
    let case = with_textfile("umask");
    let words = ["-c", "umask 077; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_k2-offload"), "-c", "offload.toml", "run"];
    support::finish(Command::new("sh").args(words).current_dir(case.folder())).expect(0);
    assert_eq!(fs::metadata(case.path("metrics/k2.prom")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn the_rows_of_a_repair_count() {
    let case = with_textfile("repaired_rows");
    case.trades("trades", "2024-03-10", 100);
    case.run(&RUN).expect(0);
    let passes = of(&case, "passes_total", "cold.trades");
    case.target("trades").ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-10T00:00:01+00:00'"}));
    let repaired = case.run(&["--format", "json", "audit", "--repair", "--table", "cold.trades"]).expect(0).json();
    let added = only_table(&repaired)["rows_repaired"].as_f64().unwrap();
    assert!(added > 0.0);
    assert_eq!(of(&case, "rows_total", "cold.trades"), Some(100.0 + added));
    assert_eq!(
        (of(&case, "target_rows", "cold.trades"), of(&case, "passes_total", "cold.trades")),
        (Some(100.0), passes)
    );
    case.run(&["history", "--table", "cold.trades", "--chunks"]).expect(0).says(&["merge ["]);
}

#[test]
fn a_textfile_that_cannot_be_written_is_one_warning() {
    let case = with_textfile("unwritable");
    case.trades("trades", "2024-03-10", 100);
    let warns = || {
        let output = case.run(&RUN).expect_warning("the metrics cannot be written");
        assert_eq!(warnings(&output), 1, "{}", output.all());
        output.json()
    };
    fs::remove_dir(case.path("metrics")).unwrap();
    assert_eq!(table_of(&warns(), "cold.trades")["rows_written"], 100);
    let disk = Disk::mount(case.path("metrics"));
    disk.make_read_only();
    warns();
    disk.make_writable();
    disk.fill_but(0);
    warns();
    assert_eq!(
        fs::read_dir(case.path("metrics"))
            .unwrap()
            .filter(|file| file.as_ref().unwrap().file_name() == "k2.prom")
            .count(),
        0
    );
    disk.free();
    case.run(&RUN).expect(0);
    assert_eq!(of(&case, "rows_total", "cold.trades"), Some(100.0));
    drop(disk);
}

#[test]
fn without_the_state_cache_there_are_no_totals() {
    let case = with_textfile("no_state");
    case.run(&RUN).expect(0);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(case.path(&format!("state.db{suffix}")));
    }
    Connection::open(case.path("state.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    case.run(&RUN).expect_warning("the state cache");
    let all = series(&case);
    assert_eq!(all["k2_offload_state_usable"], 0.0);
    assert!(!all.keys().any(|series| series.contains("table=")), "{all:#?}");
    assert!(all["k2_offload_last_pass_timestamp_seconds"] > 0.0);
}

/// Google's own classes for the protocol refuse fields that it does not have.
const PARSE: &str = "
import json, sys
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
request = json_format.Parse(sys.stdin.read(), ExportMetricsServiceRequest())
resource = request.resource_metrics[0]
found = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
for metric in resource.scope_metrics[0].metrics:
    data = getattr(metric, metric.WhichOneof('data'))
    for point in data.data_points:
        labels = {attribute.key: attribute.value.string_value for attribute in point.attributes}
        assert point.time_unix_nano > 1_700_000_000_000_000_000
        total = metric.WhichOneof('data') == 'sum'
        assert not total or (data.is_monotonic and data.aggregation_temporality == 2)
        assert total == metric.name.endswith('_total')
        name = metric.name + ('{' + ','.join(f'{k}=\"{v}\"' for k, v in labels.items()) + '}' if labels else '')
        found[name] = point.as_double
print(json.dumps(found))
";

#[test]
fn a_collector_gets_the_same_series() {
    let collector = Webhook::start("v1/metrics");
    let case = with_textfile("collector");
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    let both = format!("textfile = 'metrics/k2.prom'\notlp = '{}'\ntimeout = '1s'", collector.url);
    fs::write(case.path("offload.toml"), config.replace("textfile = 'metrics/k2.prom'", &both)).unwrap();
    case.trades("trades", "2024-03-10", 100);
    case.run(&RUN).expect(0);
    let documents = collector.documents();
    assert_eq!(documents.len(), 1);
    fs::write(case.path("request.json"), documents[0].to_string()).unwrap();
    let python =
        std::env::var("K2_TEST_OTLP_PYTHON").expect("no OpenTelemetry classes for the tests: run scripts/test");
    let mut parse = Command::new(python);
    parse.args(["-c", PARSE]).stdin(fs::File::open(case.path("request.json")).unwrap());
    let parsed = parse.output().unwrap();
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    let mut parsed: BTreeMap<String, Value> = serde_json::from_slice(&parsed.stdout).unwrap();
    assert_eq!(parsed.remove("service.name"), Some("k2-offload".into()));
    let parsed: BTreeMap<String, f64> =
        parsed.into_iter().map(|(name, value)| (name, value.as_f64().unwrap())).collect();
    assert_eq!(parsed, series(&case));

    for (fault, told) in [(Some(503), "503"), (None, "the metrics cannot be sent")] {
        match fault {
            Some(status) => collector.answer(status),
            None => collector.hang(),
        }
        let output = case.run(&RUN).expect_warning("the metrics cannot be sent").says(&[told]);
        assert_eq!(warnings(&output), 1, "{}", output.all());
    }
}

#[test]
fn a_pass_without_metrics_writes_none() {
    let case = Case::with_trades("no_metrics");
    case.trades("trades", "2024-03-10", 100);
    assert_eq!(only_table(&case.pass())["rows_written"], 100);
    assert!(support::files_below(case.folder()).iter().all(|file| file.extension().is_none_or(|end| end != "prom")));
}
