//! What must be true whatever happens: the invariants of the design, asked at every change of the table and when all is quiet.

use std::collections::BTreeMap;

use super::source::{Identity, Source};
use super::target::{Table, Version};
use super::world::LATE_LOOKBACK;
use crate::cursor::Tick;
use crate::late::{Lateness, Piece, is_whole, pieces};
use crate::target::history::Found;
use crate::target::{Standing, deleted_by_others};
use crate::watermark::{Fingerprint, Marker, Mode};

/// What an invariant says was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A row is in the target more often than it ever was in the source.
    Doubled,
    /// A row that should have left has not.
    Lost,
    /// The watermark went down, or past rows that nobody looked at.
    Watermark,
    /// Our marker is gone, although nobody took it away.
    Marker,
    /// A commit on a table that was rolled back; or a refusal, or an alarm, without a reason.
    Rollback,
    /// A snapshot refers to a file that was deleted.
    File,
    /// Passes find something to do for ever.
    Restless,
}

/// What it knows beside source and target.
#[derive(Default)]
pub struct Oracle {
    pub broken: Option<(Broken, String)>,
    /// Rows that others took from the target: they need not come back.
    pub deleted: BTreeMap<Identity, u64>,
    /// Whether somebody deleted rows, or rolled back.
    pub is_tampered: bool,
}

impl Oracle {
    fn expect(&mut self, broken: Broken, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some((broken, what()));
        }
    }

    /// A pass, or a reset, refused the table.
    pub fn refused(&mut self) {
        self.expect(Broken::Rollback, self.is_tampered, || "refused a table that nobody rolled back".into());
    }

    pub fn alarmed(&mut self, rows: u64) {
        self.expect(Broken::Rollback, self.is_tampered, || format!("misses {rows} rows that nobody deleted"));
    }

    /// A swap of ours has changed the table.
    pub fn landed(&mut self, source: &Source, table: &Table, before: &Found, commit: &Marker) {
        for (row, rows) in table.current.counts() {
            let inserted = source.inserted.get(&row).copied().unwrap_or(0);
            self.expect(Broken::Doubled, rows <= inserted, || format!("{row:?} is there {rows} times, not {inserted}"));
        }
        self.files(table.current.contents.ids().find(|id| table.deleted.contains(id)));
        self.expect(Broken::Marker, table.says_its_rows(), || "the summary's total is not that of the rows".into());
        let is_reset = commit.mode == Mode::Reset;
        match before {
            Found::Marker(before) | Found::Cut(before) if !is_reset => {
                let (was, is) = (before.watermark, commit.watermark);
                let looked = is == was || (commit.high == is && commit.low.is_none_or(|low| low <= was));
                // Rows of a chunk may expire before it is counted; then it is passed over.
                let looked = looked || (commit.high == is && source.ttl.is_some());
                self.expect(Broken::Watermark, is >= was && looked, || format!("from {was} by {commit:?}"));
            }
            Found::RolledBack(_) => {
                self.expect(Broken::Rollback, is_reset, || format!("{commit:?} on a table that was rolled back"));
            }
            _ => {}
        }
    }

    /// This file is deleted, although a snapshot refers to it.
    pub fn files(&mut self, broken: Option<u64>) {
        self.expect(Broken::File, broken.is_none(), || format!("{broken:?} is deleted, and referred to"));
    }

    /// Somebody expired snapshots of a table.
    pub fn expired(&mut self, before: &Version, after: &Version) {
        if let Found::Marker(marker) | Found::Cut(marker) = before.found() {
            let is_there = matches!(after.found(), Found::Marker(left) | Found::Cut(left) if left == marker);
            self.expect(Broken::Marker, is_there, || format!("{:?} after an expiry of {marker:?}", after.found()));
        }
    }

    /// All is quiet: passes have moved all that they find.
    pub fn quiet(&mut self, source: &Source, version: &Version, standing: &Standing, settled: Tick) {
        let Standing::Filled(marker) = standing else {
            let rows = source.rows.iter().filter(|inserted| inserted.row.tick < settled).count();
            self.expect(Broken::Lost, rows == 0, || format!("{rows} rows, and nothing has left"));
            return;
        };
        let blind = blind(source, version, marker, self.is_tampered);
        let mut wanted: BTreeMap<Identity, u64> = BTreeMap::new();
        for inserted in source.rows.iter().filter(|inserted| inserted.row.tick < settled) {
            let tick = inserted.row.tick;
            let is_skipped = marker.skipped.iter().any(|(low, high)| (*low..*high).contains(&tick));
            let from = marker.adopted_to.unwrap_or(Tick::MIN).max(marker.watermark - LATE_LOOKBACK);
            let is_looked_for = tick >= from && !blind.iter().any(|piece| piece.window.contains(tick));
            if !is_skipped && (!inserted.is_late || is_looked_for) {
                *wanted.entry(inserted.row.identity()).or_default() += 1;
            }
        }
        let held = version.counts();
        for (row, wanted) in wanted {
            let held = held.get(&row).copied().unwrap_or(0) + self.deleted.get(&row).copied().unwrap_or(0);
            self.expect(Broken::Lost, held >= wanted, || format!("{row:?} is there {held} times, not {wanted}"));
        }
    }
}

/// Where rows that come late cannot be told, because only counts are compared: as many have gone from the source, or others took rows from the
/// target.
fn blind(source: &Source, version: &Version, marker: &Marker, is_tampered: bool) -> Vec<Piece> {
    let from = marker.watermark - LATE_LOOKBACK;
    let mut pieces = pieces(version.markers(), (from, marker.watermark), &marker.skipped);
    pieces.retain(|piece| {
        let window = piece.window;
        let now = Fingerprint { rows: source.raw_rows(window), hash: 0 };
        let has_expired = source.expired.iter().any(|tick| window.contains(*tick));
        let is_deleted = deleted_by_others(version.metadata(), marker).is_some();
        match piece.lateness(now, version.held(window), is_whole(marker, is_deleted, window)) {
            Lateness::None => has_expired || is_tampered,
            Lateness::LeftAlone => is_tampered,
            Lateness::Late => false,
        }
    });
    pieces
}
