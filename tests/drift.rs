//! Sources whose columns change: what the target follows, what reads as null, and what is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::{Case, Output, fails, only_table, table_of};

const RUN: [&str; 3] = ["--format", "json", "run"];
const CONFIG: &str = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\n";

/// A source of `ts` and these columns, and its target.
fn source(name: &str, columns: &str) -> Case {
    let case = Case::new(name);
    case.sql(&format!("CREATE TABLE trades (ts DateTime64(3), {columns}) ENGINE = MergeTree ORDER BY ts"));
    case.config(CONFIG);
    case.init_tables();
    case
}

/// Inserts ten rows of a day of March; `values` are expressions over `number`.
fn insert(case: &Case, day: u32, columns: &str, values: &str) {
    case.sql(&format!(
        "INSERT INTO trades (ts, {columns}) SELECT toDateTime64('2024-03-{day:02} 00:00:00', 3, 'UTC') + number, {values} FROM numbers(10)"
    ));
}

fn alter(case: &Case, what: &str) {
    case.sql(&format!("ALTER TABLE trades {what} SETTINGS mutations_sync = 2"));
}

/// What the target should hold, as SQL over the source; `old` is true of the rows before the day.
fn expect(case: &Case, day: u32, columns: &str) {
    case.sql(&format!(
        "CREATE OR REPLACE VIEW expected AS WITH ts < toDateTime64('2024-03-{day:02} 00:00:00', 3, 'UTC') AS old \
         SELECT {columns} FROM trades"
    ));
}

/// Names and types of the target's columns.
fn fields(case: &Case) -> Vec<String> {
    let fields = case.target("trades").ask("schema", json!({}));
    let field = |field: &Value| {
        assert_eq!(field["required"], false);
        format!("{} {}", field["name"].as_str().unwrap(), field["type"].as_str().unwrap())
    };
    fields.as_array().unwrap().iter().map(field).collect()
}

/// A pass over the only table that must move ten rows and change the schema in so many ways.
fn pass_of_ten(case: &Case, schema_changes: usize) -> Value {
    let table = case.pass_one();
    assert_eq!(table["rows_written"], 10, "{table:#}");
    assert_eq!(table["schema_changes"].as_array().map_or(0, Vec::len), schema_changes, "{table:#}");
    table
}

/// Warnings of a pass that must succeed.
fn warnings(output: &Output) -> Vec<&str> {
    assert_eq!(output.code, Some(0), "{}", output.all());
    output.stderr.lines().filter(|line| line.contains(" WARN ")).collect()
}

/// A pass must refuse the only table, change nothing, and say `texts`.
fn refuses(case: &Case, texts: &[&str]) {
    let target = case.target("trades");
    let before = target.state();
    fails(&only_table(&case.run(&RUN).expect(3).json()), "refused", texts);
    assert_eq!(target.state(), before, "a refused pass changed the target");
    let told = only_table(&case.run(&["--format", "json", "init-tables"]).expect(3).json());
    fails(&told, "refused", texts);
    assert!(told["drift"].to_string().contains("refused: "), "{told:#}");
    assert_eq!(target.state(), before, "init-tables changed the target");
}

#[test]
fn a_new_column_comes_with_the_first_rows_that_have_it() {
    let case = source("added", "n Int32");
    let target = case.target("trades");
    insert(&case, 10, "n", "number");
    pass_of_ten(&case, 0);
    alter(&case, "ADD COLUMN venue LowCardinality(Nullable(String)), ADD COLUMN fee Nullable(Decimal(18, 8)) FIRST");
    let before = target.state();
    assert_eq!(case.pass_one()["status"], "nothing");
    let told = only_table(&case.init_tables());
    assert_eq!((&told["status"], told["drift"].as_array().unwrap().len()), (&json!("exists"), 2), "{told:#}");
    assert_eq!(target.state(), before, "without rows nothing changes");

    insert(&case, 11, "n, venue, fee", "number, if(number = 3, NULL, 'kraken'), number / 7");
    let table = pass_of_ten(&case, 2);
    assert!(table["schema_changes"].to_string().contains("`venue` is added as string"), "{table:#}");
    insert(&case, 12, "n, venue", "number, 'binance'");
    pass_of_ten(&case, 0);
    assert_eq!(fields(&case), ["ts timestamptz", "n int", "fee decimal(18, 8)", "venue string"]);
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    assert_eq!(target.count_where(&["venue is null", "venue = 'kraken'", "fee > 1"]), [11, 9, 2]);
    assert_eq!(
        target.ask("time_travel", json!({})),
        json!([
            {"fields": ["ts", "n"], "rows": 10},
            {"fields": ["ts", "n", "fee", "venue"], "rows": 20},
            {"fields": ["ts", "n", "fee", "venue"], "rows": 30},
        ])
    );
}

#[test]
fn new_fields_of_nested_types_and_new_nested_columns_arrive() {
    let case = source("added_nested", "n Int32, s Tuple(a Int8), l Array(Tuple(x Int64))");
    let target = case.target("trades");
    insert(&case, 10, "n, s, l", "number, tuple(number), [tuple(number), tuple(7)]");
    pass_of_ten(&case, 0);
    alter(
        &case,
        "MODIFY COLUMN s Tuple(a Int8, b Nullable(String)), MODIFY COLUMN l Array(Tuple(x Int64, w Nullable(UUID)))",
    );
    insert(&case, 11, "n, s, l", "number, tuple(number, toString(number)), [(number, generateUUIDv4()), (7, NULL)]");
    pass_of_ten(&case, 2);
    target.holds_for_all_readers("trades");

    alter(&case, "ADD COLUMN m Map(String, Array(Tuple(z Nullable(UInt32), t DateTime)))");
    insert(
        &case,
        12,
        "n, s, l, m",
        "number, tuple(number, NULL), [(8, NULL)], map('k', [(number, '2024-03-10 00:00:00'), (NULL, 5)])",
    );
    let table = pass_of_ten(&case, 1);
    let told = "`m` is added as map<string, list<struct<z: long, t: timestamptz>>>";
    assert!(table["schema_changes"].to_string().contains(told), "{table:#}");
    assert_eq!(target.ask("time_travel", json!({}))[2], json!({"fields": ["ts", "n", "s", "l", "m"], "rows": 30}));
    // A map that an old file does not have is null; ClickHouse has empty ones.
    target.holds(&["clickhouse"], "trades", "1");
    target.ask("delete", json!({"filter": "ts < '2024-03-12T00:00:00+00:00'"}));
    target.holds(&["pyiceberg", "duckdb", "clickhouse"], "trades", "ts >= '2024-03-12 00:00:00'");
}

#[test]
fn a_long_window_brings_the_schema_with_its_first_chunk() {
    let case = source("chunks", "n Int32");
    case.config(&format!("{CONFIG}chunk_rows = 10\n"));
    insert(&case, 10, "n", "number");
    pass_of_ten(&case, 0);
    alter(&case, "ADD COLUMN venue Nullable(String)");
    for day in 11..15 {
        insert(&case, day, "n, venue", "number, toString(number)");
    }
    let table = case.pass_one();
    assert_eq!((&table["chunks"], &table["rows_written"]), (&json!(4), &json!(40)), "{table:#}");
    let target = case.target("trades");
    target.holds_for_all_readers("trades");
    let travel = target.ask("time_travel", json!({}));
    let widths: Vec<usize> = travel.as_array().unwrap().iter().map(|s| s["fields"].as_array().unwrap().len()).collect();
    assert_eq!(widths, [2, 3, 3, 3, 3]);
}

#[test]
fn columns_that_change_while_a_pass_is_under_way_lose_no_value() {
    for (point, change, schema_changes) in [
        ("counted", "ADD COLUMN venue Nullable(String) DEFAULT toString(n)", 1),
        ("counted", "DROP COLUMN fee", 0),
        ("counted", "MODIFY COLUMN n Int64", 1),
        ("written", "ADD COLUMN venue Nullable(String) DEFAULT toString(n)", 1),
    ] {
        let case = source("between", "n Int32, fee Nullable(Int64)");
        case.config(&format!("{CONFIG}chunk_rows = 10\n"));
        for day in 10..13 {
            insert(&case, day, "n", "number");
        }
        let gate = case.gate("gate");
        let mut pass = case.spawn("offload.toml", &format!("{point}={}", gate.pause()), &RUN);
        gate.wait_for(&mut pass);
        alter(&case, change);
        gate.open();
        let output = pass.wait();
        assert!(change.starts_with("DROP") || warnings(&output).is_empty(), "{}", output.all());
        let table = only_table(&output.json());
        assert_eq!((&table["rows_written"], &table["chunks"]), (&json!(30), &json!(3)), "{change}: {table:#}");
        assert_eq!(table["schema_changes"].as_array().map_or(0, Vec::len), schema_changes, "{change}: {table:#}");
        // What was read before the column came does not have it.
        let columns = match (point, change.split(' ').next().unwrap()) {
            ("written", _) => "ts, n, fee, if(old, NULL, trades.venue) AS venue",
            (_, "DROP") => "ts, n, CAST(NULL, 'Nullable(Int64)') AS fee",
            _ => "*",
        };
        expect(&case, 11, columns);
        let target = case.target("trades");
        target.holds_for_all_readers("expected");
        target.has_no_other_files();
    }
}

const NARROW: &str = "i Int32, f Float32, d Decimal(9, 2), e Decimal(18, 4), w Decimal(20, 2), l Array(UInt16), \
     s Tuple(x Int32, y Nullable(Float32)), m Map(String, Decimal(10, 2)), p Int32";
const WIDE: &str = "i Int64, f Float64, d Decimal(18, 2), e Decimal(38, 4), w Decimal(30, 2), l Array(UInt32), \
     s Tuple(x Int64, y Nullable(Float64)), m Map(String, Decimal(18, 2)), p Int64";
const COLUMNS: &str = "i, f, d, e, w, l, s, m, p";
const VALUES: &str = "number - 5, number / 4 - 1, number / 3 - 1, -number / 7, number / 9 - 1, [number, 7], (number - 5, if(number % 2 = 0, NULL, number / 8)), \
     map('k', number / 3 - 1), number % 2";

/// ALTERs that give every column another type.
fn modified(columns: &str) -> String {
    let mut types: Vec<String> = Vec::new();
    for part in columns.split(", ") {
        match types.last_mut() {
            Some(last) if last.matches('(').count() > last.matches(')').count() => *last += &format!(", {part}"),
            _ => types.push(format!("MODIFY COLUMN {part}")),
        }
    }
    types.join(", ")
}

/// A partitioned case of two commits; from so many on, manifests become one.
fn wide_or_narrow(name: &str, columns: &str, merged_manifests: &str) -> Case {
    let case = Case::new(name);
    case.sql(&format!("CREATE TABLE trades (ts DateTime64(3), {columns}) ENGINE = MergeTree ORDER BY ts"));
    case.config(&format!("{CONFIG}partition_by = ['p']\n"));
    case.init_tables();
    let properties = json!({"commit.manifest.min-count-to-merge": merged_manifests});
    case.target("trades").ask("set_properties", json!({"properties": properties}));
    insert(&case, 10, COLUMNS, VALUES);
    pass_of_ten(&case, 0);
    insert(&case, 11, COLUMNS, VALUES);
    pass_of_ten(&case, 0);
    case
}

#[test]
fn types_are_widened_at_any_depth() {
    are_widened(&wide_or_narrow("widened", NARROW, "16"));
}

#[test]
fn types_are_widened_where_manifests_of_old_and_new_ones_become_one() {
    let case = wide_or_narrow("merged", NARROW, "2");
    are_widened(&case);
    assert!(case.target("trades").ask("manifests", json!({})).as_array().unwrap().len() < 4);
}

fn are_widened(case: &Case) {
    let target = case.target("trades");
    alter(case, &modified(WIDE));
    insert(case, 12, COLUMNS, &VALUES.replace("number - 5, number / 4", "5000000000 + number, 0.1 + number / 4"));
    pass_of_ten(case, 10);
    let all = fields(case);
    let flat: Vec<&str> = all[1..6].iter().chain(&all[9..]).map(String::as_str).collect();
    let expected = ["i long", "f double", "d decimal(18, 2)", "e decimal(38, 4)", "w decimal(30, 2)", "p long"];
    assert_eq!(flat, expected);
    target.holds_for_all_readers("trades");
    insert(case, 13, COLUMNS, VALUES);
    pass_of_ten(case, 0);
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    // Bounds of old files are of the narrow types.
    let filters = ["i < 0", "i > 4000000000", "f < 0", "d < 0", "e < -1", "p = 1"];
    let counts: Vec<u64> =
        filters.map(|filter| case.sql(&format!("SELECT count() FROM trades WHERE {filter}")).parse().unwrap()).into();
    assert_eq!(target.count_where(&filters), counts);
    for (filter, count) in filters.iter().zip(counts) {
        assert_eq!(target.icebergs_where(filter), count, "{filter}");
    }
    assert_eq!(target.ask("time_travel", json!({})).as_array().unwrap().len(), 4);
}

/// ClickHouse 26.7 does not read old files of these: "Bad get: has Decimal32, requested Decimal128".
#[test]
fn nested_decimals_are_widened_over_the_borders_of_their_physical_types() {
    let case = source("decimals", "l Array(Decimal(9, 2)), m Map(String, Decimal(18, 4))");
    for (day, changes) in [(10, 0), (11, 2), (12, 0)] {
        if changes > 0 {
            alter(&case, "MODIFY COLUMN l Array(Decimal(18, 2)), MODIFY COLUMN m Map(String, Decimal(38, 4))");
        }
        insert(&case, day, "l, m", "[number / 3, -number], map('k', -number / 7)");
        pass_of_ten(&case, changes);
    }
    case.target("trades").holds(&["pyiceberg", "duckdb"], "trades", "1");
}

#[test]
fn a_source_that_is_narrower_than_its_target_is_cast() {
    let case = wide_or_narrow("narrower", WIDE, "2");
    alter(&case, &modified(NARROW));
    insert(&case, 12, COLUMNS, VALUES);
    pass_of_ten(&case, 0);
    assert_eq!(fields(&case)[1..4], ["i long", "f double", "d decimal(18, 2)"]);
    case.sql("CREATE VIEW expected AS SELECT * REPLACE (toFloat64(trades.f) AS f) FROM trades");
    case.target("trades").holds_for_all_readers("expected");
}

#[test]
fn a_column_that_goes_reads_as_null_and_is_told_once() {
    let case = source("dropped", "n Int32, fee Nullable(Int64), s Tuple(x Int8, y Nullable(Int8))");
    let target = case.target("trades");
    insert(&case, 10, "n, fee, s", "number, number, (1, 2)");
    pass_of_ten(&case, 0);
    alter(&case, "DROP COLUMN fee, MODIFY COLUMN s Tuple(x Int8)");
    for (day, warned) in [(11, 1), (12, 0)] {
        insert(&case, day, "n, s", "number, tuple(1)");
        let output = case.run(&RUN);
        assert_eq!(warnings(&output).len(), warned, "{}", output.all());
        assert!(warned == 0 || warnings(&output)[0].contains("`fee`") && warnings(&output)[0].contains("`s.y`"));
        assert_eq!(only_table(&output.json())["rows_written"], 10);
    }
    expect(
        &case,
        11,
        "ts, n, if(old, intDiv(toUnixTimestamp64Milli(ts) % 86400000, 1000), NULL)::Nullable(Int64) AS fee, \
         CAST((s.x, if(old, 2, NULL)), 'Tuple(x Int8, y Nullable(Int8))') AS s",
    );
    target.holds_for_all_readers("expected");
    assert!(only_table(&case.init_tables())["drift"].to_string().contains("`fee`"));
    std::fs::remove_file(case.path("state.db")).unwrap();
    assert_eq!(warnings(&case.run(&RUN)).len(), 1, "nobody remembers");
    assert_eq!(warnings(&case.run(&RUN)).len(), 0);
    // It comes back as what it was.
    alter(&case, "ADD COLUMN fee Nullable(Int64), MODIFY COLUMN s Tuple(x Int8, y Nullable(Int8))");
    insert(&case, 13, "n, fee, s", "number, 5, (1, 3)");
    pass_of_ten(&case, 0);
    assert_eq!(target.count_where(&["fee is null", "fee = 5"]), [20, 11]);
}

#[test]
fn a_rename_is_a_drop_and_an_add_unless_the_target_is_renamed_first() {
    let case = source("renamed", "n Int32, fee Nullable(Int64)");
    let target = case.target("trades");
    insert(&case, 10, "n, fee", "number, 7");
    pass_of_ten(&case, 0);
    alter(&case, "RENAME COLUMN fee TO cost");
    let told = only_table(&case.init_tables())["drift"].to_string();
    assert!(told.contains("rename") && told.contains("`fee` went and `cost` came"), "{told}");
    insert(&case, 11, "n, cost", "number, 8");
    let output = case.run(&RUN);
    assert!(warnings(&output).len() == 1 && warnings(&output)[0].contains("rename"), "{}", output.all());
    assert_eq!(case.pass_one()["status"], "nothing", "told once");
    expect(&case, 11, "ts, n, if(old, trades.cost, NULL) AS fee, if(old, NULL, trades.cost) AS cost");
    target.holds_for_all_readers("expected");

    alter(&case, "RENAME COLUMN n TO number");
    target.ask("alter", json!({"rename": {"n": "number"}}));
    insert(&case, 12, "number, cost", "number, 8");
    pass_of_ten(&case, 0);
    assert_eq!(fields(&case), ["ts timestamptz", "number int", "fee long", "cost long"]);
    expect(&case, 11, "ts, number, if(old, trades.cost, NULL) AS fee, if(old, NULL, trades.cost) AS cost");
    target.holds_for_all_readers("expected");
}

#[test]
fn what_does_not_fit_is_refused_and_other_tables_go_on() {
    let case = source("refused", "n Int32, fee Nullable(Decimal(18, 8)), venue String");
    insert(&case, 10, "n", "number");
    pass_of_ten(&case, 0);
    insert(&case, 11, "n", "number");
    for (change, back, texts) in [
        ("MODIFY COLUMN n String", "MODIFY COLUMN n Int32", ["`n`", "string", "int"]),
        (
            "MODIFY COLUMN fee Nullable(Decimal(18, 4))",
            "MODIFY COLUMN fee Nullable(Decimal(18, 8))",
            ["`fee`", "(18, 4)", "(18, 8)"],
        ),
        (
            "MODIFY COLUMN n Float64, ADD COLUMN new Int8",
            "MODIFY COLUMN n Int32, DROP COLUMN new",
            ["`n`", "double", "int"],
        ),
        (
            "ADD COLUMN l Array(Int8), RENAME COLUMN venue TO Venue",
            "DROP COLUMN l, RENAME COLUMN Venue TO venue",
            ["`Venue`", "`venue`", "case"],
        ),
    ] {
        alter(&case, change);
        refuses(&case, &texts);
        alter(&case, back);
    }
    case.target("trades").ask("alter", json!({"require": "venue"}));
    for (change, back, text) in [
        ("MODIFY COLUMN venue Nullable(String)", "MODIFY COLUMN venue String DEFAULT ''", "can be null"),
        ("DROP COLUMN venue", "ADD COLUMN venue String", "is required"),
    ] {
        alter(&case, change);
        refuses(&case, &["`venue`", text]);
        alter(&case, back);
    }
    case.config(&format!("{CONFIG}types = {{ n = 'string' }}\n"));
    refuses(&case, &["types", "`n`"]);

    case.config(&format!("{CONFIG}{}", CONFIG.replace("trades", "others")));
    case.sql("CREATE TABLE others (ts DateTime64(3), n Int8) ENGINE = MergeTree ORDER BY ts");
    case.init_tables();
    case.sql("INSERT INTO others VALUES ('2024-03-10 00:00:00', 1)");
    alter(&case, "MODIFY COLUMN n String");
    let document = case.run(&RUN).expect(3).json();
    assert_eq!(table_of(&document, "cold.others")["status"], "offloaded");
    assert_eq!(table_of(&document, "cold.trades")["status"], "failed");
}

#[test]
fn a_frozen_target_stays_as_it_is() {
    let case = source("frozen", "n Int32, l Array(Tuple(x Int8, y Int8))");
    let target = case.target("trades");
    case.config(&format!("{CONFIG}schema_evolution = 'frozen'\n"));
    alter(&case, "ADD COLUMN venue String, MODIFY COLUMN l Array(Tuple(w UInt64, x Int8, y Int8))");
    let schema = fields(&case);
    let frozen = only_table(&case.init_tables())["drift"].to_string();
    assert!(frozen.contains("`venue`") && frozen.contains("`l.element.w`") && frozen.contains("frozen"), "{frozen}");
    for (day, warned) in [(10, 1), (11, 0)] {
        insert(&case, day, "n, venue, l", "number, 'a', [(1, number, 3)]");
        let output = case.run(&RUN);
        assert_eq!(warnings(&output).len(), warned, "{}", output.all());
    }
    assert_eq!(fields(&case), schema);
    case.sql("CREATE VIEW expected AS SELECT ts, n, arrayMap(e -> CAST((e.2, e.3), 'Tuple(x Int8, y Int8)'), l) AS l FROM trades");
    target.holds_for_all_readers("expected");
    alter(&case, "MODIFY COLUMN n Int64");
    refuses(&case, &["`n`", "long", "int", "frozen"]);
    alter(&case, "MODIFY COLUMN n Int32");
    case.config(&CONFIG.replace("cold.trades", "cold.new"));
    case.init_tables();
    alter(&case, "ADD COLUMN at DateTime64(3) DEFAULT ts");
    let other = CONFIG.replace("cold.trades", "cold.new").replace("'ts'", "'at'");
    case.config(&format!("{other}schema_evolution = 'frozen'\n"));
    fails(&only_table(&case.run(&RUN).expect(3).json()), "refused", &["cursor `at`", "add-columns"]);
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let case = source("dry", "n Int32, fee Int8");
    insert(&case, 10, "n", "number");
    pass_of_ten(&case, 0);
    alter(&case, "ADD COLUMN venue String, MODIFY COLUMN n Int64, DROP COLUMN fee");
    insert(&case, 11, "n, venue", "number, 'a'");
    let before = case.contents();
    for _ in 0..2 {
        let output = case.run(&["--format", "json", "run", "--dry-run"]);
        assert_eq!(warnings(&output).len(), 1, "{}", output.all());
        let table = only_table(&output.json());
        assert_eq!(table["schema_changes"].as_array().unwrap().len(), 2, "{table:#}");
        case.run(&["run", "--dry-run"]).says(&["schema: column `n` becomes long", "schema: column `venue` is added"]);
        case.run(&["init-tables", "--dry-run"]).expect(0).says(&["`n` becomes long", "`venue` is added", "`fee`"]);
        case.init_tables();
    }
    assert!(before == case.contents(), "a dry run changed a file");
}

#[test]
fn other_partitions_than_configured_are_followed_and_told_once() {
    let case = source("partitions", "n Int32");
    case.config(&format!("{CONFIG}partition_by = ['day(ts)']\n"));
    for (day, warned) in [(10, 1), (11, 0)] {
        insert(&case, day, "n", "number");
        let output = case.run(&RUN);
        assert_eq!(warnings(&output).len(), warned, "{}", output.all());
        assert!(warned == 0 || warnings(&output)[0].contains("partitioned by nothing"), "{}", output.all());
    }
    case.target("trades").holds_all("trades");
    alter(&case, "ADD COLUMN d Date DEFAULT toDate(ts, 'UTC')");
    case.config(&format!("{}partition_by = ['d']\n", CONFIG.replace("cold.trades", "cold.daily")));
    case.init_tables();
    case.pass();
    alter(&case, "DROP COLUMN d");
    case.config(&CONFIG.replace("cold.trades", "cold.daily"));
    fails(&only_table(&case.run(&RUN).expect(3).json()), "refused", &["partitioned by `d`"]);
}

/// A target of ten rows, and a source with ten more, a new column and a wider one.
fn evolving(name: &str) -> Case {
    let case = source(name, "n Int32");
    insert(&case, 10, "n", "number");
    pass_of_ten(&case, 0);
    alter(&case, "ADD COLUMN venue Nullable(String), MODIFY COLUMN n Int64");
    insert(&case, 11, "n, venue", "5000000000 + number, 'a'");
    case
}

fn has_evolved_once(case: &Case) {
    let target = case.target("trades");
    target.holds_for_all_readers("trades");
    assert_eq!(fields(case), ["ts timestamptz", "n long", "venue string"]);
    assert_eq!(case.pass_one()["status"], "nothing");
    assert_eq!(target.snapshots().len(), 2);
    let metadata: Value = serde_json::from_slice(&std::fs::read(target.metadata_file()).unwrap()).unwrap();
    let (schemas, last) = (metadata["schemas"].as_array().unwrap().len(), &metadata["last-column-id"]);
    assert_eq!((schemas, last), (2, &json!(3)), "{metadata:#}");
}

#[test]
fn a_pass_that_fails_or_dies_while_the_schema_changes_is_made_good() {
    for point in ["counted", "written", "commit-swap", "committed"] {
        for action in ["error", "kill"] {
            let case = evolving("died");
            let output = case.run_failing(&format!("{point}={action}"), &["run"]);
            // Behind its commit a pass that may go on has nothing left to do.
            assert_eq!(output.code == Some(0), (point, action) == ("committed", "error"), "{}", output.all());
            case.pass();
            has_evolved_once(&case);
        }
    }
}

#[test]
fn p14_an_unknown_outcome_of_a_commit_that_changes_the_schema_is_asked_about() {
    for action in ["reply-lost", "request-lost"] {
        let case = evolving("lost");
        let output = case.run_failing(&format!("commit-swap={action}"), &RUN).expect_warning("unknown");
        let table = only_table(&output.json());
        assert_eq!((&table["rows_written"], table["schema_changes"].as_array().unwrap().len()), (&json!(10), 2));
        has_evolved_once(&case);
        case.target("trades").has_no_other_files();
    }
    let case = evolving("unknown");
    case.run_failing("commit-swap=request-lost-always", &RUN).expect(1);
    assert_eq!(fields(&case), ["ts timestamptz", "n int"]);
    case.pass();
    has_evolved_once(&case);
}

#[test]
fn p13_of_two_passes_that_change_the_schema_one_plans_again() {
    let case = evolving("overlap");
    case.config_file("second.toml", "", "[state]\npath = 'second.db'", CONFIG);
    let gate = case.gate("gate");
    let failpoints = format!("guard=skip;written={}", gate.pause());
    let mut passes = ["offload.toml", "second.toml"].map(|config| case.spawn(config, &failpoints, &RUN));
    for pass in &mut passes {
        gate.wait_for(pass);
    }
    gate.open();
    let mut changes: Vec<usize> = Vec::new();
    for pass in passes {
        let table = only_table(&pass.wait().expect(0).json());
        changes.push(table["schema_changes"].as_array().map_or(0, Vec::len));
    }
    changes.sort_unstable();
    assert_eq!(changes, [0, 2]);
    has_evolved_once(&case);
    case.target("trades").has_no_other_files();
}

#[test]
fn a_schema_that_somebody_changes_meanwhile_is_planned_on_again() {
    let case = evolving("foreign");
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &RUN);
    gate.wait_for(&mut pass);
    case.target("trades").ask("alter", json!({"rename": {"n": "old"}}));
    gate.open();
    let output = pass.wait();
    assert!(warnings(&output)[0].contains("`old`"), "{}", output.all());
    assert_eq!(fields(&case), ["ts timestamptz", "old int", "n long", "venue string"]);
    expect(&case, 11, "ts, if(old, trades.n, NULL)::Nullable(Int32) AS old_, if(old, NULL, trades.n) AS n, venue");
    case.sql("CREATE VIEW renamed AS SELECT ts, old_ AS old, n, venue FROM expected");
    case.target("trades").holds_for_all_readers("renamed");
}

#[test]
fn ids_that_somebody_used_meanwhile_are_not_used_again() {
    let case = evolving("ids");
    let target = case.target("trades");
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &RUN);
    gate.wait_for(&mut pass);
    target.ask("add_schema", json!({}));
    gate.open();
    pass.wait().expect(0);
    let ids = target.ask("schema", json!({}));
    assert_eq!((&ids[2]["name"], &ids[2]["id"]), (&json!("venue"), &json!(4)), "3 is theirs: {ids:#}");
    target.holds_for_all_readers("trades");
}

#[test]
fn labels_of_an_enum_arrive_as_they_are_when_their_row_leaves() {
    let case = source("labels", "side Enum8('buy' = 1, 'sell' = 2)");
    insert(&case, 10, "side", "if(number < 5, 'buy', 'sell')");
    pass_of_ten(&case, 0);
    alter(&case, "MODIFY COLUMN side Enum8('buy' = 1, 'sell' = 2, 'short' = 3)");
    insert(&case, 11, "side", "'short'");
    pass_of_ten(&case, 0);
    case.target("trades").holds_for_all_readers("trades");
    // A label is renamed by way of both names.
    alter(&case, "MODIFY COLUMN side Enum8('buy' = 1, 'sell' = 2, 'short' = 3, 'bid' = 4)");
    alter(&case, "UPDATE side = 'bid' WHERE side = 'buy'");
    alter(&case, "MODIFY COLUMN side Enum8('sell' = 2, 'short' = 3, 'bid' = 4)");
    insert(&case, 12, "side", "'bid'");
    pass_of_ten(&case, 0);
    let target = case.target("trades");
    assert_eq!(fields(&case), ["ts timestamptz", "side string"]);
    assert_eq!(
        target.count_where(&["side = 'buy'", "side = 'sell'", "side = 'short'", "side = 'bid'"]),
        [5, 5, 10, 10]
    );
    expect(&case, 12, "ts, if(old AND trades.side = 'bid', 'buy', CAST(trades.side, 'String')) AS side");
    target.holds_for_all_readers("expected");
}
