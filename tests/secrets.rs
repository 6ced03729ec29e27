//! Passwords and the values of rows stay where they belong: whatever a command does, and however it fails, it tells neither.
//!
//! Row values are in data files, and by design in Iceberg's metadata (bounds), in paths of partitions by a column as it is, and, with -v, in the
//! queries that read such partitions.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::process::Command;

use support::data::hours_ago;
use support::faults::{ALWAYS, Fault, FaultyProxy};
use support::lake::{S3, variable};
use support::{Case, Output, Place, Running, Server, TRADES, finish, in_parallel, only_table};

const PASSWORD: &str = "correct-horse-battery";
/// The path of a webhook's URL.
const WEBHOOK: &str = "canary-of-a-webhook";
const WRONG: &str = "wrong-canary-password";
/// Text and numbers of rows; the last number fits no `long`.
const VALUES: [&str; 4] = ["canary-of-a-row", "7182818284590452", "3141592653.5897", "16180339887498948482"];

/// Ways to ask for more output.
const LOUD: [&[&str]; 4] = [&[], &["-vv"], &["-vv", "--log-format", "json"], &["-vv", "--format", "json"]];

const TABLES: &str = "
[[table]]
source = 'plain'
target = 'cold.plain'
cursor = 'ts'
partition_by = ['day(ts)']
reject_where = \"note = ''\"
[[table]]
source = 'keyed'
target = 'cold.keyed'
cursor = 'ts'
key = ['note', 'number']
version_column = 'price'
sort_by = ['note desc']
bloom_filter = ['note']
[[table]]
name = 'newest'
query = 'SELECT toStartOfMinute(ts) AS minute, note, max(number) AS number, any(price) AS price FROM plain WHERE ts >= {low} AND ts < {high} GROUP BY minute, note'
target = 'cold.newest'
cursor = 'minute'
key = ['minute', 'note']
window = '1m'
";

fn case(server: &Server, name: &str) -> Case {
    let case = Case::on(&server.url, name);
    for table in ["plain", "keyed"] {
        case.sql(&format!(
            "CREATE TABLE {table} (ts DateTime64(3), note String, number UInt64, price Decimal(18, 4)) ENGINE = MergeTree ORDER BY ts"
        ));
    }
    insert(&case, 0);
    // The server answers such a POST with an error.
    fs::write(case.path("webhook"), format!("{}/{WEBHOOK}", case.url)).unwrap();
    let outlets = "[metrics]\ntextfile = 'metrics.prom'\n[notify]\nwebhook_file = 'webhook'\n";
    case.config_file("offload.toml", "user = 'offload'\npassword_env = 'PASSWORD_OF_TEST'", outlets, TABLES);
    case
}

/// Rows of one hour that are nothing but canaries; of a later call they come late. Rows of one key in two hours would be missing in one.
fn insert(case: &Case, late: u32) {
    let [text, number, price, _] = VALUES;
    let start = format!("{} + INTERVAL {} MINUTE", hours_ago(1), 45 - late);
    for table in ["plain", "keyed"] {
        case.sql(&format!(
            "INSERT INTO {table} SELECT {start} + number, concat('{text}', toString({late})), {number}, {price} \
             FROM numbers(100)"
        ));
    }
}

fn command(case: &Case, password: &str, arguments: &[&str]) -> Command {
    let mut command = case.command(arguments);
    command.env("PASSWORD_OF_TEST", password);
    command
}

/// Neither what was said nor what was written, but for the lake itself and what the user wrote, holds a secret.
#[track_caller]
fn keeps_all(case: &Case, output: Output) -> Output {
    let secrets = [&[PASSWORD, WRONG, WEBHOOK][..], &VALUES].concat();
    let lake = case.path("warehouse");
    for file in support::files_below(case.folder()) {
        let is_users = file.extension().is_some_and(|extension| extension == "toml")
            || file.ends_with("password")
            || file.ends_with("webhook");
        if file.starts_with(&lake) || is_users {
            continue;
        }
        let content = fs::read(&file).unwrap();
        let found =
            secrets.iter().find(|secret| content.windows(secret.len()).any(|window| window == secret.as_bytes()));
        assert_eq!(found, None, "in {}\n{}", file.display(), output.all());
    }
    output.keeps_back(&secrets)
}

/// Runs a command in all ways; the code that each of them must end with.
#[track_caller]
fn all_ways(case: &Case, password: &str, arguments: &[&str], code: Option<i32>) {
    for loud in LOUD {
        let output = finish(&mut command(case, password, &[loud, arguments].concat()));
        let output = keeps_all(case, output);
        assert!(code.is_none_or(|code| output.code == Some(code)), "{loud:?} {arguments:?}\n{}", output.all());
    }
}

#[test]
fn nothing_tells_a_password_or_a_value() {
    let server = Server::start("UTC");
    let tests: [fn(&Server); 6] = [
        what_succeeds_tells_neither,
        values_that_sql_stumbles_over_are_not_told,
        values_that_do_not_fit_are_not_told,
        wrong_passwords_are_not_told,
        a_password_is_not_in_the_process_list,
        values_by_which_a_table_is_partitioned_are_not_told_without_v,
    ];
    in_parallel(2, tests.to_vec(), |test| test(&server));
}

#[test]
fn secrets_in_the_wrong_place_are_not_told() {
    let case = Case::new("misplaced");
    for (section, line) in [
        ("clickhouse", format!("password = '{PASSWORD}'")),
        ("clickhouse", format!("password_env = '{PASSWORD}'")),
        ("clickhouse", format!("password_env = {PASSWORD}")),
        ("clickhouse", format!("url = 'http://me:{PASSWORD}@127.0.0.1'")),
        ("clickhouse", format!("url = 'http://127.0.0.1/?password={PASSWORD}'")),
        ("catalog", format!("uri = 'postgresql://me:{PASSWORD}@host/catalog'")),
        ("catalog", format!("warehouse = 's3://me:{PASSWORD}@bucket'")),
        ("catalog", format!("token = '{PASSWORD}'")),
        ("catalog", format!("type = 'rest'\nuri = 'https://me:{PASSWORD}@host'")),
        ("catalog", format!("type = 'rest'\nuri = 'https://host'\ntoken_env = '{PASSWORD}'")),
        ("catalog", format!("type = 'rest'\nuri = 'https://host'\nheader_env = {{ x-api-key = '{PASSWORD}' }}")),
        (
            "catalog",
            format!("type = 'rest'\nuri = 'https://host'\nproperties = {{ \"header.authorization\" = '{PASSWORD}' }}"),
        ),
        ("catalog", format!("properties = {{ \"s3.secret-access-key\" = '{PASSWORD}' }}")),
        ("catalog", format!("properties = {{ \"s3.session-token\" = '{PASSWORD}' }}")),
        ("catalog", format!("properties = {{ \"adls.sas-token\" = '{PASSWORD}' }}")),
        ("catalog", format!("properties = {{ \"s3.endpoint\" = 'http://me:{PASSWORD}@127.0.0.1' }}")),
        ("metrics", format!("otlp = 'http://me:{PASSWORD}@127.0.0.1:4318/v1/metrics'")),
        ("notify", format!("webhook = 'https://127.0.0.1/{PASSWORD}'")),
        ("defaults", format!("password = '{PASSWORD}'")),
        ("state", format!("path = '{PASSWORD}")),
    ] {
        let table = "[[table]]\nsource = 'a'\ntarget = 'c.a'\ncursor = 'ts'\n";
        fs::write(case.path("offload.toml"), format!("[{section}]\n{line}\n{table}")).unwrap();
        for arguments in
            [&["config", "check"][..], &["config", "check", "--offline"], &["run"], &["init-tables"], &["audit"]]
        {
            all_ways(&case, "", arguments, Some(2));
        }
    }
}

fn what_succeeds_tells_neither(server: &Server) {
    let case = case(server, "succeeds");
    let all = |arguments: &[&str]| all_ways(&case, PASSWORD, arguments, Some(0));
    all_ways(&case, PASSWORD, &["config", "check"], Some(3));
    all(&["init-tables", "--dry-run"]);
    all(&["init-tables"]);
    all(&["run", "--dry-run"]);
    all(&["run"]);
    insert(&case, 1);
    all(&["run"]);
    all(&["config", "check"]);
    all(&["watermark", "show"]);
    all(&["status"]);
    all(&["history", "--chunks"]);
    all(&["audit"]);
    all(&["audit", "--checksum"]);
    all(&["audit", "--orphans"]);
    all(&["watermark", "reset", "--table", "plain", "--to-earliest", "--dry-run"]);
    all(&["watermark", "reset", "--table", "plain", "--to-earliest", "--yes"]);
    all(&["run"]);
    all(&["man", "--dir", "man"]);
    // What differs is counted, and repaired, and not shown.
    case.sql("ALTER TABLE keyed UPDATE price = price + 1 WHERE 1 SETTINGS mutations_sync = 2");
    all_ways(&case, PASSWORD, &["audit", "--checksum"], None);
    insert(&case, 40);
    all_ways(&case, PASSWORD, &["audit", "--checksum", "--repair"], None);
    let [text, ..] = VALUES;
    let is_there =
        |file: &std::path::PathBuf| fs::read(file).unwrap().windows(text.len()).any(|window| window == text.as_bytes());
    assert!(support::files_below(&case.path("warehouse")).iter().any(is_there), "no canary left");
}

fn a_password_is_not_in_the_process_list(server: &Server) {
    let case = case(server, "processes");
    finish(&mut command(&case, PASSWORD, &["init-tables"])).expect(0);
    fs::write(case.path("password"), PASSWORD).unwrap();
    case.config_file("file.toml", "user = 'offload'\npassword_file = 'password'", "", TABLES);
    for (number, config) in ["offload.toml", "file.toml"].into_iter().enumerate() {
        let gate = case.gate(&format!("gate{number}"));
        let mut command = case.command_with(config, &["run"]);
        command.env("PASSWORD_OF_TEST", PASSWORD).env("K2_OFFLOAD_FAILPOINTS", format!("planned={}", gate.pause()));
        let mut pass = Running::start(&mut command);
        gate.wait_for(&mut pass);
        let line = fs::read(format!("/proc/{}/cmdline", pass.pid())).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(config) && !line.contains(PASSWORD), "{line}");
        gate.open();
        keeps_all(&case, pass.wait().expect(0));
        insert(&case, number as u32 + 1);
    }
}

fn wrong_passwords_are_not_told(server: &Server) {
    let case = case(server, "wrong");
    finish(&mut command(&case, PASSWORD, &["init-tables"])).expect(0);
    for arguments in [&["run"][..], &["init-tables"], &["watermark", "show"], &["audit"], &["config", "check"]] {
        all_ways(&case, WRONG, arguments, Some(2));
    }
    all_ways(&case, WRONG, &["watermark", "reset", "--table", "plain", "--to", "2024-01-01", "--yes"], Some(2));
    fs::write(case.path("password"), WRONG).unwrap();
    case.config_file("offload.toml", "user = 'offload'\npassword_file = 'password'", "", TABLES);
    all_ways(&case, "", &["run"], Some(2));
}

fn values_that_do_not_fit_are_not_told(server: &Server) {
    let case = case(server, "unfit");
    finish(&mut command(&case, PASSWORD, &["init-tables"])).expect(0);
    let (now, [text, number, price, huge]) = ("now64(3) - INTERVAL 1 HOUR", VALUES);
    for bad in [
        format!("{now}, '{text}', {huge}, {price}"),
        format!("{now}, concat('{text}', unhex('FF')), {number}, {price}"),
    ] {
        for table in ["plain", "keyed"] {
            case.sql(&format!("TRUNCATE TABLE {table}"));
            case.sql(&format!("INSERT INTO {table} SELECT {bad}"));
        }
        all_ways(&case, PASSWORD, &["run"], Some(3));
        all_ways(&case, PASSWORD, &["audit", "--checksum"], None);
        all_ways(&case, PASSWORD, &["watermark", "show"], Some(0));
        all_ways(&case, PASSWORD, &["status"], Some(3));
        all_ways(&case, PASSWORD, &["history", "--failed"], Some(0));
    }
    // A type that the target's cannot become.
    case.sql("ALTER TABLE plain MODIFY COLUMN number String");
    for arguments in [&["run"][..], &["init-tables"], &["audit", "--checksum"], &["config", "check"]] {
        all_ways(&case, PASSWORD, arguments, None);
    }
}

/// Functions that quote what they do not understand.
const STUMBLING: [&str; 21] = [
    "toUUID(note)",
    "toIPv4(note)",
    "toIPv6(note)",
    "CAST(note, 'Enum8(\\'a\\' = 1)')",
    "toDate(note)",
    "toDateTime(note)",
    "parseDateTime(note, '%Y')",
    "toBool(note)",
    "CAST(note, 'JSON')",
    "toDecimal64(note, 2)",
    "toInt8(note)",
    "toFloat64(note)",
    "CAST(note, 'Tuple(Int8, Int8)')",
    "match('a', concat(note, '('))",
    "base64Decode(note)",
    "parseTimeDelta(note)",
    "parseReadableSize(note)",
    "replaceRegexpOne(note, concat(note, '('), '')",
    "printf(concat(note, '%d'), note)",
    "CAST(price * 1000000000, 'Decimal(18, 9)')",
    "accurateCast(number, 'Int8')",
];

/// Tables that compute something of their rows: in a query, in `reject_where`, and where the server computes it before it reads.
fn computing(expression: &str) -> String {
    let query = format!(
        "[[table]]\nname = 'q'\nquery = \"\"\"SELECT ts, toString({expression}) AS odd FROM plain WHERE ts >= {{low}} AND ts < {{high}}\"\"\"\n\
         target = 'cold.q'\ncursor = 'ts'\n"
    );
    let rows = |source: &str, target: &str, reject: &str| {
        format!(
            "[[table]]\nsource = '{source}'\ntarget = '{target}'\ncursor = 'ts'\nreject_where = \"\"\"{reject}\"\"\"\n"
        )
    };
    let rejected = rows("plain", "cold.r", &format!("toString({expression}) = ''"));
    let scalar = rows("keyed", "cold.s", &format!("note = (SELECT toString({expression}) FROM plain LIMIT 1)"));
    [query, rejected, scalar].concat()
}

fn values_that_sql_stumbles_over_are_not_told(server: &Server) {
    let case = case(server, "stumbles");
    let configure = |expression: &str| {
        let clickhouse = "user = 'offload'\npassword_env = 'PASSWORD_OF_TEST'";
        case.config_file("offload.toml", clickhouse, "", &computing(expression));
    };
    configure("upper(note)");
    finish(&mut command(&case, PASSWORD, &["init-tables"])).expect(0);
    for expression in STUMBLING {
        configure(expression);
        for arguments in [&["-vv", "--format", "json", "run"][..], &["-vv", "config", "check"]] {
            let output = keeps_all(&case, finish(&mut command(&case, PASSWORD, arguments)));
            assert!(output.code != Some(0), "{expression} understands everything\n{}", output.all());
        }
    }
}

fn values_by_which_a_table_is_partitioned_are_not_told_without_v(server: &Server) {
    let case = case(server, "partitioned");
    let table = "[[table]]\nsource = 'plain'\ntarget = 'cold.p'\ncursor = 'ts'\npartition_by = ['note', 'number']\n";
    case.config_file("offload.toml", "user = 'offload'\npassword_env = 'PASSWORD_OF_TEST'", "", table);
    for arguments in
        [&["init-tables"][..], &["run"], &["config", "check"], &["audit", "--checksum"], &["watermark", "show"]]
    {
        for format in ["text", "json"] {
            keeps_all(
                &case,
                finish(&mut command(&case, PASSWORD, &[&["--format", format], arguments].concat())).expect(0),
            );
        }
    }
}

/// Secrets of the lake that scripts/lake starts.
fn of_lake() -> Vec<String> {
    let names = [
        "K2_TEST_S3_SECRET_KEY",
        "K2_TEST_REST_CLIENT_SECRET",
        "K2_TEST_MOTO_SESSION_SECRET_KEY",
        "K2_TEST_MOTO_SESSION_TOKEN",
    ];
    let others = ["vended/secret+key=", "lake-password", "canary"].map(str::to_owned);
    names.map(variable).into_iter().chain(others).collect()
}

/// Runs a command in all ways with these variables: neither what it says nor what it writes holds a secret of the lake.
#[track_caller]
fn tells_nothing(case: &Case, arguments: &[&str], variables: &[(&str, &str)]) {
    let secrets = of_lake();
    for loud in LOUD {
        let mut command = case.command(&[loud, arguments].concat());
        let output = finish(command.envs(variables.iter().copied()));
        assert!(output.code.is_some_and(|code| code <= 4), "{arguments:?}\n{}", output.all());
        let output = output.keeps_back(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
        for file in support::files_below(case.folder()) {
            let content = fs::read(&file).unwrap();
            let holds = |secret: &&String| content.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert_eq!(secrets.iter().find(holds), None, "in {}\n{}", file.display(), output.all());
        }
    }
}

const ON_A_LAKE: [&[&str]; 11] = [
    &["init-tables"],
    &["config", "check"],
    &["run", "--dry-run"],
    &["run"],
    &["watermark", "show"],
    &["status"],
    &["history", "--chunks"],
    &["audit", "--checksum"],
    &["audit", "--orphans"],
    &["watermark", "reset", "--table", "trades", "--to-earliest", "--dry-run"],
    &["init-tables", "--dry-run"],
];

#[test]
fn nothing_tells_the_secrets_of_a_lake() {
    in_parallel(2, vec![Place::Sqlite, Place::Postgres, Place::Rest, Place::Guarded], |place| {
        let mut case = Case::at(place, "untold");
        let lake = case.lake.as_mut().unwrap();
        if place.is_rest() {
            lake.keys = "header_env = { x-api-key = 'HEADER_OF_TEST' }".to_owned();
        }
        case.bronze("trades");
        case.trades("trades", "2024-03-10 23:59:00", 100);
        case.config(TRADES);
        let header = ("HEADER_OF_TEST", "canary-of-a-header");
        for arguments in ON_A_LAKE {
            tells_nothing(&case, arguments, &[header]);
        }
        assert_eq!(finish(case.command(&["run"]).env(header.0, header.1)).code, Some(0), "it did not work at all");
        // With what is wrong, and with what cannot be sent.
        let variable = match place {
            Place::Sqlite | Place::Rest => "AWS_SECRET_ACCESS_KEY",
            Place::Postgres => "LAKE_PASSWORD",
            _ => "LAKE_CREDENTIAL",
        };
        for wrong in ["canary-secret", "canary:canary", "canary\nof two lines"] {
            for arguments in [&["run"][..], &["config", "check"], &["audit", "--checksum"], &["init-tables"]] {
                tells_nothing(&case, arguments, &[header, (variable, wrong)]);
            }
        }
        if place.is_rest() {
            tells_nothing(&case, &["run"], &[("HEADER_OF_TEST", "canary\nof two lines")]);
        }
    });
}

#[test]
fn nothing_tells_keys_of_sessions_and_of_other_stores() {
    let case = Case::new("sessions");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 23:59:00", 100);
    let s3 = S3::moto_session();
    let configure = |warehouse: &str, properties: &str| {
        let catalog = format!("[catalog]\nwarehouse = '{warehouse}'\nproperties = {{ {properties} }}\n");
        case.config_file("offload.toml", "", &catalog, TRADES);
    };
    configure(&format!("s3://{}/{}", s3.bucket, case.database), &format!("\"s3.endpoint\" = '{}'", s3.url));
    let token = s3.session_token.as_ref().unwrap();
    let mut keys = [
        ("AWS_ACCESS_KEY_ID", s3.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &s3.secret_key),
        ("AWS_SESSION_TOKEN", token),
    ];
    for arguments in [&["init-tables"][..], &["run"], &["config", "check"], &["audit", "--checksum"]] {
        tells_nothing(&case, arguments, &keys);
        assert_eq!(finish(case.command(arguments).envs(keys)).code, Some(0), "it did not work at all");
    }
    let audit = only_table(&finish(case.command(&["--format", "json", "audit"]).envs(keys)).expect(0).json());
    let rows: u64 = audit["buckets"].as_array().unwrap().iter().map(|b| b["target_rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 100);
    keys[2].1 = "canary-token";
    tells_nothing(&case, &["run"], &keys);
    finish(case.command(&["run"]).envs(keys)).expect(2);
    fs::remove_file(case.path("catalog.db")).unwrap();

    // A token that stands in each URL; an answer that repeats it.
    let store = FaultyProxy::http("http://127.0.0.1:1");
    let told = "<?xml version=\"1.0\"?><Error><Code>AuthenticationFailed</Code><Message>no: sv=1&sig=canary-signature</Message></Error>";
    let sas = [("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=canary-signature")];
    let azure = "abfss://lake@account.dfs.core.windows.net/w";
    for (fault, endpoint) in [
        (Fault::Told(403, told), store.url.as_str()),
        (Fault::Told(500, "canary"), &store.url),
        (Fault::RequestLost, &store.url),
        (Fault::RequestLost, "http://127.0.0.1:1"),
    ] {
        configure(azure, &format!("\"adls.endpoint\" = '{endpoint}'"));
        store.inject("* *", ALWAYS, fault);
        tells_nothing(&case, &["init-tables"], &sas);
        tells_nothing(&case, &["config", "check"], &sas);
        store.calm();
    }
    tells_nothing(&case, &["init-tables"], &[("AZURE_STORAGE_ACCOUNT_KEY", "canary")]);
    configure("gs://lake/w", &format!("\"gcs.service.host\" = '{}'", store.url));
    for key in ["canary", "{\"private_key\": \"canary\", \"private_key_id\": \"i\", \"client_email\": \"e\"}"] {
        tells_nothing(&case, &["init-tables"], &[("GOOGLE_SERVICE_ACCOUNT_KEY", key)]);
    }
}
