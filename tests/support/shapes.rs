//! Ways in which trades leave, each with what a foreign reader must find in the end.

use serde_json::{Value, json};

use super::{Case, HASH_OF_BRONZE, Output, Place};

/// A configuration of the target `cold.trades` whose rows come from the source table `trades`.
#[derive(Debug)]
pub struct Shape {
    pub name: &'static str,
    config: &'static str,
    /// SELECT of the rows that the target must hold.
    wanted: &'static str,
    /// Query for count and hash of such rows, up to FROM.
    hash: &'static str,
}

/// As they are, a partition a day.
pub const PLAIN: Shape =
    Shape { name: "plain", config: super::TRADES, wanted: "SELECT * FROM trades", hash: HASH_OF_BRONZE };

/// As they are, in many commits.
pub const CHUNKED: Shape = Shape {
    name: "chunked",
    config: "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'exchange_timestamp'\nchunk_rows = 300\n",
    wanted: "SELECT * FROM trades",
    hash: HASH_OF_BRONZE,
};

/// One of each key, a partition a day and symbol. Trades with one key are equal in every column.
pub const KEYED: Shape = Shape {
    name: "keyed",
    config: "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'exchange_timestamp'\n\
             chunk_rows = 300\nkey = ['exchange_timestamp', 'sequence_number', 'symbol']\npartition_by = ['day(exchange_timestamp)', 'symbol']\n",
    wanted: "SELECT DISTINCT * FROM trades",
    hash: HASH_OF_BRONZE,
};

/// Candles of five minutes, computed by a query, two windows a commit.
pub const CANDLES: Shape = Shape {
    name: "candles",
    config: "[[table]]\nname = 'candles'\nquery = \"\"\"SELECT symbol, toStartOfInterval(exchange_timestamp, INTERVAL 5 MINUTE, 'UTC') AS opened, \
             max(price) AS high, sum(quantity) AS volume, count() AS trades FROM trades \
             WHERE exchange_timestamp >= {low} AND exchange_timestamp < {high} GROUP BY symbol, opened\"\"\"\n\
             target = 'cold.trades'\ncursor = 'opened'\nkey = ['symbol', 'opened']\nwindow = '5m'\nchunk_span = '10m'\n\
             partition_by = ['month(opened)', 'symbol']\n",
    wanted: "SELECT symbol, toStartOfInterval(exchange_timestamp, INTERVAL 5 MINUTE, 'UTC') AS opened, max(price) AS high, \
             sum(quantity) AS volume, count() AS trades FROM trades GROUP BY symbol, opened",
    hash: "SELECT count(), sum(cityHash64(toUnixTimestamp64Micro(toDateTime64(opened, 6, 'UTC')), symbol, toString(high), \
           toString(volume), toString(trades))) FROM ",
};

/// What a pass finds to do on a target that holds one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A second day.
    NewRows,
    /// Rows of the first day that came after it had left (not for queries: P23 looks at tables).
    LateRows,
    /// Late rows, and a watermark that was put back before all rows: everything is compared, then a second day leaves.
    Reset,
}

impl Shape {
    /// A case with an empty source, its configuration, its target, and the view `wanted`.
    pub fn case(&self, name: &str) -> Case {
        self.case_at(Place::Local, name)
    }

    /// The same with its target there.
    pub fn case_at(&self, place: Place, name: &str) -> Case {
        let case = Case::at(place, &format!("{name}_{}", self.name));
        self.set_up(&case);
        case
    }

    /// The same on a case that is there.
    pub fn set_up(&self, case: &Case) {
        case.bronze("trades");
        case.sql(&format!("CREATE VIEW wanted AS {}", self.wanted));
        case.config(self.config);
        case.init_tables();
    }

    /// Adds keys to the configuration of the table.
    pub fn configure(&self, case: &Case, keys: &str) {
        case.config(&format!("{}{keys}", self.config));
    }

    /// A case whose target holds one day and whose source holds two.
    pub fn two_days(&self, name: &str) -> Case {
        self.two_days_at(Place::Local, name)
    }

    /// The same with its target there.
    pub fn two_days_at(&self, place: Place, name: &str) -> Case {
        let case = self.case_at(place, name);
        case.trades("trades", "2024-03-09 23:50:00", 200);
        case.pass();
        case.trades("trades", "2024-03-10 23:59:00", 200);
        case
    }

    /// A case with this work to do.
    pub fn case_with(&self, work: Work, place: Place, name: &str) -> Case {
        if work == Work::NewRows {
            return self.two_days_at(place, name);
        }
        let case = self.case_at(place, name);
        // More than a chunk of those shapes that have small ones.
        case.trades("trades", "2024-03-09 23:50:00", 400);
        case.pass();
        self.late_rows(&case, "2024-03-09 23:50:00", "LATE", 40);
        if work == Work::Reset {
            // Nothing else may find them.
            self.configure(&case, "late_lookback = '0s'\n");
            case.trades("trades", "2024-03-10 23:59:00", 200);
            case.run(&["watermark", "reset", "--table", "cold.trades", "--to-earliest", "--yes"]).expect(0);
        }
        case
    }

    /// Inserts `rows` trades of symbols that begin with `tag`, new ones, between those from `start` on, and some that are equal to those. Candles
    /// get none of these: they would be other candles.
    pub fn late_rows(&self, case: &Case, start: &str, tag: &str, rows: u64) {
        let day = format!("exchange_timestamp >= toDateTime64('{start}', 3, 'UTC')");
        let anywhere = "ORDER BY cityHash64(exchange_timestamp, sequence_number, symbol)";
        let symbol = format!("concat('{tag}-', symbol, '-', toString(sequence_number)) AS symbol");
        case.sql(&format!(
            "INSERT INTO trades SELECT * REPLACE ({symbol}) FROM trades WHERE {day} {anywhere} LIMIT {rows}"
        ));
        if self.name != CANDLES.name {
            case.sql(&format!("INSERT INTO trades SELECT * FROM trades WHERE {day} {anywhere} LIMIT 7"));
        }
    }

    /// What a run with faults must come to as one without: rows, read by ClickHouse, and what the marker says of them.
    pub fn outcome(&self, case: &Case) -> Value {
        let (hash, marker) = (self.hash_of_target(case), case.target("trades").marker());
        let of = |field: &str| marker[field].clone();
        json!([hash, of("watermark"), of("offloaded_to"), of("total_records"), of("skipped")])
    }

    /// Count and hash of the target's rows, read by ClickHouse.
    pub fn hash_of_target(&self, case: &Case) -> String {
        case.target("trades").icebergs(self.hash)
    }

    /// Count and hash of the rows that it must hold.
    pub fn hash_of_source(&self, case: &Case) -> String {
        case.sql(&format!("{} wanted", self.hash))
    }

    /// A clean pass must bring every row once; the next one must find nothing, and `audit --checksum` no difference.
    pub fn is_made_good(&self, case: &Case, fault: &str) {
        succeeds(case, &["run"], fault);
        assert_eq!(self.hash_of_target(case), self.hash_of_source(case), "{} after {fault}", self.name);
        let again = succeeds(case, &["--format", "json", "run"], fault);
        assert_eq!(
            super::only_table(&again.json())["status"],
            "nothing",
            "{} after {fault}\n{}\n{:#}",
            self.name,
            again.all(),
            case.target("trades").marker()
        );
        succeeds(case, &["audit", "--checksum"], fault);
    }
}

fn succeeds(case: &Case, arguments: &[&str], fault: &str) -> Output {
    let output = case.run(arguments);
    assert_eq!(output.code, Some(0), "{arguments:?} after {fault}\n{}", output.all());
    output.expect(0)
}
