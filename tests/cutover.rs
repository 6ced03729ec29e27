//! `init-tables --register`: a table that Spark's Hadoop catalog made goes on where its predecessor stopped. PyIceberg writes the tables,
//! laid out as Spark does.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Case, Output, fails, finish, only_table};

/// The last tick of the predecessor: four trades are of this millisecond.
const SEAM: &str = "2024-03-10T08:00:25.000Z";
const BELOW: &str = "exchange_timestamp <= toDateTime64('2024-03-10 08:00:25', 3, 'UTC')";
/// The watermark that belongs to it.
const ABOVE: &str = "2024-03-10T08:00:25.001Z";

/// Trades of two days, and a target for each of `names`, of which none exists.
fn trades(case: &str, names: &[&str]) -> Case {
    let case = Case::new(case);
    case.bronze("trades");
    case.trades("trades", "2024-03-09 08:00:00", 50);
    case.trades("trades", "2024-03-10 08:00:00", 100);
    let table = |name: &&str| {
        format!(
            "[[table]]\nsource = 'trades'\ntarget = 'cold.{name}'\ncursor = 'exchange_timestamp'\npartition_by = ['day(exchange_timestamp)']\n"
        )
    };
    case.config(&names.iter().map(table).collect::<String>());
    case
}

/// The predecessor appends rows to its table `name`; the newest metadata file.
fn append(case: &Case, name: &str, filter: &str, further: Value) -> PathBuf {
    let folder = case.path(&format!("spark-{name}"));
    fs::create_dir_all(&folder).unwrap();
    let source = json!({"url": case.url, "database": case.database, "table": "trades"});
    let mut arguments = json!({"folder": folder, "uri": "file:", "source": source, "where": filter});
    for (name, value) in further.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    PathBuf::from(case.target(name).ask("hadoop_append", arguments).as_str().unwrap())
}

/// A table of the predecessor in two versions, up to the seam with all its ties.
fn predecessor(case: &Case, name: &str) -> PathBuf {
    append(case, name, "exchange_timestamp < toDateTime64('2024-03-10', 3, 'UTC')", json!({}));
    append(case, name, &format!("{BELOW} AND exchange_timestamp >= toDateTime64('2024-03-10', 3, 'UTC')"), json!({}))
}

fn folder(metadata: &Path) -> &Path {
    metadata.ancestors().nth(2).unwrap()
}

fn register(case: &Case, name: &str, metadata: &Path, further: &[&str]) -> Output {
    case.run(&arguments(name, metadata, further).iter().map(String::as_str).collect::<Vec<_>>())
}

fn arguments(name: &str, metadata: &Path, further: &[&str]) -> Vec<String> {
    let target = format!("cold.{name}");
    let first = ["--format", "json", "init-tables", "--table", &target, "--register", metadata.to_str().unwrap()];
    first.iter().chain(further).map(|word| (*word).to_owned()).collect()
}

#[test]
fn p17_a_table_goes_on_where_its_predecessor_stopped() {
    let names = ["bare", "short", "long"];
    let case = trades("cutover", &names);
    let hints: Vec<PathBuf> = names
        .into_iter()
        .zip(["", "file:", "file://"])
        .map(|(name, uri)| {
            let properties = json!({"history.expire.max-snapshot-age-ms": "0"});
            append(
                &case,
                name,
                "exchange_timestamp < toDateTime64('2024-03-10', 3, 'UTC')",
                json!({"uri": uri, "properties": properties}),
            );
            let second = format!("{BELOW} AND exchange_timestamp >= toDateTime64('2024-03-10', 3, 'UTC')");
            let metadata = append(&case, name, &second, json!({}));
            assert!(metadata.ends_with("v2.metadata.json"), "{metadata:?}");

            let before = case.contents();
            let planned =
                only_table(&register(&case, name, &metadata, &["--watermark", ABOVE, "--dry-run"]).expect(0).json());
            assert_eq!((&planned["status"], &planned["adoption"]["rows_skipped"]), (&json!("planned"), &json!(0)));
            assert_eq!(case.contents(), before, "--dry-run changes nothing");

            let given = if name == "bare" { folder(&metadata) } else { &metadata };
            let done = only_table(&register(&case, name, given, &["--watermark", ABOVE]).expect(0).json());
            assert_eq!((&done["status"], &done["adoption"]["to"]), (&json!("registered"), &json!(ABOVE)), "{done:#}");
            assert_eq!((&done["seam"], &done["next_step"]), (&Value::Null, &Value::Null));
            let marker = case.target(name).marker();
            assert_eq!(
                (&marker["mode"], &marker["rows"], &marker["skipped"]),
                (&json!("adopt"), &json!(0), &json!([]))
            );
            metadata.with_file_name("version-hint.text")
        })
        .collect();

    for table in case.pass()["tables"].as_array().unwrap() {
        assert_eq!((&table["status"], &table["rows_written"]), (&json!("offloaded"), &json!(46)), "{table:#}");
    }
    case.trades("trades", "2024-03-11 08:00:00", 30);
    case.pass();
    for (name, hint) in names.iter().zip(&hints) {
        let target = case.target(name);
        target.holds_for_all_readers("trades");
        assert_eq!(target.snapshots().len(), 2, "the predecessor's snapshots go as its table says");
        target.has_no_other_files();
        assert_eq!(fs::read_to_string(hint).unwrap(), "2");
        let newest = target.metadata_file();
        assert!(newest.file_name().unwrap().to_str().unwrap().starts_with("00005-"), "{newest:?}");
    }
    case.run(&["audit"]).expect(0);
    case.run(&["watermark", "show"]).expect(0).says(&["2024-03-11"]);
}

#[test]
fn registering_twice_is_registering_once_also_after_passes() {
    let case = trades("twice", &["t"]);
    // Log and snapshots are cut at each pass.
    let properties = json!({"history.expire.max-snapshot-age-ms": "0", "write.metadata.previous-versions-max": "1"});
    let metadata = append(&case, "t", BELOW, json!({"properties": properties}));
    register(&case, "t", &metadata, &["--watermark", ABOVE]).expect(0);
    for pass in [false, true] {
        if pass {
            case.pass();
        }
        let before = case.target("t").state();
        let again = only_table(&register(&case, "t", &metadata, &["--watermark", ABOVE]).expect(0).json());
        assert_eq!((&again["status"], &again["adoption"]), (&json!("exists"), &Value::Null), "{again:#}");
        assert_eq!(case.target("t").state(), before);
    }
    fs::remove_file(&metadata).unwrap();
    for given in [&metadata, folder(&metadata)] {
        let again = register(&case, "t", given, &["--watermark", ABOVE]).expect(0);
        assert_eq!(only_table(&again.json())["status"], "exists", "tables let old metadata go");
    }
    let refused = register(&case, "t", &metadata, &["--watermark", "2024-03-20"]).expect(3);
    refused.says(&["has a watermark of ours already", "watermark reset"]);
    case.target("t").holds_all("trades");
}

#[test]
fn without_a_watermark_the_next_step_is_told() {
    let case = trades("steps", &["t"]);
    let metadata = predecessor(&case, "t");
    let done = only_table(&register(&case, "t", &metadata, &[]).expect(0).json());
    let next = done["next_step"].as_str().unwrap();
    assert!(next.contains(ABOVE) && next.contains("watermark reset --table cold.t --to"), "{next}");
    case.run(&["run"]).expect(3).says(&["k2-offload did not write"]);

    // Until then its old catalog may go on, and it may be registered anew.
    let newer = append(&case, "t", "exchange_timestamp = toDateTime64('2024-03-10 08:00:25.004', 3, 'UTC')", json!({}));
    register(&case, "t", &metadata, &[]).expect(3).says(&["not the newest version", "v3.metadata.json"]);
    assert_eq!(only_table(&register(&case, "t", &newer, &[]).expect(0).json())["status"], "registered");
    assert_eq!(case.target("t").metadata_file(), newer);
    case.run(&["watermark", "reset", "--table", "cold.t", "--to", "2024-03-10T08:00:25.005Z", "--yes"]).expect(0);
    assert_eq!(case.pass_one()["rows_written"], 45);
    case.target("t").holds_all("trades");

    append(&case, "t", "sequence_number = 0", json!({}));
    let forked = register(&case, "t", folder(&metadata), &[]).expect(3);
    forked.says(&["not in the catalog's", "through the old catalog after the cut-over"]);
}

#[test]
fn a_predecessor_that_writes_meanwhile_is_noticed() {
    let case = trades("meanwhile", &["t"]);
    let metadata = predecessor(&case, "t");
    let gate = case.gate("gate");
    let words = arguments("t", folder(&metadata), &["--watermark", ABOVE]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut waits = case.spawn("offload.toml", &format!("target={}", gate.pause()), &words);
    gate.wait_for(&mut waits);
    append(&case, "t", "sequence_number = 0", json!({}));
    gate.open();
    waits.wait().expect(3).says(&["written to while it was looked at"]);
    case.run(&["run"]).expect(3).says(&["init-tables"]);
}

#[test]
fn ties_that_the_predecessor_lost_are_told_with_their_numbers() {
    let case = trades("ties", &["t"]);
    let fewer =
        format!("exchange_timestamp < toDateTime64('2024-03-10 08:00:25', 3, 'UTC') OR {BELOW} AND kafka_offset = 0");
    let metadata = append(&case, "t", &fewer, json!({}));
    let lost: u64 = case.sql("SELECT countIf(kafka_offset = 1) FROM trades WHERE exchange_timestamp = toDateTime64('2024-03-10 08:00:25', 3, 'UTC')").parse().unwrap();
    assert!((1..4).contains(&lost), "{lost}");
    let output = register(&case, "t", &metadata, &["--watermark", ABOVE]).expect_warning("audit");
    let done = only_table(&output.json());
    assert_eq!(done["seam"], json!({"at": SEAM, "source_rows": 4, "target_rows": 4 - lost}));
    assert_eq!(case.pass_one()["rows_written"], 46);
    case.run(&["audit"]).expect(3).says(&["missing"]);
    assert_eq!(case.target("t").count(), 150 - lost);
}

#[test]
fn a_watermark_above_rows_of_the_source_asks() {
    let case = trades("gap", &["t"]);
    let metadata = predecessor(&case, "t");
    let before = case.contents();
    let gap = "2024-03-10T08:00:30Z";
    register(&case, "t", &metadata, &["--watermark", gap]).expect(2).says(&["skips 6 source rows", "--yes"]);
    assert_eq!(case.contents(), before);
    let done = only_table(&register(&case, "t", &metadata, &["--watermark", gap, "--yes"]).expect(0).json());
    assert_eq!((&done["adoption"]["from"], &done["adoption"]["rows_skipped"]), (&json!(ABOVE), &json!(6)));
    assert_eq!(case.pass_one()["rows_written"], 40);
}

#[test]
fn a_cut_over_that_dies_is_completed_by_the_same_command() {
    let points = [
        "guard=kill",
        "target=kill",
        "written=kill",
        "commit-swap=kill",
        "committed=kill",
        "commit-swap=request-lost",
        "commit-swap=reply-lost",
    ];
    let names: Vec<String> = (0..points.len()).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let case = trades("dies", &names);
    for (name, point) in names.iter().zip(points) {
        let metadata = predecessor(&case, name);
        let dies = arguments(name, &metadata, &["--watermark", ABOVE]);
        let died = finish(
            case.command(&dies.iter().map(String::as_str).collect::<Vec<_>>()).env("K2_OFFLOAD_FAILPOINTS", point),
        );
        assert_eq!(died.code, if point.contains("kill") { None } else { Some(0) }, "{point}\n{}", died.all());
        register(&case, name, &metadata, &["--watermark", ABOVE]).expect(0);
        assert_eq!(case.target(name).snapshots().len(), 3, "{point}: one adoption");
    }
    case.pass();
    for name in names {
        case.target(name).holds_all("trades");
    }
}

#[test]
fn what_cannot_be_taken_over_is_refused_and_nothing_changed() {
    let case = trades("refused", &["t", "other"]);
    let metadata = predecessor(&case, "t");
    let first = metadata.with_file_name("v1.metadata.json");
    let copy = case.path("copy");
    copy_all(folder(&metadata), &copy);
    let nothing = case.path("nothing");
    fs::write(&nothing, "this is no JSON").unwrap();
    let refused = |given: &Path, further: &[&str], code: i32, texts: &[&str]| {
        let before = case.contents();
        let kind = if code == 2 { "config" } else { "refused" };
        fails(&only_table(&register(&case, "t", given, further).expect(code).json()), kind, texts);
        assert_eq!(case.contents(), before, "{texts:?}");
    };
    refused(&metadata, &["--watermark", SEAM], 3, &["holds rows up to", "exclusive", ABOVE]);
    refused(&metadata, &["--watermark", "2999-01-01"], 2, &["future"]);
    refused(&first, &[], 3, &["not the newest version", "v2.metadata.json"]);
    refused(&metadata.with_file_name("v9.metadata.json"), &[], 2, &["no such file"]);
    refused(&nothing, &[], 2, &["no Iceberg metadata"]);
    refused(case.folder(), &[], 2, &["no table lies here"]);
    refused(&copy, &[], 3, &["says that the table lies at", "copied or moved"]);
    refused(Path::new("s3://bucket/t"), &[], 2, &["s3://bucket", "credentials"]);

    let hint = metadata.with_file_name("version-hint.text");
    fs::write(&hint, "3").unwrap();
    refused(&metadata, &[], 2, &["names version 3, which is not there"]);
    fs::write(&hint, "2").unwrap();
    let edit = |from: &str, to: &str, texts: &[&str]| {
        let text = fs::read_to_string(&metadata).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&metadata, text.replace(from, to)).unwrap();
        refused(&metadata, &[], 3, texts);
        fs::write(&metadata, text).unwrap();
    };
    edit("\"format-version\":2", "\"format-version\":1", &["format v1", "ALTER TABLE"]);
    edit("\"transform\":\"day\"", "\"transform\":\"bucket[4]\"", &["bucket[4]"]);
    edit(
        "\"name\":\"symbol\",\"type\":\"string\"",
        "\"name\":\"symbol\",\"type\":\"long\"",
        &["`symbol`", "long", "convert the column"],
    );
    let data = support::files_below(&folder(&metadata).join("data")).remove(0);
    fs::rename(&data, case.path("hidden")).unwrap();
    refused(&metadata, &[], 3, &["is missing", "restore"]);
    fs::rename(case.path("hidden"), &data).unwrap();

    case.run(&["init-tables", "--register", metadata.to_str().unwrap()]).expect(2).says(&["--table"]);
    let two = ["init-tables", "--table", "cold.t", "--table", "cold.other", "--register", metadata.to_str().unwrap()];
    case.run(&two).expect(2).says(&["one --table"]);
    case.run(&["init-tables", "--watermark", ABOVE]).expect(2).says(&["--register"]);

    case.init_tables();
    refused(&metadata, &[], 3, &["another table of this name"]);
}

#[test]
fn types_that_would_fit_are_told() {
    let case = trades("types", &["t", "zone"]);
    let metadata = append(&case, "t", BELOW, json!({"types": {"sequence_number": "decimal(20, 0)"}}));
    register(&case, "t", &metadata, &[])
        .expect(3)
        .says(&["`sequence_number`", "types = { sequence_number = \\\"decimal(20, 0)\\\" }"]);
    let zone = append(&case, "zone", BELOW, json!({"types": {"event_time": "timestamp"}}));
    register(&case, "zone", &zone, &[]).expect(3).says(&["`event_time`", "TIMESTAMP_NTZ"]);

    case.config(&format!(
        "{}types = {{ sequence_number = 'decimal(20, 0)' }}\n",
        support::TRADES.replace("cold.trades", "cold.t")
    ));
    register(&case, "t", &metadata, &["--watermark", ABOVE]).expect(0);
    assert_eq!(case.pass_one()["rows_written"], 46);
    assert_eq!(case.target("t").count(), 150);
}

fn copy_all(from: &Path, to: &Path) {
    for file in support::files_below(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
}

/// protocol.md P11: a table of aggregates is taken over between two of them.
#[test]
fn the_watermark_of_aggregates_must_not_split_one() {
    let case = trades("aligned", &["t"]);
    let metadata = predecessor(&case, "t");
    let config = fs::read_to_string(case.path("offload.toml")).unwrap();
    let window = "window = '1m'\nkey = ['symbol', 'exchange_timestamp']\n";
    fs::write(case.path("offload.toml"), format!("{config}{window}")).unwrap();
    register(&case, "t", &metadata, &["--watermark", ABOVE])
        .expect(2)
        .says(&["no multiple", "2024-03-10T08:00:00.000Z"]);
    register(&case, "t", &metadata, &["--watermark", "2024-03-10T08:01:00Z", "--yes"]).expect(0);
    case.pass();
}

#[test]
fn nothing_is_made_over_tables_whose_catalog_is_gone_and_their_folder_brings_them_back() {
    let case = Case::with_trades("lost_catalog");
    for (day, rows) in [("2024-03-10", 100), ("2024-03-11", 50)] {
        case.trades("trades", day, rows);
        case.pass();
    }
    for lost in ["catalog.db", "state.db"] {
        fs::remove_file(case.path(lost)).unwrap();
    }
    let before = case.contents();
    case.run(&["run"]).expect(3).says(&["does not exist", "restore it"]);
    for arguments in [&["init-tables", "--dry-run"][..], &["init-tables"]] {
        case.run(arguments).expect(3).says(&["a table lies at", "--register", "cold/trades"]);
    }
    let data = |contents: BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
        contents.into_keys().filter(|path| path.starts_with(case.path("warehouse"))).collect()
    };
    assert_eq!(data(case.contents()), data(before), "nothing was made");

    let metadata = case.path("warehouse/cold/trades/metadata");
    let old =
        support::files_below(&metadata).into_iter().find(|file| file.to_string_lossy().contains("/00001-")).unwrap();
    let register = |what: &Path| case.run(&["init-tables", "--table", "trades", "--register", what.to_str().unwrap()]);
    register(&old).expect(3).says(&["is not the newest version", "/00002-"]);
    register(&case.path("warehouse/cold/trades")).expect(0);
    case.trades("trades", "2024-03-12", 10);
    assert_eq!(case.pass_one()["rows_written"], 10);
    case.target("trades").holds_all("trades");
    // What was given then is older now, and known.
    register(&old).expect(0);
}
