//! Reading rows of the target: which files hold those of a window, which columns they hold, and what stands in them.
//!
//! iceberg plans the files, applies position deletes and makes one type of what files hold in several. What it would not read right is refused.
//! Memory holds a row group of the columns that are read.

use std::collections::BTreeSet;

use arrow_array::{ArrayRef, RecordBatch};
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::Runtime;
use iceberg::arrow::ArrowReaderBuilder;
use iceberg::io::FileIO;
use iceberg::scan::{ArrowRecordBatchStream, FileScanTask};
use iceberg::spec::{DataFileFormat, Schema, SchemaRef, TableMetadata};
use parquet::basic::{LogicalType, TimeUnit};
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::statistics::Statistics;

use super::orphans::is_ours;
use super::scan::{check_readable, cursor_field, cursor_is_null, is_partition_value, ticks};
use super::{Target, classify};
use crate::config::TableName;
use crate::cursor::{Cursor, CursorType, Tick};
use crate::error::{Classify, Error, Kind, Result};
use crate::plan::Window;
use crate::schema::leaf_ids;
use crate::write::{Scratch, field_ids, rows_of_a_batch};

/// Rows of a batch where no file says that they are wide.
const BATCH_ROWS: usize = 8192;
/// Length of what ends a Parquet file: the footer's length, and magic.
const TRAILER: u64 = 8;
/// Length of what begins a Parquet file.
const MAGIC: u64 = 4;

/// A file whose rows can be read.
#[derive(Debug, Clone)]
pub struct RowFile {
    task: FileScanTask,
    /// First and last tick that its statistics allow; `None` where they say nothing.
    pub ticks: Option<(Tick, Tick)>,
    /// The ids of the flat fields, at any depth, that it holds and that tell its rows apart.
    pub fields: BTreeSet<i32>,
    /// Of a file that others wrote also those that are null for older rows, whatever the source says of them.
    pub all_fields: BTreeSet<i32>,
    /// As many rows as are decoded at once.
    batch_rows: usize,
    groups: Vec<Group>,
}

/// A row group.
#[derive(Debug, Clone, Copy)]
struct Group {
    bytes: u64,
    /// First and last tick that its statistics allow; `None` where they say nothing.
    ticks: Option<(Tick, Tick)>,
}

/// Rows on their way.
pub struct Rows {
    batches: ArrowRecordBatchStream,
    cursor: Cursor,
    /// Which column that is.
    index: usize,
}

impl Target {
    /// The files that may hold rows of a window. Those without the cursor hold none.
    ///
    /// Who writes older rows anew, to compact them or to delete some, writes columns that came after them too: as null, where the source may have
    /// a default. So of a file of others only fields that the table always had tell rows apart, and those of the `key` (P21).
    pub async fn row_files(
        &self,
        file_io: &FileIO,
        name: &TableName,
        cursor: &Cursor,
        window: Window,
        key: &[String],
    ) -> Result<Vec<RowFile>> {
        let failed = |e| classify(e, format!("find the rows of `{name}`"));
        let Some(snapshot) = self.metadata.current_snapshot().filter(|_| !window.is_empty()) else {
            return Ok(Vec::new());
        };
        let id = cursor_field(&*snapshot.schema(&self.metadata).map_err(failed)?, cursor)?;
        let lasting = lasting_fields(&self.metadata, key);
        let runtime = Runtime::try_current().map_err(failed)?;
        let scan = self.scan(file_io, name, cursor, window, runtime).map_err(failed)?;
        let mut tasks = scan.plan_files().await.map_err(failed)?;
        let mut files = Vec::new();
        while let Some(task) = tasks.try_next().await.map_err(failed)? {
            check_readable(&task)?;
            let metadata = footer(file_io, &task).await?;
            let fields = field_ids(&metadata);
            if fields.is_empty() {
                return Err(Error::refused(
                    "the target has files without field ids, whose rows this version does not compare",
                )
                .hint("compact the table, which writes them anew (Spark: `CALL system.rewrite_data_files`)"));
            }
            if fields.contains(&id) {
                let batch_rows = rows_of_a_batch(metadata.row_groups());
                let all_fields = fields.clone();
                let fields = if is_ours(&task.data_file_path) { fields } else { &fields & &lasting };
                let groups = groups(&metadata, id, cursor.kind);
                files.push(RowFile { task, ticks: bounds(&groups), fields, all_fields, batch_rows, groups });
            } else if is_partition_value(&self.metadata, id) {
                return Err(cursor_is_null(cursor));
            }
        }
        Ok(files)
    }
}

impl RowFile {
    /// A file of our own, which no table has.
    pub fn of_scratch(scratch: &Scratch, schema: SchemaRef) -> Self {
        let task = FileScanTask::builder()
            .with_file_size_in_bytes(scratch.length)
            .with_start(0)
            .with_length(0)
            .with_data_file_path(scratch.location())
            .with_data_file_format(DataFileFormat::Parquet)
            .with_schema(schema)
            .with_project_field_ids(Vec::new())
            .with_case_sensitive(true)
            .build();
        let (fields, batch_rows) = (scratch.fields.clone(), scratch.batch_rows);
        Self { task, ticks: None, all_fields: fields.clone(), fields, batch_rows, groups: Vec::new() }
    }

    /// Whether it may hold rows of a window.
    pub fn may_hold(&self, window: Window) -> bool {
        may_hold(self.ticks, window)
    }

    /// The part of it that may hold rows of a window: from the first such row group to the last; `None` where there is none. A file with deletes stays
    /// whole, because they count rows from its beginning.
    pub fn within(&self, window: Window) -> Option<Self> {
        if !may_hold(self.ticks, window) {
            return None;
        }
        let holds = |group: &Group| may_hold(group.ticks, window);
        let mut part = self.clone();
        if self.task.deletes.is_empty() && !self.groups.is_empty() {
            let first = self.groups.iter().position(holds)?;
            let last = self.groups.iter().rposition(holds)?;
            let bytes =
                |groups: Option<&[Group]>| groups.unwrap_or_default().iter().map(|group| group.bytes).sum::<u64>();
            // As iceberg counts them: one after the other, behind the magic.
            part.task.start = MAGIC + bytes(self.groups.get(..first));
            part.task.length = bytes(self.groups.get(first..=last));
        }
        Some(part)
    }
}

/// The error of rows that their key cannot tell apart.
pub fn no_key_column(name: &str) -> Error {
    Error::refused(format!("the target has files without the key column `{name}`"))
        .hint("compact the table, which writes their rows with it (Spark: `CALL system.rewrite_data_files`)")
}

/// Whether rows of which the first and the last tick are known lie in a window, if they are.
fn may_hold(ticks: Option<(Tick, Tick)>, window: Window) -> bool {
    ticks.is_none_or(|(first, last)| first < window.high && window.low.is_none_or(|low| low <= last))
}

/// Reads files one after the other: the fields of `schema`, in its order.
pub fn read_rows<'a>(
    file_io: &FileIO,
    files: impl Iterator<Item = &'a RowFile>,
    schema: &SchemaRef,
    cursor: &Cursor,
) -> Result<Rows> {
    let failed = |e| classify(e, "read rows".to_owned());
    let ids: Vec<i32> = schema.as_struct().fields().iter().map(|field| field.id).collect();
    let index = schema.as_struct().fields().iter().position(|field| field.name == cursor.name);
    let index = index.ok_or_else(|| Error::new(Kind::Internal, "rows are read without their cursor"))?;
    let mut batch_rows = BATCH_ROWS;
    let tasks: Vec<_> = files
        .map(|file| {
            batch_rows = batch_rows.min(file.batch_rows);
            let task = FileScanTask {
                schema: schema.clone(),
                project_field_ids: ids.clone(),
                // Rows are judged by their ticks, which is what bounds are made of.
                predicate: None,
                // Columns are read as the file holds them, not as its partition says.
                partition: None,
                partition_spec: None,
                ..file.task.clone()
            };
            Ok(task)
        })
        .collect();
    let runtime = Runtime::try_current().map_err(failed)?;
    let reader = ArrowReaderBuilder::new(file_io.clone(), runtime)
        .with_data_file_concurrency_limit(1)
        .with_batch_size(batch_rows)
        .build();
    let batches = reader.read(stream::iter(tasks).boxed()).map_err(failed)?.stream();
    Ok(Rows { batches, cursor: cursor.clone(), index })
}

impl Rows {
    /// The next rows, and the ticks of those that have a cursor.
    pub async fn next(&mut self) -> Result<Option<(Vec<ArrayRef>, Vec<Option<Tick>>)>> {
        let batch = self.batches.try_next().await.map_err(|e| classify(e, "read rows".to_owned()))?;
        let Some(batch) = batch.as_ref().map(RecordBatch::columns) else { return Ok(None) };
        let column = batch.get(self.index);
        let column = column.ok_or_else(|| Error::new(Kind::Internal, "rows were read without their cursor"))?;
        let ticks = ticks(column, &self.cursor)?;
        Ok(Some((batch.to_vec(), ticks)))
    }
}

/// The leaves of the columns that every schema of the table has, and of the key.
fn lasting_fields(metadata: &TableMetadata, key: &[String]) -> BTreeSet<i32> {
    let leaves = |schema: &Schema| schema.as_struct().fields().iter().flat_map(|field| leaf_ids(field)).collect();
    let all = metadata.schemas_iter().map(|schema| leaves(schema));
    let always = all.reduce(|one, other: BTreeSet<i32>| &one & &other).unwrap_or_default();
    let key = key.iter().filter_map(|name| metadata.current_schema().field_by_name(name));
    key.flat_map(|field| leaf_ids(field)).chain(always).collect()
}

/// The footer of a data file.
async fn footer(file_io: &FileIO, task: &FileScanTask) -> Result<ParquetMetaData> {
    let path = &task.data_file_path;
    let what = || format!("read the footer of {path}");
    let failed = |e| classify(e, what());
    let corrupt =
        || Error::refused(format!("{path} is no Parquet file")).hint("restore the file, or remove it from the table");
    let reader = file_io.new_input(path).map_err(failed)?.reader().await.map_err(failed)?;
    let end = task.file_size_in_bytes.checked_sub(TRAILER).ok_or_else(corrupt)?;
    let trailer = reader.read(end..task.file_size_in_bytes).await.map_err(failed)?;
    let trailer: [u8; TRAILER as usize] = trailer.as_ref().try_into().map_err(|_| corrupt())?;
    let length = FooterTail::try_new(&trailer).map_err(|_| corrupt())?.metadata_length();
    let start = end.checked_sub(length as u64).ok_or_else(corrupt)?;
    let bytes = reader.read(start..end).await.map_err(failed)?;
    ParquetMetaDataReader::decode_metadata(&bytes).or_error(Kind::Refused, what())
}

/// The row groups of a file, with the ticks that their statistics tell.
fn groups(metadata: &ParquetMetaData, id: i32, kind: CursorType) -> Vec<Group> {
    let leaves = metadata.file_metadata().schema_descr();
    let is_cursor = |leaf: usize| leaves.column(leaf).self_type().get_basic_info().id() == id;
    let leaf = (0..leaves.num_columns()).find(|leaf| is_cursor(*leaf));
    let ticks = |group: &RowGroupMetaData| {
        let leaf = leaf?;
        let column = leaves.column(leaf);
        let of_micros =
            matches!(column.logical_type_ref(), Some(LogicalType::Timestamp { unit: TimeUnit::MICROS, .. }));
        match (kind, group.column(leaf).statistics()?) {
            (CursorType::Date, Statistics::Int32(days)) => Some(((*days.min_opt()?).into(), (*days.max_opt()?).into())),
            (CursorType::DateTime | CursorType::DateTime64 { .. }, Statistics::Int64(micros)) if of_micros => {
                Some((kind.tick_at(*micros.min_opt()?), kind.tick_at(*micros.max_opt()?)))
            }
            _ => None,
        }
    };
    let size = |group: &RowGroupMetaData| u64::try_from(group.compressed_size()).unwrap_or(0);
    metadata.row_groups().iter().map(|group| Group { bytes: size(group), ticks: ticks(group) }).collect()
}

/// First and last tick of all row groups; `None` where one does not tell.
fn bounds(groups: &[Group]) -> Option<(Tick, Tick)> {
    let ticks: Option<Vec<(Tick, Tick)>> = groups.iter().map(|group| group.ticks).collect();
    ticks?.into_iter().reduce(|all, next| (all.0.min(next.0), all.1.max(next.1)))
}

#[cfg(test)]
mod tests {
    use iceberg::TableCreation;
    use iceberg::spec::TableMetadataBuilder;

    use super::*;
    use crate::schema::{Column, iceberg_schema};

    #[test]
    fn fields_that_came_later_do_not_last_unless_they_are_of_the_key() {
        let columns = ["ts", "n", "later", "id"].map(|name| Column::map(name, "DateTime", None).unwrap());
        let [first, second] = [&columns[..2], &columns].map(|columns| iceberg_schema(columns).unwrap());
        let creation = TableCreation::builder().name("t".into()).location("file:///w/t".into()).schema(first).build();
        let metadata = TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata;
        assert_eq!(lasting_fields(&metadata, &[]), BTreeSet::from([1, 2]));
        let builder = metadata.into_builder(None).add_current_schema(second).unwrap();
        let metadata = builder.build().unwrap().metadata;
        assert_eq!(lasting_fields(&metadata, &[]), BTreeSet::from([1, 2]));
        assert_eq!(lasting_fields(&metadata, &["id".to_owned()]), BTreeSet::from([1, 2, 4]));
    }
}
