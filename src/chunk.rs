//! One chunk on its way: counted, streamed into files, and checked, before anyone may commit it.

use iceberg::spec::{DataFile, Literal, Struct};
use indicatif::ProgressBar;
use uuid::Uuid;

use crate::config::Table;
use crate::cursor::Cursor;
use crate::error::{Error, Kind, Result};
use crate::histogram::{Cut, Histogram};
use crate::plan::{MAX_PARTITIONS_PER_CHUNK, Partition, Window, cut_at_days};
use crate::schema::drift;
use crate::source::{DayColumn, Server, Source};
use crate::storage::delete_own_file;
use crate::target::Target;
use crate::watermark::{Marker, Mode, SourceIdentity, VERSION};
use crate::write::{HOLD_BACK, Passthrough, Placement, Written};

/// How rows go from a source to its target.
pub struct Route<'a> {
    /// The configuration of both.
    pub table: &'a Table,
    /// Where they come from.
    pub source: Source<'a>,
    /// Where they go.
    pub target: Target,
    /// What the marker will say of the source.
    pub identity: SourceIdentity,
    /// The source's column whose days partition the target.
    day: Option<DayColumn>,
}

/// A window on its way to be cut.
#[derive(Debug)]
pub struct Chunks {
    rest: Window,
    histogram: Histogram,
}

/// Rows that will be one commit.
#[derive(Debug)]
pub struct Chunk {
    /// New for every chunk; its files are named after it.
    pub commit_id: Uuid,
    /// The rows.
    pub window: Window,
    /// How many there are of each partition, counted before any is read (protocol.md P7).
    pub partitions: Vec<Partition>,
}

impl Chunk {
    /// Raw rows of all partitions.
    pub fn source_rows(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.rows).sum()
    }

    /// What the commit will say of itself.
    pub fn marker(&self, identity: &SourceIdentity, planned_on: Option<&Marker>, files: &Files) -> Marker {
        Marker {
            version: VERSION,
            commit_id: self.commit_id,
            mode: Mode::Append,
            source: identity.clone(),
            low: self.window.low,
            high: self.window.high,
            watermark: self.window.high,
            offloaded_to: self.window.high,
            source_rows: self.source_rows(),
            rows: files.rows(),
            skipped: planned_on.map(|marker| marker.skipped.clone()).unwrap_or_default(),
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
}

impl Files {
    /// Rows of the finished files.
    pub fn rows(&self) -> u64 {
        self.finished.iter().map(DataFile::record_count).sum()
    }

    /// Bytes of the finished files.
    pub fn bytes(&self) -> u64 {
        self.finished.iter().map(DataFile::file_size_in_bytes).sum()
    }

    /// Deletes every file of a chunk that is known not to be in the table.
    pub fn discard(&self) {
        for location in &self.begun {
            if let Err(error) = delete_own_file(location) {
                tracing::warn!(location, %error, "a file of an abandoned chunk was left behind");
            }
        }
    }
}

impl<'a> Route<'a> {
    /// Opens the source of `table` and finds cursor and partition column in it.
    pub async fn open(server: &'a Server, database: &str, table: &'a Table, target: Target) -> Result<Self> {
        target.check_format()?;
        let source = server.open(database, &table.source).await?;
        let cursor = source.cursor(&table.cursor)?;
        let identity = SourceIdentity { id: table.source_id.clone(), uuid: source.uuid, cursor };
        let day = target.day_column()?.map(|column| source.day_column(column)).transpose()?;
        Ok(Self { table, source, target, identity, day })
    }

    /// The column that orders the source.
    pub fn cursor(&self) -> &Cursor {
        &self.identity.cursor
    }

    /// Refuses what does not fit: another source, a range that needs a merge, a schema that drifted.
    pub fn check(&self, marker: Option<&Marker>) -> Result<()> {
        if let Some(marker) = marker {
            marker.check_identity(&self.identity)?;
            if marker.source.uuid != self.identity.uuid {
                tracing::warn!(was = %marker.source.uuid, is = %self.identity.uuid, "the source table was made anew");
            }
            if marker.watermark != marker.offloaded_to {
                return Err(Error::refused("the watermark lies below what was offloaded before")
                    .hint("a newer k2-offload has reset it; this version cannot merge"));
            }
        }
        let drift = drift(&self.source.columns, self.target.metadata.current_schema());
        if drift.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!("source and target differ: {}", drift.join("; ")))
            .hint("`k2-offload init-tables` prints the differences; this version does not change a target's schema"))
    }

    /// Begins to cut a window into chunks.
    pub async fn chunks(&self, window: Window) -> Result<Chunks> {
        let cursor = self.cursor();
        let days = self.source.histogram(cursor, window, cursor.kind.ticks_per_day()).await?;
        Ok(Chunks { rest: window, histogram: Histogram::new(cursor.kind, days) })
    }

    /// The next chunk, counted; `None` when the window is done.
    pub async fn next_chunk(&self, chunks: &mut Chunks) -> Result<Option<Chunk>> {
        while !chunks.histogram.is_empty() {
            let high = match chunks.histogram.cut(self.table.chunk_rows) {
                Cut::Refine { bucket, width } => {
                    let within = chunks.rest.intersect(bucket.low, bucket.high());
                    let finer = self.source.histogram(self.cursor(), within, width).await?;
                    chunks.histogram.refine(bucket, finer);
                    continue;
                }
                Cut::At(high) => high,
                Cut::Rest => chunks.rest.high,
            };
            let chunk = self.count(Window { high, ..chunks.rest }).await?;
            let high = chunk.as_ref().map_or(high, |chunk| chunk.window.high);
            chunks.histogram.forget_below(high);
            chunks.rest.low = Some(high);
            if chunk.is_some() {
                return Ok(chunk);
            }
        }
        Ok(None)
    }

    /// Counts a window before any row is read, and cuts it where it has too many days; `None` where it is empty.
    async fn count(&self, window: Window) -> Result<Option<Chunk>> {
        let cursor = self.cursor();
        let limit = MAX_PARTITIONS_PER_CHUNK + 1;
        let partitions = self.source.count(cursor, window, self.day.as_ref(), limit).await?;
        let by_cursor = self.day.as_ref().is_some_and(|day| day.column == *cursor);
        if partitions.len() > MAX_PARTITIONS_PER_CHUNK && !by_cursor {
            let message = format!("the window holds more than {MAX_PARTITIONS_PER_CHUNK} days of the partition column");
            return Err(Error::refused(message)
                .hint("offload shorter windows with --until, or partition the target by the day of the cursor"));
        }
        let (window, partitions) = cut_at_days(cursor.kind, window, partitions);
        Ok((!partitions.is_empty()).then(|| Chunk { commit_id: Uuid::now_v7(), window, partitions }))
    }

    /// Streams one SELECT per partition into one file each, then checks that nothing was missed (protocol.md P6, P7).
    pub async fn write(&self, chunk: &Chunk, files: &mut Files, bar: &ProgressBar) -> Result<()> {
        for (number, partition) in chunk.partitions.iter().enumerate() {
            let name = format!("k2-offload-{}-{number}.parquet", chunk.commit_id);
            self.write_file(chunk.window, partition.day, &name, files, bar).await?;
        }
        let unlisted = match &self.day {
            Some(day) => self.source.count_unlisted(self.cursor(), chunk.window, day, &chunk.partitions).await?,
            None => 0,
        };
        let (counted, read) = (chunk.source_rows(), files.rows());
        if unlisted == 0 && read >= counted {
            return Ok(());
        }
        let message = format!(
            "the source changed while it was read: {counted} rows counted, {read} read, {unlisted} on new days"
        );
        Err(Error::new(Kind::Conflict, message).hint("nothing was committed; the chunk is planned again"))
    }

    async fn write_file(
        &self,
        window: Window,
        day: Option<i32>,
        name: &str,
        files: &mut Files,
        bar: &ProgressBar,
    ) -> Result<()> {
        let placement = self.placement(day, name);
        files.begun.push(placement.location.clone());
        let part = self.day.as_ref().map(|column| (column, day));
        let mut hold_back = HOLD_BACK;
        loop {
            let mut stream = self.source.parquet(self.cursor(), window, part, &self.table.compression)?;
            let mut file = Passthrough::create(&placement.location, hold_back)?;
            while let Some(bytes) = stream.next().await? {
                bar.inc(bytes.len() as u64);
                file.write(bytes)?;
            }
            match file.finish(&placement)? {
                Written::File(file) => {
                    files.finished.push(*file);
                    return Ok(());
                }
                Written::Empty => return delete_own_file(&placement.location),
                Written::NeedsHoldBack(longer) => {
                    delete_own_file(&placement.location)?;
                    hold_back = longer;
                }
            }
        }
    }

    /// Below the table's `data` folder, in a folder for the partition as other writers name it.
    fn placement(&self, day: Option<i32>, name: &str) -> Placement<'_> {
        let metadata = &self.target.metadata;
        let mut folder = format!("{}/data", metadata.location());
        let mut partition = Vec::new();
        if self.day.is_some() {
            partition.push(day);
            let value: Struct = [day.map(Literal::int)].into_iter().collect();
            let path = metadata.default_partition_spec().partition_to_path(&value, metadata.current_schema().clone());
            let (field, day) = path.rsplit_once('=').unwrap_or((&path, ""));
            let field: String = url::form_urlencoded::byte_serialize(field.as_bytes()).collect();
            folder = format!("{folder}/{field}={day}");
        }
        Placement {
            location: format!("{folder}/{name}"),
            schema: metadata.current_schema(),
            partition_spec_id: metadata.default_partition_spec_id(),
            partition,
        }
    }
}
