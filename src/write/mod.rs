//! Streams of Parquet bytes -> uncommitted data files with statistics. Knows files, never the catalog or the source.

mod bloom;
mod bounds;
mod encode;
mod footer;
mod scratch;

use std::collections::VecDeque;

use bytes::Bytes;
use iceberg::spec::{DataFile, Schema, Struct};

pub use self::bounds::Metrics;
pub use self::encode::{COPIES, Encoder, PARTITION, Run, Runs, Spool, rows_of_a_batch};
pub use self::scratch::{Scratch, ScratchWriter, field_ids};
use crate::error::{Classify, Error, Kind, Result};
use crate::storage::{NewFile, Storage};

/// Bytes at the end of a stream that are held back because the footer may begin there.
pub const HOLD_BACK: usize = 1 << 20;

/// A footer above this is refused: it would have to be held in memory.
const MAX_HOLD_BACK: usize = 32 << 20;

const MAGIC: &[u8; 4] = b"PAR1";
/// Length of the footer and magic.
const TRAILER: usize = 8;

/// Where a data file belongs.
#[derive(Debug, Clone)]
pub struct Placement<'a> {
    /// URI of the file.
    pub location: String,
    /// Schema of the table: its field ids go into the footer.
    pub schema: &'a Schema,
    /// Partition spec that the file is written with.
    pub partition_spec_id: i32,
    /// Partition values in the order of the spec.
    pub partition: Struct,
    /// The table's id of the order that the rows have, if it has one.
    pub sort_order_id: Option<i32>,
    /// Columns whose Bloom filters stay.
    pub bloom_filter: &'a [String],
    /// What the manifest says of each column.
    pub metrics: Metrics<'a>,
}

/// What became of a stream.
#[derive(Debug)]
pub enum Written {
    /// A durable file.
    File(Box<DataFile>),
    /// The stream held no row; the file is to be deleted.
    Empty,
    /// The footer is longer than what was held back; the file is to be deleted. Read again with this much.
    NeedsHoldBack(usize),
}

/// A data file while its bytes stream in: they go to disk as they are, but for the last `hold_back`, in which the footer is
/// rewritten. Pages, bloom filters and page indexes lie before the footer, so every offset in it stays valid; where filters are left out,
/// what lies behind them moves up.
#[derive(Debug)]
pub struct Passthrough {
    file: NewFile,
    tail: VecDeque<Bytes>,
    tail_length: usize,
    hold_back: usize,
    flushed: u64,
}

impl Passthrough {
    /// Creates the file; with `compacted`, parts of it will be left out at its end ([`Placement::bloom_filter`]).
    pub fn create(storage: &Storage, location: &str, hold_back: usize, compacted: bool) -> Result<Self> {
        let file = storage.create(location, compacted)?;
        Ok(Self { file, tail: VecDeque::new(), tail_length: 0, hold_back, flushed: 0 })
    }

    /// Takes the next bytes of the stream.
    pub fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.tail_length += bytes.len();
        self.tail.push_back(bytes);
        while let Some(front) = self.tail.front() {
            if self.tail_length - front.len() < self.hold_back {
                break;
            }
            self.flushed += front.len() as u64;
            self.tail_length -= front.len();
            if let Some(front) = self.tail.pop_front() {
                self.file.write(front)?;
            }
        }
        Ok(())
    }

    /// Waits until not much more than what is held back is in memory.
    pub async fn ready(&mut self) -> Result<()> {
        self.file.ready().await
    }

    /// Rewrites the footer at the end of a complete stream and makes the file durable. Without one, what was begun is for the caller to delete.
    pub async fn finish(mut self, placement: &Placement<'_>) -> Result<Written> {
        let mut tail = Vec::with_capacity(self.tail_length);
        self.tail.drain(..).for_each(|bytes| tail.extend_from_slice(&bytes));
        let footer = footer_length(&tail)?;
        let Some(body) = tail.len().checked_sub(footer + TRAILER) else {
            return needs(footer + TRAILER);
        };
        let footer = tail.get(body..body + footer).unwrap_or_default();
        let end = self.flushed + body as u64;
        let rewritten = footer::rewrite(footer, end, placement.schema, placement.bloom_filter)?;
        if rewritten.metadata.file_metadata().num_rows() == 0 {
            return Ok(Written::Empty);
        }
        let size = end - rewritten.cut.length() + rewritten.bytes.len() as u64;
        let data_file = bounds::data_file(&rewritten.metadata, placement, size)?;
        tail.truncate(body);
        self.file.write(tail.into())?;
        if let Some(start) = rewritten.cut.start() {
            self.file.compact(start, &rewritten.cut.kept(end))?;
        }
        self.file.write(rewritten.bytes.into())?;
        self.file.finish().await?;
        Ok(Written::File(Box::new(data_file)))
    }
}

fn needs(hold_back: usize) -> Result<Written> {
    if hold_back > MAX_HOLD_BACK {
        let message =
            format!("the Parquet footer takes {hold_back} bytes, more than the {MAX_HOLD_BACK} that are held");
        return Err(Error::refused(message).hint("offload fewer columns or shorter windows"));
    }
    Ok(Written::NeedsHoldBack(hold_back))
}

/// The length of the footer, from the last 8 bytes of a complete Parquet file.
fn footer_length(tail: &[u8]) -> Result<usize> {
    let trailer = tail.last_chunk::<TRAILER>().filter(|trailer| trailer.ends_with(MAGIC));
    let Some([a, b, c, d, ..]) = trailer else {
        return Err(Error::new(Kind::Unavailable, "the server's answer is no complete Parquet file"));
    };
    usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).or_error(Kind::Internal, "read the footer's length")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use iceberg::spec::{Datum, PrimitiveType};
    use parquet::file::reader::FileReader;
    use parquet::file::serialized_reader::SerializedFileReader;

    use super::*;
    use crate::config::Config;
    use crate::schema::{Column, iceberg_schema};

    /// What ClickHouse 26.7 sent for a SELECT of ours: five rows in row groups of two, two, one; `n` is null in the first
    /// group, `f` is NaN in the last.
    const CLICKHOUSE: &[u8] = include_bytes!("../../tests/fixtures/clickhouse-26.7.parquet");

    fn schema() -> Schema {
        let columns = [
            ("ts", "DateTime64(3)"),
            ("n", "Nullable(UInt64)"),
            ("s", "String"),
            ("p", "Decimal(18, 8)"),
            ("wide", "Decimal(38, 8)"),
            ("id", "UUID"),
            ("small", "UInt16"),
            ("f", "Float64"),
            ("b", "Bool"),
            ("d", "Date32"),
        ];
        iceberg_schema(&columns.map(|(name, kind)| Column::map(name, kind, None).unwrap())).unwrap()
    }

    fn storage() -> Storage {
        let config =
            Config::parse("[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n", Path::new("/"), |_| None);
        Storage::new(&config.unwrap().catalog.storage, Path::new("/"))
    }

    fn finish(file: Passthrough, placement: &Placement<'_>) -> Result<Written> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(file.finish(placement))
    }

    fn pass_through(bytes: &[u8], piece: usize, hold_back: usize, location: &str) -> Written {
        let (schema, properties) = (schema(), HashMap::new());
        let placement = Placement {
            location: location.to_owned(),
            schema: &schema,
            partition_spec_id: 0,
            partition: Struct::empty(),
            sort_order_id: None,
            bloom_filter: &[],
            metrics: Metrics::of(&properties),
        };
        let mut file = Passthrough::create(&storage(), location, hold_back, false).unwrap();
        for piece in bytes.chunks(piece) {
            file.write(Bytes::copy_from_slice(piece)).unwrap();
        }
        finish(file, &placement).unwrap()
    }

    #[test]
    fn clickhouses_file_keeps_its_rows_and_gets_ids_counts_and_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let original: Vec<String> = SerializedFileReader::new(Bytes::from_static(CLICKHOUSE))
            .unwrap()
            .get_row_iter(None)
            .unwrap()
            .map(|row| row.unwrap().get_column_iter().nth(2).unwrap().1.to_string())
            .collect();
        for (number, piece) in [1, 7, 1000, CLICKHOUSE.len()].into_iter().enumerate() {
            let path = folder.path().join(format!("{number}.parquet"));
            let location = path.to_str().unwrap();
            let Written::File(file) = pass_through(CLICKHOUSE, piece, 4096, location) else { panic!("no file") };
            assert_eq!((file.record_count(), file.file_size_in_bytes()), (5, path.metadata().unwrap().len()));
            let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
            let leaves = reader.metadata().file_metadata().schema_descr().columns();
            let ids: Vec<i32> = leaves.iter().map(|leaf| leaf.self_type().get_basic_info().id()).collect();
            assert_eq!(ids, (1..=10).collect::<Vec<_>>());
            let rows = reader.get_row_iter(None).unwrap();
            let rows: Vec<String> =
                rows.map(|row| row.unwrap().get_column_iter().nth(2).unwrap().1.to_string()).collect();
            assert_eq!(rows, original);

            let decimal = |unscaled: i128, precision| {
                Datum::try_from_bytes(&unscaled.to_be_bytes(), PrimitiveType::Decimal { precision, scale: 8 }).unwrap()
            };
            assert_eq!(file.null_value_counts()[&2], 2);
            assert_eq!((&file.lower_bounds()[&2], &file.upper_bounds()[&2]), (&Datum::long(2), &Datum::long(4)));
            assert_eq!(file.lower_bounds()[&3], Datum::string("symbol-with-a-lo"));
            assert_eq!(file.upper_bounds()[&3], Datum::string("symbol-with-a-lp"));
            assert_eq!(file.lower_bounds()[&4], decimal(-150_000_000, 18));
            assert_eq!(file.upper_bounds()[&5], decimal(-300_000_000, 38));
            assert_eq!(file.upper_bounds()[&7], Datum::int(65535));
            assert_eq!((&file.lower_bounds()[&10], &file.upper_bounds()[&10]), (&Datum::date(-2), &Datum::date(2)));
            assert!(!file.upper_bounds().contains_key(&8), "one row group has no statistics");
            assert_eq!(file.split_offsets().map(<[i64]>::len), Some(3));
        }
    }

    #[test]
    fn a_footer_longer_than_what_was_held_asks_for_more() {
        let folder = tempfile::tempdir().unwrap();
        let location = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let Written::NeedsHoldBack(needed) = pass_through(CLICKHOUSE, 100, 50, &location("a")) else {
            panic!("it fits")
        };
        assert!(matches!(pass_through(CLICKHOUSE, 100, needed, &location("b")), Written::File(_)));
    }

    #[test]
    fn what_is_no_complete_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for (number, bytes) in [&b""[..], b"PAR1", &CLICKHOUSE[..CLICKHOUSE.len() - 3]].into_iter().enumerate() {
            let location = folder.path().join(number.to_string()).to_str().unwrap().to_owned();
            let (schema, properties) = (schema(), HashMap::new());
            let placement = Placement {
                location: location.clone(),
                schema: &schema,
                partition_spec_id: 0,
                partition: Struct::empty(),
                sort_order_id: None,
                bloom_filter: &[],
                metrics: Metrics::of(&properties),
            };
            let mut file = Passthrough::create(&storage(), &location, HOLD_BACK, false).unwrap();
            file.write(Bytes::copy_from_slice(bytes)).unwrap();
            assert_eq!(finish(file, &placement).unwrap_err().kind(), Kind::Unavailable);
        }
    }
}
