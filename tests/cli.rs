//! What a person sees: exit codes and messages of bad calls, bad configurations and unfit sources.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Case, TRADES, bare_command, fails, finish, only_table};

const COMMANDS: [&[&str]; 4] = [&["init-tables"], &["run"], &["watermark", "show"], &["audit"]];

/// One table with the given keys in place of, or beside, those of a good one.
fn table(source: &str, cursor: &str) -> String {
    format!("[[table]]\nsource = '{source}'\ntarget = 'cold.{source}'\ncursor = '{cursor}'\n")
}

#[test]
fn help_and_version_are_results() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["init-tables", "-h"],
        &["watermark", "show", "--help"],
        &["audit", "--help"],
        &["--version"],
    ] {
        let output = finish(bare_command().args(arguments)).expect(0);
        assert!(output.stdout.contains("k2-offload") && output.stderr.is_empty(), "{}", output.all());
    }
    finish(bare_command().arg("--help")).says(&["init-tables", "run", "watermark", "Exit codes", "143"]);
}

#[test]
fn bad_calls_are_usage_errors() {
    for arguments in [
        &[][..],
        &["fly"],
        &["run", "--until", "tomorrow"],
        &["watermark", "show", "--max-lag", "soon"],
        &["run", "--nope"],
        &["audit", "--last", "yesterday"],
    ] {
        let output = finish(bare_command().args(arguments)).expect(2);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{}", output.all());
    }
    finish(bare_command().args(["run", "--until", "tomorrow"])).says(&["tomorrow", "RFC 3339"]);
}

#[test]
fn a_missing_configuration_is_told() {
    let empty = tempfile::tempdir().unwrap();
    if !std::path::Path::new("/etc/k2-offload/offload.toml").exists() {
        finish(bare_command().arg("run").current_dir(&empty)).expect(2).says(&["offload.toml", "hint: "]);
    }
    finish(bare_command().args(["-c", "nowhere.toml", "run"]).current_dir(&empty))
        .expect(2)
        .says(&["nowhere.toml", "hint: "]);
}

#[test]
fn the_configuration_is_found_by_option_variable_or_folder() {
    let case = Case::with_trades("found");
    let file = case.path("offload.toml");
    let elsewhere = tempfile::tempdir().unwrap();
    finish(bare_command().arg("run").env("K2_OFFLOAD_CONFIG", &file).current_dir(&elsewhere)).expect(0);
    finish(bare_command().arg("run").current_dir(case.folder())).expect(0);
    finish(bare_command().arg("-c").arg(&file).arg("run").env("K2_OFFLOAD_CONFIG", "/nowhere").current_dir(&elsewhere))
        .expect(0);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "paths are relative to the file");
}

#[test]
fn a_misspelt_key_is_named() {
    let case = Case::new("misspelt");
    for (config, key) in [
        (format!("{TRADES}settle_delya = '5m'\n"), "settle_delya"),
        (format!("{TRADES}[defaults]\nsettle = '5m'\nsettle_delay = '1m'\n"), "settle"),
        (format!("{TRADES}[clickhous]\nurl = 'x'\n"), "clickhous"),
    ] {
        fs::write(case.path("offload.toml"), config).unwrap();
        for command in COMMANDS {
            let output = case.run(command).expect(2).says(&[key, "offload.toml", "hint: "]);
            assert!(output.stderr.contains("k2-offload: ") && output.stdout.is_empty(), "{}", output.all());
        }
    }
}

#[test]
fn all_problems_of_a_configuration_are_told_at_once() {
    let case = Case::new("problems");
    let twin = TRADES.replace("'trades'", "'other'");
    case.config_file(
        "offload.toml",
        "password_env = 'NO_SUCH_VARIABLE'",
        "",
        &format!("{TRADES}settle_delay = 'soon'\n{twin}"),
    );
    case.run(&["run"]).expect(2).says(&["NO_SUCH_VARIABLE", "`soon`", "`cold.trades`", "`trades`"]);
    case.config_file(
        "offload.toml",
        "password_file = 'secret'",
        "[state]\npath = 's.db'\n[catalog]\nuri = 'x'\nwarehouse = 'x://y'",
        TRADES,
    );
    case.run(&["run"]).expect(2).says(&["password_file", "catalog.uri", "catalog.warehouse"]);
    case.config_file("offload.toml", "settings = { final = 1, max_rows_to_read = 5 }", "", TRADES);
    case.run(&["run"]).expect(2).says(&["settings.final", "settings.max_rows_to_read"]);
}

/// Section, key, bad value, and what is said of it beside the key.
const BAD_VALUES: [(&str, &str, &str, &str); 46] = [
    ("[clickhouse]", "user", "\"me\\nyou\"", "line break"),
    ("[clickhouse]", "connect_timeout", "'soon'", "`soon` is no duration"),
    ("[clickhouse]", "idle_timeout", "'5'", "`5` is no duration such as 90s"),
    ("[clickhouse]", "query_timeout", "'10ms'", "`10ms` is too short"),
    ("[clickhouse]", "query_timeout", "10", "expected a string"),
    ("[clickhouse]", "url", "'ftp://127.0.0.1'", "no http or https URL"),
    ("[clickhouse]", "url", "'http://127.0.0.1:99999'", "port"),
    ("[clickhouse]", "url", "'http://me:s3cret@127.0.0.1'", "credentials"),
    ("[clickhouse]", "password_env", "'NO_SUCH_VARIABLE'", "`NO_SUCH_VARIABLE` is not set"),
    ("[clickhouse]", "password_env", "'s3cret'", "is not set"),
    ("[clickhouse]", "password_file", "'nowhere'", "/nowhere: No such file"),
    ("[clickhouse]", "password_file", "'folder'", "/folder: Is a directory"),
    ("[clickhouse]", "password_file", "'binary'", "/binary: stream did not contain valid UTF-8"),
    ("[clickhouse]", "settings", "{ final = 1 }", "settings.final: is set by k2-offload itself"),
    ("[clickhouse]", "settings", "{ max_threads = [1] }", "settings.max_threads: must be text"),
    ("[catalog]", "type", "'glue'", "`glue` is neither sql nor rest"),
    ("[catalog]", "uri", "'postgresql://me:s3cret@host/catalog'", "password does not belong into the URI"),
    ("[catalog]", "uri", "'sqlite:///'", "is neither sqlite:///FILE"),
    ("[catalog]", "warehouse", "'s3://me:s3cret@bucket'", "credentials do not belong here"),
    ("[catalog]", "warehouse", "'file://host/folder'", "needs three slashes"),
    ("[state]", "path", "'catalog.db'", "is the catalog's file"),
    ("[defaults]", "settle_delay", "'-5m'", "`-5m` is no duration"),
    ("[defaults]", "pass_deadline", "'14 parsecs'", "`14 parsecs` is no duration"),
    ("[defaults]", "max_lag", "''", "`` is no duration"),
    ("[defaults]", "target_file_size", "'big'", "`big` is no size such as 64MB"),
    ("[defaults]", "target_file_size", "'0MB'", "`0MB` is no size"),
    ("[defaults]", "chunk_rows", "'many'", "invalid type"),
    ("[defaults]", "chunk_rows", "-1", "`-1`"),
    ("[defaults]", "parallel_tables", "0", "must be 1 or more"),
    ("[defaults]", "parallel_tables", "1.5", "`1.5`"),
    ("[defaults]", "row_group_size", "0", "must be 1 or more"),
    ("[[table]]", "bloom_filter", "['a', 'b', 'a']", "`a` stands twice"),
    ("[defaults]", "compression", "'zstd(23)'", "`zstd(23)` is none of zstd(1..22)"),
    ("[[table]]", "settle_delay", "'5 mins and a bit'", "`5 mins and a bit` is no duration"),
    ("[[table]]", "target_file_size", "'128 bananas'", "`128 bananas` is no size"),
    ("[[table]]", "chunk_rows", "0", "must be 1 or more"),
    ("[[table]]", "compression", "'zip'", "`zip` is none of zstd"),
    ("[[table]]", "start_at", "'yesterday'", "yesterday"),
    ("[[table]]", "partition_by", "['truncate(symbol)']", "`truncate(symbol)` is none of year(C)"),
    ("[[table]]", "partition_by", "['day(ts)', 'days(ts)']", "stands twice"),
    ("[[table]]", "source", "''", "is empty"),
    ("[[table]]", "cursor", "''", "is empty"),
    ("[[table]]", "target", "'trades'", "`trades` is not namespace.table"),
    ("[[table]]", "target", "'cold./etc/passwd'", "is not namespace.table"),
    ("[[table]]", "layer", "1", "expected a string"),
    ("[[table]]", "layers", "'bronze'", "unknown field"),
];

#[test]
fn a_bad_value_is_told_with_its_key_before_anything_is_done() {
    let case = Case::new("values");
    fs::create_dir(case.path("folder")).unwrap();
    fs::write(case.path("binary"), [0xff]).unwrap();
    let (url, database) = (&case.url, &case.database);
    let good = format!(
        "[clickhouse]\nurl = '{url}'\ndatabase = '{database}'\n[catalog]\n[state]\n[defaults]\n[[table]]\nsource = 'trades'\n\
         target = 'cold.trades'\ncursor = 'exchange_timestamp'\n"
    );
    for (section, key, value, reason) in BAD_VALUES {
        let others = good.lines().filter(|line| !line.starts_with(&format!("{key} = ")));
        let config: String = others.map(|line| format!("{line}\n")).collect();
        let config = config.replacen(section, &format!("{section}\n{key} = {value}"), 1);
        fs::write(case.path("offload.toml"), config).unwrap();
        let output =
            case.run(&["run"]).expect(2).says(&["offload.toml: ", key, reason, "\nhint: "]).keeps_back(&["s3cret"]);
        assert_eq!((output.stderr.lines().count(), output.stdout.as_str()), (2, ""), "{}", output.all());
    }
    assert_eq!(support::files_below(case.folder()), [case.path("binary"), case.path("offload.toml")]);
}

#[test]
fn a_setting_that_the_server_does_not_take_is_told_by_name() {
    let case = Case::with_trades("settings");
    case.trades("trades", "2024-03-10", 10);
    for (name, settings) in [
        ("max_threads", "{ max_block_size = 1000, max_threads = 'many' }"),
        ("max_thread", "{ max_thread = 1 }"),
        ("load_balancing", "{ load_balancing = 'fair' }"),
    ] {
        case.config_file("bad.toml", &format!("settings = {settings}"), "", TRADES);
        for command in ["run", "init-tables"] {
            let said = format!("clickhouse.settings.{name}: ");
            case.run_with("bad.toml", &[command]).expect(2).says(&[&case.url, &said, "hint: correct it"]);
        }
    }
    assert!(case.target("trades").files_on_disk().is_empty());
    case.config_file("good.toml", "settings = { max_threads = 1, load_balancing = 'random' }", "", TRADES);
    assert_eq!(
        only_table(&case.run_with("good.toml", &["--format", "json", "run"]).expect(0).json())["rows_written"],
        10
    );
}

#[test]
fn a_configuration_that_is_no_toml_is_told_by_name() {
    let case = Case::new("no_toml");
    fs::create_dir(case.path("folder")).unwrap();
    for (name, content) in
        [("empty", &b""[..]), ("nul", b"a = \"\0\"\n"), ("binary", &[0xff, 0xfe]), ("prose", b"dear diary")]
    {
        fs::write(case.path(name), content).unwrap();
    }
    for name in ["empty", "nul", "binary", "prose", "folder", "nowhere"] {
        for command in COMMANDS {
            let output = case.run_with(name, command).expect(2).says(&[&format!("/{name}"), "hint: "]);
            assert!(output.stdout.is_empty(), "{}", output.all());
        }
    }
    case.run_with("empty", &["run"]).says(&["[[table]]: there is none"]);
    assert_eq!(support::files_below(case.folder()).len(), 4);
}

#[test]
fn tables_and_layers_that_are_not_configured_are_told() {
    let case = Case::with_trades("unknown");
    for command in COMMANDS {
        let arguments = [command, &["--table", "cold.tardes"]].concat();
        case.run(&arguments).expect(2).says(&["cold.tardes", "cold.trades", "hint: "]);
    }
    case.run(&["run", "--layer", "gold"]).expect(2).says(&["gold"]);
    case.config(&format!("{TRADES}{}", TRADES.replace("cold.trades", "cold.again")));
    case.run(&["run", "--table", "trades"]).expect(2).says(&["trades", "target"]);
    case.run(&["watermark", "show", "--table", "cold.trades"]).expect(0);
}

#[test]
fn a_server_that_is_down_may_be_up_at_the_next_pass() {
    let case = Case::with_trades("down");
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("offload.toml"), config.replace(&case.url, "http://127.0.0.1:1")).unwrap();
    let before = case.target("trades").state();
    let output = case.run(&["--format", "json", "run"]).expect(1);
    fails(&only_table(&output.json()), "unavailable", &["http://127.0.0.1:1", "next pass"]);
    for command in [&["init-tables"][..], &["watermark", "show"]] {
        case.run(command).expect(1).says(&["http://127.0.0.1:1", "hint: "]);
    }
    assert_eq!(case.target("trades").state(), before);
    let shown = case.run(&["--format", "json", "watermark", "show"]);
    assert_eq!(only_table(&shown.json())["failure_count"], 1);

    fs::write(case.path("offload.toml"), config).unwrap();
    case.trades("trades", "2024-03-10", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    assert_eq!(only_table(&case.run(&["--format", "json", "watermark", "show"]).json())["failure_count"], 0);
}

#[test]
fn sources_that_do_not_exist_are_errors_of_the_configuration() {
    let case = Case::with_trades("absent");
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    for (from, to, names) in [
        (case.database.as_str(), "no_such_database", "no_such_database"),
        ("source = 'trades'", "source = 'tardes'", "tardes"),
        ("cursor = 'exchange_timestamp'", "cursor = 'exchange_time'", "exchange_time"),
        ("cursor = 'exchange_timestamp'", "cursor = 'symbol'", "not time"),
        ("cursor = 'exchange_timestamp'", "cursor = 'sequence_number'", "UInt64"),
    ] {
        fs::write(case.path("offload.toml"), good.replace(from, to)).unwrap();
        for command in ["run", "init-tables"] {
            case.run(&[command]).expect(2).says(&[names, "hint: "]);
        }
    }
    let target = case.target("trades");
    assert_eq!(support::files_below(&case.path("warehouse")), [target.metadata_file()]);
    assert_eq!(target.count(), 0);
}

#[test]
fn column_types_that_do_not_fit_are_refused_by_name() {
    let case = Case::new("unfit");
    let kinds = [
        "Int128",
        "UInt256",
        "Decimal(76, 2)",
        "DateTime64(9)",
        "Array(Int256)",
        "Map(String, Array(DateTime64(9)))",
        "AggregateFunction(sum, UInt64)",
    ];
    for kind in kinds {
        case.sql(&format!(
            "CREATE OR REPLACE TABLE unfit (ts DateTime64(3), odd_one {kind}) ENGINE = MergeTree ORDER BY ts"
        ));
        case.config(&table("unfit", "ts"));
        let output = case.run(&["--format", "json", "init-tables"]).expect(3).says(&["odd_one", kind]);
        let failed = only_table(&output.json());
        assert_eq!((&failed["status"], &failed["error"]["kind"]), (&json!("failed"), &json!("refused")));
    }
    case.sql("CREATE OR REPLACE TABLE unfit (ts DateTime64(3), price Int8, Price Int8) ENGINE = MergeTree ORDER BY ts");
    case.run(&["init-tables"]).expect(3).says(&["price", "Price", "case"]);
    case.sql("CREATE OR REPLACE TABLE unfit (ts DateTime64(3), odd Array(Tuple(a Int8, A Int8))) ENGINE = MergeTree ORDER BY ts");
    case.run(&["init-tables"]).expect(3).says(&["`a`", "`A`", "case"]);
    assert!(!case.path("warehouse").exists());
}

#[test]
fn the_lag_is_an_alarm_only_where_it_is_asked_for() {
    let case = Case::with_trades("lag");
    case.trades("trades", "2024-03-10", 10);
    case.run(&["run", "--until", "2024-03-10T00:00:00.001Z"]).expect(0);
    case.run(&["watermark", "show"]).expect(0).says(&["cold.trades", "2024-03-10T00:00:00.001Z"]);
    case.run(&["watermark", "show", "--max-lag", "1h"]).expect(3).says(&["cold.trades"]);
    case.pass();
    case.run(&["watermark", "show", "--max-lag", "1h"]).expect(0);
}

#[test]
fn results_go_to_stdout_and_logs_to_stderr() {
    let case = Case::with_trades("streams");
    case.trades("trades", "2024-03-10", 10);
    let run = case.run(&["run"]).expect(0);
    assert_eq!(run.stdout.lines().count(), 1, "{}", run.all());
    assert!(run.stdout.contains("trades -> cold.trades") && run.stdout.contains("10 rows"), "{}", run.all());
    assert!(run.stderr.contains(" INFO ") && !run.stderr.contains('\x1b'), "{}", run.all());
    assert_eq!(case.run(&["-q", "run"]).expect(0).stderr, "");
    let logs = case.run(&["--log-format", "json", "-v", "run"]).expect(0).stderr;
    assert!(!logs.is_empty());
    for line in logs.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    case.run(&["--format", "json", "-vv", "run"]).expect(0).json();
}

#[test]
fn the_shipped_configuration_is_understood() {
    let shipped = support::server::repository().join("offload.toml");
    let case = Case::new("shipped");
    let text = fs::read_to_string(shipped).unwrap();
    let text = text.replace("#= url = \"http://127.0.0.1:8123\"", &format!("url = \"{}\"", case.url));
    fs::write(
        case.path("offload.toml"),
        text.replace("#= database = \"default\"", &format!("database = \"{}\"", case.database)),
    )
    .unwrap();
    for table in ["bronze_trades_binance", "bronze_trades_kraken", "bronze_trades_coinbase"] {
        case.bronze(table);
        case.trades(table, "2024-03-10", 100);
    }
    case.silver();
    case.silver_trades("2026-03-10 10:00:00", 1000);
    case.init_tables();
    let document = case.pass();
    let rows: Vec<&Value> = document["tables"].as_array().unwrap().iter().map(|table| &table["rows_written"]).collect();
    // A thousand trades of three exchanges, one a second: candles of 17, 4, 2, 1, 1 and 1 windows.
    assert_eq!(json!(rows), json!([100, 100, 100, 1000, 51, 12, 6, 3, 3, 3]));
    case.target("silver_trades").holds_for_all_readers("silver_trades");
    assert_eq!(case.target("silver_trades").ask("identifier_fields", json!({})), json!(["exchange", "trade_id"]));
    case.target("bronze_trades_kraken").holds_all("bronze_trades_kraken");
}
