//! A chunk of a query: one SELECT, whose rows fall into the target's partitions here.
//!
//! Counting a query first would take about as long as reading it, and several SELECTs would see several states of what it is computed from. One
//! SELECT sees one state, so it is its own count (protocol.md P6, P7), and it tells how far its rows go (P9).

use arrow_array::RecordBatch;

use super::cut::MAX_FILES_PER_CHUNK;
use super::{Chunk, Files, Route};
use crate::cursor::Tick;
use crate::error::{Error, Kind, Result};
use crate::plan::{Partition, Piece, ceil};
use crate::source::{Counting, partition_values};
use crate::target::ticks;
use crate::telemetry::TableBar;
use crate::write::{COPIES, Encoder, PARTITION, Spool, Written};

impl Route<'_> {
    /// Counts the rows of a chunk that is not read (`--dry-run`).
    pub async fn count_unread(&self, chunk: &mut Chunk) -> Result<()> {
        if !self.source.is_query() {
            return Ok(());
        }
        let counted = self.count(chunk.window, Counting::Distinct).await?;
        chunk.pieces = counted.partitions.iter().map(|p| Piece { window: chunk.window, key: p.key.clone() }).collect();
        chunk.partitions = counted.partitions;
        self.end_above(chunk, counted.newest);
        Ok(())
    }

    /// A chunk ends with its newest row's window: no clock carries the watermark further.
    fn end_above(&self, chunk: &mut Chunk, newest: Option<Tick>) {
        if let Some(newest) = newest {
            chunk.window.high = chunk.window.high.min(ceil(newest.saturating_add(1), self.step));
        }
    }

    /// Reads a chunk; what it holds is known afterwards.
    pub(super) async fn write_query(&self, chunk: &mut Chunk, files: &mut Files, bar: &TableBar) -> Result<()> {
        let mut spool = Spool::create(&self.storage, &format!("{}/data", self.target.metadata.location()))?;
        let mut stream = self.source.whole(self.cursor(), chunk.window, &self.fields, (PARTITION, COPIES))?;
        while let Some(bytes) = stream.next().await? {
            bar.bytes(bytes.len());
            spool.write(&bytes)?;
        }
        let mut runs = spool.read()?;
        let mut next = runs.next_run()?;
        let mut newest = None;
        while let Some(run) = next.take() {
            let name = format!("k2-offload-{}-{}.parquet", chunk.commit_id, files.begun.len());
            if files.begun.len() >= MAX_FILES_PER_CHUNK {
                let message = format!("a chunk_span of the query holds more than {MAX_FILES_PER_CHUNK} partitions");
                return Err(Error::refused(message)
                    .hint("each one is a file: choose coarser partitions or a shorter chunk_span"));
            }
            let placement = self.placement(&partition_values(&self.fields, &run.key)?, &name)?;
            files.begun.push(placement.location.clone());
            let mut file = Encoder::create(&self.storage, &placement.location, &run.rows, self.table)?;
            let mut partition = Partition { key: run.key.clone(), rows: 0, kept: 0, rejected: 0 };
            let mut same = Some(run);
            while let Some(run) = same.take() {
                newest = newest.max(self.newest(&run.rows)?);
                file.write(&run.rows).await?;
                partition.rows += run.source_rows;
                partition.kept += run.rows.num_rows() as u64;
                // Encoding takes its time, and another table may stream meanwhile.
                tokio::task::yield_now().await;
                next = runs.next_run()?;
                if next.as_ref().is_some_and(|next| next.key == partition.key) {
                    same = next.take();
                }
            }
            match file.finish(&placement).await? {
                Written::File(data_file) => files.finished.push(*data_file),
                Written::Empty => return Err(Error::new(Kind::Internal, "a file that was encoded here has no rows")),
                Written::NeedsHoldBack(bytes) => {
                    return Err(Error::refused(format!("the Parquet footer takes {bytes} bytes, more than is held"))
                        .hint("offload fewer columns or a shorter chunk_span"));
                }
            }
            bar.rows(partition.kept);
            chunk.partitions.push(partition);
        }
        self.end_above(chunk, newest);
        Ok(())
    }

    /// The newest tick of some rows.
    fn newest(&self, rows: &RecordBatch) -> Result<Option<Tick>> {
        let cursor = self.cursor();
        let column = rows
            .column_by_name(&cursor.name)
            .ok_or_else(|| Error::new(Kind::Internal, format!("the answer has no column `{}`", cursor.name)))?;
        Ok(ticks(column, cursor)?.into_iter().flatten().max())
    }
}
