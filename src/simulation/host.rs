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
use crate::chunk::merge::Held;
use crate::chunk::{Chunk, Files};
use crate::commit::Base;
use crate::histogram::{Cut, Histogram};
use crate::late::{Piece, is_other, pieces};
use crate::plan::{Partition, Situation, Window, is_whole, lower_bound};
use crate::rows::Image;
use crate::target::{Standing, deleted_by_others};
use crate::watermark::{Marker, Mode};

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
    /// The marker below which late rows are still to be looked for.
    before: Option<Marker>,
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
            before: None,
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
            Standing::Filled(marker) => Some(marker),
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
        let windows = [(Mode::Merge, plan.merge), (Mode::Append, plan.window)];
        self.windows = windows.into_iter().filter_map(|(mode, window)| Some((mode, window?))).collect();
        self.before = self.marker.clone().filter(|marker| marker.watermark == marker.offloaded_to);
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
                    None => match self.before.take() {
                        Some(before) => {
                            let late = self.late(world, &before).into_iter();
                            self.windows = late.map(|window| (Mode::Merge, window)).collect();
                        }
                        None => return Some(End::Done(self.has_committed)),
                    },
                },
            }
        }
    }

    fn begin(&self, world: &World, mode: Mode, window: Window) -> Cutting {
        let histogram = Histogram::new(CURSOR, world.source.histogram(window), 1);
        // Late rows are looked for where no reset is under way.
        let has_left = self.marker.as_ref().is_some_and(|marker| marker.watermark >= window.high);
        Cutting { mode, rest: window, histogram, is_reset: mode == Mode::Merge && !has_left }
    }

    /// The windows below the watermark that are to be merged (`chunk::late`).
    fn late(&self, world: &World, before: &Marker) -> Vec<Window> {
        let from = before.watermark - world::LATE_LOOKBACK;
        let from = from.max(before.adopted_to.unwrap_or(from));
        let pieces = pieces(self.version.markers(), (from, before.watermark), &before.skipped);
        let is_late = |piece: &&Piece| {
            let (rows, held) = (world.source.raw_rows(piece.window()), self.version.held(piece.window()));
            match piece.counted {
                None => is_other(held, rows, 0),
                Some(counted) if world.mutant == Some(Mutant::LateByGrowth) && rows < counted.source => false,
                Some(counted) => !counted.is_as_counted(rows) && counted.deleted(held) == 0,
            }
        };
        pieces.iter().filter(is_late).map(Piece::window).collect()
    }

    /// One SELECT, or what comes after the last.
    fn read(&mut self, world: &mut World, mut reading: Reading) -> Option<End> {
        let Reading { chunk, rows } = &mut reading;
        let unread = |partition: &&Partition| !rows.contains_key(&partition.key);
        if let Some(partition) = chunk.partitions.iter().find(unread) {
            rows.insert(partition.key.clone(), world.source.select(chunk.window, &partition.key));
            self.stage = Stage::Read(reading);
            return None;
        }
        let read = rows.iter().map(|(key, rows)| (key.clone(), rows.len() as u64)).collect();
        let after = world.source.count(chunk.window);
        if world.source.columns != self.columns || !is_whole(&chunk.partitions, &read, &after) {
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
        if chunk.mode == Mode::Merge {
            chunk.held = self.version.held(chunk.window);
            stored = self.missing(world, chunk.window, &stored);
        }
        stored.retain(|file| !file.rows.is_empty());
        files.finished = super::attempt::data_files(&stored);
        let attempt = Attempt {
            planned_on: self.version.clone(),
            base: match chunk.mode {
                Mode::Merge => Base::Snapshot,
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
            Some(Mutant::CompareAllColumns) => self.columns,
            Some(Mutant::TrustRewritten) => files.iter().map(|file| file.columns).fold(self.columns, u8::min),
            _ => files.iter().map(|file| if file.is_rewritten { 3 } else { file.columns }).fold(self.columns, u8::min),
        };
        let mut held = Held::default();
        let rows = files.iter().flat_map(|file| &file.rows).filter(|row| window.contains(row.tick));
        rows.for_each(|row| held.add(None, &image(row, columns)));
        let mut missing = Vec::new();
        for file in read {
            let rows = file.rows.iter().filter(|row| held.is_missing(None, &image(row, columns)) == Some(true));
            let rows = rows.copied().collect();
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

/// A row as far as so many columns tell.
fn image(row: &Row, columns: u8) -> Image {
    let mut image = [0; 16];
    image[..8].copy_from_slice(&row.tick.to_le_bytes());
    image[8] = row.partition;
    image[9] = row.value;
    image[10] = if columns == 4 { row.extra.unwrap_or(u8::MAX) } else { 0 };
    image
}
