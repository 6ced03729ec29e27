//! How the rows of two sides differ, as multisets of images, bucket by bucket: pure, in bounded memory (protocol.md P21, P26).
//!
//! [`Sums`] tell in memory for the buckets whether they differ at all; a [`Difference`] tells by how many rows, in as much memory as it was
//! given. Rows that do not fit are taken slice by slice of their hashes, which [`Slice`] chooses, so that one tick can hold any number.

use std::collections::BTreeMap;

use crate::cursor::Tick;
use crate::rows::Image;

/// Where a row was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// ClickHouse.
    Source,
    /// The Iceberg table.
    Target,
}

/// How many rows there are, and the sum of their images: the same for the same rows in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Rows.
    pub rows: u64,
    images: u128,
}

/// Both sides of each bucket, by its first tick.
#[derive(Debug, Default)]
pub struct Sums(pub BTreeMap<Tick, [Sum; 2]>);

impl Sums {
    /// Adds a row.
    pub fn add(&mut self, side: Side, bucket: Tick, image: &Image) {
        let sum = &mut self.0.entry(bucket).or_default()[side as usize];
        sum.rows += 1;
        sum.images = sum.images.wrapping_add(u128::from_le_bytes(*image));
    }
}

/// A part of all rows by the hash of their key, or of the row where there is none: all rows of a key are in one slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Which one, from 0.
    pub number: u64,
    /// Of how many.
    pub of: u64,
}

impl Slice {
    /// Whether a row belongs to it.
    pub fn contains(self, key: &Image) -> bool {
        u128::from_le_bytes(*key) % u128::from(self.of.max(1)) == u128::from(self.number)
    }
}

/// By how many rows a bucket differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Differing {
    /// Rows of the source, one of each key, that the target does not have.
    pub missing: u64,
    /// Rows that the target has more often than the source.
    pub extra: u64,
    /// Rows of the target whose key the source has, with other content.
    pub changed: u64,
    /// The newest tick of the extra rows.
    pub last_extra: Option<Tick>,
}

/// Equal rows of a bucket.
#[derive(Debug, Clone, Copy)]
struct Entry {
    bucket: Tick,
    tick: Tick,
    key: Image,
    image: Image,
    rows: [u64; 2],
}

impl Entry {
    fn is_like(&self, other: &Self) -> bool {
        (self.bucket, self.key, self.image) == (other.bucket, other.key, other.image)
    }
}

/// What takes one place in memory.
pub const BYTES_PER_ROW: u64 = size_of::<Entry>() as u64;

/// The rows of both sides of some buckets, as far as they are needed to tell how these differ.
#[derive(Debug)]
pub struct Difference {
    entries: Vec<Entry>,
    capacity: usize,
    slice: Slice,
    keyed: bool,
}

impl Difference {
    /// Takes at most `memory` bytes. With `keyed`, a row that has another content on the other side is changed, and of the rows of a key in the source
    /// one is enough.
    pub fn new(memory: u64, slice: Slice, keyed: bool) -> Self {
        let capacity = usize::try_from(memory / BYTES_PER_ROW).unwrap_or(usize::MAX).max(2);
        Self { entries: Vec::new(), capacity, slice, keyed }
    }

    /// Adds a row, if it is in the slice; `false` when memory is full: more slices are needed. Without a key, `key` is the image.
    pub fn add(&mut self, side: Side, (bucket, tick): (Tick, Tick), key: &Image, image: &Image) -> bool {
        if !self.slice.contains(key) {
            return true;
        }
        if self.entries.len() >= self.capacity {
            self.compact();
            // Else the next rows would compact again and again.
            if self.entries.len() > self.capacity / 4 * 3 {
                return false;
            }
        }
        if self.entries.len() == self.entries.capacity() {
            // Doubling would take more than was given.
            let more = self.entries.len().clamp(1024, 1 << 16).min(self.capacity - self.entries.len());
            self.entries.reserve_exact(more);
        }
        let mut rows = [0; 2];
        rows[side as usize] = 1;
        self.entries.push(Entry { bucket, tick, key: *key, image: *image, rows });
        true
    }

    /// Puts equal rows together. Without keys, those that both sides have equally often no longer matter.
    fn compact(&mut self) {
        self.entries.sort_unstable_by_key(|entry| (entry.bucket, entry.key, entry.image));
        self.entries.dedup_by(|next, kept| {
            let same = next.is_like(kept);
            if same {
                let [source, target] = next.rows;
                kept.rows = [kept.rows[0].saturating_add(source), kept.rows[1].saturating_add(target)];
            }
            same
        });
        if !self.keyed {
            self.entries.retain(|entry| entry.rows[0] != entry.rows[1]);
        }
    }

    /// The buckets that differ.
    pub fn finish(mut self) -> BTreeMap<Tick, Differing> {
        self.compact();
        let mut buckets: BTreeMap<Tick, Differing> = BTreeMap::new();
        for rows in self.entries.chunk_by(|a, b| (a.bucket, a.key) == (b.bucket, b.key)) {
            let Some(first) = rows.first() else { continue };
            let differing = if self.keyed { of_one_key(rows) } else { of_equal_rows(first) };
            if differing != Differing::default() {
                buckets.entry(first.bucket).or_default().add(differing);
            }
        }
        buckets
    }
}

fn of_equal_rows(entry: &Entry) -> Differing {
    let [source, target] = entry.rows;
    let extra = target.saturating_sub(source);
    let last_extra = (extra > 0).then_some(entry.tick);
    Differing { missing: source.saturating_sub(target), extra, changed: 0, last_extra }
}

/// The rows of one key. The source's rows leave once for each SELECT that sees them (protocol.md P27): the target has at least one of them, and
/// none more often than the source.
fn of_one_key(rows: &[Entry]) -> Differing {
    let is_on = |side: Side| rows.iter().any(|entry| entry.rows[side as usize] > 0);
    if !is_on(Side::Target) {
        return Differing { missing: 1, ..Differing::default() };
    }
    let in_source = is_on(Side::Source);
    let each = rows.iter().map(|entry| match entry.rows {
        [0, target] if in_source => Differing { changed: target, ..Differing::default() },
        _ => Differing { missing: 0, ..of_equal_rows(entry) },
    });
    each.fold(Differing::default(), |mut all, one| {
        all.add(one);
        all
    })
}

impl Differing {
    /// Adds what another slice found.
    pub fn add(&mut self, other: Self) {
        self.missing = self.missing.saturating_add(other.missing);
        self.extra = self.extra.saturating_add(other.extra);
        self.changed = self.changed.saturating_add(other.changed);
        self.last_extra = self.last_extra.max(other.last_extra);
    }
}

/// How many slices rows need, if their hashes are spread evenly.
pub fn slices(rows: u64, memory: u64) -> u64 {
    // Compaction wants a quarter free.
    rows.saturating_mul(BYTES_PER_ROW).div_ceil((memory / 4 * 3).max(BYTES_PER_ROW)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// No hash: `n` slices are certain to tell apart the numbers below `n`, whatever a seed would do to so few rows.
    fn image(number: u8) -> Image {
        u128::from(number).to_le_bytes()
    }

    type Row = (Tick, u8, u8);

    /// Rows as (bucket, key, content), in so much memory that one slice may not be enough.
    fn compare(source: &[Row], target: &[Row], keyed: bool, places: u64, of: u64) -> BTreeMap<Tick, Differing> {
        let more = std::iter::successors(Some(of), |of| Some(of * 2));
        // One of these is at least 80, which no image reaches.
        more.take_while(|of| *of < 160).find_map(|of| in_slices(source, target, keyed, places, of)).unwrap()
    }

    fn in_slices(
        source: &[Row],
        target: &[Row],
        keyed: bool,
        places: u64,
        of: u64,
    ) -> Option<BTreeMap<Tick, Differing>> {
        let mut all: BTreeMap<Tick, Differing> = BTreeMap::new();
        for number in 0..of {
            let mut difference = Difference::new(places * BYTES_PER_ROW, Slice { number, of }, keyed);
            for (side, rows) in [(Side::Source, source), (Side::Target, target)] {
                for (bucket, key, content) in rows {
                    let row = image(key * 4 + content);
                    let key = if keyed { image(*key) } else { row };
                    if !difference.add(side, (*bucket, *bucket), &key, &row) {
                        return None;
                    }
                    assert!(difference.entries.capacity() as u64 <= places);
                }
            }
            for (bucket, differing) in difference.finish() {
                all.entry(bucket).or_default().add(differing);
            }
        }
        Some(all)
    }

    fn one(source: &[(u8, u8)], target: &[(u8, u8)], keyed: bool) -> (u64, u64, u64) {
        let rows = |rows: &[(u8, u8)]| rows.iter().map(|(key, content)| (0, *key, *content)).collect::<Vec<_>>();
        let all = compare(&rows(source), &rows(target), keyed, 100, 1);
        let Differing { missing, extra, changed, last_extra } = all.get(&0).copied().unwrap_or_default();
        assert_eq!(last_extra.is_some(), extra > 0);
        (missing, extra, changed)
    }

    #[test]
    fn rows_without_key_are_missing_or_extra() {
        assert_eq!(one(&[(1, 1), (1, 1), (2, 2)], &[(1, 1), (3, 3), (3, 3)], false), (2, 2, 0));
        assert_eq!(one(&[(1, 1)], &[(1, 2)], false), (1, 1, 0));
    }

    #[test]
    fn rows_of_a_key_are_changed() {
        assert_eq!(one(&[(1, 1)], &[(1, 2)], true), (0, 0, 1));
        assert_eq!(one(&[(1, 1), (2, 1)], &[(1, 1), (3, 1)], true), (1, 1, 0));
        assert_eq!(one(&[(1, 1)], &[(1, 1), (1, 1)], true), (0, 1, 0), "a row that was doubled");
        assert_eq!(one(&[(1, 1)], &[(1, 1), (1, 2)], true), (0, 0, 1));
    }

    #[test]
    fn p27_duplicates_of_a_key_may_have_left_or_not() {
        for target in [&[(1, 1)][..], &[(1, 2)], &[(1, 1), (1, 2)], &[(1, 1), (1, 1)]] {
            assert_eq!(one(&[(1, 1), (1, 1), (1, 2)], target, true), (0, 0, 0), "{target:?}");
        }
        assert_eq!(one(&[(1, 1), (1, 1), (1, 2)], &[], true), (1, 0, 0));
    }

    #[test]
    fn sums_forget_the_order_but_not_the_rows() {
        let sum = |numbers: &[u8]| {
            let mut sums = Sums::default();
            numbers.iter().for_each(|number| sums.add(Side::Target, 3, &image(*number)));
            sums.0[&3]
        };
        assert_eq!(sum(&[1, 2, 3]), sum(&[3, 1, 2]));
        assert_ne!(sum(&[1, 2, 3]), sum(&[1, 2, 4]));
        assert_ne!(sum(&[1, 1]), sum(&[1]));
    }

    proptest! {
        /// P26: the same numbers, however little memory there is; and those of a plain multiset.
        #[test]
        fn slices_change_nothing(
            source in proptest::collection::vec((0_i64..3, 0_u8..20, 0_u8..3), 0..120),
            target in proptest::collection::vec((0_i64..3, 0_u8..20, 0_u8..3), 0..120),
            places in 8_u64..60,
            of in 1_u64..7,
        ) {
            for keyed in [false, true] {
                let whole = compare(&source, &target, keyed, 1000, 1);
                // Rows of a key cannot be told apart by slices: memory must hold those of one in three buckets.
                let places = if keyed { places + 12 } else { places };
                prop_assert_eq!(&compare(&source, &target, keyed, places, of), &whole);
                if !keyed {
                    for bucket in 0..3 {
                        let count = |rows: &[(Tick, u8, u8)], row: (Tick, u8, u8)| rows.iter().filter(|r| **r == row).count() as u64;
                        let mut rows: Vec<_> = source.iter().chain(&target).filter(|row| row.0 == bucket).copied().collect();
                        rows.sort_unstable();
                        rows.dedup();
                        let missing: u64 = rows.iter().map(|row| count(&source, *row).saturating_sub(count(&target, *row))).sum();
                        let extra: u64 = rows.iter().map(|row| count(&target, *row).saturating_sub(count(&source, *row))).sum();
                        let found = whole.get(&bucket).copied().unwrap_or_default();
                        prop_assert_eq!((found.missing, found.extra, found.changed), (missing, extra, 0));
                    }
                }
            }
        }
    }
}
