//! The states of tables, told to others: a table `offload_watermarks` in PostgreSQL or ClickHouse, for dashboards, and for hosts without a cache of
//! their own.
//!
//! Like the cache beside it, it feeds no plan (protocol.md P20), and no pass fails for it. Its columns are those of the platform that k2-offload
//! is named after; a table that somebody made there before is taken as it is, and only the columns that it has are written.

mod clickhouse;
mod ledger;
mod postgres;

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use self::clickhouse::ClickHouse;
pub use self::ledger::Ledger;
use self::postgres::Postgres;
use super::TableState;
use crate::clock::rfc3339;
use crate::config::Records as Config;
use crate::cursor::Tick;
use crate::error::Result;
use crate::postgres::Client;
use crate::report::RunTable;

/// The table.
const TABLE: &str = "offload_watermarks";
/// Stands for no watermark where the column may not be null, as it does in the platform's own rows.
const NEVER: &str = "1970-01-01T00:00:00Z";
const RUNNING: &str = "running";

/// What is told of a table. What is `None` stays as it was there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The target; in the store, `table_name`: the source, or the target where several have that source.
    pub target: String,
    /// The exclusive watermark, RFC 3339: `last_offload_timestamp`.
    pub watermark: Option<String>,
    /// The bound up to which the source was looked at.
    pub checked_to: Option<Tick>,
    /// End of the last pass that succeeded, RFC 3339: `last_successful_run`. Never goes back.
    pub last_success_at: Option<String>,
    /// `last_run_duration_seconds`.
    pub last_duration_ms: Option<i64>,
    /// `initialized`, `running`, `success` or `failed`.
    pub status: Option<String>,
    /// Failures since the last success.
    pub failure_count: Option<i64>,
    /// Error of the last failure since the last success: `last_error_message`. `None` is told too, unless the pass is only about to begin.
    pub last_error: Option<String>,
}

impl Record {
    /// A pass over `target` is about to begin.
    pub fn running(target: &str) -> Self {
        Self { target: target.to_owned(), status: Some(RUNNING.to_owned()), ..Self::default() }
    }

    /// The watermark of `target` was put elsewhere, which is all that is known of the source.
    pub fn reset(target: &str, watermark: String, checked_to: Tick) -> Self {
        let (watermark, checked_to) = (Some(watermark), Some(checked_to));
        Self { target: target.to_owned(), watermark, checked_to, ..Self::default() }
    }

    /// What a pass leaves, and the cache remembers after it; without a cache, what was told before it. `None` of a pass that found the table locked:
    /// another one is at work, and tells of it.
    pub fn finished(report: &RunTable, remembered: Option<&TableState>, before: Option<&Self>) -> Option<Self> {
        use crate::error::Kind;

        let error = report.error.as_ref();
        let kind = error.map(|error| error.kind);
        if kind == Some(Kind::Locked) {
            return None;
        }
        let counted = kind != Some(Kind::Stopped);
        let failures = before.and_then(|before| before.failure_count).unwrap_or(0);
        let unremembered = TableState {
            status: match kind {
                None => "success",
                Some(Kind::Stopped) => "initialized",
                Some(_) => "failed",
            }
            .to_owned(),
            last_success_at: error.is_none().then(crate::clock::now),
            failure_count: if error.is_some() { failures + i64::from(counted) } else { 0 },
            last_error: error.map(|error| error.message.clone()),
            last_duration_ms: i64::try_from(report.duration_ms).ok(),
            ..TableState::default()
        };
        let known = remembered.unwrap_or(&unremembered);
        let succeeded = |told: bool| told && error.is_none();
        Some(Self {
            target: report.target.clone(),
            watermark: report.watermark.clone(),
            // Another host may have looked further than this one remembers.
            checked_to: known.checked_to.filter(|_| succeeded(true)),
            last_success_at: known.last_success_at.clone().filter(|_| succeeded(true)),
            last_duration_ms: known.last_duration_ms,
            status: Some(known.status.clone()),
            failure_count: Some(known.failure_count),
            last_error: known.last_error.clone(),
        })
    }

    /// As the cache has it.
    pub fn remembered(&self) -> TableState {
        let caught_up = self.last_success_at.as_deref().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        TableState {
            status: self.status.clone().unwrap_or_default(),
            checked_to: self.checked_to,
            watermark: self.watermark.clone(),
            last_success_at: self.last_success_at.clone(),
            last_duration_ms: self.last_duration_ms,
            failure_count: self.failure_count.unwrap_or(0),
            last_error: self.last_error.clone(),
            // A pass that succeeded left nothing behind that could leave.
            caught_up_ms: caught_up.map(|time| time.timestamp_millis()),
            ..TableState::default()
        }
    }

    /// For statements: text or null.
    fn json(&self) -> Value {
        json!({
            "table_name": self.target,
            "watermark": self.watermark,
            "checked_to": self.checked_to.map(|tick| tick.to_string()),
            "succeeded_at": self.last_success_at,
            "seconds": self.last_duration_ms.map(|ms| format!("{}.{:03}", ms / 1000, ms % 1000)),
            "status": self.status,
            "failures": self.failure_count.map(|failures| failures.to_string()),
            "error": self.last_error,
        })
    }

    /// Of the texts that the store has: target, watermark, tick, success, seconds, status, failures, error.
    fn of_texts([target, watermark, tick, success, seconds, status, failures, error]: [Option<String>; 8]) -> Self {
        let time = |text: Option<String>| Some(instant(&text?)?).filter(|time| time.timestamp_micros() != 0);
        let exact = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        let seconds: Option<f64> = seconds.and_then(|seconds| seconds.parse().ok());
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            target: target.unwrap_or_default(),
            watermark: time(watermark).map(exact),
            checked_to: tick.and_then(|tick| tick.parse().ok()),
            last_success_at: time(success).map(rfc3339),
            last_duration_ms: seconds.map(|seconds| (seconds * 1000.0).round() as i64),
            status: some(status),
            failure_count: failures.and_then(|failures| failures.parse().ok()),
            last_error: some(error),
        }
    }
}

/// RFC 3339, or as ClickHouse has it, in UTC.
fn instant(text: &str) -> Option<DateTime<Utc>> {
    let text = text.replace(' ', "T");
    let zoned = DateTime::parse_from_rfc3339(&text).or_else(|_| DateTime::parse_from_rfc3339(&format!("{text}Z")));
    Some(zoned.ok()?.to_utc())
}

/// The store.
#[derive(Debug)]
pub enum Records {
    /// A PostgreSQL database.
    Postgres(Postgres),
    /// A ClickHouse database.
    ClickHouse(Box<ClickHouse>),
}

impl Records {
    /// Connects, and looks which columns the table has, if it is there.
    pub async fn connect(config: &Config, run_id: &str) -> Result<Self> {
        Ok(match config {
            Config::Postgres(config) => Self::Postgres(Postgres::connect(config, run_id).await?),
            Config::ClickHouse(config) => Self::ClickHouse(Box::new(ClickHouse::connect(config).await?)),
        })
    }

    /// Tells of tables, all at once; makes the table where it is missing.
    pub async fn publish(&self, records: &[Record]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let rows: Vec<Value> = records.iter().map(Record::json).collect();
        match self {
            Self::Postgres(postgres) => postgres.publish(&rows).await,
            Self::ClickHouse(clickhouse) => clickhouse.publish(&rows).await,
        }
    }

    /// What was told of all tables.
    pub async fn fetch(&self) -> Result<Vec<Record>> {
        let rows = match self {
            Self::Postgres(postgres) => postgres.fetch().await?,
            Self::ClickHouse(clickhouse) => clickhouse.fetch().await?,
        };
        Ok(rows.into_iter().map(Record::of_texts).collect())
    }

    /// Tries what passes need; changes nothing. What was found.
    pub async fn check(&self) -> Result<String> {
        match self {
            Self::Postgres(postgres) => postgres.check().await,
            Self::ClickHouse(clickhouse) => clickhouse.check().await,
        }
    }

    /// The connection, where it is one to PostgreSQL.
    fn client(&self) -> Option<Arc<Client>> {
        match self {
            Self::Postgres(postgres) => Some(postgres.client()),
            Self::ClickHouse(_) => None,
        }
    }
}

/// What a column of the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Name,
    Watermark,
    /// We know none.
    Sequence,
    Success,
    Seconds,
    Status,
    Failures,
    Error,
    CheckedTo,
    Updated,
}

impl Meaning {
    /// Of the columns that we write.
    fn of(column: &str) -> Option<Self> {
        Some(match column {
            "table_name" => Self::Name,
            "last_offload_timestamp" => Self::Watermark,
            "last_offload_max_sequence" => Self::Sequence,
            "last_successful_run" => Self::Success,
            "last_run_duration_seconds" => Self::Seconds,
            "status" => Self::Status,
            "failure_count" => Self::Failures,
            "last_error_message" => Self::Error,
            "checked_to" => Self::CheckedTo,
            "updated_at" => Self::Updated,
            _ => return None,
        })
    }

    /// The field of [`Record::json`].
    fn field(self) -> Option<&'static str> {
        Some(match self {
            Self::Name => "table_name",
            Self::Watermark => "watermark",
            Self::Success => "succeeded_at",
            Self::Seconds => "seconds",
            Self::Status => "status",
            Self::Failures => "failures",
            Self::Error => "error",
            Self::CheckedTo => "checked_to",
            Self::Sequence | Self::Updated => return None,
        })
    }
}

/// The columns that [`Record::of_texts`] wants, in its order.
const READ: [Meaning; 8] = [
    Meaning::Name,
    Meaning::Watermark,
    Meaning::CheckedTo,
    Meaning::Success,
    Meaning::Seconds,
    Meaning::Status,
    Meaning::Failures,
    Meaning::Error,
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::error::{Error, Kind};
    use crate::progress::Progress;

    fn report(error: Option<Kind>) -> RunTable {
        let text = "[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n";
        let config = Config::parse(text, Path::new("/"), |_| None).unwrap();
        let error = error.map(|kind| Error::new(kind, "no server"));
        Progress::default().report(&config.tables[0], error.as_ref(), 1500)
    }

    #[test]
    fn a_pass_that_found_the_table_locked_tells_nothing() {
        assert_eq!(Record::finished(&report(Some(Kind::Locked)), None, None), None);
    }

    /// A host that knows less than others must not take back what they told.
    #[test]
    fn a_failure_tells_only_what_it_saw() {
        let known = TableState {
            status: "failed".into(),
            failure_count: 3,
            last_error: Some("no server".into()),
            checked_to: Some(5),
            watermark: Some("2026-01-01T00:00:00Z".into()),
            last_success_at: Some("2026-01-01T00:00:00.000Z".into()),
            ..TableState::default()
        };
        let told = Record::finished(&report(Some(Kind::Unavailable)), Some(&known), None).unwrap();
        let (failure_count, last_error) = (Some(3), Some("no server".to_owned()));
        let wanted = Record {
            status: Some("failed".into()),
            failure_count,
            last_error,
            target: "c.t".into(),
            ..Record::default()
        };
        assert_eq!(told, wanted);
    }

    #[test]
    fn without_a_cache_failures_are_counted_on() {
        let before = Record { failure_count: Some(2), ..Record::default() };
        let count = |error| Record::finished(&report(error), None, Some(&before)).unwrap().failure_count;
        assert_eq!(count(Some(Kind::Unavailable)), Some(3));
        assert_eq!(count(Some(Kind::Stopped)), Some(2));
        assert_eq!(count(None), Some(0));
    }

    #[test]
    fn texts_of_both_databases_are_read() {
        let texts = |watermark: &str, seconds: &str| {
            let texts = ["c.t", watermark, "9", "2026-01-02 03:04:05.000000", seconds, "success", "1", ""];
            Record::of_texts(texts.map(|text| Some(text.to_owned())))
        };
        let told = texts("2026-01-02T03:04:05.123000Z", "1.5");
        assert_eq!(told.watermark.as_deref(), Some("2026-01-02T03:04:05.123Z"));
        assert_eq!(
            (told.last_success_at.as_deref(), told.last_duration_ms),
            (Some("2026-01-02T03:04:05.000Z"), Some(1500))
        );
        assert_eq!((told.checked_to, told.failure_count, told.last_error), (Some(9), Some(1), None));
        assert_eq!(texts("1970-01-01T00:00:00.000000Z", "2").watermark, None, "the platform's word for none");
        assert_eq!(texts("yesterday", "long").watermark, None);
    }
}
