//! Manifests of a commit: the new one, and small old ones merged, so that a table of many passes is planned from few files.
//!
//! A snapshot of a table that only grows refers to every manifest that was ever written. Merging goes in tiers, as in a log-structured tree: as
//! soon as [`MIN_COUNT`] manifests hold about the same number of files, they become one. Each entry is rewritten a few times in
//! its life, and a table has some dozen manifests, however many passes it saw.

use iceberg::ErrorKind;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataFile, DataFileBuilder, Literal, ManifestContentType, ManifestFile, ManifestWriter, ManifestWriterBuilder,
    NestedFieldRef, PrimitiveLiteral, PrimitiveType, Struct, StructType, TableMetadata, Type,
};

/// Iceberg's switch for merging.
const ENABLED: &str = "commit.manifest-merge.enabled";
/// Iceberg's property for the number of manifests that are merged, and its value here where the table does not say.
const MIN_COUNT: (&str, usize) = ("commit.manifest.min-count-to-merge", 16);
/// Files in a manifest that is large enough. While manifests are merged, all their entries are in memory, some kilobytes each.
const ENOUGH_FILES: u64 = 1024;

/// A writer of data manifests of the current schema and partition spec.
pub fn writer(
    metadata: &TableMetadata,
    file_io: &FileIO,
    location: &str,
    snapshot_id: i64,
) -> iceberg::Result<ManifestWriter> {
    let output = file_io.new_output(location)?;
    let (schema, spec) = (metadata.current_schema().clone(), metadata.default_partition_spec().as_ref().clone());
    Ok(ManifestWriterBuilder::new(output, Some(snapshot_id), schema, spec).build_v2_data())
}

/// Writes the manifest of new data files.
pub async fn write_added(files: &[DataFile], mut writer: ManifestWriter) -> iceberg::Result<ManifestFile> {
    for file in files {
        // A negative sequence number is inherited from the manifest list when the snapshot is read.
        writer.add_file(file.clone(), -1)?;
    }
    writer.write_manifest_file().await
}

/// Writes one manifest with the live files of `small` ones, each with the snapshot and the sequence numbers that it had.
pub async fn write_merged(
    small: &[ManifestFile],
    file_io: &FileIO,
    types: &StructType,
    mut writer: ManifestWriter,
) -> iceberg::Result<ManifestFile> {
    for manifest in small {
        let loaded = manifest.load_manifest(file_io).await?;
        for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
            let added_by = entry.snapshot_id().unwrap_or(manifest.added_snapshot_id);
            let sequence_number = entry.sequence_number().unwrap_or(manifest.sequence_number);
            writer.add_existing_file(
                with_partition_of(entry.data_file(), types)?,
                added_by,
                sequence_number,
                entry.file_sequence_number,
            )?;
        }
    }
    writer.write_manifest_file().await
}

/// The file with partition values as the table's types hold them: a column that it is partitioned by may have become wider since.
fn with_partition_of(file: &DataFile, types: &StructType) -> iceberg::Result<DataFile> {
    let widened = |(value, field): (Option<&Literal>, &NestedFieldRef)| match (value, &*field.field_type) {
        (Some(Literal::Primitive(PrimitiveLiteral::Int(int))), Type::Primitive(PrimitiveType::Long)) => {
            Some(Literal::long(*int))
        }
        (value, _) => value.cloned(),
    };
    let partition: Struct = file.partition().iter().zip(types.fields()).map(widened).collect();
    if partition == *file.partition() {
        return Ok(file.clone());
    }
    let mut copy = DataFileBuilder::default();
    copy.content(file.content_type())
        .file_path(file.file_path().to_owned())
        .file_format(file.file_format())
        .partition(partition)
        .record_count(file.record_count())
        .file_size_in_bytes(file.file_size_in_bytes())
        .column_sizes(file.column_sizes().clone())
        .value_counts(file.value_counts().clone())
        .null_value_counts(file.null_value_counts().clone())
        .nan_value_counts(file.nan_value_counts().clone())
        .lower_bounds(file.lower_bounds().clone())
        .upper_bounds(file.upper_bounds().clone())
        .key_metadata(file.key_metadata().map(<[u8]>::to_vec))
        .split_offsets(file.split_offsets().map(<[i64]>::to_vec))
        .equality_ids(file.equality_ids());
    if let Some(id) = file.sort_order_id() {
        copy.sort_order_id(id);
    }
    copy.build().map_err(|error| iceberg::Error::new(ErrorKind::DataInvalid, error.to_string()))
}

/// Which of `manifests` are to become one, by position; none where there are few of a size.
pub fn to_merge(manifests: &[ManifestFile], metadata: &TableMetadata) -> Vec<usize> {
    let properties = metadata.properties();
    if properties.get(ENABLED).map(String::as_str) == Some("false") {
        return Vec::new();
    }
    let min_count = properties.get(MIN_COUNT.0).and_then(|text| text.parse().ok()).unwrap_or(MIN_COUNT.1).max(2);
    let spec = metadata.default_partition_spec_id();
    let files: Vec<Option<u64>> = manifests.iter().map(|manifest| mergeable_files(manifest, spec)).collect();
    full_tier(&files, min_count)
}

/// The manifests after those at `positions` have become one.
pub fn replace<M>(manifests: Vec<M>, positions: &[usize], merged: M) -> Vec<M> {
    let kept = manifests.into_iter().enumerate().filter(|(position, _)| !positions.contains(position));
    kept.map(|(_, manifest)| manifest).chain([merged]).collect()
}

/// Live files of a manifest that may be rewritten: data of the current partition spec, not encrypted, counted.
fn mergeable_files(manifest: &ManifestFile, spec: i32) -> Option<u64> {
    let ours = manifest.content == ManifestContentType::Data
        && manifest.partition_spec_id == spec
        && manifest.key_metadata.is_none();
    let live = manifest.added_files_count.zip(manifest.existing_files_count);
    live.filter(|_| ours).map(|(added, existing)| u64::from(added) + u64::from(existing))
}

/// Positions of the first tier that is full. A tier holds the manifests between two powers of `min_count` files; any two that are not large
/// enough fit into one.
fn full_tier(files: &[Option<u64>], min_count: usize) -> Vec<usize> {
    let factor = u64::try_from(min_count).unwrap_or(u64::MAX);
    let mut low = 0;
    let mut high = factor.min(ENOUGH_FILES);
    while low < ENOUGH_FILES {
        let tier =
            files.iter().enumerate().filter(|(_, files)| files.is_some_and(|files| (low..high).contains(&files)));
        let tier: Vec<usize> = tier.map(|(position, _)| position).collect();
        if tier.len() >= min_count {
            return at_most_enough(&tier, files);
        }
        (low, high) = (high, high.saturating_mul(factor).min(ENOUGH_FILES));
    }
    Vec::new()
}

/// As many of a tier as make one manifest that is large enough.
fn at_most_enough(tier: &[usize], files: &[Option<u64>]) -> Vec<usize> {
    let mut sum: u64 = 0;
    let fits = |position: &&usize| {
        sum = sum.saturating_add(files.get(**position).copied().flatten().unwrap_or(0));
        sum <= 2 * ENOUGH_FILES
    };
    tier.iter().take_while(fits).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Commits one after another, each of `files` files; returns the manifests' sizes and the number of entries that were rewritten.
    fn after(commits: usize, files: u64, min_count: usize) -> (Vec<u64>, u64) {
        let mut manifests: Vec<Option<u64>> = Vec::new();
        let mut rewritten = 0;
        for _ in 0..commits {
            let merged = full_tier(&manifests, min_count);
            if !merged.is_empty() {
                let sum: u64 = merged.iter().filter_map(|position| manifests[*position]).sum();
                rewritten += sum;
                manifests = replace(manifests, &merged, Some(sum));
            }
            manifests.push(Some(files));
        }
        (manifests.into_iter().flatten().collect(), rewritten)
    }

    #[test]
    fn a_year_of_passes_leaves_few_manifests() {
        let (manifests, rewritten) = after(35_000, 1, MIN_COUNT.1);
        assert_eq!(manifests.iter().sum::<u64>(), 35_000);
        assert!(manifests.len() < 80, "{manifests:?}");
        assert!(rewritten < 4 * 35_000, "{rewritten}");
    }

    #[test]
    fn foreign_manifests_stay_where_they_are() {
        let mut files = vec![Some(1); 15];
        files.push(None);
        assert_eq!(full_tier(&files, 16), Vec::<usize>::new());
        files.push(Some(1));
        assert_eq!(full_tier(&files, 16), (0..15).chain([16]).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn a_merge_is_bounded_and_worth_it(files in proptest::collection::vec(proptest::option::of(0_u64..20_000), 0..200), min_count in 2_usize..40) {
            let merged = full_tier(&files, min_count);
            let small = files.iter().flatten().filter(|files| **files < ENOUGH_FILES).count();
            // As many tiers as there can be powers of two, none of them full.
            prop_assert!(!merged.is_empty() || small < min_count * 11, "no progress over {} small manifests", small);
            let sum: u64 = merged.iter().map(|position| files[*position].unwrap()).sum();
            prop_assert!(merged.len() != 1 && merged.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(sum <= 2 * ENOUGH_FILES);
        }
    }
}
