//! Iceberg's REST protocol in values: configuration, URLs, the bodies of requests and answers. Sends nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use iceberg::spec::{MAIN_BRANCH, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::config::{Secret, TableName};
use crate::error::{Classify, Context, Error, Kind, Result};
use crate::storage::same_spelling;
use crate::target::references;

/// Endpoints that we need, as `endpoints` of a server's configuration names them.
pub const LOAD_TABLE: &str = "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}";
pub const UPDATE_TABLE: &str = "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}";
pub const CREATE_TABLE: &str = "POST /v1/{prefix}/namespaces/{namespace}/tables";
pub const REGISTER_TABLE: &str = "POST /v1/{prefix}/namespaces/{namespace}/register";
pub const LIST_NAMESPACES: &str = "GET /v1/{prefix}/namespaces";

/// Prefix of properties that are headers.
const HEADER: &str = "header.";
/// What separates the levels of a namespace in a URL, where the server names nothing else.
const SEPARATOR: &str = "%1F";

/// A server's answer to `v1/config`.
#[derive(Default, Deserialize)]
pub struct Served {
    defaults: Option<HashMap<String, Value>>,
    overrides: Option<HashMap<String, Value>>,
    endpoints: Option<Vec<String>>,
    #[serde(rename = "idempotency-key-lifetime")]
    idempotency_key_lifetime: Option<String>,
}

impl Served {
    /// Reads it; `None` for what is no configuration.
    pub fn read(body: &[u8]) -> Option<Self> {
        let served: Self = serde_json::from_slice(body).ok()?;
        (served.defaults.is_some() || served.overrides.is_some()).then_some(served)
    }

    /// Where the server keeps what the client names as a warehouse.
    pub fn warehouse(&self) -> Option<&str> {
        self.overrides.as_ref()?.get("warehouse")?.as_str()
    }

    /// Whether the server has the endpoint; without a list it has those that the protocol began with, which are all of ours.
    pub fn offers(&self, endpoint: &str) -> bool {
        let plain = |text: &str| text.replacen("/{prefix}", "", 1);
        let listed = |endpoints: &Vec<String>| endpoints.iter().any(|listed| plain(listed) == plain(endpoint));
        self.endpoints.as_ref().filter(|endpoints| !endpoints.is_empty()).is_none_or(listed)
    }

    /// Whether mutations may carry a key that makes their repetition harmless.
    pub fn is_idempotent(&self) -> bool {
        self.idempotency_key_lifetime.is_some()
    }

    /// The server's defaults, what the client says, and over that the server's overrides. Where credentials go to, the client alone says,
    /// if it says so, and they do not leave https.
    pub fn merge(&self, ours: &HashMap<String, String>, url: &str) -> HashMap<String, String> {
        let text = |(key, value): (&String, &Value)| match value {
            Value::String(text) => Some((key_of(key), text.clone())),
            Value::Number(_) | Value::Bool(_) => Some((key_of(key), value.to_string())),
            _ => None,
        };
        let mut merged: HashMap<String, String> = self.defaults.iter().flatten().filter_map(text).collect();
        merged.extend(ours.clone());
        merged.extend(self.overrides.iter().flatten().filter_map(text));
        if let Some(server) = ours.get("oauth2-server-uri") {
            merged.insert("oauth2-server-uri".to_owned(), server.clone());
        }
        let begins =
            |url: &str, scheme: &str| url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        let leaves_https =
            |other: &String| begins(url, "https://") && other.contains("://") && !begins(other, "https://");
        for key in ["uri", "oauth2-server-uri"] {
            if !ours.contains_key(key) && merged.get(key).is_some_and(leaves_https) {
                tracing::warn!(key, "the catalog names a URL without https, which is not followed");
                merged.remove(key);
            }
        }
        merged
    }
}

/// What the client says: its properties and its headers, the latter as Iceberg's properties have them.
pub fn ours(properties: &BTreeMap<String, String>, headers: &BTreeMap<String, Secret>) -> HashMap<String, String> {
    let headers = headers.iter().map(|(name, value)| (key_of(&format!("{HEADER}{name}")), value.expose().to_owned()));
    properties.clone().into_iter().chain(headers).collect()
}

/// The headers among properties.
pub fn headers(properties: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    properties.iter().filter_map(|(key, value)| Some((key.strip_prefix(HEADER)?, value.as_str())))
}

/// Names of headers differ by more than their case.
fn key_of(key: &str) -> String {
    if key.starts_with(HEADER) { key.to_ascii_lowercase() } else { key.to_owned() }
}

/// Whether a client that asked for one location was given another one.
pub fn is_other_location(asked: &str, served: &str) -> bool {
    let plain = |location: &str| same_spelling(location.trim_end_matches('/'));
    [asked, served].iter().all(|location| location.contains("://")) && plain(asked) != plain(served)
}

/// The URLs of a catalog.
pub struct Paths {
    base: String,
    separator: String,
}

impl Paths {
    /// Below the catalog's URL, or the one that its configuration names instead.
    pub fn new(url: &str, properties: &HashMap<String, String>) -> Self {
        let url = properties.get("uri").filter(|uri| uri.contains("://")).map_or(url, String::as_str);
        // A prefix is a piece of a path: servers give several segments, and encode it themselves.
        let prefix = properties.get("prefix").map_or("", |prefix| prefix.trim_matches('/'));
        let prefix = prefix.replace('?', "%3F").replace('#', "%23");
        let base = format!("{}/v1/{prefix}", url.trim_end_matches('/'));
        let separator = match properties.get("namespace-separator") {
            Some(given) if given.contains('%') => given.clone(),
            Some(given) if !given.is_empty() => encode(given),
            _ => SEPARATOR.to_owned(),
        };
        Self { base: base.trim_end_matches('/').to_owned(), separator }
    }

    pub fn namespaces(&self) -> String {
        format!("{}/namespaces", self.base)
    }

    pub fn tables(&self, name: &TableName) -> String {
        let levels: Vec<String> = levels(&name.namespace).into_iter().map(encode).collect();
        format!("{}/{}/tables", self.namespaces(), levels.join(&self.separator))
    }

    pub fn table(&self, name: &TableName) -> String {
        format!("{}/{}", self.tables(name), encode(&name.name))
    }

    pub fn register(&self, name: &TableName) -> String {
        let levels: Vec<String> = levels(&name.namespace).into_iter().map(encode).collect();
        format!("{}/{}/register", self.namespaces(), levels.join(&self.separator))
    }
}

/// Where the configuration is.
pub fn config_url(url: &str, warehouse: &str) -> String {
    let query = if warehouse.is_empty() { String::new() } else { format!("?warehouse={}", encode(warehouse)) };
    format!("{url}/v1/config{query}")
}

/// Where tokens are: a URL, or a path below the catalog's.
pub fn token_url(url: &str, given: Option<&str>) -> String {
    match given.unwrap_or("v1/oauth/tokens") {
        given if given.contains("://") => given.to_owned(),
        given => format!("{url}/{}", given.trim_start_matches('/')),
    }
}

/// Whether two URLs are of one server.
pub fn same_origin(one: &str, other: &str) -> bool {
    matches!((Url::parse(one), Url::parse(other)), (Ok(one), Ok(other)) if one.origin() == other.origin())
}

/// A URL for people: without its query, which could hold a secret.
pub fn shown(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// The levels of a dotted namespace.
pub fn levels(namespace: &str) -> Vec<&str> {
    namespace.split('.').collect()
}

/// Percent-encodes all but what RFC 3986 leaves unreserved, so that servers which read `+` as a space get what was meant.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

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

    #[test]
    fn the_server_has_the_last_word_but_on_where_credentials_go() {
        let served = Served::read(
            br#"{"defaults": {"scope": "theirs", "audience": "a", "header.X-A": "theirs", "n": 1, "none": null},
                 "overrides": {"prefix": "p", "oauth2-server-uri": "https://evil/", "uri": "http://evil/"}}"#,
        )
        .unwrap();
        let ours =
            map(&[("scope", "ours"), ("prefix", "x"), ("oauth2-server-uri", "https://idp/"), ("header.x-a", "ours")]);
        let expected =
            map(&[("scope", "ours"), ("audience", "a"), ("prefix", "p"), ("oauth2-server-uri", "https://idp/")]);
        let mut merged = served.merge(&ours, "https://c");
        assert_eq!(merged.remove("header.x-a").as_deref(), Some("ours"));
        assert_eq!(merged.remove("n").as_deref(), Some("1"));
        assert_eq!(merged, expected);
        let merged = served.merge(&HashMap::new(), "http://c");
        assert_eq!(merged["oauth2-server-uri"], "https://evil/", "where the client names none");
        assert_eq!(merged["uri"], "http://evil/");
    }

    #[test]
    fn what_is_no_configuration_is_none() {
        for body in ["", "<html>", "[]", "{}", r#"{"error": {}}"#, r#"{"defaults": []}"#] {
            assert!(Served::read(body.as_bytes()).is_none(), "{body}");
        }
        assert!(Served::read(br#"{"overrides": {}}"#).is_some());
    }

    #[test]
    fn endpoints_are_those_of_the_list() {
        let served = |endpoints: Value| {
            let body = json!({"defaults": {}, "endpoints": endpoints}).to_string();
            Served::read(body.as_bytes()).unwrap()
        };
        assert!(served(Value::Null).offers(CREATE_TABLE) && served(json!([])).offers(CREATE_TABLE));
        assert!(served(json!([CREATE_TABLE])).offers(CREATE_TABLE));
        assert!(served(json!(["POST /v1/namespaces/{namespace}/tables"])).offers(CREATE_TABLE));
        assert!(!served(json!([LOAD_TABLE])).offers(UPDATE_TABLE));
    }

    #[test]
    fn locations_differ_by_more_than_their_spelling() {
        for (asked, served, is_other) in [
            ("s3://b/w", "s3://b/w/", false),
            ("s3a://b/w", "s3://b/w", false),
            ("s3://b/w", "s3://b/v", true),
            ("s3://b/w", "gs://b/w", true),
            ("main", "s3://b/w", false),
            ("s3://b/w", "4711", false),
            ("", "s3://b/w", false),
        ] {
            assert_eq!(is_other_location(asked, served), is_other, "{asked} {served}");
        }
    }

    #[test]
    fn urls_are_encoded_by_segment() {
        let name = TableName { namespace: "a.b c".to_owned(), name: "t/ü?".to_owned() };
        for (properties, expected) in [
            (map(&[]), "http://c/x/v1/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("prefix", "/p/q/")]), "http://c/x/v1/p/q/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("prefix", "arn%3Aaws?")]), "http://c/x/v1/arn%3Aaws%3F/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("namespace-separator", ".")]), "http://c/x/v1/namespaces/a.b%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("namespace-separator", "%2E")]), "http://c/x/v1/namespaces/a%2Eb%20c/tables/t%2F%C3%BC%3F"),
            (map(&[("uri", "https://d/")]), "https://d/v1/namespaces/a%1Fb%20c/tables/t%2F%C3%BC%3F"),
        ] {
            assert_eq!(Paths::new("http://c/x", &properties).table(&name), expected);
        }
        assert_eq!(config_url("http://c", ""), "http://c/v1/config");
        assert_eq!(config_url("http://c", "s3://b/w"), "http://c/v1/config?warehouse=s3%3A%2F%2Fb%2Fw");
        assert_eq!(token_url("http://c/x", Some("/oauth/t")), "http://c/x/oauth/t");
        assert_eq!(shown("http://c/x?token=s3cret"), "http://c/x");
        assert!(same_origin("https://c/x", "https://c:443/y") && !same_origin("https://c", "http://c"));
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
