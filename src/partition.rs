//! Partitions: how the rows of a source fall into the partition values of a target. Pure.
//!
//! A value comes from the source as text, so that one query lists the values of any spec; it goes back into a SELECT as a range of ticks or as an equality,
//! and into the manifest as an Iceberg literal.

use std::fmt;

use chrono::{NaiveDate, TimeDelta};
use iceberg::spec::{Literal, PrimitiveType, Transform};

use crate::cursor::{Cursor, CursorType, Tick};
use crate::error::{Error, Kind, Result};
use crate::schema::Column;

/// The transforms that this version writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Calendar year in UTC.
    Year,
    /// Calendar month in UTC.
    Month,
    /// Day in UTC.
    Day,
    /// Hour in UTC.
    Hour,
    /// The value itself.
    Identity,
}

impl Grain {
    /// Iceberg's name for it.
    pub fn transform(self) -> Transform {
        match self {
            Self::Year => Transform::Year,
            Self::Month => Transform::Month,
            Self::Day => Transform::Day,
            Self::Hour => Transform::Hour,
            Self::Identity => Transform::Identity,
        }
    }

    /// The grain of a transform, `None` for those that this version does not write.
    pub fn of(transform: Transform) -> Option<Self> {
        [Self::Year, Self::Month, Self::Day, Self::Hour, Self::Identity]
            .into_iter()
            .find(|g| g.transform() == transform)
    }
}

/// A partition field as the configuration or a spec names it: `day(ts)`, `exchange`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionBy {
    /// The transform.
    pub grain: Grain,
    /// Its column.
    pub column: String,
}

impl PartitionBy {
    /// Parses `day(column)`, `days(column)`, `identity(column)`, `column`.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((name, rest)) = text.split_once('(') else {
            let column = text.trim();
            return (!column.is_empty()).then(|| Self { grain: Grain::Identity, column: column.to_owned() });
        };
        let grain = match name.trim() {
            "year" | "years" => Grain::Year,
            "month" | "months" => Grain::Month,
            "day" | "days" => Grain::Day,
            "hour" | "hours" => Grain::Hour,
            "identity" => Grain::Identity,
            _ => return None,
        };
        let column = rest.strip_suffix(')')?.trim();
        (!column.is_empty()).then(|| Self { grain, column: column.to_owned() })
    }

    /// Name of the field in new specs, as other writers choose it.
    pub fn field_name(&self) -> String {
        match self.grain {
            Grain::Identity => self.column.clone(),
            grain => format!("{}_{}", self.column, grain.transform()),
        }
    }
}

impl fmt::Display for PartitionBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.grain {
            Grain::Identity => f.write_str(&self.column),
            grain => write!(f, "{}({})", grain.transform(), self.column),
        }
    }
}

/// A partition field over a known source column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionField {
    /// Transform and column.
    pub by: PartitionBy,
    /// Type of the column where it is time.
    pub time: Option<CursorType>,
    /// Type that it has in the target.
    pub iceberg: PrimitiveType,
    /// Number of the column in the source, for refusals.
    pub number: usize,
}

/// A value of one field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// An ordinal of a calendar transform, a tick, an integer or a boolean.
    Number(i64),
    /// A string.
    Text(String),
}

/// How a value is looked for in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Predicate<'a> {
    /// The column is null.
    Null,
    /// The column, a time, lies in `[low, high)`.
    Ticks(Cursor, Tick, Tick),
    /// The column equals a number or string.
    Equals(&'a Value),
}

impl PartitionField {
    /// Checks that a column can be partitioned so.
    pub fn new(by: PartitionBy, number: usize, column: &Column, time: Option<CursorType>) -> Result<Self> {
        use PrimitiveType as I;
        let iceberg = column.primitive().cloned();
        // A time that is kept as text is text.
        let time = time.filter(|_| matches!(iceberg, Some(I::Date | I::Timestamptz)));
        let fits = match by.grain {
            Grain::Identity => time.is_some() || matches!(iceberg, Some(I::Int | I::Long | I::String | I::Boolean)),
            Grain::Hour => time.is_some_and(|time| time != CursorType::Date),
            Grain::Year | Grain::Month | Grain::Day => time.is_some(),
        };
        if let Some(iceberg) = iceberg.filter(|_| fits) {
            return Ok(Self { by, time, iceberg, number });
        }
        Err(Error::new(Kind::Config, format!("`{by}` cannot partition a column of type {}", column.source_type))
            .hint("calendar transforms need a time column; a column as it is can be time, text, integer or boolean"))
    }

    /// Reads what the source printed.
    pub fn value(&self, text: &str) -> Result<Value> {
        let bad = || Error::new(Kind::Internal, format!("the source printed an unexpected value of `{}`", self.by));
        match (&self.iceberg, self.time) {
            (PrimitiveType::String, _) => Ok(Value::Text(text.to_owned())),
            _ => text.parse().map(Value::Number).map_err(|_| bad()),
        }
    }

    /// How `value` is looked for.
    pub fn predicate<'a>(&self, value: Option<&'a Value>) -> Result<Predicate<'a>> {
        let beyond = || Error::new(Kind::Internal, format!("a value of `{}` is beyond the calendar", self.by));
        match (value, self.time) {
            (None, _) => Ok(Predicate::Null),
            (Some(Value::Number(number)), Some(kind)) => {
                let (low, high) = self.by.grain.ticks(kind, *number).ok_or_else(beyond)?;
                Ok(Predicate::Ticks(Cursor { name: self.by.column.clone(), kind }, low, high))
            }
            (Some(value), _) => Ok(Predicate::Equals(value)),
        }
    }

    /// The value as other writers name folders after it. (iceberg 0.10's `to_human_string` panics on years, months and hours.)
    pub fn folder(&self, value: Option<&Value>) -> String {
        let Some(value) = value else { return "null".to_owned() };
        let number = match value {
            Value::Text(text) => return text.clone(),
            Value::Number(number) => *number,
        };
        let date = |days: Option<i64>| NaiveDate::default().checked_add_signed(TimeDelta::try_days(days?)?);
        let named = match self.by.grain {
            Grain::Year => Some((number + 1970).to_string()),
            Grain::Month => date(first_of_month(number)).map(|first| first.format("%Y-%m").to_string()),
            Grain::Day => date(Some(number)).map(|day| day.to_string()),
            Grain::Hour => date(Some(number.div_euclid(24))).map(|day| format!("{day}-{:02}", number.rem_euclid(24))),
            Grain::Identity if self.iceberg == PrimitiveType::Boolean => Some((number != 0).to_string()),
            Grain::Identity => self.time.and_then(|kind| match kind {
                CursorType::Date => date(Some(number)).map(|day| day.to_string()),
                kind => Some(kind.format(number)),
            }),
        };
        named.unwrap_or_else(|| number.to_string())
    }

    /// The value as the manifest holds it.
    pub fn literal(&self, value: &Value) -> Result<Literal> {
        let beyond = || Error::new(Kind::Internal, format!("a value of `{}` does not fit the target", self.by));
        Ok(match (value, &self.iceberg, self.by.grain, self.time) {
            (Value::Text(text), ..) => Literal::string(text),
            (Value::Number(number), PrimitiveType::Boolean, ..) => Literal::bool(*number != 0),
            (Value::Number(number), PrimitiveType::Long, ..) => Literal::long(*number),
            (Value::Number(tick), PrimitiveType::Timestamptz, Grain::Identity, Some(kind)) => {
                Literal::timestamptz(kind.micros_at(*tick).ok_or_else(beyond)?)
            }
            (Value::Number(number), ..) => Literal::int(i32::try_from(*number).map_err(|_| beyond())?),
        })
    }
}

impl Grain {
    /// The half-open range of ticks of an ordinal; for [`Grain::Identity`] the ordinal is a tick.
    fn ticks(self, kind: CursorType, ordinal: i64) -> Option<(Tick, Tick)> {
        let per_day = kind.ticks_per_day();
        let days = |day: i64| day.checked_mul(per_day);
        Some(match self {
            Self::Identity => (ordinal, ordinal.checked_add(1)?),
            Self::Hour => (ordinal.checked_mul(per_day / 24)?, ordinal.checked_add(1)?.checked_mul(per_day / 24)?),
            Self::Day => (days(ordinal)?, days(ordinal.checked_add(1)?)?),
            Self::Month => (days(first_of_month(ordinal)?)?, days(first_of_month(ordinal.checked_add(1)?)?)?),
            Self::Year => (
                days(first_of_month(ordinal.checked_mul(12)?)?)?,
                days(first_of_month(ordinal.checked_add(1)?.checked_mul(12)?)?)?,
            ),
        })
    }
}

/// Days from 1970-01-01 to the first of a month that is counted from January 1970.
fn first_of_month(month: i64) -> Option<i64> {
    let year = i32::try_from(month.div_euclid(12) + 1970).ok()?;
    let first = NaiveDate::from_ymd_opt(year, u32::try_from(month.rem_euclid(12)).ok()? + 1, 1)?;
    Some((first - NaiveDate::default()).num_days())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_what_users_write() {
        let by = |text: &str| PartitionBy::parse(text).map(|by| by.to_string());
        for (text, parsed) in [
            ("day(ts)", "day(ts)"),
            ("days( ts )", "day(ts)"),
            ("exchange", "exchange"),
            ("identity(a b)", "a b"),
            ("month(ts)", "month(ts)"),
        ] {
            assert_eq!(by(text).as_deref(), Some(parsed));
        }
        for text in ["bucket(4, a)", "truncate(a)", "", "day()", "day(ts", "()"] {
            assert_eq!(by(text), None, "{text}");
        }
        assert_eq!(PartitionBy::parse("hours(ts)").unwrap().field_name(), "ts_hour");
    }

    #[test]
    fn columns_that_cannot_be_partitioned_so_are_refused() {
        let field = |by: &str, kind: &str| {
            let column = Column::map("c", kind, None).unwrap();
            let time = CursorType::of(&clickhouse_types::DataTypeNode::new(kind).unwrap());
            PartitionField::new(PartitionBy::parse(by).unwrap(), 0, &column, time)
        };
        for (by, kind) in [("day(c)", "String"), ("hour(c)", "Date"), ("c", "Float64"), ("c", "Decimal(9, 2)")] {
            assert_eq!(field(by, kind).unwrap_err().kind(), Kind::Config, "{by} {kind}");
        }
        for (by, kind) in
            [("hour(c)", "DateTime"), ("year(c)", "Date"), ("c", "Enum8('a' = 1)"), ("c", "Bool"), ("c", "Date")]
        {
            assert!(field(by, kind).is_ok(), "{by} {kind}");
        }
    }

    #[test]
    fn a_time_that_is_kept_as_text_is_text() {
        let column = Column::map("c", "DateTime", Some("string")).unwrap();
        let field =
            |by: &str| PartitionField::new(PartitionBy::parse(by).unwrap(), 0, &column, Some(CursorType::DateTime));
        let value = field("c").unwrap().value("2024-03-10 12:00:00").unwrap();
        assert_eq!(value, Value::Text("2024-03-10 12:00:00".into()));
        assert_eq!(field("day(c)").unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn folders_are_named_as_by_other_writers() {
        let folder = |by: &str, kind: &str, number: i64| {
            let column = Column::map("c", kind, None).unwrap();
            let time = CursorType::of(&clickhouse_types::DataTypeNode::new(kind).unwrap());
            let field = PartitionField::new(PartitionBy::parse(by).unwrap(), 0, &column, time).unwrap();
            field.folder(Some(&Value::Number(number)))
        };
        assert_eq!(folder("year(c)", "DateTime", 56), "2026");
        assert_eq!(folder("month(c)", "DateTime", 671), "2025-12");
        assert_eq!(folder("month(c)", "Date", -1), "1969-12");
        assert_eq!(folder("day(c)", "DateTime64(3)", -1), "1969-12-31");
        assert_eq!(folder("hour(c)", "DateTime", -1), "1969-12-31-23");
        assert_eq!(folder("c", "Int32", -7), "-7");
        assert_eq!(folder("c", "Bool", 1), "true");
        assert_eq!(folder("c", "Date", 0), "1970-01-01");
        assert_eq!(folder("year(c)", "DateTime", i64::MAX - 1970), i64::MAX.to_string());
    }

    proptest! {
        /// Every tick lies in the range of its own ordinal, as Iceberg counts it.
        #[test]
        fn ranges_hold_their_ticks(micros in -2_000_000_000_000_000_i64..10_000_000_000_000_000, scale in 0_u8..=6) {
            use chrono::Datelike;
            let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            let year = i64::from(time.year()) - 1970;
            let ordinals = [
                (Grain::Year, year),
                (Grain::Month, year * 12 + i64::from(time.month0())),
                (Grain::Day, micros.div_euclid(86_400_000_000)),
                (Grain::Hour, micros.div_euclid(3_600_000_000)),
            ];
            for (grain, ordinal) in ordinals {
                for kind in [CursorType::DateTime64 { scale }, CursorType::DateTime] {
                    let tick = kind.tick_at(micros);
                    let (low, high) = grain.ticks(kind, ordinal).unwrap();
                    prop_assert!(low <= tick && tick < high, "{grain:?} {kind:?}");
                    prop_assert!(tick < grain.ticks(kind, ordinal + 1).unwrap().0);
                }
            }
        }
    }
}
