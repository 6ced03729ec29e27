//! A commit on its way, step by step: compare, swap, ask. What `commit` does with files and catalog is modelled; what it decides is its own.

use std::rc::Rc;

use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Struct};
use uuid::Uuid;

use super::Mutant;
use super::target::{Contents, InFlight, SCHEMAS, Stored, Version};
use super::world::World;
use crate::commit::stage::{At, committed};
use crate::commit::{Base, Commit, MAX_ATTEMPTS, MAX_REPETITIONS, check_base};
use crate::config::TableName;
use crate::plan::Window;
use crate::target::history::Found;
use crate::target::{Fate, Standing, fate};
use crate::watermark::{KEY, Marker, Mode};

pub struct Attempt {
    pub planned_on: Rc<Version>,
    pub base: Base,
    pub marker: Marker,
    pub files: Vec<Rc<Stored>>,
    /// Whether the files bring the further column to the table.
    pub brings_column: bool,
    pub number: u32,
    pub swap: Option<Swapping>,
}

/// An attempt whose metadata is durable.
pub struct Swapping {
    base: Rc<Version>,
    new: Rc<Version>,
    list: u64,
    repetitions: u32,
    is_unknown: bool,
    /// What the next step asks the table for: whether the last swap found another location.
    asks: Option<bool>,
}

pub enum Outcome {
    Landed(Rc<Version>),
    /// Its files are deleted.
    Rejected,
    /// Its files stay.
    Undecided,
}

impl Attempt {
    /// One step; the outcome where that was the last.
    pub fn step(&mut self, world: &mut World) -> Option<Outcome> {
        let outcome = match self.swap.take() {
            None => self.compare(world),
            Some(swap) if swap.asks.is_some() => self.ask(world, swap),
            Some(swap) => self.swap(world, swap),
        };
        let deletes = match outcome {
            Some(Outcome::Rejected) => true,
            Some(Outcome::Undecided) => world.mutant == Some(Mutant::DeleteUnknown),
            _ => false,
        };
        if deletes {
            world.delete(self.files.iter().map(|file| file.id));
        }
        outcome
    }

    fn compare(&mut self, world: &mut World) -> Option<Outcome> {
        let now = world.table.current.clone();
        if self.number >= MAX_ATTEMPTS || !self.is_base(world, &now) {
            return Some(Outcome::Rejected);
        }
        let (new, list) = self.stage(world, &now);
        self.number += 1;
        self.swap = Some(Swapping { base: now, new, list, repetitions: 0, is_unknown: false, asks: None });
        None
    }

    fn is_base(&self, world: &World, now: &Version) -> bool {
        let newest = match world.standing(now) {
            Standing::Empty => None,
            Standing::Filled(marker) => Some(*marker),
            Standing::RolledBack(_) | Standing::Foreign if self.base == Base::Snapshot => None,
            Standing::RolledBack(_) | Standing::Foreign => return false,
        };
        let planned = match world.standing(&self.planned_on) {
            Standing::Filled(marker) => Some(*marker),
            _ => None,
        };
        let base = match (world.mutant, self.marker.mode) {
            (Some(Mutant::EqualWatermark), Mode::Append)
                if newest.as_ref().map(|m| m.watermark) == planned.as_ref().map(|m| m.watermark) =>
            {
                Base::Marker(newest.as_ref().map(|marker| marker.commit_id))
            }
            (Some(Mutant::MergeOnMarker), Mode::Merge | Mode::Late) => {
                Base::Marker(planned.map(|marker| marker.commit_id))
            }
            _ => self.base,
        };
        if matches!(world.mutant, Some(Mutant::PropertyOnly | Mutant::MergeOnSnapshot)) && base == Base::Snapshot {
            return now.metadata().current_snapshot_id() == self.planned_on.metadata().current_snapshot_id();
        }
        let files = Vec::new();
        let commit = self.commit(&files, base);
        check_base(&commit, now.metadata(), newest.map(|marker| marker.commit_id)).is_ok()
    }

    fn commit<'a>(&'a self, files: &'a [DataFile], base: Base) -> Commit<'a> {
        static NAME: TableName = TableName { namespace: String::new(), name: String::new() };
        Commit {
            name: &NAME,
            planned_on: &self.planned_on.target,
            base,
            marker: &self.marker,
            files,
            schema: self.brings_column.then(|| &SCHEMAS[1]),
        }
    }

    /// Writes manifests and metadata.
    fn stage(&self, world: &mut World, base: &Version) -> (Rc<Version>, u64) {
        let files = data_files(&self.files);
        let commit = self.commit(&files, self.base);
        let (snapshot_id, list) = (i64::try_from(world.table.new_id()).unwrap(), world.table.new_id());
        let now_ms = world.table.now_ms;
        let evolved = commit.schema.map(|schema| {
            let builder = base.metadata().clone().into_builder(None);
            builder.add_current_schema(schema.as_ref().clone()).unwrap().build().unwrap().metadata
        });
        let metadata = evolved.as_ref().unwrap_or(base.metadata());
        let sequence_number = metadata.next_sequence_number();
        let at = At { snapshot_id, sequence_number, list: list.to_string(), now_ms };
        let mut new = committed(&base.target, metadata, &commit, at).unwrap().metadata;
        let marker = new.properties()[KEY].clone();
        match world.mutant {
            Some(Mutant::PropertyOnly) if files.is_empty() => {
                let builder = base.metadata().clone().into_builder(None);
                new = builder.set_properties([(KEY.to_owned(), marker)].into()).unwrap().build().unwrap().metadata;
            }
            Some(Mutant::NoProperty) => {
                new = new.into_builder(None).remove_properties(&[KEY.to_owned()]).unwrap().build().unwrap().metadata;
            }
            _ => {}
        }
        let files = base.contents.files.iter().chain(&self.files).cloned().collect();
        world.table.remember(snapshot_id, Contents { list, files });
        (world.table.version(new), list)
    }

    fn swap(&mut self, world: &mut World, mut swap: Swapping) -> Option<Outcome> {
        let expected = &swap.base.target.metadata_location;
        swap.asks = match world.fault() {
            Fault::None => match world.swap(expected, &swap.new) {
                true => return Some(Outcome::Landed(swap.new)),
                false if !swap.is_unknown => return self.stale(world, &swap),
                false => Some(true),
            },
            Fault::Lost => Some(false),
            Fault::ReplyLost => {
                world.swap(expected, &swap.new);
                Some(false)
            }
            Fault::Delayed => {
                world.table.in_flight.push(InFlight { expected: expected.clone(), new: swap.new.clone() });
                Some(false)
            }
        };
        swap.is_unknown = true;
        self.swap = Some(swap);
        None
    }

    fn ask(&mut self, world: &mut World, mut swap: Swapping) -> Option<Outcome> {
        let now = world.table.current.clone();
        let base = swap.base.metadata().current_snapshot_id();
        let is_stale = swap.asks.take() == Some(true);
        let fate = world.fate(&now, base, self.marker.commit_id);
        match if is_stale { fate.of_stale() } else { fate } {
            Fate::Landed => return Some(Outcome::Landed(swap.new)),
            Fate::Rejected => return self.stale(world, &swap),
            Fate::Undecided => swap.repetitions += 1,
            Fate::Untraceable => return Some(Outcome::Undecided),
        }
        if swap.repetitions == MAX_REPETITIONS {
            return Some(Outcome::Undecided);
        }
        self.swap = Some(swap);
        None
    }

    /// This attempt can never land: its manifests go, and the next one is built.
    fn stale(&mut self, world: &mut World, swap: &Swapping) -> Option<Outcome> {
        world.delete([swap.list].into_iter());
        None
    }
}

/// What happens to a swap on the way.
pub enum Fault {
    None,
    /// It never arrives.
    Lost,
    /// It arrives, the answer does not.
    ReplyLost,
    /// It arrives later, perhaps.
    Delayed,
}

impl World {
    /// What a version of the table says of our commits.
    pub fn found(&self, version: &Version) -> Found {
        match version.found() {
            // Whoever changes nothing but the property must trust it.
            Found::RolledBack(rollback)
                if self.mutant == Some(Mutant::PropertyOnly)
                    && fate(version.metadata(), None, rollback.lost.commit_id).unwrap() != Fate::Landed =>
            {
                Found::Marker(rollback.lost.clone())
            }
            found => found.clone(),
        }
    }

    /// How far our commits have filled a version of the table.
    pub fn standing(&self, version: &Version) -> Standing {
        match self.found(version) {
            Found::None => Standing::Empty,
            Found::Marker(marker) => Standing::Filled(Box::new(marker)),
            Found::Cut(marker) => {
                let held = version.held(Window { low: marker.low, high: marker.high });
                Standing::of_cut(marker, held)
            }
            Found::RolledBack(rollback) => Standing::RolledBack(rollback),
            Found::Foreign => Standing::Foreign,
        }
    }

    fn fate(&self, now: &Version, base: Option<i64>, commit: Uuid) -> Fate {
        let is_property =
            || now.metadata().properties().get(KEY).is_some_and(|text| text.contains(&commit.to_string()));
        match fate(now.metadata(), base, commit).unwrap() {
            _ if self.mutant == Some(Mutant::PropertyOnly) && is_property() => Fate::Landed,
            Fate::Undecided if self.mutant == Some(Mutant::UndecidedIsRejected) => Fate::Rejected,
            fate => fate,
        }
    }
}

pub fn data_files(files: &[Rc<Stored>]) -> Vec<DataFile> {
    let file = |file: &Rc<Stored>| {
        let mut builder = DataFileBuilder::default();
        builder.content(DataContentType::Data).file_path(file.id.to_string()).file_format(DataFileFormat::Parquet);
        builder.partition(Struct::empty()).partition_spec_id(0).file_size_in_bytes(1);
        builder.record_count(file.rows.len() as u64).build().unwrap()
    };
    files.iter().map(file).collect()
}
