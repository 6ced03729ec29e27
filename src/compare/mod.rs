//! Comparing the rows of both sides of a table exactly, in bounded memory (protocol.md P21, P26).
//!
//! The source's rows come through the casts of an offload into a file for a while, and one reader reads that file and the target's. First each
//! side of each bucket becomes a number of rows and a sum of their images. Only buckets that differ are read a second time, to tell by which
//! rows, as many of them together as memory allows, and slice by slice where one does not fit. Beside that, memory holds a row group of a file.

mod stretch;

use std::collections::{BTreeMap, BTreeSet};

use iceberg::spec::SchemaRef;

use self::stretch::{Grid, Stretch};
use crate::audit::{Counts, Section};
use crate::chunk::Route;
use crate::cursor::Tick;
use crate::difference::{self, Difference, Differing, Side, Slice, Sums};
use crate::error::{Error, Kind, Result};
use crate::plan::{Window, span_ticks};
use crate::rows::{Image, Imager};
use crate::schema::pruned;
use crate::target::{RowFile, no_key_column, read_rows};
use crate::write::{Scratch, ScratchWriter};

/// Buckets that are read a second time together: each may be a file of its own.
const MAX_BUCKETS_PER_GROUP: usize = 64;
/// Readings of a bucket. More would take days.
const MAX_SLICES: u64 = 1 << 16;

/// Both sides of a table.
pub struct Comparison<'a> {
    /// Where rows come from and go to.
    pub route: &'a Route<'a>,
    /// Bytes for the images of rows.
    pub memory: u64,
    /// Makes the images.
    pub imager: Imager,
}

/// What is compared of each row.
struct Columns {
    /// The fields.
    schema: SchemaRef,
    /// Which of them are the key.
    key: Vec<usize>,
}

/// Buckets that are read a second time.
struct Again {
    buckets: BTreeSet<Tick>,
    grid: Grid,
    /// From the first to the last of them.
    hull: Window,
    /// The source's rows.
    scratches: Vec<Scratch>,
    columns: Columns,
    keyed: bool,
}

/// What is read of a source's rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// What an offload would take.
    Leaving,
    /// All rows of a key too: the target may have any of them.
    WithDuplicates,
}

impl Comparison<'_> {
    /// Compares the rows of the buckets that were counted in a section.
    pub async fn compare(&self, section: Section, counts: &[Counts], width: Tick) -> Result<Vec<Counts>> {
        let name = &self.route.table.target;
        let compared = Box::pin(self.compare_rows(section, counts, width)).await;
        compared.map_err(|e| e.context(format!("compare the rows of `{name}` with the source's")))
    }

    async fn compare_rows(&self, section: Section, counts: &[Counts], width: Tick) -> Result<Vec<Counts>> {
        let Some((first, last)) = counts.first().zip(counts.last()) else { return Ok(Vec::new()) };
        let (target, cursor) = (&self.route.target, self.route.cursor());
        let hull = Window { low: Some(first.low), high: last.high };
        let files = target
            .row_files(self.route.storage.file_io(), &self.route.table.target, cursor, hull, &self.route.table.key)
            .await?;
        let parts = match self.route.table.chunk_span.filter(|_| self.route.source.is_query()) {
            Some(span) => stretch::of_query(section, counts, span_ticks("chunk_span", span, cursor.kind)?),
            None => stretch::of_table(counts),
        };
        let mut compared = Vec::with_capacity(counts.len());
        for stretch in stretch::stretches(parts, &files, self.route.table.chunk_rows) {
            let grid = Grid { range: stretch.hull(), width };
            let counts = self.compare_stretch(&stretch, &files, grid).await?;
            compared.extend(counts.into_iter().map(|counts| Counts { late: section.late, ..counts }));
        }
        Ok(compared)
    }

    async fn compare_stretch(&self, stretch: &Stretch, files: &[RowFile], grid: Grid) -> Result<Vec<Counts>> {
        let sums = self.sums(stretch, files, grid).await?;
        let differing = sums.0.iter().filter(|(_, [source, target])| source != target);
        let differing: Vec<(Tick, u64)> =
            differing.map(|(low, [s, t])| (*low, s.rows.saturating_add(t.rows))).collect();
        let mut differences = BTreeMap::new();
        for group in stretch::groups(&differing, self.memory / 2 / difference::BYTES_PER_ROW, MAX_BUCKETS_PER_GROUP) {
            differences.extend(self.differences(stretch, files, grid, &group).await?);
        }
        let counts = sums.0.into_iter().map(|(low, [source, target])| Counts {
            low,
            high: grid.bucket(low).high,
            source: source.rows,
            duplicates: 0,
            target: target.rows,
            skipped: false,
            late: false,
            expired: None,
            rows: Some(differences.get(&low).copied().unwrap_or_default()),
        });
        Ok(counts.collect())
    }

    /// Reads all rows of a stretch once.
    async fn sums(&self, stretch: &Stretch, files: &[RowFile], grid: Grid) -> Result<Sums> {
        let mut sums = Sums::default();
        let mut columns = None;
        for window in &stretch.windows {
            let Some(scratch) = self.receive(*window, Reading::Leaving).await? else { continue };
            let of_both = self.columns(stretch, Some(&scratch))?;
            let mut add = |(bucket, _), _: &Image, image: &Image| {
                sums.add(Side::Source, bucket, image);
                true
            };
            self.read_source(&[scratch], &of_both, grid, &mut add).await?;
            columns = Some(of_both);
        }
        if stretch.fields.is_none() {
            return Ok(sums);
        }
        let columns = columns.map_or_else(|| self.columns(stretch, None), Ok)?;
        let mut add = |(bucket, _), _: &Image, image: &Image| {
            sums.add(Side::Target, bucket, image);
            true
        };
        self.read_target(files, &columns, grid.range, grid, &mut add).await?;
        Ok(sums)
    }

    /// Reads the rows of some buckets again: by which rows they differ.
    async fn differences(
        &self,
        stretch: &Stretch,
        files: &[RowFile],
        grid: Grid,
        group: &[(Tick, u64)],
    ) -> Result<BTreeMap<Tick, Differing>> {
        let table = self.route.table;
        let keyed = !table.key.is_empty();
        let buckets: BTreeSet<Tick> = group.iter().map(|(low, _)| *low).collect();
        let own = || buckets.iter().map(|low| grid.bucket(*low));
        let overlap = |a: Window, b: Window| !a.intersect(b.low.unwrap_or(Tick::MIN), b.high).is_empty();
        let is_needed = |window: &&Window| own().any(|bucket| overlap(**window, bucket));
        let windows = match self.route.source.is_query() {
            true => stretch.windows.iter().filter(is_needed).copied().collect(),
            false => stretch::joined(own()),
        };
        let reading = if keyed && !table.is_final { Reading::WithDuplicates } else { Reading::Leaving };
        let mut scratches = Vec::new();
        for window in windows {
            scratches.extend(self.receive(window, reading).await?);
        }
        if scratches.is_empty() && stretch.fields.is_none() {
            // The rows that were there a moment ago are gone.
            return Ok(BTreeMap::new());
        }
        let columns = self.columns(stretch, scratches.first())?;
        let hull = own().reduce(|all, next| Window { high: next.high, ..all }).unwrap_or(grid.range);
        let again = Again { buckets, grid, hull, scratches, columns, keyed };
        let rows = group.iter().map(|(_, rows)| *rows).fold(0, u64::saturating_add);
        let mut slices = difference::slices(rows, self.memory);
        while slices <= MAX_SLICES {
            if let Some(found) = self.in_slices(&again, files, slices).await? {
                return Ok(found);
            }
            slices = slices.saturating_mul(2);
        }
        Err(Error::refused("the rows of one hour do not fit into merge_memory, in however many slices")
            .hint("set a larger merge_memory in [defaults]"))
    }

    /// Reads buckets once for each slice; `None` where one does not fit into memory.
    async fn in_slices(
        &self,
        again: &Again,
        files: &[RowFile],
        slices: u64,
    ) -> Result<Option<BTreeMap<Tick, Differing>>> {
        let mut all: BTreeMap<Tick, Differing> = BTreeMap::new();
        for number in 0..slices {
            let mut difference = Difference::new(self.memory, Slice { number, of: slices }, again.keyed);
            for side in [Side::Source, Side::Target] {
                let mut add = |at: (Tick, Tick), key: &Image, image: &Image| {
                    !again.buckets.contains(&at.0) || difference.add(side, at, key, image)
                };
                let (columns, grid) = (&again.columns, again.grid);
                let fits = match side {
                    Side::Source => self.read_source(&again.scratches, columns, grid, &mut add).await?,
                    Side::Target => self.read_target(files, columns, again.hull, grid, &mut add).await?,
                };
                if !fits {
                    return Ok(None);
                }
            }
            difference.finish().into_iter().for_each(|(bucket, found)| all.entry(bucket).or_default().add(found));
        }
        Ok(Some(all))
    }

    /// Streams rows of the source into a file; `None` where there are none.
    async fn receive(&self, window: Window, reading: Reading) -> Result<Option<Scratch>> {
        let duplicates = reading == Reading::WithDuplicates;
        let mut stream = self.route.source.compared(self.route.cursor(), window, duplicates)?;
        let mut scratch = ScratchWriter::create(self.route.storage.scratch())?;
        while let Some(bytes) = stream.next().await? {
            scratch.write(&bytes)?;
        }
        scratch.finish(self.route.new_schema().unwrap_or(self.route.target.metadata.current_schema()))
    }

    /// The columns that every file of the stretch physically holds and that the source still has (protocol.md P21).
    fn columns(&self, stretch: &Stretch, source: Option<&Scratch>) -> Result<Columns> {
        let schema = self.route.new_schema().unwrap_or(self.route.target.metadata.current_schema());
        let fields = match (&stretch.fields, source.map(|scratch| &scratch.fields)) {
            (Some(target), Some(source)) => target & source,
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => return Err(Error::new(Kind::Internal, "there are no rows to compare")),
        };
        let schema = pruned(schema, &fields)?;
        let position = |name: &String| schema.as_struct().fields().iter().position(|field| field.name == *name);
        let key = self.route.table.key.iter().map(|name| position(name).ok_or_else(|| no_key_column(name)));
        Ok(Columns { key: key.collect::<Result<_>>()?, schema })
    }

    async fn read_source(
        &self,
        scratches: &[Scratch],
        columns: &Columns,
        grid: Grid,
        add: &mut impl FnMut((Tick, Tick), &Image, &Image) -> bool,
    ) -> Result<bool> {
        let file = |scratch| RowFile::of_scratch(scratch, columns.schema.clone());
        let files: Vec<RowFile> = scratches.iter().map(file).collect();
        self.read(files.iter(), columns, grid.range, grid, add).await
    }

    async fn read_target(
        &self,
        files: &[RowFile],
        columns: &Columns,
        window: Window,
        grid: Grid,
        add: &mut impl FnMut((Tick, Tick), &Image, &Image) -> bool,
    ) -> Result<bool> {
        let files: Vec<RowFile> = files.iter().filter_map(|file| file.within(window)).collect();
        self.read(files.iter(), columns, window, grid, add).await
    }

    /// Reads files, and tells bucket and tick, key and image of each row in the window, until that wants no more; `false` where it did not want all.
    async fn read<'f>(
        &self,
        files: impl Iterator<Item = &'f RowFile>,
        columns: &Columns,
        window: Window,
        grid: Grid,
        add: &mut impl FnMut((Tick, Tick), &Image, &Image) -> bool,
    ) -> Result<bool> {
        let mut rows = read_rows(self.route.storage.file_io(), files, &columns.schema, self.route.cursor())?;
        while let Some((batch, ticks)) = rows.next().await? {
            let is_inside = |tick: &Option<Tick>| tick.is_some_and(|tick| window.contains(tick));
            // A file may be much longer than the window.
            if !ticks.iter().any(is_inside) {
                continue;
            }
            let images = self.imager.rows(&batch, ticks.len())?;
            let key: Vec<_> = columns.key.iter().filter_map(|column| batch.get(*column).cloned()).collect();
            let keys = if key.is_empty() { None } else { Some(self.imager.rows(&key, ticks.len())?) };
            let keys = keys.as_ref().unwrap_or(&images);
            for ((tick, key), image) in ticks.into_iter().zip(keys).zip(&images) {
                let Some(tick) = tick.filter(|tick| window.contains(*tick)) else { continue };
                let bucket = grid.bucket(tick).low;
                let bucket = bucket.ok_or_else(|| Error::new(Kind::Internal, "a bucket has no beginning"))?;
                if !add((bucket, tick), key, image) {
                    return Ok(false);
                }
            }
            // Hashing takes its time, and another table may stream meanwhile.
            tokio::task::yield_now().await;
        }
        Ok(true)
    }
}
