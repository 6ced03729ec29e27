//! How the rows of a window move: chunk by chunk, each one commit.

use std::time::Duration;

use super::Pass;
use crate::chunk::{Chunk, Files, Merger, Route};
use crate::commit::{self, Base, Commit, Failure};
use crate::cursor::Tick;
use crate::error::{Error, Kind, Result};
use crate::failpoint::{self, Failpoint};
use crate::plan::Window;
use crate::progress::Progress;
use crate::rows::Imager;
use crate::target::{Catalog, Target, live_records};
use crate::telemetry::TableBar;
use crate::watermark::{Marker, Mode};

impl Pass<'_> {
    /// Compares what has left, from a watermark on that was put back.
    pub(super) async fn merge(
        &self,
        catalog: &Catalog,
        route: &mut Route<'_>,
        window: Window,
        progress: &mut Progress,
    ) -> Result<()> {
        route.check_merge(progress.marker(), window.low)?;
        self.window(catalog, route, (window, Mode::Merge), self.merge_deadline(), progress).await?;
        // Behind the last row of the source the target may hold what that has dropped.
        let rest = Window { low: progress.marker().map(|marker| marker.watermark), high: window.high };
        if self.options.dry_run || rest.is_empty() {
            return Ok(());
        }
        let bar = self.telemetry.bar(&route.table.target.to_string(), 0);
        self.chunk(catalog, route, &mut Chunk::of_nothing(rest), &bar, progress).await
    }

    /// However much there is to compare, new rows leave in the other half of the time that is left.
    fn merge_deadline(&self) -> Option<Duration> {
        let now = self.started.elapsed();
        self.deadline.map(|deadline| now + deadline.saturating_sub(now) / 2)
    }

    /// Moves a window chunk by chunk; with `--dry-run` counts it.
    pub(super) async fn window(
        &self,
        catalog: &Catalog,
        route: &mut Route<'_>,
        (window, mode): (Window, Mode),
        deadline: Option<Duration>,
        progress: &mut Progress,
    ) -> Result<()> {
        let mut chunks = self.stop.or(route.chunks(window, mode, self.merger().rows())).await?;
        let bar = self.telemetry.bar(&route.table.target.to_string(), chunks.rows);
        while let Some(mut chunk) = self.stop.or(route.next_chunk(&mut chunks)).await? {
            if self.options.dry_run {
                self.stop.or(route.count_unread(&mut chunk)).await?;
                progress.schema_changes(&route.evolution.changes);
                progress.planned(chunk);
                continue;
            }
            if deadline.is_some_and(|deadline| self.started.elapsed() > deadline) {
                return Err(Error::new(Kind::Deadline, "pass_deadline is over"));
            }
            self.chunk(catalog, route, &mut chunk, &bar, progress).await?;
        }
        Ok(())
    }

    /// Brings rows that came late (P23).
    pub(super) async fn late(
        &self,
        catalog: &Catalog,
        route: &mut Route<'_>,
        until: Option<Tick>,
        progress: &mut Progress,
    ) -> Result<()> {
        let Some(marker) = progress.marker() else { return Ok(()) };
        let Some(late) = self.stop.or(route.late(marker, until)).await? else { return Ok(()) };
        if !late.left_alone.is_empty() {
            tracing::warn!(
                ranges = late.left_alone.len(),
                "rows may have come late, and are not added, because others deleted rows there; `audit --repair` adds both"
            );
        }
        progress.looked_for_late_rows(&late.left_alone);
        let deadline = self.merge_deadline();
        let mut first = Ok(());
        for window in late.windows {
            let merged = self.window(catalog, route, (window, Mode::Late), deadline, progress).await;
            let is_over = merged.as_ref().is_err_and(|error| matches!(error.kind(), Kind::Stopped | Kind::Deadline));
            first = first.and(merged);
            // One that is refused does not hold the others back.
            if is_over {
                break;
            }
        }
        first
    }

    /// Reads, writes and commits one chunk, or leaves nothing of it.
    async fn chunk(
        &self,
        catalog: &Catalog,
        route: &mut Route<'_>,
        chunk: &mut Chunk,
        bar: &TableBar,
        progress: &mut Progress,
    ) -> Result<()> {
        failpoint::hit(Failpoint::Counted)?;
        let mut files = Files::default();
        let written = self.stop.or(route.write(chunk, &mut files, self.merger(), bar)).await;
        let committed = match written {
            // What a query holds is only known now.
            Ok(()) if chunk.source_rows() == 0 && !chunk.mode.is_merge() => return Ok(()),
            Ok(()) => self.commit(catalog, route, progress.marker(), chunk, &files).await,
            Err(error) => Err(Failure::Rejected(error)),
        };
        match committed {
            Ok((snapshot_id, target, marker)) => {
                let schema_changes = route.committed(target);
                if !schema_changes.is_empty() {
                    tracing::info!(changes = schema_changes.join("; "), "the target's schema changed");
                    progress.schema_changes(&schema_changes);
                }
                progress.target_rows(live_records(&route.target.metadata));
                progress.committed(chunk, &files, snapshot_id, marker);
                failpoint::hit(Failpoint::Committed).map(|_| ())
            }
            Err(Failure::Rejected(error)) => {
                files.discard(&route.storage).await;
                Err(error)
            }
            Err(Failure::Undecided(error)) => {
                tracing::warn!(files = ?files.begun, "kept, because nobody could tell whether the commit landed");
                Err(error)
            }
        }
    }

    /// Commits what was written; a signal no longer interrupts.
    async fn commit(
        &self,
        catalog: &Catalog,
        route: &Route<'_>,
        planned_on: Option<&Marker>,
        chunk: &Chunk,
        files: &Files,
    ) -> Result<(i64, Target, Marker), Failure> {
        failpoint::hit(Failpoint::Written).map_err(Failure::Rejected)?;
        let marker = chunk.marker(&route.identity, planned_on, files);
        let commit = Commit {
            name: &route.table.target,
            planned_on: &route.target,
            base: match chunk.mode.is_merge() {
                // It was compared with all rows that are there (P13).
                true => Base::Snapshot,
                false => Base::Marker(planned_on.map(|marker| marker.commit_id)),
            },
            marker: &marker,
            files: &files.finished,
            // Without rows the target has no use for new columns.
            schema: route.new_schema().filter(|_| !files.finished.is_empty()),
        };
        let (snapshot_id, target) = Box::pin(commit::commit(catalog, &commit)).await?;
        Ok((snapshot_id, target, marker))
    }

    /// What a merge needs beside source and target.
    fn merger(&self) -> Merger {
        Merger {
            memory: self.config.merge_memory / self.config.parallel_tables.max(1) as u64,
            imager: Imager::new(self.seed),
        }
    }
}
