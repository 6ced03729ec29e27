//! A host: one pass after the other, each step on its own, so that everything can happen between two of them. The order is that of `pass`; plan, cuts,
//! checks and markers are the product's.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::attempt::{Attempt, Outcome};
use super::source::Row;
use super::target::{Stored, Version};
use super::world::{CURSOR, World};
use super::{Mutant, world};
use crate::chunk::held::{Held, Identities, Unmatched};
use crate::chunk::{Chunk, Files};
use crate::commit::Base;
use crate::histogram::{Cut, Histogram};
use crate::late::{Lateness, is_whole as is_target_whole, pieces};
use crate::plan::{Partition, Situation, Window, is_whole, lower_bound};
use crate::rows::Image;
use crate::target::{Standing, deleted_by_others};
use crate::watermark::{Fingerprint, Marker, Mode};

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All is done; whether it committed anything.
    Done(bool),
    /// The next one tries again.
    Failed,
    /// A person is needed.
    Refused,
}

/// A pass under way.
pub struct Pass {
    version: Rc<Version>,
    marker: Option<Marker>,
    /// The columns of the source when it was opened.
    columns: u8,
    /// What is still to be cut.
    windows: VecDeque<(Mode, Window)>,
    cutting: Option<Cutting>,
    has_committed: bool,
    stage: Stage,
}

enum Stage {
    Load,
    Plan,
    Next,
    Read(Reading),
    Commit(Chunk, Box<Attempt>),
}

struct Cutting {
    mode: Mode,
    rest: Window,
    histogram: Histogram,
    /// Whether it was asked for by a reset, and not by late rows.
    is_reset: bool,
}

/// A chunk between its count and its commit.
struct Reading {
    chunk: Chunk,
    rows: BTreeMap<Vec<String>, Vec<Row>>,
}

impl Pass {
    pub fn new(world: &World) -> Self {
        Self {
            version: world.table.current.clone(),
            marker: None,
            columns: 0,
            windows: VecDeque::new(),
            cutting: None,
            has_committed: false,
            stage: Stage::Load,
        }
    }

    /// One step; how the pass ended where that was the last.
    pub fn step(&mut self, world: &mut World) -> Option<End> {
        match std::mem::replace(&mut self.stage, Stage::Next) {
            Stage::Load => self.load(world),
            Stage::Plan => self.plan(world),
            Stage::Next => self.next(world),
            Stage::Read(reading) => self.read(world, reading),
            Stage::Commit(chunk, attempt) => self.commit(world, chunk, attempt),
        }
    }

    pub fn describe(&self) -> String {
        match &self.stage {
            Stage::Load => "loads the table".into(),
            Stage::Plan => "plans".into(),
            Stage::Next => "takes the next chunk".into(),
            Stage::Read(reading) => format!("reads {:?} ({:?})", reading.chunk.window, reading.chunk.mode),
            Stage::Commit(chunk, attempt) => {
                let what = if attempt.swap.is_none() { "compares" } else { "swaps or asks" };
                format!("{what} for {:?} ({:?})", chunk.window, chunk.mode)
            }
        }
    }

    fn load(&mut self, world: &mut World) -> Option<End> {
        self.version = world.table.current.clone();
        self.marker = match world.standing(&self.version) {
            Standing::Empty => None,
            Standing::Filled(marker) => Some(*marker),
            Standing::RolledBack(_) | Standing::Foreign => {
                world.oracle.refused();
                return Some(End::Refused);
            }
        };
        self.columns = world.source.columns;
        self.stage = Stage::Plan;
        None
    }

    fn plan(&mut self, world: &mut World) -> Option<End> {
        let watermark = self.marker.as_ref().map(|marker| marker.watermark);
        let low = lower_bound(watermark, None, CURSOR, 1).unwrap();
        let situation = Situation {
            cursor: CURSOR,
            watermark,
            offloaded_to: self.marker.as_ref().map(|marker| marker.offloaded_to),
            low,
            source_clock_micros: CURSOR.micros_at(world.source.clock).unwrap(),
            settle_delay: Duration::from_secs(world::SETTLE_DELAY.unsigned_abs()),
            newest: world.source.newest(low),
            until: None,
            step: 1,
        };
        let plan = situation.plan();
        let late = match &self.marker {
            Some(marker) if marker.watermark == marker.offloaded_to => self.late(world, marker),
            _ => Vec::new(),
        };
        let late = late.into_iter().map(|window| (Mode::Late, window));
        let merges = late.chain(plan.merge.map(|window| (Mode::Merge, window)));
        self.windows = merges.chain(plan.window.map(|window| (Mode::Append, window))).collect();
        if let Some(rows) = self.marker.as_ref().and_then(|m| deleted_by_others(self.version.metadata(), m)) {
            world.oracle.alarmed(rows);
        }
        None
    }

    /// Cuts and counts the next chunk.
    fn next(&mut self, world: &mut World) -> Option<End> {
        loop {
            match self.cutting.take() {
                Some(mut cutting) if !cutting.histogram.is_empty() => {
                    let chunk = cut(&mut cutting, world);
                    self.cutting = Some(cutting);
                    if !chunk.partitions.is_empty() {
                        self.stage = Stage::Read(Reading { chunk, rows: BTreeMap::new() });
                        return None;
                    }
                }
                Some(Cutting { is_reset: true, rest, .. }) => {
                    let low = self.marker.as_ref().map(|marker| marker.watermark);
                    let rest = Window { low, high: rest.high };
                    if !rest.is_empty() {
                        self.stage = Stage::Read(Reading { chunk: Chunk::of_nothing(rest), rows: BTreeMap::new() });
                        return None;
                    }
                }
                Some(_) => {}
                None => match self.windows.pop_front() {
                    Some((mode, window)) => self.cutting = Some(self.begin(world, mode, window)),
                    None => return Some(End::Done(self.has_committed)),
                },
            }
        }
    }

    fn begin(&self, world: &World, mode: Mode, window: Window) -> Cutting {
        let histogram = Histogram::new(CURSOR, world.source.histogram(window), 1);
        Cutting { mode, rest: window, histogram, is_reset: mode == Mode::Merge }
    }

    /// The windows below the watermark that are to be merged (`chunk::late`).
    fn late(&self, world: &World, before: &Marker) -> Vec<Window> {
        let from = before.watermark - world::LATE_LOOKBACK;
        let from = from.max(before.adopted_to.unwrap_or(from));
        let pieces = pieces(self.version.markers(), (from, before.watermark), &before.skipped);
        let is_deleted = deleted_by_others(self.version.metadata(), before).is_some();
        let late = pieces.iter().filter(|piece| {
            let now = Fingerprint { rows: world.source.raw_rows(piece.window), hash: 0 };
            if world.mutant == Some(Mutant::LateByGrowth) && piece.counted.is_some_and(|c| now.rows < c.source.rows) {
                return false;
            }
            let is_whole = is_target_whole(before, is_deleted, piece.window);
            piece.lateness(now, self.version.held(piece.window), is_whole) == Lateness::Late
        });
        late.map(|piece| piece.window).collect()
    }

    /// One SELECT, or what comes after the last.
    fn read(&mut self, world: &mut World, mut reading: Reading) -> Option<End> {
        let Reading { chunk, rows } = &mut reading;
        let unread = |partition: &&Partition| !rows.contains_key(&partition.key);
        if chunk.mode.is_merge() {
            // One SELECT brings all.
            for partition in &chunk.partitions {
                rows.insert(partition.key.clone(), world.source.select(chunk.window, &partition.key));
            }
        } else if let Some(partition) = chunk.partitions.iter().find(unread) {
            rows.insert(partition.key.clone(), world.source.select(chunk.window, &partition.key));
            self.stage = Stage::Read(reading);
            return None;
        }
        let read: BTreeMap<Vec<String>, u64> =
            rows.iter().map(|(key, rows)| (key.clone(), rows.len() as u64)).collect();
        let after = world.source.count(chunk.window);
        let is_read = match chunk.mode.is_merge() {
            true => read.values().sum::<u64>() >= chunk.source_rows(),
            false => is_whole(&chunk.partitions, &read, &after),
        };
        if world.source.columns != self.columns || !is_read {
            return Some(End::Failed);
        }
        if world.mutant == Some(Mutant::CountAfter) {
            chunk.partitions = after;
        }
        let mut files = Files::default();
        let mut stored = Vec::new();
        for rows in std::mem::take(rows).into_values() {
            stored.push(world.table.store(self.columns, rows));
        }
        if chunk.mode.is_merge() {
            chunk.held = self.version.held(chunk.window);
            stored = self.missing(world, chunk.window, &stored);
        }
        stored.retain(|file| !file.rows.is_empty());
        files.finished = super::attempt::data_files(&stored);
        let attempt = Attempt {
            planned_on: self.version.clone(),
            base: match chunk.mode {
                Mode::Merge | Mode::Late => Base::Snapshot,
                _ => Base::Marker(self.marker.as_ref().map(|marker| marker.commit_id)),
            },
            marker: chunk.marker(&world.identity, self.marker.as_ref(), &files),
            brings_column: self.version.columns() < self.columns && !stored.is_empty(),
            files: stored,
            number: 0,
            swap: None,
        };
        self.stage = Stage::Commit(reading.chunk, Box::new(attempt));
        None
    }

    /// Of what was read, the rows that the target does not hold (`chunk::merge`).
    fn missing(&self, world: &mut World, window: Window, read: &[Rc<Stored>]) -> Vec<Rc<Stored>> {
        let files = self.version.contents.files.iter();
        let files: Vec<&Rc<Stored>> =
            files.filter(|file| file.rows.iter().any(|row| window.contains(row.tick))).collect();
        let columns = match world.mutant {
            Some(Mutant::ImagesOnly) => self.columns,
            _ => files.iter().map(|file| if file.is_rewritten { 3 } else { file.columns }).fold(self.columns, u8::min),
        };
        let in_target = || files.iter().flat_map(|file| &file.rows).filter(|row| window.contains(row.tick));
        let mut held = Held::default();
        in_target().for_each(|row| held.add(image(row, columns)));
        let mut open = Identities::default();
        let mut found = Vec::new();
        let mut judged = Vec::new();
        for file in read {
            let (there, unmatched): (Vec<Row>, Vec<Row>) =
                file.rows.iter().partition(|row| held.take(&image(row, columns)));
            found.extend(there);
            judged.push(unmatched);
        }
        judged.iter().flatten().for_each(|row| open.add(identity(row)));
        if world.mutant != Some(Mutant::ImagesOnly) {
            in_target().for_each(|row| open.add_target(&identity(row)));
        }
        found.iter().for_each(|row| open.take_found(&identity(row)));
        let mut missing = Vec::new();
        for mut rows in judged {
            rows.retain(|row| open.judge(&identity(row), false) == Unmatched::Missing);
            missing.push(world.table.store(self.columns, rows));
        }
        missing
    }

    fn commit(&mut self, world: &mut World, chunk: Chunk, mut attempt: Box<Attempt>) -> Option<End> {
        match attempt.step(world) {
            None => self.stage = Stage::Commit(chunk, attempt),
            Some(Outcome::Landed(version)) => {
                self.version = version;
                self.marker = Some(attempt.marker);
                self.has_committed = true;
            }
            Some(Outcome::Rejected | Outcome::Undecided) => return Some(End::Failed),
        }
        None
    }
}

fn cut(cutting: &mut Cutting, world: &World) -> Chunk {
    let high = match cutting.histogram.cut(world.chunk_rows, CURSOR.ticks_per_day(), usize::MAX) {
        Cut::At(high) => high,
        Cut::Rest => cutting.rest.high,
        Cut::Refine { bucket, .. } => unreachable!("{bucket:?} is a tick"),
    };
    cutting.histogram.forget_below(high);
    let window = Window { high, ..cutting.rest };
    cutting.rest.low = Some(high);
    Chunk { mode: cutting.mode, partitions: world.source.count(window), ..Chunk::of_nothing(window) }
}

/// What cannot change of a row: by what the source is sorted.
fn identity(row: &Row) -> Image {
    image(&Row { value: 0, ..*row }, 3)
}

/// A row as far as so many columns tell.
fn image(row: &Row, columns: u8) -> Image {
    let mut image = [0; 16];
    image[..8].copy_from_slice(&row.tick.to_le_bytes());
    image[8] = row.partition;
    image[9] = row.value;
    image[10] = if columns == 4 { row.extra.unwrap_or(u8::MAX) } else { 0 };
    image
}
