//! Who is told of troubles: once, when they begin and when they end; and whoever cannot be told stops no pass.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rusqlite::Connection;
use serde_json::{Value, json};
use support::{Case, Output, Running, TRADES, Webhook, finish, only_table, wait_until};

const CANARY: &str = "canary-in-the-url";
const RUN: [&str; 3] = ["--format", "json", "run"];

/// A case whose troubles are posted to `webhook`.
fn with_webhook(name: &str, webhook: &Webhook) -> Case {
    let case = Case::with_trades(name);
    fs::write(case.path("webhook"), format!("{}\n", webhook.url)).unwrap();
    case.config_file("offload.toml", "", "[notify]\nwebhook_file = 'webhook'\ntimeout = '1s'", TRADES);
    case
}

/// What was told: the events, their troubles and tables.
fn told(webhook: &Webhook) -> Vec<(String, String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let events = webhook.documents().into_iter().flat_map(|document| document["events"].as_array().unwrap().clone());
    events.map(|event| (text(&event, "event"), text(&event, "trouble"), text(&event, "table"))).collect()
}

fn told_one(webhook: &Webhook, event: &str, trouble: &str) {
    assert_eq!(told(webhook), [(event.to_owned(), trouble.to_owned(), "cold.trades".to_owned())]);
}

fn warnings(output: &Output) -> usize {
    output.stderr.lines().filter(|line| line.contains(" WARN ")).count()
}

#[test]
fn a_failure_is_told_once_and_its_end_too() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("told_once", &webhook);
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    assert_eq!(webhook.documents(), [] as [Value; 0], "all is well");
    case.trades("trades", "2024-03-11", 50);
    case.run_failing("counted=error", &RUN).expect(1).keeps_back(&[CANARY]);
    let first = webhook.documents();
    let [document] = first.as_slice() else { panic!("{first:#?}") };
    let event = &document["events"][0];
    assert_eq!((&event["event"], &event["table"]), (&"failed".into(), &"cold.trades".into()), "{document:#}");
    for part in ["message", "hint", "since"] {
        assert!(!event[part].as_str().unwrap().is_empty(), "{part} in {document:#}");
    }
    assert!(document["text"].as_str().unwrap().contains("cold.trades: failed: "), "{document:#}");
    for _ in 0..2 {
        case.run_failing("counted=error", &RUN).expect(1);
    }
    assert_eq!(webhook.documents(), [] as [Value; 0], "it is the same incident");
    case.pass();
    told_one(&webhook, "recovered", "failed");
    case.pass();
    case.run_failing("planned=error", &RUN).expect(1);
    told_one(&webhook, "failed", "failed");
}

#[test]
fn a_pass_that_is_stopped_or_skipped_tells_nobody() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("stopped", &webhook);
    case.trades("trades", "2024-03-10", 100);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &RUN);
    gate.wait_for(&mut pass);
    case.run(&RUN).expect(4);
    pass.signal("TERM");
    gate.open();
    pass.wait().expect(143);
    assert_eq!(webhook.documents(), [] as [Value; 0]);
}

#[test]
fn who_cannot_be_told_is_told_by_the_next_pass() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("told_later", &webhook);
    case.trades("trades", "2024-03-10", 100);
    webhook.answer(503);
    let failed = case.run_failing("counted=error", &RUN).expect(1).says(&["nobody could be told", "503"]);
    failed.keeps_back(&[CANARY]);
    told_one(&webhook, "failed", "failed");
    webhook.answer(200);
    case.run_failing("counted=error", &RUN).expect(1);
    told_one(&webhook, "failed", "failed");
    webhook.hang();
    let output = case.run(&RUN).expect_warning("nobody could be told");
    assert_eq!((&only_table(&output.json())["rows_written"], warnings(&output)), (&100.into(), 1), "{}", output.all());
    told_one(&webhook, "recovered", "failed");
    webhook.answer(204);
    case.pass();
    told_one(&webhook, "recovered", "failed");
    case.pass();
    assert_eq!(webhook.documents(), [] as [Value; 0]);
}

#[test]
fn a_failure_that_ends_before_anybody_heard_of_it_is_not_told() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("unheard", &webhook);
    webhook.answer(500);
    case.run_failing("target=error", &RUN).expect(1);
    told_one(&webhook, "failed", "failed");
    case.pass();
    assert_eq!(webhook.documents(), [] as [Value; 0]);
}

#[test]
fn lag_and_mismatches_are_told() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("lag", &webhook);
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    let an_hour_ago = "UPDATE target_state SET caught_up_ms = caught_up_ms - 3600000";
    Connection::open(case.path("state.db")).unwrap().execute(an_hour_ago, []).unwrap();
    case.run_failing("target=error", &RUN).expect(1);
    let events = told(&webhook);
    assert_eq!(events.iter().map(|event| event.0.as_str()).collect::<Vec<_>>(), ["failed", "lag"]);
    case.pass();
    let events = told(&webhook);
    let expected = [("recovered", "failed"), ("recovered", "lag")];
    assert_eq!(events.iter().map(|event| (event.0.as_str(), event.1.as_str())).collect::<Vec<_>>(), expected);

    case.target("trades").ask("delete", json!({"filter": "exchange_timestamp >= '2024-03-10T00:00:01+00:00'"}));
    for _ in 0..2 {
        case.run(&["audit"]).expect(3);
    }
    told_one(&webhook, "audit_mismatch", "audit_mismatch");
    // It looks at nothing of what is missing.
    case.run(&["audit", "--since", "2024-03-11"]).expect(0);
    assert_eq!(webhook.documents(), [] as [Value; 0]);
    case.run(&["audit", "--repair"]).expect(0);
    told_one(&webhook, "recovered", "audit_mismatch");
}

#[test]
fn a_pass_that_was_killed_is_told_before_the_next_one_can_be() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("told_dead", &webhook);
    case.trades("trades", "2024-03-10", 100);
    for _ in 0..3 {
        assert_eq!(case.run_failing("written=kill", &RUN).code, None);
    }
    // The second and the third could tell; who died before that was remembered told in vain.
    let events = told(&webhook);
    assert!(!events.is_empty() && events.iter().all(|event| event.0 == "failed"), "{events:?}");
    case.run(&RUN).expect(0).says(&["the pass before died"]);
    let events = told(&webhook);
    assert_eq!(events.last().unwrap().0, "recovered", "{events:?}");
}

#[test]
fn nobody_is_told_where_a_webhook_redirects_to() {
    let (webhook, elsewhere) = (Webhook::start(CANARY), Webhook::start("elsewhere"));
    let case = with_webhook("redirected", &webhook);
    webhook.redirect(&elsewhere.url);
    let output = case.run_failing("target=error", &["-vv", "run"]).expect(1).says(&["nobody could be told", "302"]);
    output.keeps_back(&[CANARY]);
    assert_eq!(elsewhere.documents(), [] as [Value; 0]);
}

#[test]
fn a_webhook_that_cannot_be_known_keeps_no_row_back() {
    let case = Case::with_trades("unknown_webhook");
    for (day, webhook) in [(10, "webhook_file = 'nowhere'"), (11, "webhook_env = 'NO_SUCH_WEBHOOK'")] {
        case.config_file("offload.toml", "", &format!("[notify]\n{webhook}"), TRADES);
        case.trades("trades", &format!("2024-03-{day}"), 100);
        assert_eq!(case.pass_one()["rows_written"], 100);
        case.run_failing("target=error", &RUN).expect(1).says(&["nobody could be told", "notify.webhook"]);
        case.run(&["config", "check"]).expect(2).says(&["notify.webhook", "rows leave all the same"]);
    }
}

#[test]
fn a_signal_is_heard_while_a_webhook_hangs() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("signal", &webhook);
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), config.replace("'1s'", "'1h'")).unwrap();
    webhook.hang();
    let pass = case.spawn("offload.toml", "target=error", &RUN);
    wait_until("the webhook is asked", || !webhook.documents().is_empty());
    pass.signal("TERM");
    pass.wait_until_over().expect(1).says(&["stopped by a signal before all were told"]);
    webhook.answer(200);
    case.run_failing("target=error", &RUN).expect(1);
    told_one(&webhook, "failed", "failed");
}

#[test]
fn without_the_state_cache_it_is_told_every_time() {
    let webhook = Webhook::start(CANARY);
    let case = with_webhook("forgetful", &webhook);
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), format!("{config}[state]\npath = 'warehouse'\n")).unwrap();
    for _ in 0..2 {
        case.run_failing("target=error", &RUN).expect(1);
        told_one(&webhook, "failed", "failed");
    }
    case.run(&RUN).expect_warning("state cache");
    assert_eq!(webhook.documents(), [] as [Value; 0]);
}

/// A program that appends what it is told to the file `told`, and ends so.
fn program(case: &Case, end: &str) -> PathBuf {
    let path = case.path("tell");
    fs::write(&path, format!("#!/bin/sh\ncat >> '{}'\necho on stdout\n{end}\n", case.path("told").display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_is_told_on_its_standard_input() {
    let case = Case::with_trades("program");
    program(&case, "exit 0");
    let command = format!("[notify]\ncommand = ['{}', 'an argument']\ntimeout = '30s'", case.path("tell").display());
    case.config_file("offload.toml", "", &command, TRADES);
    let output = case.run_failing("target=error", &RUN).expect(1);
    assert_eq!(only_table(&output.json())["status"], "failed", "its output is not ours");
    case.run_failing("target=error", &RUN).expect(1);
    let told: Value = serde_json::from_str(&fs::read_to_string(case.path("told")).unwrap()).unwrap();
    assert_eq!(told["events"][0]["event"], "failed", "{told:#}");
}

#[test]
fn a_program_that_fails_hangs_or_is_missing_is_one_warning() {
    let case = Case::with_trades("bad_program");
    let path = program(&case, "exit 7");
    let configure = |program: &str| {
        let command = format!("[notify]\ncommand = ['{program}']\ntimeout = '1s'");
        case.config_file("offload.toml", "", &command, TRADES);
    };
    configure(&path.display().to_string());
    let failing = || case.run_failing("target=error", &RUN).expect(1).says(&["nobody could be told"]);
    let failed = failing().says(&["exit status: 7"]);
    assert_eq!(warnings(&failed), 2, "the table's and this\n{}", failed.all());
    // Its children go with it: one that held our standard error would keep whoever reads that waiting, as this test does.
    program(&case, "sleep 600; true");
    failing().says(&["longer than 1s"]);
    configure("/nowhere/tell");
    failing().says(&["/nowhere/tell"]);
    case.pass();
}

/// Answers each POST with 200, over TLS with the certificate of the folder, and appends its body to `told`.
const TLS_SERVER: &str = "
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        open('told', 'ab').write(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('cert.pem', 'key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
open('port', 'w').write(f'{server.server_port}\\n')
server.serve_forever()
";

#[test]
fn a_webhook_over_tls_needs_a_certificate_that_the_system_trusts() {
    let case = Case::with_trades("tls");
    let certificate = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost \
                       -addext subjectAltName=DNS:localhost -addext basicConstraints=CA:FALSE -keyout key.pem -out cert.pem";
    let made =
        Command::new("openssl").args(certificate.split_whitespace()).current_dir(case.folder()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut server = Command::new("python3");
    let _server = Running::start(server.args(["-c", TLS_SERVER]).current_dir(case.folder()));
    let port = || fs::read_to_string(case.path("port")).unwrap_or_default();
    wait_until("the server listens", || port().ends_with('\n'));
    fs::write(case.path("webhook"), format!("https://localhost:{}/{CANARY}", port().trim())).unwrap();
    case.config_file("offload.toml", "", "[notify]\nwebhook_file = 'webhook'", TRADES);

    let fail = |trusted: &str| {
        let mut run = case.command(&RUN);
        finish(run.env("K2_OFFLOAD_FAILPOINTS", "target=error").env("SSL_CERT_FILE", trusted)).expect(1)
    };
    // The system's own certificates do not know it.
    fail("/etc/ssl/certs/ca-certificates.crt").says(&["nobody could be told", "certificate"]).keeps_back(&[CANARY]);
    let told = fail(case.path("cert.pem").to_str().unwrap());
    assert!(!told.all().contains("nobody could be told"), "{}", told.all());
    let document: Value = serde_json::from_str(&fs::read_to_string(case.path("told")).unwrap()).unwrap();
    assert_eq!(document["events"][0]["event"], "failed");
}
