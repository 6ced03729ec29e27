//! The only changer of a target: the exactly-once argument stands here; what an attempt writes and lets go, in the files beside it.
//!
//! One commit is one snapshot with the data files of a chunk and its marker, in the snapshot's summary and, by the same
//! compare-and-swap, in the table's properties (invariant 1, protocol.md P12).
//!
//! - **Compared before** (invariant 2, P13): a chunk commits only on the commit-id that it was planned on. This is checked on every
//!   attempt, against the very metadata that the swap then replaces. A foreign commit in between is fine: the snapshot is built anew on it.
//! - **Asked after** (invariant 3, P14): an attempt without an answer is unknown. The table is asked: our commit-id in the
//!   current history means landed, an unbroken history down to the base without it means rejected. While the table is as it
//!   was, the very same attempt is repeated. Nothing is deleted unless the commit is known to be rejected.
//! - **Durable before visible** (invariant 11, P18): manifests, manifest list and metadata are synced by [`crate::storage`] when they
//!   are closed, data files were before. The swap comes last.

mod expiry;
mod manifests;
pub(crate) mod stage;

use std::time::Duration;

use iceberg::spec::{DataFile, SchemaRef, TableMetadata};
use uuid::Uuid;

use self::expiry::unreferenced;
use self::stage::{Staged, stage};
use crate::config::TableName;
use crate::error::{Context, Error, Kind, Result};
use crate::failpoint::{self, Failpoint};
use crate::storage::Storage;
use crate::target::{Catalog, Fate, Swap, SwapError, Target, fate, is_past};
use crate::watermark::{KEY, Marker};

/// Foreign commits that may come between before a chunk gives up.
pub(crate) const MAX_ATTEMPTS: u32 = 8;
/// Repetitions of one attempt whose outcome stays unknown.
pub(crate) const MAX_REPETITIONS: u32 = 3;
/// Wait before the first repetition; the second waits twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be committed: a chunk whose files are durable.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The target.
    pub name: &'a TableName,
    /// The table that the commit was planned on: its UUID, schema and partition spec still must be these.
    pub planned_on: &'a Target,
    /// What else must not have changed.
    pub base: Base,
    /// What the commit will say of itself.
    pub marker: &'a Marker,
    /// The files; none makes an empty snapshot.
    pub files: &'a [DataFile],
    /// The schema that they were written with, where the table does not have it yet.
    pub schema: Option<&'a SchemaRef>,
}

/// What a commit requires of the table (protocol.md P13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The marker with this commit-id, `None` for no marker; foreign commits may come between.
    Marker(Option<Uuid>),
    /// The very snapshot that it was planned on, with the same marker, because it depends on all rows that are there.
    Snapshot,
}

/// Why a chunk did not commit, and so what becomes of its files.
#[derive(Debug)]
pub enum Failure {
    /// It is not in the table and never will be: its files may be deleted.
    Rejected(Error),
    /// Nobody can tell: its files must stay.
    Undecided(Error),
}

/// What a swap came to in the end.
enum Swapped {
    /// With the table as it is now, where the catalog said.
    Landed(Option<Box<Target>>),
    Stale,
    Undecided(Error),
    NotDone(Error),
}

/// Commits; returns the new snapshot's id, and the table with it, on which the next commit can be planned.
pub async fn commit(catalog: &Catalog, commit: &Commit<'_>) -> Result<(i64, Target), Failure> {
    let storage = catalog.storage();
    for attempt in 0..MAX_ATTEMPTS {
        let base = compare(catalog, commit).await.map_err(Failure::Rejected)?;
        let mut files = Vec::new();
        let staged = match stage(base, catalog, commit, attempt, &mut files).await {
            Ok(staged) => staged,
            Err(error) => {
                storage.discard(&files).await;
                return Err(Failure::Rejected(error));
            }
        };
        match swap(catalog, commit, &staged).await {
            Swapped::Landed(now) => {
                let target = now.map_or_else(|| staged.change.new.clone(), |now| *now);
                clean(storage, &staged, &target).await;
                target.write_hint(storage).await;
                return Ok((staged.snapshot_id, target));
            }
            // Readers that trust the directory must not find the metadata of an attempt that was rejected.
            Swapped::Stale => storage.discard(&files).await,
            Swapped::NotDone(error) => {
                storage.discard(&files).await;
                return Err(Failure::Rejected(error));
            }
            Swapped::Undecided(error) => {
                tracing::warn!(?files, "kept, because nobody could tell whether the commit landed");
                return Err(Failure::Undecided(error));
            }
        }
    }
    let message = format!("other writers committed to `{}` {MAX_ATTEMPTS} times in between", commit.name);
    Err(Failure::Rejected(Error::new(Kind::Conflict, message)))
}

/// Loads the table and compares it with what the chunk was planned on.
async fn compare(catalog: &Catalog, commit: &Commit<'_>) -> Result<Target> {
    let target = commit.planned_on.reload(catalog, commit.name).await?;
    let newest = match commit.base {
        Base::Marker(_) => target.marker(catalog.file_io(), commit.name).await?.map(|marker| marker.commit_id),
        Base::Snapshot => None,
    };
    check_base(commit, &target.metadata, newest)?;
    Ok(target)
}

/// Refuses a table that is not what the commit was planned on; `newest` is the commit-id of its marker, for [`Base::Marker`].
pub(crate) fn check_base(commit: &Commit<'_>, now: &TableMetadata, newest: Option<Uuid>) -> Result<()> {
    let planned_on = &commit.planned_on.metadata;
    let is_base = match commit.base {
        Base::Marker(planned) => newest == planned,
        // A table that was rolled back to that very snapshot is not as it was: its property names the commit that is gone.
        Base::Snapshot => {
            let state = |table: &TableMetadata| (table.current_snapshot_id(), table.properties().get(KEY).cloned());
            state(now) == state(planned_on)
        }
    };
    if !is_base {
        return Err(Error::new(
            Kind::Conflict,
            format!("another writer has committed to `{}` since this was planned", commit.name),
        ));
    }
    // New columns got ids after the last one.
    let schema = |table: &TableMetadata| (table.current_schema_id(), table.last_column_id());
    let shape = |table: &TableMetadata| (table.uuid(), schema(table), table.default_partition_spec_id());
    if shape(now) != shape(planned_on) {
        let message = format!("`{}` was made anew or altered since this was planned", commit.name);
        return Err(Error::new(Kind::Conflict, message));
    }
    Ok(())
}

/// Swaps until the outcome is known, or gives up asking.
async fn swap(catalog: &Catalog, commit: &Commit<'_>, staged: &Staged) -> Swapped {
    let mut unknown = None;
    let mut key = Uuid::now_v7();
    for repetition in 0..MAX_REPETITIONS {
        if repetition > 0 {
            // Whoever did not answer may be starting anew.
            tokio::time::sleep(PAUSE * repetition).await;
        }
        let stale = match catalog.swap(commit.name, &staged.change, key).await {
            Ok(Swap::Done(now)) => return Swapped::Landed(now),
            Ok(Swap::Stale) => true,
            Err(SwapError::NotDone(error)) if unknown.is_none() => return Swapped::NotDone(error),
            Err(SwapError::NotDone(error) | SwapError::Unknown(error)) => {
                tracing::warn!(table = %commit.name, %error, "the outcome of a commit is unknown, asking the table");
                unknown = Some(error);
                false
            }
        };
        // Between us and a server, something may have sent the request twice: then the second is answered by the first.
        if stale && unknown.is_none() && catalog.takes_files() {
            return Swapped::Stale;
        }
        let asked = ask(catalog, commit, staged).await;
        // A snapshot, by which a server compares, can be current again, unlike a location. And where the table is as it was, what was refused may have
        // been the second of two, and the first be under way.
        let base = &staged.change.base.metadata;
        let is_final =
            |now: &Target| stale && (catalog.takes_files() || unknown.is_none() && is_past(base, &now.metadata));
        match asked.map(|(fate, now)| (if is_final(&now) { fate.of_stale() } else { fate }, now)) {
            Ok((Fate::Landed, now)) => return Swapped::Landed(Some(now)),
            Ok((Fate::Rejected, _)) => return Swapped::Stale,
            Ok((Fate::Undecided, _)) if unknown.is_none() => {
                unknown =
                    Some(Error::new(Kind::Conflict, "the catalog refuses it as stale, and the table is as it was"));
                // Under the same key the answer would be the same.
                key = Uuid::now_v7();
            }
            Ok((Fate::Undecided, _)) => {}
            Ok((Fate::Untraceable, _)) => break,
            Err(error) => unknown = Some(error),
        }
    }
    let error = unknown.map_or_else(|| "the table's history was cut".to_owned(), |error| error.to_string());
    Swapped::Undecided(Error::new(Kind::Unknown, format!("commit to `{}`: {error}", commit.name)))
}

async fn ask(catalog: &Catalog, commit: &Commit<'_>, staged: &Staged) -> Result<(Fate, Box<Target>)> {
    let now = Target::load_existing(catalog, commit.name).await?;
    let fate = fate(&now.metadata, staged.change.base.metadata.current_snapshot_id(), commit.marker.commit_id);
    Ok((fate.context_with(|| format!("ask `{}` about a commit", commit.name))?, Box::new(now)))
}

/// Deletes what a commit that has landed let go: metadata files, and the files of snapshots that were too old.
async fn clean(storage: &Storage, staged: &Staged, now: &Target) {
    if let Err(error) = failpoint::hit(Failpoint::CommitClean) {
        tracing::warn!(%error, "what the commit let go was left behind");
        return;
    }
    storage.discard(&staged.obsolete).await;
    // As it is now: a REST catalog compares the newest snapshot only, and branches may have come meanwhile.
    match unreferenced(storage.file_io(), &staged.change.base.metadata, &now.metadata).await {
        Ok(files) => storage.discard(&files).await,
        Err(error) => tracing::warn!(%error, "files of snapshots that are gone were left behind"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::target::history::tests::{roll_back, table};
    use crate::watermark::tests::marker;

    /// P16: compared with the snapshot alone, a merge would land on the rollback, and nobody would hear of it.
    #[test]
    fn a_table_that_was_rolled_back_to_the_very_snapshot_is_not_as_it_was() {
        let now = roll_back(table(&[Some(1), Some(2)]), 1);
        let property = HashMap::from([(KEY.to_owned(), marker(1, 1000).encode().unwrap())]);
        let before = now.clone().into_builder(None).set_properties(property).unwrap().build().unwrap().metadata;
        let planned_on =
            Target { metadata: before, metadata_location: String::new(), version: None, credentials_end: None };
        let (name, marker) = (TableName { namespace: "cold".into(), name: "t".into() }, marker(3, 1000));
        let (base, files) = (Base::Snapshot, &[]);
        let commit = Commit { name: &name, planned_on: &planned_on, base, marker: &marker, files, schema: None };
        assert!(check_base(&commit, &planned_on.metadata, None).is_ok());
        assert_eq!(check_base(&commit, &now, None).unwrap_err().kind(), Kind::Conflict);
    }
}
