//! A pass reads one server, and tries again what fails for a moment.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::proxy::Proxy;
use support::server::post;
use support::{Case, Server, TRADES};

/// 100 trades, read through a proxy.
fn behind_proxy(name: &str) -> (Case, Proxy) {
    let case = Case::with_trades(name);
    case.trades("trades", "2024-03-10", 100);
    let proxy = Proxy::start(&case.url, "trades");
    case.config_file("direct.toml", "", "", TRADES);
    let direct = std::fs::read_to_string(case.path("direct.toml")).unwrap();
    std::fs::write(case.path("proxy.toml"), direct.replace(&case.url, &proxy.url)).unwrap();
    (case, proxy)
}

#[test]
fn p4_a_pass_that_a_balancer_sends_to_another_server_commits_nothing() {
    let (mut case, proxy) = behind_proxy("balancer");
    let other = Server::on_another_host();
    let gate = case.gate("gate");
    let mut pass = case.spawn("proxy.toml", &format!("counted={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);

    // The other replica lags: it has the table, and some of its rows.
    post(&other.url, "default", &format!("CREATE DATABASE {}", case.database)).unwrap();
    let here = std::mem::replace(&mut case.url, other.url.clone());
    case.bronze("trades");
    case.trades("trades", "2024-03-10", 50);
    proxy.go_to(&other.url);
    gate.open();
    pass.wait().expect(1).says(&["another server answered", "one replica"]);
    assert!(case.target("trades").files_on_disk().is_empty());
    assert!(case.target("trades").snapshots().is_empty());

    case.url = here;
    proxy.go_to(&case.url);
    case.run_with("proxy.toml", &["run"]).expect(0).says(&["offloaded 100 rows"]);
    case.target("trades").holds_all("trades");
}

#[test]
fn what_fails_for_a_moment_is_tried_again_within_the_pass() {
    let (case, proxy) = behind_proxy("moment");
    proxy.cut_once_after(1000);
    let output = case.run_with("proxy.toml", &["run"]).expect(0);
    output.says(&["trying again", "offloaded 100 rows"]);
    case.target("trades").holds_all("trades");
    case.target("trades").has_no_other_files();
}
