//! What `row_group_size`, `bloom_filter` and the properties of tables make of data files, in the eyes of pyarrow, DuckDB and parquet-rs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::File;
use std::sync::Arc;

use parquet::file::properties::ReaderProperties;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};
use serde_json::{Value, json};
use support::{Case, TRADES, fails, only_table};

/// Trades of one day offloaded with further keys of the table.
fn offloaded(name: &str, keys: &str) -> Case {
    let case = Case::new(name);
    case.bronze("trades");
    case.trades("trades", "2024-03-10", 20_000);
    case.config(&format!("{TRADES}{keys}"));
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 20_000);
    case
}

fn only_file(case: &Case) -> Value {
    let files = case.target("trades").ask("parquet", json!({}));
    assert_eq!(files.as_array().unwrap().len(), 1, "{files:#}");
    files[0].clone()
}

#[test]
fn filters_of_configured_columns_alone_are_in_the_file() {
    let case = offloaded("bloom", "bloom_filter = ['symbol', 'sequence_number']\nrow_group_size = 4096\n");
    let file = only_file(&case);
    let rows: Vec<u64> = serde_json::from_value(file["rows"].clone()).unwrap();
    assert!(rows.len() >= 4 && rows.iter().all(|rows| *rows < 3 * 4096), "{rows:?}");
    let filters = file["filters"].as_array().unwrap();
    let names = |group: &Value| group.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(filters.iter().all(|group| names(group) == ["sequence_number", "symbol"]), "{filters:#?}");

    let target = case.target("trades");
    let probe = |column: &str, values: Value| -> Vec<usize> {
        serde_json::from_value(target.ask("bloom_probe", json!({"column": column, "values": values}))).unwrap()
    };
    assert_eq!(probe("symbol", json!(["BTC-USD", "DOGE-USD"])), [rows.len(), 0]);
    let [known, unknown] = probe("sequence_number", json!([7, 5007]))[..] else { panic!() };
    assert!(known > 0 && unknown == 0, "{known} {unknown}");
    indexes_are_readable(file["path"].as_str().unwrap());
    target.holds_for_all_readers("trades");
    // ClickHouse leaves out row groups by their filters.
    let path = file["path"].as_str().unwrap();
    let read = |filter: &str| case.sql(&format!("SELECT count() FROM file('{path}') WHERE {filter}"));
    assert_eq!(read("symbol = 'ETH-USD'"), case.sql("SELECT count() FROM trades WHERE symbol = 'ETH-USD'"));
    assert_eq!(read("symbol = 'DOGE-USD' OR sequence_number = 5007"), "0");

    let plain = offloaded("plain", "row_group_size = 4096\n");
    let without = only_file(&plain);
    assert!(without["filters"].as_array().unwrap().iter().all(|group| group == &json!({})), "{without:#}");
    let lengths: u64 =
        filters.iter().flat_map(|group| group.as_object().unwrap().values()).filter_map(Value::as_u64).sum();
    let more = file["size"].as_u64().unwrap() - without["size"].as_u64().unwrap();
    assert!((lengths..lengths + 50 * rows.len() as u64).contains(&more), "{more} bytes more, filters of {lengths}");
}

/// Bloom filters and page indexes are where the footer says, in the eyes of parquet-rs.
fn indexes_are_readable(path: &str) {
    let properties = ReaderProperties::builder().set_read_bloom_filter(true).build();
    let options = ReadOptionsBuilder::new().with_page_index().with_reader_properties(properties).build();
    let reader = SerializedFileReader::new_with_options(File::open(path).unwrap(), options).unwrap();
    let metadata = Arc::new(reader.metadata().clone());
    assert_eq!(metadata.column_index().unwrap().len(), metadata.num_row_groups());
    for number in 0..metadata.num_row_groups() {
        let group = reader.get_row_group(number).unwrap();
        let filter = group.get_column_bloom_filter(2).unwrap();
        assert!(filter.check(&"BTC-USD") && !filter.check(&"DOGE-USD"));
        assert!(group.get_column_bloom_filter(0).is_none());
        let offsets = &metadata.offset_index().unwrap()[number];
        let first = offsets[2].page_locations()[0].offset;
        let (start, length) = metadata.row_group(number).column(2).byte_range();
        assert!((start..start + length).contains(&u64::try_from(first).unwrap()), "{first} in {start}+{length}");
    }
}

#[test]
fn new_tables_say_how_they_are_written() {
    let case = Case::new("properties");
    case.bronze("trades");
    let keys = "compression = 'gzip(4)'\ntarget_file_size = '5MB'\nrow_group_size = 2000\nbloom_filter = ['symbol', 'kafka_offset']\n";
    case.config(&format!("{TRADES}{keys}"));
    case.init_tables();
    let properties = case.target("trades").ask("properties", json!({}));
    for (name, value) in [
        ("write.format.default", "parquet"),
        ("write.parquet.compression-codec", "gzip"),
        ("write.parquet.compression-level", "4"),
        ("write.parquet.row-group-limit", "2000"),
        ("write.parquet.bloom-filter-enabled.column.symbol", "true"),
        ("write.parquet.bloom-filter-enabled.column.kafka_offset", "true"),
        ("write.target-file-size-bytes", "5000000"),
        ("write.metadata.metrics.default", "full"),
        ("write.metadata.delete-after-commit.enabled", "true"),
        ("write.metadata.previous-versions-max", "100"),
        ("history.expire.max-snapshot-age-ms", "604800000"),
    ] {
        assert_eq!(properties[name], value, "{name} in {properties:#}");
    }
    case.trades("trades", "2024-03-10", 1000);
    case.pass();
    assert_eq!(only_file(&case)["codecs"], json!(["GZIP"]));
    // PyIceberg follows them: it writes on.
    case.target("trades").ask("append", json!({"rows": 3, "micros": 1_710_072_000_000_000_i64}));
    assert_eq!(case.target("trades").count(), 1003);
}

#[test]
fn filters_of_columns_that_cannot_have_one_are_refused() {
    let case = Case::new("nofilter");
    case.sql("CREATE TABLE trades (exchange_timestamp DateTime64(3), tags Array(String)) ENGINE = MergeTree ORDER BY exchange_timestamp");
    case.config(TRADES);
    case.init_tables();
    case.sql("INSERT INTO trades VALUES ('2024-03-10 10:00:00', ['a'])");
    for (columns, said) in
        [("'nope'", "`nope` is no column"), ("'tags'", "`tags` has type Array(String), which is nested")]
    {
        case.config(&format!("{TRADES}bloom_filter = [{columns}]\n"));
        let before = case.target("trades").state();
        fails(&only_table(&case.run(&["--format", "json", "run"]).expect(2).json()), "config", &["bloom_filter", said]);
        fails(&only_table(&case.run(&["--format", "json", "init-tables"]).expect(2).json()), "config", &[said]);
        assert_eq!(case.target("trades").state(), before);
    }
    for (key, said) in
        [("bloom_filter = ['tags', 'tags']", "`tags` stands twice"), ("row_group_size = 0", "row_group_size")]
    {
        case.config(&format!("{TRADES}{key}\n"));
        case.run(&["run"]).expect(2).says(&[said]);
    }
}

#[test]
fn bounds_of_texts_are_as_long_as_the_table_says() {
    let case = Case::with_trades("metrics");
    let target = case.target("trades");
    let long = "a symbol of more than sixteen characters";
    let insert = |day: &str| {
        case.sql(&format!("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('{day} 10:00:00', '{long}')"))
    };
    insert("2024-03-10");
    case.pass();
    let bounds = || target.ask("bounds", json!({"column": "symbol"}));
    assert_eq!(bounds(), json!([[long, long]]), "new tables say full");
    for (mode, day, lower, upper) in [
        ("truncate(4)", "2024-03-11", json!("a sy"), json!("a sz")),
        ("counts", "2024-03-12", Value::Null, Value::Null),
    ] {
        target.ask("set_properties", json!({"properties": {"write.metadata.metrics.column.symbol": mode}}));
        insert(day);
        case.pass();
        assert!(bounds().as_array().unwrap().contains(&json!([lower, upper])), "{mode}: {}", bounds());
    }
}

#[test]
fn full_metrics_bound_bytes_too() {
    let case = Case::new("bytes");
    case.sql("CREATE TABLE trades (exchange_timestamp DateTime64(3), f FixedString(2), b String) ENGINE = MergeTree ORDER BY exchange_timestamp");
    case.config(&format!("{TRADES}types = {{ b = 'binary' }}\n"));
    case.init_tables();
    case.sql(
        "INSERT INTO trades SELECT toDateTime64('2024-03-10', 3) + number, unhex(['ff01', '01ff', '7f00'][number + 1]), \
         unhex(['ff01', '01ff00', '7f'][number + 1]) FROM numbers(3)",
    );
    case.pass();
    let bounds = |column: &str| case.target("trades").ask("bounds", json!({"column": column}));
    assert_eq!((bounds("f"), bounds("b")), (json!([["01ff", "ff01"]]), json!([["01ff00", "ff01"]])));
}
