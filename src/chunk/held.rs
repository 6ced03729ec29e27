//! Which rows of the source the target does not hold: pure, in bounded memory (protocol.md P21, P26).
//!
//! Rows are told by two numbers. An *image* is made of all columns that are compared; an *identity* of those that cannot change while a row stays the
//! same: its key, or without one its cursor and the columns by which the source is sorted. A row whose image the target holds is there, as often as
//! it holds that. Of the rows that are left on both sides, one whose identity is left in the target too is the same row with other content: a
//! label was renamed, a column expired, it was updated. It is left as it is. All others are missing.

use std::collections::HashMap;

use crate::rows::Image;

/// About what an image, or an identity, takes in memory, with the places that a hash table leaves free, and needs while it grows.
pub(super) const BYTES_PER_ROW: u64 = 128;

/// Rows of the target that have not been found in the source yet.
#[derive(Debug, Default)]
pub(crate) struct Held {
    rows: HashMap<Image, u64>,
}

impl Held {
    /// Adds a row of the target.
    pub(crate) fn add(&mut self, image: Image) {
        *self.rows.entry(image).or_default() += 1;
    }

    /// Whether a row of the source is there; none is found twice.
    pub(crate) fn take(&mut self, image: &Image) -> bool {
        match self.rows.get_mut(image) {
            Some(rows @ 1..) => {
                *rows -= 1;
                true
            }
            _ => false,
        }
    }
}

/// What a row of the source is that the target does not hold as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmatched {
    /// There with other content.
    Changed,
    /// Another row of its key is there.
    Duplicate,
    /// Not there.
    Missing,
}

/// The identities of the rows that were not found.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    rows: HashMap<Image, Rows>,
}

/// Rows of one identity.
#[derive(Debug, Default)]
struct Rows {
    /// Of the target, less those that were found in the source.
    left: u64,
    /// Whether the target has any.
    known: bool,
}

impl Identities {
    /// Adds a row of the source that was not found.
    pub(crate) fn add(&mut self, identity: Image) {
        self.rows.entry(identity).or_default();
    }

    /// Adds a row of the target.
    pub(crate) fn add_target(&mut self, identity: &Image) {
        if let Some(rows) = self.rows.get_mut(identity) {
            rows.left += 1;
            rows.known = true;
        }
    }

    /// Takes away a row of the source that was found; after those of the target.
    pub(crate) fn take_found(&mut self, identity: &Image) {
        if let Some(rows) = self.rows.get_mut(identity) {
            rows.left = rows.left.saturating_sub(1);
        }
    }

    /// What a row of the source is that was not found. One that is missing is there from now on.
    pub(crate) fn judge(&mut self, identity: &Image, keyed: bool) -> Unmatched {
        let rows = self.rows.entry(*identity).or_default();
        if rows.left > 0 {
            rows.left -= 1;
            return Unmatched::Changed;
        }
        match std::mem::replace(&mut rows.known, true) && keyed {
            true => Unmatched::Duplicate,
            false => Unmatched::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = (u8, u8);

    /// A row is an identity and a content; returns which rows of the source are added, and how many changed.
    fn merge(source: &[Row], target: &[Row], keyed: bool) -> (Vec<Row>, usize) {
        let image = |row: &Row| -> Image { [[row.0; 8], [row.1; 8]].concat().try_into().unwrap() };
        let identity = |row: &Row| [row.0; 16];
        let mut held = Held::default();
        target.iter().for_each(|row| held.add(image(row)));
        let (found, unmatched): (Vec<Row>, Vec<Row>) = source.iter().partition(|row| held.take(&image(row)));
        let mut identities = Identities::default();
        unmatched.iter().for_each(|row| identities.add(identity(row)));
        target.iter().for_each(|row| identities.add_target(&identity(row)));
        found.iter().for_each(|row| identities.take_found(&identity(row)));
        let judged: Vec<_> = unmatched.iter().map(|row| (*row, identities.judge(&identity(row), keyed))).collect();
        let of = |wanted| judged.iter().filter(move |(_, found)| *found == wanted).map(|(row, _)| *row);
        (of(Unmatched::Missing).collect(), of(Unmatched::Changed).count())
    }

    #[test]
    fn equal_rows_are_added_as_often_as_they_are_missing() {
        assert_eq!(merge(&[(1, 1), (1, 1), (1, 1)], &[(1, 1)], false), (vec![(1, 1), (1, 1)], 0));
        assert_eq!(merge(&[(1, 1)], &[(1, 1), (1, 1)], false), (vec![], 0), "nothing is ever removed");
        assert_eq!(merge(&[], &[(1, 1)], false), (vec![], 0));
    }

    #[test]
    fn the_row_that_is_missing_is_added_and_not_one_that_looks_like_it() {
        for source in [[(1, 7), (1, 8)], [(1, 8), (1, 7)]] {
            assert_eq!(merge(&source, &[(1, 7)], false), (vec![(1, 8)], 0));
        }
    }

    #[test]
    fn what_changed_is_counted_and_left() {
        assert_eq!(merge(&[(1, 7), (2, 5)], &[(1, 6)], false), (vec![(2, 5)], 1));
        assert_eq!(merge(&[(1, 7), (1, 8)], &[(1, 6)], false), (vec![(1, 8)], 1), "one of them came");
        assert_eq!(merge(&[(1, 7), (1, 8)], &[(1, 6)], true), (vec![], 1), "a key is there once");
    }

    #[test]
    fn of_the_rows_of_a_key_one_is_enough() {
        assert_eq!(merge(&[(1, 7), (1, 8)], &[(1, 8)], true), (vec![], 0), "it does not matter which");
        assert_eq!(merge(&[(1, 7), (1, 8), (2, 1)], &[], true), (vec![(1, 7), (2, 1)], 0), "the first, the newest");
    }

    proptest! {
        /// Invariant 7: merging again adds nothing, no row is doubled, and none is lost.
        #[test]
        fn merging_again_adds_nothing(
            source in proptest::collection::vec((0_u8..6, 0_u8..3), 0..20),
            target in proptest::collection::vec((0_u8..6, 0_u8..3), 0..20),
            keyed in any::<bool>(),
        ) {
            let (added, changed) = merge(&source, &target, keyed);
            let all = [&target[..], &added[..]].concat();
            prop_assert_eq!(merge(&source, &all, keyed), (vec![], changed));
            let count = |rows: &[Row], wanted: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| wanted(row)).count();
            for row in &added {
                let of_source = count(&source, &|other| other == row);
                prop_assert!(count(&all, &|other| other == row) <= of_source, "{:?} is doubled", row);
            }
            for (key, _) in &source {
                let of_key = |rows: &[Row]| count(rows, &|row| row.0 == *key);
                prop_assert!(of_key(&all) >= if keyed { 1 } else { of_key(&source) }, "key {} is lost", key);
            }
        }
    }
}
