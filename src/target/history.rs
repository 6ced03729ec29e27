//! What a table's metadata says of our commits: pure (protocol.md P14, P16).

use std::collections::HashMap;

use iceberg::spec::{Snapshot, SnapshotRef, SnapshotReference, TableMetadata};
use serde::Deserialize;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::watermark::{KEY, Marker};

/// How far our commits have filled the table, as far as the metadata alone can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nobody of ours has committed and there are no foreign rows.
    None,
    /// Our newest commit is part of the current history.
    Marker(Marker),
    /// History was cut above our newest commit: only the rows themselves can show that it was not rolled back.
    Cut(Marker),
    /// Our newest commit is no longer part of the current history.
    RolledBack(Box<Rollback>),
    /// Nobody of ours has committed, but there are rows.
    Foreign,
}

/// A table that was rolled back, on purpose or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// Our newest commit, which is gone.
    pub lost: Marker,
    /// Our newest commit that is left, `None` where the table's history names none.
    pub left: Option<Marker>,
}

/// What became of a commit whose outcome was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is part of the current history.
    Landed,
    /// The table is as it was; the commit may still land, or may be repeated.
    Undecided,
    /// Somebody else's commit stands on the base: ours can never land.
    Rejected,
    /// History was cut; nobody can tell.
    Untraceable,
}

impl Fate {
    /// The same where a repetition found another location than the commit was built on: locations are never used twice, so that no attempt on
    /// the old one can land any more.
    pub fn of_stale(self) -> Self {
        if self == Self::Undecided { Self::Rejected } else { self }
    }
}

/// A snapshot and its ancestors, down to the first or to where history was cut.
pub fn ancestors(metadata: &TableMetadata, snapshot_id: Option<i64>) -> impl Iterator<Item = &Snapshot> {
    std::iter::successors(snapshot_id.and_then(|id| metadata.snapshot_by_id(id)), |snapshot| {
        snapshot.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id))
    })
    .map(AsRef::as_ref)
    // A table without snapshots of its own in a loop is damaged; no walk is longer than their number.
    .take(metadata.snapshots().len())
}

/// The current history, newest first.
fn ancestry(metadata: &TableMetadata) -> impl Iterator<Item = &Snapshot> {
    ancestors(metadata, metadata.current_snapshot_id())
}

/// Whether a walk that ended at `oldest` saw the whole history. Expiry leaves a parent that is missing, or null (PyIceberg): the first
/// snapshot of a v2 table has sequence number 1.
fn is_first(oldest: &Snapshot) -> bool {
    oldest.parent_snapshot_id().is_none() && oldest.sequence_number() <= 1
}

/// Branches and tags. iceberg 0.10 does not hand them out, its JSON does.
pub fn references(metadata: &TableMetadata) -> serde_json::Result<HashMap<String, SnapshotReference>> {
    #[derive(Deserialize)]
    struct References {
        #[serde(default)]
        refs: HashMap<String, SnapshotReference>,
    }
    let References { refs } = serde_json::from_slice(&serde_json::to_vec(metadata)?)?;
    Ok(refs)
}

fn marker_of(snapshot: &Snapshot) -> Result<Option<Marker>> {
    snapshot.summary().additional_properties.get(KEY).map(|text| Marker::decode(text)).transpose()
}

/// Our markers in the current history, from the newest to the oldest.
pub fn markers(metadata: &TableMetadata) -> Result<Vec<Marker>> {
    ancestry(metadata).filter_map(|snapshot| marker_of(snapshot).transpose()).collect()
}

/// Whether a snapshot, of the current history or not, is that of a commit.
fn has_commit(metadata: &TableMetadata, commit: Uuid) -> Result<bool> {
    for snapshot in metadata.snapshots() {
        if marker_of(snapshot)?.is_some_and(|marker| marker.commit_id == commit) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds our newest marker, or what stands in its place.
pub fn find(metadata: &TableMetadata) -> Result<Found> {
    let property = metadata.properties().get(KEY).map(|text| Marker::decode(text)).transpose()?;
    let mut newest = None;
    let mut oldest = None;
    for snapshot in ancestry(metadata) {
        oldest = Some(snapshot);
        newest = marker_of(snapshot)?;
        if newest.is_some() {
            break;
        }
    }
    Ok(match (newest, property) {
        (Some(newest), None) => Found::Marker(newest),
        (Some(newest), Some(property)) if newest.commit_id == property.commit_id => Found::Marker(newest),
        // The property is set with every marker: the walk down to an older one would have met its commit.
        (left @ Some(_), Some(lost)) => Found::RolledBack(Box::new(Rollback { lost, left })),
        (None, Some(lost)) if oldest.is_none_or(is_first) || has_commit(metadata, lost.commit_id)? => {
            Found::RolledBack(Box::new(Rollback { lost, left: None }))
        }
        (None, Some(property)) => Found::Cut(property),
        (None, None) if metadata.current_snapshot().is_some_and(|snapshot| holds_rows(snapshot)) => Found::Foreign,
        (None, None) => Found::None,
    })
}

/// Rows of a table less those that position deletes took, as its newest snapshot says; `None` where it does not.
pub fn live_records(metadata: &TableMetadata) -> Option<u64> {
    let Some(snapshot) = metadata.current_snapshot() else { return Some(0) };
    let summary = &snapshot.summary().additional_properties;
    let deleted = summary.get("total-position-deletes").map_or(Ok(0), |text| text.parse()).ok()?;
    summary.get("total-records")?.parse::<u64>().ok()?.checked_sub(deleted)
}

/// When the commit of a marker was made, milliseconds since 1970; `None` once its snapshot has expired.
pub fn committed_ms(metadata: &TableMetadata, marker: &Marker) -> Option<i64> {
    let id = marker.commit_id.to_string();
    let is_it = |snapshot: &&SnapshotRef| {
        snapshot.summary().additional_properties.get(KEY).is_some_and(|text| text.contains(&id))
    };
    metadata.snapshots().find(is_it).map(|snapshot| snapshot.timestamp_ms())
}

/// Rows that others deleted, and that no reset has acknowledged: so many fewer are there than our commits left.
pub fn deleted_by_others(metadata: &TableMetadata, newest: &Marker) -> Option<u64> {
    let missing = newest.total_records?.checked_sub(live_records(metadata)?)?;
    (missing > 0).then_some(missing)
}

/// A snapshot without a total may hold rows.
fn holds_rows(snapshot: &Snapshot) -> bool {
    snapshot.summary().additional_properties.get("total-records").is_none_or(|total| total != "0")
}

impl Rollback {
    /// The error that says so, with the two ways on.
    pub fn refuse(&self) -> Error {
        let Self { lost, left } = self;
        let time = |marker: &Marker| marker.source.cursor.kind.format(marker.watermark);
        let keep = left.as_ref().map_or("above the rows that the table still holds".to_owned(), time);
        Error::refused(format!("the target was rolled back: commit {} (up to {}) is gone from it", lost.commit_id, time(lost))).hint(format!(
            "either roll the table forward to the snapshot of that commit (its `k2-offload.marker` says so), or keep the rollback with \
             `k2-offload watermark reset --table T --to TIMESTAMP`, {keep}: later passes offload from there what the source still holds"
        ))
    }
}

/// The error of a target that others filled (P17).
pub fn refuse_foreign() -> Error {
    Error::refused("the target holds rows that k2-offload did not write, and no marker of ours").hint(
        "offload into a new target, or take this one over with `k2-offload watermark reset --table T --to TIMESTAMP`, above all its rows",
    )
}

/// What became of `commit`, planned on the snapshot `base`.
pub fn fate(metadata: &TableMetadata, base: Option<i64>, commit: Uuid) -> Result<Fate> {
    // Also a commit that was rolled back since has landed: its snapshot refers to its files. What becomes of it is for `find` to say.
    if has_commit(metadata, commit)? {
        return Ok(Fate::Landed);
    }
    if metadata.current_snapshot_id() == base {
        return Ok(Fate::Undecided);
    }
    let mut oldest = None;
    for snapshot in ancestry(metadata) {
        if Some(snapshot.snapshot_id()) == base {
            return Ok(Fate::Rejected);
        }
        oldest = Some(snapshot);
    }
    Ok(if base.is_none() && oldest.is_some_and(is_first) { Fate::Rejected } else { Fate::Untraceable })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use iceberg::TableCreation;
    use iceberg::spec::{MAIN_BRANCH, Operation, SnapshotReference, SnapshotRetention, Summary, TableMetadataBuilder};

    use super::*;
    use crate::schema::{Column, iceberg_schema};
    use crate::watermark::tests::marker;

    /// A table with the given commits in a row: `Some(n)` is ours with commit-id and snapshot id n, `None` a foreign one.
    pub(crate) fn table(commits: &[Option<u128>]) -> TableMetadata {
        let creation = TableCreation::builder()
            .name("t".into())
            .location("file:///w/t".into())
            .schema(iceberg_schema(&[Column::map("ts", "DateTime64(3)", None).unwrap()]).unwrap())
            .build();
        let mut metadata = TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata;
        for (number, commit) in (1_i64..).zip(commits) {
            let mut properties = HashMap::from([("total-records".to_owned(), "5".to_owned())]);
            if let Some(commit) = commit {
                properties.insert(KEY.to_owned(), marker(*commit, 1000).encode().unwrap());
            }
            let snapshot = Snapshot::builder()
                .with_snapshot_id(number)
                .with_parent_snapshot_id(metadata.current_snapshot_id())
                .with_sequence_number(metadata.next_sequence_number())
                .with_timestamp_ms(metadata.last_updated_ms())
                .with_manifest_list("file:///w/t/metadata/list.avro")
                .with_summary(Summary { operation: Operation::Append, additional_properties: properties.clone() })
                .with_schema_id(metadata.current_schema_id())
                .build();
            properties.retain(|key, _| key == KEY);
            metadata = metadata
                .into_builder(None)
                .set_branch_snapshot(snapshot, MAIN_BRANCH)
                .unwrap()
                .set_properties(properties)
                .unwrap()
                .build()
                .unwrap()
                .metadata;
        }
        metadata
    }

    pub(crate) fn roll_back(metadata: TableMetadata, to: i64) -> TableMetadata {
        let reference = SnapshotReference::new(to, SnapshotRetention::branch(None, None, None));
        metadata.into_builder(None).set_ref(MAIN_BRANCH, reference).unwrap().build().unwrap().metadata
    }

    fn expire(metadata: TableMetadata, ids: &[i64]) -> TableMetadata {
        metadata.into_builder(None).remove_snapshots(ids).build().unwrap().metadata
    }

    #[test]
    fn a_new_table_has_no_marker() {
        assert_eq!(find(&table(&[])).unwrap(), Found::None);
    }

    #[test]
    fn the_newest_marker_counts_under_foreign_commits() {
        for commits in [&[Some(1)][..], &[Some(2), Some(1)], &[Some(1), None, None], &[None, Some(1)]] {
            assert_eq!(find(&table(commits)).unwrap(), Found::Marker(marker(1, 1000)), "{commits:?}");
        }
    }

    fn rolled_back(lost: u128, left: Option<u128>) -> Found {
        Found::RolledBack(Box::new(Rollback {
            lost: marker(lost, 1000),
            left: left.map(|commit| marker(commit, 1000)),
        }))
    }

    #[test]
    fn a_rollback_is_noticed() {
        let of = |metadata| find(&metadata).unwrap();
        assert_eq!(of(roll_back(table(&[Some(1), Some(2)]), 1)), rolled_back(2, Some(1)));
        assert_eq!(of(roll_back(table(&[Some(1), None, Some(2)]), 2)), rolled_back(2, Some(1)));
        assert_eq!(of(roll_back(table(&[None, Some(1)]), 1)), rolled_back(1, None));
        let emptied = table(&[Some(1)]).into_builder(None).remove_ref(MAIN_BRANCH).build().unwrap().metadata;
        assert_eq!(of(emptied), rolled_back(1, None));
    }

    #[test]
    fn a_rollback_is_noticed_where_history_was_cut() {
        let of = |metadata| find(&metadata).unwrap();
        let cut = |ids: &[i64]| expire(roll_back(table(&[Some(1), None, Some(2), Some(3)]), 2), ids);
        assert_eq!(of(cut(&[4])), rolled_back(3, Some(1)), "an older marker is left");
        assert_eq!(of(cut(&[1])), rolled_back(3, None), "the snapshot itself is left");
        assert_eq!(of(cut(&[1, 4])), Found::Cut(marker(3, 1000)), "only the rows can tell");
    }

    #[test]
    fn a_rollback_that_lost_its_property_is_kept() {
        let kept = roll_back(table(&[Some(1), Some(2)]), 1);
        let kept = kept.into_builder(None).remove_properties(&[KEY.to_owned()]).unwrap().build().unwrap().metadata;
        assert_eq!(find(&kept).unwrap(), Found::Marker(marker(1, 1000)));
    }

    #[test]
    fn expiry_leaves_the_property() {
        let expired = expire(table(&[Some(1), None, None]), &[1]);
        assert_eq!(find(&expired).unwrap(), Found::Cut(marker(1, 1000)));
    }

    #[test]
    fn a_table_that_others_filled_is_told() {
        assert_eq!(find(&table(&[None])).unwrap(), Found::Foreign);
    }

    #[test]
    fn the_fate_of_a_commit() {
        let commit = Uuid::from_u128(9);
        let of = |commits: &[Option<u128>], base| fate(&table(commits), base, commit).unwrap();
        assert_eq!(of(&[Some(1)], Some(1)), Fate::Undecided);
        assert_eq!(of(&[], None), Fate::Undecided);
        assert_eq!(of(&[Some(1), Some(9)], Some(1)), Fate::Landed);
        assert_eq!(of(&[Some(1), Some(9), None, Some(2)], Some(1)), Fate::Landed);
        assert_eq!(of(&[Some(9)], None), Fate::Landed);
        let rolled_back = roll_back(table(&[Some(1), Some(9)]), 1);
        assert_eq!(fate(&rolled_back, Some(1), commit).unwrap(), Fate::Landed, "its snapshot still has its files");
        assert_eq!(of(&[Some(1), None], Some(1)), Fate::Rejected);
        assert_eq!(of(&[Some(1)], None), Fate::Rejected);
        assert_eq!(fate(&expire(table(&[Some(1), None, None]), &[1]), Some(1), commit).unwrap(), Fate::Untraceable);
        assert_eq!(fate(&expire(table(&[None, None]), &[1]), None, commit).unwrap(), Fate::Untraceable);
    }
}
