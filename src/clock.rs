//! This host's clock, for people and files. It decides nothing about rows: windows follow the source's clock (protocol.md P9).

use chrono::{DateTime, SecondsFormat, Utc};

/// An instant as reports, history and logs have it: RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Now, as [`rfc3339`].
pub fn now() -> String {
    rfc3339(Utc::now())
}
