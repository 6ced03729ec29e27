//! Old snapshots: which ones a commit lets go, and which files nothing refers to once it has landed.
//!
//! The rules are Iceberg's own: age and number by branch (`history.expire.*`), tags stay, and so does everything of a table with `gc.enabled =
//! false`. Two snapshots always stay: the new one, with the newest marker, and its parent, on which an attempt of unknown outcome is
//! traced (protocol.md P14). A file goes only if no snapshot that is left refers to it.
//!
//! Crash safety: snapshots are let go by the commit's own swap; files are deleted after it. Death in between leaves files that
//! nothing refers to.

use std::collections::{HashMap, HashSet};

use iceberg::io::FileIO;
use iceberg::spec::{MAIN_BRANCH, ManifestFile, ManifestStatus, Snapshot, SnapshotRetention, TableMetadata};

use crate::storage::same_spelling;
use crate::target::{MAX_SNAPSHOT_AGE_MS, ancestors, manifests_of, references};

const GC_ENABLED: &str = "gc.enabled";
const MIN_SNAPSHOTS_TO_KEEP: (&str, usize) = ("history.expire.min-snapshots-to-keep", 1);
/// The new snapshot and its parent.
const ALWAYS_KEPT: usize = 2;

/// Snapshots that may go, given the metadata with the new snapshot in it and this host's clock, milliseconds since 1970. A property that does not parse
/// keeps them all.
pub fn expired(metadata: &TableMetadata, now_ms: i64) -> serde_json::Result<Vec<i64>> {
    let properties = metadata.properties();
    let max_age = properties.get(MAX_SNAPSHOT_AGE_MS.0).map_or(Ok(MAX_SNAPSHOT_AGE_MS.1), |text| text.parse());
    let min_count = properties.get(MIN_SNAPSHOTS_TO_KEEP.0).map_or(Ok(MIN_SNAPSHOTS_TO_KEEP.1), |text| text.parse());
    let (Ok(max_age), Ok(min_count)) = (max_age, min_count) else { return Ok(Vec::new()) };
    let too_old = |snapshot: &Snapshot, max_age: i64| snapshot.timestamp_ms() < now_ms.saturating_sub(max_age);
    if properties.get(GC_ENABLED).map(String::as_str) == Some("false")
        || !metadata.snapshots().any(|snapshot| too_old(snapshot, max_age))
    {
        return Ok(Vec::new());
    }
    let mut referred = HashSet::new();
    let mut kept = HashSet::new();
    for (name, reference) in references(metadata)? {
        referred.insert(reference.snapshot_id);
        kept.insert(reference.snapshot_id);
        // A tag stands for its snapshot alone.
        let SnapshotRetention::Branch { min_snapshots_to_keep, max_snapshot_age_ms, .. } = reference.retention else {
            continue;
        };
        referred.extend(ancestors(metadata, Some(reference.snapshot_id)).map(Snapshot::snapshot_id));
        let own_count = min_snapshots_to_keep.and_then(|count| usize::try_from(count).ok()).unwrap_or(min_count);
        let count = if name == MAIN_BRANCH { own_count.max(ALWAYS_KEPT) } else { own_count };
        let age = max_snapshot_age_ms.unwrap_or(max_age);
        let branch = ancestors(metadata, Some(reference.snapshot_id)).enumerate();
        kept.extend(
            branch
                .take_while(|(n, snapshot)| *n < count || !too_old(snapshot, age))
                .map(|(_, snapshot)| snapshot.snapshot_id()),
        );
    }
    let goes = |snapshot: &Snapshot| match referred.contains(&snapshot.snapshot_id()) {
        true => !kept.contains(&snapshot.snapshot_id()),
        // On no branch, because it was rolled back: only its age counts.
        false => too_old(snapshot, max_age),
    };
    Ok(metadata.snapshots().filter(|snapshot| goes(snapshot)).map(|snapshot| snapshot.snapshot_id()).collect())
}

/// Files that `old` refers to and `new`, which has fewer snapshots, does not: manifest lists, manifests, statistics, and data files that were
/// deleted, or rolled back, in a snapshot that is gone. Files outside the table's folder are not ours to delete.
pub async fn unreferenced(file_io: &FileIO, old: &TableMetadata, new: &TableMetadata) -> iceberg::Result<Vec<String>> {
    let gone: Vec<&Snapshot> = old
        .snapshots()
        .filter(|snapshot| new.snapshot_by_id(snapshot.snapshot_id()).is_none())
        .map(AsRef::as_ref)
        .collect();
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let history: HashSet<i64> = ancestors(old, old.current_snapshot_id()).map(Snapshot::snapshot_id).collect();
    let only_old = gone.iter().all(|snapshot| history.contains(&snapshot.snapshot_id()));
    let live = live_manifests(file_io, new, only_old).await?;
    let mut dead = HashMap::new();
    for snapshot in &gone {
        for manifest in manifests_of(snapshot, old, file_io).await? {
            if !live.contains_key(&same_spelling(&manifest.manifest_path)) {
                dead.insert(same_spelling(&manifest.manifest_path), manifest);
            }
        }
    }
    let mut files: Vec<String> = gone.iter().map(|snapshot| snapshot.manifest_list().to_owned()).collect();
    files.extend(statistics(old).difference(&statistics(new)).cloned());
    files.extend(unreferenced_data(file_io, new, &gone, &history, &live, &dead).await?);
    files.extend(dead.into_values().map(|manifest| manifest.manifest_path));
    let folder = format!("{}/", same_spelling(new.location()));
    files.retain(|file| same_spelling(file).starts_with(&folder));
    Ok(files)
}

/// Paths of the statistics files of all snapshots.
fn statistics(metadata: &TableMetadata) -> HashSet<String> {
    let of_partitions = metadata.partition_statistics_iter().map(|file| file.statistics_path.clone());
    metadata.statistics_iter().map(|file| file.statistics_path.clone()).chain(of_partitions).collect()
}

type Manifests = HashMap<String, ManifestFile>;

/// The manifests of all snapshots. Where only the oldest of the current history have gone, its oldest and its newest snapshot stand for those
/// between them: a manifest that was dropped never comes back. A snapshot that forked off later may have what only those between have.
async fn live_manifests(file_io: &FileIO, metadata: &TableMetadata, only_old: bool) -> iceberg::Result<Manifests> {
    if !only_old {
        return read_manifests(file_io, metadata, metadata.snapshots().map(AsRef::as_ref)).await;
    }
    let main: Vec<&Snapshot> = ancestors(metadata, metadata.current_snapshot_id()).collect();
    let on_main: HashSet<i64> = main.iter().map(|snapshot| snapshot.snapshot_id()).collect();
    let others = metadata
        .snapshots()
        .map(AsRef::as_ref)
        .filter(|snapshot: &&Snapshot| !on_main.contains(&snapshot.snapshot_id()));
    read_manifests(file_io, metadata, main.first().into_iter().chain(main.last()).copied().chain(others)).await
}

async fn read_manifests<'a>(
    file_io: &FileIO,
    metadata: &TableMetadata,
    snapshots: impl Iterator<Item = &'a Snapshot>,
) -> iceberg::Result<Manifests> {
    let mut manifests = HashMap::new();
    for snapshot in snapshots {
        let of_snapshot = manifests_of(snapshot, metadata, file_io).await?;
        manifests.extend(of_snapshot.into_iter().map(|manifest| (same_spelling(&manifest.manifest_path), manifest)));
    }
    Ok(manifests)
}

/// Data and delete files that only snapshots that are gone refer to; `history` was the current one before they went. A table that is only appended to has none, and then nothing is read.
async fn unreferenced_data(
    file_io: &FileIO,
    new: &TableMetadata,
    gone: &[&Snapshot],
    history: &HashSet<i64>,
    live: &Manifests,
    dead: &Manifests,
) -> iceberg::Result<HashSet<String>> {
    let just_gone = |id: i64| gone.iter().any(|snapshot| snapshot.snapshot_id() == id);
    let rolled_back = |id: i64| just_gone(id) && !history.contains(&id);
    let deletes = |manifest: &&ManifestFile| {
        manifest.deleted_files_count != Some(0) && new.snapshot_by_id(manifest.added_snapshot_id).is_none()
    };
    let deleted_in_dead = dead.values().filter(|manifest| deletes(manifest) || rolled_back(manifest.added_snapshot_id));
    let deleted_in_live = live.values().filter(|manifest| deletes(manifest) && just_gone(manifest.added_snapshot_id));
    let mut candidates = HashSet::new();
    for manifest in deleted_in_dead.chain(deleted_in_live) {
        for entry in manifest.load_manifest(file_io).await?.entries() {
            let by = entry.snapshot_id().unwrap_or(manifest.added_snapshot_id);
            let is_deleted = entry.status() == ManifestStatus::Deleted && new.snapshot_by_id(by).is_none();
            if is_deleted || (entry.status() == ManifestStatus::Added && rolled_back(by)) {
                candidates.insert(same_spelling(entry.file_path()));
            }
        }
    }
    if candidates.is_empty() {
        return Ok(candidates);
    }
    for manifest in read_manifests(file_io, new, new.snapshots().map(AsRef::as_ref)).await?.values() {
        for entry in manifest.load_manifest(file_io).await?.entries().iter().filter(|entry| entry.is_alive()) {
            candidates.remove(&same_spelling(entry.file_path()));
        }
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use iceberg::TableCreation;
    use iceberg::spec::{Operation, SnapshotReference, Summary, TableMetadataBuilder};
    use proptest::prelude::*;

    use super::*;
    use crate::schema::{Column, iceberg_schema};

    /// A table with snapshots 1, 2, .. `gaps` milliseconds after each other, of which `tagged` bear a tag.
    fn table(gaps: &[i64], tagged: &[i64], properties: &[(&str, &str)]) -> TableMetadata {
        let creation = TableCreation::builder()
            .name("t".into())
            .location("file:///w/t".into())
            .schema(iceberg_schema(&[Column::map("ts", "DateTime64(3)", None).unwrap()]).unwrap())
            .properties(
                properties
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect::<HashMap<_, _>>(),
            )
            .build();
        let mut metadata = TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata;
        for (id, gap) in (1_i64..).zip(gaps) {
            let snapshot = Snapshot::builder()
                .with_snapshot_id(id)
                .with_parent_snapshot_id(metadata.current_snapshot_id())
                .with_sequence_number(metadata.next_sequence_number())
                .with_timestamp_ms(metadata.last_updated_ms() + gap)
                .with_manifest_list("file:///w/t/metadata/list.avro")
                .with_summary(Summary { operation: Operation::Append, additional_properties: HashMap::new() })
                .with_schema_id(metadata.current_schema_id())
                .build();
            let mut builder = metadata.into_builder(None).set_branch_snapshot(snapshot, MAIN_BRANCH).unwrap();
            if tagged.contains(&id) {
                let retention = SnapshotRetention::Tag { max_ref_age_ms: None };
                builder = builder.set_ref(&format!("tag{id}"), SnapshotReference::new(id, retention)).unwrap();
            }
            metadata = builder.build().unwrap().metadata;
        }
        metadata
    }

    proptest! {
        #[test]
        fn only_what_is_old_and_not_referred_to_goes(
            gaps in proptest::collection::vec(1_i64..100, 1..30),
            tagged in proptest::collection::vec(1_i64..30, 0..3),
            max_age in 0_i64..1000,
            min_count in 1_usize..6,
        ) {
            let properties = [(MAX_SNAPSHOT_AGE_MS.0, &*max_age.to_string()), (MIN_SNAPSHOTS_TO_KEEP.0, &*min_count.to_string())];
            let metadata = table(&gaps, &tagged, &properties);
            let newest = metadata.current_snapshot().unwrap();
            let gone = expired(&metadata, newest.timestamp_ms()).unwrap();
            for snapshot in metadata.snapshots() {
                let id = snapshot.snapshot_id();
                let behind = usize::try_from(newest.snapshot_id() - id).unwrap();
                let is_old = snapshot.timestamp_ms() < newest.timestamp_ms() - max_age;
                let stays = !is_old || tagged.contains(&id) || behind < min_count.max(2);
                prop_assert_eq!(gone.contains(&id), !stays, "snapshot {}", id);
            }
        }
    }

    #[test]
    fn a_table_without_garbage_collection_keeps_everything() {
        let of = |value: &str| {
            let metadata = table(&[10, 10, 10, 10], &[], &[(MAX_SNAPSHOT_AGE_MS.0, "0"), (GC_ENABLED, value)]);
            expired(&metadata, metadata.last_updated_ms()).unwrap().len()
        };
        assert_eq!((of("true"), of("false")), (2, 0));
    }
}
