//! Where rows may have come late: what our commits counted, against what the source holds now (protocol.md P23 to P25). Pure.
//!
//! The newest commits cover the last `late_lookback` before the watermark piece by piece. Each piece expects as many raw rows in the source as its
//! commit counted before it read; any other number, also a smaller one, leads to a merge, because a TTL or a merge of parts can hide an insert.
//! A piece that no single commit tells about is compared with the rows of the target.

use crate::cursor::Tick;
use crate::plan::Window;
use crate::watermark::{Marker, Mode};

/// A piece of the range that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Inclusive.
    pub low: Tick,
    /// Exclusive.
    pub high: Tick,
    /// What the newest commit over just these ticks counted; `None` where no commit tells.
    pub counted: Option<Counted>,
}

/// What a commit counted in its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Raw rows of the source.
    pub source: u64,
    /// Rows of the target with the commit.
    pub target: u64,
}

impl Piece {
    /// Its ticks.
    pub fn window(&self) -> Window {
        Window { low: Some(self.low), high: self.high }
    }
}

impl Counted {
    /// Whether the source holds as many raw rows as then: any other number may hide a row that came (P23).
    pub fn is_as_counted(self, rows: u64) -> bool {
        rows == self.source
    }

    /// Rows that others deleted from the target, which now holds so many: what they did on purpose is not undone (P24).
    pub fn deleted(self, held: u64) -> u64 {
        self.target.saturating_sub(held)
    }
}

/// Whether what the target holds, of a piece that no commit tells about, is other than what the source would leave there: one row of each key, and
/// up to so many `more`.
pub fn is_other(held: u64, distinct: u64, more: u64) -> bool {
    held < distinct || held > distinct + more
}

/// Cuts `[from, watermark)` into pieces, ascending and disjoint, given our markers from the newest to the oldest. What was skipped on purpose
/// belongs to none of them.
pub fn pieces(markers: &[Marker], (from, watermark): (Tick, Tick), skipped: &[(Tick, Tick)]) -> Vec<Piece> {
    let mut untold = vec![(from, watermark)];
    untold.retain(|(low, high)| low < high);
    for range in skipped {
        untold = outside(&untold, *range);
    }
    let mut pieces = Vec::new();
    let mut newer = skipped.to_vec();
    for marker in markers.iter().filter(|marker| matches!(marker.mode, Mode::Append | Mode::Merge)) {
        if untold.is_empty() {
            break;
        }
        let own = (marker.low.unwrap_or(Tick::MIN), marker.high);
        // A commit that began a little earlier is looked at as a whole, where it is the newest there too.
        let reach = from.saturating_sub(watermark.saturating_sub(from));
        let is_newest = inside(&newer, (own.0, from)).is_empty();
        if own.0 < from && own.0 >= reach && own.1 > from && is_newest {
            untold.iter_mut().filter(|range| range.0 == from).for_each(|range| range.0 = own.0);
        }
        newer.push(own);
        let told = inside(&untold, own);
        // Of a commit that began earlier, or over whose range another one went, only a part is looked at.
        let counted = |piece| (piece == own).then_some(Counted { source: marker.source_rows, target: marker.rows });
        pieces.extend(told.into_iter().map(|piece| Piece { low: piece.0, high: piece.1, counted: counted(piece) }));
        untold = outside(&untold, own);
    }
    pieces.extend(untold.into_iter().map(|(low, high)| Piece { low, high, counted: None }));
    pieces.sort_unstable_by_key(|piece| piece.low);
    pieces
}

/// What of `ranges` lies outside `[first, last)`.
fn outside(ranges: &[(Tick, Tick)], (first, last): (Tick, Tick)) -> Vec<(Tick, Tick)> {
    let both = ranges.iter().flat_map(|(low, high)| [(*low, (*high).min(first)), ((*low).max(last), *high)]);
    both.filter(|(low, high)| low < high).collect()
}

/// What of `ranges` lies inside `[first, last)`.
fn inside(ranges: &[(Tick, Tick)], (first, last): (Tick, Tick)) -> Vec<(Tick, Tick)> {
    let cut = ranges.iter().map(|(low, high)| ((*low).max(first), (*high).min(last)));
    cut.filter(|(low, high)| low < high).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::watermark::tests::marker;

    fn commit(mode: Mode, low: Option<Tick>, high: Tick, source_rows: u64) -> Marker {
        Marker { mode, low, high, source_rows, ..marker(1, 1000) }
    }

    fn cut(markers: &[Marker], from: Tick, skipped: &[(Tick, Tick)]) -> Vec<(Tick, Tick, Option<u64>)> {
        pieces(markers, (from, 1000), skipped).iter().map(|p| (p.low, p.high, p.counted.map(|c| c.source))).collect()
    }

    #[test]
    fn each_commit_is_a_piece_and_what_began_earlier_is_cut() {
        let markers = [
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Append, Some(500), 900, 2),
            commit(Mode::Append, None, 500, 1),
        ];
        assert_eq!(cut(&markers, 500, &[]), [(500, 900, Some(2)), (900, 1000, Some(3))]);
        assert_eq!(cut(&markers, 400, &[])[0], (400, 500, None), "the first commit has no beginning");
        assert_eq!(cut(&markers, 750, &[])[0], (500, 900, Some(2)), "it began a little earlier");
        assert_eq!(cut(&markers, 751, &[])[0], (751, 900, None));
        assert_eq!(cut(&markers, 1000, &[]), []);
    }

    #[test]
    fn the_newest_commit_over_a_range_tells() {
        let markers = [
            commit(Mode::Merge, Some(600), 700, 9),
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Append, Some(500), 900, 2),
        ];
        let expected = [(500, 600, None), (600, 700, Some(9)), (700, 900, None), (900, 1000, Some(3))];
        assert_eq!(cut(&markers, 500, &[]), expected);
        let again = [commit(Mode::Merge, Some(500), 900, 12)];
        let markers = [&again[..], &markers[..]].concat();
        assert_eq!(cut(&markers, 500, &[]), [(500, 900, Some(12)), (900, 1000, Some(3))]);
    }

    #[test]
    fn what_was_skipped_is_not_looked_at_and_gaps_are() {
        let markers = [
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Reset, Some(600), 900, 77),
            commit(Mode::Append, Some(500), 600, 2),
        ];
        assert_eq!(cut(&markers, 500, &[(600, 900)]), [(500, 600, Some(2)), (900, 1000, Some(3))]);
        assert_eq!(cut(&markers, 500, &[])[1], (600, 900, None), "a reset has read nothing");
        assert_eq!(cut(&markers, 500, &[(550, 950)]), [(500, 550, None), (950, 1000, None)]);
    }

    proptest! {
        #[test]
        fn every_tick_is_looked_at_once_unless_it_was_skipped(
            commits in proptest::collection::vec((0_i64..100, 1_i64..40, any::<bool>()), 0..12),
            from in 0_i64..100,
            skipped in proptest::collection::vec((0_i64..100, 0_i64..30), 0..3),
        ) {
            let markers: Vec<Marker> = commits.iter().map(|(low, width, first)| {
                commit(Mode::Append, (!first).then_some(*low), low + width, 1)
            }).collect();
            let skipped: Vec<(Tick, Tick)> = skipped.into_iter().map(|(low, width)| (low, low + width)).collect();
            let pieces = pieces(&markers, (from, 100), &skipped);
            prop_assert!(pieces.windows(2).all(|w| w[0].high <= w[1].low), "{:?}", pieces);
            for tick in 0..110 {
                let first = pieces.first().map_or(from, |piece| piece.low.min(from));
                let times = pieces.iter().filter(|piece| piece.window().contains(tick)).count();
                let wanted = (first..100).contains(&tick) && !skipped.iter().any(|(low, high)| (*low..*high).contains(&tick));
                prop_assert_eq!(times, usize::from(wanted), "tick {} of {:?}", tick, pieces);
            }
            for piece in pieces.iter().filter(|piece| piece.counted.is_some()) {
                let newest = markers.iter().find(|marker| marker.low.unwrap_or(Tick::MIN) < piece.high && marker.high > piece.low);
                prop_assert_eq!(newest.map(|m| (m.low, m.high)), Some((Some(piece.low), piece.high)), "the newest commit that touches it");
            }
        }
    }
}
