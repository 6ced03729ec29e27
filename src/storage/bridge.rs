//! iceberg's traits of storage over [`Buckets`] and local files.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig,
    StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::buckets::Buckets;
use super::errors::Missing;
use super::is_local;
use super::local::{DurableFile, delete, local_path};
use super::upload::Upload;

/// A `FileIO` over local files and these buckets.
pub(super) fn file_io(buckets: Arc<Buckets>) -> FileIO {
    FileIOBuilder::new(Arc::new(Bridge { buckets: Some(buckets) })).build()
}

/// Storage and its factory. iceberg wants to send them elsewhere; from there only local files are reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Bridge {
    #[serde(skip)]
    buckets: Option<Arc<Buckets>>,
}

#[typetag::serde(name = "K2OffloadFiles")]
impl StorageFactory for Bridge {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Bridge {
    fn buckets(&self) -> Result<&Arc<Buckets>> {
        self.buckets.as_ref().ok_or_else(|| Error::new(ErrorKind::FeatureUnsupported, "no object store is known here"))
    }
}

fn path_of(location: &str) -> Result<PathBuf> {
    local_path(location).map_err(failed)
}

/// Keeps our error as source, so that its kind can still be found ([`crate::target::classify`]).
fn failed(error: crate::error::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "use storage").with_source(error)
}

fn missing(error: Missing) -> Error {
    match error {
        Missing::Failed(error) => failed(error),
        Missing::Gone(location) => {
            let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");
            Error::new(ErrorKind::Unexpected, format!("read {location}")).with_source(cause)
        }
    }
}

/// Keeps the `io::Error` as source, so that its kind can still be found ([`crate::target::classify`]).
fn io_error(verb: &str, path: &Path, cause: io::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("{verb} {}", path.display())).with_source(cause)
}

#[async_trait]
#[typetag::serde(name = "K2OffloadFiles")]
impl Storage for Bridge {
    async fn exists(&self, location: &str) -> Result<bool> {
        if is_local(location) {
            return Ok(path_of(location)?.exists());
        }
        match self.buckets()?.head(location).await {
            Ok(_) => Ok(true),
            Err(Missing::Gone(_)) => Ok(false),
            Err(Missing::Failed(error)) => Err(failed(error)),
        }
    }

    async fn metadata(&self, location: &str) -> Result<FileMetadata> {
        if is_local(location) {
            let path = path_of(location)?;
            let size = fs::metadata(&path).map_err(|e| io_error("look at", &path, e))?.len();
            return Ok(FileMetadata { size });
        }
        let size = self.buckets()?.head(location).await.map_err(missing)?;
        Ok(FileMetadata { size })
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        if is_local(location) {
            let path = path_of(location)?;
            return fs::read(&path).map(Bytes::from).map_err(|e| io_error("read", &path, e));
        }
        self.buckets()?.read(location).await.map_err(missing)
    }

    async fn reader(&self, location: &str) -> Result<Box<dyn FileRead>> {
        if is_local(location) {
            let path = path_of(location)?;
            let file = File::open(&path).map_err(|e| io_error("open", &path, e))?;
            return Ok(Box::new(LocalReader { file, path }));
        }
        Ok(Box::new(ObjectReader { buckets: self.buckets()?.clone(), location: location.to_owned() }))
    }

    async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        let mut writer = self.writer(location).await?;
        writer.write(bytes).await?;
        writer.close().await
    }

    async fn writer(&self, location: &str) -> Result<Box<dyn FileWrite>> {
        if is_local(location) {
            let path = path_of(location)?;
            let file = DurableFile::create(&path).map_err(|e| io_error("create", &path, e))?;
            return Ok(Box::new(LocalWriter { file: Some(file), path }));
        }
        Ok(Box::new(ObjectWriter(Some(Upload::new(self.buckets()?.clone(), location).map_err(failed)?))))
    }

    async fn delete(&self, location: &str) -> Result<()> {
        match is_local(location) {
            true => delete(&path_of(location)?).map_err(failed),
            false => self.buckets()?.delete(location).await.map_err(failed),
        }
    }

    async fn delete_prefix(&self, _location: &str) -> Result<()> {
        // Nobody here deletes what he has not named.
        Err(Error::new(ErrorKind::FeatureUnsupported, "folders are not deleted"))
    }

    async fn delete_stream(&self, mut locations: BoxStream<'static, String>) -> Result<()> {
        while let Some(location) = locations.next().await {
            self.delete(&location).await?;
        }
        Ok(())
    }

    fn new_input(&self, location: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), location.to_owned()))
    }

    fn new_output(&self, location: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), location.to_owned()))
    }
}

#[derive(Debug)]
struct LocalReader {
    file: File,
    path: PathBuf,
}

#[async_trait]
impl FileRead for LocalReader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|e| io_error("read", &self.path, io::Error::other(e)))?;
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, range.start).map_err(|e| io_error("read", &self.path, e))?;
        Ok(buffer.into())
    }
}

#[derive(Debug)]
struct ObjectReader {
    buckets: Arc<Buckets>,
    location: String,
}

#[async_trait]
impl FileRead for ObjectReader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.buckets.read_range(&self.location, range).await.map_err(missing)
    }
}

#[derive(Debug)]
struct LocalWriter {
    file: Option<DurableFile>,
    path: PathBuf,
}

#[async_trait]
impl FileWrite for LocalWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let file =
            self.file.as_mut().ok_or_else(|| io_error("write closed", &self.path, io::ErrorKind::BrokenPipe.into()))?;
        file.write(&bytes).map_err(|e| io_error("write", &self.path, e))
    }

    async fn close(&mut self) -> Result<()> {
        self.file.take().map_or(Ok(()), DurableFile::finish).map_err(|e| io_error("sync", &self.path, e))
    }
}

#[derive(Debug)]
struct ObjectWriter(Option<Upload>);

#[async_trait]
impl FileWrite for ObjectWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let closed = || Error::new(ErrorKind::Unexpected, "the file is closed");
        let upload = self.0.as_mut().ok_or_else(closed)?;
        upload.write(bytes).map_err(failed)?;
        upload.ready().await.map_err(failed)
    }

    async fn close(&mut self) -> Result<()> {
        match self.0.take() {
            Some(upload) => upload.finish().await.map_err(failed),
            None => Ok(()),
        }
    }
}
