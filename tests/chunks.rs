//! A long window is moved in chunks, and each chunk into the partitions of its target.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::{Case, TRADES, only_table, wait_until};

/// Trades in chunks of at most `rows`.
fn chunked(name: &str, rows: u64) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.config(&format!("{TRADES}chunk_rows = {rows}\n"));
    case.init_tables();
    case
}

/// The markers of a target, oldest first.
fn markers(case: &Case) -> Vec<Value> {
    let snapshots = case.target("trades").snapshots();
    snapshots
        .iter()
        .map(|s| serde_json::from_str(s["summary"]["k2-offload.marker"].as_str().unwrap()).unwrap())
        .collect()
}

/// Chunks must follow each other without a gap, the first one without a lower bound.
fn assert_unbroken(markers: &[Value]) {
    assert_eq!(markers[0]["low"], Value::Null);
    assert!(markers.windows(2).all(|pair| pair[0]["high"] == pair[1]["low"]), "{markers:#?}");
}

#[test]
fn p10_a_long_window_is_moved_in_chunks_that_follow_each_other() {
    let case = chunked("chunks", 300);
    case.sql("INSERT INTO trades (exchange_timestamp) VALUES ('1970-01-01 00:00:00')");
    case.trades_over_days("trades", "2024-03-10 12:00:00", 1500, 4);
    case.trades("trades", "2024-03-12 12:00:00", 700);
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["low"]), (&json!(2201), &Value::Null));
    let markers = markers(&case);
    assert_eq!(table["chunks"], markers.len());
    assert!(markers.len() >= 8 && markers.iter().all(|m| m["rows"].as_u64().unwrap() <= 300), "{markers:#?}");
    assert_unbroken(&markers);
    case.target("trades").holds_for_all_readers("trades");
    case.target("trades").has_no_other_files();
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn p10_a_tick_is_never_split_however_many_rows_it_has() {
    let case = chunked("tick", 100);
    case.sql("INSERT INTO trades (exchange_timestamp, sequence_number) SELECT '2024-03-10 12:00:00.001', number FROM numbers(500)");
    case.sql("INSERT INTO trades (exchange_timestamp, sequence_number) SELECT '2024-03-10 12:00:00.002', number FROM numbers(5)");
    assert_eq!(case.pass_one()["chunks"], 2);
    let rows: Vec<Value> = markers(&case).iter().map(|marker| marker["rows"].clone()).collect();
    assert_eq!(rows, [500, 5]);
    case.target("trades").holds_all("trades");
}

#[test]
fn a_pass_that_is_killed_again_and_again_does_not_start_over() {
    let case = chunked("killed", 100);
    case.trades_over_days("trades", "2024-03-10", 1000, 3);
    for commits in 1..=3 {
        let output = case.run_failing("committed=kill", &["run"]);
        assert_eq!((output.code, case.target("trades").snapshots().len()), (None, commits), "{}", output.all());
    }
    assert!(case.pass_one()["rows_written"].as_u64().unwrap() < 1000);
    let markers = markers(&case);
    assert_eq!(markers.iter().map(|marker| marker["rows"].as_u64().unwrap()).sum::<u64>(), 1000);
    assert_unbroken(&markers);
    case.target("trades").holds_all("trades");
}

#[test]
fn a_failure_reports_what_was_committed_before_it() {
    let case = chunked("failure", 100);
    case.trades("trades", "2024-03-10", 100);
    case.sql("INSERT INTO trades (exchange_timestamp, sequence_number) VALUES ('2024-03-11', 9223372036854775808)");
    let table = only_table(&case.run(&["--format", "json", "run"]).expect(3).json());
    assert_eq!(
        (&table["status"], &table["rows_written"], &table["chunks"]),
        (&json!("failed"), &json!(100), &json!(1))
    );
    assert_eq!(case.target("trades").count(), 100);
    case.target("trades").has_no_other_files();
}

#[test]
fn a_dry_run_prints_the_chunks_that_the_next_run_commits() {
    let case = chunked("dry", 250);
    case.trades_over_days("trades", "2024-03-10", 1000, 3);
    let before = case.contents();
    let planned = only_table(&case.run(&["--format", "json", "run", "--dry-run"]).expect(0).json());
    assert_eq!((&planned["status"], &planned["rows_written"]), (&json!("planned"), &json!(0)));
    assert_eq!(case.contents().keys().filter(|p| !p.ends_with("state.db")).count(), before.len());
    case.run(&["run", "--dry-run"]).expect(0).says(&["would offload 1,000 rows", "[beginning, 2024-03-10T"]);
    case.pass();
    let rows = |list: Vec<Value>| -> Vec<u64> { list.iter().map(|entry| entry["rows"].as_u64().unwrap()).collect() };
    assert_eq!(rows(planned["planned"].as_array().unwrap().clone()), rows(markers(&case)));
}

#[test]
fn a_deadline_leaves_the_rest_to_the_next_pass() {
    let case = chunked("deadline", 100);
    case.trades("trades", "2024-03-10", 100);
    let tables = format!("{TRADES}chunk_rows = 100\n");
    case.config_file("late.toml", "", "pass_deadline = '0s'", &tables);
    case.run_with("late.toml", &["run"]).expect(1).says(&["pass_deadline is over"]);
    assert_eq!(case.target("trades").snapshots().len(), 0);
    assert_eq!(case.pass_one()["rows_written"], 100);
}

#[test]
fn old_metadata_files_are_deleted_as_the_table_asks() {
    let case = chunked("metadata", 1);
    case.sql("INSERT INTO trades (exchange_timestamp) SELECT toDateTime64('2024-03-10', 3, 'UTC') + number FROM numbers(120)");
    assert_eq!(case.pass_one()["chunks"], 120);
    let metadata = support::files_below(&case.target("trades").folder().join("metadata"));
    let count = |ending: &str| metadata.iter().filter(|path| path.to_string_lossy().ends_with(ending)).count();
    assert_eq!((count(".metadata.json"), count("-m0.avro")), (101, 120));
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn files_are_about_as_large_as_asked() {
    let case = Case::new("sizes");
    case.sql("CREATE TABLE events (ts DateTime64(3), side Enum8('buy' = 1, 'sell' = 2), noise String) ENGINE = MergeTree ORDER BY ts");
    case.config(
        "[[table]]\nsource = 'events'\ntarget = 'cold.events'\ncursor = 'ts'\npartition_by = ['day(ts)', 'side']\ntarget_file_size = '500kB'\n",
    );
    case.init_tables();
    // Text that does not compress below half: 200 characters of 4 bits each. Nine of ten rows are sold.
    let insert = |day: &str, rows: u64| {
        case.sql(&format!(
            "INSERT INTO events SELECT toDateTime64('{day}', 3, 'UTC') + intDiv(number, 3), if(number % 10 = 0, 'buy', 'sell'), \
             arrayStringConcat(arrayMap(i -> hex(cityHash64(number, i)), range(13))) FROM numbers({rows})"
        ));
    };
    insert("2024-03-10 00:00:00", 40_000);
    let planned = only_table(&case.run(&["--format", "json", "run", "--dry-run"]).expect(0).json());
    let first = case.pass_one();
    assert_eq!((&first["files"], &first["chunks"]), (&planned["planned"][0]["files"], &json!(1)));
    insert("2024-03-11 00:00:00", 20_000);
    case.pass();
    let target = case.target("events");
    target.holds_for_all_readers("events");
    target.has_no_other_files();
    let sizes: Vec<u64> = target.files_on_disk().iter().map(|path| path.metadata().unwrap().len()).collect();
    assert!(sizes.iter().all(|size| *size < 1_000_000), "{sizes:?}");
    let near = sizes.iter().filter(|size| **size > 200_000).count();
    assert!(near * 3 > sizes.len() * 2, "two thirds should be near 500 kB: {sizes:?}");
}

#[test]
fn tables_of_a_layer_are_read_side_by_side() {
    let case = Case::new("side_by_side");
    case.bronze("fast");
    case.trades("fast", "2024-03-10 12:00:00", 100_000);
    let slow = "settings = { max_block_size = 1000, max_threads = 1, function_sleep_max_microseconds_per_block = 0 }";
    let mut tables = String::new();
    for name in ["one", "two", "three"] {
        case.sql(&format!("CREATE VIEW {name} AS SELECT exchange_timestamp, sleepEachRow(0.002) AS slow FROM fast"));
        tables += &format!("[[table]]\nsource = '{name}'\ntarget = 'cold.{name}'\ncursor = 'exchange_timestamp'\n");
    }
    case.config_file("offload.toml", slow, "", &tables);
    case.init_tables();
    let mut pass = case.spawn("offload.toml", "", &["run"]);
    let running = format!(
        "SELECT count() FROM system.processes WHERE query_id LIKE 'k2-offload/%/select/%' AND query LIKE '%{}%'",
        case.database
    );
    wait_until("two SELECTs run at once", || {
        assert!(!pass.is_over(), "the pass ended before");
        case.sql(&running) == "2"
    });
    pass.signal("TERM");
    pass.wait().expect(143);
    wait_until("both are cancelled", || case.sql(&running) == "0");
}

#[test]
fn p8_an_unfinished_mutation_of_the_source_holds_a_chunk_back() {
    let case = Case::with_trades("mutation");
    case.trades("trades", "2024-03-10", 100);
    case.sql("ALTER TABLE trades UPDATE price = throwIf(1) WHERE 1 SETTINGS mutations_sync = 0");
    case.run(&["run"]).expect(1).says(&["1 mutations are not finished"]);
    assert!(case.target("trades").files_on_disk().is_empty());
    case.sql(&format!("KILL MUTATION WHERE database = '{}' SYNC", case.database));
    assert_eq!(case.pass_one()["rows_written"], 100);
}

/// Rows of every kind of partition value, nulls and days before 1970 too.
fn events(name: &str, partition_by: &str) -> Case {
    let case = Case::new(name);
    case.sql(
        "CREATE TABLE events (ts DateTime64(6, 'America/New_York'), at Nullable(DateTime), day Nullable(Date), exchange LowCardinality(String), \
         kind Enum8('it\\'s' = 1, 'crypto' = 2), number Nullable(Int32), big UInt64, flag Bool, id UInt32) ENGINE = MergeTree ORDER BY ts",
    );
    case.sql(
        "INSERT INTO events SELECT toDateTime64('2024-01-30 23:59:59.5', 6, 'UTC') + number * 3600 * 7, \
         if(number % 11 = 0, NULL, toDateTime('2023-12-31 22:00:00', 'UTC') + number * 1800), \
         if(number % 7 = 0, NULL, toDate('2023-12-30') + number % 4), ['binance', 'a/b=c d', 'ünï', ''][number % 4 + 1], \
         ['it\\'s', 'crypto'][number % 2 + 1], if(number % 5 = 0, NULL, number % 3 - 1), number % 3, number % 2, number FROM numbers(100)",
    );
    // Before 1970, and the last values of DateTime and Date, which mean "for ever".
    case.sql(
        "INSERT INTO events SELECT toDateTime64('1965-03-01 00:00:00.000001', 6, 'UTC'), toDateTime(4294967295, 'UTC'), toDate(65535), \
         'old', 'crypto', 1, 7, true, 999",
    );
    case.config(&format!(
        "[[table]]\nsource = 'events'\ntarget = 'cold.events'\ncursor = 'ts'\npartition_by = {partition_by}\n"
    ));
    case
}

/// Filters for PyIceberg, and the same for the source.
const FILTERS: [(&str, &str); 9] = [
    (
        "ts >= '2024-02-01T00:00:00+00:00' and ts < '2024-02-03T00:00:00+00:00'",
        "toTimeZone(ts, 'UTC') >= '2024-02-01' AND toTimeZone(ts, 'UTC') < '2024-02-03'",
    ),
    ("ts < '1970-01-01T00:00:00+00:00'", "toTimeZone(ts, 'UTC') < '1970-01-01'"),
    (
        "at >= '2024-01-01T00:00:00+00:00' and at < '2024-01-02T00:00:00+00:00'",
        "at >= toDateTime('2024-01-01', 'UTC') AND at < toDateTime('2024-01-02', 'UTC')",
    ),
    ("exchange = 'a/b=c d'", "exchange = 'a/b=c d'"),
    ("exchange = ''", "exchange = ''"),
    ("number is null", "number IS NULL"),
    ("number = -1", "number = -1"),
    ("day = '2023-12-31'", "day = '2023-12-31'"),
    ("flag = true", "flag"),
];

#[test]
fn rows_fall_into_the_partitions_that_iceberg_would_choose() {
    let specs = [
        ("day", "['day(ts)']"),
        ("year", "['year(ts)', 'number', 'flag']"),
        ("month", "['month(ts)', 'exchange', 'kind']"),
        ("hour", "['hour(ts)']"),
        ("other", "['day(at)']"),
        ("date", "['month(day)', 'big']"),
        ("identity", "['day']"),
        ("time", "['at']"),
    ];
    for (name, partition_by) in specs {
        let case = events(name, partition_by);
        case.init_tables();
        assert_eq!(case.pass_one()["rows_written"], 101, "{partition_by}");
        let target = case.target("events");
        target.holds_for_all_readers("events");
        target.has_no_other_files();
        // A reader prunes files by their partition: a row in the wrong one would not be found.
        let (filters, conditions): (Vec<_>, Vec<_>) = FILTERS.iter().copied().unzip();
        let counts: Vec<String> = conditions.iter().map(|condition| format!("countIf({condition})")).collect();
        let query = format!("SELECT [{}] FROM events SETTINGS session_timezone = 'UTC'", counts.join(", "));
        let expected: Vec<u64> = serde_json::from_str(&case.sql(&query)).unwrap();
        assert_eq!(target.count_where(&filters), expected, "{partition_by}: {filters:#?}");
    }
}

#[test]
fn partition_values_that_do_not_fit_are_refused_by_name() {
    for (column, kind, value) in
        [("exchange", "String", "concat('private', unhex('FF'))"), ("big", "UInt64", "18446744073709551615")]
    {
        let case = Case::new("unfit");
        case.sql(&format!("CREATE TABLE events (ts DateTime64(3), {column} {kind}) ENGINE = MergeTree ORDER BY ts"));
        case.sql(&format!("INSERT INTO events SELECT '2024-03-10 00:00:00', {value}"));
        case.config(&format!(
            "[[table]]\nsource = 'events'\ntarget = 'cold.events'\ncursor = 'ts'\npartition_by = ['{column}']\n"
        ));
        case.init_tables();
        case.run(&["run"]).expect(3).says(&[column, kind]).keeps_back(&["private", "18446744073709551615"]);
    }
}

#[test]
fn more_partitions_than_one_commit_takes_make_more_commits() {
    let case = Case::new("many");
    case.sql("CREATE TABLE events (ts DateTime64(3), number UInt32) ENGINE = MergeTree ORDER BY ts");
    case.sql(
        "INSERT INTO events SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, intDiv(number, 2) FROM numbers(2100)",
    );
    case.config("[[table]]\nsource = 'events'\ntarget = 'cold.events'\ncursor = 'ts'\npartition_by = ['number']\n");
    case.init_tables();
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["chunks"]), (&json!(2100), &json!(2)));
    case.target("events").holds_all("events");
}

#[test]
fn columns_that_cannot_partition_are_refused() {
    for (name, partition_by, says) in [
        ("hour_of_date", "['hour(day)']", "cannot partition"),
        ("day_of_text", "['day(exchange)']", "cannot partition"),
        ("no_column", "['nothing']", "no column"),
        ("bucket", "['bucket(4, exchange)']", "partition_by"),
        ("twice", "['day(ts)', 'days(ts)']", "twice"),
    ] {
        let case = events(name, partition_by);
        case.run(&["init-tables"]).expect(2).says(&[says, "hint: "]);
        assert!(!case.path("warehouse").exists());
    }
}
