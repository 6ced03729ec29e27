//! Every type of the type table, odd names, and the bounds by which readers leave files out.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use serde_json::{Value, json};
use support::{Case, random, seed};

/// Type, and values that reach its ends, as SQL.
const KINDS: [(&str, &[&str]); 39] = [
    ("Bool", &["true", "false"]),
    ("Int8", &["-128", "127"]),
    ("Int16", &["-32768", "32767"]),
    ("Int32", &["-2147483648", "2147483647"]),
    ("Int64", &["-9223372036854775808", "9223372036854775807"]),
    ("UInt8", &["0", "255"]),
    ("UInt16", &["0", "65535"]),
    ("UInt32", &["0", "4294967295"]),
    ("UInt64", &["0", "9223372036854775807"]),
    ("Float32", &["nan", "inf", "-inf", "-0.0", "1.17549435e-38", "0.1"]),
    ("Float64", &["nan", "inf", "-inf", "-0.0", "2.2250738585072014e-308", "0.1"]),
    ("Date", &["'1970-01-01'", "'2149-06-06'"]),
    ("Date32", &["'1900-01-01'", "'1969-12-31'", "'2299-12-31'"]),
    ("DateTime", &["toDateTime(0, 'UTC')", "toDateTime(4294967295, 'UTC')"]),
    ("DateTime('America/New_York')", &["toDateTime(1710053999, 'UTC')", "toDateTime(1710054000, 'UTC')"]),
    (
        "DateTime64(0)",
        &["toDateTime64('1900-01-01 00:00:00', 0, 'UTC')", "toDateTime64('2299-12-31 23:59:59', 0, 'UTC')"],
    ),
    ("DateTime64(1, 'Asia/Tokyo')", &["toDateTime64('1969-12-31 23:59:59.9', 1, 'UTC')"]),
    ("DateTime64(2, 'America/New_York')", &["toDateTime64('2024-11-03 05:59:59.99', 2, 'UTC')"]),
    ("DateTime64(3)", &["toDateTime64('1900-01-01 00:00:00.001', 3, 'UTC')"]),
    ("DateTime64(4, 'UTC')", &["toDateTime64('2024-02-29 12:00:00.0001', 4, 'UTC')"]),
    ("DateTime64(5, 'Asia/Tokyo')", &["toDateTime64('2024-02-29 12:00:00.00001', 5, 'UTC')"]),
    (
        "DateTime64(6, 'America/New_York')",
        &[
            "toDateTime64('1969-12-31 23:59:59.999999', 6, 'UTC')",
            "toDateTime64('2299-12-31 23:59:59.999999', 6, 'UTC')",
        ],
    ),
    ("Decimal(1, 0)", &["-9", "9"]),
    ("Decimal(9, 2)", &["'-9999999.99'", "'9999999.99'", "'0.01'"]),
    ("Decimal(18, 8)", &["'-9999999999.99999999'", "'9999999999.99999999'", "'0.00000001'"]),
    ("Decimal(19, 0)", &["'-9999999999999999999'", "'256'"]),
    (
        "Decimal(38, 8)",
        &["'-999999999999999999999999999999.99999999'", "'999999999999999999999999999999.99999999'", "'-0.00000001'"],
    ),
    ("String", &["''", "'ünï 🦀 \\t\\n\\0'", "repeat('long ', 1000)", "repeat('ü', 524288)"]),
    ("LowCardinality(String)", &["'BTC'", "''", "'ETH'"]),
    ("Enum8('it\\'s' = -1, 'b, c' = 2)", &["'it\\'s'", "'b, c'"]),
    ("Enum16('low' = -30000, 'ü' = 30000)", &["'low'", "'ü'"]),
    (
        "UUID",
        &[
            "'00000000-0000-0000-0000-000000000000'",
            "'0188aaaa-bbbb-7ccc-8ddd-eeeeffff0001'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        ],
    ),
    ("FixedString(5)", &["'abc'", "'\\0\\0\\0\\0\\0'", "'12345'"]),
    ("IPv4", &["'0.0.0.0'", "'255.255.255.255'"]),
    ("IPv6", &["'::'", "'2001:db8::ff'"]),
    ("SimpleAggregateFunction(max, Decimal(38, 8))", &["'-1.5'", "'0.00000001'"]),
    ("SimpleAggregateFunction(anyLast, String)", &["'ü'"]),
    ("FLOAT", &["1.5"]),
    ("DECIMAL(10, 3)", &["'-1.005'"]),
];
const ROWS: usize = 6;

fn nullable(kind: &str) -> String {
    if let Some((function, inner)) =
        kind.strip_suffix(')').and_then(|kind| kind.split_once(", ")).filter(|_| kind.starts_with("Simple"))
    {
        return format!("{function}, Nullable({inner}))");
    }
    match kind.strip_prefix("LowCardinality(").and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => format!("LowCardinality(Nullable({inner}))"),
        None => format!("Nullable({kind})"),
    }
}

/// A line of tests/types.md: a table of its own with edge values of one type.
struct Line {
    kind: String,
    iceberg: String,
    asked_for: &'static str,
    values: Vec<&'static str>,
    /// What the target is compared with: the table, or a view that makes of it what was asked for.
    source: String,
}

/// Every type, with and without null, in a table of its own; the outcome is the table that README links to.
#[test]
fn every_type_arrives_bit_for_bit() {
    let case = Case::new("types");
    let mut lines = Vec::new();
    let mut config = String::new();
    let all = KINDS.iter().map(|(kind, values)| (*kind, "", *values));
    let all = all.chain(NESTED.iter().map(|(kind, values)| (*kind, "", *values)));
    let all = all.chain(OVERRIDES.iter().map(|(kind, wanted, values)| (*kind, *wanted, *values)));
    for (number, (kind, asked_for, values)) in all.enumerate() {
        let (table, flat) = (format!("t{number}"), !is_nested(kind));
        let maybe = if flat { nullable(kind) } else { kind.to_owned() };
        case.sql(&format!(
            "CREATE TABLE {table} (ts DateTime64(3, 'UTC'), some {kind}, maybe {maybe}, never {maybe}) ENGINE = MergeTree ORDER BY ts \
             SETTINGS flatten_nested = 0"
        ));
        let rows = (0..ROWS).map(|row| {
            let value = values[row % values.len()];
            let (maybe, never) =
                if flat { (if row % 2 == 0 { "NULL" } else { value }, "NULL") } else { (value, value) };
            format!("('2024-03-10 00:00:00.00{row}', {value}, {maybe}, {never})")
        });
        case.sql(&format!("INSERT INTO {table} VALUES {}", rows.collect::<Vec<_>>().join(", ")));
        config += &format!("[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'ts'\n");
        let mut source = table.clone();
        if !asked_for.is_empty() {
            config += &format!("types = {{ some = '{asked_for}', maybe = '{asked_for}', never = '{asked_for}' }}\n");
            source = format!("{table}_as_text");
            let text = |name: &str, kind: &str| format!("CAST({name}, '{kind}') AS {name}");
            let texts = [text("some", "String"), text("maybe", "Nullable(String)"), text("never", "Nullable(String)")];
            case.sql(&format!("CREATE VIEW {source} AS SELECT ts, {} FROM (SELECT * FROM {table})", texts.join(", ")));
        }
        lines.push(Line { kind: kind.to_owned(), iceberg: String::new(), asked_for, values: values.to_vec(), source });
    }
    case.config(&config);
    case.init_tables();
    case.pass();
    let readers = ["pyiceberg", "duckdb", "clickhouse"];
    let pairs: Vec<_> =
        lines.iter().enumerate().map(|(number, line)| json!([line.source, format!("t{number}")])).collect();
    let arguments = json!({"url": case.url, "database": case.database, "pairs": pairs, "readers": readers});
    let results = case.target("t0").ask("compare_all", arguments);
    for (line, result) in lines.iter_mut().zip(results.as_array().unwrap()) {
        line.iceberg = result["type"].as_str().unwrap().to_owned();
        for difference in result["readers"].as_array().unwrap() {
            assert_eq!(difference["equal"], true, "{} {}: {difference:#}", line.kind, line.asked_for);
        }
    }
    audit_tells_the_values_apart(&case, &lines);
    let printed = print_matrix(&lines);
    println!("{printed}");
    let file = support::server::repository().join("tests/types.md");
    if std::env::var("K2_TEST_WRITE").is_ok() {
        std::fs::write(&file, &printed).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), printed, "write tests/types.md anew with K2_TEST_WRITE=1");
}

/// Invariant 10: rows are equal for `audit --checksum`, and no longer once a value of the source is another; in the nullable column once it is null.
fn audit_tells_the_values_apart(case: &Case, lines: &[Line]) {
    let audit = |code: i32| {
        let document = case.run(&["--format", "json", "audit", "--checksum"]).expect(code).json();
        let differing = |table: &Value| -> Vec<u64> {
            let buckets = table["buckets"].as_array().unwrap();
            assert_eq!((buckets.len(), &table["error"]), (1, &Value::Null), "{table:#}");
            ["missing", "extra", "changed"].map(|key| buckets[0][key].as_u64().unwrap()).to_vec()
        };
        document["tables"].as_array().unwrap().iter().map(differing).collect::<Vec<_>>()
    };
    assert_eq!(audit(0), vec![vec![0, 0, 0]; lines.len()]);
    let mut expected = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let alter = |column: &str, value: &str, row: usize| {
            let at = format!("ts = toDateTime64('2024-03-10 00:00:00.00{row}', 3, 'UTC')");
            case.sql(&format!(
                "ALTER TABLE t{number} UPDATE {column} = {value} WHERE {at} SETTINGS mutations_sync = 2"
            ));
        };
        let mut differing = 0;
        if let [_, other, ..] = line.values[..] {
            alter("some", other, 0);
            differing += 1;
        }
        if !is_nested(&line.kind) {
            alter("maybe", "NULL", 1);
            differing += 1;
        }
        expected.push(vec![differing, differing, 0]);
    }
    let kinds: Vec<_> = lines.iter().map(|line| (&line.kind, line.asked_for)).collect();
    let found: Vec<_> = kinds.iter().zip(audit(3)).collect();
    assert_eq!(found, kinds.iter().zip(expected).collect::<Vec<_>>());
}

/// Whether there is no Nullable of a type.
fn is_nested(kind: &str) -> bool {
    ["Array(", "Map(", "Tuple(", "Nested(", "JSON", "Variant(", "Dynamic"].iter().any(|name| kind.starts_with(name))
}

fn print_matrix(lines: &[Line]) -> String {
    let mut text = "# Every type, read back\n\nPrinted by `tests/types.rs`: per line a ClickHouse table with these edge values, in a column, in a nullable column and in one of \
                    nulls only, offloaded and compared value by value with what PyIceberg, DuckDB and ClickHouse read.\n\n\
                    | ClickHouse | `types` | Iceberg | edge values | PyIceberg | DuckDB | ClickHouse |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for line in lines {
        let values = line.values.join(" · ").replace('|', "\\|");
        let asked_for = if line.asked_for.is_empty() { String::new() } else { format!("`{}`", line.asked_for) };
        let code = |text: &str| if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") };
        let (kind, iceberg) = (code(&line.kind), line.iceberg.replace('|', "\\|"));
        text += &format!("| {kind} | {asked_for} | {iceberg} | {} | equal | equal | equal |\n", code(&values));
    }
    text
}

#[test]
fn every_type_arrives_by_query_too() {
    let case = Case::new("by_query");
    let columns: Vec<String> = KINDS
        .iter()
        .enumerate()
        .map(|(n, (kind, _))| format!("some_{n} {kind}, maybe_{n} {}", nullable(kind)))
        .collect();
    case.sql(&format!(
        "CREATE TABLE kinds (ts DateTime64(3, 'UTC'), {}) ENGINE = MergeTree ORDER BY ts",
        columns.join(", ")
    ));
    for row in 0..ROWS {
        let value = |values: &[&'static str]| values[row % values.len()];
        let maybe = |values: &[&'static str]| if row % 2 == 0 { "NULL" } else { values[row % values.len()] };
        let values: Vec<String> =
            KINDS.iter().map(|(_, values)| format!("{}, {}", value(values), maybe(values))).collect();
        case.sql(&format!("INSERT INTO kinds VALUES ('2024-03-10 0{row}:00:00', {})", values.join(", ")));
    }
    arrives_by_query(&case, "kinds");
}

/// The rows of a query are decoded and encoded on their way.
fn arrives_by_query(case: &Case, table: &str) {
    let query = format!("SELECT * FROM {table} WHERE ts >= {{low}} AND ts < {{high}}");
    case.config(&format!(
        "[[table]]\nname = 'by_query'\nquery = '{query}'\ntarget = 'cold.by_query'\ncursor = 'ts'\npartition_by = ['hour(ts)']\n"
    ));
    case.init_tables();
    case.pass();
    case.target("by_query").holds_for_all_readers(table);
    case.run(&["audit", "--checksum"]).expect(0).says(&[" equal"]).keeps_back(&["not compared", "missing"]);
}

/// Nested types, and values of them as SQL.
const NESTED: [(&str, &[&str]); 16] = [
    ("Array(String)", &["[]", "['a', '', 'ünï 🦀']"]),
    ("Array(Nullable(String))", &["[NULL, 'a', NULL]", "[]"]),
    ("Array(UInt64)", &["[0, 9223372036854775807]", "[]"]),
    ("Array(LowCardinality(String))", &["['x', 'x', 'y']"]),
    (
        "Array(Array(Nullable(DateTime64(3, 'UTC'))))",
        &["[[], ['2024-03-10 01:02:03.004', NULL], ['1969-12-31 23:59:59.999']]"],
    ),
    ("Array(Decimal(18, 8))", &["['-1.5', '0.00000001']", "[]"]),
    ("Map(String, String)", &["map()", "map('k', 'v', '', 'w')"]),
    ("Map(LowCardinality(String), Array(UInt32))", &["map('k', [0, 4294967295], 'none', [])"]),
    ("Map(UInt32, Map(String, Nullable(Float64)))", &["map(7, map('a', 0.1, 'b', NULL))", "map()"]),
    (
        "Tuple(a Int8, `b c` Nullable(String), d Tuple(e UInt32, f Date))",
        &["(1, NULL, (2, '2024-03-10'))", "(-1, 'x', (0, '1970-01-01'))"],
    ),
    ("Tuple(UUID, Bool)", &["('0188aaaa-bbbb-7ccc-8ddd-eeeeffff0001', true)"]),
    (
        "Array(Tuple(name String, tags Array(Enum8('it\\'s' = 1, 'b' = 2))))",
        &["[('n', ['it\\'s', 'b']), ('m', [])]", "[]"],
    ),
    ("Nested(price Decimal(38, 8), size Float32)", &["[('0.00000001', 0.1), ('-3', 2)]", "[]"]),
    ("JSON", &["'{\"a\": {\"b\": [1, 2]}, \"c\": \"ü\"}'", "'{}'"]),
    ("Variant(Int32, String)", &["-5::Int32", "'text'", "NULL"]),
    ("Dynamic", &["7::UInt8", "'text'", "NULL", "[1, 2]::Array(UInt8)"]),
];

#[test]
fn nested_types_arrive_as_they_are_at_any_depth() {
    let case = Case::new("nested");
    let columns: Vec<String> =
        NESTED.iter().enumerate().map(|(number, (kind, _))| format!("nested_{number} {kind}")).collect();
    case.sql(&format!(
        "CREATE TABLE nested (ts DateTime64(3, 'UTC'), {}) ENGINE = MergeTree ORDER BY ts SETTINGS flatten_nested = 0",
        columns.join(", ")
    ));
    for row in 0..4 {
        let values: Vec<&str> = NESTED.iter().map(|(_, values)| values[row % values.len()]).collect();
        case.sql(&format!("INSERT INTO nested VALUES ('2024-03-10 00:00:00.00{row}', {})", values.join(", ")));
    }
    case.config("[[table]]\nsource = 'nested'\ntarget = 'cold.nested'\ncursor = 'ts'\n");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 4);
    case.target("nested").holds_for_all_readers("nested");
    assert_eq!(case.pass_one()["status"], "nothing");
    arrives_by_query(&case, "nested");
}

/// ClickHouse keeps a key that comes twice, Iceberg's specification does not forbid it, and so both entries arrive.
#[test]
fn a_map_with_a_key_twice_keeps_both_entries() {
    let case = Case::new("twice");
    case.sql("CREATE TABLE twice (ts DateTime64(3, 'UTC'), pairs Map(String, Int32)) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO twice VALUES ('2024-03-10 00:00:00', map('k', 1, 'k', 2))");
    case.config("[[table]]\nsource = 'twice'\ntarget = 'cold.twice'\ncursor = 'ts'\n");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 1);
    case.target("twice").holds_for_all_readers("twice");
}

/// Types and values that nobody thought of, made by the server from a seed.
#[test]
fn random_nested_types_arrive_as_they_are() {
    let first = seed();
    println!("K2_TEST_SEED={first}");
    let mut state = first;
    let case = Case::new("random");
    for table in 0..4 {
        let columns: Vec<String> =
            (0..6).map(|number| format!("random_{number} {}", random_type(&mut state, 3))).collect();
        let columns = columns.join(", ");
        case.sql(&format!(
            "CREATE TABLE random_{table} (ts DateTime64(3, 'UTC'), {columns}) ENGINE = MergeTree ORDER BY ts"
        ));
        case.sql(&format!(
            "INSERT INTO random_{table} SELECT toDateTime64('2024-03-10', 3, 'UTC') + rowNumberInAllBlocks(), * \
             FROM generateRandom({}, {}, 12, 4) LIMIT 30",
            format_args!("'{}'", columns.replace('\\', "\\\\").replace('\'', "\\'")),
            random(&mut state) % 1_000_000
        ));
    }
    let tables = (0..4)
        .map(|table| format!("[[table]]\nsource = 'random_{table}'\ntarget = 'cold.random_{table}'\ncursor = 'ts'\n"));
    case.config(&tables.collect::<String>());
    case.init_tables();
    case.pass();
    for table in 0..4 {
        case.target(&format!("random_{table}")).holds_for_all_readers(&format!("random_{table}"));
    }
}

/// Floats and times are left to the tests of edge values: random bits of them are no values that every printer prints alike.
fn random_type(state: &mut u64, depth: usize) -> String {
    const LEAVES: [&str; 16] = [
        "Int8",
        "Int16",
        "Int32",
        "Int64",
        "UInt8",
        "UInt16",
        "UInt32",
        "Bool",
        "String",
        "UUID",
        "Date",
        "LowCardinality(String)",
        "Decimal(9, 2)",
        "Decimal(18, 8)",
        "Decimal(38, 10)",
        "Enum8('it\\'s' = -1, 'b, (c' = 2)",
    ];
    let choice = random(state) % 10;
    let mut inner = || random_type(state, depth - 1);
    match choice {
        0 | 1 if depth > 0 => format!("Array({})", inner()),
        2 if depth > 0 => format!("Map(String, {})", inner()),
        3 if depth > 0 => format!("Tuple(first {}, `second one` {})", inner(), inner()),
        4 | 5 => format!("Nullable({})", LEAVES[usize::try_from(random(state) % 11).unwrap()]),
        _ => LEAVES[usize::try_from(random(state) % 16).unwrap()].to_owned(),
    }
}

#[test]
fn values_that_do_not_fit_are_refused_by_column_at_any_depth() {
    for (kind, value) in [
        ("Array(UInt64)", "[1, 18446744073709551615]"),
        ("Array(Array(String))", "[['fine'], [concat('private', unhex('FF'))]]"),
        ("Map(String, String)", "map('k', concat('private', unhex('FF')))"),
        ("Map(String, UInt8)", "map(concat('private', unhex('FF')), 1)"),
        ("Tuple(a Int8, b Tuple(c Nullable(UInt64)))", "(1, tuple(18446744073709551615))"),
    ] {
        let case = Case::new("deep");
        case.sql(&format!("CREATE TABLE deep (ts DateTime64(3), odd_one {kind}) ENGINE = MergeTree ORDER BY ts"));
        case.sql(&format!("INSERT INTO deep SELECT '2024-03-10 00:00:00', {value}"));
        case.config("[[table]]\nsource = 'deep'\ntarget = 'cold.deep'\ncursor = 'ts'\n");
        case.init_tables();
        case.run(&["run"]).expect(3).says(&["odd_one", kind]).keeps_back(&["private", "18446744073709551615"]);
        assert!(case.target("deep").files_on_disk().is_empty(), "{kind}");
    }
}

/// What the type table refuses, or would keep otherwise, with what `types` asks for.
const OVERRIDES: [(&str, &str, &[&str]); 8] = [
    ("UInt64", "decimal(20,0)", &["0", "18446744073709551615"]),
    ("Int128", "decimal(38,0)", &["toInt128('-99999999999999999999999999999999999999')", "1"]),
    ("UInt256", "decimal(38, 0)", &["toUInt256('99999999999999999999999999999999999999')", "0"]),
    (
        "Int256",
        "string",
        &["toInt256('-57896044618658097711785492504343953926634992332820282019728792003956564819968')"],
    ),
    ("UInt128", "string", &["toUInt128('340282366920938463463374607431768211455')"]),
    ("Decimal(76, 2)", "string", &["'-123456789012345678901234567890123456789012345678.05'", "'0.5'"]),
    ("DateTime64(3, 'UTC')", "string", &["'2024-03-10 01:02:03.004'"]),
    ("Int32", "string", &["-5", "5"]),
];

#[test]
fn bytes_and_nanoseconds_are_kept_as_asked() {
    let case = Case::new("bytes");
    case.sql("CREATE TABLE raw (ts DateTime64(3, 'UTC'), bytes String, nanos DateTime64(9, 'UTC')) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO raw SELECT '2024-03-10 00:00:00', unhex('00FF80'), toDateTime64('2024-03-10 01:02:03.123456789', 9, 'UTC')");
    case.config("[[table]]\nsource = 'raw'\ntarget = 'cold.raw'\ncursor = 'ts'\ntypes = { bytes = 'binary', nanos = 'timestamptz' }\n");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 1);
    let target = case.target("raw");
    let kinds: Vec<_> = target.ask("schema", json!({})).as_array().unwrap().iter().map(|f| f["type"].clone()).collect();
    assert_eq!(kinds, ["timestamptz", "binary", "timestamptz"]);
    case.sql("CREATE VIEW as_kept AS SELECT ts, hex(bytes) AS bytes, CAST(nanos, 'DateTime64(6, \\'UTC\\')') AS nanos FROM (SELECT * FROM raw)");
    target.holds(&["pyiceberg", "duckdb"], "as_kept", "1");
    assert_eq!(target.icebergs("SELECT hex(bytes) FROM"), "00FF80");
}

#[test]
fn types_that_make_no_sense_are_told() {
    let case = Case::new("nonsense");
    case.sql("CREATE TABLE odd (ts DateTime64(3), n Int32, wide Int128) ENGINE = MergeTree ORDER BY ts");
    let config = |types: &str| {
        case.config(&format!("[[table]]\nsource = 'odd'\ntarget = 'cold.odd'\ncursor = 'ts'\ntypes = {{ {types} }}\n"));
    };
    config("wide = 'decimal(38,0)', n = 'uuid'");
    case.run(&["init-tables"]).expect(2).says(&["`n` (Int32) cannot become uuid", "decimal(20,0)"]);
    config("wide = 'decimal(38,0)', nothing = 'string'");
    case.run(&["init-tables"]).expect(2).says(&["`nothing` is no column"]);
    config("n = 'string'");
    case.run(&["init-tables"]).expect(3).says(&["`wide` has type Int128", "decimal(38,0)"]);
    config("wide = 'decimal(38,0)'");
    case.init_tables();
    case.sql("INSERT INTO odd VALUES ('2024-03-10 00:00:00', 1, toInt128('100000000000000000000000000000000000000'))");
    case.run(&["run"]).expect(3).says(&["`wide` (Int128)"]).keeps_back(&["100000000000000000000"]);
}

#[test]
fn targets_have_the_types_that_the_contract_names() {
    let case = Case::with_trades("contract");
    let fields = case.target("trades").ask("schema", json!({}));
    let kinds: Vec<_> = fields.as_array().unwrap().iter().map(|f| f["type"].as_str().unwrap()).collect();
    let time = "timestamptz";
    let decimal = "decimal(18, 8)";
    assert_eq!(kinds, [time, "long", "string", decimal, decimal, decimal, time, "long", "int", time]);
    assert!(fields.as_array().unwrap().iter().all(|f| f["required"] == false), "{fields:#}");
}

#[test]
fn filters_outside_the_bounds_plan_no_file() {
    let case = Case::new("bounds");
    case.sql(
        "CREATE TABLE bounded (ts DateTime64(3), seconds DateTime, n UInt64, i Int16, small Decimal(9, 2), price Decimal(18, 8), \
         wide Decimal(38, 8), name String, side Enum8('BUY' = 1, 'SELL' = 2), day Date, ratio Float64, never Nullable(Int32)) \
         ENGINE = MergeTree ORDER BY ts",
    );
    case.sql(
        "INSERT INTO bounded SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, toDateTime('2024-03-10', 'UTC') + number, \
         1000 + number, -toInt16(number), -number, -1000 - number, number - 1000, concat('name ', leftPad(toString(number), 4, '0')), \
         if(number % 2, 'BUY', 'SELL'), toDate('2024-03-10') + number % 2, number / 1000, NULL FROM numbers(1000)",
    );
    case.config("[[table]]\nsource = 'bounded'\ntarget = 'cold.bounded'\ncursor = 'ts'\n");
    case.init_tables();
    case.pass();
    let inside = [
        "ts >= '2024-03-10T00:16:39+00:00'",
        "seconds <= '2024-03-10T00:00:00+00:00'",
        "n >= 1999",
        "n <= 1000",
        "i <= -999",
        "small <= -999",
        "price <= -1999",
        "price >= -1000",
        "wide >= -1",
        "wide <= -1000",
        "name >= 'name 0999'",
        "name <= 'name 0000'",
        "side = 'BUY'",
        "day >= '2024-03-11'",
        "ratio >= 0.999",
        "never is null",
    ];
    let outside = [
        "ts >= '2024-03-10T00:16:39.001+00:00'",
        "seconds < '2024-03-10T00:00:00+00:00'",
        "n > 1999",
        "n < 1000",
        "i < -999",
        "small < -999",
        "price < -1999",
        "price > -1000",
        "wide > -1",
        "wide < -1000",
        "name > 'name 0999'",
        "name < 'name 0000'",
        "side = 'AAA'",
        "day > '2024-03-11'",
        "ratio > 0.999",
        "never is not null",
    ];
    let target = case.target("bounded");
    let planned = |filters: &[&str]| {
        let counts = target.ask("plan_files", json!({"filters": filters}));
        let counts = counts.as_array().unwrap().clone();
        filters.iter().zip(counts).map(|(filter, count)| format!("{filter}: {count}")).collect::<Vec<_>>()
    };
    assert_eq!(planned(&inside), inside.map(|filter| format!("{filter}: 1")));
    assert_eq!(planned(&outside), outside.map(|filter| format!("{filter}: 0")));
    target.holds_for_all_readers("bounded");
}

#[test]
fn bounds_of_long_texts_and_of_nan_never_hide_a_row() {
    let case = Case::new("long_texts");
    case.sql("CREATE TABLE texts (ts DateTime64(3), text String, ratio Float64) ENGINE = MergeTree ORDER BY ts");
    case.sql(
        "INSERT INTO texts VALUES ('2024-03-10 00:00:00', repeat('ü', 3000), nan), ('2024-03-10 00:00:01', repeat('\\u{10FFFF}', 20), 5), \
         ('2024-03-10 00:00:02', 'abcdefghijklmnopqrstuvwxyz', -1)"
            .replace("\\u{10FFFF}", "\u{10FFFF}")
            .as_str(),
    );
    case.config("[[table]]\nsource = 'texts'\ntarget = 'cold.texts'\ncursor = 'ts'\n");
    case.init_tables();
    case.pass();
    let target = case.target("texts");
    target.holds_for_all_readers("texts");
    let filters = [
        "text = 'abcdefghijklmnopqrstuvwxyz'",
        "text > 'abcdefghijklmnop'",
        "text >= '\u{10FFFF}'",
        "ratio = 5.0",
        "ratio is nan",
    ];
    assert_eq!(target.count_where(&filters), [1, 3, 1, 1, 1]);
}

/// They would be those of elements, and readers would take them for those of rows.
#[test]
fn bounds_below_lists_and_maps_are_left_out() {
    let case = Case::new("nested_bounds");
    case.sql("CREATE TABLE lists (ts DateTime64(3), numbers Array(Int64), names Map(String, Int64), pair Tuple(n Int64)) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO lists SELECT toDateTime64('2024-03-10', 3, 'UTC') + number, [number, 7], map('a', number), tuple(number) FROM numbers(10)");
    case.config("[[table]]\nsource = 'lists'\ntarget = 'cold.lists'\ncursor = 'ts'\n");
    case.init_tables();
    case.pass();
    let bounds = |column: &str| case.target("lists").ask("bounds", json!({"column": column}));
    for column in ["numbers.element", "names.key", "names.value"] {
        assert_eq!(bounds(column), json!([[null, null]]), "{column}");
    }
    assert_eq!(bounds("pair.n"), json!([["0000000000000000", "0900000000000000"]]));
}

#[test]
fn names_that_differ_by_case_only_are_refused_at_any_depth() {
    for columns in ["Name String, name String", "pair Tuple(a Int8, A Int8)", "list Array(Tuple(b Int8, B Int8))"] {
        let case = Case::new("case");
        case.sql(&format!("CREATE TABLE names (ts DateTime64(3), {columns}) ENGINE = MergeTree ORDER BY ts"));
        case.config("[[table]]\nsource = 'names'\ntarget = 'cold.names'\ncursor = 'ts'\n");
        case.run(&["init-tables"]).expect(3).says(&["differ by case only", "rename one in a view"]);
    }
}

#[test]
fn odd_names_of_tables_and_columns_arrive_as_they_are() {
    let case = Case::new("names");
    let source = "tra`des 'of' \"K2\".v1?;\\ %20 ü🦀";
    let cursor = "at `the` time? 'ü'";
    let columns = [
        format!("{} DateTime64(3)", quoted(cursor)),
        format!("{} Decimal(18, 8)", quoted("pr.ice")),
        format!("{} String", quoted("say \"what\"; -- \\ {x:y} ?")),
        format!("{} UInt64", quoted("🦀 SELECT")),
        format!("{} LowCardinality(String)", quoted("tab\there")),
    ];
    case.sql(&format!("CREATE TABLE {} ({}) ENGINE = MergeTree ORDER BY tuple()", quoted(source), columns.join(", ")));
    case.sql(&format!(
        "INSERT INTO {} SELECT toDateTime64('2024-03-09 23:59:58', 3, 'UTC') + intDiv(number, 2), number, toString(number), number, 'x' FROM numbers(10)",
        quoted(source)
    ));
    let text = |text: &str| serde_json::to_string(text).unwrap();
    case.config(&format!(
        "[[table]]\nsource = {}\ntarget = 'cold.odd'\ncursor = {}\npartition_by = [{}]\n",
        text(source),
        text(cursor),
        text(&format!("day({cursor})"))
    ));
    case.init_tables();
    let table = case.pass_one();
    assert_eq!((&table["rows_written"], &table["files"], &table["source"]), (&json!(10), &json!(2), &json!(source)));
    case.target("odd").holds_for_all_readers(source);
    assert_eq!(case.pass_one()["status"], "nothing");
    let chosen = case.run(&["--format", "json", "run", "--table", source]).expect(0).json();
    assert_eq!(chosen["tables"].as_array().unwrap().len(), 1);
}

#[test]
fn a_column_that_is_named_like_the_partition_is_no_obstacle() {
    let case = Case::new("clash");
    case.sql("CREATE TABLE trades (ts DateTime64(3), ts_day Date) ENGINE = MergeTree ORDER BY ts");
    case.sql("INSERT INTO trades VALUES ('2024-03-10 00:00:00', '2024-03-11')");
    case.config("[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\npartition_by = ['day(ts)']\n");
    case.init_tables();
    assert_eq!(case.pass_one()["rows_written"], 1);
    case.target("trades").holds_for_all_readers("trades");
}

#[test]
fn odd_names_of_targets_and_folders_lead_to_readable_tables() {
    let case = Case::new("targets");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 00:00:00", 20);
    // What a URI, a pattern or SQL would take for something else.
    let names = ["tra des 'ü' 100%", "what? #1 *", "{\"a\tb\"} `c` %41; [d]"];
    let config = |name: &&str| {
        let target = serde_json::to_string(&format!("cold.h#t.{name}")).unwrap();
        format!("[[table]]\nsource = 'trades'\ntarget = {target}\ncursor = 'exchange_timestamp'\n")
    };
    let warehouse = "[catalog]\nwarehouse = \"ware 'house' 100% ü\"\n";
    case.config_file("offload.toml", "", warehouse, &names.iter().map(config).collect::<String>());
    case.init_tables();
    case.pass();
    for name in names {
        let mut target = case.target(name);
        target.namespace = "cold.h#t".to_owned();
        target.holds_for_all_readers("trades");
        target.has_no_other_files();
        case.run(&["run", "--table", &format!("cold.h#t.{name}")]).expect(0).says(&["nothing new"]);
    }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}
