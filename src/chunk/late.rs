//! Rows that came late: which windows below the watermark hold others than when they left (protocol.md P23, P24).

use iceberg::io::FileIO;

use super::{Route, check_mergeable};
use crate::cursor::micros_of;
use crate::error::Result;
use crate::late::{Piece, is_other, pieces};
use crate::plan::{Window, floor};
use crate::target::markers;
use crate::watermark::Marker;

impl Route<'_> {
    /// The windows of the last `late_lookback` before the watermark that are to be merged: one query tells, unless a commit does not.
    pub async fn late(&self, file_io: &FileIO, marker: &Marker) -> Result<Vec<Window>> {
        let kind = self.cursor().kind;
        let lookback = micros_of(self.table.late_lookback);
        let Some(at) = kind.micros_at(marker.watermark).filter(|_| lookback > 0) else { return Ok(Vec::new()) };
        // What cannot be merged is not looked at; nor is what queries are computed from.
        if self.source.is_query() || check_mergeable(&self.source, self.table).is_err() {
            return Ok(Vec::new());
        }
        let from = floor(kind.tick_at(at.saturating_sub(lookback)), self.step);
        // Where rows are others' we have committed none that could be there still (P17, P24).
        let from = from.max(marker.adopted_to.unwrap_or(from));
        let pieces = pieces(&markers(&self.target.metadata)?, (from, marker.watermark), &marker.skipped);
        let windows: Vec<Window> = pieces.iter().map(Piece::window).collect();
        let counts = self.source.counts(self.cursor(), &windows).await?;
        let mut late = Vec::new();
        for (piece, rows) in pieces.iter().zip(counts) {
            if self.is_late(file_io, piece, rows).await? {
                late.push(piece.window());
            }
        }
        Ok(late)
    }

    /// Whether a piece is to be merged, of which the source holds so many raw rows now.
    async fn is_late(&self, file_io: &FileIO, piece: &Piece, rows: u64) -> Result<bool> {
        let Some(counted) = piece.counted else {
            let leaving = self.source.leaving_histogram(self.cursor(), piece.window(), self.day()).await?;
            let (distinct, more) =
                leaving.iter().fold((0, 0), |sum, (bucket, more)| (sum.0 + bucket.rows, sum.1 + more));
            let held = self.rows_held(file_io, piece.window()).await?;
            return Ok(is_other(held, distinct, more));
        };
        if counted.is_as_counted(rows) {
            return Ok(false);
        }
        let deleted = counted.deleted(self.rows_held(file_io, piece.window()).await?);
        if deleted > 0 {
            let (low, high) = (self.cursor().kind.format(piece.low), self.cursor().kind.format(piece.high));
            tracing::info!(low, high, deleted, "rows may have come late, but others deleted rows here: left alone");
        }
        Ok(deleted == 0)
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
