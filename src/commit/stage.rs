//! An attempt to commit, all but the swap: manifests, manifest list and metadata, each durable once it is written.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use chrono::Utc;
use iceberg::MetadataLocation;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, ManifestFile, ManifestListWriter, Operation, SchemaRef, Snapshot, Struct, Summary,
    TableMetadata, TableMetadataBuildResult,
};
use uuid::Uuid;

use super::Commit;
use super::expiry::expired;
use super::manifests::{replace, to_merge, write_added, write_merged, writer};
use crate::error::{Classify, Kind, Result};
use crate::storage::{Storage, same_spelling};
use crate::target::{Catalog, Change, Target, classify, live_records, manifests_of, version_of};
use crate::watermark::{KEY, Marker, Mode};

/// Iceberg's property that lets old metadata files be deleted.
const DELETE_AFTER_COMMIT: &str = "write.metadata.delete-after-commit.enabled";

/// What a swap would make visible.
#[derive(Debug)]
pub struct Staged {
    /// The table as it was read, and as it will be.
    pub change: Change,
    /// The new snapshot.
    pub snapshot_id: i64,
    /// Metadata files that the table's properties let go once this has landed.
    pub obsolete: Vec<String>,
}

/// Writes an attempt on `base`; `files` learns each file before it is written.
pub async fn stage(
    base: Target,
    catalog: &Catalog,
    commit: &Commit<'_>,
    attempt: u32,
    files: &mut Vec<String>,
) -> Result<Staged> {
    let file_io = catalog.file_io();
    let failed = |e| classify(e, format!("write the commit of `{}`", commit.name));
    // Manifests and snapshot name the schema that the table will have.
    let evolved = commit.schema.map(|schema| {
        let builder = base.metadata.clone().into_builder(None);
        builder.add_current_schema(schema.as_ref().clone())?.build()
    });
    let evolved = evolved.transpose().map_err(failed)?;
    let metadata = evolved.as_ref().map_or(&base.metadata, |evolved| &evolved.metadata);
    let snapshot_id = new_snapshot_id(metadata);
    let prefix = format!("{}/metadata/{}-{attempt}", metadata.location(), commit.marker.commit_id);
    let manifests = manifests(metadata, catalog.storage(), commit, snapshot_id, &prefix, files).await?;
    let list =
        format!("{}/metadata/snap-{snapshot_id}-{attempt}-{}.avro", metadata.location(), commit.marker.commit_id);
    files.push(list.clone());
    let sequence_number = metadata.next_sequence_number();
    let writer = file_io.new_output(&list).map_err(failed)?.writer().await.map_err(failed)?;
    let mut writer = ManifestListWriter::v2(writer, snapshot_id, metadata.current_snapshot_id(), sequence_number);
    writer.add_manifests(manifests.into_iter()).map_err(failed)?;
    writer.close().await.map_err(failed)?;

    let at = At { snapshot_id, sequence_number, list, now_ms: Utc::now().timestamp_millis() };
    let new = committed(&base, metadata, commit, at)?;
    let delete_obsolete = new.metadata.properties().get(DELETE_AFTER_COMMIT).map(String::as_str) == Some("true");
    // What lies outside the table's folder, because it was registered from elsewhere, is not ours to delete.
    let folder = format!("{}/", same_spelling(metadata.location()));
    let delete_obsolete = delete_obsolete && catalog.takes_files();
    let is_obsolete = |file: &String| delete_obsolete && same_spelling(file).starts_with(&folder);
    let obsolete = new.expired_metadata_logs.into_iter().map(|entry| entry.metadata_file).filter(is_obsolete).collect();
    let mut metadata_location = String::new();
    if catalog.takes_files() {
        let location = next_location(&base, &new.metadata).map_err(failed)?;
        metadata_location = location.to_string();
        files.push(metadata_location.clone());
        new.metadata.write_to(file_io, &location).await.map_err(failed)?;
    }
    let change = Change {
        base,
        new: Target { metadata: new.metadata, metadata_location, version: None, credentials_end: None },
        updates: new.changes,
    };
    Ok(Staged { change, snapshot_id, obsolete })
}

/// What the outside world gives to a new snapshot.
pub(crate) struct At {
    pub(crate) snapshot_id: i64,
    pub(crate) sequence_number: i64,
    /// Location of its manifest list.
    pub(crate) list: String,
    /// This host's clock, milliseconds since 1970.
    pub(crate) now_ms: i64,
}

/// The table with the commit in it and without the snapshots that are too old; `metadata` is the base's, with the schema of the commit. Pure.
pub(crate) fn committed(
    base: &Target,
    metadata: &TableMetadata,
    commit: &Commit<'_>,
    At { snapshot_id, sequence_number, list, now_ms }: At,
) -> Result<TableMetadataBuildResult> {
    let failed = |e| classify(e, format!("write the commit of `{}`", commit.name));
    let added: u64 = commit.files.iter().map(DataFile::record_count).sum();
    let (expected, live) = (commit.marker.total_records, live_records(metadata));
    // What it brings may be what others deleted; that they did stays told until a reset acknowledges it.
    let total_records = expected.max(live).map(|total| total + added);
    let marker = Marker { total_records, ..commit.marker.clone() }.encode()?;
    let snapshot = Snapshot::builder()
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(sequence_number)
        // A clock that went back must not make the commit fail; Iceberg wants times that do not fall.
        .with_timestamp_ms(now_ms.max(base.metadata.last_updated_ms()))
        .with_manifest_list(list)
        .with_summary(summary(commit, metadata, &marker))
        .with_schema_id(metadata.current_schema_id())
        .build();
    let new = build(base, commit.schema, &snapshot, &marker, &[]).map_err(failed)?;
    // What is made by hand changes the marker and lets nothing go.
    let old = match commit.marker.mode {
        Mode::Reset | Mode::Adopt => Vec::new(),
        Mode::Append | Mode::Merge | Mode::Late => expired(&new.metadata, now_ms)
            .or_error(Kind::Internal, format!("look for old snapshots of `{}`", commit.name))?,
    };
    match old.is_empty() {
        true => Ok(new),
        false => build(base, commit.schema, &snapshot, &marker, &old).map_err(failed),
    }
}

/// Where the next metadata goes: into the folder of the last, whatever that was called, numbered on and named as catalogs but Hadoop's do.
fn next_location(base: &Target, new: &TableMetadata) -> iceberg::Result<MetadataLocation> {
    let (folder, name) = base.metadata_location.rsplit_once('/').unwrap_or_default();
    let version = version_of(name).unwrap_or(0).saturating_add(1);
    let name = format!("{folder}/{version:0>5}-{}.metadata.json", Uuid::new_v4());
    Ok(MetadataLocation::from_str(&name)?.with_new_metadata(new))
}

/// The base with a further snapshot and its marker, and without the snapshots `old`.
fn build(
    base: &Target,
    schema: Option<&SchemaRef>,
    snapshot: &Snapshot,
    marker: &str,
    old: &[i64],
) -> iceberg::Result<TableMetadataBuildResult> {
    let builder = base.metadata.clone().into_builder(Some(base.metadata_location.clone()));
    let builder = match schema {
        Some(schema) => builder.add_current_schema(schema.as_ref().clone())?,
        None => builder,
    };
    let builder = builder
        .set_branch_snapshot(snapshot.clone(), MAIN_BRANCH)?
        .set_properties(HashMap::from([(KEY.to_owned(), marker.to_owned())]))?
        .remove_snapshots(old);
    old.iter().fold(builder, |builder, id| builder.remove_statistics(*id).remove_partition_statistics(*id)).build()
}

/// The manifests of the new snapshot: those of its parent that still hold files, small ones merged, and that of the new files.
async fn manifests(
    metadata: &TableMetadata,
    storage: &Storage,
    commit: &Commit<'_>,
    snapshot_id: i64,
    prefix: &str,
    files: &mut Vec<String>,
) -> Result<Vec<ManifestFile>> {
    let file_io = storage.file_io();
    let failed = |e| classify(e, format!("write the commit of `{}`", commit.name));
    let mut manifests = match metadata.current_snapshot() {
        Some(parent) => manifests_of(parent, metadata, file_io).await.map_err(failed)?,
        None => Vec::new(),
    };
    manifests.retain(|manifest| manifest.has_added_files() || manifest.has_existing_files());
    let positions = to_merge(&manifests, metadata);
    if !positions.is_empty() {
        let small: Vec<ManifestFile> =
            positions.iter().filter_map(|position| manifests.get(*position).cloned()).collect();
        let location = format!("{prefix}-m1.avro");
        files.push(location.clone());
        let writer = writer(metadata, file_io, &location, snapshot_id).map_err(failed)?;
        match write_merged(&small, file_io, metadata.default_partition_type(), writer).await {
            Ok(merged) => manifests = replace(manifests, &positions, merged),
            Err(error) => {
                // Merging saves time, no more: a manifest that iceberg cannot rewrite must not stop a pass.
                tracing::warn!(table = %commit.name, %error, "small manifests were not merged");
                storage.discard(&[location]).await;
            }
        }
    }
    if !commit.files.is_empty() {
        let location = format!("{prefix}-m0.avro");
        files.push(location.clone());
        let writer = writer(metadata, file_io, &location, snapshot_id).map_err(failed)?;
        manifests.push(write_added(commit.files, writer).await.map_err(failed)?);
    }
    Ok(manifests)
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

fn new_snapshot_id(metadata: &TableMetadata) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let id = i64::from_be_bytes((high ^ low).to_be_bytes()) & i64::MAX;
        if id != 0 && metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}
