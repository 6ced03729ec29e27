//! The source: rows that come in any order, expire, and get a further column; and the queries that a pass asks.

use std::collections::BTreeMap;

use crate::cursor::Tick;
use crate::histogram::Bucket;
use crate::plan::{Partition, Window};

/// What the further column holds of rows that were there before it.
const DEFAULT: u8 = 0;

/// A row. It has no key: equal rows are different rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub tick: Tick,
    pub partition: u8,
    pub value: u8,
    /// The column that comes later; `None` is null, or not held.
    pub extra: Option<u8>,
}

/// What of a row every side knows.
pub type Identity = (Tick, u8, u8);

impl Row {
    pub fn identity(&self) -> Identity {
        (self.tick, self.partition, self.value)
    }
}

/// A row of the source, and whether it came when its window might have left.
#[derive(Debug, Clone, Copy)]
pub struct Inserted {
    pub row: Row,
    pub is_late: bool,
}

pub struct Source {
    pub rows: Vec<Inserted>,
    /// 3, or 4 with the further one.
    pub columns: u8,
    pub clock: Tick,
    /// Age at which rows expire.
    pub ttl: Option<Tick>,
    /// Rows at or above it are not late: no pass can have seen a clock that settles them.
    pub unsettled_from: Tick,
    settle_delay: Tick,
    /// How often each row has ever been inserted.
    pub inserted: BTreeMap<Identity, u64>,
    /// Cursors of rows that the TTL has dropped.
    pub expired: Vec<Tick>,
}

impl Source {
    pub fn new(clock: Tick, settle_delay: Tick, ttl: Option<Tick>) -> Self {
        let mut source = Self {
            rows: Vec::new(),
            columns: 3,
            clock,
            ttl,
            unsettled_from: 0,
            settle_delay,
            inserted: BTreeMap::new(),
            expired: Vec::new(),
        };
        source.set_clock(clock);
        source
    }

    pub fn set_clock(&mut self, clock: Tick) {
        self.clock = clock;
        self.unsettled_from = self.unsettled_from.max(clock - self.settle_delay);
    }

    pub fn insert(&mut self, row: Row) {
        let row = Row { extra: row.extra.filter(|_| self.columns == 4), ..row };
        *self.inserted.entry(row.identity()).or_default() += 1;
        self.rows.push(Inserted { row, is_late: row.tick < self.unsettled_from });
    }

    pub fn expire(&mut self) {
        let Some(ttl) = self.ttl else { return };
        let lives = |inserted: &Inserted| inserted.row.tick >= self.clock - ttl;
        self.expired.extend(self.rows.iter().filter(|inserted| !lives(inserted)).map(|inserted| inserted.row.tick));
        self.rows.retain(lives);
    }

    /// `ALTER TABLE .. ADD COLUMN extra .. DEFAULT ..`
    pub fn add_column(&mut self) {
        self.columns = 4;
        self.rows.iter_mut().for_each(|inserted| inserted.row.extra = Some(DEFAULT));
    }

    fn within(&self, window: Window) -> impl Iterator<Item = &Row> {
        self.rows.iter().map(|inserted| &inserted.row).filter(move |row| window.contains(row.tick))
    }

    /// Largest cursor that is neither in the future nor below `low`.
    pub fn newest(&self, low: Option<Tick>) -> Option<Tick> {
        self.within(Window { low, high: self.clock + 1 }).map(|row| row.tick).max()
    }

    pub fn raw_rows(&self, window: Window) -> u64 {
        self.within(window).count() as u64
    }

    pub fn count(&self, window: Window) -> Vec<Partition> {
        let mut counts: BTreeMap<u8, u64> = BTreeMap::new();
        self.within(window).for_each(|row| *counts.entry(row.partition).or_default() += 1);
        let partition =
            |(key, rows): (u8, u64)| Partition { key: vec![key.to_string()], rows, kept: rows, rejected: 0 };
        counts.into_iter().map(partition).collect()
    }

    pub fn select(&self, window: Window, key: &[String]) -> Vec<Row> {
        self.within(window).filter(|row| key == [row.partition.to_string()]).copied().collect()
    }

    pub fn histogram(&self, window: Window) -> Vec<Bucket> {
        let mut counts: BTreeMap<Tick, u64> = BTreeMap::new();
        self.within(window).for_each(|row| *counts.entry(row.tick).or_default() += 1);
        counts.into_iter().map(|(low, rows)| Bucket { low, width: 1, rows }).collect()
    }
}
