//! Tables that cannot be offloaded, one of every kind beside a good one: each is told by name with what to do and stays as it was, and the good
//! one is done.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Case, fails, table_of};

/// A table that goes bad.
struct Bad {
    /// Name of source and target.
    name: &'static str,
    /// What happens to the source `{}` once the target exists.
    change: &'static str,
    /// Keys of its configuration that are other ones then.
    keys: &'static [(&'static str, &'static str)],
    exit: i32,
    kind: &'static str,
    /// Parts of error and hint.
    says: &'static [&'static str],
}

const BAD: [Bad; 16] = [
    Bad { name: "gone", change: "DROP TABLE {}", says: &["`gone`", "clickhouse.database", "source"], ..CONFIG },
    Bad {
        name: "cursorless",
        keys: &[("cursor", "exchange_time")],
        says: &["`exchange_time`", "`cursorless`", "DESCRIBE TABLE"],
        ..CONFIG
    },
    Bad {
        name: "textual",
        keys: &[("cursor", "symbol")],
        says: &["`symbol`", "String", "not time", "DateTime"],
        ..CONFIG
    },
    Bad {
        name: "numbered",
        keys: &[("cursor", "sequence_number")],
        says: &["`sequence_number`", "UInt64", "not time"],
        ..CONFIG
    },
    Bad {
        name: "null_cursor",
        change: "ALTER TABLE {} MODIFY COLUMN event_time Nullable(DateTime64(3)), UPDATE event_time = NULL WHERE sequence_number = 749 \
                 SETTINGS mutations_sync = 2",
        keys: &[("cursor", "event_time")],
        says: &["`event_time`", "null in 2 rows", "without nulls"],
        ..REFUSED
    },
    Bad {
        name: "large",
        change: "INSERT INTO {} (exchange_timestamp, kafka_offset) VALUES ('2024-03-11 00:00:00', 9223372036854775808)",
        says: &["large", "`kafka_offset` (UInt64)", "below 2^63"],
        ..REFUSED
    },
    Bad {
        name: "garbled",
        change: "INSERT INTO {} (exchange_timestamp, symbol) VALUES ('2024-03-11 00:00:00', unhex('FF'))",
        says: &["garbled", "`symbol` (String)", "UTF-8"],
        ..REFUSED
    },
    Bad {
        name: "recased",
        change: "ALTER TABLE {} RENAME COLUMN symbol TO Symbol",
        says: &["`Symbol`", "`symbol`", "init-tables"],
        ..REFUSED
    },
    Bad {
        name: "frozen",
        change: "ALTER TABLE {} MODIFY COLUMN kafka_partition UInt32 SETTINGS mutations_sync = 2",
        keys: &[("schema_evolution", "frozen")],
        says: &["`kafka_partition`", "long", "frozen"],
        ..REFUSED
    },
    Bad {
        name: "retyped",
        change: "ALTER TABLE {} MODIFY COLUMN kafka_partition Decimal(9, 2) SETTINGS mutations_sync = 2",
        says: &["`kafka_partition`", "Decimal(9, 2)", "decimal(9, 2)", "int", "init-tables"],
        ..REFUSED
    },
    Bad {
        name: "exotic",
        change: "ALTER TABLE {} ADD COLUMN wide UInt256",
        says: &["`exotic`", "`wide`", "UInt256", "decimal(38,0)"],
        ..REFUSED
    },
    Bad {
        name: "another",
        keys: &[("source_id", "staging.trades")],
        says: &["staging.trades", ".another", "source_id"],
        ..REFUSED
    },
    Bad { name: "foreign", says: &["did not write", "new target"], ..REFUSED },
    Bad { name: "dropped", says: &["`cold.dropped`", "init-tables"], ..REFUSED },
    Bad {
        name: "emptied",
        says: &["`cold.emptied`", ".metadata.json", "No such file", "restore the warehouse"],
        ..REFUSED
    },
    Bad {
        name: "mutating",
        change: "ALTER TABLE {} UPDATE price = throwIf(1) WHERE 1 SETTINGS mutations_sync = 0",
        exit: 1,
        kind: "conflict",
        says: &["1 mutations are not finished", "planned again"],
        ..REFUSED
    },
];

const CONFIG: Bad = Bad { name: "", change: "", keys: &[], exit: 2, kind: "config", says: &[] };
const REFUSED: Bad = Bad { exit: 3, kind: "refused", ..CONFIG };

impl Bad {
    /// Its configuration, good or bad.
    fn config(&self, keys: &[(&str, &str)]) -> String {
        let key = |name| keys.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let cursor = key("cursor").unwrap_or("exchange_timestamp");
        let others = keys.iter().filter(|(name, _)| *name != "cursor");
        let others: String = others.map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        format!("[[table]]\nsource = '{0}'\ntarget = 'cold.{0}'\ncursor = '{cursor}'\n{others}", self.name)
    }
}

#[test]
fn every_bad_table_is_told_by_name_and_holds_no_other_back() {
    let case = Case::new("bad");
    let good = Bad { name: "good", ..CONFIG };
    for table in BAD.iter().chain([&good]) {
        case.bronze(table.name);
        case.trades(table.name, "2024-03-10", 100);
    }
    case.config(&BAD.iter().chain([&good]).map(|table| table.config(&[])).collect::<String>());
    case.init_tables();
    case.run(&["run", "--table", "another"]).expect(0);

    for bad in BAD.iter().filter(|bad| !bad.change.is_empty()) {
        case.sql(&bad.change.replace("{}", bad.name));
    }
    case.trades("another", "2024-03-11", 100);
    case.target("foreign").ask("append", json!({"rows": 3, "micros": 0}));
    let metadata = case.target("emptied").metadata_file();
    fs::rename(&metadata, case.path("moved")).unwrap();
    let tables = || BAD.iter().filter(|bad| bad.name != "dropped");
    let before: Vec<_> = tables().map(|bad| case.target(bad.name).state()).collect();
    let of_dropped = support::files_below(&case.target("dropped").folder());
    case.target("dropped").ask("drop", json!({}));

    // The good one comes last: all others have failed by then.
    case.config(&BAD.iter().map(|bad| bad.config(bad.keys)).chain([good.config(&[])]).collect::<String>());
    for bad in &BAD {
        let output = case.run(&["--format", "json", "run", "--table", &format!("cold.{}", bad.name)]).expect(bad.exit);
        fails(&support::only_table(&output.json()), bad.kind, bad.says);
    }
    let document = case.run(&["--format", "json", "run"]).expect(3).json();
    for bad in &BAD {
        fails(table_of(&document, &format!("cold.{}", bad.name)), bad.kind, bad.says);
    }
    assert_eq!(tables().map(|bad| case.target(bad.name).state()).collect::<Vec<_>>(), before);
    assert_eq!(support::files_below(&case.path("warehouse/cold/dropped")), of_dropped);
    assert_eq!(table_of(&document, "cold.good")["rows_written"], 100);
    case.target("good").holds_all("good");
    case.target("good").has_no_other_files();
    assert_eq!((case.target("another").count(), case.target("foreign").count()), (100, 3));

    let shown = case.run(&["--format", "json", "watermark", "show"]).expect(3).json();
    assert_eq!(table_of(&shown, "cold.good")["status"], "success");
    assert_eq!(table_of(&shown, "cold.large")["status"], "failed");
    // Each recovers on its own.
    fs::rename(case.path("moved"), metadata).unwrap();
    case.run(&["run", "--table", "emptied"]).expect(0);
    case.target("emptied").holds_all("emptied");
}

#[test]
fn tables_that_can_be_created_are_created_beside_those_that_cannot() {
    let case = Case::new("created");
    case.bronze("good");
    case.sql(
        "CREATE TABLE exotic (exchange_timestamp DateTime64(3), wide UInt256) ENGINE = MergeTree ORDER BY tuple()",
    );
    let table = |source: &str, keys: &str| {
        format!("[[table]]\nsource = '{source}'\ntarget = 'cold.{source}'\ncursor = 'exchange_timestamp'\n{keys}")
    };
    let partition = table("good", "partition_by = ['day(exchange)']\n").replace("cold.good", "cold.unpartitioned");
    case.config(&[table("gone", ""), partition, table("exotic", ""), table("good", "")].concat());
    let document: Value = case.run(&["--format", "json", "init-tables"]).expect(3).json();
    fails(table_of(&document, "cold.gone"), "config", &["gone", "clickhouse.database"]);
    fails(table_of(&document, "cold.unpartitioned"), "config", &["`exchange`", "no column", "`good`"]);
    fails(table_of(&document, "cold.exotic"), "refused", &["`wide`", "UInt256"]);
    assert_eq!(table_of(&document, "cold.good")["status"], "created");
    assert_eq!(support::files_below(&case.path("warehouse")), [case.target("good").metadata_file()]);
}
