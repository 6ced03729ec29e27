//! Files of tables: on this host, or in S3, Google Cloud Storage or Azure.
//!
//! The only module that touches files of a warehouse; it knows nothing of tables. A file is written from front to back, and neither visible nor
//! referred to before it is durable ([`NewFile::finish`], protocol.md P18): local files by fsync, objects because a store shows an object once
//! it has all of it. Data and metadata take the same clients.

mod answers;
mod bridge;
mod buckets;
mod clients;
mod errors;
mod local;
mod profile;
mod rights;
mod upload;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use bytes::Bytes;
use futures::TryStreamExt;
use iceberg::io::FileIO;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::oneshot;

use self::buckets::Buckets;
pub use self::errors::Missing;
pub use self::local::{DurableFile, file_error, judge, local_path, nameless_file, try_folder};
pub use self::rights::{Rights, rights};
use self::upload::Upload;
use crate::config::{self, Config};
use crate::error::{Classify, Error, Kind, Result};

/// How all files of a pass are reached.
#[derive(Debug, Clone)]
pub struct Storage {
    file_io: FileIO,
    buckets: Arc<Buckets>,
    /// For files that are only needed meanwhile.
    scratch: Arc<Path>,
}

/// A file that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its path or URI.
    pub location: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written.
    pub modified: SystemTime,
}

/// Whether a location is a file of this host.
pub fn is_local(location: &str) -> bool {
    location.starts_with('/') || location.starts_with("file:")
}

/// One spelling for the URIs of a file: writers differ in `file:///p`, `file:/p` and `/p`, in `s3://`, `s3a://` and `s3n://`,
/// and in `abfs://` and `abfss://`.
pub fn same_spelling(location: &str) -> String {
    if let Ok(path) = local_path(location) {
        return path.to_string_lossy().into_owned();
    }
    match location.split_once("://") {
        Some(("s3a" | "s3n", rest)) => format!("s3://{rest}"),
        Some(("abfs", rest)) => format!("abfss://{rest}"),
        _ => location.to_owned(),
    }
}

/// The bucket of a folder with this key, which is empty at the root of a bucket; without a slash at its end.
fn root_of<'a>(folder: &'a str, key: &str) -> &'a str {
    folder.strip_suffix(key).unwrap_or(folder).trim_end_matches('/')
}

impl Storage {
    /// Files of this host and of wherever `config` leads; what is only needed meanwhile goes into the folder `scratch`.
    pub fn new(config: &config::Storage, scratch: &Path) -> Self {
        let buckets = Arc::new(Buckets::new(config.clone()));
        Self { file_io: bridge::file_io(buckets.clone()), buckets, scratch: scratch.into() }
    }

    /// As a configuration has it.
    pub fn of(config: &Config) -> Self {
        Self::new(&config.catalog.storage, config.state.parent().unwrap_or(Path::new("/")))
    }

    /// The same for iceberg.
    pub fn file_io(&self) -> &FileIO {
        &self.file_io
    }

    /// A folder of this host for files that are only needed meanwhile.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// What a catalog lends with the table at a location, instead of what it lent before: Iceberg's properties of storage, each set for all
    /// locations that begin with its prefix.
    pub fn lend(&self, table: &str, sets: Vec<(String, BTreeMap<String, config::Secret>)>) {
        self.buckets.lend(table, sets);
    }

    /// A new file. With `compacted`, parts of it will be left out once it is written, so that an object cannot be sent before.
    pub fn create(&self, location: &str, compacted: bool) -> Result<NewFile> {
        if is_local(location) {
            let path = local_path(location)?;
            return DurableFile::create(&path).map(NewFile::Local).map_err(|e| file_error("create", &path, e));
        }
        let upload = Upload::new(self.buckets.clone(), location)?;
        if !compacted {
            return Ok(NewFile::Object(Box::new(upload)));
        }
        let path = self.scratch.join(format!("k2-offload-{}.scratch", uuid::Uuid::new_v4()));
        let file = nameless_file(&path).map_err(|e| file_error("create", &path, e))?;
        Ok(NewFile::Spooled(file, path, Box::new(upload)))
    }

    /// Writes a small file as a whole; one of that name is replaced.
    pub async fn replace(&self, location: &str, bytes: Bytes) -> Result<()> {
        if is_local(location) {
            let path = local_path(location)?;
            return local::replace(&path, &bytes).map_err(|e| file_error("write", &path, e));
        }
        let (bucket, key) = self.buckets.find(location)?;
        bucket.store.put(&key, bytes.into()).await.map_err(|e| bucket.access.failed("write", location, e)).map(|_| ())
    }

    /// Reads a file as a whole.
    pub async fn read(&self, location: &str) -> Result<Bytes, Missing> {
        if is_local(location) {
            let path = local_path(location)?;
            return std::fs::read(&path).map(Bytes::from).map_err(|e| Missing::of_file("read", &path, e));
        }
        self.buckets.read(location).await
    }

    /// Reads a file as a whole; `None` where there is none.
    pub async fn read_if_exists(&self, location: &str) -> Result<Option<Bytes>> {
        match self.read(location).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Missing::Gone(_)) => Ok(None),
            Err(Missing::Failed(error)) => Err(error),
        }
    }

    /// Whether there is a file.
    pub async fn exists(&self, location: &str) -> Result<bool> {
        if is_local(location) {
            return Ok(local_path(location)?.is_file());
        }
        match self.buckets.head(location).await {
            Ok(_) => Ok(true),
            Err(Missing::Gone(_)) => Ok(false),
            Err(Missing::Failed(error)) => Err(error),
        }
    }

    /// Deletes a file that we created and nobody refers to; one that is not there is fine. What was begun of it is given up.
    pub async fn delete(&self, location: &str) -> Result<()> {
        if is_local(location) {
            return local::delete(&local_path(location)?);
        }
        self.buckets.delete(location).await
    }

    /// Deletes files that nothing needs as [`Self::delete`] does. The first that cannot be deleted is the last that is tried, because each try takes its
    /// time, and is told.
    pub async fn discard(&self, locations: &[String]) {
        for (at, location) in locations.iter().enumerate() {
            if let Err(error) = self.delete(location).await {
                let files = locations.get(at..).unwrap_or_default();
                return tracing::warn!(?files, %error, "files that are not needed were left behind");
            }
        }
    }

    /// Every file below a folder.
    pub async fn list(&self, folder: &str) -> Result<Vec<Stored>> {
        if is_local(folder) {
            let (path, mut files) = (local_path(folder)?, Vec::new());
            local::files_below(&path, &mut files).map_err(|e| file_error("list", &path, e))?;
            return Ok(files);
        }
        let (bucket, key) = self.buckets.find(folder)?;
        let root = root_of(folder, key.as_ref()).to_owned();
        let stored = |object: object_store::ObjectMeta| Stored {
            location: format!("{root}/{}", object.location),
            bytes: object.size,
            modified: object.last_modified.into(),
        };
        let listed = bucket.store.list(Some(&key)).map_ok(stored).try_collect::<Vec<_>>().await;
        listed.map_err(|e| bucket.access.failed("list", folder, e))
    }

    /// Tries whether files can be written below a location; nothing stays.
    pub async fn try_writing(&self, location: &str) -> Result<()> {
        if is_local(location) {
            return try_folder(&local_path(location)?);
        }
        let file = format!("{location}/k2-offload-try-{}", uuid::Uuid::new_v4());
        self.replace(&file, Bytes::from_static(b"k2-offload config check\n")).await?;
        let (listed, deleted) = (self.list(&file).await, self.delete(&file).await);
        deleted.and(listed.map(drop))
    }
}

/// A new file that is written from front to back; whole, durable and visible once [`NewFile::finish`] returns.
#[derive(Debug)]
pub enum NewFile {
    /// On this host.
    Local(DurableFile),
    /// In a store, sent in parts.
    Object(Box<Upload>),
    /// In a store, written to a file without a name first.
    Spooled(File, PathBuf, Box<Upload>),
}

impl NewFile {
    /// Appends `bytes`.
    pub fn write(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            Self::Local(file) => file.write(&bytes).map_err(|e| file_error("write", file.path(), e)),
            Self::Object(upload) => upload.write(bytes),
            Self::Spooled(file, path, _) => file.write_all(&bytes).map_err(|e| file_error("write", path, e)),
        }
    }

    /// Waits until not much of what was written is still in memory.
    pub async fn ready(&mut self) -> Result<()> {
        match self {
            Self::Object(upload) => upload.ready().await,
            Self::Local(_) | Self::Spooled(..) => Ok(()),
        }
    }

    /// Moves `parts` of what was written, ascending and behind `start`, together from `start` on, and cuts off the rest.
    pub fn compact(&mut self, start: u64, parts: &[Range<u64>]) -> Result<()> {
        match self {
            Self::Local(file) => file.compact(start, parts).map_err(|e| file_error("write", file.path(), e)),
            Self::Spooled(file, path, _) => {
                local::compact(file, start, parts).map_err(|e| file_error("write", path, e))
            }
            Self::Object(_) => Err(Error::new(Kind::Internal, "parts of a file that was sent cannot be left out")),
        }
    }

    /// Crash safety: content and name are durable before this returns.
    pub async fn finish(self) -> Result<()> {
        match self {
            Self::Local(file) => {
                let path = file.path().to_owned();
                // On a thread of its own: a disk takes its time, and another table may stream meanwhile.
                let (done, synced) = oneshot::channel();
                let sync = move || done.send(file.finish());
                thread::Builder::new().spawn(sync).or_error(Kind::Unavailable, "start a thread")?;
                synced.await.or_error(Kind::Internal, "wait for a sync")?.map_err(|e| file_error("sync", &path, e))
            }
            Self::Object(upload) => upload.finish().await,
            Self::Spooled(file, path, mut upload) => {
                let mut pieces = local::Pieces::of(&file).map_err(|e| file_error("read", &path, e))?;
                while let Some(piece) = pieces.next().map_err(|e| file_error("read", &path, e))? {
                    upload.write(piece)?;
                    upload.ready().await?;
                }
                upload.finish().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_bucket_is_a_folder_too() {
        for (folder, key) in [("s3://b/w/t", "w/t"), ("s3://b/", ""), ("s3://b", "")] {
            assert_eq!(root_of(folder, key), "s3://b", "{folder}");
        }
    }

    #[test]
    fn files_have_one_spelling() {
        assert!(["file:///w/x", "file:/w/x", "/w/x"].iter().all(|location| same_spelling(location) == "/w/x"));
        assert!(["s3://b/x", "s3a://b/x", "s3n://b/x"].iter().all(|location| same_spelling(location) == "s3://b/x"));
        assert_eq!(same_spelling("gs://b/x"), "gs://b/x");
        assert_eq!(same_spelling("abfs://b@a/x"), same_spelling("abfss://b@a/x"));
    }
}
