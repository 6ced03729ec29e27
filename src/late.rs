//! Where rows may have come late: what our commits counted, against what the source holds now (protocol.md P23 to P25). Pure.
//!
//! A piece is what one commit covered, as a whole, and expects in the source what its commit found there before it read; anything else, also
//! fewer rows, leads to a merge, because a TTL or a merge of parts can hide an insert. Of what several commits went over, or none that is
//! known, no number tells: such a piece is merged once, and is told by that merge from then on.

use crate::cursor::Tick;
use crate::plan::Window;
use crate::watermark::{Fingerprint, Marker, Mode, inside_range, remove_range};

/// A piece of the range that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its ticks.
    pub window: Window,
    /// What the newest commit over just these ticks counted; `None` where no commit tells.
    pub counted: Option<Counted>,
}

/// What a commit counted in its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Raw rows of the source, or what they were computed from. Where a commit of a query does not tell, something that it is not.
    pub source: Fingerprint,
    /// Rows of the target with the commit.
    pub target: u64,
}

/// What becomes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lateness {
    /// Nothing came.
    None,
    /// It is to be merged.
    Late,
    /// It would be, but others deleted rows there, which must not come back by themselves (P24).
    LeftAlone,
}

impl Piece {
    /// Whether the target must be asked, because the source holds something else than what left.
    pub fn differs(&self, now: Fingerprint) -> bool {
        self.counted.is_none_or(|counted| counted.source != now)
    }

    /// What becomes of a piece that differs, of which the target holds so many rows. Where no commit tells what it should hold, `is_whole` does: that
    /// nobody ever deleted rows there.
    pub fn lateness(&self, now: Fingerprint, held: u64, is_whole: bool) -> Lateness {
        match self.counted {
            _ if now.rows == 0 || !self.differs(now) => Lateness::None,
            Some(counted) if held < counted.target => Lateness::LeftAlone,
            // P23: counted in the target.
            None if now.hash == 0 && held == now.rows => Lateness::None,
            None if !is_whole => Lateness::LeftAlone,
            _ => Lateness::Late,
        }
    }
}

/// Whether nobody ever deleted rows of the target in a window, as far as is known; `is_deleted` rows are missing there now.
pub fn is_whole(marker: &Marker, is_deleted: bool, window: Window) -> bool {
    !is_deleted && marker.deleted_to.is_none_or(|to| window.low.is_some_and(|low| to <= low))
}

/// Windows, each with all of the commits that it touches and that tell how many rows they found: what is left of a commit would be told by nobody.
pub fn whole(markers: &[Marker], windows: &[Window], watermark: Tick, skipped: &[(Tick, Tick)]) -> Vec<Window> {
    let told: Vec<Window> = pieces(markers, (Tick::MIN, watermark), skipped)
        .into_iter()
        .filter_map(|piece| piece.counted.map(|_| piece.window))
        .collect();
    let mut whole: Vec<Window> = Vec::new();
    for window in windows {
        let touches = |piece: &&Window| {
            piece.low.is_none_or(|low| low < window.high) && window.low.is_none_or(|low| low < piece.high)
        };
        let window = told.iter().filter(touches).fold(*window, |all, piece| Window {
            low: all.low.zip(piece.low).map(|(a, b)| a.min(b)),
            high: all.high.max(piece.high),
        });
        match whole.last_mut() {
            Some(last) if window.low.is_none_or(|low| low <= last.high) => last.high = last.high.max(window.high),
            _ => whole.push(window),
        }
    }
    whole
}

/// Cuts what is looked at for `[from, watermark)` into pieces, ascending and disjoint, given our markers from the newest to the oldest. What was
/// skipped on purpose belongs to none of them; a commit that began earlier belongs to them as a whole.
pub fn pieces(markers: &[Marker], (from, watermark): (Tick, Tick), skipped: &[(Tick, Tick)]) -> Vec<Piece> {
    let mut untold = vec![(from, watermark)];
    untold.retain(|(low, high)| low < high);
    for range in skipped {
        untold = remove_range(&untold, *range);
    }
    let mut pieces = Vec::new();
    // What newer commits went over, or nobody shall.
    let mut newer = skipped.to_vec();
    for marker in markers.iter().filter(|marker| marker.mode == Mode::Append || marker.mode.is_merge()) {
        if untold.is_empty() {
            break;
        }
        let own = (marker.low.unwrap_or(Tick::MIN), marker.high);
        if !inside_range(&untold, own).is_empty() && inside_range(&newer, own).is_empty() {
            let source = marker.input.unwrap_or(Fingerprint { rows: marker.source_rows, hash: 0 });
            let counted = Some(Counted { source, target: marker.rows });
            pieces.push(Piece { window: Window { low: marker.low, high: marker.high }, counted });
            untold = remove_range(&untold, own);
        }
        newer.push(own);
    }
    pieces
        .extend(untold.into_iter().map(|(low, high)| Piece { window: Window { low: Some(low), high }, counted: None }));
    pieces.sort_unstable_by_key(|piece| piece.window.low);
    pieces
}

/// A window, and all of each commit that appended rows of it: within such a range duplicates of a key were dropped, and one that was must not come
/// back because its twin lies just outside of the window (P27).
pub fn reach(markers: &[Marker], window: Window) -> Window {
    let touches = |marker: &&Marker| {
        let low = marker.low.unwrap_or(Tick::MIN);
        marker.mode == Mode::Append && low < window.high && window.low.is_none_or(|from| from < marker.high)
    };
    markers.iter().filter(touches).fold(window, |reach, marker| Window {
        low: reach.low.zip(marker.low).map(|(a, b)| a.min(b)),
        high: reach.high.max(marker.high),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::watermark::tests::marker;

    fn commit(mode: Mode, low: Option<Tick>, high: Tick, source_rows: u64) -> Marker {
        Marker { mode, low, high, source_rows, input: None, ..marker(1, 1000) }
    }

    type Cut = (Option<Tick>, Tick, Option<u64>);

    fn cut(markers: &[Marker], from: Tick, skipped: &[(Tick, Tick)]) -> Vec<Cut> {
        let pieces = pieces(markers, (from, 1000), skipped);
        pieces.iter().map(|p| (p.window.low, p.window.high, p.counted.map(|c| c.source.rows))).collect()
    }

    #[test]
    fn each_commit_is_a_piece_as_a_whole() {
        let markers = [
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Append, Some(500), 900, 2),
            commit(Mode::Append, None, 500, 1),
        ];
        assert_eq!(cut(&markers, 500, &[]), [(Some(500), 900, Some(2)), (Some(900), 1000, Some(3))]);
        assert_eq!(cut(&markers, 499, &[])[0], (None, 500, Some(1)));
        assert_eq!(cut(&markers, 899, &[])[0], (Some(500), 900, Some(2)), "it began earlier");
        assert_eq!(cut(&markers, 1000, &[]), []);
    }

    #[test]
    fn the_newest_commit_over_a_range_tells_and_what_is_left_of_others_is_not_told() {
        let markers = [
            commit(Mode::Merge, Some(600), 700, 9),
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Append, Some(500), 900, 2),
        ];
        let expected =
            [(Some(550), 600, None), (Some(600), 700, Some(9)), (Some(700), 900, None), (Some(900), 1000, Some(3))];
        assert_eq!(cut(&markers, 550, &[]), expected);
        let again = [commit(Mode::Late, Some(500), 900, 12)];
        let markers = [&again[..], &markers[..]].concat();
        assert_eq!(cut(&markers, 550, &[]), [(Some(500), 900, Some(12)), (Some(900), 1000, Some(3))]);
    }

    #[test]
    fn what_was_skipped_is_not_looked_at_and_gaps_are() {
        let markers = [
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Reset, Some(600), 900, 77),
            commit(Mode::Append, Some(500), 600, 2),
        ];
        let expected = [(Some(500), 600, Some(2)), (Some(900), 1000, Some(3))];
        assert_eq!(cut(&markers, 500, &[(600, 900)]), expected);
        assert_eq!(cut(&markers, 500, &[])[1], (Some(600), 900, None), "a reset has read nothing");
        assert_eq!(cut(&markers, 500, &[(550, 950)]), [(Some(500), 550, None), (Some(950), 1000, None)]);
    }

    #[test]
    fn what_is_repaired_are_whole_commits() {
        let markers = [
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Append, Some(500), 900, 2),
            commit(Mode::Append, None, 500, 1),
        ];
        let window = |low, high| Window { low: Some(low), high };
        let of = |windows: &[Window]| whole(&markers, windows, 1000, &[(600, 650)]);
        assert_eq!(of(&[window(910, 920)]), [window(900, 1000)]);
        assert_eq!(of(&[window(400, 420), window(910, 920)]), [Window { low: None, high: 500 }, window(900, 1000)]);
        assert_eq!(of(&[window(700, 720)]), [window(700, 720)], "of what was skipped in part, nobody tells");
    }

    #[test]
    fn rows_that_somebody_deleted_do_not_come_back() {
        let rows = |rows| Fingerprint { rows, hash: 0 };
        let window = Window { low: Some(1), high: 9 };
        let told = Piece { window, counted: Some(Counted { source: rows(10), target: 8 }) };
        let of = |now, held, is_whole| told.lateness(rows(now), held, is_whole);
        assert_eq!([of(10, 0, false), of(0, 8, true)], [Lateness::None; 2]);
        assert_eq!(
            [of(11, 8, false), of(9, 8, false), of(11, 9, true)],
            [Lateness::Late; 3],
            "fewer may hide an insert"
        );
        assert_eq!([of(11, 7, true), of(9, 7, true)], [Lateness::LeftAlone; 2]);
        let untold = Piece { window, counted: None };
        assert_eq!(untold.lateness(rows(1), 9, true), Lateness::Late);
        assert_eq!(untold.lateness(rows(1), 9, false), Lateness::LeftAlone);
        assert_eq!(untold.lateness(rows(9), 9, false), Lateness::None, "as many as there are");
    }

    #[test]
    fn what_others_deleted_is_told_until_and_after_a_reset_acknowledges_it() {
        let of = |deleted_to, is_deleted, low| {
            is_whole(&Marker { deleted_to, ..marker(1, 1000) }, is_deleted, Window { low, high: 900 })
        };
        assert!(of(None, false, None) && of(Some(500), false, Some(500)));
        assert!(!of(None, true, Some(500)), "not acknowledged: they may be missing anywhere");
        assert!(!of(Some(500), false, Some(499)) && !of(Some(500), false, None));
    }

    #[test]
    fn duplicates_were_dropped_within_whole_commits() {
        let markers = [
            commit(Mode::Append, Some(900), 1000, 3),
            commit(Mode::Merge, Some(0), 2000, 3),
            commit(Mode::Append, Some(500), 900, 2),
            commit(Mode::Append, None, 500, 1),
        ];
        let of = |low, high| reach(&markers, Window { low: Some(low), high });
        assert_eq!(of(950, 960), Window { low: Some(900), high: 1000 });
        assert_eq!(of(899, 901), Window { low: Some(500), high: 1000 });
        assert_eq!(of(400, 600), Window { low: None, high: 900 });
        assert_eq!(of(1000, 1100), Window { low: Some(1000), high: 1100 });
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
            for tick in from..100 {
                let times = pieces.iter().filter(|piece| piece.window.contains(tick)).count();
                let wanted = !skipped.iter().any(|(low, high)| (*low..*high).contains(&tick));
                prop_assert_eq!(times, usize::from(wanted), "tick {} of {:?}", tick, pieces);
            }
            prop_assert!(pieces.windows(2).all(|w| Some(w[0].window.high) <= w[1].window.low), "{:?}", pieces);
            for piece in pieces.iter().filter(|piece| piece.counted.is_some()) {
                let touches = |marker: &&Marker| marker.low.is_none_or(|low| low < piece.window.high) && piece.window.low.is_none_or(|low| marker.high > low);
                let newest = markers.iter().find(touches);
                let window = newest.map(|marker| Window { low: marker.low, high: marker.high });
                prop_assert_eq!(window, Some(piece.window), "the newest commit that touches it");
            }
        }
    }
}
