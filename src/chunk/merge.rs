//! A chunk below offloaded-to: its rows have left before, and what the target does not hold of them is added (protocol.md P21, P22, P26).
//!
//! The rows of the target that stand in the window are held in memory, as images, slice by slice of their hashes where they are many; then the source's
//! rows stream past them. As many rows of an image are added as the source has more of it. A row with a known key and other content is counted
//! and left as it is.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::io::FileIO;
use iceberg::spec::SchemaRef;

use super::{Chunk, Files, Route};
use crate::config::Table;
use crate::cursor::Tick;
use crate::difference::Slice;
use crate::error::{Classify, Error, Kind, Result};
use crate::plan::Window;
use crate::rows::{Image, Imager};
use crate::schema::{leaf_ids, pruned};
use crate::source::{Counting, Source, partition_values};
use crate::target::{RowFile, Rows, read_rows};
use crate::write::{Encoder, Scratch, ScratchWriter, Written};

/// About what a row of the target takes in memory: its image, perhaps that of its key, and the places that a hash table leaves free.
const BYTES_PER_ROW: u64 = 96;

/// What a merge needs beside source and target.
#[derive(Debug, Clone, Copy)]
pub struct Merger<'a> {
    /// Storage of the target.
    pub file_io: &'a FileIO,
    /// Folder of files that are only needed meanwhile.
    pub scratch: &'a Path,
    /// Bytes for the rows of the target.
    pub memory: u64,
    /// Makes the images.
    pub imager: Imager,
}

/// The target's rows of a slice.
#[derive(Debug, Default)]
pub(crate) struct Held {
    images: HashMap<Image, u64>,
    keys: HashSet<Image>,
}

impl Held {
    /// Adds a row of the target.
    pub(crate) fn add(&mut self, key: Option<&Image>, image: &Image) {
        *self.images.entry(*image).or_default() += 1;
        self.keys.extend(key);
    }

    /// Whether a row of the source is to be added; `None` where its key is there with other content.
    pub(crate) fn is_missing(&mut self, key: Option<&Image>, image: &Image) -> Option<bool> {
        match self.images.get_mut(image) {
            Some(rows @ 1..) => {
                *rows -= 1;
                Some(false)
            }
            _ if key.is_some_and(|key| self.keys.contains(key)) => None,
            _ => Some(true),
        }
    }
}

/// Rows of the source of one partition and slice.
#[derive(Clone, Copy)]
struct Part<'a> {
    key: &'a [String],
    scratch: &'a Scratch,
    compared: &'a Compared,
    slice: Slice,
}

/// What is compared of each row.
struct Compared {
    schema: SchemaRef,
    key: Vec<usize>,
}

/// Refuses to merge rows that nothing tells apart from what they were made of (protocol.md P22).
pub fn check_mergeable(source: &Source<'_>, table: &Table) -> Result<()> {
    let replaces = |kind: &&&str| source.engine().contains(**kind);
    let what = match ["Replacing", "Summing", "Aggregating", "Collapsing"].iter().find(replaces) {
        _ if !table.key.is_empty() => return Ok(()),
        _ if source.is_query() => "a query".to_owned(),
        Some(kind) => format!("a {kind}MergeTree"),
        None => return Ok(()),
    };
    Err(Error::refused(format!("rows of {what} cannot be compared without a key: what left may be another row by now"))
        .hint("set `key` to the columns that name a row"))
}

impl Route<'_> {
    /// Adds what of a chunk the target does not hold.
    pub(super) async fn write_merge(&self, chunk: &mut Chunk, files: &mut Files, merger: Merger<'_>) -> Result<()> {
        if self.source.is_query() {
            chunk.partitions = self.count(chunk.window, Counting::Raw).await?.partitions;
        }
        let mut scratches: Vec<(Vec<String>, Scratch)> = Vec::new();
        for partition in chunk.partitions.iter().filter(|partition| partition.kept > 0) {
            let Some(scratch) = self.receive(chunk.window, &partition.key, merger.scratch).await? else { continue };
            files.read.insert(partition.key.clone(), scratch.rows);
            scratches.push((partition.key.clone(), scratch));
        }
        let name = &self.table.target;
        let held = self.target.row_files(merger.file_io, name, self.cursor(), chunk.window, &self.table.key).await?;
        chunk.held = self.rows_held(merger.file_io, chunk.window).await?;
        let slices = chunk.held.saturating_mul(BYTES_PER_ROW).div_ceil(merger.memory.max(1)).max(1);
        let Some((_, first)) = scratches.first() else { return Ok(()) };
        let compared = self.compared(first, &held)?;
        for number in 0..slices {
            let slice = Slice { number, of: slices };
            let mut target = self.held(&held, &compared, chunk.window, slice, merger).await?;
            for (key, scratch) in &scratches {
                let part = Part { key, scratch, compared: &compared, slice };
                self.add_missing(chunk, files, part, &mut target, merger).await?;
            }
        }
        Ok(())
    }

    fn schema(&self) -> &SchemaRef {
        self.new_schema().unwrap_or(self.target.metadata.current_schema())
    }

    async fn receive(&self, window: Window, key: &[String], folder: &Path) -> Result<Option<Scratch>> {
        let values = partition_values(&self.fields, key)?;
        let mut stream = self.source.merged(self.cursor(), window, &self.fields, &values)?;
        let mut scratch = ScratchWriter::create(folder)?;
        while let Some(bytes) = stream.next().await? {
            scratch.write(&bytes)?;
        }
        scratch.finish(self.schema())
    }

    /// The columns that every file of the window physically holds and that the source still has (protocol.md P21).
    fn compared(&self, source: &Scratch, held: &[RowFile]) -> Result<Compared> {
        let mut fields = held.iter().fold(source.fields.clone(), |all, file| &all & &file.fields);
        // A label that was renamed since is another text of the same value, which must not make a row another one.
        let labels = self.source.columns.iter().filter(|column| column.source_type.contains("Enum"));
        for column in labels.filter(|column| !self.table.key.contains(&column.name)) {
            if let Some(field) = self.schema().field_by_name(&column.name) {
                leaf_ids(field).iter().for_each(|id| {
                    fields.remove(id);
                });
            }
        }
        let schema = pruned(self.schema(), &fields)?;
        let position = |name: &String| schema.as_struct().fields().iter().position(|field| field.name == *name);
        let key = self.table.key.iter().map(|name| {
            position(name).ok_or_else(|| {
                Error::refused(format!("the target has files without the key column `{name}`")).hint(
                    "compact the table, which writes their rows with it (Spark: `CALL system.rewrite_data_files`)",
                )
            })
        });
        Ok(Compared { key: key.collect::<Result<_>>()?, schema })
    }

    /// The target's rows of a slice.
    async fn held(
        &self,
        files: &[RowFile],
        compared: &Compared,
        window: Window,
        slice: Slice,
        merger: Merger<'_>,
    ) -> Result<Held> {
        let mut held = Held::default();
        if files.is_empty() {
            return Ok(held);
        }
        let mut rows = read_rows(merger.file_io, files.iter(), &compared.schema, self.cursor())?;
        while let Some((columns, ticks)) = rows.next().await? {
            let (images, keys) = images(merger.imager, compared, &columns, ticks.len())?;
            for (row, (tick, image)) in ticks.iter().zip(&images).enumerate() {
                let key = keys.as_ref().and_then(|keys| keys.get(row));
                if tick.is_some_and(|tick| window.contains(tick)) && slice.contains(key.unwrap_or(image)) {
                    held.add(key, image);
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(held)
    }

    /// Writes the rows of a partition and slice that the target does not hold.
    async fn add_missing(
        &self,
        chunk: &mut Chunk,
        files: &mut Files,
        Part { key, scratch, compared, slice }: Part<'_>,
        target: &mut Held,
        merger: Merger<'_>,
    ) -> Result<()> {
        let of_source = pruned(self.schema(), &scratch.fields)?;
        let arrow = schema_to_arrow_schema(&of_source).or_error(Kind::Internal, "name the columns of rows")?;
        let arrow = Arc::new(arrow);
        let open = |schema: &SchemaRef| {
            let file = RowFile::of_scratch(scratch, schema.clone());
            read_rows(merger.file_io, std::iter::once(&file), schema, self.cursor())
        };
        let mut whole = open(&of_source)?;
        // The same rows in the same batches, as far as they are compared.
        let mut parts: Option<Rows> = if compared.schema == of_source { None } else { Some(open(&compared.schema)?) };
        let placement = self.placement(
            &partition_values(&self.fields, key)?,
            &format!("k2-offload-{}-{}.parquet", chunk.commit_id, files.begun.len()),
        )?;
        let mut file: Option<Encoder> = None;
        while let Some((columns, ticks)) = whole.next().await? {
            let part = match &mut parts {
                None => columns.clone(),
                Some(parts) => parts.next().await?.map(|(columns, _)| columns).unwrap_or_default(),
            };
            let (images, keys) = images(merger.imager, compared, &part, ticks.len())?;
            let mut wanted = Vec::with_capacity(images.len());
            for (row, image) in images.iter().enumerate() {
                let key = keys.as_ref().and_then(|keys| keys.get(row));
                let missing = match slice.contains(key.unwrap_or(image)) {
                    true => target.is_missing(key, image),
                    false => Some(false),
                };
                chunk.changed += u64::from(missing.is_none());
                wanted.push(missing.unwrap_or(false));
            }
            if !wanted.contains(&true) {
                continue;
            }
            let rows = RecordBatch::try_new(arrow.clone(), columns)
                .and_then(|rows| filter_record_batch(&rows, &BooleanArray::from(wanted)))
                .or_error(Kind::Internal, "choose the rows that are missing")?;
            let file = match &mut file {
                Some(file) => file,
                None => {
                    files.begun.push(placement.location.clone());
                    file.insert(Encoder::create(&placement.location, &rows, self.table)?)
                }
            };
            file.write(&rows)?;
            tokio::task::yield_now().await;
        }
        let Some(file) = file else { return Ok(()) };
        match file.finish(&placement).await? {
            Written::File(data_file) => files.finished.push(*data_file),
            Written::Empty | Written::NeedsHoldBack(_) => {
                return Err(
                    Error::refused("the rows that are missing do not fit into a file").hint("offload fewer columns")
                );
            }
        }
        Ok(())
    }
}

/// Images of rows, and those of their keys where there is one.
fn images(
    imager: Imager,
    compared: &Compared,
    columns: &[ArrayRef],
    rows: usize,
) -> Result<(Vec<Image>, Option<Vec<Image>>)> {
    let images = imager.rows(columns, rows)?;
    let key: Vec<ArrayRef> = compared.key.iter().filter_map(|column| columns.get(*column).cloned()).collect();
    let keys = if key.is_empty() { None } else { Some(imager.rows(&key, rows)?) };
    Ok((images, keys))
}

/// Where the watermark stands after a chunk.
pub(super) fn watermark_after(chunk: Window, planned_on: Option<Tick>) -> Tick {
    planned_on.map_or(chunk.high, |watermark| watermark.max(chunk.high))
}
