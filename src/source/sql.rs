//! What queries are made of: quoting, bounds, ticks, partition values. Pure, so that hostile names and odd cursors are tested without a server.
//!
//! Rules that stand here: bounds are ticks, and every date function names UTC (protocol.md P1).

use iceberg::spec::PrimitiveType;

use super::projection::REFUSED_VALUE;
use crate::config::{HIGH, LOW};
use crate::cursor::{Cursor, CursorType, Tick};
use crate::partition::{Grain, PartitionField, Predicate, Value};
use crate::plan::Window;

/// Text of our own in the error of a SELECT that reached another server than the pass began on (P4).
pub const OTHER_SERVER: &str = "k2-offload-other-server";

/// How a null partition value is listed.
pub const NULL_KEY: &str = "!";

/// What a partition value that is not null is listed behind.
pub const VALUE_KEY: &str = "=";

/// The server's clock, microseconds since 1970.
pub const CLOCK_MICROS: &str = "toInt64(toUnixTimestamp64Micro(now64(6, 'UTC')))";

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

/// UUID and engine of a table, the latter with all its clauses, and the columns by which it is sorted or partitioned.
pub fn definition(database: &str, table: &str) -> String {
    let (database, table) = (string(database), string(table));
    format!(
        "SELECT toString(uuid) AS uuid, engine_full, (SELECT groupArray(name) FROM system.columns \
         WHERE database = {database} AND table = {table} AND (is_in_sorting_key OR is_in_partition_key)) AS fixed_columns \
         FROM system.tables WHERE database = {database} AND name = {table}"
    )
}

/// The half-open range `[low, high)` of a time column. A bound beyond the type holds for every row, and is left out.
pub(super) fn within(cursor: &Cursor, window: Window) -> String {
    let column = identifier(&cursor.name);
    let (first, last) = match cursor.kind {
        CursorType::DateTime64 { .. } => (i64::MIN, i64::MAX),
        kind => first_and_last(kind),
    };
    let low = window.low.filter(|low| *low > first).map(|low| format!("{column} >= {}", literal(low, cursor.kind)));
    let high = (window.high <= last).then(|| format!("{column} < {}", literal(window.high, cursor.kind)));
    let bounds: Vec<String> = low.into_iter().chain(high).collect();
    if bounds.is_empty() { "1".to_owned() } else { bounds.join(" AND ") }
}

/// The first and the last tick that a column of the type takes from an INSERT.
fn first_and_last(kind: CursorType) -> (Tick, Tick) {
    match kind {
        CursorType::Date => (0, i64::from(u16::MAX)),
        CursorType::DateTime => (0, i64::from(u32::MAX)),
        // 1900-01-01 and 2299-12-31 23:59:59.
        CursorType::DateTime64 { scale } => {
            let second = 10_i64.pow(u32::from(scale));
            (-2_208_988_800 * second, 10_413_791_999 * second)
        }
    }
}

/// A query with the bounds of a window in their places. A bound beyond the type is the last that there is.
pub(super) fn bounded(query: &str, kind: CursorType, window: Window) -> String {
    let (first, last) = first_and_last(kind);
    let bound = |tick: Tick| literal(tick.clamp(first, last), kind);
    // On lines of its own, because it may end with a comment.
    let query = query.replace(LOW, &bound(window.low.unwrap_or(first))).replace(HIGH, &bound(window.high));
    format!("(\n{query}\n)")
}

/// A window, or one partition of it.
pub(super) fn within_partition(cursor: &Cursor, window: Window, partition: &[(&str, Predicate<'_>)]) -> String {
    let values = partition.iter().map(|(column, predicate)| matches(column, predicate));
    std::iter::once(within(cursor, window)).chain(values).collect::<Vec<_>>().join(" AND ")
}

/// Rows whose partition column has a value.
pub(super) fn matches(column: &str, predicate: &Predicate<'_>) -> String {
    let quoted = identifier(column);
    match predicate {
        Predicate::Null => format!("isNull({quoted})"),
        Predicate::Ticks(cursor, low, high) => within(cursor, Window { low: Some(*low), high: *high }),
        Predicate::Equals(Value::Number(number)) => format!("{quoted} = {number}"),
        Predicate::Equals(Value::Text(text)) => format!("{quoted} = {}", string(text)),
    }
}

/// The values of all fields as an array of text, never null: [`NULL_KEY`], or [`VALUE_KEY`] and the value.
pub(super) fn keys(fields: &[PartitionField]) -> String {
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
pub(super) fn ticks(column: &str, kind: CursorType) -> String {
    match kind {
        CursorType::Date | CursorType::DateTime => format!("toInt64({column})"),
        CursorType::DateTime64 { .. } => format!("reinterpretAsInt64({column})"),
    }
}

/// Ticks as whole seconds.
pub(super) fn seconds(ticks: &str, kind: CursorType) -> String {
    match kind {
        CursorType::Date => format!("{ticks} * 86400"),
        CursorType::DateTime => ticks.to_owned(),
        CursorType::DateTime64 { scale } => format!("intDiv({ticks}, toInt64({}))", 10_i64.pow(u32::from(scale))),
    }
}

/// The server's clock in ticks.
pub(super) fn tick_of_now(kind: CursorType) -> String {
    match kind {
        CursorType::Date => "toInt64(toDate(now('UTC'), 'UTC'))".to_owned(),
        CursorType::DateTime => "toInt64(now('UTC'))".to_owned(),
        CursorType::DateTime64 { scale } => format!("reinterpretAsInt64(now64({scale}, 'UTC'))"),
    }
}

/// A tick as a constant of the cursor's type, in no time zone but UTC.
pub(super) fn literal(tick: Tick, kind: CursorType) -> String {
    match kind {
        CursorType::Date => format!("toDate(toUInt16({tick}))"),
        CursorType::DateTime => format!("toDateTime(toUInt32({tick}), 'UTC')"),
        CursorType::DateTime64 { scale } => format!("reinterpret(toInt64({tick}), 'DateTime64({scale}, \\'UTC\\')')"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLIS: CursorType = CursorType::DateTime64 { scale: 3 };

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
}
