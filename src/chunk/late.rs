//! Rows that came late: which windows below the watermark hold others than when they left (protocol.md P23, P24).

use super::{Route, check_mergeable};
use crate::cursor::{Tick, micros_of};
use crate::error::Result;
use crate::late::{Lateness, is_whole, pieces};
use crate::plan::{Window, floor};
use crate::target::{deleted_by_others, markers};
use crate::watermark::{Fingerprint, Marker};

/// What looking for late rows found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// What is to be merged.
    pub windows: Vec<Window>,
    /// Where others deleted rows: what the source holds beyond the target came late, or is what they deleted.
    pub left_alone: Vec<Window>,
}

impl Route<'_> {
    /// Looks at the last `late_lookback` before the watermark, commit by commit, up to `until`: one query tells. `None` where nobody looks: where it is
    /// switched off, and where rows cannot be compared (protocol.md P22).
    pub async fn late(&self, marker: &Marker, until: Option<Tick>) -> Result<Option<Late>> {
        let Some(from) = self.lookback(marker.watermark) else { return Ok(None) };
        // Where the watermark was put back, all from there on is compared anyway.
        if marker.watermark < marker.offloaded_to || check_mergeable(&self.source, self.table).is_err() {
            return Ok(None);
        }
        // Where rows are others' we have committed none that could be there still (P17, P24).
        let from = from.max(marker.adopted_to.unwrap_or(from));
        let mut pieces = pieces(&markers(&self.target.metadata)?, (from, marker.watermark), &marker.skipped);
        pieces.retain(|piece| until.is_none_or(|until| piece.window.high <= until));
        let windows: Vec<Window> = pieces.iter().map(|piece| piece.window).collect();
        let now = self.fingerprints(&windows).await?;
        let is_deleted = deleted_by_others(&self.target.metadata, marker).is_some();
        let mut late = Late::default();
        for (piece, now) in pieces.iter().zip(now).filter(|(piece, now)| piece.differs(*now)) {
            let held = self.rows_held(piece.window).await?;
            match piece.lateness(now, held, is_whole(marker, is_deleted, piece.window)) {
                Lateness::None => {}
                Lateness::Late => late.windows.push(piece.window),
                Lateness::LeftAlone => late.left_alone.push(piece.window),
            }
        }
        Ok(Some(late))
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

    /// What windows hold now; a query of which no input is told is asked for each by itself, as it is read.
    async fn fingerprints(&self, windows: &[Window]) -> Result<Vec<Fingerprint>> {
        let alone = self.source.is_query() && self.table.input.is_none();
        let mut found = Vec::with_capacity(windows.len());
        for windows in windows.chunk_by(|_, _| !alone) {
            found.extend(self.source.fingerprints(self.cursor(), windows).await?);
        }
        Ok(found)
    }

    pub(super) async fn rows_held(&self, window: Window) -> Result<u64> {
        let (name, day) = (&self.table.target, self.cursor().kind.ticks_per_day());
        let days = self.target.histogram(self.storage.file_io(), name, self.cursor(), window, day).await?;
        Ok(days.iter().map(|day| day.rows).sum())
    }
}
