//! The Iceberg catalog: which tables there are, and where each one's metadata is.
//!
//! An SQL catalog holds the location of a metadata file that we write, and swaps it for that of the next; a REST catalog takes the changes and
//! writes the file itself. iceberg's own catalogs commit through `Transaction`, which re-applies on whatever is current; our commits must not
//! (invariant 2), so both are ours. What a commit means, and what becomes of one without an answer, is `commit`'s business.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use iceberg::io::FileIO;
use iceberg::spec::TableMetadata;
use iceberg::{MetadataLocation, TableUpdate};
use uuid::Uuid;

use super::postgres::Postgres;
use super::rest::{Committed, Found, Loaded, Rest, Vended};
use super::sqlite::Sqlite;
use super::{NewTable, Target, check_vacant, classify, unreadable};
use crate::config::{self, Config, Secret, TableName};
use crate::error::{Context, Error, Kind, Result};
use crate::storage::{Storage, same_spelling};

/// The tables of an SQL catalog, as PyIceberg makes them.
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name));
    CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL,
        property_value VARCHAR(1000) NOT NULL,
        PRIMARY KEY (catalog_name, namespace, property_key));";

/// An open catalog, and the storage of its tables.
pub struct Catalog {
    backend: Backend,
    storage: Storage,
    /// Location in which all tables of a REST catalog lie, where it is known.
    warehouse: Option<String>,
}

enum Backend {
    Sqlite(Sqlite),
    Postgres(Box<Postgres>),
    Rest(Box<Rest>),
}

/// A change of a table: what a compare-and-swap makes of what.
#[derive(Debug)]
pub struct Change {
    /// The table as it was read.
    pub base: Target,
    /// The table as it will be; without a location where the catalog writes the metadata.
    pub new: Target,
    /// What makes the one from the other.
    pub updates: Vec<TableUpdate>,
}

/// What a compare-and-swap came to.
#[derive(Debug)]
pub enum Swap {
    /// Done and durable; with the table as it is now, where the catalog said.
    Done(Option<Box<Target>>),
    /// Certainly not done: the table was another one.
    Stale,
}

/// What the compare-and-swap of a location came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Done and durable.
    Done,
    /// Certainly not done: the location was another one.
    Stale,
}

/// A change of the catalog that did not answer.
#[derive(Debug)]
pub enum SwapError {
    /// Certainly not done.
    NotDone(Error),
    /// It may have been done (P14).
    Unknown(Error),
}

/// Time that credentials must still be good for when a table is loaded again: longer than a commit takes.
const GOOD_FOR: TimeDelta = TimeDelta::minutes(10);

/// The version of a table, if it may stay as it is: credentials come only with one that is loaded as a whole.
fn lasting_version(known: &Target, now: DateTime<Utc>) -> Option<&str> {
    let lasts = known.credentials_end.is_none_or(|end| end > now + GOOD_FOR);
    known.version.as_deref().filter(|_| lasts)
}

/// When credentials end, where they say so.
fn end_of(vended: &Vended) -> Option<DateTime<Utc>> {
    let at = ["s3.session-token-expires-at-ms", "gcs.oauth2.token-expires-at", "adls.sas-token-expires-at-ms"];
    let ends = at.iter().filter_map(|key| vended.properties.get(*key)?.parse().ok());
    ends.filter_map(DateTime::from_timestamp_millis).min()
}

/// What is lent with a table, by prefix: the table's properties, and over them those of a location where there are some.
fn sets(vended: &[Vended]) -> Vec<(String, BTreeMap<String, Secret>)> {
    let of_table: Vec<&Vended> = vended.iter().filter(|vended| vended.prefix.is_empty()).collect();
    let secret = |(key, value): (&String, &String)| (key.clone(), Secret::new(value.clone()));
    let set = |of_location: &HashMap<String, String>| {
        let of_table = of_table.iter().flat_map(|vended| &vended.properties);
        of_table.chain(of_location).map(secret).collect()
    };
    let of_locations = vended.iter().filter(|vended| !vended.prefix.is_empty());
    let of_locations = of_locations.map(|vended| (vended.prefix.clone(), set(&vended.properties)));
    of_locations.chain([(String::new(), set(&HashMap::new()))]).collect()
}

impl Catalog {
    /// Opens an existing catalog.
    pub async fn open(config: &Config) -> Result<Self> {
        Self::with(config, false).await
    }

    /// Opens the catalog; one that is ours to make is made where it is missing.
    pub async fn open_or_create(config: &Config) -> Result<Self> {
        Self::with(config, true).await
    }

    async fn with(config: &Config, create: bool) -> Result<Self> {
        let config::Catalog { name, backend, warehouse, .. } = &config.catalog;
        let backend = match backend {
            config::Backend::Sqlite(path) if create => Backend::Sqlite(Sqlite::open_or_create(path, name)?),
            config::Backend::Sqlite(path) => Backend::Sqlite(Sqlite::open(path, name)?),
            config::Backend::Postgres(config) if create => {
                Backend::Postgres(Box::new(Postgres::open_or_create(name, config).await?))
            }
            config::Backend::Postgres(config) => Backend::Postgres(Box::new(Postgres::open(name, config).await?)),
            config::Backend::Rest(config) => Backend::Rest(Box::new(Rest::connect(config, warehouse).await?)),
        };
        let warehouse =
            Some(warehouse).filter(|warehouse| matches!(backend, Backend::Rest(_)) && warehouse.contains("://"));
        Ok(Self { backend, storage: Storage::of(config), warehouse: warehouse.cloned() })
    }

    /// Opens the catalog; `None` where it is ours to make and is missing.
    pub async fn open_if_exists(config: &Config) -> Result<Option<Self>> {
        match &config.catalog.backend {
            config::Backend::Sqlite(path) if !path.exists() => Ok(None),
            config::Backend::Sqlite(_) | config::Backend::Rest(_) => Self::open(config).await.map(Some),
            config::Backend::Postgres(_) => match Self::open(config).await {
                Err(error) if error.kind() == Kind::Refused => Ok(None),
                opened => opened.map(Some),
            },
        }
    }

    /// How the files of its tables are reached.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The same for iceberg.
    pub fn file_io(&self) -> &FileIO {
        self.storage.file_io()
    }

    /// Whether it holds the location of a metadata file that we write, or makes the file itself.
    pub fn takes_files(&self) -> bool {
        !matches!(self.backend, Backend::Rest(_))
    }

    /// Tries whether we may change it; changes nothing. What a REST catalog allows, only a change tells.
    pub async fn try_writing(&self) -> Result<()> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.try_writing(),
            Backend::Postgres(catalog) => catalog.try_writing().await,
            Backend::Rest(catalog) => catalog.try_access().await,
        }
    }

    /// Tries whether we may commit to a table that is there; changes nothing. What SQL catalogs allow they allow for all tables.
    pub async fn try_commit(&self, name: &TableName) -> Result<()> {
        match &self.backend {
            Backend::Sqlite(_) | Backend::Postgres(_) => Ok(()),
            Backend::Rest(catalog) => catalog.try_commit(name).await,
        }
    }

    /// Loads a table, `None` where there is no such table; metadata that is still that of `known` is not read again.
    pub async fn load(&self, name: &TableName, known: Option<&Target>) -> Result<Option<Target>> {
        let location = match &self.backend {
            Backend::Sqlite(catalog) => catalog.location(name)?,
            Backend::Postgres(catalog) => catalog.location(name).await?,
            Backend::Rest(catalog) => {
                let found = catalog.load(name, known.and_then(|known| lasting_version(known, Utc::now()))).await;
                return match found.context_with(|| format!("load table metadata of `{name}`"))? {
                    Found::Nothing => Ok(None),
                    Found::Same => Ok(known.cloned()),
                    Found::Table(loaded) => self.take(*loaded, known).map(Some),
                };
            }
        };
        let Some(metadata_location) = location else { return Ok(None) };
        if let Some(known) = known.filter(|known| known.metadata_location == metadata_location) {
            return Ok(Some(known.clone()));
        }
        let read = TableMetadata::read_from(self.file_io(), &metadata_location).await;
        let metadata = read.map_err(|e| unreadable(e, name))?;
        Ok(Some(Target { metadata, metadata_location, version: None, credentials_end: None }))
    }

    /// Takes a table as a REST catalog answered it, and what it lends for its files.
    fn take(&self, loaded: Loaded, known: Option<&Target>) -> Result<Target> {
        let Loaded { metadata_location, metadata, credentials, etag } = loaded;
        let location = metadata.location().trim_end_matches('/');
        let lies_in = |warehouse: &String| {
            let (location, warehouse) = (same_spelling(location), same_spelling(warehouse));
            location.strip_prefix(&warehouse).is_some_and(|rest| rest.starts_with('/'))
        };
        if let Some(warehouse) = self.warehouse.as_ref().filter(|warehouse| !lies_in(warehouse)) {
            return Err(Error::refused(format!("the table lies at {location}, outside the warehouse {warehouse}")).hint(
                "see who put it there; if it is right, let catalog.warehouse name what the catalog calls its warehouse, not a location",
            ));
        }
        let credentials_end = match credentials.is_empty() {
            // An answer to a commit has none: those that are there go on.
            true => known.and_then(|known| known.credentials_end),
            false => {
                self.storage.lend(location, sets(&credentials));
                credentials.iter().filter_map(end_of).min()
            }
        };
        Ok(Target { metadata, metadata_location, version: etag, credentials_end })
    }

    /// Refuses to make a table where one lies that this catalog does not know.
    pub async fn check_vacant(&self, new: &NewTable, name: &TableName) -> Result<()> {
        match self.takes_files() {
            true => check_vacant(&self.storage, new.location(), name).await,
            // The place is the catalog's to choose: [`Self::create`] asks for it.
            false => Ok(()),
        }
    }

    /// Makes a table; `false` where somebody else was faster. A place that a REST catalog chooses is looked at as by [`Self::check_vacant`].
    pub async fn create(&self, name: &TableName, new: &NewTable) -> Result<bool> {
        let metadata = new.metadata();
        let either = |(SwapError::NotDone(error) | SwapError::Unknown(error)): SwapError| error;
        if let Backend::Rest(catalog) = &self.backend {
            if let Some((location, credentials)) = catalog.place(name, metadata).await.map_err(either)? {
                self.storage.lend(&location, sets(&credentials));
                check_vacant(&self.storage, &location, name).await?;
            }
            return catalog.create(name, metadata).await.map_err(either);
        }
        let location = MetadataLocation::new_with_metadata(metadata.location(), metadata);
        let written = metadata.write_to(self.file_io(), &location).await;
        let location = location.to_string();
        if let Err(error) = written {
            self.storage.discard(&[location]).await;
            return Err(classify(error, format!("write the metadata of `{name}`")));
        }
        let inserted = self.register(name, &location).await;
        if let Err(SwapError::Unknown(_)) = inserted {
            tracing::warn!(location, "kept, because nobody could tell whether the catalog took it");
        } else if !matches!(inserted, Ok(true)) {
            self.storage.discard(&[location]).await;
        }
        inserted.map_err(either)
    }

    /// Adds a table by its metadata file; `false` where there is one of that name.
    pub async fn register(&self, name: &TableName, location: &str) -> Result<bool, SwapError> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.insert(name, location),
            Backend::Postgres(catalog) => catalog.insert(name, location).await,
            Backend::Rest(catalog) => catalog.register(name, location).await,
        }
    }

    /// Replaces the metadata file `old` of a table, if it still is `old`, by another one that is there.
    pub async fn replace(&self, name: &TableName, old: &str, new: &str) -> Result<Moved, SwapError> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.swap(name, old, new),
            Backend::Postgres(catalog) => catalog.swap(name, old, new).await,
            Backend::Rest(_) => Err(SwapError::NotDone(
                Error::refused("a REST catalog takes no newer metadata file for a table that it holds")
                    .hint("drop the table from the catalog, without its files, then register it again"),
            )),
        }
    }

    /// Makes a change, if the table still is what the change was made on. Repetitions of a request that nobody answered have the same key.
    pub async fn swap(&self, name: &TableName, change: &Change, key: Uuid) -> Result<Swap, SwapError> {
        let Change { base, new, updates } = change;
        if let Backend::Rest(catalog) = &self.backend {
            return match catalog.commit(name, &base.metadata, updates, key).await? {
                // It is done, whatever is wrong with the answer: the next load tells.
                Committed::Done(loaded) => {
                    Ok(Swap::Done(Some(Box::new(self.take(*loaded, Some(base)).map_err(SwapError::Unknown)?))))
                }
                Committed::Stale => Ok(Swap::Stale),
            };
        }
        Ok(match self.replace(name, &base.metadata_location, &new.metadata_location).await? {
            Moved::Done => Swap::Done(None),
            Moved::Stale => Swap::Stale,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::history::tests::table;

    fn vended(prefix: &str, properties: &[(&str, &str)]) -> Vended {
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Vended { prefix: prefix.to_owned(), properties: properties.collect() }
    }

    #[test]
    fn credentials_of_a_location_add_to_the_properties_of_the_table() {
        let lent = [
            vended("s3://b/w", &[("s3.access-key-id", "A"), ("s3.region", "r2")]),
            vended("", &[("s3.region", "r1"), ("s3.endpoint", "e")]),
        ];
        let sets = sets(&lent);
        let texts = |at: usize| -> Vec<(&str, &str)> {
            sets[at].1.iter().map(|(key, value)| (key.as_str(), value.expose())).collect()
        };
        assert_eq!((sets[0].0.as_str(), sets[1].0.as_str()), ("s3://b/w", ""));
        assert_eq!(texts(0), [("s3.access-key-id", "A"), ("s3.endpoint", "e"), ("s3.region", "r2")]);
        assert_eq!(texts(1), [("s3.endpoint", "e"), ("s3.region", "r1")]);
    }

    #[test]
    fn a_table_whose_credentials_end_soon_is_loaded_as_a_whole() {
        let now = DateTime::from_timestamp_millis(1_795_747_231_000).unwrap();
        let version = |credentials_end| {
            let (metadata, version) = (table(&[Some(1)]), Some("v".to_owned()));
            let known = Target { metadata, metadata_location: String::new(), version, credentials_end };
            lasting_version(&known, now).map(str::to_owned)
        };
        assert_eq!(version(None).as_deref(), Some("v"));
        assert_eq!(version(Some(now + TimeDelta::hours(1))).as_deref(), Some("v"));
        assert_eq!(version(Some(now + TimeDelta::minutes(9))), None);
    }

    #[test]
    fn credentials_say_when_they_end() {
        let end = |text| end_of(&vended("", &[("s3.session-token-expires-at-ms", text)])).map(|end| end.timestamp());
        assert_eq!((end("1795747231000"), end("never")), (Some(1_795_747_231), None));
    }
}
