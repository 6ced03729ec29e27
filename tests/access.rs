//! Users and their limits, on a server of the test's own (tests/server/users.xml): what a profile may do to a pass, and secrets.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use support::{Case, Server, TRADES, finish};

const PASSWORD: &str = "correct-horse-battery";

fn case_of(server: &Server, name: &str, user: &str) -> Case {
    let case = Case::on(&server.url, name);
    case.bronze("trades");
    case.trades("trades", "2024-03-10 23:59:00", 500);
    case.config_file("offload.toml", &format!("user = '{user}'"), "", TRADES);
    case
}

#[test]
fn users_get_what_their_profile_allows_or_are_told_why_not() {
    let server = Server::start("UTC");
    wrong_passwords_are_errors_of_the_configuration_and_stay_secret(&server);
    missing_grants_are_told(&server);
    readers_may_work_where_nothing_unsafe_is_fixed(&server);
    limits_that_would_cut_the_rows_are_refused_by_name(&server);
    limits_that_may_be_changed_are_lifted(&server);
    a_server_that_ends_in_the_middle_of_a_pass_loses_nothing(&server);
}

fn wrong_passwords_are_errors_of_the_configuration_and_stay_secret(server: &Server) {
    let case = case_of(server, "passwords", "offload");
    case.run(&["init-tables"]).expect(2).says(&["clickhouse.user"]);
    case.config_file("offload.toml", "user = 'offload'\npassword_env = 'SECRET_OF_TEST'", "", TRADES);
    let run = |password: &str, arguments: &[&str]| finish(case.command(arguments).env("SECRET_OF_TEST", password));
    run("wrong-password", &["-vv", "init-tables"]).expect(2).keeps_back(&["wrong-password"]);
    for arguments in [
        &["-vv", "init-tables"][..],
        &["-vv", "run"],
        &["-vv", "watermark", "show"],
        &["-vv", "--log-format", "json", "run"],
    ] {
        run(PASSWORD, arguments).expect(0).keeps_back(&[PASSWORD]);
    }
    run("wrong-password", &["-vv", "run"]).expect(2).keeps_back(&["wrong-password"]);
    fs::write(case.path("secret"), format!("{PASSWORD}\n")).unwrap();
    case.config_file("offload.toml", "user = 'offload'\npassword_file = 'secret'", "", TRADES);
    case.run(&["-vv", "run"]).expect(0).keeps_back(&[PASSWORD]);
    case.target("trades").holds_all("trades");
    assert!(support::files_below(case.folder()).iter().filter(|file| !file.ends_with("secret")).all(|file| {
        let content = fs::read(file).unwrap();
        !content.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes())
    }));
}

fn missing_grants_are_told(server: &Server) {
    let case = case_of(server, "grants", "grantless");
    case.run(&["init-tables"]).expect(2).says(&["grant"]);
}

fn readers_may_work_where_nothing_unsafe_is_fixed(server: &Server) {
    let case = case_of(server, "readers", "reader");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 500);
    case.target("trades").holds_for_all_readers("trades");

    case.config_file("offload.toml", "user = 'readonly'", "", TRADES);
    case.trades("trades", "2024-03-12 23:59:00", 100);
    let output = case.run(&["run"]);
    match output.code {
        Some(0) => {}
        Some(2) => drop(output.says(&["hint: ", "readonly"])),
        _ => panic!("{}", output.all()),
    }
    case.config_file("offload.toml", "user = 'reader'", "", TRADES);
    case.pass();
    case.target("trades").holds_for_all_readers("trades");
}

fn limits_that_would_cut_the_rows_are_refused_by_name(server: &Server) {
    let case = case_of(server, "cut", "cut");
    case.run(&["init-tables"]).expect(2).says(&["read_overflow_mode", "break"]);
}

fn limits_that_may_be_changed_are_lifted(server: &Server) {
    let case = case_of(server, "lifted", "cut_but_free");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 500);
    case.target("trades").holds_all("trades");
}

fn a_server_that_ends_in_the_middle_of_a_pass_loses_nothing(server: &Server) {
    let case = case_of(server, "ends", "default");
    case.init_tables();
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut pass);
    server.stop();
    gate.open();
    pass.wait().expect(1);
    assert!(case.target("trades").files_on_disk().is_empty());
    case.run(&["run"]).expect(1).says(&["127.0.0.1", "hint: "]);
    case.abandon();
}
