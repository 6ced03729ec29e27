//! What a REST catalog is asked for and answers about namespaces and tables: bodies, as values. Sends nothing.

use std::collections::HashMap;
use std::fmt;

use iceberg::spec::{MAIN_BRANCH, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};
use serde_json::{Value, json};
use uuid::Uuid;

use super::served::levels;
use crate::config::TableName;
use crate::error::{Classify, Context, Error, Kind, Result};
use crate::target::references;

/// Asks for a namespace.
pub fn create_namespace(levels: &[&str]) -> Value {
    json!({"namespace": levels, "properties": {}})
}

/// Asks for a table with the schema, partitions, order and properties of `new`; only what it would be, where it is `staged`.
pub fn create_table(name: &TableName, new: &TableMetadata, staged: bool) -> Result<Value> {
    let mut properties = new.properties().clone();
    // Servers have defaults of their own; we write format v2.
    properties.insert("format-version".to_owned(), new.format_version().to_string().trim_start_matches('v').to_owned());
    let spec = new.default_partition_spec().as_ref().clone().into_unbound();
    let mut body = json!({
        "name": name.name,
        "schema": to_json(new.current_schema().as_ref())?,
        "partition-spec": to_json(&spec)?,
        "stage-create": staged,
        "properties": properties,
    });
    if !new.default_sort_order().is_unsorted() {
        body["write-order"] = to_json(new.default_sort_order().as_ref())?;
    }
    Ok(body)
}

/// Asks for a table over metadata that is there.
pub fn register_table(name: &TableName, metadata_location: &str) -> Value {
    json!({"name": name.name, "metadata-location": metadata_location})
}

/// What a table must be for a commit that was built on `base`, by all that a commit of ours depends on (P13). Branches and tags must be where they
/// were: what expires depends on them, and a server numbers the snapshots of all branches in one row.
fn requirements(base: &TableMetadata) -> Result<Vec<TableRequirement>> {
    let references = references(base).or_error(Kind::Internal, "read branches and tags")?;
    let others = references.into_iter().filter(|(name, _)| name != MAIN_BRANCH);
    let others = others.map(|(name, reference)| TableRequirement::RefSnapshotIdMatch {
        r#ref: name,
        snapshot_id: Some(reference.snapshot_id),
    });
    let own = [
        TableRequirement::UuidMatch { uuid: base.uuid() },
        TableRequirement::RefSnapshotIdMatch { r#ref: MAIN_BRANCH.to_owned(), snapshot_id: base.current_snapshot_id() },
        TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: base.last_column_id() },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: base.current_schema_id() },
        TableRequirement::DefaultSpecIdMatch { default_spec_id: base.default_partition_spec_id() },
    ];
    Ok(own.into_iter().chain(others).collect())
}

/// Whether a commit that was built on `base` cannot land any more on what the table is `now`: a requirement is not met, or its snapshot's number is taken by
/// one of a branch that is new.
pub fn is_past(base: &TableMetadata, now: &TableMetadata) -> bool {
    base.current_snapshot_id().is_some() && now.last_sequence_number() > base.last_sequence_number()
        || requirements(base).is_ok_and(|all| all.iter().any(|requirement| requirement.check(Some(now)).is_err()))
}

/// A commit, on the table as `base` is.
pub fn commit_table(name: &TableName, base: &TableMetadata, updates: &[TableUpdate]) -> Result<Value> {
    let requirements = requirements(base)?;
    let updates = updates.iter().map(update_json).collect::<Result<Vec<_>>>()?.concat();
    Ok(json!({
        "identifier": {"namespace": levels(&name.namespace), "name": name.name},
        "requirements": to_json(&requirements)?,
        "updates": updates,
    }))
}

/// A commit of nothing to a table that there is not.
pub fn vain_commit(name: &TableName) -> Value {
    json!({
        "identifier": {"namespace": levels(&name.namespace), "name": name.name},
        "requirements": [{"type": "assert-table-uuid", "uuid": Uuid::new_v4()}],
        "updates": [],
    })
}

/// An update as servers take it: those of Iceberg before 1.9 remove one snapshot at a time (MetadataUpdateParser.readRemoveSnapshots).
fn update_json(update: &TableUpdate) -> Result<Vec<Value>> {
    match update {
        TableUpdate::RemoveSnapshots { snapshot_ids } => {
            let one = |id: &i64| to_json(&TableUpdate::RemoveSnapshots { snapshot_ids: vec![*id] });
            snapshot_ids.iter().map(one).collect()
        }
        update => Ok(vec![to_json(update)?]),
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).or_error(Kind::Internal, "write a request for the catalog")
}

/// A table as the catalog answered.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where its metadata is.
    pub metadata_location: String,
    /// Its metadata.
    pub metadata: TableMetadata,
    /// How its files are reached; none in the answer to a commit.
    pub credentials: Vec<Vended>,
    /// The version of all this, to ask whether there is another one by now.
    pub etag: Option<String>,
}

/// Properties for the files below a location, credentials among them.
#[derive(Clone, PartialEq, Eq)]
pub struct Vended {
    /// Where they are for; empty for all of the table.
    pub prefix: String,
    /// `s3.access-key-id` and its like.
    pub properties: HashMap<String, String>,
}

impl fmt::Debug for Vended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys: Vec<_> = self.properties.keys().collect();
        keys.sort();
        f.debug_struct("Vended").field("prefix", &self.prefix).field("properties", &keys).finish()
    }
}

/// Reads the answer to a load or a commit.
pub fn read_table(body: &[u8], etag: Option<String>) -> Result<Loaded> {
    // Values of it may be secrets; errors about its syntax name none.
    let mut body: Value =
        serde_json::from_slice(body).or_error(Kind::Unavailable, "the catalog answers what is no JSON")?;
    let context = || "read the table's metadata as the catalog sends it";
    let location = body["metadata-location"].as_str().filter(|location| !location.is_empty()).map(str::to_owned);
    let metadata_location = location
        .ok_or_else(|| Error::refused("the catalog does not say where the table's metadata is"))
        .context_with(context)?;
    let metadata = serde_json::from_value(body["metadata"].take()).or_error(Kind::Refused, context())?;
    Ok(Loaded { metadata_location, metadata, credentials: credentials(&body), etag })
}

/// Reads from the answer to a staged creation where the table would lie, and what the server lends for that.
pub fn read_staged(body: &[u8]) -> Option<(String, Vec<Vended>)> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some((body["metadata"]["location"].as_str()?.to_owned(), credentials(&body)))
}

/// What the server lends with a table.
fn credentials(body: &Value) -> Vec<Vended> {
    let strings = |value: &Value| -> HashMap<String, String> {
        let entries = value.as_object().into_iter().flatten();
        entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    let vended = body["storage-credentials"].as_array().into_iter().flatten().map(|one| Vended {
        prefix: one["prefix"].as_str().unwrap_or_default().to_owned(),
        properties: strings(&one["config"]),
    });
    let of_table = Vended { prefix: String::new(), properties: strings(&body["config"]) };
    vended.chain([of_table]).filter(|vended| !vended.properties.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use iceberg::spec::{Snapshot, SnapshotReference, SnapshotRetention};

    use super::*;
    use crate::schema::{Column, iceberg_schema};
    use crate::target::history::tests::table;

    fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// As Java's MetadataUpdateParser, UpdateRequirementParser and SnapshotParser read it.
    #[test]
    fn a_commit_is_what_the_reference_implementation_reads() {
        let base = table(&[Some(1), Some(2)]);
        let columns = [Column::map("ts", "DateTime64(3)", None).unwrap(), Column::map("x", "Int64", None).unwrap()];
        let snapshot = Snapshot::builder()
            .with_snapshot_id(i64::MAX)
            .with_parent_snapshot_id(Some(2))
            .with_sequence_number(3)
            .with_timestamp_ms(base.last_updated_ms())
            .with_manifest_list("s3://b/list.avro")
            .with_summary(base.current_snapshot().unwrap().summary().clone())
            .with_schema_id(1)
            .build();
        let builder = base.clone().into_builder(None).add_current_schema(iceberg_schema(&columns).unwrap()).unwrap();
        let builder = builder.set_branch_snapshot(snapshot, MAIN_BRANCH).unwrap();
        let builder = builder.set_properties(map(&[("k", "v")])).unwrap().remove_snapshots(&[1, 2]);
        let changes = builder.build().unwrap().changes;
        let name = TableName { namespace: "a.b".to_owned(), name: "t".to_owned() };
        let body = commit_table(&name, &base, &changes).unwrap();
        assert_eq!(body["identifier"], json!({"namespace": ["a", "b"], "name": "t"}));
        assert_eq!(
            body["requirements"],
            json!([
                {"type": "assert-table-uuid", "uuid": base.uuid()},
                {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": 2},
                {"type": "assert-last-assigned-field-id", "last-assigned-field-id": 1},
                {"type": "assert-current-schema-id", "current-schema-id": 0},
                {"type": "assert-default-spec-id", "default-spec-id": 0},
            ])
        );
        let actions: Vec<_> = body["updates"].as_array().unwrap().iter().map(|update| &update["action"]).collect();
        assert_eq!(
            actions,
            [
                "add-schema",
                "set-current-schema",
                "add-snapshot",
                "set-snapshot-ref",
                "set-properties",
                "remove-snapshots",
                "remove-snapshots"
            ]
        );
        let updates = &body["updates"];
        assert_eq!(updates[0]["schema"]["type"], "struct");
        assert_eq!(updates[0]["schema"]["schema-id"], 1);
        assert_eq!(updates[1], json!({"action": "set-current-schema", "schema-id": -1}));
        let snapshot = &updates[2]["snapshot"];
        assert_eq!(
            (&snapshot["snapshot-id"], &snapshot["parent-snapshot-id"], &snapshot["sequence-number"]),
            (&json!(i64::MAX), &json!(2), &json!(3))
        );
        assert_eq!(snapshot["summary"]["operation"], "append");
        let reference =
            json!({"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": i64::MAX});
        assert_eq!(updates[3], reference);
        assert_eq!(updates[4], json!({"action": "set-properties", "updates": {"k": "v"}}));
        let mut removed = [&updates[5]["snapshot-ids"], &updates[6]["snapshot-ids"]];
        removed.sort_by_key(|ids| ids[0].as_i64());
        assert_eq!(removed, [&json!([1]), &json!([2])]);
    }

    #[test]
    fn a_first_commit_wants_no_branch() {
        let name = TableName { namespace: "a".to_owned(), name: "t".to_owned() };
        let body = commit_table(&name, &table(&[]), &[]).unwrap();
        let expected = json!({"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": null});
        assert_eq!(body["requirements"][1], expected);
    }

    #[test]
    fn a_new_table_is_asked_for_in_format_2() {
        let name = TableName { namespace: "a".to_owned(), name: "t".to_owned() };
        let body = create_table(&name, &table(&[]), false).unwrap();
        assert_eq!(body["properties"], json!({"format-version": "2"}));
        assert_eq!(body["partition-spec"], json!({"spec-id": 0, "fields": []}));
        assert_eq!(body.get("write-order"), None);
        assert_eq!(body["schema"]["fields"][0]["name"], "ts");
    }

    /// A server numbers the snapshots of all branches in one row, and expiry spares what tags name.
    #[test]
    fn a_commit_is_past_when_a_branch_or_a_tag_has_moved() {
        let base = table(&[Some(1), Some(2)]);
        let with = |of: &TableMetadata, name: &str, id| {
            let retention = SnapshotRetention::Tag { max_ref_age_ms: None };
            let builder = of.clone().into_builder(None).set_ref(name, SnapshotReference::new(id, retention));
            builder.unwrap().build().unwrap().metadata
        };
        let tagged = with(&base, "kept", 1);
        assert!(!is_past(&base, &base) && !is_past(&tagged, &tagged));
        assert!(!is_past(&base, &tagged), "a tag that is new");
        let snapshot = Snapshot::builder()
            .with_snapshot_id(3)
            .with_parent_snapshot_id(Some(2))
            .with_sequence_number(3)
            .with_timestamp_ms(base.last_updated_ms())
            .with_manifest_list("s3://b/list.avro")
            .with_summary(base.current_snapshot().unwrap().summary().clone())
            .with_schema_id(base.current_schema_id())
            .build();
        let branched = base.clone().into_builder(None).set_branch_snapshot(snapshot, "branch");
        assert!(is_past(&base, &branched.unwrap().build().unwrap().metadata), "a branch that is new took the number");
        assert!(is_past(&tagged, &with(&tagged, "kept", 2)) && is_past(&tagged, &base));
        assert!(is_past(&base, &table(&[Some(1), Some(2), Some(3)])));
        let body = commit_table(&TableName { namespace: "c".into(), name: "t".into() }, &tagged, &[]).unwrap();
        let kept = json!({"type": "assert-ref-snapshot-id", "ref": "kept", "snapshot-id": 1});
        assert!(body["requirements"].as_array().unwrap().contains(&kept), "{body:#}");
    }
}
