//! Late rows and merges where it is not obvious which row is which (protocol.md P21 to P24, P27): each test is a way in which a row was lost or
//! doubled once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::data::hours_ago;
use support::{Case, only_table};

/// A case with a table of these columns and their configuration.
fn case_with(name: &str, columns: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.sql(&format!("CREATE TABLE rows ({columns}"));
    configure(&case, "rows", keys);
    case.init_tables();
    case
}

fn configure(case: &Case, source: &str, keys: &str) {
    case.config(&format!("[[table]]\nsource = '{source}'\ntarget = 'cold.rows'\ncursor = 'ts'\n{keys}"));
}

/// The start of an hour, so many hours ago, and so many seconds later.
fn ago(hours: u32, seconds: u32) -> String {
    format!("{} + INTERVAL {seconds} SECOND", hours_ago(hours))
}

fn numbers(table: &Value) -> [u64; 3] {
    ["rows_written", "rows_late", "rows_changed"].map(|key| table[key].as_u64().unwrap_or(0))
}

fn reset(case: &Case, to: &[&str]) -> Value {
    case.run(&[&["--format", "json", "watermark", "reset", "--yes", "--table", "rows"], to].concat()).expect(0).json()
}

const PLAIN: &str = "ts DateTime64(3), id UInt32, name String) ENGINE = MergeTree ORDER BY ts";

/// Plain rows, a second each, of so many hours ago.
fn insert(case: &Case, hours: u32, ids: std::ops::Range<u32>) {
    let (start, count) = (ids.start, ids.end - ids.start);
    case.sql(&format!(
        "INSERT INTO rows SELECT {} + number, {start} + number, 'x' FROM numbers({count})",
        ago(hours, 0)
    ));
}

/// P22: what such a source returns now may be other rows than those that left.
#[test]
fn p22_rows_that_engines_replace_are_neither_looked_for_nor_merged_without_a_key() {
    let case = Case::new("engines");
    case.sql("CREATE TABLE base (ts DateTime64(3), id UInt32, amount UInt32) ENGINE = MergeTree ORDER BY ts");
    case.sql("CREATE MATERIALIZED VIEW sums ENGINE = SummingMergeTree ORDER BY (ts, id) AS SELECT * FROM base");
    case.sql("CREATE VIEW groups AS SELECT ts, id, sum(amount) AS amount FROM base GROUP BY ts, id");
    case.sql("CREATE TABLE coalesced (ts DateTime64(3), id UInt32, amount Nullable(UInt32)) ENGINE = CoalescingMergeTree ORDER BY (ts, id)");
    case.sql("CREATE TABLE grouped (ts DateTime64(3), id UInt32, amount UInt32) ENGINE = MergeTree ORDER BY (ts, id) TTL toDateTime(ts) + INTERVAL 30 DAY GROUP BY ts, id SET amount = sum(amount)");
    let sources = ["sums", "groups", "coalesced", "grouped"];
    let tables =
        sources.map(|source| format!("[[table]]\nsource = '{source}'\ntarget = 'cold.{source}'\ncursor = 'ts'\n"));
    case.config(&tables.join(""));
    case.init_tables();
    for table in ["base", "coalesced", "grouped"] {
        case.sql(&format!("INSERT INTO {table} SELECT {}, number % 5, 1 FROM numbers(10)", ago(4, 0)));
        case.sql(&format!("INSERT INTO {table} SELECT {}, number, 1 FROM numbers(1)", ago(3, 0)));
    }
    case.pass();
    for table in ["base", "coalesced", "grouped"] {
        case.sql(&format!("INSERT INTO {table} SELECT {}, number % 5, 1 FROM numbers(10)", ago(4, 0)));
        case.sql(&format!("INSERT INTO {table} SELECT {}, 99, 1", ago(1, 0)));
    }
    case.sql("OPTIMIZE TABLE sums FINAL");
    let document = case.pass();
    for source in sources {
        let table = support::table_of(&document, &format!("cold.{source}"));
        assert_eq!((&table["rows_written"], &table["rows_late"]), (&json!(1), &Value::Null), "{table:#}");
        let refused = case.run(&["watermark", "reset", "--table", source, "--to-earliest", "--yes"]).expect(3);
        refused.says(&["cannot be compared without a key", "set `key`"]);
    }
}

#[test]
fn p24_rows_deleted_from_the_first_commit_do_not_come_back() {
    let case = case_with("first", PLAIN, "");
    insert(&case, 4, 0..100);
    case.pass();
    case.target("rows").ask("delete", json!({"filter": "id < 50"}));
    assert_eq!(numbers(&case.alarmed_pass_one("were deleted from the target")), [0; 3]);
    // What comes there may be late, or what they deleted: it is reported, and brought where somebody asks for it.
    insert(&case, 4, 200..210);
    let table = case.alarmed_pass_one("were deleted from the target");
    assert_eq!((numbers(&table), table["left_alone"].as_array().map(Vec::len)), ([0; 3], Some(1)));
    reset(
        &case,
        &[
            "--to",
            only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json())["watermark"]
                .as_str()
                .unwrap(),
        ],
    );
    let output = case.run(&["--format", "json", "run"]).expect_warning("rows may have come late, and are not added");
    let table = only_table(&output.json());
    assert_eq!(
        (numbers(&table), table["left_alone"].as_array().map(Vec::len)),
        ([0; 3], Some(1)),
        "acknowledged, and no less true"
    );
    assert_eq!(case.target("rows").count(), 50);
    case.run(&["audit", "--repair"]).expect(0).says(&["60 rows were missing and have been added"]);
    case.target("rows").holds_for_all_readers("rows");
}

#[test]
fn an_alarm_about_deleted_rows_outlives_late_rows() {
    let case = case_with("alarm", PLAIN, "");
    insert(&case, 5, 0..100);
    case.pass();
    insert(&case, 3, 100..200);
    case.pass();
    case.target("rows").ask("delete", json!({"filter": "id >= 170"}));
    insert(&case, 5, 300..340);
    assert_eq!(case.alarmed_pass_one("30 rows were deleted from the target")["rows_late"], 40);
    case.alarmed_pass_one("30 rows were deleted from the target");
}

/// P27: the append dropped a row because of a twin that lies outside of what is merged.
#[test]
fn p27_a_duplicate_that_was_dropped_stays_dropped() {
    for to in [None, Some(2)] {
        let case = case_with(
            "twins",
            "ts DateTime64(3), id UInt32, version UInt32) ENGINE = MergeTree ORDER BY ts",
            "key = ['id']\nversion_column = 'version'\n",
        );
        case.sql(&format!("INSERT INTO rows SELECT {} + number, number, 2 FROM numbers(100)", ago(30, 0)));
        case.sql(&format!("INSERT INTO rows SELECT {} + number, number, 1 FROM numbers(100)", ago(4, 0)));
        assert_eq!(numbers(&case.pass_one())[0], 100);
        assert_eq!(numbers(&case.pass_one()), [0; 3]);
        if let Some(hours) = to {
            let time = case.sql(&format!("SELECT formatDateTime({}, '%Y-%m-%dT%H:%i:%SZ', 'UTC')", ago(5 * hours, 0)));
            reset(&case, &["--to", &time]);
        }
        // A late row makes the whole commit be compared.
        case.sql(&format!("INSERT INTO rows SELECT {}, 500, 1", ago(4, 7)));
        assert_eq!(numbers(&case.pass_one())[0], 1);
        assert_eq!(case.target("rows").count(), 101);
    }
}

/// P21: of rows that look alike but for a label, the one that is missing is added.
#[test]
fn p21_rows_that_differ_by_a_label_only_are_two_rows() {
    let case = case_with(
        "labels",
        "ts DateTime64(3), side Enum8('BUY' = 1, 'SELL' = 2), price UInt32) ENGINE = MergeTree ORDER BY (ts, side)",
        "",
    );
    case.sql(&format!("INSERT INTO rows SELECT {}, 'SELL', 7 FROM numbers(10)", ago(4, 0)));
    case.pass();
    case.sql(&format!("INSERT INTO rows SELECT {}, 'BUY', 7 FROM numbers(5)", ago(4, 0)));
    assert_eq!(numbers(&case.pass_one()), [5, 5, 0]);
    case.target("rows").holds_for_all_readers("rows");
    // Renamed, it is no other row.
    case.sql("ALTER TABLE rows MODIFY COLUMN side Enum8('bought' = 1, 'SELL' = 2) SETTINGS mutations_sync = 2");
    case.sql(&format!("INSERT INTO rows SELECT {}, 'SELL', 8", ago(4, 0)));
    assert_eq!(numbers(&case.warned_pass_one()), [1, 1, 5]);
}

#[test]
fn p21_a_renamed_label_in_the_key_is_refused_and_new_rows_leave() {
    let case = case_with(
        "label_key",
        "ts DateTime64(3), id UInt32, side Enum8('BUY' = 1, 'SELL' = 2)) ENGINE = MergeTree ORDER BY ts",
        "key = ['id', 'side']\n",
    );
    case.sql(&format!("INSERT INTO rows SELECT {} + number, number, 'BUY' FROM numbers(50)", ago(4, 0)));
    case.pass();
    case.sql("ALTER TABLE rows MODIFY COLUMN side Enum8('bought' = 1, 'SELL' = 2) SETTINGS mutations_sync = 2");
    case.sql(&format!("INSERT INTO rows SELECT {}, 99, 'SELL'", ago(1, 0)));
    reset(&case, &["--to-earliest"]);
    let output = case.run(&["--format", "json", "run"]).expect(3);
    let table = only_table(&output.json());
    support::fails(&table, "refused", &["a label of an Enum in the key"]);
    assert_eq!(table["rows_written"], 1, "what cannot be merged does not hold new rows back");
    assert_eq!(case.target("rows").count(), 51);
    let marker = case.target("rows").marker();
    assert!(marker["watermark"].as_i64() < marker["offloaded_to"].as_i64(), "{marker:#}");
    // With the old name all goes on, and once.
    case.sql("ALTER TABLE rows MODIFY COLUMN side Enum8('BUY' = 1, 'SELL' = 2) SETTINGS mutations_sync = 2");
    assert_eq!(numbers(&case.pass_one())[0], 0);
    case.target("rows").holds_for_all_readers("rows");
    let marker = case.target("rows").marker();
    assert_eq!(marker["watermark"], marker["offloaded_to"]);
}

/// A window that cannot be merged holds neither new rows back nor the late rows of others.
#[test]
fn one_refused_window_does_not_hold_others_back() {
    let case = case_with(
        "refused",
        "ts DateTime64(3), id UInt32, side Enum8('BUY' = 1, 'SELL' = 2)) ENGINE = MergeTree ORDER BY ts",
        "key = ['id', 'side']\n",
    );
    for (hours, side) in [(8, "BUY"), (4, "SELL")] {
        case.sql(&format!(
            "INSERT INTO rows SELECT {} + number, {hours}00 + number, '{side}' FROM numbers(5)",
            ago(hours, 0)
        ));
        case.pass();
    }
    case.sql("ALTER TABLE rows MODIFY COLUMN side Enum8('bought' = 1, 'SELL' = 2) SETTINGS mutations_sync = 2");
    for hours in [8, 4, 1] {
        case.sql(&format!("INSERT INTO rows SELECT {}, 9{hours}, 'SELL'", ago(hours, 0)));
    }
    let output = case.run(&["--format", "json", "run"]).expect(3).says(&["a label of an Enum in the key"]);
    assert_eq!(numbers(&only_table(&output.json())), [2, 1, 0]);
}

/// Rows that have left are no rows that wait for the TTL.
#[test]
fn a_reset_back_over_rows_that_expired_alarms_nobody() {
    let case = case_with("expired", PLAIN, "");
    insert(&case, 30, 0..10);
    insert(&case, 4, 10..20);
    case.pass();
    case.sql("ALTER TABLE rows MODIFY TTL toDateTime(ts) + INTERVAL 24 HOUR");
    case.sql("OPTIMIZE TABLE rows FINAL");
    let time = case.sql(&format!("SELECT formatDateTime({}, '%Y-%m-%dT%H:%i:%SZ', 'UTC')", ago(40, 0)));
    reset(&case, &["--to", &time]);
    assert_eq!(numbers(&case.pass_one()), [0; 3]);
    assert_eq!(case.target("rows").count(), 20);
}

/// Rows whose values change by themselves, or by a mutation, are the same rows: one late row brings itself only.
#[test]
fn rows_whose_values_changed_are_not_added_with_a_late_one() {
    let update = ["ALTER TABLE rows UPDATE note = 'other' WHERE 1 SETTINGS mutations_sync = 2"];
    let expire = [
        "ALTER TABLE rows MODIFY COLUMN note String TTL toDateTime(ts) + INTERVAL 1 SECOND",
        "OPTIMIZE TABLE rows FINAL",
    ];
    for (name, changes) in [("updated", &update[..]), ("expired", &expire)] {
        let case =
            case_with(name, "ts DateTime64(3), id UInt32, note String) ENGINE = MergeTree ORDER BY (ts, id)", "");
        case.sql(&format!("INSERT INTO rows SELECT {}, number, 'note' FROM numbers(51)", ago(4, 0)));
        case.pass();
        changes.iter().for_each(|change| {
            case.sql(change);
        });
        case.sql(&format!("INSERT INTO rows SELECT {}, 777, 'late'", ago(4, 0)));
        let written = numbers(&case.warned_pass_one());
        assert_eq!(written, [1, 1, 51], "{name}");
        assert_eq!(case.target("rows").count(), 52, "{name}");
    }
}

/// A file that others wrote anew has a column that came later, and null in it for older rows: rows are looked for with it first.
#[test]
fn p21_a_row_that_differs_by_a_later_column_is_added_beside_a_file_of_others() {
    let case = case_with("rewritten", "ts DateTime64(3), price UInt32) ENGINE = MergeTree ORDER BY ts", "");
    let insert = |values: &str| case.sql(&format!("INSERT INTO rows SELECT {}, {values}", ago(4, 0)));
    case.sql(&format!("INSERT INTO rows SELECT {}, 7", ago(5, 0)));
    case.pass();
    case.sql("ALTER TABLE rows ADD COLUMN id UInt32, MODIFY ORDER BY (ts, id)");
    insert("7, 101");
    insert("7, 103");
    case.pass();
    case.target("rows").ask("change", json!({"filter": "price == 7 and id > 100", "column": "price", "value": 7}));
    insert("7, 100");
    case.sql("OPTIMIZE TABLE rows FINAL");
    assert_eq!(numbers(&case.pass_one()), [1, 1, 0]);
    let ids = case.target("rows").icebergs("SELECT id FROM");
    let mut ids: Vec<&str> = ids.lines().filter(|id| id.len() == 3).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["100", "101", "103"]);
}

#[test]
fn a_default_that_is_another_at_each_reading_doubles_nothing() {
    let case = case_with("default", "ts DateTime64(3), id UInt32) ENGINE = MergeTree ORDER BY (ts, id)", "");
    case.sql(&format!("INSERT INTO rows SELECT {}, number FROM numbers(51)", ago(4, 0)));
    case.sql("ALTER TABLE rows ADD COLUMN seen DateTime64(6) DEFAULT now64(6)");
    case.pass();
    case.sql(&format!("INSERT INTO rows (ts, id) SELECT {}, 777", ago(4, 0)));
    assert_eq!(numbers(&case.warned_pass_one())[..2], [1, 1]);
    assert_eq!(case.target("rows").count(), 52);
}

/// A pass that dies, or runs out of time, after it has appended: what came late below the old watermark is not forgotten.
#[test]
fn late_rows_outlive_a_pass_that_dies_behind_them() {
    let case = case_with("dies", PLAIN, "late_lookback = '2h'\n");
    insert(&case, 30, 0..100);
    case.pass();
    insert(&case, 6, 100..200);
    case.pass();
    insert(&case, 6, 900..901);
    insert(&case, 1, 200..300);
    case.run_failing("committed=kill", &["run"]);
    case.run_failing("committed=kill@2", &["run"]);
    case.pass();
    case.target("rows").holds_for_all_readers("rows");
}

#[test]
fn how_far_passes_looked_is_not_forgotten_by_late_rows() {
    let case = case_with("checked", PLAIN, "");
    insert(&case, 4, 0..100);
    let before = case.pass_one()["checked_to"].clone();
    insert(&case, 4, 200..210);
    let table = case.pass_one();
    assert_eq!(numbers(&table), [10, 10, 0]);
    assert!(table["checked_to"].as_str() >= before.as_str(), "{table:#}");
    assert_eq!((&table["low"], &table["high"]), (&Value::Null, &Value::Null), "no window was moved");
}

#[test]
fn until_holds_for_late_rows_too() {
    let case = case_with("until", PLAIN, "");
    insert(&case, 4, 0..100);
    case.pass();
    insert(&case, 4, 200..210);
    let table = only_table(&case.run(&["--format", "json", "run", "--until", "2024-01-01"]).expect(0).json());
    assert_eq!(numbers(&table)[0], 0);
    assert_eq!(numbers(&case.pass_one())[0], 10);
}

#[test]
fn p25_a_reset_back_and_forward_leaves_skipped_what_never_left() {
    let case = case_with("forth", PLAIN, "");
    case.sql(
        "INSERT INTO rows SELECT toDateTime64('2024-03-10 08:00:00', 3, 'UTC') + number, number, 'a' FROM numbers(10)",
    );
    case.pass();
    case.sql("INSERT INTO rows SELECT toDateTime64('2024-03-10 10:00:00', 3, 'UTC') + number, number, 'skipped' FROM numbers(10)");
    assert_eq!(reset(&case, &["--to", "2024-03-10T12:00:00Z"])["rows_skipped"], 10);
    let back = reset(&case, &["--to", "2024-03-10T09:00:00Z"]);
    assert_eq!((&back["rows_skipped"], &back["rows_compared"]), (&json!(0), &json!(10)));
    let again = reset(&case, &["--to", "2024-03-10T08:00:00Z"]);
    assert_eq!(again["rows_compared"], 20, "all that passes will compare");
    reset(&case, &["--to", "2024-03-10T12:00:00Z"]);
    assert_eq!(case.pass_one()["status"], "nothing");
    case.run(&["audit"]).expect(0).says(&["skipped"]);
    // Going back and letting passes run brings them.
    reset(&case, &["--to-earliest"]);
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.run(&["audit", "--checksum"]).expect(0);
    case.target("rows").holds_for_all_readers("rows");
}

/// P13: a foreign commit between reading and committing is no marker of ours, and yet may bring the very row.
#[test]
fn p13_a_row_that_somebody_else_brings_meanwhile_is_not_added_again() {
    let case = case_with("meanwhile", PLAIN, "");
    case.sql("INSERT INTO rows SELECT toDateTime64('2024-03-10 12:00:00', 3, 'UTC') + number, 100 + number, 'a' FROM numbers(50)");
    case.pass();
    case.sql("INSERT INTO rows SELECT toDateTime64('2024-03-10 12:00:10', 3, 'UTC'), 0, 'foreign 0'");
    reset(&case, &["--to-earliest"]);
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    case.target("rows").ask("append", json!({"rows": 1, "micros": 1_710_072_010_000_000_u64}));
    gate.open();
    pass.wait().expect(0);
    case.target("rows").holds_for_all_readers("rows");
}

/// `--dry-run` says what would be compared, and does not call it offloaded.
#[test]
fn a_dry_run_tells_what_would_be_compared() {
    let case = case_with("dry", PLAIN, "");
    insert(&case, 4, 0..100);
    case.pass();
    insert(&case, 4, 200..210);
    insert(&case, 1, 300..305);
    case.run(&["run", "--dry-run"]).expect(0).says(&["would offload 5 rows", "compare 110 rows that have left"]);
    let table = case.pass_one();
    assert_eq!((numbers(&table), &table["rows_read"]), ([15, 10, 0], &json!(115)));
    case.run(&["run"]).expect(0);
}

/// A thousand partitions take no more open files than one.
#[test]
fn many_partitions_are_merged_with_few_open_files() {
    let case = case_with(
        "partitions",
        "ts DateTime64(3), id UInt32) ENGINE = MergeTree ORDER BY ts",
        "partition_by = ['id']\n",
    );
    case.sql("INSERT INTO rows SELECT toDateTime64('2024-03-10 08:00:00', 3, 'UTC'), number % 300 FROM numbers(600)");
    case.pass();
    case.sql("INSERT INTO rows SELECT toDateTime64('2024-03-10 08:00:00', 3, 'UTC'), number * 10 FROM numbers(20)");
    reset(&case, &["--to-earliest"]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$@\"", "sh"]);
    let run = case.command(&["--format", "json", "run"]);
    command.arg(run.get_program()).args(run.get_args()).envs(run.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let table = only_table(&support::finish(&mut command).expect(0).json());
    assert_eq!(table["rows_written"], 20);
    case.target("rows").holds_for_all_readers("rows");
}
