//! What tells whether windows hold the rows that left: numbers of rows and, for queries, hashes of what they are computed from (protocol.md
//! P23).
//!
//! A query's own rows would tell as well, but asking for them costs as much as reading them again: `input` names the rows that it is computed
//! from, which the server counts and hashes in the time that it takes to read them.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::Deserialize;

use super::Source;
use super::relation::{Origin, Relation};
use super::sql::{bounded, identifier, ticks, within};
use crate::cursor::{Cursor, CursorType, Tick};
use crate::error::{Error, Kind, Result};
use crate::plan::Window;
use crate::watermark::Fingerprint;

/// Windows that one query asks for; the server parses 256 KiB.
const MAX_WINDOWS: usize = 4096;

/// The rows that those of a query are computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// A SELECT.
    pub select: String,
    /// Its column whose rows in a window make the query's rows there.
    pub cursor: Cursor,
}

#[derive(Row, Deserialize)]
struct FingerprintRow {
    low: i64,
    rows: u64,
    hash: u64,
}

impl Source<'_> {
    /// Refuses an input whose time is too coarse to tell the windows of the query apart, whose bounds are multiples of `step` ticks.
    pub fn check_input(&self, cursor: CursorType, step: Tick) -> Result<()> {
        let Some(input) = &self.relation.input else { return Ok(()) };
        let [tick, step] =
            [input.cursor.kind.micros_at(1), cursor.micros_at(step)].map(|micros| micros.unwrap_or(1).max(1));
        if step % tick == 0 {
            return Ok(());
        }
        let name = &input.cursor.name;
        Err(Error::new(
            Kind::Config,
            format!(
                "input_cursor `{name}` ({:?}) is too coarse for the cursor and `window` of the query",
                input.cursor.kind
            ),
        )
        .hint("choose a column of the input that tells the windows of the query apart"))
    }

    /// What ascending, disjoint windows hold: one query tells for thousands.
    pub async fn fingerprints(&self, cursor: &Cursor, windows: &[Window]) -> Result<Vec<Fingerprint>> {
        let mut found = Vec::with_capacity(windows.len());
        for windows in windows.chunks(MAX_WINDOWS) {
            let windows: Vec<Window> =
                windows.iter().map(|window| self.relation.of_input(cursor.kind, *window)).collect();
            let Some(query) = self.relation.fingerprints(cursor, &windows) else { continue };
            let rows: Vec<FingerprintRow> = self.server.fetch(&query, &self.what("late")).await?;
            let of: BTreeMap<Tick, Fingerprint> =
                rows.into_iter().map(|row| (row.low, Fingerprint { rows: row.rows, hash: row.hash })).collect();
            let low = |window: &Window| window.low.unwrap_or(Tick::MIN);
            found.extend(windows.iter().map(|window| of.get(&low(window)).copied().unwrap_or_default()));
        }
        Ok(found)
    }
}

impl Relation {
    /// A window in ticks of the column that is looked at.
    fn of_input(&self, kind: CursorType, window: Window) -> Window {
        let Some(input) = &self.input else { return window };
        let tick = |tick: Tick| kind.micros_at(tick).map_or(tick, |micros| input.cursor.kind.tick_from(micros));
        Window { low: window.low.map(tick), high: tick(window.high) }
    }

    /// Rows and hash of each of some windows that holds any, under its lower bound; `None` for no windows.
    fn fingerprints(&self, cursor: &Cursor, windows: &[Window]) -> Option<String> {
        let (first, last) = windows.first().zip(windows.last())?;
        let hull = Window { low: first.low, high: last.high };
        let (from, cursor) = match &self.input {
            Some(input) => (bounded(&input.select, input.cursor.kind, hull), &input.cursor),
            None => (self.from(cursor, hull), cursor),
        };
        let hash = match self.origin {
            Origin::Table(_) => "toUInt64(0)",
            // A hash of several columns is null where one of them is; that of a tuple is not.
            Origin::Query(_) => "cityHash64(tuple(*))",
        };
        // Ends too: what lies between two windows belongs to neither.
        let bounds = windows.iter().flat_map(|window| [window.low.unwrap_or(Tick::MIN), window.high]);
        let bounds: Vec<String> = bounds.map(|bound| bound.to_string()).collect();
        let tick = format!("assumeNotNull({})", ticks("k2_cursor", cursor.kind));
        Some(format!(
            "SELECT roundDown({tick}, CAST([{}], 'Array(Int64)')) AS low, count() AS rows, sum(k2_hash) AS hash FROM ({}) GROUP BY low",
            bounds.join(", "),
            self.rows(
                &format!("{} AS k2_cursor, {hash} AS k2_hash", identifier(&cursor.name)),
                &from,
                &within(cursor, hull)
            )
        ))
    }
}
