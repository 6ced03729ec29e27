//! Rows that came late: which windows below the watermark hold others than when they left (protocol.md P23, P24).

use iceberg::io::FileIO;

use super::{Route, check_mergeable};
use crate::cursor::{Tick, micros_of};
use crate::error::Result;
use crate::late::{Piece, pieces};
use crate::plan::{Window, floor};
use crate::target::markers;
use crate::watermark::{Fingerprint, Marker};

impl Route<'_> {
    /// The windows of the last `late_lookback` before the watermark that are to be merged: one query tells, unless a commit does not.
    pub async fn late(&self, file_io: &FileIO, marker: &Marker) -> Result<Vec<Window>> {
        let Some(from) = self.lookback(marker.watermark) else { return Ok(Vec::new()) };
        // What cannot be merged is not looked at.
        if check_mergeable(&self.source, self.table).is_err() {
            return Ok(Vec::new());
        }
        // Where rows are others' we have committed none that could be there still (P17, P24).
        let from = from.max(marker.adopted_to.unwrap_or(from));
        let pieces = pieces(&markers(&self.target.metadata)?, (from, marker.watermark), &marker.skipped);
        let windows: Vec<Window> = pieces.iter().map(Piece::window).collect();
        let now = self.fingerprints(&windows).await?;
        let mut late = Vec::new();
        for (piece, now) in pieces.iter().zip(now) {
            if self.is_late(file_io, piece, now).await? {
                late.push(piece.window());
            }
        }
        Ok(late)
    }

    /// Whether passes will look for late rows in a window, once all below `watermark` has left.
    pub(super) fn is_looked_at_again(&self, window: Window, watermark: Tick) -> bool {
        self.lookback(watermark).is_some_and(|from| window.high > from)
    }

    /// Where the last `late_lookback` before a watermark begins; `None` where nobody looks.
    fn lookback(&self, watermark: Tick) -> Option<Tick> {
        let kind = self.cursor().kind;
        let lookback = micros_of(self.table.late_lookback);
        let at = kind.micros_at(watermark).filter(|_| lookback > 0)?;
        Some(floor(kind.tick_at(at.saturating_sub(lookback)), self.step))
    }

    /// What windows hold now; those of a query are asked for span by span, as it is read.
    async fn fingerprints(&self, windows: &[Window]) -> Result<Vec<Fingerprint>> {
        let span = self.span.filter(|_| self.source.is_query());
        let of = |window: &Window| span.map(|span| floor(window.low.unwrap_or(Tick::MIN), span));
        let mut found = Vec::with_capacity(windows.len());
        for windows in windows.chunk_by(|a, b| of(a) == of(b)) {
            found.extend(self.source.fingerprints(self.cursor(), windows).await?);
        }
        Ok(found)
    }

    /// Whether a piece is to be merged, which holds this now.
    async fn is_late(&self, file_io: &FileIO, piece: &Piece, now: Fingerprint) -> Result<bool> {
        let Some(counted) = piece.counted else {
            let leaving = self.source.leaving_histogram(self.cursor(), piece.window(), self.day()).await?;
            let (distinct, more) =
                leaving.iter().fold((0, 0), |sum, (bucket, more)| (sum.0 + bucket.rows, sum.1 + more));
            let held = self.rows_held(file_io, piece.window()).await?;
            return Ok(held < distinct || held > distinct + more);
        };
        if counted.source == now {
            return Ok(false);
        }
        // What somebody deleted on purpose does not come back by itself.
        let held = self.rows_held(file_io, piece.window()).await?;
        if held < counted.target {
            let (low, high) = (self.cursor().kind.format(piece.low), self.cursor().kind.format(piece.high));
            let deleted = counted.target - held;
            tracing::info!(low, high, deleted, "rows may have come late, but others deleted rows here: left alone");
        }
        Ok(held >= counted.target)
    }

    pub(super) async fn rows_held(&self, file_io: &FileIO, window: Window) -> Result<u64> {
        let name = &self.table.target;
        let days = self.target.histogram(file_io, name, self.cursor(), window, self.day()).await?;
        Ok(days.iter().map(|day| day.rows).sum())
    }

    fn day(&self) -> i64 {
        self.cursor().kind.ticks_per_day()
    }
}
