//! The text of every query: pure, so that hostile names and odd cursors are tested without a server.
//!
//! Rules that stand here: bounds are ticks, and every date function names UTC (protocol.md P1); window and raw columns stand in an
//! inner query, casts outside, because ClickHouse resolves a name in WHERE to an alias of the SELECT (P2); each cast
//! refers to its own column only, for the same reason; queries with aliases of their own rename the column first.

use iceberg::spec::PrimitiveType;

use super::projection::{REFUSED_VALUE, project};
use crate::cursor::{Cursor, CursorType, Tick};
use crate::partition::{Grain, PartitionField, Predicate, Value};
use crate::plan::Window;
use crate::schema::Column;

/// Text of our own in the error of a SELECT that reached another server than the pass began on (P4).
pub const OTHER_SERVER: &str = "k2-offload-other-server";

/// How a null partition value is listed.
pub const NULL_KEY: &str = "!";

/// What a partition value that is not null is listed behind.
pub const VALUE_KEY: &str = "=";

/// The server's clock, microseconds since 1970.
pub const CLOCK_MICROS: &str = "toInt64(toUnixTimestamp64Micro(now64(6, 'UTC')))";

/// Seconds that nobody knows.
const NO_SECONDS: &str = "CAST(NULL, 'Nullable(Int64)')";

/// A quoted identifier.
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A quoted string.
pub fn string(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A source table, quoted, with its database.
pub fn table(database: &str, table: &str) -> String {
    format!("{}.{}", identifier(database), identifier(table))
}

/// UUID and engine of a table, the latter with all its clauses.
pub fn definition(database: &str, table: &str) -> String {
    format!(
        "SELECT toString(uuid) AS uuid, engine_full FROM system.tables WHERE database = {} AND name = {}",
        string(database),
        string(table)
    )
}

/// A source as the queries name it.
#[derive(Debug, Clone)]
pub struct Relation {
    /// Its database.
    pub database: String,
    /// Its name.
    pub name: String,
    /// Both, quoted.
    pub table: String,
    /// `hostName()` of the server that the pass began on.
    pub host: String,
}

impl Relation {
    /// Selects `columns` of the rows that `filter` leaves; throws on another server than the pass began on (P4).
    fn rows(&self, columns: &str, filter: &str) -> String {
        format!("SELECT {columns} FROM {} WHERE ({filter}) AND {}", self.table, self.here())
    }

    fn here(&self) -> String {
        format!("(SELECT throwIf(hostName() != {}, '{OTHER_SERVER}')) = 0", string(&self.host))
    }

    /// Unfinished mutations, and a number that changes with every new one.
    pub fn mutations(&self) -> String {
        format!(
            "SELECT toUInt64(countIf(NOT is_done)) AS unfinished, groupBitXor(cityHash64(mutation_id)) AS fingerprint \
             FROM system.mutations WHERE database = {} AND table = {} AND {}",
            string(&self.database),
            string(&self.name),
            self.here()
        )
    }

    /// Clock, newest and oldest row, rows from the future and null cursors, in ticks, and what `ttl` says of the rows, in seconds; one row.
    pub fn facts(&self, cursor: &Cursor, nullable: bool, low: Option<Tick>, ttl: Option<&str>) -> String {
        let column = identifier(&cursor.name);
        let mut filter = low.map_or("1".to_owned(), |low| format!("{column} >= {}", literal(low, cursor.kind)));
        if nullable {
            filter = format!("{filter} OR isNull({column})");
        }
        let tick = ticks("k2_cursor", cursor.kind);
        let now = tick_of_now(cursor.kind);
        let present = format!("ifNull({tick} <= {now}, 0)");
        // Rows of a backfill live longer than live ones, so that the oldest row tells how long those beside it lived; one that had
        // expired before its own time tells nothing.
        let lifetime = format!("k2_expires - {}", seconds(&tick, cursor.kind));
        format!(
            "SELECT {CLOCK_MICROS} AS clock_micros, \
             maxOrNullIf(assumeNotNull({tick}), {present}) AS newest, \
             minOrNullIf(assumeNotNull({tick}), {present}) AS oldest, \
             toUInt64(countIf(ifNull({tick} > {now}, 0))) AS future, \
             toUInt64(countIf(isNull(k2_cursor))) AS nulls, \
             minOrNull(k2_expires) AS expires_at_seconds, \
             argMinOrNullIf({lifetime}, {tick}, {present} AND ifNull({lifetime} > 0, 0)) AS lifetime_seconds \
             FROM ({})",
            self.rows(&format!("{column} AS k2_cursor, {} AS k2_expires", ttl.unwrap_or(NO_SECONDS)), &filter)
        )
    }

    /// Raw rows of a window, or of one partition of it, for each bucket of `width` ticks that holds any; ascending.
    pub fn histogram(
        &self,
        cursor: &Cursor,
        window: Window,
        partition: &[(&str, Predicate<'_>)],
        width: Tick,
    ) -> String {
        let tick = format!("assumeNotNull({})", ticks("k2_cursor", cursor.kind));
        format!(
            "SELECT {tick} - positiveModulo({tick}, toInt64({width})) AS low, count() AS rows FROM ({}) GROUP BY low ORDER BY low",
            self.rows(
                &format!("{} AS k2_cursor", identifier(&cursor.name)),
                &within_partition(cursor, window, partition)
            )
        )
    }

    /// The shortest time in seconds from the cursor of a row to its expiry; null where no row of the window expires. One that had expired before
    /// its own time tells nothing.
    pub fn shortest_lifetime(&self, cursor: &Cursor, window: Window, ttl: &str) -> String {
        let lifetime = format!("k2_expires - {}", seconds(&ticks("k2_cursor", cursor.kind), cursor.kind));
        format!(
            "SELECT minOrNullIf({lifetime}, ifNull({lifetime} > 0, 0)) AS seconds FROM ({})",
            self.rows(
                &format!("{} AS k2_cursor, {ttl} AS k2_expires", identifier(&cursor.name)),
                &within(cursor, window)
            )
        )
    }

    /// Compressed bytes and rows of the table's parts.
    pub fn size(&self) -> String {
        format!(
            "SELECT sum(data_compressed_bytes) AS bytes, sum(rows) AS rows FROM system.parts \
             WHERE active AND database = {} AND table = {}",
            string(&self.database),
            string(&self.name)
        )
    }

    /// Raw rows of a window for each partition: its values as text (see [`key`]), then the number; ascending.
    pub fn count(&self, cursor: &Cursor, window: Window, fields: &[PartitionField], limit: usize) -> String {
        format!(
            "SELECT {} AS key, count() AS rows FROM ({}) GROUP BY key ORDER BY key LIMIT {limit}",
            keys(fields),
            self.keyed_rows(cursor, window, fields)
        )
    }

    /// The partition columns of a window, renamed; the cursor where there are none.
    fn keyed_rows(&self, cursor: &Cursor, window: Window, fields: &[PartitionField]) -> String {
        let mut columns: Vec<String> = fields
            .iter()
            .enumerate()
            .map(|(number, field)| format!("{} AS k2_key{number}", identifier(&field.by.column)))
            .collect();
        if columns.is_empty() {
            columns.push(identifier(&cursor.name));
        }
        self.rows(&columns.join(", "), &within(cursor, window))
    }

    /// The SELECT whose Parquet becomes a data file: one window, or one partition of it.
    pub fn select(
        &self,
        columns: &[Column],
        cursor: &Cursor,
        window: Window,
        partition: &[(&str, Predicate<'_>)],
    ) -> String {
        let names: Vec<String> = columns.iter().map(|column| identifier(&column.name)).collect();
        let casts: Vec<String> = columns.iter().enumerate().map(|(number, column)| project(column, number)).collect();
        let filter = within_partition(cursor, window, partition);
        format!("SELECT {} FROM ({})", casts.join(", "), self.rows(&names.join(", "), &filter))
    }
}

/// The half-open range `[low, high)` of a time column. A bound beyond the type holds for every row, and is left out.
fn within(cursor: &Cursor, window: Window) -> String {
    let column = identifier(&cursor.name);
    let (first, last) = match cursor.kind {
        CursorType::Date => (0, i64::from(u16::MAX)),
        CursorType::DateTime => (0, i64::from(u32::MAX)),
        CursorType::DateTime64 { .. } => (i64::MIN, i64::MAX),
    };
    let low = window.low.filter(|low| *low > first).map(|low| format!("{column} >= {}", literal(low, cursor.kind)));
    let high = (window.high <= last).then(|| format!("{column} < {}", literal(window.high, cursor.kind)));
    let bounds: Vec<String> = low.into_iter().chain(high).collect();
    if bounds.is_empty() { "1".to_owned() } else { bounds.join(" AND ") }
}

/// A window, or one partition of it.
fn within_partition(cursor: &Cursor, window: Window, partition: &[(&str, Predicate<'_>)]) -> String {
    let values = partition.iter().map(|(column, predicate)| matches(column, predicate));
    std::iter::once(within(cursor, window)).chain(values).collect::<Vec<_>>().join(" AND ")
}

/// Rows whose partition column has a value.
fn matches(column: &str, predicate: &Predicate<'_>) -> String {
    let quoted = identifier(column);
    match predicate {
        Predicate::Null => format!("isNull({quoted})"),
        Predicate::Ticks(cursor, low, high) => within(cursor, Window { low: Some(*low), high: *high }),
        Predicate::Equals(Value::Number(number)) => format!("{quoted} = {number}"),
        Predicate::Equals(Value::Text(text)) => format!("{quoted} = {}", string(text)),
    }
}

/// The values of all fields as an array of text, never null: [`NULL_KEY`], or [`VALUE_KEY`] and the value.
fn keys(fields: &[PartitionField]) -> String {
    let keys: Vec<String> = fields
        .iter()
        .enumerate()
        .map(|(number, field)| {
            let value = key(&format!("k2_key{number}"), field);
            format!("ifNull(concat('{VALUE_KEY}', toString({value})), '{NULL_KEY}')")
        })
        .collect();
    format!("CAST([{}], 'Array(String)')", keys.join(", "))
}

/// The value of a field: for calendar transforms Iceberg's ordinal since 1970 in UTC, rounded down also before; else ticks, or the value.
fn key(column: &str, field: &PartitionField) -> String {
    let Some(kind) = field.time else {
        let refuse = |bad: &str| format!("if(throwIf({bad}, '{REFUSED_VALUE}{}'), NULL, {column})", field.number);
        return match field.iceberg {
            PrimitiveType::Boolean => format!("toUInt8({column})"),
            PrimitiveType::String => refuse(&format!("NOT isValidUTF8(toString({column}))")),
            PrimitiveType::Long => refuse(&format!("{column} > 9223372036854775807")),
            _ => column.to_owned(),
        };
    };
    let ticks = ticks(column, kind);
    // A bare width above 2^32 is a UInt64, and the modulo of a negative tick by it wraps.
    let every = |width: Tick| format!("intDiv({ticks} - positiveModulo({ticks}, toInt64({width})), toInt64({width}))");
    let zone = if kind == CursorType::Date { "" } else { ", 'UTC'" };
    let year = format!("(toInt32(toYear({column}{zone})) - 1970)");
    match field.by.grain {
        Grain::Identity => ticks,
        Grain::Hour => every(kind.ticks_per_day() / 24),
        Grain::Day => every(kind.ticks_per_day()),
        Grain::Month => format!("({year} * 12 + toMonth({column}{zone}) - 1)"),
        Grain::Year => year,
    }
}

/// A quoted time column as ticks.
fn ticks(column: &str, kind: CursorType) -> String {
    match kind {
        CursorType::Date | CursorType::DateTime => format!("toInt64({column})"),
        CursorType::DateTime64 { .. } => format!("reinterpretAsInt64({column})"),
    }
}

/// Ticks as whole seconds.
fn seconds(ticks: &str, kind: CursorType) -> String {
    match kind {
        CursorType::Date => format!("{ticks} * 86400"),
        CursorType::DateTime => ticks.to_owned(),
        CursorType::DateTime64 { scale } => format!("intDiv({ticks}, toInt64({}))", 10_i64.pow(u32::from(scale))),
    }
}

/// The server's clock in ticks.
fn tick_of_now(kind: CursorType) -> String {
    match kind {
        CursorType::Date => "toInt64(toDate(now('UTC'), 'UTC'))".to_owned(),
        CursorType::DateTime => "toInt64(now('UTC'))".to_owned(),
        CursorType::DateTime64 { scale } => format!("reinterpretAsInt64(now64({scale}, 'UTC'))"),
    }
}

/// A tick as a constant of the cursor's type, in no time zone but UTC.
fn literal(tick: Tick, kind: CursorType) -> String {
    match kind {
        CursorType::Date => format!("toDate(toUInt16({tick}))"),
        CursorType::DateTime => format!("toDateTime(toUInt32({tick}), 'UTC')"),
        CursorType::DateTime64 { scale } => format!("reinterpret(toInt64({tick}), 'DateTime64({scale}, \\'UTC\\')')"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::PartitionBy;

    const MILLIS: CursorType = CursorType::DateTime64 { scale: 3 };

    fn relation() -> Relation {
        Relation { database: "d".into(), name: "t".into(), table: table("d", "t"), host: "h".into() }
    }

    fn cursor(kind: CursorType) -> Cursor {
        Cursor { name: "t`s\\ '?".into(), kind }
    }

    #[test]
    fn hostile_names_stay_inside_their_quotes() {
        assert_eq!(identifier("a`; DROP TABLE x --"), r"`a\`; DROP TABLE x --`");
        assert_eq!(identifier(r"back\slash`"), r"`back\\slash\``");
        assert_eq!(string(r"o'clock\"), r"'o\'clock\\'");
        assert_eq!(table("d.b", "t?"), "`d.b`.`t?`");
    }

    #[test]
    fn bounds_are_ticks_of_the_cursors_own_type() {
        let window = Window { low: Some(-5), high: 7 };
        assert_eq!(
            within(&cursor(MILLIS), window),
            r"`t\`s\\ '?` >= reinterpret(toInt64(-5), 'DateTime64(3, \'UTC\')') AND `t\`s\\ '?` < reinterpret(toInt64(7), 'DateTime64(3, \'UTC\')')"
        );
        let beyond = |kind, low, high| within(&Cursor { name: "c".into(), kind }, Window { low: Some(low), high });
        assert_eq!(beyond(CursorType::DateTime, -5, 7), "`c` < toDateTime(toUInt32(7), 'UTC')");
        assert_eq!(beyond(CursorType::Date, 65_535, 65_536), "`c` >= toDate(toUInt16(65535))");
        assert_eq!(beyond(CursorType::DateTime, 0, i64::from(u32::MAX) + 1), "1");
        assert_eq!(literal(20_000, CursorType::Date), "toDate(toUInt16(20000))");
        assert!(!within(&cursor(MILLIS), Window { low: None, high: 7 }).contains(">="));
    }

    #[test]
    fn window_stands_inside_and_casts_outside() {
        let columns = [
            Column::map("ts", "DateTime64(3)", None).unwrap(),
            Column::map("n", "Nullable(UInt64)", None).unwrap(),
            Column::map("s", "LowCardinality(String)", None).unwrap(),
            Column::map("p", "Decimal(18, 8)", None).unwrap(),
        ];
        let ts = Cursor { name: "ts".into(), kind: MILLIS };
        let sql = relation().select(&columns, &ts, Window { low: None, high: 7 }, &[]);
        assert_eq!(
            sql,
            "SELECT CAST(`ts`, 'DateTime64(6, \\'UTC\\')') AS `ts`, \
             if(throwIf(`n` > 9223372036854775807, 'k2-offload-refused-column-1'), 0, accurateCast(`n`, 'Nullable(Int64)')) AS `n`, \
             if(throwIf(NOT isValidUTF8(CAST(`s`, 'String')), 'k2-offload-refused-column-2'), '', CAST(`s`, 'String')) AS `s`, \
             reinterpretAsInt64(`p`) AS `p` \
             FROM (SELECT `ts`, `n`, `s`, `p` FROM `d`.`t` WHERE (`ts` < reinterpret(toInt64(7), 'DateTime64(3, \\'UTC\\')')) \
             AND (SELECT throwIf(hostName() != 'h', 'k2-offload-other-server')) = 0)"
        );
    }

    /// P2: every query filters on the raw column, whatever it is called.
    #[test]
    fn a_cursor_may_bear_the_name_of_an_alias() {
        for name in ["day", "rows", "newest", "future", "nulls", "clock_micros", "low", "key", "seconds"] {
            let cursor = Cursor { name: name.into(), kind: CursorType::Date };
            let column = Column::map(name, "Date", None).unwrap();
            let by = PartitionBy { grain: Grain::Day, column: name.into() };
            let day = PartitionField::new(by, 0, &column, Some(CursorType::Date)).unwrap();
            let day = std::slice::from_ref(&day);
            let window = Window { low: None, high: 7 };
            let filter = format!("FROM `d`.`t` WHERE (`{name}` < toDate(toUInt16(7)))");
            for sql in [
                relation().histogram(&cursor, window, &[], 5),
                relation().count(&cursor, window, &[], 9),
                relation().count(&cursor, window, day, 9),
                relation().shortest_lifetime(&cursor, window, "toInt64(`day` + 1)"),
            ] {
                assert!(sql.contains(&filter), "{sql}");
                assert!(!sql.split_once(&filter).unwrap().0.split("FROM").last().unwrap().contains("count"), "{sql}");
            }
            let raw = format!("(SELECT `{name}` AS k2_cursor, `rows` + 1 AS k2_expires FROM `d`.`t`");
            assert!(relation().facts(&cursor, false, None, Some("`rows` + 1")).contains(&raw));
        }
    }

    #[test]
    fn a_partition_is_a_range_of_ticks_an_equality_or_null() {
        let ticks = Predicate::Ticks(Cursor { name: "d".into(), kind: CursorType::DateTime }, 86_400, 172_800);
        assert_eq!(
            matches("d", &ticks),
            "`d` >= toDateTime(toUInt32(86400), 'UTC') AND `d` < toDateTime(toUInt32(172800), 'UTC')"
        );
        assert_eq!(matches("d", &Predicate::Null), "isNull(`d`)");
        assert_eq!(matches("e`", &Predicate::Equals(&Value::Text("it's".into()))), r"`e\`` = 'it\'s'");
        assert_eq!(matches("e", &Predicate::Equals(&Value::Number(-5))), "`e` = -5");
    }

    #[test]
    fn partition_values_that_do_not_fit_are_refused_where_they_are_listed() {
        let column = Column::map("e", "String", None).unwrap();
        let field = PartitionField::new(PartitionBy::parse("e").unwrap(), 4, &column, None).unwrap();
        let sql = relation().count(&cursor(MILLIS), Window { low: None, high: 7 }, &[field], 9);
        assert!(sql.contains("throwIf(NOT isValidUTF8(toString(k2_key0)), 'k2-offload-refused-column-4')"), "{sql}");
    }
}
