//! One chunk on its way: counted, streamed into files, and checked, before anyone may commit it.

mod cut;
pub(crate) mod held;
mod identity;
mod late;
pub(crate) mod merge;
mod query;

use std::collections::BTreeMap;

use iceberg::spec::{DataFile, Literal, SchemaRef, Struct};
use uuid::Uuid;

use crate::config::Table;
use crate::cursor::{Cursor, Tick};
use crate::error::{Error, Kind, Result};
use crate::partition::{PartitionField, Value};
use crate::plan::{Partition, Piece, Window, is_whole, span_ticks, step};
use crate::reset::check_adopted;
use crate::schema::{Evolution, evolve};
use crate::source::{Counting, Server, Source, partition_values};
use crate::storage::Storage;
use crate::target::Target;
use crate::telemetry::TableBar;
use crate::watermark::{Fingerprint, Marker, Mode, SourceIdentity, VERSION, remove_range};
use crate::write::{HOLD_BACK, Metrics, Passthrough, Placement, Written};

/// Longest name of a partition's folder, in bytes.
const MAX_FOLDER_LENGTH: usize = 200;

/// How rows go from a source to its target.
pub struct Route<'a> {
    /// The configuration of both.
    pub table: &'a Table,
    /// Where they come from.
    pub source: Source<'a>,
    /// Where they go.
    pub target: Target,
    /// How its files are reached.
    pub storage: Storage,
    /// What the marker will say of the source.
    pub identity: SourceIdentity,
    /// Bounds are multiples of it (protocol.md P11).
    pub step: Tick,
    /// A chunk takes rows of one multiple of it.
    span: Option<Tick>,
    /// How the target follows the source's columns.
    pub evolution: Evolution,
    /// The fields of the target's partitions.
    fields: Vec<PartitionField>,
}

/// Rows that will be one commit.
#[derive(Debug)]
pub struct Chunk {
    /// New for every chunk; its files are named after it.
    pub commit_id: Uuid,
    /// The rows.
    pub window: Window,
    /// How many there are of each partition: of a table counted before any is read (protocol.md P7), of a query known once it is read.
    pub partitions: Vec<Partition>,
    /// The SELECTs that read a table, each into one file.
    pub pieces: Vec<Piece>,
    /// What a query computes its rows from, where passes look at it again.
    pub input: Option<Fingerprint>,
    /// Whether its rows have never left, or have and are compared.
    pub mode: Mode,
    /// Rows whose key the target has with other content: they are left as they are.
    pub changed: u64,
    /// Rows that the target held in the window before a merge.
    pub held: u64,
}

impl Chunk {
    /// What has left before and the source does not hold any more: a commit without files.
    pub fn of_nothing(window: Window) -> Self {
        Self::new(window, Mode::Merge)
    }

    /// Nothing is known of its rows yet.
    fn new(window: Window, mode: Mode) -> Self {
        let (partitions, pieces) = (Vec::new(), Vec::new());
        Self { commit_id: Uuid::now_v7(), window, partitions, pieces, input: None, mode, changed: 0, held: 0 }
    }

    /// Raw rows of all partitions.
    pub fn source_rows(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.rows).sum()
    }

    /// Those that leave, as far as is known.
    fn kept(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.kept).sum()
    }

    /// Those whose key another row has.
    pub fn duplicates(&self) -> u64 {
        self.partitions.iter().map(Partition::duplicates).sum()
    }

    /// Those that `reject_where` keeps out.
    pub fn rejected(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.rejected).sum()
    }

    /// Where the watermark stands after it: rows above what is still to be compared do not carry it over that.
    fn watermark_after(&self, planned_on: Option<&Marker>) -> Tick {
        match planned_on {
            None => self.window.high,
            // An aggregate's window may end before the next one begins; of what is still to be compared nothing may be left out.
            Some(marker) if marker.watermark < marker.offloaded_to && self.window.low > Some(marker.watermark) => {
                marker.watermark
            }
            Some(marker) => marker.watermark.max(self.window.high),
        }
    }

    /// Up to where others deleted rows that do not come back by themselves: what was compared because somebody asked for it is whole again.
    fn deleted_to_after(&self, before: Tick) -> Tick {
        match self.mode {
            Mode::Merge if self.window.high >= before => before.min(self.window.low.unwrap_or(Tick::MIN)),
            _ => before,
        }
    }

    /// What the commit will say of itself.
    pub fn marker(&self, identity: &SourceIdentity, planned_on: Option<&Marker>, files: &Files) -> Marker {
        Marker {
            version: VERSION,
            commit_id: self.commit_id,
            mode: self.mode,
            source: identity.clone(),
            low: self.window.low,
            high: self.window.high,
            watermark: self.watermark_after(planned_on),
            offloaded_to: planned_on.map_or(self.window.high, |marker| marker.offloaded_to.max(self.window.high)),
            source_rows: self.source_rows(),
            input: self.input,
            rows: self.held + files.rows(),
            total_records: planned_on.and_then(|marker| marker.total_records),
            adopted_to: planned_on.and_then(|marker| marker.adopted_to),
            deleted_to: planned_on.and_then(|marker| marker.deleted_to).map(|to| self.deleted_to_after(to)),
            // The first chunk begins where `start_at` says, which may change later.
            skipped: match (planned_on, self.window.low) {
                (Some(marker), low) => remove_range(&marker.skipped, (low.unwrap_or(Tick::MIN), self.window.high)),
                (None, Some(low)) => vec![(Tick::MIN, low)],
                (None, None) => Vec::new(),
            },
        }
    }
}

/// The files of a chunk before its commit.
#[derive(Debug, Default)]
pub struct Files {
    /// Every location that was begun.
    pub begun: Vec<String>,
    /// What is durable.
    pub finished: Vec<DataFile>,
    /// Rows of each partition in it.
    read: BTreeMap<Vec<String>, u64>,
}

impl Files {
    /// Rows of the finished files.
    pub fn rows(&self) -> u64 {
        self.finished.iter().map(DataFile::record_count).sum()
    }

    /// Rows that came from the source.
    fn rows_read(&self) -> u64 {
        self.read.values().sum()
    }

    /// The rows of each partition, as if they had been counted.
    fn as_read(&self) -> Vec<Partition> {
        let counted =
            |(key, rows): (&Vec<String>, &u64)| Partition { key: key.clone(), rows: *rows, kept: *rows, rejected: 0 };
        self.read.iter().map(counted).collect()
    }

    /// Bytes of the finished files.
    pub fn bytes(&self) -> u64 {
        self.finished.iter().map(DataFile::file_size_in_bytes).sum()
    }

    /// Deletes every file of a chunk that is known not to be in the table.
    pub async fn discard(&self, storage: &Storage) {
        storage.discard(&self.begun).await;
    }
}

pub use self::merge::{Merger, check_mergeable};

impl<'a> Route<'a> {
    /// Opens the source of `table` and finds cursor and partition column in it.
    pub async fn open(
        server: &'a Server,
        database: &str,
        table: &'a Table,
        target: Target,
        storage: &Storage,
    ) -> Result<Self> {
        target.check_format()?;
        let mut source = server.open(database, table).await?;
        let cursor = source.cursor(&table.cursor)?;
        let identity = SourceIdentity { id: table.source_id.clone(), uuid: source.uuid, cursor };
        let mut evolution = evolve(&source.columns, &target.metadata, table.schema_evolution);
        evolution.differences.extend(target.partition_difference(table)?);
        source.columns.clone_from(&evolution.columns);
        let fields = target.partition_by()?.into_iter().map(|by| source.partition_field(by)).collect::<Result<_>>();
        // A partition column may be gone: that the schemas differ says more.
        let fields = fields.or_else(|error| evolution.check().and(Err(error)))?;
        let kind = identity.cursor.kind;
        let step = step(table.window, kind)?;
        source.check_input(kind, step)?;
        let span = table.chunk_span.map(|span| span_ticks("chunk_span", span, kind)).transpose()?;
        let storage = storage.clone();
        Ok(Self { table, source, target, storage, identity, step, span, evolution, fields })
    }

    /// The column that orders the source.
    pub fn cursor(&self) -> &Cursor {
        &self.identity.cursor
    }

    /// Refuses what does not fit: another source, a schema that drifted.
    pub fn check(&self, marker: Option<&Marker>) -> Result<()> {
        if let Some(marker) = marker {
            marker.check_identity(&self.identity)?;
            if marker.source.uuid != self.identity.uuid {
                tracing::warn!(was = %marker.source.uuid, is = %self.identity.uuid, "the source table was made anew");
            }
        }
        self.evolution.check()?;
        let cursor = &self.cursor().name;
        if self.source.columns.iter().any(|column| column.name == *cursor) {
            return Ok(());
        }
        Err(Error::refused(format!("the target does not have the cursor `{cursor}`"))
            .hint("set schema_evolution = \"add-columns\", or choose a cursor that the target has"))
    }

    /// Refuses to merge from a tick on what nothing tells apart (protocol.md P17, P22).
    pub fn check_merge(&self, marker: Option<&Marker>, from: Option<Tick>) -> Result<()> {
        check_mergeable(&self.source, self.table)?;
        let adopted_to = marker.and_then(|marker| marker.adopted_to);
        let (from, keyed) = (from.unwrap_or(Tick::MIN), !self.table.key.is_empty());
        check_adopted(adopted_to, from, keyed, self.cursor().kind)
    }

    /// The schema of the files, where the target does not have it yet: the commit of the first ones brings it.
    pub fn new_schema(&self) -> Option<&SchemaRef> {
        self.evolution.schema.as_ref()
    }

    /// A chunk was committed: the next one is planned on the table as that left it. Returns how its schema changed.
    pub fn committed(&mut self, target: Target) -> Vec<String> {
        let was = self.target.metadata.current_schema_id();
        self.target = target;
        if self.target.metadata.current_schema_id() == was {
            return Vec::new();
        }
        self.evolution.schema = None;
        std::mem::take(&mut self.evolution.changes)
    }

    /// Reads a chunk into data files, and checks that nothing was missed or moved (protocol.md P6 to P8).
    pub async fn write(&self, chunk: &mut Chunk, files: &mut Files, merger: Merger, bar: &TableBar) -> Result<()> {
        let changed = |what: &str| {
            Err(Error::new(Kind::Conflict, format!("the source changed while it was read: {what}"))
                .hint("nothing was committed; the chunk is planned again"))
        };
        let mutations = self.source.mutations().await?;
        if mutations.unfinished > 0 {
            return changed(&format!("{} mutations are not finished ({})", mutations.unfinished, mutations.tables));
        }
        let read = match (chunk.mode.is_merge(), self.source.is_query()) {
            (true, _) => self.write_merge(chunk, files, merger).await.map(|rows| {
                bar.rows(rows);
                files.read.insert(Vec::new(), rows);
            }),
            (false, true) => self.write_query(chunk, files, bar).await,
            (false, false) => self.write_table(chunk, files, bar).await,
        };
        let is_final = read.as_ref().err().is_some_and(|error| !error.kind().policy().retry);
        // A column that came meanwhile would be lost unseen; one that went, or has another type now, is an error that passes.
        if (read.is_ok() || is_final) && self.source.has_other_columns().await? {
            return changed("its columns are others");
        }
        read?;
        if self.source.mutations().await? != mutations {
            return changed("there is a new mutation");
        }
        let is_read = match (chunk.mode.is_merge(), self.source.is_query()) {
            // One SELECT sees one state, of a query also the number of its rows.
            (true, _) if files.rows_read() >= chunk.kept() => true,
            (true, _) => self.table.is_final && files.rows_read() >= self.distinct(chunk.window).await?,
            (false, true) => true,
            (false, false) => self.is_read(chunk, files).await?,
        };
        if is_read {
            return Ok(());
        }
        changed(&format!("{} rows were counted, {} read", chunk.source_rows(), files.rows_read()))
    }

    /// Rows of a window without duplicates.
    async fn distinct(&self, window: Window) -> Result<u64> {
        let counted = self.count(window, Counting::Distinct).await?;
        Ok(counted.partitions.iter().map(|partition| partition.kept).sum())
    }

    /// Whether all that was counted was read, and nothing twice.
    async fn is_read(&self, chunk: &mut Chunk, files: &Files) -> Result<bool> {
        if self.source.drops_duplicates() && files.rows_read() < chunk.kept() {
            // Duplicates were dropped, if nothing has changed since and there are just so many rows without them.
            let distinct = self.count(chunk.window, Counting::Distinct).await?.partitions;
            let before = std::mem::replace(&mut chunk.partitions, distinct);
            let as_before =
                before.iter().map(|p| (&p.key, p.rows)).eq(chunk.partitions.iter().map(|p| (&p.key, p.rows)));
            return Ok(as_before && is_whole(&chunk.partitions, &files.read, &chunk.partitions));
        }
        // One SELECT over the whole window sees one state of it; several must fit together.
        let one = self.fields.is_empty() && chunk.pieces.len() == 1;
        let after = if one { files.as_read() } else { self.count(chunk.window, Counting::Raw).await?.partitions };
        Ok(is_whole(&chunk.partitions, &files.read, &after))
    }

    /// Streams one SELECT per piece into one file each.
    async fn write_table(&self, chunk: &Chunk, files: &mut Files, bar: &TableBar) -> Result<()> {
        for (number, piece) in chunk.pieces.iter().enumerate() {
            let name = format!("k2-offload-{}-{number}.parquet", chunk.commit_id);
            self.write_file(piece, &name, files, bar).await?;
        }
        Ok(())
    }

    async fn write_file(&self, piece: &Piece, name: &str, files: &mut Files, bar: &TableBar) -> Result<()> {
        let values = partition_values(&self.fields, &piece.key)?;
        let placement = self.placement(&values, name)?;
        files.begun.push(placement.location.clone());
        let mut hold_back = HOLD_BACK;
        for _ in 0..2 {
            let mut stream = self.source.parquet(self.cursor(), piece.window, &self.fields, &values, self.table)?;
            let compacted = !placement.bloom_filter.is_empty();
            let mut file = Passthrough::create(&self.storage, &placement.location, hold_back, compacted)?;
            while let Some(bytes) = stream.next().await? {
                bar.bytes(bytes.len());
                file.write(bytes)?;
                file.ready().await?;
            }
            match file.finish(&placement).await? {
                Written::File(file) => {
                    *files.read.entry(piece.key.clone()).or_default() += file.record_count();
                    bar.rows(file.record_count());
                    files.finished.push(*file);
                    return Ok(());
                }
                Written::Empty => return self.storage.delete(&placement.location).await,
                Written::NeedsHoldBack(longer) => {
                    self.storage.delete(&placement.location).await?;
                    hold_back = longer;
                }
            }
        }
        Err(Error::new(Kind::Conflict, "the Parquet footer grew from one reading to the next"))
    }

    /// Below the table's `data` folder, in folders for the partition as other writers name them.
    fn placement(&self, values: &[Option<Value>], name: &str) -> Result<Placement<'_>> {
        let metadata = &self.target.metadata;
        let literals = self
            .fields
            .iter()
            .zip(values)
            .map(|(field, value)| value.as_ref().map(|value| field.literal(value)).transpose());
        let partition: Struct = literals.collect::<Result<Vec<Option<Literal>>>>()?.into_iter().collect();
        let mut location = format!("{}/data", metadata.location());
        for (field, value) in self.fields.iter().zip(values) {
            let folder = url::form_urlencoded::Serializer::new(String::new())
                .append_pair(&field.by.field_name(), &field.folder(value.as_ref()))
                .finish();
            // A file system's limit; readers go by the manifest, not by folders.
            if folder.len() <= MAX_FOLDER_LENGTH {
                location = format!("{location}/{folder}");
            }
        }
        Ok(Placement {
            location: format!("{location}/{name}"),
            schema: self.new_schema().unwrap_or(metadata.current_schema()),
            partition_spec_id: metadata.default_partition_spec_id(),
            partition,
            sort_order_id: self.target.sort_order_id(&self.table.sort_by),
            bloom_filter: &self.table.bloom_filter,
            metrics: Metrics::of(metadata.properties()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::tests::marker;

    /// The watermark, offloaded-to and the bound of what others deleted after a chunk, where a reset had put the watermark back from 1000 to 400.
    fn after(mode: Mode, low: Tick, high: Tick) -> (Tick, Tick, Option<Tick>) {
        let back = Marker { watermark: 400, deleted_to: Some(1000), ..marker(1, 1000) };
        let chunk = Chunk::new(Window { low: Some(low), high }, mode);
        let marker = chunk.marker(&back.source, Some(&back), &Files::default());
        (marker.watermark, marker.offloaded_to, marker.deleted_to)
    }

    #[test]
    fn nothing_carries_the_watermark_over_what_is_still_to_be_compared() {
        assert_eq!(after(Mode::Merge, 400, 700), (700, 1000, Some(1000)));
        assert_eq!(after(Mode::Merge, 700, 800), (400, 1000, Some(1000)), "a repair that a reset overtook");
        assert_eq!(after(Mode::Append, 1000, 1100), (400, 1100, Some(1000)));
    }

    #[test]
    fn what_others_deleted_may_come_back_where_it_was_asked_for() {
        assert_eq!(after(Mode::Merge, 400, 1000), (1000, 1000, Some(400)));
        assert_eq!(after(Mode::Late, 300, 400).2, Some(1000));
    }
}
