//! The Iceberg catalog: which tables there are, and where each one's metadata is.
//!
//! An SQL catalog holds the location of a metadata file that we write, and swaps it for that of the next; a REST catalog takes the changes and
//! writes the file itself. iceberg's own catalogs commit through `Transaction`, which re-applies on whatever is current; our commits must not
//! (invariant 2), so both are ours. What a commit means, and what becomes of one without an answer, is `commit`'s business.

use iceberg::io::FileIO;
use iceberg::spec::TableMetadata;
use iceberg::{MetadataLocation, TableUpdate};
use uuid::Uuid;

use super::sqlite::Sqlite;
use super::{NewTable, Target, check_vacant, classify, unreadable};
use crate::config::{self, Config, TableName};
use crate::error::{Error, Result};
use crate::storage::Storage;

/// An open catalog, and the storage of its tables.
#[derive(Debug)]
pub struct Catalog {
    backend: Backend,
    storage: Storage,
}

#[derive(Debug)]
enum Backend {
    Sqlite(Sqlite),
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
    /// The same for each repetition of this change.
    pub id: Uuid,
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

impl Catalog {
    /// Opens an existing catalog.
    pub async fn open(config: &Config) -> Result<Self> {
        let config::Catalog { name, backend, .. } = &config.catalog;
        let backend = match backend {
            config::Backend::Sqlite(path) => Backend::Sqlite(Sqlite::open(path, name)?),
            _ => todo!(),
        };
        Ok(Self { backend, storage: Storage::of(config) })
    }

    /// Opens the catalog; one that is ours to make is made where it is missing.
    pub async fn open_or_create(config: &Config) -> Result<Self> {
        let config::Catalog { name, backend, .. } = &config.catalog;
        let backend = match backend {
            config::Backend::Sqlite(path) => Backend::Sqlite(Sqlite::open_or_create(path, name)?),
            _ => todo!(),
        };
        Ok(Self { backend, storage: Storage::of(config) })
    }

    /// Opens the catalog; `None` where it is ours to make and is missing.
    pub async fn open_if_exists(config: &Config) -> Result<Option<Self>> {
        match &config.catalog.backend {
            config::Backend::Sqlite(path) if !path.exists() => Ok(None),
            _ => Self::open(config).await.map(Some),
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

    /// Whether it takes metadata files that we write, or makes them itself.
    pub fn takes_files(&self) -> bool {
        match &self.backend {
            Backend::Sqlite(_) => true,
        }
    }

    /// Tries whether this process may write to it; changes nothing.
    pub async fn try_writing(&self) -> Result<()> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.try_writing(),
        }
    }

    /// Loads a table, `None` where there is no such table; metadata that is still that of `known` is not read again.
    pub async fn load(&self, name: &TableName, known: Option<&Target>) -> Result<Option<Target>> {
        let Some(metadata_location) = self.location(name).await? else { return Ok(None) };
        if let Some(known) = known.filter(|known| known.metadata_location == metadata_location) {
            return Ok(Some(known.clone()));
        }
        let read = TableMetadata::read_from(self.file_io(), &metadata_location).await;
        Ok(Some(Target { metadata: read.map_err(|e| unreadable(e, name))?, metadata_location }))
    }

    /// Where an SQL catalog says that a table's metadata is.
    async fn location(&self, name: &TableName) -> Result<Option<String>> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.location(name),
        }
    }

    /// Refuses to make a table where one lies that this catalog does not know.
    pub async fn check_vacant(&self, new: &NewTable, name: &TableName) -> Result<()> {
        match self.takes_files() {
            true => check_vacant(&self.storage, new.location(), name).await,
            // The place is the catalog's to choose.
            false => Ok(()),
        }
    }

    /// Makes a table; `false` where somebody else was faster.
    pub async fn create(&self, name: &TableName, new: &NewTable) -> Result<bool> {
        let metadata = new.metadata();
        let location = MetadataLocation::new_with_metadata(metadata.location(), metadata);
        let written = metadata.write_to(self.file_io(), &location).await;
        let location = location.to_string();
        if let Err(error) = written {
            self.storage.delete(&location).await?;
            return Err(classify(error, format!("write the metadata of `{name}`")));
        }
        let inserted = self.register(name, &location).await;
        if let Err(SwapError::Unknown(_)) = inserted {
            tracing::warn!(location, "kept, because nobody could tell whether the catalog took it");
        } else if !matches!(inserted, Ok(true)) {
            self.storage.delete(&location).await?;
        }
        inserted.map_err(|(SwapError::NotDone(error) | SwapError::Unknown(error))| error)
    }

    /// Adds a table by its metadata file; `false` where there is one of that name.
    pub async fn register(&self, name: &TableName, location: &str) -> Result<bool, SwapError> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.insert(name, location),
        }
    }

    /// Replaces the metadata file `old` of a table, if it still is `old`, by another one that is there.
    pub async fn replace(&self, name: &TableName, old: &str, new: &str) -> Result<Moved, SwapError> {
        match &self.backend {
            Backend::Sqlite(catalog) => catalog.swap(name, old, new),
        }
    }

    /// Makes a change, if the table still is what the change was made on.
    pub async fn swap(&self, name: &TableName, change: &Change) -> Result<Swap, SwapError> {
        let moved = self.replace(name, &change.base.metadata_location, &change.new.metadata_location).await?;
        Ok(match moved {
            Moved::Done => Swap::Done(None),
            Moved::Stale => Swap::Stale,
        })
    }
}
