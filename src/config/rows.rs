//! The keys of a table that say which rows leave: source or query, window, key.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::raw::RawTable;
use super::validate::Problems;
use super::{Columns, HIGH, Input, LOW, SortBy};
use crate::cursor::micros_of;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// `chunk_span` of a query that names none.
const QUERY_CHUNK_SPAN: Duration = DAY;

/// Name and query of a table's source.
pub fn source(raw: &RawTable, number: usize, problems: &mut Problems) -> (String, Option<String>) {
    let key = |name: &str| format!("table {number} (`{}`) {name}", raw.target);
    match (&raw.source, &raw.name, &raw.query) {
        (Some(source), None, None) => {
            if source.is_empty() {
                problems.add(&key("source"), "is empty");
            }
            (source.clone(), None)
        }
        (None, Some(name), Some(query)) => {
            if name.is_empty() {
                problems.add(&key("name"), "is empty");
            }
            for bound in [LOW, HIGH] {
                if !query.contains(bound) {
                    problems.add(&key("query"), format_args!("has no {bound}, where the bound of its cursor belongs"));
                }
            }
            (name.clone(), Some(query.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).to_owned()))
        }
        _ => {
            problems.add(&key("source"), "give either source, or name and query");
            (raw.source.clone().or(raw.name.clone()).unwrap_or_default(), None)
        }
    }
}

/// `window`, `chunk_span` and `start_at`: every bound is a multiple of the window (protocol.md P11).
pub fn spans(
    raw: &RawTable,
    start_at: Option<DateTime<Utc>>,
    key: impl Fn(&str) -> String,
    problems: &mut Problems,
) -> (Option<Duration>, Option<Duration>) {
    let mut span = |name: &str, text: &Option<String>| {
        let span = problems.duration(&key(name), text.as_deref()?);
        if span.is_zero() {
            problems.add(&key(name), "must be longer than nothing");
        }
        (!span.is_zero()).then_some(span)
    };
    let (window, chunk_span) = (span("window", &raw.window), span("chunk_span", &raw.chunk_span));
    let chunk_span = chunk_span.or_else(|| raw.query.as_ref().map(|_| QUERY_CHUNK_SPAN));
    let Some(window) = window else { return (None, chunk_span) };
    if !is_multiple(DAY, window) {
        problems.add(&key("window"), "must divide the day: 1m, 5m, 1h, 1d");
    }
    if raw.key.is_empty() {
        problems.add(&key("window"), "needs a key: the columns that name an aggregate");
    }
    if chunk_span.is_some_and(|span| !is_multiple(span, window)) {
        problems.add(&key("chunk_span"), "must be a multiple of the window");
    }
    if start_at.is_some_and(|start| start.timestamp_micros().rem_euclid(micros_of(window)) != 0) {
        problems.add(&key("start_at"), "must be a multiple of the window, in UTC");
    }
    (Some(window), chunk_span)
}

fn is_multiple(span: Duration, of: Duration) -> bool {
    span.as_nanos().is_multiple_of(of.as_nanos())
}

/// `key`, `version_column`, `final` and `reject_where` must make sense together.
pub fn check_duplicates(raw: &RawTable, key: impl Fn(&str) -> String, problems: &mut Problems) {
    if raw.version_column.is_some() && (raw.key.is_empty() || raw.is_final) {
        problems.add(&key("version_column"), "tells which row of one key is the newest: it needs a key, and no final");
    }
    if raw.is_final && raw.query.is_some() {
        problems.add(&key("final"), "is for tables; write FINAL into the query");
    }
    if raw.reject_where.is_some() && raw.query.is_some() {
        problems.add(&key("reject_where"), "is for tables; write the condition into the query");
    }
    for (name, columns) in
        [("key", Some(&raw.key)), ("columns", raw.columns.as_ref()), ("exclude", raw.exclude.as_ref())]
    {
        let columns = columns.map(Vec::as_slice).unwrap_or_default();
        if let Some(twin) =
            columns.iter().enumerate().find_map(|(at, name)| columns.get(..at)?.contains(name).then_some(name))
        {
            problems.add(&key(name), format_args!("`{twin}` stands twice"));
        }
    }
    if raw.reject_where.as_ref().is_some_and(|predicate| predicate.trim().is_empty()) {
        problems.add(&key("reject_where"), "is empty");
    }
}

/// `input` and `input_cursor`.
pub fn input(raw: &RawTable, key: impl Fn(&str) -> String, problems: &mut Problems) -> Option<Input> {
    match (&raw.input, &raw.input_cursor) {
        (Some(select), Some(cursor)) if raw.query.is_some() => {
            return Some(Input { select: select.clone(), cursor: cursor.clone() });
        }
        (None, None) => {}
        (Some(_), Some(_)) => problems.add(&key("input"), "is for queries: rows of a table are looked at themselves"),
        (Some(_), None) => problems.add(&key("input"), "needs input_cursor, its time column"),
        (None, Some(_)) => problems.add(&key("input_cursor"), "is the time column of input, which is not given"),
    }
    None
}

/// `columns` or `exclude`.
pub fn columns(raw: &RawTable, key: impl Fn(&str) -> String, problems: &mut Problems) -> Columns {
    match (&raw.columns, &raw.exclude) {
        (Some(_), Some(_)) => {
            problems.add(&key("columns"), "give either columns or exclude");
            Columns::Except(Vec::new())
        }
        (Some(only), None) => Columns::Only(only.clone()),
        (None, except) => Columns::Except(except.clone().unwrap_or_default()),
    }
}

/// `sort_by`.
pub fn sort_by(raw: &RawTable, key: impl Fn(&str) -> String, problems: &mut Problems) -> Vec<SortBy> {
    let mut sort_by: Vec<SortBy> = Vec::new();
    for text in &raw.sort_by {
        match SortBy::parse(text) {
            None => problems.add(&key("sort_by"), format_args!("`{text}` is no column, column asc or column desc")),
            Some(by) if sort_by.iter().any(|other| other.column == by.column) => {
                problems.add(&key("sort_by"), format_args!("`{}` stands twice", by.column));
            }
            Some(by) => sort_by.push(by),
        }
    }
    sort_by
}
