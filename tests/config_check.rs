//! `config check`: what it prints is true. Its grants are enough and each is needed; what is wrong is told in the line of its check.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use support::{BRONZE, Case, Disk, Output, Server, TRADES, Webhook, finish, in_parallel, server};

const CHECK: [&str; 4] = ["--format", "json", "config", "check"];

/// A table as it is; one of which rows and columns are left out; one with a key; a query over a view, with a dictionary.
const SOURCES: &str = "
[[table]]
source = 'whole'
target = 'cold.whole'
cursor = 'ts'
partition_by = ['day(ts)']
late_lookback = '20000d'
[[table]]
source = 'part'
target = 'cold.part'
cursor = 'ts'
exclude = ['secret', 'banned_by', 'expires', 'price']
reject_where = 'isNull(price) OR id IN (SELECT id FROM banned)'
partition_by = ['side']
target_file_size = '100B'
late_lookback = '20000d'
[[table]]
source = 'keyed'
target = 'cold.keyed'
cursor = 'ts'
columns = ['ts', 'id', 'version']
key = ['id']
version_column = 'version'
late_lookback = '20000d'
[[table]]
name = 'sums'
query = \"\"\"
SELECT toStartOfMinute(ts) AS minute, dictGet('names', 'name', toUInt64(1)) AS name, sum(amount) AS total
FROM amounts WHERE ts >= {low} AND ts < {high} GROUP BY minute
\"\"\"
input = 'SELECT ts, amount FROM amounts'
input_cursor = 'ts'
target = 'cold.sums'
cursor = 'minute'
key = ['minute']
window = '1m'
late_lookback = '20000d'
";

fn create_sources(case: &Case) {
    case.sql("CREATE TABLE whole (ts DateTime64(3), price Float64) ENGINE = MergeTree ORDER BY ts");
    case.sql("CREATE TABLE banned (id UInt64, why String) ENGINE = MergeTree ORDER BY id");
    case.sql(
        "CREATE TABLE part (ts DateTime64(3), id UInt64, price Nullable(Float64), side Nullable(String), secret String, banned_by String, \
         expires DateTime) ENGINE = MergeTree ORDER BY ts TTL expires",
    );
    case.sql(
        "CREATE TABLE keyed (ts DateTime64(3), id UInt64, version UInt8, more String) ENGINE = MergeTree ORDER BY ts",
    );
    case.sql("CREATE TABLE raw_amounts (ts DateTime64(3), amount Int64, ok UInt8, more String) ENGINE = MergeTree ORDER BY ts");
    case.sql("CREATE VIEW amounts AS SELECT ts, amount, amount * 2 AS twice FROM raw_amounts WHERE ok");
    case.sql("CREATE TABLE all_names (id UInt64, name String) ENGINE = MergeTree ORDER BY id");
    let database = &case.database;
    case.sql(&format!(
        "CREATE DICTIONARY names (id UInt64, name String) PRIMARY KEY id \
         SOURCE(CLICKHOUSE(QUERY 'SELECT id, name FROM {database}.all_names')) LAYOUT(FLAT()) LIFETIME(0)"
    ));
    insert(case, 0);
}

/// Rows of the same minute for all sources; those of a later call come late.
fn insert(case: &Case, shift: u32) {
    let at = format!("toDateTime64('2024-03-10 10:00:00', 3, 'UTC') + number / 10 + {shift} / 1000");
    case.sql(&format!(
        "INSERT INTO part SELECT {at}, number, if(number % 9, number, NULL), if(number % 2, 'buy', NULL), 's', 'b', '2100-01-01' FROM numbers(300)"
    ));
    case.sql(&format!("INSERT INTO whole SELECT {at}, number FROM numbers(300)"));
    case.sql(&format!("INSERT INTO keyed SELECT {at}, number % 50 + 100 * {shift}, number % 3, 'm' FROM numbers(300)"));
    case.sql(&format!("INSERT INTO raw_amounts SELECT {at}, number, number % 2, 'm' FROM numbers(300)"));
}

/// A user, and what it is granted.
struct User {
    name: String,
    /// What it lacks, if anything.
    lacks: Option<String>,
    grants: Vec<String>,
}

impl User {
    fn xml(&self) -> String {
        let grants = self.grants.iter().map(|grant| format!("<query>{grant}</query>"));
        format!(
            "<{0}><password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>\
             <grants>{1}</grants></{0}>\n",
            self.name,
            grants.collect::<String>()
        )
    }
}

/// The columns of a grant of some columns.
fn columns(grant: &str) -> Vec<&str> {
    let Some((_, list)) = grant.split_once("SELECT(") else { return Vec::new() };
    list.split_once(") ON ").unwrap().0.split(", ").collect()
}

/// One user with all of it, and one without each grant and each column of a grant.
fn users(required: &[String], optional: &[String]) -> Vec<User> {
    let mut fewer: Vec<(Option<String>, Vec<String>)> = vec![(None, required.to_vec())];
    for (number, grant) in required.iter().enumerate() {
        let mut others = required.to_vec();
        others.remove(number);
        fewer.push((Some(grant.clone()), others.clone()));
        let columns = columns(grant);
        for column in columns.iter().filter(|_| columns.len() > 1) {
            let rest: Vec<&str> = columns.iter().filter(|other| other != &column).copied().collect();
            let narrower = grant.replace(&columns.join(", "), &rest.join(", "));
            fewer.push((Some(format!("{column} of {grant}")), [others.clone(), vec![narrower]].concat()));
        }
    }
    let user = |(number, (lacks, grants)): (usize, (Option<String>, Vec<String>))| {
        // Only the first does without what is optional: the others shall lack one thing.
        let optional = if number == 0 { &[] } else { optional };
        User { name: format!("user{number}"), lacks, grants: [&grants, optional].concat() }
    };
    fewer.into_iter().enumerate().map(user).collect()
}

/// Writes the configuration of a user, with a catalog of its own.
fn configure(case: &Case, user: &str) -> String {
    let file = format!("{user}.toml");
    let places = format!(
        "[catalog]\nuri = 'sqlite:///{user}/catalog.db'\nwarehouse = '{user}/warehouse'\n[state]\npath = '{user}/state.db'\n"
    );
    case.config_file(&file, &format!("user = '{user}'"), &places, SOURCES);
    file
}

/// The grants that a user should have, without what they are granted to; those that may be missing apart.
fn printed_grants(document: &Value, user: &str) -> [Vec<String>; 2] {
    let of = |optional: bool| {
        let grants =
            document["grants"].as_array().unwrap().iter().filter(|grant| grant["without"].is_string() == optional);
        let statements = grants.map(|grant| grant["statement"].as_str().unwrap());
        statements.map(|text| text.strip_suffix(&format!(" TO `{user}`")).unwrap().to_owned()).collect()
    };
    [of(false), of(true)]
}

#[test]
fn the_printed_grants_are_enough_and_each_of_them_and_of_their_columns_is_needed() {
    let mut server = Server::start("UTC");
    let mut case = Case::on(&server.url, "minimal");
    create_sources(&case);
    let file = configure(&case, "default");
    let document = case.run_with(&file, &CHECK).expect(3).json();
    let [required, optional] = printed_grants(&document, "default");
    let d = format!("`{}`", case.database);
    let expected = [
        format!("GRANT SELECT(`amount`, `ts`) ON {d}.`amounts`"),
        format!("GRANT SELECT(`id`) ON {d}.`banned`"),
        format!("GRANT SELECT(`id`, `ts`, `version`) ON {d}.`keyed`"),
        format!("GRANT SHOW COLUMNS ON {d}.`keyed`"),
        format!("GRANT dictGet ON {d}.`names`"),
        format!("GRANT SELECT(`expires`, `id`, `price.null`, `side`, `side.null`, `ts`) ON {d}.`part`"),
        format!("GRANT SHOW COLUMNS ON {d}.`part`"),
        format!("GRANT SELECT(`amount`, `ok`, `ts`) ON {d}.`raw_amounts`"),
    ];
    for grant in &expected {
        assert!(required.contains(grant), "{grant} is missing in {required:#?}");
    }
    assert_eq!((required.len(), optional.len()), (expected.len() + 3, 1), "{required:#?}");

    let users = users(&required, &optional);
    let config = fs::read_to_string(server::repository().join("tests/server/users.xml")).unwrap();
    let lines: String = users.iter().map(User::xml).collect();
    let nobody =
        User { name: "nobody".into(), lacks: None, grants: vec!["GRANT SHOW COLUMNS ON nothing.nothing".into()] };
    fs::write(case.path("users.xml"), config.replace("</users>", &format!("{lines}{}</users>", nobody.xml()))).unwrap();
    fs::copy(server::repository().join("tests/server/config.xml"), case.path("config.xml")).unwrap();
    server.restart_with(&case.path("config.xml"));
    case.url.clone_from(&server.url);

    // Who may not do anything yet learns nearly all of it, but for a query with a dictionary that it may not ask.
    let document = case.run_with(&configure(&case, "nobody"), &CHECK).expect(3).json();
    let [told, _] = printed_grants(&document, "nobody");
    let tables = |grants: &[String]| -> BTreeSet<String> {
        let tables = grants.iter().map(|grant| grant.split_once(" ON ").unwrap().1.to_owned());
        tables.filter(|table| !["amounts`", "names`"].iter().any(|end| table.ends_with(end))).collect()
    };
    assert_eq!(tables(&told), tables(&required));

    let (all, fewer) = users.split_first().unwrap();
    let file = configure(&case, &all.name);
    let run = |arguments: &[&str]| case.run_with(&file, arguments).expect(0);
    run(&["init-tables"]);
    run(&["run"]);
    insert(&case, 1);
    run(&["run"]);
    run(&["watermark", "show"]);
    run(&["audit"]);
    run(&["audit", "--checksum"]);
    let checks = run(&CHECK).json();
    assert!(checks["checks"].as_array().unwrap().iter().all(|check| check["status"] == "ok"), "{checks:#}");

    in_parallel(2, fewer.iter().collect(), |user: &User| {
        let (lacks, file) = (user.lacks.as_deref().unwrap(), configure(&case, &user.name));
        let commands: [&[&str]; 4] = [&["init-tables"], &["run"], &["watermark", "show"], &["audit"]];
        let works = |arguments: &&[&str]| {
            let output = case.run_with(&file, arguments);
            output.code == Some(0) && !output.stderr.contains(" WARN ")
        };
        assert!(!commands.iter().all(works), "everything goes on without {lacks}");
        let check = case.run_with(&file, &CHECK).json();
        let is_told = |(check, said): &(String, String)| check == "source" && said.contains("Not enough privileges");
        assert!(failed(&check).iter().any(is_told), "no check notices the lack of {lacks}: {check:#}");
    });
}

/// Check and error of those that failed.
fn failed(document: &Value) -> Vec<(String, String)> {
    let checks = document["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "failed");
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    checks
        .map(|check| {
            (text(check, "check"), format!("{} {}", text(&check["error"], "message"), text(&check["error"], "hint")))
        })
        .collect()
}

/// The check must end with this code, and the only check that fails must be this one, saying so.
#[track_caller]
fn fails_alone(output: Output, code: i32, check: &str, said: &str) {
    let document = output.expect(code).json();
    let failed = failed(&document);
    assert!(matches!(&failed[..], [(name, text)] if name == check && text.contains(said)), "{failed:?}");
}

#[test]
fn what_is_in_order_is_told_and_nothing_is_changed() {
    let case = Case::with_trades("order");
    case.trades("trades", "2024-03-10", 100);
    case.pass();
    let before = case.contents();
    let output = case.run(&["config", "check"]).expect(0);
    for line in [
        "settle_delay = \"0s\"",
        "late_lookback = \"24h\"",
        "# checks",
        "ok      clickhouse ",
        "user `default`",
        "ok      target cold.trades: watermark 2024-03-10T00:00:45.010Z",
        "ok      source trades: 10 column(s), cursor `exchange_timestamp` DateTime64(3)",
        "ok      warehouse file:///",
        "ok      locks ",
        "ok      state ",
        "GRANT SHOW COLUMNS ON ",
        " TO `default`;",
    ] {
        assert!(output.stdout.contains(line), "nothing says `{line}`\n{}", output.all());
    }
    let columns = BRONZE.split(", ").map(|column| format!("`{}`", column.split(' ').next().unwrap()));
    let columns: BTreeSet<String> = columns.collect();
    let columns: Vec<String> = columns.into_iter().collect();
    assert!(output.stdout.contains(&format!("GRANT SELECT({}) ON `{}`.`trades`", columns.join(", "), case.database)));
    let document = case.run(&CHECK).expect(0).json();
    assert_eq!(document["file"], json!(case.path("offload.toml")));
    assert_eq!(document["configuration"]["table"][0]["chunk_rows"], 5_000_000);
    let is_state = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state.db"));
    let after = case.contents();
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> =
        paths.into_iter().filter(|path| !is_state(path) && before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "{changed:?}");

    // What was printed as in effect is a configuration, with the same effect.
    let text = toml_of(&output.stdout);
    fs::create_dir(case.path("elsewhere")).unwrap();
    fs::write(case.path("elsewhere/offload.toml"), &text).unwrap();
    let again = case.run_with("elsewhere/offload.toml", &["config", "check"]).expect(0);
    assert_eq!(toml_of(&again.stdout), text);
}

fn toml_of(stdout: &str) -> String {
    let (toml, _) = stdout.split_once("\n# checks").unwrap();
    toml.lines().skip(1).map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_is_wrong_is_told_in_the_line_of_its_check_with_its_exit_code() {
    let case = Case::with_trades("wrong");
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    let check_with = |config: String| {
        fs::write(case.path("changed.toml"), config).unwrap();
        case.run_with("changed.toml", &CHECK)
    };
    let check = || case.run(&CHECK);
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from));
        check_with(good.replace(from, to))
    };
    fails_alone(replaced("settle_delay", "settle_delya"), 2, "configuration", "settle_delya");
    fails_alone(case.run_with("nowhere.toml", &CHECK), 2, "configuration", "nowhere.toml");
    fails_alone(replaced(&case.url, "http://127.0.0.1:1"), 1, "clickhouse", "http://127.0.0.1:1");
    fails_alone(replaced("source = 'trades'", "source = 'tardes'"), 2, "source", "tardes");
    fails_alone(replaced("'exchange_timestamp'\n", "'symbol'\n"), 2, "source", "not time");
    fails_alone(replaced("target = 'cold.trades'", "target = 'cold.tardes'"), 3, "target", "k2-offload init-tables");
    fails_alone(check_with(format!("{good}reject_where = 'prize < 0'\n")), 2, "source", "prize");
    fails_alone(check_with(format!("{good}key = ['id']\n")), 2, "source", "key column `id`");
    fails_alone(
        check_with(good.replace("[[table]]", "[catalog]\nuri = 'sqlite:///none.db'\n[[table]]")),
        3,
        "catalog",
        "k2-offload init-tables",
    );
    fails_alone(
        check_with(good.replace("[[table]]", "[state]\npath = 'offload.toml'\n[[table]]")),
        1,
        "state",
        "passes go on without it",
    );
    case.sql("ALTER TABLE trades MODIFY COLUMN kafka_partition String");
    fails_alone(check(), 3, "source", "kafka_partition");
    case.sql("ALTER TABLE trades MODIFY COLUMN kafka_partition UInt16");
    fails_alone(check_with(good.replace("[[table]]", "[metric]\n[[table]]")), 2, "configuration", "metric");
    case.run(&CHECK).expect(0);
}

#[test]
fn disks_that_are_full_or_read_only_are_told() {
    let case = Case::new("disks");
    case.bronze("trades");
    let disk = Disk::mount(case.path("disk"));
    let places = |catalog: &str, warehouse: &str, state: &str| {
        case.config_file(
            "offload.toml",
            "",
            &format!("[catalog]\nuri = 'sqlite:///{catalog}'\nwarehouse = '{warehouse}'\n[state]\npath = '{state}'\n"),
            TRADES,
        );
    };
    places("catalog.db", "disk/warehouse", "state.db");
    let document = case.run(&CHECK).expect(3).json();
    assert_eq!(failed(&document).len(), 1, "before init-tables only the catalog is missing: {document:#}");
    assert!(!disk.path().join("warehouse").exists());
    case.init_tables();
    disk.fill_but(0);
    let document = case.run(&CHECK).expect(1).json();
    let of = |document: &Value| failed(document).into_iter().map(|(check, _)| check).collect::<Vec<_>>();
    assert_eq!(of(&document), ["target", "warehouse"], "{document:#}");
    assert!(failed(&document).iter().all(|(_, text)| text.contains("the disk is full")), "{document:#}");
    disk.free();
    case.run(&CHECK).expect(0);
    disk.make_read_only();
    assert_eq!(of(&case.run(&CHECK).expect(1).json()), ["target", "warehouse"]);
    disk.make_writable();
    assert!(support::files_below(disk.path()).iter().all(|file| !file.to_string_lossy().contains("k2-offload-try")));

    places("disk/catalog.db", "warehouse", "disk/state.db");
    case.init_tables();
    case.pass();
    disk.make_read_only();
    assert_eq!(of(&case.run(&CHECK).expect(1).json()), ["catalog", "locks", "state"]);
    disk.make_writable();
    case.run(&CHECK).expect(0);
}

#[test]
fn what_the_grants_leave_open_is_noted() {
    let case = Case::new("notes");
    case.bronze("trades");
    case.sql("CREATE TABLE merged AS trades ENGINE = Merge(currentDatabase(), '^trades$')");
    let numbers = "[[table]]\nname = 'numbers'\nquery = 'SELECT toDateTime(number) AS ts FROM numbers(9) WHERE ts >= {low} AND ts < {high}'\n\
                   target = 'cold.numbers'\ncursor = 'ts'\n";
    case.config(&format!("{}{numbers}", TRADES.replace("source = 'trades'", "source = 'merged'")));
    let document = case.run(&CHECK).expect(3).json();
    assert_eq!(
        document["notes"],
        json!([
            "`merged` is a Merge: the tables behind it need grants of their own",
            "a query calls the table function numbers, which may need a grant of its own"
        ])
    );
    case.run(&["config", "check"]).expect(3).says(&["-- `merged` is a Merge: "]);
}

#[test]
fn offline_it_looks_at_the_file_alone() {
    let case = Case::new("offline");
    case.config(TRADES);
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), good.replace(&case.url, "http://127.0.0.1:1")).unwrap();
    let output =
        case.run(&["config", "check", "--offline"]).expect(0).says(&["127.0.0.1:1", "late_lookback = \"24h\""]);
    assert!(
        output.stdout.contains("ok      configuration") && !output.stdout.contains("warehouse file"),
        "{}",
        output.all()
    );
    assert_eq!(support::files_below(case.folder()), [case.path("offload.toml")]);
    fs::write(case.path("offload.toml"), good.replace("cursor", "curser")).unwrap();
    fails_alone(case.run(&["--format", "json", "config", "check", "--offline"]), 2, "configuration", "curser");
}

#[test]
fn where_the_password_comes_from_is_told_and_not_the_password() {
    let case = Case::with_trades("password");
    case.config_file("env.toml", "password_env = 'SECRET_OF_TEST'", "", TRADES);
    let check = finish(case.command_with("env.toml", &["config", "check"]).env("SECRET_OF_TEST", "canary-pass"));
    check.expect(2).says(&["password_env = \"SECRET_OF_TEST\"", "check clickhouse.user"]).keeps_back(&["canary-pass"]);
    fs::write(case.path("secret"), "canary-pass\n").unwrap();
    case.config_file("file.toml", "password_file = 'secret'", "", TRADES);
    let absolute = format!("password_file = \"{}\"", case.path("secret").display());
    let check =
        case.run_with("file.toml", &["config", "check"]).expect(2).keeps_back(&["canary-pass"]).says(&[&absolute]);
    assert!(check.stdout.contains(&format!("{}: read\n", case.path("secret").display())), "{}", check.all());
}

#[test]
fn whom_passes_tell_is_tried_and_nothing_is_sent() {
    let case = Case::with_trades("outlets");
    let collector = Webhook::start("v1/metrics");
    fs::write(case.path("webhook"), &collector.url).unwrap();
    let configure = |textfile: &str, otlp: &str, notify: &str| {
        let metrics = format!("[metrics]\ntextfile = '{textfile}'\notlp = '{otlp}'\ntimeout = '1s'");
        case.config_file("offload.toml", "", &format!("{metrics}\n[notify]\n{notify}\n"), TRADES);
    };
    configure("k2.prom", &collector.url, "webhook_file = 'webhook'");
    let checked = case.run(&["config", "check"]).expect(0);
    checked.says(&["k2.prom", "answers, nothing was sent"]);
    assert_eq!(collector.documents(), [] as [Value; 0]);
    configure("nowhere/k2.prom", "http://127.0.0.1:1/", "command = ['/bin/sh']");
    let document = case.run(&CHECK).expect(2).json();
    let found = failed(&document);
    assert!(found.len() == 2 && found.iter().all(|(check, _)| check == "metrics"), "{document:#}");
    assert!(found[0].1.contains("nowhere does not exist") && found[1].1.contains("127.0.0.1:1"), "{document:#}");
    configure("k2.prom", &collector.url, "command = ['offload.toml', 'argument']");
    fails_alone(case.run(&CHECK), 2, "notify", "no program that can be run");
}
