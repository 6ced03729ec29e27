//! The cursor: the source column that orders a table in time, and its ticks.
//!
//! A tick is the smallest step of the cursor's type: a day for `Date`, a second for `DateTime`, 10^-scale seconds for
//! `DateTime64(scale)`. Bounds are ticks everywhere, as 64-bit integers since 1970-01-01 UTC, so that no time zone and no
//! rounding stands between the plan, the SQL and the marker (protocol.md P1).

use std::time::Duration;

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use clickhouse_types::DataTypeNode;
use clickhouse_types::data_types::DateTimePrecision;
use serde::{Deserialize, Serialize};

/// Number of ticks since 1970-01-01T00:00:00Z.
pub type Tick = i64;

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Microseconds in a second.
pub const MICROS_PER_SECOND: i64 = 1_000_000;

/// The cursor column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Name of the source column.
    pub name: String,
    /// Its type, without time zone and Nullable.
    #[serde(rename = "type")]
    pub kind: CursorType,
}

/// The types that can order a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", deny_unknown_fields)]
pub enum CursorType {
    /// Days.
    Date,
    /// Seconds.
    DateTime,
    /// Decimal fractions of a second; `scale` is 0 to 6.
    DateTime64 {
        /// Number of decimal digits of a second.
        scale: u8,
    },
}

impl CursorType {
    /// The cursor type of a ClickHouse type, `None` where it is not time or finer than microseconds.
    pub fn of(node: &DataTypeNode) -> Option<Self> {
        match node {
            DataTypeNode::Nullable(inner) | DataTypeNode::LowCardinality(inner) => Self::of(inner),
            DataTypeNode::Date => Some(Self::Date),
            DataTypeNode::DateTime(_) => Some(Self::DateTime),
            DataTypeNode::DateTime64(precision, _) => {
                datetime64_scale(precision).map(|scale| Self::DateTime64 { scale })
            }
            _ => None,
        }
    }

    /// Microseconds per tick.
    const fn micros(self) -> i64 {
        match self {
            Self::Date => MICROS_PER_DAY,
            Self::DateTime => MICROS_PER_SECOND,
            Self::DateTime64 { scale } => 10_i64.pow(6_u32.saturating_sub(scale as u32)),
        }
    }

    /// The last tick at or before an instant in microseconds since 1970.
    pub const fn tick_at(self, micros: i64) -> Tick {
        micros.div_euclid(self.micros())
    }

    /// The first tick at or after an instant in microseconds since 1970.
    pub const fn tick_from(self, micros: i64) -> Tick {
        self.tick_at(micros.saturating_sub(1)).saturating_add(1)
    }

    /// The instant of a tick in microseconds since 1970, `None` beyond the range of 64 bits.
    pub const fn micros_at(self, tick: Tick) -> Option<i64> {
        tick.checked_mul(self.micros())
    }

    /// Ticks of a duration, `None` where it is no whole number of them.
    pub fn ticks_in(self, duration: Duration) -> Option<Tick> {
        let micros = micros_of(duration);
        (micros.rem_euclid(self.micros()) == 0 && duration.subsec_nanos().is_multiple_of(1000))
            .then(|| micros / self.micros())
    }

    /// Ticks in 24 hours.
    pub const fn ticks_per_day(self) -> Tick {
        MICROS_PER_DAY / self.micros()
    }

    /// RFC 3339 in UTC with the precision of the cursor, for people and JSON.
    pub fn format(self, tick: Tick) -> String {
        let Some(time) = self.micros_at(tick).and_then(DateTime::from_timestamp_micros) else {
            return format!("tick {tick}");
        };
        let Self::DateTime64 { scale: digits @ 1.. } = self else {
            return time.to_rfc3339_opts(SecondsFormat::Secs, true);
        };
        let fraction = format!("{:06}", time.timestamp_subsec_micros());
        let digits = fraction.get(..usize::from(digits)).unwrap_or(&fraction);
        format!("{}.{digits}Z", time.format("%Y-%m-%dT%H:%M:%S"))
    }
}

/// Decimal digits of a `DateTime64`, `None` above 6: Iceberg's timestamptz holds microseconds.
pub fn datetime64_scale(precision: &DateTimePrecision) -> Option<u8> {
    match precision {
        DateTimePrecision::Precision0 => Some(0),
        DateTimePrecision::Precision1 => Some(1),
        DateTimePrecision::Precision2 => Some(2),
        DateTimePrecision::Precision3 => Some(3),
        DateTimePrecision::Precision4 => Some(4),
        DateTimePrecision::Precision5 => Some(5),
        DateTimePrecision::Precision6 => Some(6),
        DateTimePrecision::Precision7 | DateTimePrecision::Precision8 | DateTimePrecision::Precision9 => None,
    }
}

/// Parses an instant that a user wrote: RFC 3339, or a bare date for midnight UTC.
pub fn parse_instant(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    if let Some(midnight) = text.parse::<NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0)) {
        return Ok(midnight.and_utc());
    }
    Err(format!("`{text}` is neither RFC 3339 (2026-11-20T10:00:00Z) nor a date (2026-11-20)"))
}

/// A `Duration` in microseconds, saturating.
pub fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLIS: CursorType = CursorType::DateTime64 { scale: 3 };

    #[test]
    fn formats_with_the_precision_of_the_cursor() {
        assert_eq!(MILLIS.format(1_763_632_800_123), "2025-11-20T10:00:00.123Z");
        assert_eq!(MILLIS.format(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(CursorType::DateTime.format(0), "1970-01-01T00:00:00Z");
        assert_eq!(CursorType::Date.format(-1), "1969-12-31T00:00:00Z");
        assert_eq!(CursorType::DateTime64 { scale: 0 }.format(5), "1970-01-01T00:00:05Z");
        assert_eq!(CursorType::DateTime64 { scale: 6 }.format(1), "1970-01-01T00:00:00.000001Z");
        assert_eq!(CursorType::Date.format(i64::MAX), format!("tick {}", i64::MAX));
    }

    #[test]
    fn knows_time_types() {
        let of = |name: &str| CursorType::of(&DataTypeNode::new(name).unwrap());
        assert_eq!(of("DateTime64(3, 'Asia/Tokyo')"), Some(MILLIS));
        assert_eq!(of("Nullable(DateTime('UTC'))"), Some(CursorType::DateTime));
        assert_eq!(of("Date"), Some(CursorType::Date));
        assert_eq!(of("DateTime64(9)"), None);
        assert_eq!(of("String"), None);
        assert_eq!(of("UInt64"), None);
    }

    #[test]
    fn parses_what_users_write() {
        assert_eq!(parse_instant("2026-11-20").unwrap(), parse_instant("2026-11-20T00:00:00Z").unwrap());
        assert_eq!(parse_instant("2026-11-20T01:00:00+01:00").unwrap(), parse_instant("2026-11-20").unwrap());
        assert!(parse_instant("yesterday").is_err());
    }

    proptest! {
        #[test]
        fn a_tick_holds_its_own_instants(micros in -4_000_000_000_000_000_i64..8_000_000_000_000_000, scale in 0_u8..=6) {
            for kind in [CursorType::Date, CursorType::DateTime, CursorType::DateTime64 { scale }] {
                let tick = kind.tick_at(micros);
                prop_assert!(kind.micros_at(tick).unwrap() <= micros);
                prop_assert!(kind.micros_at(tick + 1).unwrap() > micros);
                let from = kind.tick_from(micros);
                prop_assert!(kind.micros_at(from).unwrap() >= micros && kind.micros_at(from - 1).unwrap() < micros);
            }
        }

        #[test]
        fn formatted_ticks_parse_back(tick in -2_000_000_000_000_i64..4_000_000_000_000) {
            let parsed = parse_instant(&MILLIS.format(tick)).unwrap();
            prop_assert_eq!(MILLIS.tick_at(parsed.timestamp_micros()), tick);
        }
    }
}
