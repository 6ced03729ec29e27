//! Files of ours that nothing refers to: what kill -9 and power cuts leave behind (protocol.md "Orphans").
//!
//! A file counts only if its name is ours, it is old enough that no commit can still be about to use it, and no snapshot and no metadata file
//! that is there refers to it. Names alone are other writers' too, so ours bear a UUID of version 7.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use iceberg::io::FileIO;
use iceberg::spec::{Snapshot, TableMetadata};
use uuid::Uuid;

use super::{Target, classify, is_storages, manifests_of};
use crate::error::Result;
use crate::storage::{Storage, Stored, same_spelling};
use crate::watermark::{KEY, Marker};

/// No commit is under way for so long.
pub const MIN_AGE: Duration = Duration::from_secs(3 * 24 * 60 * 60);

impl Target {
    /// Files below the table's folder that are ours, older than [`MIN_AGE`] at `now`, and referred to by nothing; by path.
    pub async fn orphans(&self, storage: &Storage, now: SystemTime) -> Result<Vec<Stored>> {
        let file_io = storage.file_io();
        let files = storage.list(self.metadata.location().trim_end_matches('/')).await?;
        let failed = |e| classify(e, format!("look for what `{}` refers to", self.metadata.location()));
        let mut referred = References::default();
        referred.of_table(file_io, &self.metadata).await.map_err(failed)?;
        referred.files.insert(same_spelling(&self.metadata_location));
        let mut orphans = Vec::new();
        for file in &files {
            if !file.location.ends_with(".metadata.json") {
                continue;
            }
            let location = &file.location;
            let is_known = referred.has(location);
            match TableMetadata::read_from(file_io, location).await {
                Ok(metadata) if !is_known && is_rejected(&metadata, &self.metadata) => orphans.push(file.clone()),
                // An old version, or somebody else's: what it refers to stays.
                Ok(metadata) => referred.of_table(file_io, &metadata).await.map_err(failed)?,
                Err(error) if is_storages(&error) => return Err(failed(error)),
                Err(error) => tracing::warn!(file = %location, %error, "is no metadata file, left alone"),
            }
        }
        orphans.extend(files.into_iter().filter(|file| is_ours(&file.location) && !referred.has(&file.location)));
        orphans.retain(|file| now.duration_since(file.modified).is_ok_and(|age| age >= MIN_AGE));
        orphans.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(orphans)
    }
}

/// What snapshots and metadata files refer to.
#[derive(Debug, Default)]
struct References {
    files: HashSet<String>,
    snapshots: HashSet<i64>,
}

impl References {
    fn has(&self, location: &str) -> bool {
        self.files.contains(&same_spelling(location))
    }

    fn add(&mut self, location: &str) -> bool {
        self.files.insert(same_spelling(location))
    }

    async fn of_table(&mut self, file_io: &FileIO, metadata: &TableMetadata) -> iceberg::Result<()> {
        for entry in metadata.metadata_log() {
            self.add(&entry.metadata_file);
        }
        for file in metadata.statistics_iter() {
            self.add(&file.statistics_path);
        }
        for file in metadata.partition_statistics_iter() {
            self.add(&file.statistics_path);
        }
        for snapshot in metadata.snapshots() {
            self.of_snapshot(file_io, metadata, snapshot).await?;
        }
        Ok(())
    }

    async fn of_snapshot(
        &mut self,
        file_io: &FileIO,
        metadata: &TableMetadata,
        snapshot: &Snapshot,
    ) -> iceberg::Result<()> {
        if !self.snapshots.insert(snapshot.snapshot_id()) || !self.add(snapshot.manifest_list()) {
            return Ok(());
        }
        // What an old version of the metadata names may have expired since.
        if !file_io.exists(snapshot.manifest_list()).await? {
            return Ok(());
        }
        for manifest in manifests_of(snapshot, metadata, file_io).await? {
            if self.add(&manifest.manifest_path) && file_io.exists(&manifest.manifest_path).await? {
                for entry in manifest.load_manifest(file_io).await?.entries() {
                    self.add(entry.file_path());
                }
            }
        }
        Ok(())
    }
}

/// Whether a file is named as only we name files: data files, manifests and manifest lists of a commit.
pub(super) fn is_ours(location: &str) -> bool {
    let name = location.rsplit('/').next().unwrap_or(location);
    let is_file = name.ends_with(".parquet") || name.ends_with(".tmp");
    let commit = if let Some(rest) = name.strip_prefix("k2-offload-").filter(|_| is_file) {
        rest.get(..36)
    } else if let Some(rest) = name.strip_prefix("snap-").and_then(|rest| rest.strip_suffix(".avro")) {
        rest.len().checked_sub(36).and_then(|at| rest.get(at..))
    } else if name.ends_with("-m0.avro") || name.ends_with("-m1.avro") {
        name.get(..36)
    } else {
        None
    };
    commit.and_then(|text| Uuid::parse_str(text).ok()).is_some_and(|commit| commit.get_version_num() == 7)
}

/// Whether a metadata file is that of a commit of ours that another one came before: its snapshot has a sequence number that another has.
fn is_rejected(attempt: &TableMetadata, table: &TableMetadata) -> bool {
    let Some(snapshot) = attempt.current_snapshot().filter(|_| attempt.uuid() == table.uuid()) else { return false };
    let ours = snapshot.summary().additional_properties.get(KEY).is_some_and(|text| Marker::decode(text).is_ok());
    ours && table.snapshots().any(|other| {
        other.sequence_number() == snapshot.sequence_number() && other.snapshot_id() != snapshot.snapshot_id()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_count() {
        let (ours, theirs) = ("01a1fe8d-f1c6-7330-ade9-30c97edc73ae", "6f1e7b1c-8a43-4bd5-9c40-0d2d7f7f7a11");
        for (name, expected) in [
            (format!("k2-offload-{ours}-0.parquet"), true),
            (format!("k2-offload-{theirs}-0.parquet"), false),
            (format!("k2-offload-{ours}.tmp"), true),
            (format!("snap-123-0-{ours}.avro"), true),
            (format!("snap-123-0-{theirs}.avro"), false),
            (format!("{ours}-2-m1.avro"), true),
            (format!("{theirs}-m0.avro"), false),
            (format!("{ours}.parquet"), false),
            ("00000-0-x.parquet".to_owned(), false),
            ("k2-offload-ü-0.parquet".to_owned(), false),
            ("snap-.avro".to_owned(), false),
        ] {
            assert_eq!(is_ours(&format!("/w/t/{name}")), expected, "{name}");
        }
    }
}
