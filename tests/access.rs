//! Users and their limits, on a server of the test's own (tests/server/users.xml): what a profile may do to a pass, and secrets. And a server
//! that is too old for anybody.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use support::{BRONZE, Case, Lake, Place, Server, TRADES, Target, fails, finish, server, table_of};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];
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
    a_missing_grant_is_told_and_holds_no_other_table_back(&server);
    readers_may_work_where_nothing_unsafe_is_fixed(&server);
    filters_that_a_server_must_write_stay(&server);
    limits_that_would_cut_the_rows_are_refused_by_name(&server);
    limits_that_may_be_changed_are_lifted(&server);
    what_would_change_the_answer_is_set_back(&server);
    a_server_that_ends_in_the_middle_of_a_pass_loses_nothing(&server);
}

#[test]
fn a_server_that_is_too_old_is_told_with_its_version_and_what_is_needed() {
    let case = Case::with_trades("old");
    case.trades("trades", "2024-03-10", 100);
    let before = case.target("trades").state();
    let old = Server::old();
    server::post(&old.url, "default", &format!("CREATE DATABASE {}", case.database)).unwrap();
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), good.replace(&case.url, &old.url)).unwrap();
    for command in [&["run"][..], &["init-tables"], &["watermark", "show"]] {
        case.run(command).expect(2).says(&[
            &old.url,
            "ClickHouse 18.16.1, which is too old",
            "hint: ClickHouse 24.3 or newer",
        ]);
    }
    assert_eq!((case.target("trades").state(), case.target("trades").count()), (before, 0));
    fs::write(case.path("offload.toml"), good).unwrap();
    assert_eq!(case.pass_one()["rows_written"], 100);
}

fn wrong_passwords_are_errors_of_the_configuration_and_stay_secret(server: &Server) {
    let case = case_of(server, "passwords", "offload");
    case.run(&["init-tables"]).expect(2).says(&[&server.url, "hint: check clickhouse.user and the password"]);
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
    let before = case.target("trades").state();
    run("wrong-password", &["-vv", "run"])
        .expect(2)
        .keeps_back(&["wrong-password"])
        .says(&["hint: check clickhouse.user"]);
    assert_eq!(case.target("trades").state(), before);
    fs::write(case.path("secret"), format!("{PASSWORD}\n")).unwrap();
    case.config_file("offload.toml", "user = 'offload'\npassword_file = 'secret'", "", TRADES);
    case.run(&["-vv", "run"]).expect(0).keeps_back(&[PASSWORD]);
    case.target("trades").holds_all("trades");
    assert!(support::files_below(case.folder()).iter().filter(|file| !file.ends_with("secret")).all(|file| {
        let content = fs::read(file).unwrap();
        !content.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes())
    }));
}

fn a_missing_grant_is_told_and_holds_no_other_table_back(server: &Server) {
    let mut case = Case::on(&server.url, "grants");
    case.sql("CREATE DATABASE granted");
    case.database = "granted".to_owned();
    let mut tables = String::new();
    for table in ["closed", "listed", "open"] {
        case.bronze(table);
        case.trades(table, "2024-03-10", 100);
        tables += &TRADES.replace("'trades'", &format!("'{table}'")).replace("cold.trades", &format!("cold.{table}"));
    }
    case.config(&tables);
    case.init_tables();
    let targets = ["closed", "listed"].map(|table| case.target(table));
    let before = targets.each_ref().map(Target::state);
    case.config_file("offload.toml", "user = 'granted'", "", &tables);
    let document = case.run(&JSON_RUN).expect(2).json();
    for table in ["closed", "listed"] {
        fails(
            table_of(&document, &format!("cold.{table}")),
            "config",
            &[&format!("granted.{table}"), "grant the user"],
        );
        case.run(&["run", "--table", table]).expect(2).says(&["hint: grant"]);
    }
    fails(
        table_of(&case.run(&["--format", "json", "init-tables"]).expect(2).json(), "cold.closed"),
        "config",
        &["grant"],
    );
    assert_eq!(targets.each_ref().map(Target::state), before);
    assert_eq!(table_of(&document, "cold.open")["rows_written"], 100);
    case.target("open").holds_all("open");
}

fn readers_may_work_where_nothing_unsafe_is_fixed(server: &Server) {
    let case = case_of(server, "readers", "reader");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 500);
    case.target("trades").holds_for_all_readers("trades");

    case.config_file("offload.toml", "user = 'readonly'", "", TRADES);
    case.trades("trades", "2024-03-12 23:59:00", 100);
    // The server's own default is one of the unsafe values.
    case.run(&["run"]).expect(2).says(&[
        "fallback_to_stale_replicas_for_distributed_queries = `1`",
        "hint: ",
        "readonly",
    ]);
    case.config_file("offload.toml", "user = 'reader'", "", TRADES);
    case.pass();
    case.target("trades").holds_for_all_readers("trades");
}

/// Also in an object store, which has the most of a file before its footer says what is in it.
fn filters_that_a_server_must_write_stay(server: &Server) {
    for place in [Place::Local, Place::Sqlite] {
        let mut case = case_of(server, "filtered", "filtered");
        case.lake = (place != Place::Local).then(|| Lake::new(place, "filtered"));
        case.config_file("offload.toml", "user = 'filtered'", "", TRADES);
        case.init_tables();
        assert_eq!(case.pass_one()["rows_written"], 500);
        case.target("trades").holds_for_all_readers("trades");
    }
}

fn limits_that_would_cut_the_rows_are_refused_by_name(server: &Server) {
    let case = case_of(server, "cut", "default");
    case.init_tables();
    let before = case.target("trades").state();
    case.config_file("offload.toml", "user = 'cut'", "", TRADES);
    for command in ["init-tables", "run"] {
        case.run(&[command]).expect(2).says(&["read_overflow_mode = `break`", "hint: ", "profile"]);
    }
    assert_eq!((case.target("trades").state(), case.target("trades").count()), (before, 0));
}

fn limits_that_may_be_changed_are_lifted(server: &Server) {
    let case = case_of(server, "lifted", "cut_but_free");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 500);
    case.target("trades").holds_all("trades");
}

/// P3: limits, filters, FINAL and extremes of a profile.
fn what_would_change_the_answer_is_set_back(server: &Server) {
    let mut case = Case::on(&server.url, "changed");
    case.sql("CREATE DATABASE changed");
    case.database = "changed".to_owned();
    case.sql(&format!("CREATE TABLE trades ({BRONZE}) ENGINE = ReplacingMergeTree ORDER BY exchange_timestamp"));
    case.sql("SYSTEM STOP MERGES trades");
    for _ in 0..2 {
        case.trades("trades", "2024-03-10 23:59:00", 500);
    }
    case.config_file("offload.toml", "user = 'changed'", "", TRADES);
    case.init_tables();
    let rows: u64 = case.sql("SELECT count() FROM trades").parse().unwrap();
    assert_eq!((case.pass_one()["rows_written"].as_u64(), rows > 500), (Some(rows), true));
    case.target("trades").holds_for_all_readers("trades");
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
