//! A chunk below offloaded-to: its rows have left before, and what the target does not hold of them is added (protocol.md P21, P22, P26).
//!
//! One SELECT brings the source's rows into a file for a while. The target's rows of the window are held in memory, slice by slice where they are
//! many, and those of the source are looked for among them: first in the files that hold most columns, by all these columns. [`Identities`]
//! judge those that are not found.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{BooleanArray, RecordBatch, StringArray};
use arrow_select::filter::filter_record_batch;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::{NestedField, PrimitiveType, Schema, SchemaRef, Type};

use super::held::{BYTES_PER_ROW, Held, Identities, Unmatched};
use super::identity::{Identity, other_rows};
use super::{Chunk, Files, Route};
use crate::config::Table;
use crate::cursor::Tick;
use crate::difference::Slice;
use crate::error::{Classify, Error, Kind, Result};
use crate::late;
use crate::plan::{Partition, Window};
use crate::rows::Imager;
use crate::schema::pruned;
use crate::source::{Source, partition_values};
use crate::target::{RowFile, Rows, markers, read_rows};
use crate::watermark::Mode;
use crate::write::{Encoder, PARTITION, Placement, Scratch, ScratchWriter, Written};

/// Field id of the partition of a row of the source, which no table has: below those that Iceberg reserves, above all others.
const PARTITION_ID: i32 = i32::MAX - 500;
/// Readings of a window. More would take days.
const MAX_SLICES: u64 = 1 << 12;
/// Engines whose rows stay what they were when they were inserted.
const PLAIN_ENGINES: [&str; 3] = ["MergeTree", "ReplicatedMergeTree", "SharedMergeTree"];

/// What a merge needs beside source and target.
#[derive(Debug, Clone, Copy)]
pub struct Merger {
    /// Bytes for the rows of the target.
    pub memory: u64,
    /// Makes the images.
    pub imager: Imager,
}

impl Merger {
    /// Rows of a chunk that are compared by one reading.
    pub fn rows(&self) -> u64 {
        (self.memory / BYTES_PER_ROW).max(1)
    }
}

/// Files of the target that hold the same columns.
struct Level {
    files: Vec<RowFile>,
    /// What is compared.
    schema: SchemaRef,
    fields: BTreeSet<i32>,
    /// Of them those that others, who wrote the files, did not have to make up.
    lasting: BTreeSet<i32>,
    /// Whether their rows have been looked for by more columns before.
    again: bool,
}

/// A merge under way.
struct Merge {
    merger: Merger,
    /// Rows that are added lie in it.
    window: Window,
    /// Rows that are compared lie in it.
    reach: Window,
    source: Scratch,
    levels: Vec<Level>,
    identity: Identity,
    /// Which rows of the source lie in the window.
    wanted: Vec<bool>,
    /// Which of them the target holds as they are.
    found: Vec<bool>,
}

impl Merge {
    /// Whether a row of the source is to be judged.
    fn is_open(&self, row: usize) -> bool {
        self.wanted.get(row).copied().unwrap_or(false) && !self.found.get(row).copied().unwrap_or(true)
    }
}

/// Refuses to merge rows that nothing tells apart from what they were made of (protocol.md P22).
pub fn check_mergeable(source: &Source<'_>, table: &Table) -> Result<()> {
    let engine = source.engine();
    let name = engine.split([' ', '(']).next().unwrap_or_default();
    let what = match name {
        _ if !table.key.is_empty() => return Ok(()),
        _ if source.is_query() => "a query".to_owned(),
        "" => "a source whose engine the server does not tell".to_owned(),
        plain if PLAIN_ENGINES.contains(&plain) && !engine.contains(" GROUP BY ") => return Ok(()),
        plain if PLAIN_ENGINES.contains(&plain) => "a table whose TTL groups them".to_owned(),
        other => format!("a {other}"),
    };
    Err(Error::refused(format!("rows of {what} cannot be compared without a key: what left may be another row by now"))
        .hint("set `key` to the columns that name a row"))
}

impl Route<'_> {
    /// Adds what of a chunk the target does not hold. Returns how many rows the source has there.
    pub(super) async fn write_merge(&self, chunk: &mut Chunk, files: &mut Files, merger: Merger) -> Result<u64> {
        let keyed = !self.table.key.is_empty();
        let reach = match keyed && !self.table.is_final && !self.source.is_query() {
            true => late::reach(&markers(&self.target.metadata)?, chunk.window),
            false => chunk.window,
        };
        let Some(source) = self.receive(reach).await? else {
            chunk.held = self.rows_held(chunk.window).await?;
            return Ok(0);
        };
        let found = self
            .target
            .row_files(self.storage.file_io(), &self.table.target, self.cursor(), reach, &self.table.key)
            .await?;
        let found = found.iter().filter_map(|file| file.within(reach)).collect();
        let (levels, identity) = self.levels(&source, found, chunk.mode)?;
        let (wanted, found) = (Vec::new(), Vec::new());
        let mut merge = Merge { merger, window: chunk.window, reach, source, levels, identity, wanted, found };
        self.look_for(&mut merge, chunk).await?;
        let rows_read = merge.wanted.iter().filter(|wanted| **wanted).count() as u64;
        if chunk.partitions.is_empty() {
            chunk.partitions = vec![Partition { key: Vec::new(), rows: rows_read, kept: rows_read, rejected: 0 }];
        }
        let open = (0..merge.found.len()).filter(|row| merge.is_open(*row)).count() as u64;
        if open > 0 {
            for slice in slices(merger, open)? {
                let identities = self.identities(&merge, slice).await?;
                self.add_missing(&merge, slice, identities, chunk, files).await?;
            }
        }
        Ok(rows_read)
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        self.new_schema().unwrap_or(self.target.metadata.current_schema())
    }

    /// Streams the rows of the source into a file, with their partitions.
    async fn receive(&self, window: Window) -> Result<Option<Scratch>> {
        let mut stream = self.source.merged(self.cursor(), window, &self.fields, PARTITION)?;
        let mut scratch = ScratchWriter::create(self.storage.scratch())?;
        while let Some(bytes) = stream.next().await? {
            scratch.write(&bytes)?;
        }
        scratch.finish(&*self.with_partition()?)
    }

    /// The target's schema, and the partition of a row behind its columns.
    fn with_partition(&self) -> Result<SchemaRef> {
        let partition = NestedField::optional(PARTITION_ID, PARTITION, Type::Primitive(PrimitiveType::String));
        let fields = self.schema().as_struct().fields().iter().cloned().chain([Arc::new(partition)]);
        let schema = Schema::builder().with_fields(fields).build();
        schema.map(Arc::new).or_error(Kind::Internal, "name the columns of rows")
    }

    /// The target's files by the columns that they hold, most first, and the columns that make the identity of a row.
    fn levels(&self, source: &Scratch, found: Vec<RowFile>, mode: Mode) -> Result<(Vec<Level>, Identity)> {
        let mut own = source.fields.clone();
        own.remove(&PARTITION_ID);
        let common = found.iter().fold(own.clone(), |all, file| &all & &file.fields);
        let mut levels: Vec<Level> = Vec::new();
        let mut add = |fields: &BTreeSet<i32>, lasting: &BTreeSet<i32>, again: bool, file: RowFile| -> Result<()> {
            let of = |level: &&mut Level| (&level.fields, &level.lasting, level.again) == (fields, lasting, again);
            match levels.iter_mut().find(of) {
                Some(level) => level.files.push(file),
                None => levels.push(Level {
                    files: vec![file],
                    schema: pruned(self.schema(), fields)?,
                    fields: fields.clone(),
                    lasting: lasting.clone(),
                    again,
                }),
            }
            Ok(())
        };
        for file in found {
            let (all, lasting) = (&own & &file.all_fields, &own & &file.fields);
            if all != lasting {
                add(&lasting, &lasting, true, file.clone())?;
            }
            add(&all, &lasting, false, file)?;
        }
        levels.sort_by_key(|level| (level.again, std::cmp::Reverse(level.fields.len())));
        Ok((levels, self.identity(&common, mode)?))
    }

    /// Looks for the source's rows among the target's, by all that both have.
    async fn look_for(&self, merge: &mut Merge, chunk: &mut Chunk) -> Result<()> {
        let mut read = self.read_source(merge, &merge.identity.schema)?;
        while let Some((_, ticks)) = read.next().await? {
            merge.wanted.extend(ticks.iter().map(|tick| tick.is_some_and(|tick| merge.window.contains(tick))));
        }
        // At which level each row was found.
        let mut found: Vec<Option<usize>> = vec![None; merge.wanted.len()];
        let rows = self.rows_held(merge.reach).await?;
        for (number, level) in merge.levels.iter().enumerate() {
            let same_files = |other: &Level| {
                level.again && !other.again && other.fields != other.lasting && other.lasting == level.lasting
            };
            let before: Vec<usize> =
                (0..number).filter(|other| merge.levels.get(*other).is_some_and(same_files)).collect();
            for slice in slices(merge.merger, rows)? {
                let mut held = self.held(merge, level, slice, chunk).await?;
                // Of these files, rows that were found by more columns are not there once more.
                for other in &before {
                    self.take(merge, level, slice, &mut held, &mut found, (Some(*other), Some(*other))).await?;
                }
                self.take(merge, level, slice, &mut held, &mut found, (None, Some(number))).await?;
            }
        }
        merge.found = found.iter().map(Option::is_some).collect();
        Ok(())
    }

    /// Takes the rows of the source that were found `at` a level, or not yet, from those of the target: they are found there.
    async fn take(
        &self,
        merge: &Merge,
        level: &Level,
        slice: Slice,
        held: &mut Held,
        found: &mut [Option<usize>],
        (at, there): (Option<usize>, Option<usize>),
    ) -> Result<()> {
        let mut number = 0;
        let mut read = self.read_source(merge, &level.schema)?;
        while let Some((columns, ticks)) = read.next().await? {
            for image in merge.merger.imager.rows(&columns, ticks.len())? {
                let found = found.get_mut(number).ok_or_else(other_rows)?;
                number += 1;
                if *found == at && slice.contains(&image) && held.take(&image) {
                    *found = there;
                }
            }
            tokio::task::yield_now().await;
        }
        if number == found.len() { Ok(()) } else { Err(other_rows()) }
    }

    fn read_source(&self, merge: &Merge, schema: &SchemaRef) -> Result<Rows> {
        let file = RowFile::of_scratch(&merge.source, schema.clone());
        read_rows(self.storage.file_io(), std::iter::once(&file), schema, self.cursor())
    }

    /// The target's rows of a slice in the files of a level.
    async fn held(&self, merge: &Merge, level: &Level, slice: Slice, chunk: &mut Chunk) -> Result<Held> {
        let mut held = Held::default();
        let mut rows = read_rows(self.storage.file_io(), level.files.iter(), &level.schema, self.cursor())?;
        while let Some((columns, ticks)) = rows.next().await? {
            let is_within = |tick: &Option<Tick>, window: Window| tick.is_some_and(|tick| window.contains(tick));
            // A file may be much longer than the window.
            if !ticks.iter().any(|tick| is_within(tick, merge.reach)) {
                continue;
            }
            let images = merge.merger.imager.rows(&columns, ticks.len())?;
            for (tick, image) in ticks.iter().zip(images) {
                if is_within(tick, merge.reach) && slice.contains(&image) {
                    chunk.held += u64::from(!level.again && is_within(tick, merge.window));
                    held.add(image);
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(held)
    }

    /// Learns of the rows of a slice that were not found whether the target holds them with other content.
    async fn identities(&self, merge: &Merge, slice: Slice) -> Result<Identities> {
        let (schema, imager) = (&merge.identity.schema, merge.merger.imager);
        let mut identities = Identities::default();
        let mut number = 0;
        let mut read = self.read_source(merge, schema)?;
        while let Some((columns, ticks)) = read.next().await? {
            let of_rows = merge.identity.images(imager, &columns, ticks.len())?;
            let open = of_rows.iter().enumerate().filter(|(row, _)| merge.is_open(number + row));
            open.filter(|(_, identity)| slice.contains(identity)).for_each(|(_, identity)| identities.add(*identity));
            number += ticks.len();
        }
        let files = merge.levels.iter().filter(|level| !level.again).flat_map(|level| &level.files);
        let mut read = read_rows(self.storage.file_io(), files, schema, self.cursor())?;
        while let Some((columns, ticks)) = read.next().await? {
            merge.identity.check_labels(&columns)?;
            let of_rows = merge.identity.images(imager, &columns, ticks.len())?;
            let within =
                ticks.iter().zip(&of_rows).filter(|(tick, _)| tick.is_some_and(|tick| merge.reach.contains(tick)));
            within.for_each(|(_, identity)| identities.add_target(identity));
            tokio::task::yield_now().await;
        }
        let mut found = merge.found.iter();
        let mut read = self.read_source(merge, schema)?;
        while let Some((columns, ticks)) = read.next().await? {
            let of_rows = merge.identity.images(imager, &columns, ticks.len())?;
            let found = of_rows.iter().zip(found.by_ref()).filter(|(_, found)| **found);
            found.for_each(|(identity, _)| identities.take_found(identity));
        }
        Ok(identities)
    }

    /// Writes the rows of a slice that the target does not hold, partition by partition.
    async fn add_missing(
        &self,
        merge: &Merge,
        slice: Slice,
        mut identities: Identities,
        chunk: &mut Chunk,
        files: &mut Files,
    ) -> Result<()> {
        let keyed = !self.table.key.is_empty();
        let whole = pruned(&*self.with_partition()?, &merge.source.fields)?;
        let own = pruned(self.schema(), &merge.source.fields)?;
        let arrow = Arc::new(schema_to_arrow_schema(&own).or_error(Kind::Internal, "name the columns of rows")?);
        let mut file: Option<Added<'_>> = None;
        let mut number = 0;
        let mut of_rows = self.read_source(merge, &merge.identity.schema)?;
        let mut rows = self.read_source(merge, &whole)?;
        while let Some((mut columns, ticks)) = rows.next().await? {
            let (identity, same) = of_rows.next().await?.ok_or_else(other_rows)?;
            if same != ticks {
                return Err(other_rows());
            }
            let identity = merge.identity.images(merge.merger.imager, &identity, ticks.len())?;
            let mut missing = Vec::with_capacity(ticks.len());
            for identity in &identity {
                let judged =
                    (merge.is_open(number) && slice.contains(identity)).then(|| identities.judge(identity, keyed));
                chunk.changed += u64::from(judged == Some(Unmatched::Changed));
                missing.push(judged == Some(Unmatched::Missing));
                number += 1;
            }
            let partitions = columns.pop().ok_or_else(other_rows)?;
            let partitions = partitions.as_string_opt::<i32>().ok_or_else(other_rows)?;
            for (key, missing) in runs(partitions, &missing) {
                if let Some(done) = file.take_if(|file| file.key != key) {
                    done.finish(files).await?;
                }
                let rows = RecordBatch::try_new(arrow.clone(), columns.clone())
                    .and_then(|rows| filter_record_batch(&rows, &missing))
                    .or_error(Kind::Internal, "choose the rows that are missing")?;
                let file = match &mut file {
                    Some(file) => file,
                    None => file.insert(self.begin(key, &rows, chunk, files)?),
                };
                file.encoder.write(&rows).await?;
            }
            tokio::task::yield_now().await;
        }
        match file {
            Some(file) => file.finish(files).await,
            None => Ok(()),
        }
    }

    /// Begins the file of a partition.
    fn begin(&self, key: String, rows: &RecordBatch, chunk: &Chunk, files: &mut Files) -> Result<Added<'_>> {
        let values: Vec<String> = serde_json::from_str(&key).or_error(Kind::Internal, "read partition values")?;
        let name = format!("k2-offload-{}-{}.parquet", chunk.commit_id, files.begun.len());
        // Rows come as they were inserted.
        let placement =
            Placement { sort_order_id: None, ..self.placement(&partition_values(&self.fields, &values)?, &name)? };
        files.begun.push(placement.location.clone());
        Ok(Added { key, encoder: Encoder::create(&self.storage, &placement.location, rows, self.table)?, placement })
    }
}

/// The file of the partition whose missing rows are written.
struct Added<'a> {
    key: String,
    encoder: Encoder,
    placement: Placement<'a>,
}

impl Added<'_> {
    async fn finish(self, files: &mut Files) -> Result<()> {
        match self.encoder.finish(&self.placement).await? {
            Written::File(data_file) => {
                files.finished.push(*data_file);
                Ok(())
            }
            Written::Empty | Written::NeedsHoldBack(_) => {
                Err(Error::refused("the rows that are missing do not fit into a file").hint("offload fewer columns"))
            }
        }
    }
}

/// The slices in which so many rows are held in memory.
fn slices(merger: Merger, rows: u64) -> Result<impl Iterator<Item = Slice> + use<>> {
    let of = rows.div_ceil(merger.rows()).max(1);
    if of > MAX_SLICES {
        let message = format!("{rows} rows are to be compared at once, which merge_memory is too small for");
        return Err(Error::refused(message).hint("set a larger merge_memory in [defaults], or a smaller chunk_rows"));
    }
    Ok((0..of).map(move |number| Slice { number, of }))
}

/// The partitions of rows that follow each other, and which rows of each are wanted; those without any are left out.
fn runs(partitions: &StringArray, wanted: &[bool]) -> Vec<(String, BooleanArray)> {
    let mut runs: Vec<(String, Vec<bool>)> = Vec::new();
    for (row, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted) {
        let key = partitions.value(row);
        if runs.last().is_none_or(|(last, _)| last != key) {
            runs.push((key.to_owned(), vec![false; wanted.len()]));
        }
        if let Some(wanted) = runs.last_mut().and_then(|(_, wanted)| wanted.get_mut(row)) {
            *wanted = true;
        }
    }
    runs.into_iter().map(|(key, wanted)| (key, BooleanArray::from(wanted))).collect()
}
