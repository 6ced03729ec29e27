//! Rows that are encoded here: an answer that holds the rows of many partitions is spooled, read again, and each run of rows of one partition becomes
//! a data file. Only where rows cannot pass through as they come.
//!
//! Memory holds one batch, and one row group of one file.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch, StringArray};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression as Codec, GzipLevel, ZstdLevel};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::properties::{BloomFilterPosition, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use super::{Passthrough, Placement, Written};
use crate::config::{Compression, Table};
use crate::error::{Classify, Error, Kind, Result};
use crate::storage::{Storage, file_error, is_local, local_path, nameless_file};

/// Column of an answer with the partition values of a row, as a JSON array of text.
pub const PARTITION: &str = "k2_partition";
/// Column of an answer with the number of rows for which one stands.
pub const COPIES: &str = "k2_copies";

/// Rows of a batch, and bytes where rows are wide.
const BATCH_ROWS: i64 = 8192;
const BATCH_BYTES: i64 = 4 << 20;
/// Bytes of a row group in memory.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// The same where a row group waits in memory again, until it is sent.
const SENT_ROW_GROUP_BYTES: usize = 8 << 20;
/// Bytes of a file's end in memory; the footers of files that are written here are small.
const HOLD_BACK: usize = 4 << 20;

/// An answer on disk, in a file without a name.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
}

impl Spool {
    /// Creates it below `folder`, where that is on this host; else where files are that are only needed meanwhile.
    pub fn create(storage: &Storage, folder: &str) -> Result<Self> {
        let folder = if is_local(folder) { local_path(folder)? } else { storage.scratch().to_owned() };
        let path = folder.join(format!("k2-offload-{}.spool", Uuid::new_v4()));
        let file = nameless_file(&path).map_err(|e| file_error("create", &path, e))?;
        Ok(Self { file, path })
    }

    /// Appends the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| file_error("write", &self.path, e))
    }

    /// The rows of a complete answer.
    pub fn read(self) -> Result<Runs> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(self.file).and_then(|builder| {
            let rows = rows_of_a_batch(builder.metadata().row_groups());
            builder.with_batch_size(rows).build()
        });
        let reader =
            reader.or_error(Kind::Unavailable, "read the server's answer, which is no complete Parquet file")?;
        Ok(Runs { reader, batch: None })
    }
}

/// As many rows as are decoded at once.
pub fn rows_of_a_batch(row_groups: &[RowGroupMetaData]) -> usize {
    let widest = row_groups.iter().map(|group| group.total_byte_size() / group.num_rows().max(1)).max();
    let rows = (BATCH_BYTES / widest.unwrap_or(0).max(1)).clamp(1, BATCH_ROWS);
    usize::try_from(rows).unwrap_or(1)
}

/// Rows of one partition that follow each other.
#[derive(Debug)]
pub struct Run {
    /// The partition's values, as the source listed them.
    pub key: Vec<String>,
    /// The rows, without the columns that are not the source's.
    pub rows: RecordBatch,
    /// Rows of the source for which they stand.
    pub source_rows: u64,
}

/// The runs of an answer, in its order.
pub struct Runs {
    reader: ParquetRecordBatchReader,
    batch: Option<(RecordBatch, usize)>,
}

impl Runs {
    /// The next run, `None` after the last.
    pub fn next_run(&mut self) -> Result<Option<Run>> {
        let (batch, from) = match self.batch.take() {
            Some(rest) => rest,
            None => match self.reader.next() {
                None => return Ok(None),
                Some(batch) => (batch.or_error(Kind::Internal, "decode the server's answer")?, 0),
            },
        };
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        let keys = column(&batch, PARTITION)?.as_string_opt::<i32>().ok_or_else(|| missing(PARTITION))?;
        let to = end_of_run(keys, from);
        let key = serde_json::from_str(keys.value(from)).or_error(Kind::Internal, "read partition values")?;
        let copies = column(&batch, COPIES)?.as_primitive_opt::<UInt64Type>().ok_or_else(|| missing(COPIES))?;
        let source_rows = copies.values().get(from..to).unwrap_or_default().iter().sum();
        let own = batch.schema_ref().fields().iter().enumerate();
        let own: Vec<usize> =
            own.filter(|(_, field)| ![PARTITION, COPIES].contains(&field.name().as_str())).map(|(at, _)| at).collect();
        let rows = batch.project(&own).or_error(Kind::Internal, "decode the server's answer")?.slice(from, to - from);
        self.batch = (to < batch.num_rows()).then_some((batch, to));
        Ok(Some(Run { key, rows, source_rows }))
    }
}

/// Where the rows with the key of row `from` end.
fn end_of_run(keys: &StringArray, from: usize) -> usize {
    let key = keys.value(from);
    (from..keys.len()).find(|row| keys.value(*row) != key).unwrap_or(keys.len())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    batch.column_by_name(name).map(AsRef::as_ref).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Error {
    Error::new(Kind::Internal, format!("the server's answer has no column {name}"))
}

/// A data file whose rows are encoded here. Its bytes take the way of all others, so that ids, counts and bounds are made as always.
pub struct Encoder {
    writer: ArrowWriter<Pipe>,
    row_group_bytes: usize,
}

/// What the encoder writes goes through.
struct Pipe(Passthrough);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(Bytes::copy_from_slice(bytes)).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Encoder {
    /// Creates a file for rows like these, as the table's configuration says.
    pub fn create(storage: &Storage, location: &str, like: &RecordBatch, table: &Table) -> Result<Self> {
        let rows = usize::try_from(table.row_group_size).ok();
        let properties = WriterProperties::builder()
            .set_compression(codec(&table.compression)?)
            .set_max_row_group_row_count(rows)
            .set_bloom_filter_position(BloomFilterPosition::End);
        let with_filter = |properties: WriterPropertiesBuilder, column: &String| {
            properties.set_column_bloom_filter_enabled(ColumnPath::from(column.as_str()), true)
        };
        let properties = table.bloom_filter.iter().fold(properties, with_filter).build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        // Filters are asked for by column here, so that none has to be left out.
        let file = Pipe(Passthrough::create(storage, location, HOLD_BACK, false)?);
        let writer = ArrowWriter::try_new_with_options(file, like.schema(), options);
        let row_group_bytes = if is_local(location) { ROW_GROUP_BYTES } else { SENT_ROW_GROUP_BYTES };
        Ok(Self { writer: writer.or_error(Kind::Internal, "begin a Parquet file")?, row_group_bytes })
    }

    /// Appends rows.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let written = self.writer.write(rows).and_then(|()| match self.writer.in_progress_size() {
            size if size < self.row_group_bytes => Ok(()),
            _ => self.writer.flush(),
        });
        written.or_error(Kind::Unavailable, "write a Parquet file")?;
        self.writer.inner_mut().0.ready().await
    }

    /// Ends the file and makes it durable.
    pub async fn finish(self, placement: &Placement<'_>) -> Result<Written> {
        let Pipe(file) = self.writer.into_inner().or_error(Kind::Unavailable, "write a Parquet file")?;
        file.finish(placement).await
    }
}

fn codec(compression: &Compression) -> Result<Codec> {
    let level = |default: u8| compression.level.unwrap_or(default);
    let codec = match compression.codec.as_str() {
        "zstd" => ZstdLevel::try_new(level(1).into()).map(Codec::ZSTD),
        "gzip" => GzipLevel::try_new(level(6).into()).map(Codec::GZIP),
        "snappy" => Ok(Codec::SNAPPY),
        "lz4" => Ok(Codec::LZ4_RAW),
        _ => Ok(Codec::UNCOMPRESSED),
    };
    codec.or_error(Kind::Config, "compression")
}
