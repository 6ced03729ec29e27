//! In which parts a range is compared. Pure.

use std::collections::BTreeSet;

use crate::audit::{Counts, Section};
use crate::cursor::Tick;
use crate::plan::{Window, floor};
use crate::target::RowFile;

/// Windows that follow each other and whose rows stand in files with the same columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// What the source is asked for at once: ascending and disjoint, never empty.
    pub windows: Vec<Window>,
    /// The flat fields that every file of these windows holds (protocol.md P21); `None` where there is no file.
    pub fields: Option<BTreeSet<i32>>,
}

impl Stretch {
    /// From the first to the last window.
    pub fn hull(&self) -> Window {
        let low = self.windows.first().and_then(|window| window.low);
        Window { low, high: self.windows.last().map_or(Tick::MIN, |window| window.high) }
    }
}

/// The buckets of a stretch: those of an audit, cut where a stretch ends within one, as only those of a query do.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// They are cut at its ends.
    pub range: Window,
    /// Ticks of a bucket.
    pub width: Tick,
}

impl Grid {
    /// The bucket of a tick.
    pub fn bucket(&self, tick: Tick) -> Window {
        let low = floor(tick, self.width);
        self.range.intersect(low, low.saturating_add(self.width))
    }
}

/// Rows that are asked for by themselves, or with their neighbours.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    window: Window,
    /// `None` where they are asked for by themselves.
    rows: Option<u64>,
}

/// The parts of a table: its buckets.
pub fn of_table(counts: &[Counts]) -> Vec<Part> {
    let part = |bucket: &Counts| Part {
        window: Window { low: Some(bucket.low), high: bucket.high },
        rows: Some(bucket.source),
    };
    counts.iter().map(part).collect()
}

/// The parts of a query, as passes ask for it: the spans in which there is a bucket.
pub fn of_query(section: Section, counts: &[Counts], span: Tick) -> Vec<Part> {
    let is_needed = |window: &Window| counts.iter().any(|bucket| !window.intersect(bucket.low, bucket.high).is_empty());
    let windows = section.spans(span).into_iter().filter(is_needed);
    windows.map(|window| Part { window, rows: None }).collect()
}

/// Puts parts together whose files hold the same columns, and within these the windows of about `limit` rows.
pub fn stretches(parts: Vec<Part>, files: &[RowFile], limit: u64) -> Vec<Stretch> {
    // Files mostly hold the same: what they hold is only intersected where it differs.
    let mut kinds: Vec<&BTreeSet<i32>> = files.iter().map(|file| &file.fields).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let kind = |file: &RowFile| kinds.binary_search(&&file.fields).ok();
    let files: Vec<_> = files.iter().map(|file| (file, kind(file))).collect();
    let held = parts.into_iter().map(|part| {
        let own: BTreeSet<usize> =
            files.iter().filter(|(file, _)| file.may_hold(part.window)).filter_map(|(_, kind)| *kind).collect();
        let own = own.into_iter().filter_map(|kind| kinds.get(kind).copied());
        (part, own.cloned().reduce(|all, fields| &all & &fields))
    });
    together(held, limit)
}

fn together(parts: impl Iterator<Item = (Part, Option<BTreeSet<i32>>)>, limit: u64) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut rows: Option<u64> = None;
    for (part, fields) in parts {
        let joined = rows.zip(part.rows).map(|(before, own)| before.saturating_add(own)).filter(|all| *all <= limit);
        rows = part.rows;
        match stretches.last_mut() {
            // Where there is no file, any columns tell that its rows are missing.
            Some(last) if last.fields == fields || last.fields.is_none() || fields.is_none() => {
                match last.windows.last_mut().filter(|_| joined.is_some()) {
                    Some(window) => {
                        window.high = part.window.high;
                        rows = joined;
                    }
                    None => last.windows.push(part.window),
                }
                last.fields = last.fields.take().or(fields);
            }
            _ => stretches.push(Stretch { windows: vec![part.window], fields }),
        }
    }
    stretches
}

/// Puts buckets together of at most `limit` rows, and `most` in number; a single one may have more rows.
pub fn groups(buckets: &[(Tick, u64)], limit: u64, most: usize) -> Vec<Vec<(Tick, u64)>> {
    let mut groups: Vec<Vec<(Tick, u64)>> = Vec::new();
    let mut rows: u64 = 0;
    for bucket in buckets {
        rows = rows.saturating_add(bucket.1);
        match groups.last_mut() {
            Some(last) if rows <= limit && last.len() < most => last.push(*bucket),
            _ => {
                rows = bucket.1;
                groups.push(vec![*bucket]);
            }
        }
    }
    groups
}

/// Windows in one piece where they touch.
pub fn joined(windows: impl Iterator<Item = Window>) -> Vec<Window> {
    let mut joined: Vec<Window> = Vec::new();
    for window in windows {
        match joined.last_mut() {
            Some(last) if Some(last.high) == window.low => last.high = window.high,
            _ => joined.push(window),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(buckets: &[(Tick, u64)]) -> Vec<Counts> {
        let bucket = |(low, source): &(Tick, u64)| Counts {
            low: *low,
            high: low + 10,
            source: *source,
            duplicates: 0,
            target: 1,
            skipped: false,
            late: false,
            expired: None,
            rows: None,
        };
        buckets.iter().map(bucket).collect()
    }

    fn window(low: Tick, high: Tick) -> Window {
        Window { low: Some(low), high }
    }

    fn windows(parts: Vec<Part>, limit: u64) -> Vec<Window> {
        let stretches = stretches(parts, &[], limit);
        assert!(stretches.len() <= 1);
        stretches.into_iter().flat_map(|stretch| stretch.windows).collect()
    }

    #[test]
    fn a_table_is_read_in_windows_of_whole_buckets() {
        let parts = of_table(&counts(&[(0, 5), (10, 5), (40, 1), (50, 100), (60, 0), (70, 3)]));
        assert_eq!(windows(parts.clone(), 10), [window(0, 20), window(40, 50), window(50, 60), window(60, 80)]);
        assert_eq!(windows(parts, 1000), [window(0, 80)]);
        assert_eq!(windows(Vec::new(), 10), []);
    }

    #[test]
    fn a_query_is_asked_as_passes_ask_it() {
        let section = Section { window: window(5, 95), skipped: false, late: false };
        let spans = of_query(section, &counts(&[(5, 1), (20, 1), (90, 1)]), 30);
        assert_eq!(windows(spans, 1000), [window(5, 30), window(90, 95)]);
        let section = Section { window: window(0, 40), ..section };
        let spans = of_query(section, &counts(&[(10, 1)]), 4);
        assert_eq!(windows(spans, 1000), [window(8, 12), window(12, 16), window(16, 20)]);
    }

    #[test]
    fn buckets_whose_files_hold_other_columns_are_compared_apart() {
        let held = |ids: &[i32]| Some(ids.iter().copied().collect::<BTreeSet<i32>>());
        let fields = [None, held(&[1, 2]), None, held(&[1, 2]), held(&[1]), held(&[1, 2])];
        let parts = of_table(&counts(&[(0, 1), (10, 1), (20, 1), (30, 1), (40, 1), (50, 1)]));
        for limit in [1, 1000] {
            let found = together(parts.iter().copied().zip(fields.clone()), limit);
            let found: Vec<_> = found.iter().map(|stretch| (stretch.hull(), stretch.fields.clone())).collect();
            assert_eq!(
                found,
                [(window(0, 40), held(&[1, 2])), (window(40, 50), held(&[1])), (window(50, 60), held(&[1, 2]))]
            );
        }
    }

    #[test]
    fn groups_fit_into_memory_where_buckets_do() {
        let buckets = [(0, 4), (10, 6), (20, 1), (30, 50), (40, 1), (50, 1), (60, 1)];
        let lows: Vec<Vec<Tick>> =
            groups(&buckets, 10, 2).iter().map(|group| group.iter().map(|(low, _)| *low).collect()).collect();
        assert_eq!(lows, [vec![0, 10], vec![20], vec![30], vec![40, 50], vec![60]]);
    }

    #[test]
    fn buckets_are_cut_at_the_ends_of_the_range() {
        let grid = Grid { range: window(-5, 25), width: 10 };
        assert_eq!(
            [-5, -1, 0, 9, 24].map(|tick| grid.bucket(tick)),
            [window(-5, 0), window(-5, 0), window(0, 10), window(0, 10), window(20, 25)]
        );
        let touching = [window(0, 10), window(10, 20), window(30, 40)];
        assert_eq!(joined(touching.into_iter()), [window(0, 20), window(30, 40)]);
    }
}
