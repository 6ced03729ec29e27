//! What an audit compares, and what it makes of it: pure (protocol.md "Audit").
//!
//! Both sides are counted in the same half-open buckets of ticks: an hour each, a day where a tick is a day, cut at the ends of the audited
//! range and of the ranges that were skipped on purpose. Nothing at or above the watermark is compared, so that rows that have not
//! left yet are never called missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::cursor::{CursorType, MICROS_PER_SECOND, Tick};
use crate::difference::Differing;
use crate::histogram::Bucket;
use crate::plan::{Window, floor};

/// What counts, or rows, of a bucket say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As many rows on both sides; the same rows, where they were compared.
    Equal,
    /// The source has more, or others.
    Missing,
    /// As missing, and the next pass will bring them: they came late, within `late_lookback`.
    Pending,
    /// The target has more, or others.
    Extra,
    /// A key has another content on the other side, and no row is missing or extra.
    Changed,
    /// The target has more, nothing is missing, and the source's TTL has begun to delete rows of the bucket.
    ExpiredInSource,
    /// A reset skipped the bucket, or it lies below `start_at`: its rows were not asked for (P25).
    Skipped,
}

/// For people, as `verdict` of the JSON.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "equal",
            Self::Missing => "missing",
            Self::Pending => "pending",
            Self::Extra => "extra",
            Self::Changed => "changed",
            Self::ExpiredInSource => "expired_in_source",
            Self::Skipped => "skipped",
        })
    }
}

impl Verdict {
    /// Whether a person must look at it.
    pub fn is_mismatch(self) -> bool {
        matches!(self, Self::Missing | Self::Extra)
    }
}

/// A part of the audited range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Its ticks.
    pub window: Window,
    /// Whether its rows were left out on purpose.
    pub skipped: bool,
    /// Whether the next pass will compare it and add what is missing.
    pub late: bool,
}

impl Section {
    /// Its window cut at multiples of `span`; nothing where it was skipped. Without a lower bound it stays in one piece.
    pub fn spans(&self, span: Tick) -> Vec<Window> {
        let Window { low, high } = self.window;
        let Some(first) = low.filter(|_| !self.skipped) else {
            return if self.skipped { Vec::new() } else { vec![self.window] };
        };
        let lows = std::iter::successors(Some(first), |low| Some(floor(*low, span).saturating_add(span)));
        let lows = lows.take_while(|low| *low < high);
        lows.map(|low| Window { low: Some(low), high: high.min(floor(low, span).saturating_add(span)) }).collect()
    }
}

/// The bucket of the first row that a query still returns: below it, and within it, its own sources have dropped rows. Without one, they have
/// dropped all.
pub fn first_of_source(counts: &[Counts]) -> Option<Tick> {
    let first = counts.iter().find(|counts| counts.source > 0 && !counts.skipped);
    Some(first.map_or(Tick::MAX, |counts| counts.low))
}

/// Rows of both sides in one bucket, more than none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// First tick.
    pub low: Tick,
    /// First tick behind it.
    pub high: Tick,
    /// Rows of the source that leave, one of each key.
    pub source: u64,
    /// Further rows of the source with one of these keys: the target may hold them where they left by another SELECT (protocol.md P27).
    pub duplicates: u64,
    /// Rows of the target, whoever wrote them.
    pub target: u64,
    /// Whether they were left out on purpose.
    pub skipped: bool,
    /// Whether the next pass will add what is missing.
    pub late: bool,
    /// Whether the source's TTL explains every extra row, where that is known of the rows themselves.
    pub expired: Option<bool>,
    /// How the rows themselves differ, where they were compared.
    pub rows: Option<Differing>,
}

/// Ticks of a bucket: an hour, or a day where there is nothing finer.
pub fn bucket_width(cursor: CursorType) -> Tick {
    (cursor.ticks_per_day() / 24).max(1)
}

/// Cuts a range at the ends of what was skipped, and of what the next pass will merge.
pub fn sections(range: Window, skipped: &[(Tick, Tick)], late: &[Window]) -> Vec<Section> {
    let first = range.low.unwrap_or(Tick::MIN);
    let late: Vec<(Tick, Tick)> = late.iter().map(|window| (window.low.unwrap_or(Tick::MIN), window.high)).collect();
    let ends = skipped.iter().chain(&late).flat_map(|(from, to)| [*from, *to]);
    let ends: BTreeSet<Tick> =
        ends.chain([first, range.high]).filter(|end| (first..=range.high).contains(end)).collect();
    let is_in = |ranges: &[(Tick, Tick)], tick: Tick| ranges.iter().any(|(from, to)| (*from..*to).contains(&tick));
    let mut sections: Vec<Section> = Vec::new();
    for (from, to) in ends.iter().zip(ends.iter().skip(1)) {
        let (skipped, late) = (is_in(skipped, *from), is_in(&late, *from));
        match sections.last_mut() {
            Some(last) if (last.skipped, last.late) == (skipped, late) => last.window.high = *to,
            Some(_) => sections.push(Section { window: Window { low: Some(*from), high: *to }, skipped, late }),
            None => sections.push(Section { window: Window { high: *to, ..range }, skipped, late }),
        }
    }
    sections
}

/// Puts both sides of a section together, in ascending order.
pub fn pair(section: Section, source: &[(Bucket, u64)], target: &[Bucket]) -> Vec<Counts> {
    let Section { window, skipped, late } = section;
    let mut rows: BTreeMap<(Tick, Tick), (u64, u64, u64)> = BTreeMap::new();
    for (bucket, duplicates) in source {
        let counts = rows.entry((bucket.low, bucket.high())).or_default();
        counts.0 += bucket.rows;
        counts.1 += duplicates;
    }
    for bucket in target {
        rows.entry((bucket.low, bucket.high())).or_default().2 += bucket.rows;
    }
    let counts = rows.into_iter().map(|((low, high), (source, duplicates, target))| Counts {
        low: window.low.map_or(low, |first| first.max(low)),
        high: high.min(window.high),
        source,
        duplicates,
        target,
        skipped,
        late,
        expired: None,
        rows: None,
    });
    counts.collect()
}

impl Counts {
    /// Rows of the source that the target has not.
    pub fn missing(&self) -> u64 {
        self.rows.map_or(self.source.saturating_sub(self.target), |rows| rows.missing)
    }

    /// Rows of the target that the source has not.
    pub fn extra(&self) -> u64 {
        let more = || self.target.saturating_sub(self.source).saturating_sub(self.duplicates);
        self.rows.map_or_else(more, |rows| rows.extra)
    }

    /// Rows of the target whose key the source has with other content; `None` where only counts were compared.
    pub fn changed(&self) -> Option<u64> {
        self.rows.map(|rows| rows.changed)
    }

    /// The newest of the extra rows, where rows were compared and none is missing.
    pub fn last_extra(&self) -> Option<Tick> {
        self.rows.filter(|rows| rows.missing == 0 && !self.skipped)?.last_extra
    }

    /// What they say, where rows up to the tick `outlived_to` have begun to expire in the source.
    pub fn verdict(&self, outlived_to: Option<Tick>) -> Verdict {
        if self.skipped {
            return Verdict::Skipped;
        }
        match (self.missing(), self.extra()) {
            (0, 0) if self.changed().is_some_and(|changed| changed > 0) => Verdict::Changed,
            (0, 0) => Verdict::Equal,
            (1.., _) if self.late => Verdict::Pending,
            (1.., _) => Verdict::Missing,
            _ if self.expired.unwrap_or_else(|| outlived_to.is_some_and(|tick| self.low <= tick)) => {
                Verdict::ExpiredInSource
            }
            _ => Verdict::Extra,
        }
    }
}

/// The last tick whose rows may have outlived the source's TTL by now, if none lives shorter than the shortest-lived row that is still there.
pub fn outlived_to(cursor: CursorType, clock_micros: i64, shortest_lifetime_seconds: i64) -> Tick {
    cursor.tick_at(clock_micros.saturating_sub(shortest_lifetime_seconds.saturating_mul(MICROS_PER_SECOND)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Tick = 3_600_000;

    fn section(low: Option<Tick>, high: Tick, skipped: bool) -> Section {
        Section { window: Window { low, high }, skipped, late: false }
    }

    fn buckets(rows: &BTreeMap<Tick, u64>, window: Window, width: Tick) -> Vec<Bucket> {
        let mut buckets: BTreeMap<Tick, u64> = BTreeMap::new();
        for (tick, count) in rows.iter().filter(|(tick, _)| window.contains(**tick)) {
            *buckets.entry(tick - tick.rem_euclid(width)).or_default() += count;
        }
        buckets.into_iter().map(|(low, rows)| Bucket { low, width, rows }).collect()
    }

    #[test]
    fn a_bucket_is_an_hour_or_a_day() {
        assert_eq!(bucket_width(CursorType::Date), 1);
        assert_eq!(bucket_width(CursorType::DateTime), 3600);
        assert_eq!(bucket_width(CursorType::DateTime64 { scale: 3 }), HOUR);
    }

    #[test]
    fn ranges_are_cut_at_the_ends_of_what_was_skipped() {
        let all = Window { low: None, high: 100 };
        assert_eq!(sections(all, &[], &[]), [section(None, 100, false)]);
        assert_eq!(
            sections(all, &[(50, 60), (Tick::MIN, 10), (55, 58), (60, 70), (90, 200), (300, 400)], &[]),
            [
                section(None, 10, true),
                section(Some(10), 50, false),
                section(Some(50), 70, true),
                section(Some(70), 90, false),
                section(Some(90), 100, true),
            ]
        );
        let inside = Window { low: Some(55), high: 58 };
        assert_eq!(sections(inside, &[(50, 60)], &[]), [section(Some(55), 58, true)]);
        assert_eq!(sections(Window { low: Some(5), high: 5 }, &[(0, 9)], &[]), []);
        assert_eq!(sections(Window { low: Some(6), high: 5 }, &[(0, 9)], &[]), []);
        let window = |low, high| Window { low: Some(low), high };
        let late = Section { late: true, ..section(Some(20), 40, false) };
        assert_eq!(
            sections(all, &[], &[window(20, 30), window(30, 40)]),
            [section(None, 20, false), late, section(Some(40), 100, false)]
        );
    }

    #[test]
    fn counts_give_a_verdict() {
        let verdict = |source, target, skipped, outlived_to| {
            Counts { low: 10, high: 20, source, duplicates: 0, target, skipped, late: false, expired: None, rows: None }
                .verdict(outlived_to)
        };
        assert_eq!(verdict(5, 5, false, None), Verdict::Equal);
        assert_eq!(verdict(6, 5, false, None), Verdict::Missing);
        assert_eq!(verdict(6, 5, false, Some(99)), Verdict::Missing, "no TTL explains a row that is there");
        assert_eq!(verdict(5, 6, false, None), Verdict::Extra);
        assert_eq!(verdict(5, 6, false, Some(9)), Verdict::Extra);
        assert_eq!(verdict(5, 6, false, Some(10)), Verdict::ExpiredInSource);
        assert_eq!(verdict(0, 6, true, None), Verdict::Skipped);
        assert_eq!(verdict(6, 0, true, None), Verdict::Skipped);
        let keyed = |target| {
            Counts {
                low: 10,
                high: 20,
                source: 5,
                duplicates: 2,
                target,
                skipped: false,
                late: false,
                expired: None,
                rows: None,
            }
            .verdict(None)
        };
        assert_eq!([4, 5, 7, 8].map(keyed), [Verdict::Missing, Verdict::Equal, Verdict::Equal, Verdict::Extra]);
        let late = |source, target| {
            Counts {
                low: 10,
                high: 20,
                source,
                duplicates: 0,
                target,
                skipped: false,
                late: true,
                expired: None,
                rows: None,
            }
            .verdict(None)
        };
        assert_eq!([late(6, 5), late(5, 5), late(5, 6)], [Verdict::Pending, Verdict::Equal, Verdict::Extra]);
        let mismatches = [Verdict::Missing, Verdict::Extra];
        use Verdict as V;
        for verdict in [V::Equal, V::Missing, V::Pending, V::Extra, V::Changed, V::ExpiredInSource, V::Skipped] {
            assert_eq!(verdict.is_mismatch(), mismatches.contains(&verdict), "{verdict:?}");
        }
    }

    #[test]
    fn rows_give_a_verdict_whatever_the_counts_are() {
        let verdict = |missing, extra, changed, outlived_to| {
            let rows = Some(Differing { missing, extra, changed, last_extra: None });
            Counts {
                low: 10,
                high: 20,
                source: 5,
                duplicates: 9,
                target: 5,
                skipped: false,
                late: false,
                expired: None,
                rows,
            }
            .verdict(outlived_to)
        };
        assert_eq!(verdict(0, 0, 0, None), Verdict::Equal);
        assert_eq!(verdict(1, 1, 0, Some(99)), Verdict::Missing, "nothing explains a row that is there");
        assert_eq!(verdict(0, 1, 1, None), Verdict::Extra);
        assert_eq!(verdict(0, 1, 1, Some(10)), Verdict::ExpiredInSource);
        assert_eq!(verdict(0, 0, 1, Some(10)), Verdict::Changed);
        let rows = Some(Differing { missing: 0, extra: 1, changed: 0, last_extra: Some(15) });
        let of = |expired| {
            Counts {
                low: 10,
                high: 20,
                source: 5,
                duplicates: 0,
                target: 6,
                skipped: false,
                late: false,
                expired,
                rows,
            }
            .verdict(Some(10))
        };
        assert_eq!([of(Some(false)), of(Some(true)), of(None)].map(|v| v == Verdict::Extra), [true, false, false]);
    }

    #[test]
    fn rows_expire_when_they_are_as_old_as_their_lifetime() {
        assert_eq!(outlived_to(CursorType::DateTime, 100 * MICROS_PER_SECOND, 40), 60);
        assert_eq!(outlived_to(CursorType::DateTime, 100 * MICROS_PER_SECOND - 1, 40), 59);
        assert_eq!(outlived_to(CursorType::Date, 86_400 * MICROS_PER_SECOND, 86_401), -1);
    }

    proptest! {
        /// Invariant 10, as far as counts go: every row of the range is in one bucket, whatever was skipped and whichever side holds it.
        #[test]
        fn every_row_of_the_range_is_compared_once(
            source in proptest::collection::btree_map(-9 * HOUR..9 * HOUR, 1_u64..5, 0..60),
            target in proptest::collection::btree_map(-9 * HOUR..9 * HOUR, 1_u64..5, 0..60),
            low in proptest::option::of(-10 * HOUR..10 * HOUR),
            high in -10 * HOUR..10 * HOUR,
            skipped in proptest::collection::vec((-10 * HOUR..10 * HOUR, -10 * HOUR..10 * HOUR), 0..4),
        ) {
            let range = Window { low, high };
            let mut all = Vec::new();
            for section in sections(range, &skipped, &[]) {
                let side = |rows| buckets(rows, section.window, HOUR);
                let source: Vec<_> = side(&source).into_iter().map(|bucket| (bucket, 0)).collect();
                all.extend(pair(section, &source, &side(&target)));
            }
            prop_assert!(all.windows(2).all(|w| w[0].high <= w[1].low), "ascending and disjoint: {:?}", all);
            for counts in &all {
                let window = Window { low: Some(counts.low), high: counts.high };
                let sum = |rows: &BTreeMap<Tick, u64>| -> u64 {
                    rows.iter().filter(|(tick, _)| window.contains(**tick)).map(|(_, rows)| rows).sum()
                };
                prop_assert_eq!((sum(&source), sum(&target)), (counts.source, counts.target));
                prop_assert!(counts.source + counts.target > 0);
                prop_assert!(counts.low.div_euclid(HOUR) == (counts.high - 1).div_euclid(HOUR), "within an hour");
                prop_assert!(low.is_none_or(|low| counts.low >= low) && counts.high <= high);
                let on_purpose = |tick: Tick| skipped.iter().any(|(from, to)| (*from..*to).contains(&tick));
                prop_assert!(on_purpose(counts.low) == counts.skipped && on_purpose(counts.high - 1) == counts.skipped);
                prop_assert_eq!(counts.missing() as i64 - counts.extra() as i64, counts.source as i64 - counts.target as i64);
            }
            for (rows, counted) in [
                (&source, all.iter().map(|counts| counts.source).sum::<u64>()),
                (&target, all.iter().map(|counts| counts.target).sum::<u64>()),
            ] {
                let within: u64 = rows.iter().filter(|(tick, _)| range.contains(**tick)).map(|(_, rows)| rows).sum();
                prop_assert_eq!(within, counted);
            }
        }
    }
}
