//! The states of tables in a database beside the cache: what dashboards read there, what another host learns, and that no pass fails for it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]
mod support;

use std::fs;
use std::net::TcpListener;

use serde_json::Value;
use support::{Case, Place, TRADES, lake, only_table, server, table_of, wait_until};

const MORE: &str = "[[table]]\nsource = 'trades'\ntarget = 'cold.again'\ncursor = 'exchange_timestamp'\n";

/// A case whose records are in a database at a libpq URL.
fn case(name: &str, url: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    configure(&case, "offload.toml", "state.db", url, TRADES);
    case.init_tables();
    case
}

/// A configuration with a cache of its own.
fn configure(case: &Case, file: &str, cache: &str, url: &str, tables: &str) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, place) = rest.split_once('@').unwrap_or(("", rest));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let at = if user.is_empty() { "" } else { "@" };
    fs::write(case.path("password"), password).unwrap();
    let secret = if password.is_empty() { "" } else { "password_file = 'password'\n" };
    let state = format!("[state]\npath = '{cache}'\nuri = '{scheme}://{user}{at}{place}'\n{secret}");
    case.config_file(file, "", &state, tables);
}

/// The database of a case, as ClickHouse's records have it.
fn clickhouse(case: &Case) -> String {
    format!("{}/{}", case.url, case.database)
}

fn fill(case: &Case, rows: u32) {
    case.sql(&format!(
        "INSERT INTO trades (exchange_timestamp, sequence_number, symbol) \
         SELECT toDateTime64('2026-01-02 03:04:05.006', 3, 'UTC') + number, number, 's' FROM numbers({rows})"
    ));
}

fn pass_with(case: &Case, config: &str) -> Value {
    only_table(&case.run_with(config, &["--format", "json", "run"]).expect(0).json())
}

fn show(case: &Case, config: &str) -> Value {
    only_table(&case.run_with(config, &["--format", "json", "watermark", "show"]).expect(0).json())
}

const ALL: &str = "SELECT table_name, status, failure_count, last_error_message, last_offload_max_sequence, \
                   last_successful_run IS NOT NULL, last_run_duration_seconds > 0, updated_at IS NOT NULL FROM offload_watermarks";

#[test]
fn a_pass_tells_postgresql() {
    let database = lake::Postgres::new("records");
    let case = case("records", &database.url);
    fill(&case, 10);
    let pass = case.pass_one();
    assert_eq!(database.sql(ALL), "trades|success|0|||t|t|t");
    let watermark = "SELECT to_char(last_offload_timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), checked_to > 0 \
                     FROM offload_watermarks";
    assert_eq!(database.sql(watermark), format!("{}|t", pass["watermark"].as_str().unwrap()));

    case.sql("RENAME TABLE trades TO elsewhere");
    case.run(&["run"]).expect(2);
    case.run(&["run"]).expect(2);
    let told = database.sql(ALL);
    assert!(told.starts_with("trades|failed|2|") && told.ends_with("||t|t|t"), "{told}");
    assert_eq!(database.sql(watermark), format!("{}|t", pass["watermark"].as_str().unwrap()), "stays as it was");
    case.sql("RENAME TABLE elsewhere TO trades");
    case.pass();
    assert_eq!(database.sql(ALL), "trades|success|0|||t|t|t");
    case.run(&["watermark", "reset", "--table", "cold.trades", "--to", "2026-01-02T03:04:05.000Z", "--yes"]).expect(0);
    assert_eq!(database.sql(watermark), "2026-01-02T03:04:05.000Z|t");
    assert_eq!(database.sql(ALL), "trades|success|0|||t|t|t");
}

#[test]
fn a_pass_tells_clickhouse() {
    let case = Case::new("records");
    case.bronze("trades");
    configure(&case, "offload.toml", "state.db", &clickhouse(&case), &format!("{TRADES}{MORE}"));
    case.init_tables();
    fill(&case, 10);
    let pass = case.pass();
    let all = "SELECT table_name, status, failure_count, last_error_message, last_offload_max_sequence, last_offload_timestamp, \
               last_run_duration_seconds > 0, checked_to > 0 FROM offload_watermarks FINAL ORDER BY table_name FORMAT TSV";
    let row = |target: &str, status: &str, failures: &str| {
        let watermark = table_of(&pass, target)["watermark"].as_str().unwrap().replace('T', " ").replace('Z', "000");
        format!("{target}\t{status}\t{failures}\t\\N\t\\N\t{watermark}\t1\t1")
    };
    let both = |status| format!("{}\n{}", row("cold.again", status, "0"), row("cold.trades", status, "0"));
    assert_eq!(case.sql(all), both("success"));
    case.pass();
    assert_eq!(case.sql(all), both("success"));
    let paused = case.gate("gate");
    let mut running = case.spawn("offload.toml", &format!("planned={}", paused.pause()), &["run"]);
    paused.wait_for(&mut running);
    assert_eq!(case.sql(all), both("running"));
    running.signal("KILL");
    running.wait();
    // The cache counts a pass that left no end.
    let more = case.run(&["--format", "json", "run"]).expect(0).json();
    assert_eq!(table_of(&more, "cold.trades")["status"], "nothing");
    assert_eq!(case.sql(all), both("success"));
    case.run(&["watermark", "reset", "--table", "cold.trades", "--to", "2026-01-02T03:04:06.000Z", "--yes"]).expect(0);
    let told = case
        .sql("SELECT last_offload_timestamp, status FROM offload_watermarks FINAL WHERE table_name = 'cold.trades'");
    assert_eq!(told, "2026-01-02 03:04:06.000000\tsuccess");
}

/// As the platform makes its table: columns that may not be null, others that we do not know, none of ours.
#[test]
fn the_platforms_own_table_is_taken_as_it_is() {
    let database = lake::Postgres::new("records");
    for (kind, key) in [("TIMESTAMPTZ", "PRIMARY KEY"), ("TIMESTAMP", "")] {
        database.sql(&format!(
            "DROP TABLE IF EXISTS offload_watermarks; CREATE TABLE offload_watermarks (table_name VARCHAR(255) {key}, \
             last_offload_timestamp {kind} NOT NULL, last_offload_max_sequence BIGINT NOT NULL, rows_there BIGINT DEFAULT 7, \
             last_successful_run {kind}, last_run_duration_seconds INTEGER, status VARCHAR(20) CHECK (status IN ('initialized', \
             'running', 'success', 'failed')), failure_count INTEGER DEFAULT 0, last_error_message VARCHAR(20)); \
             INSERT INTO offload_watermarks VALUES ('old', now(), 3)"
        ));
        let case = case("platform", &database.url);
        case.sql("RENAME TABLE trades TO elsewhere");
        case.run(&["run"]).expect(2);
        let told = database.sql(
            "SELECT last_offload_timestamp, last_offload_max_sequence, rows_there, status, failure_count, length(last_error_message) \
             FROM offload_watermarks WHERE table_name = 'trades'",
        );
        assert!(told.starts_with("1970-01-01 00:00:00") && told.ends_with("|0|7|failed|1|20"), "{told}");
        case.sql("RENAME TABLE elsewhere TO trades");
        fill(&case, 10);
        case.pass();
        database.sql(
            "UPDATE offload_watermarks SET last_offload_max_sequence = 5, rows_there = 6 WHERE table_name = 'trades'",
        );
        case.pass();
        let told = database.sql(
            "SELECT table_name, last_offload_timestamp, last_offload_max_sequence, rows_there, status, failure_count, last_error_message, \
             abs(extract(epoch FROM last_successful_run AT TIME ZONE 'UTC' - now() AT TIME ZONE 'UTC')) < 86400 \
             FROM offload_watermarks ORDER BY 1 DESC",
        );
        let zone = if kind == "TIMESTAMPTZ" { "+00" } else { "" };
        let (ours, old) = told.split_once('\n').unwrap();
        assert_eq!(ours, format!("trades|2026-01-02 03:04:14.007{zone}|5|6|success|0||t"));
        assert!(old.starts_with("old|") && old.ends_with("|3|7||0||"), "{old}");
    }
}

#[test]
fn the_platforms_own_table_in_clickhouse_is_taken_as_it_is() {
    let case = Case::new("platform");
    case.bronze("trades");
    case.sql(
        "CREATE TABLE offload_watermarks (table_name String, last_offload_timestamp DateTime64(6), last_offload_max_sequence Int64, \
         rows_there Int64, status String, last_successful_run DateTime, last_run_duration_seconds Int32, failure_count Int32 DEFAULT 0, \
         last_error_message String DEFAULT '', created_at DateTime DEFAULT now(), updated_at DateTime DEFAULT now()) \
         ENGINE = ReplacingMergeTree(updated_at) ORDER BY table_name",
    );
    configure(&case, "offload.toml", "state.db", &clickhouse(&case), TRADES);
    case.init_tables();
    fill(&case, 10);
    case.pass();
    let all = "SELECT table_name, toString(last_offload_timestamp, 'UTC'), last_offload_max_sequence, rows_there, status, failure_count, \
               last_error_message, created_at > '2020-01-01', abs(last_successful_run - now()) < 600 FROM offload_watermarks FINAL";
    assert_eq!(case.sql(all), "trades\t2026-01-02 03:04:14.007000\t0\t0\tsuccess\t0\t\t1\t1");
    case.sql("INSERT INTO offload_watermarks SELECT * REPLACE (5 AS last_offload_max_sequence, 6 AS rows_there) FROM offload_watermarks FINAL");
    case.pass();
    assert_eq!(case.sql(all), "trades\t2026-01-02 03:04:14.007000\t5\t6\tsuccess\t0\t\t1\t1");
}

/// A host that takes over goes on from what the other one told.
#[test]
fn another_host_learns_what_was_told() {
    let database = lake::Postgres::new("hosts");
    let case = case("hosts", &database.url);
    let in_clickhouse = clickhouse(&case);
    for (number, url) in [database.url.as_str(), &in_clickhouse].into_iter().enumerate() {
        let file = |host: &str| format!("{host}{number}.toml");
        let (one, two) = (file("one"), file("two"));
        configure(&case, &one, &format!("one{number}.db"), url, TRADES);
        configure(&case, &two, &format!("two{number}.db"), url, TRADES);
        fill(&case, 10);
        pass_with(&case, &one);
        let first = show(&case, &one);
        case.sql("RENAME TABLE trades TO elsewhere");
        case.run_with(&one, &["run"]).expect(2);
        let (known, learnt) = (remembered(&case, &one), remembered(&case, &two));
        assert_eq!(learnt["last_success_at"], first["last_success_at"]);
        for field in ["status", "failure_count", "last_error", "last_success_at", "last_duration_ms"] {
            assert_eq!(learnt[field], known[field], "{field}");
        }
        assert!(!case.path(&format!("two{number}.db")).exists(), "a screen makes no cache");
        case.run_with(&two, &["run"]).expect(2);
        assert_eq!(remembered(&case, &two)["failure_count"], 2, "it counts on");
        case.sql("RENAME TABLE elsewhere TO trades");
        pass_with(&case, &two);
        assert_eq!(show(&case, &two)["failure_count"], 0);
    }
}

/// `watermark show` while the source is missing.
fn remembered(case: &Case, config: &str) -> Value {
    only_table(&case.run_with(config, &["--format", "json", "watermark", "show"]).expect(2).json())
}

#[test]
fn a_store_that_is_down_is_one_warning() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let database = lake::Postgres::new("down");
    let wrong = database.url.replacen(":lake-password@", ":wr0ng-s3cret@", 1);
    assert_ne!(wrong, database.url);
    for url in [
        "postgresql://u@127.0.0.1:1/d".to_owned(),
        "http://127.0.0.1:1/d".to_owned(),
        format!("postgresql://u@{}/d", silent.local_addr().unwrap()),
        format!("http://{}/d", silent.local_addr().unwrap()),
        format!("{}/nowhere", server::shared_url()),
        wrong,
    ] {
        let case = case("down", &url);
        let config = fs::read_to_string(case.path("offload.toml")).unwrap();
        fs::write(case.path("offload.toml"), config.replace("[state]", "[state]\ntimeout = '1s'")).unwrap();
        fill(&case, 10);
        let ran = case.spawn("offload.toml", "", &["--format", "json", "run"]).wait_until_over();
        let ran = ran.expect_warning("going on without them").keeps_back(&["s3cret"]);
        assert_eq!(ran.stderr.matches(" WARN ").count(), 1, "{}", ran.all());
        assert_eq!(only_table(&ran.json())["status"], "offloaded");
        case.run(&["watermark", "reset", "--table", "cold.trades", "--to-earliest", "--yes"])
            .expect_warning("going on without them");
    }
}

/// It breaks while a pass is under way.
#[test]
fn a_store_that_goes_away_is_one_warning() {
    let database = lake::Postgres::new("away");
    let case = case("away", &database.url);
    fill(&case, 10);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("planned={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    assert_eq!(database.sql("SELECT table_name, status FROM offload_watermarks"), "trades|running");
    let name = database.sql("SELECT current_database()");
    lake::psql(
        &lake::variable("K2_TEST_PG_URL"),
        &format!(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS false; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        .replace("; ", ";\n"),
    );
    gate.open();
    let output = pass.wait().expect_warning("going on without them");
    assert_eq!(output.stderr.matches(" WARN ").count(), 1, "{}", output.all());
    lake::psql(&lake::variable("K2_TEST_PG_URL"), &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
}

#[test]
fn a_configuration_check_tries_the_store_and_changes_nothing() {
    let database = lake::Postgres::new("check");
    let case = case("check", &database.url);
    let check = |code| case.run(&["config", "check"]).expect(code);
    check(0).says(&["records", "offload_watermarks does not exist yet, and can be made"]);
    assert_eq!(database.sql("SELECT to_regclass('offload_watermarks') IS NULL"), "t");
    case.pass();
    let before = database.sql("TABLE offload_watermarks");
    check(0).says(&["offload_watermarks can be written"]);
    assert_eq!(database.sql("TABLE offload_watermarks"), before);

    configure(&case, "offload.toml", "state.db", &clickhouse(&case), TRADES);
    check(0).says(&["does not exist yet, the first pass makes it"]);
    case.pass();
    let before = case.sql("SELECT * FROM offload_watermarks ORDER BY ALL");
    check(0).says(&["offload_watermarks can be written"]);
    assert_eq!(case.sql("SELECT * FROM offload_watermarks ORDER BY ALL"), before);
    configure(&case, "offload.toml", "state.db", "postgresql://u@127.0.0.1:1/d", TRADES);
    check(1).says(&["records", "connect to postgresql://127.0.0.1:1/d"]);
}

/// Two hosts, which share nothing but the catalog in PostgreSQL.
#[test]
fn one_pass_per_table_on_all_hosts() {
    let database = lake::Postgres::new("locks");
    let case = Case::new("locks");
    for host in ["one", "two"] {
        let (user, place) = database.url.split_once("://").unwrap().1.split_once('@').unwrap();
        let (user, password) = user.split_once(':').unwrap();
        fs::write(case.path("password"), password).unwrap();
        let rest = format!(
            "[catalog]\nuri = 'postgresql://{user}@{place}'\npassword_file = 'password'\nwarehouse = 'file://{}'\n[state]\npath = '{host}/state.db'\n",
            case.path("warehouse").display()
        );
        case.config_file(&format!("{host}.toml"), "", &rest, TRADES);
    }
    lock_each_other_out(&case, &database);
}

/// Two hosts, which share a REST catalog, and a database for their records.
#[test]
fn one_pass_per_table_on_all_hosts_of_a_rest_catalog() {
    let database = lake::Postgres::new("locks");
    let case = Case::at(Place::Rest, "locks");
    for host in ["one", "two"] {
        configure(&case, &format!("{host}.toml"), &format!("{host}/state.db"), &database.url, TRADES);
    }
    lock_each_other_out(&case, &database);
}

/// Passes of `one.toml` and `two.toml`, whose locks are in the database.
fn lock_each_other_out(case: &Case, database: &lake::Postgres) {
    case.bronze("trades");
    fill(case, 10);
    case.run_with("one.toml", &["init-tables"]).expect(0);
    let gate = case.gate("gate");
    let mut held = case.spawn("one.toml", &format!("planned={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut held);
    let locked = case.run_with("two.toml", &["--format", "json", "run"]).expect(4);
    let held_by = case.in_namespace("`cold.trades` is locked by k2-offload ");
    let locked = locked.says(&[&held_by, " on ", "127.0.0.1", "since"]);
    assert_eq!(only_table(&locked.json())["status"], "skipped");
    let reset = ["watermark", "reset", "--table", "cold.trades", "--to-earliest", "--yes"];
    case.run_with("two.toml", &reset).expect(0);
    gate.open();
    let moved = only_table(&held.wait().expect(0).json());
    assert_eq!(moved["rows_written"], 10);
    // Free again, and so after a kill -9.
    let pass = only_table(&case.run_with("two.toml", &["--format", "json", "run"]).expect(0).json());
    assert_eq!(pass["status"], "nothing");
    let gate = case.gate("gate2");
    let mut held = case.spawn("one.toml", &format!("planned={}", gate.pause()), &["run"]);
    gate.wait_for(&mut held);
    case.run_with("two.toml", &["run"]).expect(4);
    held.signal("KILL");
    held.wait();
    case.run_with("two.toml", &["run"]).expect(0);

    // P13: a session that broke takes its lock with it; the commit compares.
    fill(case, 20);
    let gate = case.gate("gate3");
    let mut first = case.spawn("one.toml", &format!("written={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut first);
    let ended = "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name LIKE 'k2-offload%'";
    assert_eq!(database.sql(ended), "t");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    wait_until("the lock is free", || database.sql(locks) == "0");
    let second = only_table(&case.run_with("two.toml", &["--format", "json", "run"]).expect(0).json());
    gate.open();
    let first = only_table(&first.wait().expect(0).json());
    let written = |pass: &Value| pass["rows_written"].as_u64().unwrap();
    assert_eq!(written(&first) + written(&second), 20, "{first:#}\n{second:#}");
}
