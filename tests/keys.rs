//! Keys, versions, FINAL, rejected rows and sorted files.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::{Case, only_table};

const TABLE: &str =
    "[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\npartition_by = ['day(ts)', 'exchange']\n";

/// 300 orders of two exchanges over two days in `orders`, each with version 1.
fn with_orders(name: &str, engine: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.sql(&format!(
        "CREATE TABLE orders (ts DateTime64(3, 'UTC'), exchange LowCardinality(String), id String, price Decimal(18, 2), \
         side Enum8('SELL' = 1, 'BUY' = 2), version Nullable(UInt32), note Nullable(String)) ENGINE = {engine}"
    ));
    insert(&case, "1", "300");
    case.config(&format!("{TABLE}{keys}"));
    case.init_tables();
    case
}

const MERGE_TREE: &str = "MergeTree ORDER BY (exchange, id)";

/// Inserts orders whose ids are the numbers below `rows`.
fn insert(case: &Case, version: &str, rows: &str) {
    case.sql(&format!(
        "INSERT INTO orders SELECT toDateTime64('2024-03-10 12:00:00', 3, 'UTC') + number * 300, \
         if(number % 3 = 0, 'kraken', 'binance'), toString(number), number - 150, if(number % 2, 'BUY', 'SELL'), {version}, \
         if(number % 5 = 0, NULL, concat('note ', toString(cityHash64(number) % 97))) FROM numbers({rows})"
    ));
}

fn rows(table: &Value) -> [u64; 4] {
    ["rows_read", "rows_written", "rows_duplicate", "rows_rejected"].map(|key| table[key].as_u64().unwrap())
}

fn identifiers(case: &Case) -> Value {
    case.target("orders").ask("identifier_fields", json!({}))
}

#[test]
fn duplicates_are_dropped_by_key_and_counted() {
    let case = with_orders("dropped", MERGE_TREE, "key = ['exchange', 'id']\n");
    // A batch that was consumed again, and one that came thrice.
    insert(&case, "1", "100");
    insert(&case, "1", "10");
    let table = case.pass_one();
    assert_eq!((rows(&table), &table["files"]), ([410, 300, 110, 0], &json!(4)));
    case.sql("CREATE VIEW wanted AS SELECT DISTINCT * FROM (SELECT * FROM orders)");
    case.target("orders").holds_for_all_readers("wanted");
    assert_eq!(identifiers(&case), json!(["exchange", "id"]));
    assert_eq!(case.target("orders").marker()["source_rows"], 410, "raw rows, so that late ones are noticed");
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn without_a_key_nothing_is_dropped() {
    let case = with_orders("kept", MERGE_TREE, "");
    insert(&case, "1", "100");
    assert_eq!(rows(&case.pass_one()), [400, 400, 0, 0]);
    case.target("orders").holds_for_all_readers("orders");
    assert_eq!(identifiers(&case), json!([]));
}

#[test]
fn the_newest_version_of_a_key_leaves() {
    let case = with_orders(
        "version",
        MERGE_TREE,
        "key = ['exchange', 'id']\nversion_column = 'version'\nsort_by = ['price desc']\n",
    );
    insert(&case, "if(number % 2, 3, NULL)", "100");
    insert(&case, "2", "50");
    assert_eq!(rows(&case.pass_one()), [450, 300, 150, 0]);
    case.sql("CREATE VIEW wanted AS SELECT * FROM (SELECT * FROM orders ORDER BY version DESC NULLS LAST LIMIT 1 BY exchange, id)");
    case.target("orders").holds_for_all_readers("wanted");
    assert_eq!(case.target("orders").icebergs("SELECT sum(version) FROM"), (300 + 2 * 50 + 25).to_string());
}

#[test]
fn an_engine_that_replaces_rows_is_read_with_final() {
    let engine = "ReplacingMergeTree(version) ORDER BY (exchange, id) SETTINGS allow_nullable_key = 1";
    let engine = engine.replace("(version)", "");
    let case = with_orders("final", &engine, "final = true\nreject_where = 'version = 7'\n");
    case.sql("SYSTEM STOP MERGES orders");
    insert(&case, "7", "20");
    insert(&case, "2", "10");
    let table = case.pass_one();
    // 20 ids came twice and 10 of them thrice; of those the last is version 2 for the first ten and 7, which is rejected, for the others.
    assert_eq!(rows(&table), [330, 290, 30, 10]);
    case.sql("CREATE VIEW wanted AS SELECT * FROM (SELECT * FROM orders FINAL) WHERE version != 7");
    case.target("orders").holds_for_all_readers("wanted");

    let plain = with_orders("no_final", MERGE_TREE, "final = true\n");
    plain.run(&["run"]).expect(2).says(&["FINAL"]);
}

#[test]
fn a_null_in_a_key_is_refused() {
    let case = with_orders("null_key", MERGE_TREE, "key = ['id', 'version']\n");
    assert_eq!(rows(&case.pass_one()), [300, 300, 0, 0]);
    case.sql("INSERT INTO orders SELECT ts + INTERVAL 9 DAY, * EXCEPT (ts, version), if(id = '7', NULL, version) FROM (SELECT * FROM orders)".replace("* EXCEPT (ts, version), if(id = '7', NULL, version)", "exchange, id, price, side, if(id = '7', NULL, version), note").as_str());
    case.run(&["run"]).expect(3).says(&["column `version`", "a key must not be null"]);
    case.target("orders").has_no_other_files();
    assert_eq!(case.target("orders").count(), 300);
}

#[test]
fn rejected_rows_are_counted_and_stay() {
    let case = with_orders(
        "rejected",
        MERGE_TREE,
        "key = ['exchange', 'id']\nreject_where = \"price < 0 or note = 'none' -- odd\"\n",
    );
    insert(&case, "1", "100");
    assert_eq!(rows(&case.pass_one()), [400, 150, 0, 250]);
    case.sql("CREATE VIEW wanted AS SELECT * FROM (SELECT * FROM orders) WHERE price >= 0");
    case.target("orders").holds_for_all_readers("wanted");
    // A chunk of which nothing leaves is done with, once.
    case.sql("INSERT INTO orders (ts, price) VALUES ('2024-04-01 00:00:00', -1)");
    let table = case.pass_one();
    assert_eq!((rows(&table), &table["chunks"], &table["files"]), ([1, 0, 0, 1], &json!(1), &json!(0)));
    assert_eq!(table["watermark"], "2024-04-01T00:00:00.001Z");
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn rows_that_come_and_go_while_keyed_rows_are_read_are_noticed() {
    let case = with_orders("moving", MERGE_TREE, "key = ['exchange', 'id']\n");
    insert(&case, "1", "100");
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("counted={}", gate.pause()), &["--format", "json", "run"]);
    gate.wait_for(&mut pass);
    // Another duplicate, a new row, and a row that goes: the chunk is planned again.
    insert(&case, "1", "20");
    insert(&case, "1", "301");
    case.sql("DELETE FROM orders WHERE id = '5'");
    gate.open();
    let table = only_table(&pass.wait().expect(0).json());
    case.sql("CREATE VIEW wanted AS SELECT DISTINCT * FROM (SELECT * FROM orders)");
    assert_eq!(table["rows_written"], 300, "301 ids less one");
    case.target("orders").holds_for_all_readers("wanted");
}

#[test]
fn files_are_sorted_as_their_table_says() {
    let case = with_orders("sorted", MERGE_TREE, "sort_by = ['side', 'note desc', 'price']\n");
    case.pass();
    let target = case.target("orders");
    target.holds_for_all_readers("orders");
    // Iceberg's terms: labels by their text, nulls first where values ascend and last where they descend.
    assert_eq!(
        target.ask("sort_order", json!({})),
        json!(["side ASC NULLS FIRST", "note DESC NULLS LAST", "price ASC NULLS FIRST"])
    );
    for file in target.ask("sorted_files", json!({})).as_array().unwrap() {
        assert_eq!((&file["is_sorted"], &file["sort_order_id"]), (&json!(true), &json!(1)), "{file:#}");
    }
}

/// However large the file becomes: a key is looked for within one SELECT.
#[test]
fn p27_the_rows_of_a_partition_leave_by_one_select() {
    let case = Case::new("one_select");
    case.sql("CREATE TABLE orders (ts DateTime64(3), id UInt32, noise String) ENGINE = MergeTree ORDER BY ts");
    case.config("[[table]]\nsource = 'orders'\ntarget = 'cold.orders'\ncursor = 'ts'\nkey = ['id']\ntarget_file_size = '100kB'\n");
    case.init_tables();
    case.sql(
        "INSERT INTO orders SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, number % 10000 AS id, \
         arrayStringConcat(arrayMap(i -> hex(cityHash64(id, i)), range(13))) FROM numbers(20000)",
    );
    let table = case.pass_one();
    assert_eq!((rows(&table), &table["files"]), ([20_000, 10_000, 10_000, 0], &json!(1)));
}

#[test]
fn keys_and_orders_that_cannot_be_are_told() {
    let case = Case::new("bad_keys");
    case.sql("CREATE TABLE orders (ts DateTime, exchange String, ratio Float64, tags Array(String), n UInt8) ENGINE = MergeTree ORDER BY ts");
    for (keys, code, said) in [
        ("key = ['nothing']", 2, "key column `nothing`"),
        ("key = ['ratio']", 2, "cannot name a row"),
        ("key = ['tags']", 2, "cannot name a row"),
        ("key = ['n', 'n']", 2, "`n` stands twice"),
        ("version_column = 'n'", 2, "needs a key"),
        ("key = ['n']\nversion_column = 'nothing'", 2, "version_column `nothing`"),
        ("sort_by = ['nothing']", 2, "sort_by column `nothing`"),
        ("sort_by = ['ratio']", 2, "cannot sort"),
        ("sort_by = ['tags']", 2, "cannot sort"),
        ("sort_by = ['n', 'n desc']", 2, "`n` stands twice"),
        ("reject_where = ' '", 2, "is empty"),
        ("reject_where = 'nothing > 5'", 2, "nothing"),
        ("reject_where = 'n >'", 2, "Syntax error"),
        ("reject_where = 'count() > 5'", 2, "ggregate function"),
        ("reject_where = 'row_number() OVER (ORDER BY n) > 5'", 2, "indow function"),
        ("reject_where = \"arrayJoin(tags) = 'x'\"", 2, "arrayJoin"),
        ("reject_where = '(now() AS ts) > ts'", 2, "name for an expression"),
        ("columns = ['ts', 'nothing']", 2, "`nothing` is no column"),
        ("columns = ['n']", 2, "cursor `ts`"),
        ("columns = ['ts']\nexclude = ['n']", 2, "either columns or exclude"),
        ("exclude = ['n']\nkey = ['n']", 2, "key column `n`"),
    ] {
        case.config(&format!("{}{keys}\n", TABLE.replace("partition_by = ['day(ts)', 'exchange']\n", "")));
        case.run(&["init-tables"]).expect(code).says(&[said]);
    }
    assert!(!case.path("warehouse").exists());
}

#[test]
fn only_the_columns_that_are_asked_for_leave() {
    for (keys, left) in [
        ("columns = ['ts', 'price', 'exchange']", "ts, exchange, price"),
        ("exclude = ['note', 'side', 'version', 'id']", "ts, exchange, price"),
    ] {
        let case = with_orders("columns", MERGE_TREE, keys);
        assert_eq!(rows(&case.pass_one()), [300, 300, 0, 0]);
        case.sql(&format!("CREATE VIEW wanted AS SELECT {left} FROM (SELECT * FROM orders)"));
        case.target("orders").holds_for_all_readers("wanted");
    }
}

/// protocol.md P27: within one SELECT a key leaves once; what is left twice by two of them is no error, what is missing or more is.
#[test]
fn audit_counts_the_rows_that_leave() {
    let case = with_orders("audit", MERGE_TREE, "key = ['exchange', 'id']\nreject_where = 'price = 0'\n");
    insert(&case, "1", "100");
    let until = |time: &str| case.run(&["--format", "json", "run", "--until", time]).expect(0);
    until("2024-03-10T13:30:00Z");
    let mismatches = |code: i32| {
        let document = case.run(&["--format", "json", "audit"]).expect(code).json();
        let buckets = only_table(&document)["buckets"].as_array().unwrap().clone();
        buckets
            .into_iter()
            .filter(|bucket| bucket["verdict"] != "equal")
            .map(|b| b["verdict"].clone())
            .collect::<Vec<_>>()
    };
    assert!(mismatches(0).is_empty());
    // A duplicate in the same hour, but in another window.
    case.sql("INSERT INTO orders SELECT '2024-03-10 13:45:00', exchange, id, price, side, version, note FROM orders WHERE ts = '2024-03-10 13:10:00' LIMIT 1");
    case.pass();
    assert!(mismatches(0).is_empty());
    assert_eq!(case.target("orders").count(), 300);
    case.sql("INSERT INTO orders SELECT * REPLACE ('late' AS id) FROM orders WHERE ts = '2024-03-10 14:10:00' LIMIT 1");
    assert_eq!(mismatches(0), ["pending"]);
}
