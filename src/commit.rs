//! The only changer of a target: the exactly-once argument in one file.
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

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use chrono::Utc;
use iceberg::MetadataLocation;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, ManifestFile, ManifestList, ManifestListWriter, ManifestWriterBuilder, Operation, Snapshot,
    Struct, Summary, TableMetadata,
};
use uuid::Uuid;

use crate::config::TableName;
use crate::error::{Context, Error, Kind, Result};
use crate::storage::delete_own_file;
use crate::target::{Catalog, Fate, Swap, SwapError, Target, classify, fate};
use crate::watermark::{KEY, Marker};

/// Iceberg's property that lets old metadata files be deleted.
const DELETE_AFTER_COMMIT: &str = "write.metadata.delete-after-commit.enabled";

/// Foreign commits that may come between before a chunk gives up.
const MAX_ATTEMPTS: u32 = 8;
/// Repetitions of one attempt whose outcome stays unknown.
const MAX_REPETITIONS: u32 = 3;

/// What is to be committed: a chunk whose files are durable.
#[derive(Debug)]
pub struct Commit<'a> {
    /// The target.
    pub name: &'a TableName,
    /// Commit-id of the marker that the chunk was planned on, `None` for the first.
    pub planned_on: Option<Uuid>,
    /// The table that the chunk was planned on: its UUID, schema and partition spec still must be these.
    pub planned_for: &'a TableMetadata,
    /// What the commit will say of itself.
    pub marker: &'a Marker,
    /// The files; none makes an empty snapshot.
    pub files: &'a [DataFile],
}

/// Why a chunk did not commit, and so what becomes of its files.
#[derive(Debug)]
pub enum Failure {
    /// It is not in the table and never will be: its files may be deleted.
    Rejected(Error),
    /// Nobody can tell: its files must stay.
    Undecided(Error),
}

/// An attempt: everything but the swap.
struct Staged {
    base: Target,
    snapshot_id: i64,
    metadata_location: String,
    /// Files of this attempt, for deletion.
    files: Vec<String>,
    /// Metadata files that the table's properties let go once this attempt has landed.
    obsolete: Vec<String>,
}

/// What a swap came to in the end.
enum Swapped {
    Landed,
    Stale,
    Undecided(Error),
    NotDone(Error),
}

/// Commits a chunk; returns its snapshot id.
pub async fn commit(catalog: &mut Catalog, file_io: &FileIO, commit: &Commit<'_>) -> Result<i64, Failure> {
    for attempt in 0..MAX_ATTEMPTS {
        let base = compare(catalog, file_io, commit).await.map_err(Failure::Rejected)?;
        let mut staged =
            Staged { base, snapshot_id: 0, metadata_location: String::new(), files: Vec::new(), obsolete: Vec::new() };
        if let Err(error) = stage(&mut staged, file_io, commit, attempt).await {
            discard(&staged.files);
            return Err(Failure::Rejected(error));
        }
        match swap(catalog, file_io, commit, &staged).await {
            Swapped::Landed => {
                discard(&staged.obsolete);
                return Ok(staged.snapshot_id);
            }
            Swapped::Stale => discard(&staged.files),
            Swapped::NotDone(error) => {
                discard(&staged.files);
                return Err(Failure::Rejected(error));
            }
            Swapped::Undecided(error) => {
                tracing::warn!(files = ?staged.files, "kept, because nobody could tell whether the commit landed");
                return Err(Failure::Undecided(error));
            }
        }
    }
    let message = format!("other writers committed to `{}` {MAX_ATTEMPTS} times in between", commit.name);
    Err(Failure::Rejected(Error::new(Kind::Conflict, message)))
}

/// Loads the table and compares it with what the chunk was planned on.
async fn compare(catalog: &Catalog, file_io: &FileIO, commit: &Commit<'_>) -> Result<Target> {
    let target = Target::load_existing(catalog, file_io, commit.name).await?;
    let current = target.marker(file_io, commit.name).await?.map(|marker| marker.commit_id);
    if current != commit.planned_on {
        return Err(Error::new(
            Kind::Conflict,
            format!("another pass has committed to `{}` since this chunk was planned", commit.name),
        ));
    }
    let shape = |table: &TableMetadata| (table.uuid(), table.current_schema_id(), table.default_partition_spec_id());
    if shape(&target.metadata) != shape(commit.planned_for) {
        let message = format!("`{}` was made anew or altered since this chunk was planned", commit.name);
        return Err(Error::new(Kind::Conflict, message));
    }
    Ok(target)
}

/// Writes manifest, manifest list and metadata of an attempt; `staged.files` learns each before it is written.
async fn stage(staged: &mut Staged, file_io: &FileIO, commit: &Commit<'_>, attempt: u32) -> Result<()> {
    let failed = |e| classify(e, format!("write the commit of `{}`", commit.name));
    let Staged { base, files, .. } = staged;
    let metadata = &base.metadata;
    let folder = format!("{}/metadata", metadata.location());
    let snapshot_id = new_snapshot_id(metadata);
    let mut manifests = current_manifests(metadata, file_io).await.map_err(failed)?;
    if !commit.files.is_empty() {
        let location = format!("{folder}/{}-{attempt}-m0.avro", commit.marker.commit_id);
        files.push(location.clone());
        manifests.push(write_manifest(commit, metadata, file_io, &location, snapshot_id).await.map_err(failed)?);
    }
    let list = format!("{folder}/snap-{snapshot_id}-{attempt}-{}.avro", commit.marker.commit_id);
    files.push(list.clone());
    let sequence_number = metadata.next_sequence_number();
    let writer = file_io.new_output(&list).map_err(failed)?.writer().await.map_err(failed)?;
    let mut writer = ManifestListWriter::v2(writer, snapshot_id, metadata.current_snapshot_id(), sequence_number);
    writer.add_manifests(manifests.into_iter()).map_err(failed)?;
    writer.close().await.map_err(failed)?;

    let marker = commit.marker.encode()?;
    let snapshot = Snapshot::builder()
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(sequence_number)
        // A clock that went back must not make the commit fail; Iceberg wants times that do not fall.
        .with_timestamp_ms(Utc::now().timestamp_millis().max(metadata.last_updated_ms()))
        .with_manifest_list(list)
        .with_summary(summary(commit, metadata, &marker))
        .with_schema_id(metadata.current_schema_id())
        .build();
    let new = metadata
        .clone()
        .into_builder(Some(base.metadata_location.clone()))
        .set_branch_snapshot(snapshot, MAIN_BRANCH)
        .and_then(|builder| builder.set_properties(HashMap::from([(KEY.to_owned(), marker)])))
        .and_then(|builder| builder.build())
        .map_err(failed)?;
    if new.metadata.properties().get(DELETE_AFTER_COMMIT).map(String::as_str) == Some("true") {
        staged.obsolete = new.expired_metadata_logs.into_iter().map(|entry| entry.metadata_file).collect();
    }
    let new = new.metadata;
    let location = MetadataLocation::from_str(&base.metadata_location)
        .map_err(failed)?
        .with_next_version()
        .with_new_metadata(&new);
    files.push(location.to_string());
    new.write_to(file_io, &location).await.map_err(failed)?;
    staged.snapshot_id = snapshot_id;
    staged.metadata_location = location.to_string();
    Ok(())
}

/// The manifests of the current snapshot; an append keeps them all.
async fn current_manifests(metadata: &TableMetadata, file_io: &FileIO) -> iceberg::Result<Vec<ManifestFile>> {
    let Some(snapshot) = metadata.current_snapshot() else { return Ok(Vec::new()) };
    let bytes = file_io.new_input(snapshot.manifest_list())?.read().await?;
    let list = ManifestList::parse_with_version(&bytes, metadata.format_version())?;
    Ok(list.consume_entries().into_iter().collect())
}

async fn write_manifest(
    commit: &Commit<'_>,
    metadata: &TableMetadata,
    file_io: &FileIO,
    location: &str,
    snapshot_id: i64,
) -> iceberg::Result<ManifestFile> {
    let mut writer = ManifestWriterBuilder::new(
        file_io.new_output(location)?,
        Some(snapshot_id),
        metadata.current_schema().clone(),
        metadata.default_partition_spec().as_ref().clone(),
    )
    .build_v2_data();
    for file in commit.files {
        // A negative sequence number is inherited from the manifest list when the snapshot is read.
        writer.add_file(file.clone(), -1)?;
    }
    writer.write_manifest_file().await
}

/// The snapshot's summary: what was added, what that makes in all, and the marker. (iceberg 0.10's own collector panics on partitions by year,
/// month and hour.)
fn summary(commit: &Commit<'_>, metadata: &TableMetadata, marker: &str) -> Summary {
    let sum = |of: fn(&DataFile) -> u64| commit.files.iter().map(of).sum::<u64>();
    let partitions: HashSet<&Struct> = commit.files.iter().map(DataFile::partition).collect();
    let added = [
        ("added-data-files", Some("total-data-files"), commit.files.len() as u64),
        ("added-records", Some("total-records"), sum(DataFile::record_count)),
        ("added-files-size", Some("total-files-size"), sum(DataFile::file_size_in_bytes)),
        ("added-delete-files", Some("total-delete-files"), 0),
        ("added-position-deletes", Some("total-position-deletes"), 0),
        ("added-equality-deletes", Some("total-equality-deletes"), 0),
        ("changed-partition-count", None, partitions.len() as u64),
    ];
    let before = metadata.current_snapshot().map(|snapshot| &snapshot.summary().additional_properties);
    let mut properties = HashMap::new();
    for (key, total, number) in added {
        if number > 0 {
            properties.insert(key.to_owned(), number.to_string());
        }
        // A predecessor that does not say its total leaves ours unknown too.
        let known = |key| before.map_or(Some(0), |before| before.get(key)?.parse::<u64>().ok());
        if let Some((total, before)) = total.and_then(|total| Some((total, known(total)?))) {
            properties.insert(total.to_owned(), (before + number).to_string());
        }
    }
    properties.insert(KEY.to_owned(), marker.to_owned());
    properties.insert("engine-name".to_owned(), env!("CARGO_PKG_NAME").to_owned());
    properties.insert("engine-version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Summary { operation: Operation::Append, additional_properties: properties }
}

/// Swaps until the outcome is known, or gives up asking.
async fn swap(catalog: &mut Catalog, file_io: &FileIO, commit: &Commit<'_>, staged: &Staged) -> Swapped {
    let mut unknown = None;
    for _ in 0..MAX_REPETITIONS {
        let stale = match catalog.swap(commit.name, &staged.base.metadata_location, &staged.metadata_location) {
            Ok(Swap::Done) => return Swapped::Landed,
            Ok(Swap::Stale) => true,
            Err(SwapError::NotDone(error)) if unknown.is_none() => return Swapped::NotDone(error),
            Err(SwapError::NotDone(error) | SwapError::Unknown(error)) => {
                tracing::warn!(table = %commit.name, %error, "the outcome of a commit is unknown, asking the table");
                unknown = Some(error);
                false
            }
        };
        if stale && unknown.is_none() {
            return Swapped::Stale;
        }
        match ask(catalog, file_io, commit, staged).await {
            Ok(Fate::Landed) => return Swapped::Landed,
            Ok(Fate::Rejected) => return Swapped::Stale,
            // The location was another one, and locations are never used twice: no attempt on the old one can land any more.
            Ok(Fate::Undecided) if stale => return Swapped::Stale,
            Ok(Fate::Undecided) => {}
            Ok(Fate::Untraceable) => break,
            Err(error) => unknown = Some(error),
        }
    }
    let error = unknown.map_or_else(|| "the table's history was cut".to_owned(), |error| error.to_string());
    Swapped::Undecided(Error::new(Kind::Unknown, format!("commit to `{}`: {error}", commit.name)))
}

async fn ask(catalog: &Catalog, file_io: &FileIO, commit: &Commit<'_>, staged: &Staged) -> Result<Fate> {
    let now = Target::load_existing(catalog, file_io, commit.name).await?;
    fate(&now.metadata, staged.base.metadata.current_snapshot_id(), commit.marker.commit_id)
        .context_with(|| format!("ask `{}` about a commit", commit.name))
}

/// Deletes files of ours that nothing refers to: of an attempt that is known to be rejected (readers that trust the directory must not find its
/// metadata), or metadata that the table has let go.
fn discard(files: &[String]) {
    for file in files {
        if let Err(error) = delete_own_file(file) {
            tracing::warn!(file, %error, "a file that is not needed was left behind");
        }
    }
}

fn new_snapshot_id(metadata: &TableMetadata) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let id = i64::from_be_bytes((high ^ low).to_be_bytes()) & i64::MAX;
        if id != 0 && metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}
