//! cron/monitoring on real programs: promtool checks the rules and their cases, and Prometheus reads through node_exporter what the binary wrote, so
//! that no alert and no panel asks for a series that does not exist.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::prometheus::{Prometheus, program, promtool};
use support::{Case, files_below, server, wait_until};

const PREFIX: &str = "k2_offload_";

fn folder() -> PathBuf {
    server::repository().join("cron/monitoring")
}

fn rules() -> String {
    fs::read_to_string(folder().join("rules.yml")).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(folder().join("dashboard.json")).unwrap()).unwrap()
}

/// The files of cases for `promtool test rules`.
fn cases() -> Vec<PathBuf> {
    let files = files_below(&folder()).into_iter().filter(|file| file.to_string_lossy().ends_with(".test.yml"));
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn promtool_finds_the_rules_right_and_all_their_cases_true() {
    promtool(Command::new(program("promtool")).args(["check", "rules"]).arg(folder().join("rules.yml")));
    promtool(Command::new(program("promtool")).args(["test", "rules"]).args(cases()));
}

#[test]
fn every_alert_has_a_case_where_it_fires_and_one_where_it_does_not() {
    let rules = rules();
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for file in cases() {
        let text = fs::read_to_string(&file).unwrap();
        // `alertname: NAME` and `exp_alerts: ..`, in one line or in two.
        for case in text.split("alertname: ").skip(1) {
            let name: String = case.chars().take_while(char::is_ascii_alphanumeric).collect();
            let expected = case.split_once("exp_alerts:").unwrap().1.trim_start();
            if expected.starts_with("[]") {
                rests.insert(name)
            } else {
                fires.insert(name)
            };
        }
    }
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(alerts, fires.iter().map(String::as_str).collect(), "alerts, and cases where they fire");
    assert_eq!(alerts, rests.iter().map(String::as_str).collect(), "alerts, and cases where they do not");
}

/// Whoever is woken finds what to do: the chapter of the runbook, by the anchor that readers of Markdown make of its heading.
#[test]
fn every_alert_names_a_chapter_of_the_runbook() {
    let runbook = fs::read_to_string(server::repository().join("cron/RUNBOOK.md")).unwrap();
    let headings = runbook.lines().filter(|line| line.starts_with('#'));
    let anchors: BTreeSet<String> = headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect();
    let rules = rules();
    let named: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: RUNBOOK.md#")).collect();
    assert_eq!(named.len(), rules.matches("- alert: ").count());
    let unknown: Vec<&&str> = named.iter().filter(|anchor| !anchors.contains(**anchor)).collect();
    assert!(unknown.is_empty(), "{unknown:?} of {anchors:#?}");
}

fn anchor(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .collect::<String>();
    kept.replace(' ', "-")
}

/// A keyed table whose source has a TTL and duplicates, a table without rows, and metrics of both.
fn monitored(name: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.sql("ALTER TABLE trades MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL 20 YEAR");
    case.bronze("silent");
    let tables = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'exchange_timestamp'\n\
                  key = ['exchange_timestamp', 'sequence_number', 'symbol']\n\
                  [[table]]\nsource = 'silent'\ntarget = 'cold.silent'\ncursor = 'exchange_timestamp'\n";
    fs::create_dir(case.path("textfiles")).unwrap();
    case.config_file("offload.toml", "", &format!("[metrics]\ntextfile = '{}'\n", textfile(&case).display()), tables);
    case.init_tables();
    case.trades("trades", "2024-03-10 12:00:00", 400);
    case
}

fn textfile(case: &Case) -> PathBuf {
    case.path("textfiles").join("k2-offload.prom")
}

/// Prometheus on the metrics of a case, with the rules evaluated every second.
fn watch(case: &Case) -> Prometheus {
    let rules = rules();
    assert_eq!(rules.matches("interval: 1m").count(), 1);
    Prometheus::start(&case.path("textfiles"), &rules.replace("interval: 1m", "interval: 1s"))
}

/// The alerts whose condition is met.
fn alarmed(prometheus: &Prometheus) -> BTreeSet<String> {
    let rules = prometheus.rules().into_iter().filter(|rule| rule["type"] == "alerting" && rule["state"] != "inactive");
    rules.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
}

fn has_numbers(prometheus: &Prometheus, query: &str) -> bool {
    let values = prometheus.ask(query);
    !values.is_empty() && values.iter().all(|value| value.is_finite())
}

#[test]
fn what_a_real_pass_tells_answers_every_query_and_alarms_nobody() {
    let case = monitored("monitored");
    case.pass();
    case.run(&["audit"]).expect(0);
    let prometheus = watch(&case);
    prometheus.sees("k2_offload_passes_total{table='cold.trades'}", 1.0);
    // Few enough for their duplicates to be no alarm, also where Prometheus doubles an increase that it has seen in two samples only.
    case.trades("trades", "2024-03-11 12:00:00", 50);
    case.pass();
    prometheus.sees("k2_offload_passes_total{table='cold.trades'}", 2.0);

    let dashboard = dashboard();
    let queries = dashboard_queries(&dashboard);
    assert!(queries.len() > 30, "{queries:#?}");
    for query in &queries {
        // All tables, and one that was chosen, whose name Grafana escapes.
        for table in [".*", r"cold\\.trades"] {
            let query = query.replace("$instance", ".*").replace("$table", table);
            wait_until(&format!("the dashboard's `{query}` has an answer"), || has_numbers(&prometheus, &query));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let arguments = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (selector, label) = arguments.rsplit_once(", ").unwrap();
        let selector = selector.replace("$instance", ".*");
        let values = prometheus.api(&format!("label/{label}/values"), &[("match[]", &selector)]);
        assert!(!values.as_array().unwrap().is_empty(), "{query}");
    }

    let rules = prometheus.rules();
    let exprs = rules.iter().map(|rule| rule["query"].as_str().unwrap());
    for selector in exprs.clone().flat_map(selectors) {
        wait_until(&format!("the rules' `{selector}` has an answer"), || has_numbers(&prometheus, &selector));
    }
    // What looks back for a day has its cases for promtool.
    let recorded = rules.iter().filter(|rule| rule["type"] == "recording");
    let recorded = recorded.filter(|rule| !rule["query"].as_str().unwrap().contains("offset"));
    let recorded: Vec<&str> = recorded.map(|rule| rule["name"].as_str().unwrap()).collect();
    assert!(recorded.len() > 3, "{recorded:?}");
    for name in recorded {
        wait_until(&format!("`{name}` is recorded"), || has_numbers(&prometheus, name));
    }
    wait_until("all rules are evaluated", || prometheus.rules().iter().all(|rule| rule["health"] == "ok"));
    assert_eq!(alarmed(&prometheus), BTreeSet::new());

    let asked = queries.iter().map(String::as_str).chain(exprs).flat_map(selectors);
    let asked: BTreeSet<String> = asked.map(|selector| name_of(&selector).to_owned()).collect();
    assert_eq!(asked, metrics_of(&textfile(&case)), "metrics that are asked for, and those that are told");
}

#[test]
fn what_a_real_fault_tells_alarms_and_its_end_is_seen() {
    let case = monitored("alarmed");
    let prometheus = watch(&case);
    case.pass();
    case.run(&["audit"]).expect(0);
    prometheus.sees("k2_offload_passes_total{table='cold.trades'}", 1.0);
    prometheus.sees("k2_offload_audit_mismatches{table='cold.trades'}", 0.0);
    wait_until("nothing is wrong", || alarmed(&prometheus).is_empty());

    let filter =
        "exchange_timestamp >= '2024-03-10T12:00:05+00:00' and exchange_timestamp < '2024-03-10T12:00:20+00:00'";
    case.target("trades").ask("delete", json!({"filter": filter}));
    case.run(&["audit"]).expect(3);
    case.run(&["run"]).expect(3);
    case.sql("RENAME TABLE trades TO elsewhere");
    for _ in 0..3 {
        case.run(&["run"]).expect(2);
    }
    prometheus.sees("k2_offload_consecutive_failures{table='cold.trades'}", 4.0);
    let expected =
        ["AuditMismatch", "ErrorRate", "Failing", "TargetRowsDecreased"].map(|name| format!("K2Offload{name}"));
    wait_until("what is wrong alarms", || alarmed(&prometheus) == BTreeSet::from(expected.clone()));

    case.sql("RENAME TABLE elsewhere TO trades");
    case.run(&["audit", "--repair"]).expect(0);
    let shown = case.run(&["--format", "json", "watermark", "show", "--table", "trades"]).json();
    let watermark = shown["tables"][0]["watermark"].as_str().unwrap();
    case.run(&["watermark", "reset", "--table", "trades", "--to", watermark, "--yes"]).expect(0);
    case.pass();
    wait_until("what is good again alarms no more", || {
        let alarmed = alarmed(&prometheus);
        !alarmed.contains("K2OffloadAuditMismatch") && !alarmed.contains("K2OffloadFailing")
    });

    fs::write(case.path("state.db"), "no database").unwrap();
    case.run(&["run"]).expect_warning("the state cache");
    wait_until("a lost state alarms", || alarmed(&prometheus).contains("K2OffloadStateUnusable"));
    fs::remove_file(textfile(&case)).unwrap();
    wait_until("silence alarms", || alarmed(&prometheus).contains("K2OffloadMetricsGone"));
}

#[test]
fn promtool_finds_the_textfile_right() {
    let case = monitored("textfile");
    case.run(&["run", "--table", "trades"]).expect(0);
    let text = fs::read_to_string(textfile(&case)).unwrap();
    assert!(
        text.contains("k2_offload_passes_total{table=\"cold.silent\"} 0"),
        "a table that no pass has seen yet\n{text}"
    );
    case.run(&["audit"]).expect(0);
    let check = format!("'{}' check metrics <'{}'", program("promtool").display(), textfile(&case).display());
    promtool(Command::new("sh").args(["-c", &check]));
}

/// Every `expr` of the dashboard.
fn dashboard_queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// The selectors of a query: names of our metrics, with what stands in braces behind them.
fn selectors(query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(PREFIX) {
        rest = &rest[start..];
        let mut end = name_of(rest).len();
        if rest[end..].starts_with('{') {
            end += rest[end..].find('}').unwrap() + 1;
        }
        found.push(rest[..end].to_owned());
        rest = &rest[end..];
    }
    found
}

fn name_of(selector: &str) -> &str {
    let end = selector.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    &selector[..end.unwrap_or(selector.len())]
}

/// The metrics that a textfile declares.
fn metrics_of(textfile: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(textfile).unwrap();
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    declared.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}
