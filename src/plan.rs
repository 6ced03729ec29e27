//! Which rows a pass moves: pure, synchronous, property-tested.
//!
//! Everything that a decision depends on comes in as an argument; nothing here reads a clock, a server or a file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::cursor::{CursorType, MICROS_PER_SECOND, Tick, micros_of};
use crate::error::{Error, Kind, Result};

/// What a window is planned from.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// Type of the cursor, for its ticks.
    pub cursor: CursorType,
    /// The target's watermark, `None` before the first commit.
    pub watermark: Option<Tick>,
    /// The highest watermark ever committed; below it rows have left before.
    pub offloaded_to: Option<Tick>,
    /// See [`lower_bound`].
    pub low: Option<Tick>,
    /// The source's own clock, microseconds since 1970.
    pub source_clock_micros: i64,
    /// How far behind that clock a window ends.
    pub settle_delay: Duration,
    /// Largest cursor that is not in the source's future and not below the window's lower bound.
    pub newest: Option<Tick>,
    /// Exclusive upper bound that the user asked for.
    pub until: Option<Tick>,
    /// Bounds are multiples of it: 1, or what [`step`] returns for aggregates (P11).
    pub step: Tick,
}

/// A half-open range of the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Inclusive; `None` has no lower bound.
    pub low: Option<Tick>,
    /// Exclusive.
    pub high: Tick,
}

impl Window {
    /// Whether a tick lies in it.
    pub fn contains(self, tick: Tick) -> bool {
        self.low.is_none_or(|low| tick >= low) && tick < self.high
    }

    /// Whether no tick lies in it.
    pub fn is_empty(self) -> bool {
        self.low.unwrap_or(Tick::MIN) >= self.high
    }

    /// What lies in both this window and `[low, high)`.
    pub fn intersect(self, low: Tick, high: Tick) -> Self {
        Self { low: Some(self.low.map_or(low, |own| own.max(low))), high: self.high.min(high) }
    }
}

/// What a pass does about a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What has left before and is compared once more, because the watermark was put back (P27: it ends at offloaded-to).
    pub merge: Option<Window>,
    /// The rows to move, `None` where there can be none.
    pub window: Option<Window>,
    /// The bound up to which the source is looked at, rows or not; `None` where nothing below it is settled yet.
    pub checked_to: Option<Tick>,
}

/// Ticks of a configured span (`window`, `chunk_span`); refuses one that the cursor's ticks do not make up.
pub fn span_ticks(name: &str, span: Duration, cursor: CursorType) -> Result<Tick> {
    cursor.ticks_in(span).filter(|ticks| *ticks > 0).ok_or_else(|| {
        let span = humantime::format_duration(span);
        Error::new(Kind::Config, format!("{name} = {span} is no whole number of ticks of the cursor ({cursor:?})"))
            .hint("choose a multiple of what the cursor's type can tell apart")
    })
}

/// Ticks of which every bound is a multiple: those of the window of aggregates, else one (P11).
pub fn step(window: Option<Duration>, cursor: CursorType) -> Result<Tick> {
    window.map_or(Ok(1), |window| span_ticks("window", window, cursor))
}

/// The last multiple of `step` at or below a tick.
pub fn floor(tick: Tick, step: Tick) -> Tick {
    tick.saturating_sub(tick.rem_euclid(step))
}

/// The first multiple of `step` at or above a tick.
pub fn ceil(tick: Tick, step: Tick) -> Tick {
    floor(tick.saturating_add(step - 1), step)
}

/// Refuses a bound that somebody gives and that splits an aggregate.
pub fn check_bound(bound: Tick, step: Tick, cursor: CursorType) -> Result<()> {
    let below = floor(bound, step);
    if below == bound {
        return Ok(());
    }
    let message = format!("{} is no multiple of the table's window, in UTC", cursor.format(bound));
    Err(Error::new(Kind::Config, message).hint(format!("choose {}", cursor.format(below))))
}

/// Lower bound of the next window: the watermark, or before the first commit where the table starts, if anywhere (P10). A watermark that splits an
/// aggregate is refused (P11).
pub fn lower_bound(
    watermark: Option<Tick>,
    start_at: Option<DateTime<Utc>>,
    cursor: CursorType,
    step: Tick,
) -> Result<Option<Tick>> {
    if let Some(split) = watermark.filter(|watermark| *watermark != Tick::MIN && floor(*watermark, step) != *watermark)
    {
        let message = format!("the watermark {} is no multiple of `window`, in UTC", cursor.format(split));
        return Err(Error::refused(message)
            .hint("an aggregate would leave in two parts; restore the window that the table was filled with, or fill a new target"));
    }
    Ok(watermark.or_else(|| start_at.map(|start| cursor.tick_from(start.timestamp_micros()))))
}

impl Situation {
    /// Plans the next window (P9): it ends at the source's clock less the settle delay, never behind the newest row and never past
    /// `until`, so that neither a wrong clock nor a row from the future carries the watermark with it; of aggregates it ends with the last
    /// window that has closed (P11).
    pub fn plan(&self) -> Plan {
        let reachable = reachable(self.cursor, self.source_clock_micros, self.settle_delay, self.step);
        let bound = self.until.map_or(reachable, |until| floor(until, self.step).min(reachable));
        if self.low.is_some_and(|low| bound <= low) {
            return Plan { merge: None, window: None, checked_to: self.watermark };
        }
        let merge = self.low.zip(self.offloaded_to).map(|(low, to)| Window { low: Some(low), high: to.min(bound) });
        let merge = merge.filter(|merge| !merge.is_empty());
        let low = self.low.max(self.offloaded_to.filter(|_| merge.is_some()));
        let window = self
            .newest
            .map(|newest| Window { low, high: bound.min(ceil(newest.saturating_add(1), self.step)) })
            .filter(|window| low.is_none_or(|low| window.high > low));
        Plan { merge, window, checked_to: Some(bound) }
    }
}

/// The highest bound that a pass can reach by now: nothing below it is still to settle, or in an open window.
pub fn reachable(cursor: CursorType, clock_micros: i64, settle_delay: Duration, step: Tick) -> Tick {
    floor(cursor.tick_at(clock_micros.saturating_sub(micros_of(settle_delay))), step)
}

/// Seconds between two bounds, 0 where `to` is not above `from`; `None` for a tick that is no instant.
pub fn seconds_between(cursor: CursorType, from: Tick, to: Tick) -> Option<i64> {
    let micros = cursor.micros_at(to)?.checked_sub(cursor.micros_at(from)?)?;
    Some((micros / MICROS_PER_SECOND).max(0))
}

/// Rows of a window that share their partition values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The values, as the source listed them.
    pub key: Vec<String>,
    /// Raw rows, counted before any is read.
    pub rows: u64,
    /// Those that leave: not rejected and, once they are read, one of each key.
    pub kept: u64,
    /// Those that `reject_where` keeps out.
    pub rejected: u64,
}

impl Partition {
    /// Rows whose key another one has.
    pub fn duplicates(&self) -> u64 {
        self.rows.saturating_sub(self.kept).saturating_sub(self.rejected)
    }
}

/// Whether what was read of each partition can be what was there (protocol.md P6, P7): at least what was counted before the first SELECT, at
/// most what is counted after the last one, and no partition that nobody read. A row that moved between two SELECTs breaks this, however
/// it was moved; new rows alone do not.
pub fn is_whole(before: &[Partition], read: &BTreeMap<Vec<String>, u64>, after: &[Partition]) -> bool {
    let read_of = |partition: &Partition| read.get(&partition.key).copied().unwrap_or(0);
    let known: BTreeSet<&Vec<String>> = before.iter().map(|partition| &partition.key).collect();
    let none_lost = before.iter().all(|partition| read_of(partition) >= partition.kept);
    let none_new = after.iter().all(|partition| known.contains(&partition.key));
    let after: BTreeMap<&Vec<String>, u64> = after.iter().map(|partition| (&partition.key, partition.kept)).collect();
    let none_doubled = read.iter().all(|(key, rows)| *rows <= after.get(key).copied().unwrap_or(0));
    none_lost && none_new && none_doubled
}

/// Rows that will be one data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The part of the chunk's window.
    pub window: Window,
    /// The partition.
    pub key: Vec<String>,
}

/// How many rows make a file of about `target_bytes`, given the bytes of some rows; without any, nothing is known and files are not cut.
pub fn rows_per_file(target_bytes: u64, (bytes, rows): (u64, u64)) -> Option<u64> {
    let known = bytes > 0 && rows > 0;
    known.then(|| {
        u64::try_from(u128::from(target_bytes) * u128::from(rows) / u128::from(bytes)).unwrap_or(u64::MAX).max(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLIS: CursorType = CursorType::DateTime64 { scale: 3 };
    const NOW: i64 = 1_763_632_800_000;

    fn situation() -> Situation {
        Situation {
            cursor: MILLIS,
            watermark: Some(NOW - 900_000),
            offloaded_to: Some(NOW - 900_000),
            low: Some(NOW - 900_000),
            source_clock_micros: NOW * 1000,
            settle_delay: Duration::from_secs(300),
            newest: Some(NOW - 10),
            until: None,
            step: 1,
        }
    }

    #[test]
    fn ends_at_the_settled_clock() {
        let plan = situation().plan();
        let high = NOW - 300_000;
        assert_eq!(
            plan,
            Plan { merge: None, window: Some(Window { low: Some(NOW - 900_000), high }), checked_to: Some(high) }
        );
    }

    #[test]
    fn ends_one_tick_above_the_newest_row() {
        let plan = Situation { newest: Some(NOW - 600_000), ..situation() }.plan();
        assert_eq!(plan.window.map(|w| w.high), Some(NOW - 599_999));
        assert_eq!(plan.checked_to, Some(NOW - 300_000), "an idle source is checked further than it was offloaded");
    }

    #[test]
    fn a_clock_that_jumps_two_days_moves_the_watermark_no_further_than_the_rows() {
        let ahead = Situation { source_clock_micros: (NOW + 172_800_000) * 1000, ..situation() }.plan();
        assert_eq!(ahead.window.map(|w| w.high), Some(NOW - 9));
        let back = Situation { source_clock_micros: (NOW - 3_600_000) * 1000, ..situation() }.plan();
        assert_eq!(back, Plan { merge: None, window: None, checked_to: Some(NOW - 900_000) });
    }

    #[test]
    fn the_first_window_has_no_lower_bound_unless_configured() {
        let first = Situation { watermark: None, offloaded_to: None, low: None, ..situation() };
        assert_eq!(first.plan().window.and_then(|w| w.low), None);
        let started = Situation { low: Some(5), ..first };
        assert_eq!(started.plan().window.and_then(|w| w.low), Some(5));
        let empty = Situation { newest: None, ..first };
        assert_eq!(empty.plan(), Plan { merge: None, window: None, checked_to: Some(NOW - 300_000) });
    }

    #[test]
    fn a_day_is_offloaded_when_it_is_over() {
        let day = CursorType::Date.tick_at(NOW * 1000);
        let dates = Situation {
            cursor: CursorType::Date,
            watermark: None,
            offloaded_to: None,
            low: None,
            newest: Some(day),
            ..situation()
        };
        assert_eq!(dates.plan().window.map(|w| w.high), Some(day));
    }

    #[test]
    fn what_has_left_is_merged_up_to_where_it_has() {
        let back = Situation { watermark: Some(NOW - 900_000), offloaded_to: Some(NOW - 600_000), ..situation() };
        let merge = Some(Window { low: Some(NOW - 900_000), high: NOW - 600_000 });
        let window = Some(Window { low: Some(NOW - 600_000), high: NOW - 300_000 });
        assert_eq!(back.plan(), Plan { merge, window, checked_to: Some(NOW - 300_000) });
        let gone = Situation { newest: None, ..back }.plan();
        assert_eq!((gone.merge, gone.window), (merge, None), "the source may have dropped all of it");
        let until = Situation { until: Some(NOW - 700_000), ..back }.plan();
        assert_eq!((until.merge.map(|merge| merge.high), until.window), (Some(NOW - 700_000), None));
    }

    #[test]
    fn until_is_never_passed() {
        let plan = Situation { until: Some(NOW - 800_000), ..situation() }.plan();
        assert_eq!(plan.window.map(|w| w.high), Some(NOW - 800_000));
        let below = Situation { until: Some(NOW - 1_000_000), ..situation() }.plan();
        assert_eq!(below, Plan { merge: None, window: None, checked_to: Some(NOW - 900_000) });
    }

    #[test]
    fn a_row_that_moves_while_it_is_read_is_noticed() {
        let counts = |counts: &[(&str, u64)]| -> Vec<Partition> {
            counts
                .iter()
                .map(|(key, rows)| Partition { key: vec![(*key).to_owned()], rows: *rows, kept: *rows, rejected: 0 })
                .collect()
        };
        let whole = |before: &[(&str, u64)], read: &[(&str, u64)], after: &[(&str, u64)]| {
            let read = read.iter().map(|(key, rows)| (vec![(*key).to_owned()], *rows)).collect();
            is_whole(&counts(before), &read, &counts(after))
        };
        let before = &[("a", 5), ("b", 5)];
        assert!(whole(before, before, before));
        assert!(whole(before, &[("a", 6), ("b", 5)], &[("a", 7), ("b", 6)]), "new rows wait for the next pass");
        assert!(!whole(before, &[("a", 5), ("b", 6)], &[("a", 4), ("b", 6)]), "moved to where it was read again");
        assert!(!whole(before, &[("a", 5), ("b", 4)], &[("a", 6), ("b", 4)]), "moved away before it was read");
        assert!(!whole(before, before, &[("a", 5), ("b", 5), ("c", 1)]), "a partition that nobody read");
        assert!(!whole(before, &[("a", 5)], &[("a", 5)]), "a partition that went");
    }

    #[test]
    fn files_are_cut_by_measured_bytes() {
        assert_eq!(rows_per_file(128_000_000, (15_000, 1_000)), Some(8_533_333));
        assert_eq!(rows_per_file(10, (u64::MAX, 1)), Some(1));
        assert_eq!(rows_per_file(u64::MAX, (1, u64::MAX)), Some(u64::MAX));
        assert_eq!((rows_per_file(10, (0, 0)), rows_per_file(10, (5, 0))), (None, None));
    }

    proptest! {
        /// Invariant 5: half-open, behind the clock, above the watermark, never past the newest row.
        #[test]
        fn windows_keep_their_bounds(
            watermark in proptest::option::of(-1_000_i64..1_000),
            newest in proptest::option::of(-1_000_i64..1_000),
            until in proptest::option::of(-1_000_i64..1_000),
            step in 1_i64..50,
            back in 0_i64..20,
            clock in -1_000_i64..1_000,
            settle in 0_u64..100,
        ) {
            let watermark = watermark.map(|watermark| floor(watermark, step));
            let newest = newest.filter(|n| *n <= clock && watermark.is_none_or(|w| *n >= w));
            let situation = Situation {
                cursor: MILLIS, watermark, offloaded_to: watermark.map(|w| w + back * step), low: watermark, source_clock_micros: clock * 1000,
                settle_delay: Duration::from_millis(settle), newest, until, step,
            };
            let plan = situation.plan();
            let settled = clock - settle as i64;
            if let Some(merge) = plan.merge {
                prop_assert_eq!(merge.low, watermark);
                prop_assert!(merge.high <= settled && Some(merge.high) <= situation.offloaded_to);
                prop_assert!(until.is_none_or(|until| merge.high <= until));
            }
            if let Some(Window { low, high }) = plan.window {
                prop_assert_eq!(low, watermark.max(situation.offloaded_to), "what has left is never appended again");
                prop_assert_eq!(plan.merge.map(|merge| merge.high), low.filter(|low| Some(*low) > watermark));
                prop_assert!(low.is_none_or(|low| low < high));
                prop_assert!(high <= settled);
                prop_assert!(high < newest.unwrap() + 1 + step);
                prop_assert_eq!(high.rem_euclid(step), 0, "no aggregate is split");
                prop_assert!(until.is_none_or(|until| high <= until));
            } else {
                // Nothing that was settled, and that the user let pass, stays behind unseen.
                let bound = floor(until.map_or(settled, |u| u.min(settled)), step);
                let left = situation.offloaded_to.unwrap_or(i64::MIN);
                prop_assert!(newest.is_none_or(|newest| newest < left) || bound <= left, "{:?}", situation);
            }
            prop_assert!(plan.checked_to.unwrap_or(i64::MIN) >= watermark.unwrap_or(i64::MIN));
        }
    }
}
