//! What the errors of ClickHouse mean: sorted by type of the client's error and by code of the server's exception.

use std::time::Duration;

use clickhouse::error::Error as ClientError;

use super::projection::REFUSED_VALUE;
use super::relation::OUTSIDE;
use super::sql;
use crate::error::{Error, Kind};
use crate::schema::Column;

/// A server that said nothing for too long.
pub fn stalled(after: Duration) -> Error {
    Error::new(Kind::Unavailable, format!("the server said nothing for {}", humantime::format_duration(after)))
        .hint("see whether it is overloaded; `clickhouse.idle_timeout` and `connect_timeout` bound the wait")
}

/// An answer that is not the JSON that was asked for.
pub fn not_clickhouse() -> Error {
    Error::new(Kind::Config, "the server does not answer as ClickHouse does")
        .hint("clickhouse.url must be the HTTP interface of a ClickHouse server")
}

fn other_server() -> Error {
    Error::new(Kind::Unavailable, "another server answered than the one that the pass began on")
        .hint("point clickhouse.url at one replica, or make the balancer keep a client on its server")
}

/// Sorts the error of a query with a setting of the configuration, where a moment before it one without was answered.
pub fn of_setting(error: ClientError) -> Error {
    of_users(error, "correct it, or give the user a profile that allows it")
}

/// Sorts the error of a statement that holds SQL of the configuration.
pub fn of_users_sql(error: ClientError) -> Error {
    of_users(error, "correct the SQL in the configuration; `query` and `reject_where` are ClickHouse's SQL")
}

fn of_users(error: ClientError, hint: &str) -> Error {
    match &error {
        // Not ACCESS_DENIED, TIMEOUT_EXCEEDED, QUOTA_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES, MEMORY_LIMIT_EXCEEDED, CANNOT_SCHEDULE_TASK
        ClientError::BadResponse(message)
            if !matches!(exception_code(message), None | Some(497 | 159 | 201 | 202 | 241 | 439)) =>
        {
            Error::new(Kind::Config, told(message)).hint(hint)
        }
        _ => classify(error, &[]),
    }
}

/// A query that does not keep to its bounds (protocol.md P11).
pub fn outside() -> Error {
    Error::refused("the query returns rows whose cursor does not lie in [{low}, {high})")
        .hint("compare the cursor itself, or what it is computed from, with {low} and {high}; `window` must be that of the query")
}

/// Sorts an error of the client by its type, and a server's exception by its code.
pub fn classify(error: ClientError, columns: &[Column]) -> Error {
    let ClientError::BadResponse(message) = &error else {
        let kind = match &error {
            ClientError::Network(_) | ClientError::TimedOut | ClientError::Other(_) => Kind::Unavailable,
            ClientError::InvalidUtf8Encoding(_) => Kind::Refused,
            _ => Kind::Internal,
        };
        return Error::from_cause(kind, error);
    };
    let code = exception_code(message);
    if let Some(number) = code.filter(|code| quotes_a_value(*code)) {
        return Error::refused(format!("a value does not fit the type of its column (ClickHouse exception {number})"))
            .hint("convert the column in a view, correct the rows, or the SQL that converts them");
    }
    if code == Some(395) {
        if message.contains(sql::OTHER_SERVER) {
            return other_server();
        }
        if message.contains(OUTSIDE) {
            return outside();
        }
        if let Some(column) = refused_column(message).and_then(|number| columns.get(number)) {
            let Column { name, source_type, .. } = column;
            return Error::refused(format!(
                "column `{name}` ({source_type}) holds a value that does not fit the target"
            ))
            .hint(
                "UInt64 must be below 2^63, String must be UTF-8, a key must not be null; convert the column in a view, or correct the rows",
            );
        }
    }
    let (kind, hint) = match code {
        // AUTHENTICATION_FAILED, WRONG_PASSWORD, REQUIRED_PASSWORD, UNKNOWN_USER
        Some(516 | 193 | 194 | 192) => {
            (Kind::Config, "check clickhouse.user and the password that the configuration names")
        }
        Some(497) => {
            (Kind::Config, "grant the user what the message names; `k2-offload config check` prints all that is needed")
        }
        // UNKNOWN_DATABASE, UNKNOWN_TABLE
        Some(81 | 60) => (Kind::Config, "check clickhouse.database and the table's source"),
        // UNKNOWN_IDENTIFIER, NO_SUCH_COLUMN_IN_TABLE
        Some(47 | 16) => (Kind::Config, "check the columns that the configuration names"),
        // ILLEGAL_FINAL
        Some(181) => {
            (Kind::Config, "the engine of the source has no FINAL: take `final` out, or offload another table")
        }
        // READONLY, SETTING_CONSTRAINT_VIOLATION, UNKNOWN_SETTING
        Some(164 | 452 | 115) => (Kind::Config, "give the user a profile that allows this setting"),
        // UNKNOWN_FORMAT, UNKNOWN_FUNCTION, UNKNOWN_TYPE
        Some(73 | 46 | 50) => (Kind::Config, "the server is too old; ClickHouse 24.3 or newer is needed"),
        // SYNTAX_ERROR, ILLEGAL_TYPE_OF_ARGUMENT
        Some(62 | 43) => (Kind::Internal, Kind::Internal.policy().hint),
        _ => (Kind::Unavailable, Kind::Unavailable.policy().hint),
    };
    Error::new(kind, told(message)).hint(hint)
}

/// Whether the text of an exception may quote a value: CANNOT_PARSE_TEXT, ARGUMENT_OUT_OF_BOUND, CANNOT_PARSE_INPUT_ASSERTION_FAILED,
/// CANNOT_PARSE_DATE, CANNOT_PARSE_DATETIME, TYPE_MISMATCH, CANNOT_CONVERT_TYPE, CANNOT_PARSE_NUMBER, INCORRECT_DATA, TOO_LARGE_STRING_SIZE,
/// ILLEGAL_DIVISION, CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN, CANNOT_PARSE_UUID, DECIMAL_OVERFLOW, CANNOT_PARSE_BOOL, CANNOT_PARSE_IPV4,
/// CANNOT_PARSE_IPV6, UNKNOWN_ELEMENT_OF_ENUM.
fn quotes_a_value(code: u32) -> bool {
    matches!(code, 6 | 27 | 38 | 41 | 53 | 69 | 70 | 72 | 117 | 131 | 153 | 349 | 376 | 407 | 467 | 675 | 676 | 691)
}

/// What of an exception may be told: its first line, because the others may quote values and the whole query, and not what a function says that
/// was at work on rows.
fn told(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let code = exception_code(message);
    let problem = [": while executing", ": While executing"].iter().find_map(|at| Some(line.split_once(at)?.0));
    match (problem, code) {
        // TIMEOUT_EXCEEDED, TOO_SLOW, MEMORY_LIMIT_EXCEEDED, QUERY_WAS_CANCELLED, FUNCTION_THROW_IF_VALUE_IS_NON_ZERO, whose text is a constant
        (Some(problem), Some(159 | 160 | 241 | 394 | 395)) => format!("ClickHouse: {problem}"),
        (None, code) if !code.is_some_and(quotes_a_value) => format!("ClickHouse: {line}"),
        (_, code) => format!(
            "ClickHouse exception {} at work on rows; its text may quote them, and stands in the server's log",
            code.unwrap_or_default()
        ),
    }
}

/// The number in `Code: 516. DB::Exception: ...`.
fn exception_code(message: &str) -> Option<u32> {
    let digits = message.strip_prefix("Code: ")?;
    digits.get(..digits.find(|c: char| !c.is_ascii_digit())?)?.parse().ok()
}

fn refused_column(message: &str) -> Option<usize> {
    let (_, rest) = message.split_once(REFUSED_VALUE)?;
    rest.get(..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(message: &str) -> Error {
        let columns = [("a", "Int8"), ("b", "UInt64")].map(|(name, kind)| Column::map(name, kind, None).unwrap());
        classify(ClientError::BadResponse(message.into()), &columns)
    }

    #[test]
    fn exceptions_are_sorted_by_code() {
        assert_eq!(server_error("Code: 516. DB::Exception: default: Authentication failed").kind(), Kind::Config);
        assert_eq!(server_error("Code: 60. DB::Exception: Table does not exist").kind(), Kind::Config);
        assert_eq!(server_error("Code: 241. DB::Exception: memory limit").kind(), Kind::Unavailable);
        assert_eq!(server_error("502 Bad Gateway").kind(), Kind::Unavailable);
    }

    #[test]
    fn texts_that_may_quote_a_value_are_not_told() {
        for message in [
            "Code: 376. DB::Exception: Cannot parse uuid canary: Cannot parse UUID from String: while executing 'FUNCTION toUUID(n)'",
            "Code: 691. DB::Exception: Unknown element 'canary' for enum: while executing 'FUNCTION CAST(n)'",
            "Code: 36. DB::Exception: Bad format 'canary%d' in function printf at row 0: while executing 'FUNCTION printf(n)'",
            "Code: 241. DB::Exception: Memory limit exceeded: While executing MergeTreeSelect: equals(n, 'canary')",
            "Code: 27. DB::Exception: Cannot parse input: expected '(' before: 'canary'",
        ] {
            for error in [server_error(message), of_users_sql(ClientError::BadResponse(message.into()))] {
                assert!(!error.to_string().contains("canary"), "{error}");
            }
        }
        assert!(
            server_error("Code: 241. DB::Exception: Memory limit: While executing x")
                .to_string()
                .contains("Memory limit")
        );
    }

    #[test]
    fn a_refused_value_names_its_column_and_type() {
        let error = server_error(
            "Code: 395. DB::Exception: k2-offload-refused-column-1: while executing 'FUNCTION throwIf(..)'",
        );
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("column `b` (UInt64)"), "{error}");
        let error = server_error("Code: 395. DB::Exception: k2-offload-other-server: while executing");
        assert_eq!(error.kind(), Kind::Unavailable);
    }
}
