//! Counting rows of the target: the cursor column only, file by file, into buckets.
//!
//! iceberg plans the files and applies position deletes. What it would not read right is refused, never counted wrong. Memory holds the
//! buckets and one row group of one column, however many rows there are.

use std::collections::BTreeMap;

use arrow_array::{Array, Date32Array, TimestampMicrosecondArray};
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::arrow::ArrowReaderBuilder;
use iceberg::expr::{Predicate, Reference};
use iceberg::io::FileIO;
use iceberg::scan::{FileScanTask, TableScan};
use iceberg::spec::{DataContentType, DataFileFormat, Datum, PrimitiveType, Schema, TableMetadata, Transform, Type};
use iceberg::table::Table;
use iceberg::{NamespaceIdent, Runtime, TableIdent};

use super::{Target, classify};
use crate::config::TableName;
use crate::cursor::{Cursor, CursorType, Tick};
use crate::error::{Error, Kind, Result};
use crate::histogram::{Bucket, finer};
use crate::plan::Window;

impl Target {
    /// Counts the rows of a window in buckets of `width` ticks, as `Source::histogram` does on the other side: ascending, without empty
    /// ones. Rows without a cursor are in no window.
    pub async fn histogram(
        &self,
        file_io: &FileIO,
        name: &TableName,
        cursor: &Cursor,
        window: Window,
        width: Tick,
    ) -> Result<Vec<Bucket>> {
        let failed = |e| classify(e, format!("count the rows of `{name}`"));
        let Some(snapshot) = self.metadata.current_snapshot().filter(|_| !window.is_empty()) else {
            return Ok(Vec::new());
        };
        let schema = snapshot.schema(&self.metadata).map_err(failed)?;
        let id = cursor_field(&schema, cursor)?;
        let may_be_partition_value = is_partition_value(&self.metadata, id);
        let runtime = Runtime::try_current().map_err(failed)?;
        let scan = self.scan(file_io, name, cursor, window, runtime.clone()).map_err(failed)?;
        let reader = ArrowReaderBuilder::new(file_io.clone(), runtime).with_data_file_concurrency_limit(1).build();
        let mut buckets: BTreeMap<Tick, u64> = BTreeMap::new();
        let mut files = scan.plan_files().await.map_err(failed)?;
        while let Some(mut file) = files.try_next().await.map_err(failed)? {
            check_readable(&file)?;
            // The filter has chosen the files; rows are judged here, by the ticks that bounds are made of.
            file.predicate = None;
            let mut batches = reader.clone().read(stream::iter([Ok(file)]).boxed()).map_err(failed)?.stream();
            while let Some(batch) = batches.try_next().await.map_err(failed)? {
                let column = batch.column(0);
                if may_be_partition_value && column.null_count() > 0 {
                    return Err(cursor_is_null(cursor));
                }
                for tick in ticks(column, cursor)?.into_iter().flatten().filter(|tick| window.contains(*tick)) {
                    *buckets.entry(tick - tick.rem_euclid(width)).or_default() += 1;
                }
            }
        }
        Ok(buckets.into_iter().map(|(low, rows)| Bucket { low, width, rows }).collect())
    }

    /// Largest cursor of all rows, whoever wrote them; `None` where there are none.
    pub async fn largest(&self, file_io: &FileIO, name: &TableName, cursor: &Cursor) -> Result<Option<Tick>> {
        let mut window = Window { low: None, high: Tick::MAX };
        let widths = std::iter::successors(Some(cursor.kind.ticks_per_day()), |width| finer(cursor.kind, *width));
        for width in widths {
            let Some(last) = self.histogram(file_io, name, cursor, window, width).await?.pop() else { return Ok(None) };
            window = Window { low: Some(last.low), high: last.high() };
        }
        Ok(window.low)
    }

    pub(super) fn scan(
        &self,
        file_io: &FileIO,
        name: &TableName,
        cursor: &Cursor,
        window: Window,
        runtime: Runtime,
    ) -> iceberg::Result<TableScan> {
        let namespace = NamespaceIdent::from_strs(name.namespace.split('.'))?;
        let table = Table::builder()
            .identifier(TableIdent::new(namespace, name.name.clone()))
            .metadata(self.metadata.clone())
            .metadata_location(self.metadata_location.clone())
            .file_io(file_io.clone())
            .runtime(runtime)
            .build()?;
        table.scan().select([&cursor.name]).with_filter(within(cursor, window)).with_concurrency_limit(1).build()
    }
}

fn within(cursor: &Cursor, window: Window) -> Predicate {
    let column = || Reference::new(&cursor.name);
    let below = column().less_than(bound(cursor.kind, window.high));
    match window.low {
        Some(low) => below.and(column().greater_than_or_equal_to(bound(cursor.kind, low))),
        None => below,
    }
}

/// A tick as the value that the target's column holds.
fn bound(kind: CursorType, tick: Tick) -> Datum {
    match kind {
        CursorType::Date => Datum::date(i32::try_from(tick).unwrap_or(i32::MAX)),
        _ => Datum::timestamptz_micros(kind.micros_at(tick).unwrap_or(i64::MAX)),
    }
}

/// The field of the cursor; refuses a target that holds other values in it.
pub(super) fn cursor_field(schema: &Schema, cursor: &Cursor) -> Result<i32> {
    let wanted = match cursor.kind {
        CursorType::Date => PrimitiveType::Date,
        _ => PrimitiveType::Timestamptz,
    };
    match schema.field_by_name(&cursor.name) {
        Some(field) if *field.field_type == Type::Primitive(wanted) => Ok(field.id),
        found => {
            let what = found.map_or("missing".to_owned(), |field| field.field_type.to_string());
            Err(Error::refused(format!("cursor `{}` ({:?}) is {what} in the target", cursor.name, cursor.kind))
                .hint("`k2-offload init-tables` prints how source and target differ"))
        }
    }
}

/// Refuses what iceberg 0.10 does not read, or reads wrong: its predicate for equality deletes drops rows that are null in the column, which the
/// delete does not mean (SQL's `!=` against Iceberg's), and keeps every deleted key in memory.
pub(super) fn check_readable(file: &FileScanTask) -> Result<()> {
    if file.deletes.iter().any(|delete| delete.file_type == DataContentType::EqualityDeletes) {
        return Err(Error::refused("the target has equality deletes, which this version does not read")
            .hint("compact the table, which applies them (Spark: `CALL system.rewrite_data_files`)"));
    }
    if file.data_file_format != DataFileFormat::Parquet {
        return Err(Error::refused(format!("the target has {} files", file.data_file_format))
            .hint("this version reads Parquet; compact the table, which rewrites them"));
    }
    Ok(())
}

/// Whether a file without the cursor's column may have its value as partition, as imported files do: iceberg 0.10 reads null instead.
pub(super) fn is_partition_value(metadata: &TableMetadata, cursor: i32) -> bool {
    let mut fields = metadata.partition_specs_iter().flat_map(|spec| spec.fields());
    fields.any(|field| field.source_id == cursor && field.transform == Transform::Identity)
}

pub(super) fn cursor_is_null(cursor: &Cursor) -> Error {
    Error::refused(format!(
        "the target is partitioned by its cursor `{}` as it is, and has rows without it",
        cursor.name
    ))
    .hint("imported files may leave the value to their partition, which this version does not read; compact the table")
}

/// The ticks of a column; rows without a value have none.
pub fn ticks(column: &dyn Array, cursor: &Cursor) -> Result<Vec<Option<Tick>>> {
    let column = column.as_any();
    let ticks = match cursor.kind {
        CursorType::Date => {
            column.downcast_ref::<Date32Array>().map(|days| days.iter().map(|day| day.map(Tick::from)).collect())
        }
        kind => column
            .downcast_ref::<TimestampMicrosecondArray>()
            .map(|micros| micros.iter().map(|instant| instant.map(|instant| kind.tick_at(instant))).collect()),
    };
    ticks.ok_or_else(|| Error::new(Kind::Internal, format!("cursor `{}` was read as another type", cursor.name)))
}
