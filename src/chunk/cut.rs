//! Where a window is cut: into chunks on ticks, and each partition of a chunk into pieces of about a file's size.

use super::{Chunk, Route};
use crate::cursor::Tick;
use crate::error::{Error, Kind, Result};
use crate::histogram::{Bucket, Cut, Histogram};
use crate::partition::{Grain, Value};
use crate::plan::{Partition, Piece, Window, floor, rows_per_file};
use crate::source::{Counted, Counting, partition_values};
use crate::watermark::Mode;

/// Days, or hours, of a target's partitions in one commit (protocol.md P6).
const MAX_UNITS_PER_CHUNK: usize = 64;
/// Partitions, and so files, in one commit.
pub(super) const MAX_FILES_PER_CHUNK: usize = 1024;
/// Files of one partition in one commit.
const MAX_PIECES_PER_PARTITION: u64 = 64;
/// Spans of a query that are not looked for by a histogram first.
const MAX_UNASKED_SPANS: i64 = 4;

/// A window on its way to be cut.
#[derive(Debug)]
pub struct Chunks {
    /// Rows of the window; 0 where they were not counted.
    pub rows: u64,
    mode: Mode,
    rest: Window,
    histogram: Histogram,
    /// Ticks of a partition, where the cursor makes it; a chunk holds at most `max_units` of them.
    unit: Tick,
    max_units: usize,
    /// About how many rows a chunk holds at most.
    max_rows: u64,
    /// Rows of a file of `target_file_size`, where that can be told.
    rows_per_file: Option<u64>,
}

impl Route<'_> {
    /// Begins to cut a window into chunks.
    /// A merge without a key takes at most `merge_rows` at once, about: what one reading compares. With a key, duplicates are looked for in whole commits.
    pub async fn chunks(&self, window: Window, mode: Mode, merge_rows: u64) -> Result<Chunks> {
        let cursor = self.cursor();
        // Days, or what the target is partitioned by where that is finer: a chunk holds a bounded number of them, or one `chunk_span`. Days
        // split no aggregate.
        let unit = self.fields.iter().filter(|field| field.by.column == cursor.name).filter_map(|field| {
            match field.by.grain {
                Grain::Day => Some(cursor.kind.ticks_per_day()),
                Grain::Hour => Some(cursor.kind.ticks_per_day() / 24),
                Grain::Year | Grain::Month | Grain::Identity => None,
            }
        });
        let day = cursor.kind.ticks_per_day();
        let (width, max_units) = match (self.span, unit.min()) {
            (Some(span), _) => (span, 1),
            (None, None) => (day, usize::MAX),
            (None, Some(unit)) => (if self.step > 1 { day } else { unit }, MAX_UNITS_PER_CHUNK),
        };
        let (buckets, rows) = match self.few_spans(window) {
            Some(buckets) => (buckets, 0),
            None => {
                let buckets = self.source.histogram(cursor, window, &[], &[], width).await?;
                let rows = buckets.iter().map(|bucket| bucket.rows).sum();
                (buckets, rows)
            }
        };
        let rows_per_file = match self.keeps_partitions_whole() {
            true => None,
            false => rows_per_file(self.table.target_file_size, self.measured_size().await?),
        };
        let finest = if self.step > 1 || self.source.is_query() { width } else { 1 };
        let histogram = Histogram::new(cursor.kind, buckets, finest);
        let max_rows = match mode.is_merge() && !self.keeps_partitions_whole() {
            true => self.table.chunk_rows.min(merge_rows),
            false => self.table.chunk_rows,
        };
        Ok(Chunks { rows, mode, rest: window, histogram, unit: width, max_units, max_rows, rows_per_file })
    }

    /// Whether the rows of a chunk and partition leave by one SELECT: within it duplicates are dropped (protocol.md P27), and no aggregate is split.
    fn keeps_partitions_whole(&self) -> bool {
        self.source.drops_duplicates() || self.source.is_query() || self.step > 1
    }

    /// The spans of a query's window, as if each held rows, where they are so few that reading them one by one is cheaper than a histogram.
    fn few_spans(&self, window: Window) -> Option<Vec<Bucket>> {
        let width = self.span.filter(|_| self.source.is_query())?;
        let first = floor(window.low?, width);
        let spans = window.high.checked_sub(first)?.div_euclid(width).checked_add(1)?;
        (spans <= MAX_UNASKED_SPANS).then(|| {
            let lows = (0..spans).map(|span| first.saturating_add(span.saturating_mul(width)));
            lows.filter(|low| *low < window.high).map(|low| Bucket { low, width, rows: 1 }).collect()
        })
    }

    /// Bytes and rows to judge sizes by: of the target's files, or while it has none, of the source's parts.
    async fn measured_size(&self) -> Result<(u64, u64)> {
        match self.target.files_size() {
            Some(size) => Ok(size),
            None => self.source.size().await,
        }
    }

    /// The next chunk, counted; `None` when the window is done.
    pub async fn next_chunk(&self, chunks: &mut Chunks) -> Result<Option<Chunk>> {
        while !chunks.histogram.is_empty() {
            if self.source.is_query() {
                return self.next_unread(chunks).await.map(Some);
            }
            let (window, partitions) = self.next_window(chunks).await?;
            chunks.rest.low = Some(window.high);
            if !partitions.is_empty() {
                return self.chunk(window, partitions, chunks).await.map(Some);
            }
        }
        Ok(None)
    }

    /// The next span of a query, which is counted by reading it.
    async fn next_unread(&self, chunks: &mut Chunks) -> Result<Chunk> {
        let limits = (u64::MAX, chunks.unit, chunks.max_units);
        let window = self.cut(&mut chunks.histogram, chunks.rest, &[], limits).await?;
        chunks.rest.low = Some(window.high);
        let mut chunk = Chunk::new(window, chunks.mode);
        // Before it is read: what comes meanwhile must make a difference.
        let watermark = chunks.histogram.end().unwrap_or(window.high).min(chunks.rest.high);
        if self.is_looked_at_again(window, watermark) {
            chunk.input = self.source.fingerprints(self.cursor(), &[window]).await?.pop();
        }
        Ok(chunk)
    }

    /// Cuts and counts the next window; where it holds too many partitions, a smaller one.
    async fn next_window(&self, chunks: &mut Chunks) -> Result<(Window, Vec<Partition>)> {
        let mut limit = chunks.max_rows;
        loop {
            let mut histogram = chunks.histogram.clone();
            let window = self.cut(&mut histogram, chunks.rest, &[], (limit, chunks.unit, chunks.max_units)).await?;
            let partitions = self.count(window, Counting::Raw).await?.partitions;
            if partitions.len() <= MAX_FILES_PER_CHUNK {
                chunks.histogram = histogram;
                return Ok((window, partitions));
            }
            if limit == 1 {
                let message = format!("a single tick holds more than {MAX_FILES_PER_CHUNK} partitions");
                return Err(Error::refused(message).hint("each one is a file: choose coarser partitions"));
            }
            limit /= 2;
        }
    }

    /// Cuts the next window off `rest`, refining the histogram of a partition's rows, or of all, where that takes finer buckets.
    async fn cut(
        &self,
        histogram: &mut Histogram,
        rest: Window,
        values: &[Option<Value>],
        (limit, unit, max_units): (u64, Tick, usize),
    ) -> Result<Window> {
        let fields = self.fields.get(..values.len()).unwrap_or_default();
        loop {
            let high = match histogram.cut(limit, unit, max_units) {
                Cut::Refine { bucket, width } => {
                    let within = rest.intersect(bucket.low, bucket.high());
                    let finer = self.source.histogram(self.cursor(), within, fields, values, width).await?;
                    histogram.refine(bucket, finer);
                    continue;
                }
                Cut::At(high) => high,
                Cut::Rest => rest.high,
            };
            if rest.low.is_some_and(|low| high <= low) {
                return Err(Error::new(Kind::Internal, "the source's histogram does not ascend"));
            }
            histogram.forget_below(high);
            return Ok(Window { high, ..rest });
        }
    }

    /// Counts a window: before any row is read, and again after the last.
    pub(super) async fn count(&self, window: Window, counting: Counting) -> Result<Counted> {
        self.source.count(self.cursor(), window, &self.fields, counting, MAX_FILES_PER_CHUNK + 1).await
    }

    async fn chunk(&self, window: Window, partitions: Vec<Partition>, chunks: &Chunks) -> Result<Chunk> {
        let mut pieces = Vec::with_capacity(partitions.len());
        for partition in partitions.iter().filter(|partition| partition.kept > 0) {
            let rows = chunks.rows_per_file.map(|rows| rows.max(partition.rows.div_ceil(MAX_PIECES_PER_PARTITION)));
            match rows {
                // A file half as large again is near enough; two small ones would not be.
                Some(rows) if partition.rows > rows.saturating_add(rows / 2) => {
                    pieces.extend(self.pieces(window, partition, rows).await?)
                }
                _ => pieces.push(Piece { window, key: partition.key.clone() }),
            }
        }
        Ok(Chunk { partitions, pieces, ..Chunk::new(window, chunks.mode) })
    }

    /// Cuts a partition of a chunk into windows of about `rows` rows; they cover the chunk's window without a gap.
    async fn pieces(&self, window: Window, partition: &Partition, rows: u64) -> Result<Vec<Piece>> {
        let cursor = self.cursor();
        let values = partition_values(&self.fields, &partition.key)?;
        let day = cursor.kind.ticks_per_day();
        let buckets = self.source.histogram(cursor, window, &self.fields, &values, day).await?;
        let mut histogram = Histogram::new(cursor.kind, buckets, 1);
        let mut rest = window;
        let mut pieces = Vec::new();
        while !histogram.is_empty() {
            let piece = self.cut(&mut histogram, rest, &values, (rows, day, usize::MAX)).await?;
            rest.low = Some(piece.high);
            pieces.push(Piece { window: piece, key: partition.key.clone() });
        }
        match pieces.last_mut() {
            Some(last) => last.window.high = window.high,
            None => pieces.push(Piece { window, key: partition.key.clone() }),
        }
        Ok(pieces)
    }
}
