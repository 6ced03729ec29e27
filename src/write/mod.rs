//! Streams of Parquet bytes -> uncommitted data files with statistics. Knows files, never the catalog or the source.

mod bounds;
mod footer;

use std::collections::VecDeque;

use bytes::Bytes;
use iceberg::spec::{DataFile, Literal, Schema, Struct};

use crate::error::{Classify, Error, Kind, Result};
use crate::storage::{DurableFile, local_path};

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
    /// Partition value: no field, or one day.
    pub partition: Vec<Option<i32>>,
}

impl Placement<'_> {
    fn partition(&self) -> Struct {
        self.partition.iter().map(|day| day.map(Literal::int)).collect()
    }
}

/// What became of a stream.
#[derive(Debug)]
pub enum Written {
    /// A durable file.
    File(Box<DataFile>),
    /// The stream held no row; nothing is left of it.
    Empty,
    /// The footer is longer than what was held back; nothing is left. Read again with this much.
    NeedsHoldBack(usize),
}

/// A data file while its bytes stream in: they go to disk as they are, but for the last `hold_back`, in which the footer is
/// rewritten. Pages, bloom filters and page indexes lie before the footer, so every offset in it stays valid.
#[derive(Debug)]
pub struct Passthrough {
    file: DurableFile,
    tail: VecDeque<Bytes>,
    tail_length: usize,
    hold_back: usize,
    flushed: u64,
}

impl Passthrough {
    /// Creates the file.
    pub fn create(location: &str, hold_back: usize) -> Result<Self> {
        let path = local_path(location)?;
        let file = DurableFile::create(&path).or_error(Kind::Unavailable, format!("create {}", path.display()))?;
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
            self.file.write(front).or_error(Kind::Unavailable, "write a data file")?;
            self.flushed += front.len() as u64;
            self.tail_length -= front.len();
            self.tail.pop_front();
        }
        Ok(())
    }

    /// Bytes taken so far.
    pub fn length(&self) -> u64 {
        self.flushed + self.tail_length as u64
    }

    /// Rewrites the footer at the end of a complete stream and makes the file durable.
    pub fn finish(mut self, placement: &Placement<'_>) -> Result<Written> {
        let mut tail = Vec::with_capacity(self.tail_length);
        self.tail.drain(..).for_each(|bytes| tail.extend_from_slice(&bytes));
        let footer = footer_length(&tail)?;
        let Some(body) = tail.len().checked_sub(footer + TRAILER) else {
            return self.needs(footer + TRAILER);
        };
        let (pages, rest) = tail.split_at(body);
        let footer = rest.get(..footer).unwrap_or_default();
        let rewritten = footer::rewrite(footer, placement.schema)?;
        if rewritten.metadata.file_metadata().num_rows() == 0 {
            return Ok(Written::Empty);
        }
        let size = self.flushed + (pages.len() + rewritten.bytes.len()) as u64;
        let data_file = bounds::data_file(&rewritten.metadata, placement, size)?;
        self.file.write(pages).or_error(Kind::Unavailable, "write a data file")?;
        self.file.write(&rewritten.bytes).or_error(Kind::Unavailable, "write a data file")?;
        self.file.finish().or_error(Kind::Unavailable, format!("sync {}", placement.location))?;
        Ok(Written::File(Box::new(data_file)))
    }

    fn needs(&self, hold_back: usize) -> Result<Written> {
        if hold_back > MAX_HOLD_BACK {
            let message =
                format!("the Parquet footer takes {hold_back} bytes, more than the {MAX_HOLD_BACK} that are held");
            return Err(Error::refused(message).hint("offload fewer columns or shorter windows"));
        }
        Ok(Written::NeedsHoldBack(hold_back))
    }
}

/// The length of the footer, from the last 8 bytes of a complete Parquet file.
fn footer_length(tail: &[u8]) -> Result<usize> {
    let trailer = tail.last_chunk::<TRAILER>().filter(|trailer| trailer.ends_with(MAGIC));
    let Some([a, b, c, d, ..]) = trailer else {
        return Err(Error::new(Kind::Unavailable, "the server's answer is no complete Parquet file"));
    };
    usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).or_error(Kind::Internal, "read the footer's length")
}
