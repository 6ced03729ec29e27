//! Where chunks are cut: a sparse, hierarchical histogram of the cursor (protocol.md P10). Pure.
//!
//! It begins with days and is refined only where a bucket is too large for a chunk, by factors of at most 60: a row from 1970 costs one bucket, months
//! of history some hundred, and a burst within one second some dozen more. Cuts are ticks, so a tick is never split.

use crate::cursor::{CursorType, Tick};

/// Rows of the half-open range `[low, low + width)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// First tick, a multiple of the width.
    pub low: Tick,
    /// Ticks.
    pub width: Tick,
    /// Raw rows, more than none.
    pub rows: u64,
}

impl Bucket {
    /// First tick behind it.
    pub fn high(&self) -> Tick {
        self.low.saturating_add(self.width)
    }
}

/// Buckets that are not empty, ascending and disjoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    cursor: CursorType,
    buckets: Vec<Bucket>,
    finest: Tick,
}

/// The end of the next chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Before this tick.
    At(Tick),
    /// All the rest fits.
    Rest,
    /// Not known before this bucket is replaced by buckets of `width` ticks.
    Refine {
        /// The bucket that is too large.
        bucket: Bucket,
        /// Width of the finer buckets.
        width: Tick,
    },
}

impl Histogram {
    /// Over buckets as the source counted them; none is made finer than `finest` ticks.
    pub fn new(cursor: CursorType, buckets: Vec<Bucket>, finest: Tick) -> Self {
        Self { cursor, buckets, finest }
    }

    /// Where a chunk of at most `limit` rows, in at most `max_units` ranges of `unit` ticks, ends that begins with the first bucket. A chunk is larger only where a single tick is, and
    /// smaller than half only where it is the last or a tick does not fit behind it.
    pub fn cut(&self, limit: u64, unit: Tick, max_units: usize) -> Cut {
        let mut rows: u64 = 0;
        let mut units = 0;
        let mut last_unit = None;
        for bucket in &self.buckets {
            let bucket_unit = bucket.low.div_euclid(unit);
            if last_unit != Some(bucket_unit) {
                last_unit = Some(bucket_unit);
                units += 1;
            }
            if units > max_units {
                return Cut::At(bucket.low);
            }
            if rows.saturating_add(bucket.rows) > limit {
                let enough = rows > limit / 2;
                return match finer(self.cursor, bucket.width).filter(|width| *width >= self.finest) {
                    Some(width) if !enough => Cut::Refine { bucket: *bucket, width },
                    _ if rows > 0 => Cut::At(bucket.low),
                    _ => Cut::At(bucket.high()),
                };
            }
            rows += bucket.rows;
        }
        Cut::Rest
    }

    /// Replaces a bucket by finer ones.
    pub fn refine(&mut self, bucket: Bucket, finer: Vec<Bucket>) {
        if let Some(index) = self.buckets.iter().position(|b| *b == bucket) {
            self.buckets.splice(index..=index, finer);
        }
    }

    /// Forgets the rows below a cut.
    pub fn forget_below(&mut self, high: Tick) {
        self.buckets.retain(|bucket| bucket.low >= high);
    }

    /// Where the last rows end; `None` without any.
    pub fn end(&self) -> Option<Tick> {
        self.buckets.last().map(|bucket| bucket.high())
    }

    /// Whether no rows are left.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

/// The next finer width: hours, minutes, seconds, then decimal digits of the second, down to one tick.
pub fn finer(cursor: CursorType, width: Tick) -> Option<Tick> {
    let day = cursor.ticks_per_day();
    let factor = match day.checked_div(width)? {
        1 => 24,
        24 | 1440 => 60,
        _ => 10,
    };
    (width > 1).then(|| (width / factor).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What a server would count.
    fn count(rows: &BTreeMap<Tick, u64>, low: Tick, high: Tick, width: Tick) -> Vec<Bucket> {
        let mut buckets: BTreeMap<Tick, u64> = BTreeMap::new();
        for (tick, count) in rows.range(low..high) {
            *buckets.entry(tick.div_euclid(width) * width).or_default() += count;
        }
        buckets.into_iter().map(|(low, rows)| Bucket { low, width, rows }).collect()
    }

    /// Cuts everything; returns the chunks' rows with the number of their ticks, and how many buckets were asked for.
    fn chunks(
        cursor: CursorType,
        rows: &BTreeMap<Tick, u64>,
        limit: u64,
        max_days: usize,
    ) -> (Vec<(u64, usize)>, usize) {
        let day = cursor.ticks_per_day();
        let first = count(rows, Tick::MIN / 2, Tick::MAX / 2, day);
        let mut asked = first.len();
        let mut histogram = Histogram::new(cursor, first, 1);
        let mut low = Tick::MIN / 2;
        let mut chunks = Vec::new();
        while !histogram.is_empty() {
            let high = match histogram.cut(limit, day, max_days) {
                Cut::Refine { bucket, width } => {
                    let finer = count(rows, bucket.low.max(low), bucket.high(), width);
                    assert!(width < bucket.width && bucket.width % width == 0);
                    asked += finer.len();
                    histogram.refine(bucket, finer);
                    continue;
                }
                Cut::At(high) => high,
                Cut::Rest => Tick::MAX / 2,
            };
            assert!(high > low);
            chunks.push((rows.range(low..high).map(|(_, n)| n).sum(), rows.range(low..high).count()));
            histogram.forget_below(high);
            low = high;
        }
        (chunks, asked)
    }

    #[test]
    fn widths_go_down_to_a_tick() {
        for (cursor, steps) in [
            (CursorType::Date, 0),
            (CursorType::DateTime, 3),
            (CursorType::DateTime64 { scale: 3 }, 6),
            (CursorType::DateTime64 { scale: 6 }, 9),
        ] {
            let widths: Vec<Tick> =
                std::iter::successors(Some(cursor.ticks_per_day()), |width| finer(cursor, *width)).collect();
            assert_eq!((widths.last(), widths.len()), (Some(&1), steps + 1), "{cursor:?}");
            assert!(widths.windows(2).all(|w| w[0] % w[1] == 0));
        }
    }

    #[test]
    fn an_outlier_of_1970_costs_one_bucket() {
        let millis = CursorType::DateTime64 { scale: 3 };
        let rows = BTreeMap::from([(0, 1), (1_763_632_800_000, 100), (1_763_632_800_001, 100)]);
        let (chunks, asked) = chunks(millis, &rows, 1000, 64);
        assert_eq!((chunks, asked), (vec![(201, 3)], 2));
    }

    #[test]
    fn a_chunk_holds_a_bounded_number_of_days() {
        let rows: BTreeMap<Tick, u64> = (0..150).map(|day| (day * 3 * 86_400, 1)).collect();
        let (chunks, _) = chunks(CursorType::DateTime, &rows, 1000, 64);
        assert_eq!(chunks, [(64, 64), (64, 64), (22, 22)]);
    }

    proptest! {
        #[test]
        fn chunks_hold_every_row_once_and_never_split_a_tick(
            ticks in proptest::collection::btree_map(-200_000_i64..400_000_000, 1_u64..50, 0..200),
            scale in 0_u8..=6,
            limit in 1_u64..500,
        ) {
            for cursor in [CursorType::DateTime64 { scale }, CursorType::DateTime, CursorType::Date] {
                let (chunks, _) = chunks(cursor, &ticks, limit, usize::MAX);
                prop_assert_eq!(chunks.iter().map(|(rows, _)| rows).sum::<u64>(), ticks.values().sum::<u64>());
                prop_assert!(chunks.iter().all(|(rows, ticks)| *rows <= limit || *ticks == 1), "{:?}", chunks);
                // Two neighbours would not fit into one chunk, so that there are not many more than needed.
                prop_assert!(chunks.windows(2).all(|w| w[0].0 + w[1].0 > limit / 2));
            }
        }
    }
}
