//! The clients of object stores: one for each bucket, and for each location that a catalog lends credentials for.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{MultipartId, ObjectStore, ObjectStoreExt};

use super::clients::Settings;
use super::errors::{Access, Missing};
use super::same_spelling;
use crate::config::{Secret, Storage};
use crate::error::{Classify, Error, Kind, Result};

/// A bucket, or what stands for one.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub store: Arc<dyn ObjectStore>,
    pub parts: Arc<dyn Parts>,
    pub access: Arc<Access>,
}

/// [`MultipartStore`] that can be printed.
pub(super) trait Parts: MultipartStore + std::fmt::Debug {}
impl<T: MultipartStore + std::fmt::Debug> Parts for T {}

impl Bucket {
    pub(super) fn of<T: ObjectStore + Parts>(store: T, access: Access) -> Self {
        let store = Arc::new(store);
        Self { store: store.clone(), parts: store, access: Arc::new(access) }
    }
}

/// An upload in parts that is neither finished nor given up.
#[derive(Debug)]
pub(super) struct Begun {
    pub bucket: Bucket,
    pub key: Key,
    pub id: MultipartId,
}

/// Properties of storage, as Iceberg names them.
pub(super) type Properties = BTreeMap<String, Secret>;

/// What tells clients apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    /// Scheme and bucket.
    root: String,
    /// Table and prefix of what is lent.
    lender: Option<(String, String)>,
}

/// All clients of a pass, made when they are needed.
#[derive(Debug)]
pub(super) struct Buckets {
    config: Storage,
    clients: Mutex<HashMap<Name, Bucket>>,
    /// By location of the table that they came with: properties for all locations that begin with a prefix.
    lent: Mutex<BTreeMap<String, Vec<(String, Properties)>>>,
    /// By location.
    uploads: Mutex<HashMap<String, Begun>>,
}

/// Nothing that a panic could leave half done stands behind these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buckets {
    pub(super) fn new(config: Storage) -> Self {
        Self { config, clients: Mutex::default(), lent: Mutex::default(), uploads: Mutex::default() }
    }

    /// Replaces what was lent with a table, each for all locations that begin with a prefix.
    pub(super) fn lend(&self, table: &str, sets: Vec<(String, Properties)>) {
        let table = same_spelling(table);
        let sets: Vec<_> = sets.into_iter().map(|(prefix, properties)| (same_spelling(&prefix), properties)).collect();
        let mut lent = locked(&self.lent);
        if lent.get(&table) != Some(&sets) {
            let is_other = |name: &Name| name.lender.as_ref().is_none_or(|(of, _)| *of != table);
            locked(&self.clients).retain(|name, _| is_other(name));
            lent.insert(table, sets);
        }
    }

    /// The client for a location, and its key there.
    pub(super) fn find(&self, location: &str) -> Result<(Bucket, Key)> {
        let spelled = same_spelling(location);
        let (root, key) = split(&spelled)?;
        let key = Key::parse(key).or_error(Kind::Refused, format!("use {location}"))?;
        let lent = locked(&self.lent);
        let own = lent.keys().filter(|table| lies_in(&spelled, table)).max_by_key(|table| table.len());
        // A file outside all tables, as imported ones are, is whoever's credentials reach it.
        let lenders = lent.iter().filter(|(table, _)| own.is_none_or(|own| own == *table));
        let sets = lenders.flat_map(|(table, sets)| sets.iter().map(move |(prefix, set)| (table, prefix, set)));
        let reach = sets.filter(|(_, prefix, _)| reaches(prefix, &spelled) && (own.is_some() || !prefix.is_empty()));
        let lender = reach.max_by_key(|(_, prefix, _)| prefix.len());
        let name =
            Name { root: root.to_owned(), lender: lender.map(|(table, prefix, _)| (table.clone(), prefix.clone())) };
        let mut clients = locked(&self.clients);
        if let Some(bucket) = clients.get(&name) {
            return Ok((bucket.clone(), key));
        }
        let no_properties = Properties::new();
        let settings = Settings { config: &self.config, lent: lender.map_or(&no_properties, |(.., set)| set) };
        let bucket = settings.bucket(root)?;
        clients.insert(name, bucket.clone());
        Ok((bucket, key))
    }

    pub(super) async fn read(&self, location: &str) -> Result<Bytes, Missing> {
        let (bucket, key) = self.find(location)?;
        let failed = |e| bucket.access.missing("read", location, e);
        bucket.store.get(&key).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    pub(super) async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, Missing> {
        let (bucket, key) = self.find(location)?;
        bucket.store.get_range(&key, range).await.map_err(|e| bucket.access.missing("read", location, e))
    }

    /// The size of an object.
    pub(super) async fn head(&self, location: &str) -> Result<u64, Missing> {
        let (bucket, key) = self.find(location)?;
        let head = bucket.store.head(&key).await;
        head.map(|object| object.size).map_err(|e| bucket.access.missing("look at", location, e))
    }

    /// Deletes an object, and gives up what was begun of it.
    pub(super) async fn delete(&self, location: &str) -> Result<()> {
        let begun = locked(&self.uploads).remove(location);
        if let Some(Begun { bucket, key, id }) = begun
            && let aborted = bucket.parts.abort_multipart(&key, &id).await
            && let Err(error) = gone(aborted.map_err(|e| bucket.access.missing("give up the upload of", location, e)))
        {
            tracing::warn!(%error, "parts of a file were left behind; a lifecycle rule of the bucket deletes them");
        }
        let (bucket, key) = self.find(location)?;
        let deleted = bucket.store.delete(&key).await;
        gone(deleted.map_err(|e| bucket.access.missing("delete", location, e)))
    }

    pub(super) fn begun(&self, location: &str, begun: Begun) {
        locked(&self.uploads).insert(location.to_owned(), begun);
    }

    pub(super) fn id_of(&self, location: &str) -> Option<MultipartId> {
        locked(&self.uploads).get(location).map(|begun| begun.id.clone())
    }

    pub(super) fn forget(&self, location: &str) {
        locked(&self.uploads).remove(location);
    }
}

/// What is gone already is deleted: the client asks again where an answer was lost.
fn gone(deleted: Result<(), Missing>) -> Result<()> {
    match deleted {
        Ok(()) | Err(Missing::Gone(_)) => Ok(()),
        Err(Missing::Failed(error)) => Err(error),
    }
}

/// Whether credentials that are lent for a prefix, a scheme, a bucket or a folder, are meant for a location.
fn reaches(prefix: &str, location: &str) -> bool {
    let at_border = |rest: &str| rest.is_empty() || rest.starts_with(['/', ':']);
    location.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || prefix.ends_with('/') || at_border(rest))
}

/// Whether a location is a folder or lies below it.
fn lies_in(location: &str, folder: &str) -> bool {
    location.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Scheme and bucket of a location, and the key in it.
fn split(location: &str) -> Result<(&str, &str)> {
    let start = location.find("://").map(|at| at + 3).filter(|at| *at < location.len());
    let start = start.ok_or_else(|| {
        Error::refused(format!("location `{location}` is neither a local file nor an object"))
            .hint("this version knows file://, s3://, gs:// and abfss://")
    })?;
    let (_, rest) = location.split_at(start);
    let length = rest.find('/').unwrap_or(rest.len());
    let (root, key) = location.split_at(start + length);
    Ok((root, key.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn buckets(properties: &[(&str, &str)]) -> Buckets {
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let timeout = Duration::from_secs(1);
        Buckets::new(Storage { properties, ca_file: None, connect_timeout: timeout, timeout })
    }

    #[test]
    fn locations_are_split_at_the_bucket() {
        assert_eq!(split("s3://b/a/c").unwrap(), ("s3://b", "a/c"));
        assert_eq!(split("s3://b").unwrap(), ("s3://b", ""));
        assert_eq!(split("abfss://c@a.dfs.core.windows.net/k").unwrap(), ("abfss://c@a.dfs.core.windows.net", "k"));
        assert!(split("warehouse").is_err() && split("s3://").is_err());
    }

    #[test]
    fn names_are_kept_as_they_are() {
        let key =
            buckets(&[("s3.endpoint", "http://h")]).find("s3a://b/t/data/exchange=a%2Fb%7B/x y.parquet").unwrap().1;
        assert_eq!(key.as_ref(), "t/data/exchange=a%2Fb%7B/x y.parquet");
    }

    fn keys(id: &str) -> Properties {
        let keys = [("s3.access-key-id", id), ("s3.secret-access-key", "s3cret")];
        keys.map(|(key, value)| (key.to_owned(), Secret::new(value.to_owned()))).into()
    }

    fn store(buckets: &Buckets, location: &str) -> Arc<dyn ObjectStore> {
        buckets.find(location).unwrap().0.store
    }

    #[test]
    fn what_is_lent_counts_for_its_table_until_it_is_replaced() {
        let buckets = buckets(&[("s3.endpoint", "http://h"), ("s3.credentials-file", "/nowhere")]);
        let nothing_is_lent = buckets.find("s3://b/t/x").unwrap_err();
        assert_eq!(nothing_is_lent.kind(), Kind::Config, "and there is no file");
        let lend = |id: &str| buckets.lend("s3a://b/t/", vec![("s3://b".to_owned(), keys(id))]);
        lend("A");
        let first = store(&buckets, "s3://b/t/x");
        lend("A");
        assert!(Arc::ptr_eq(&first, &store(&buckets, "s3://b/t/y")));
        lend("B");
        assert!(!Arc::ptr_eq(&first, &store(&buckets, "s3://b/t/y")));
        assert!(buckets.find("s3://b2/other").is_err());
        assert!(!format!("{buckets:?}").contains("s3cret"));
    }

    /// Two tables whose keys are lent for the same prefix, and one whose name begins with another's.
    #[test]
    fn keys_of_one_table_are_not_used_for_another() {
        let buckets = buckets(&[("s3.endpoint", "http://h"), ("s3.credentials-file", "/nowhere")]);
        buckets.lend("s3://b/t", vec![("s3://".to_owned(), keys("A"))]);
        let first = store(&buckets, "s3://b/t/x");
        buckets.lend("s3://c/t2", vec![("s3://".to_owned(), keys("B"))]);
        assert!(Arc::ptr_eq(&first, &store(&buckets, "s3://b/t/y")));
        assert!(!Arc::ptr_eq(&first, &store(&buckets, "s3://c/t2/x")));
        let elsewhere = buckets.find("s3://c/t/x").unwrap().0.store;
        assert!(!Arc::ptr_eq(&first, &elsewhere), "another bucket has a client of its own");
        assert!(!lies_in("s3://b/trades_1m/x", "s3://b/trades") && lies_in("s3://b/trades/x", "s3://b/trades/"));
        assert!(["", "s3", "s3://", "s3://b", "s3://b/t/"].iter().all(|prefix| reaches(prefix, "s3://b/t/x")));
        assert!(!reaches("s3://b/t", "s3://b/t2/x") && !reaches("s3://b", "s3://b2/t"));
    }
}
