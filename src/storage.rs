//! Local files that are on disk before anyone is told their name (protocol.md P18).
//!
//! iceberg's own `LocalFsStorage` neither syncs directories nor keeps the cause of an error. This one syncs each file
//! when it is closed and the directory that names it right after, including directories that it had to create. It is the only
//! module that touches files of the warehouse; it knows nothing of tables.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
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
use iceberg::{Error as IcebergError, ErrorKind as IcebergErrorKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Kind, Result};
use crate::failpoint::{self, Failpoint};

/// Bytes that are moved at once.
const COPY_BUFFER: usize = 1 << 16;

/// A `FileIO` over durable local files.
pub fn local_file_io() -> FileIO {
    FileIOBuilder::new(Arc::new(LocalFactory)).build()
}

/// The path of a `file:` URI (`file:///p`, `file:/p`) or of a bare absolute path.
pub fn local_path(location: &str) -> Result<PathBuf> {
    let path = location.strip_prefix("file://").or_else(|| location.strip_prefix("file:")).unwrap_or(location);
    if !path.starts_with('/') {
        let message = format!("location `{location}` is not a local file");
        return Err(Error::refused(message).hint("only file:/// warehouses are supported by this version"));
    }
    Ok(PathBuf::from(path))
}

/// One spelling for the URIs of a file: writers differ in `file:///p`, `file:/p` and `/p`.
pub fn same_spelling(location: &str) -> String {
    local_path(location).map_or_else(|_| location.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// Deletes a file that we created and nobody refers to; a file that is not there is fine.
pub fn delete_own_file(location: &str) -> Result<()> {
    let path = local_path(location)?;
    let Err(error) = fs::remove_file(&path) else { return Ok(()) };
    // A file system that is read-only refuses before it looks whether there is such a file.
    let is_gone = error.kind() == io::ErrorKind::NotADirectory || matches!(path.try_exists(), Ok(false));
    if is_gone { Ok(()) } else { Err(file_error("delete", &path, error)) }
}

/// Puts what was to be done with which file in front of its error, and sorts that.
pub fn file_error(verb: &str, path: &Path, cause: io::Error) -> Error {
    let (kind, hint) = judge(cause.kind());
    Error::from_cause(kind, cause).context(format!("{verb} {}", path.display())).hint(hint)
}

/// What an error of the file system means, and what to do about it.
pub fn judge(kind: io::ErrorKind) -> (Kind, &'static str) {
    use io::ErrorKind as E;
    match kind {
        E::StorageFull | E::QuotaExceeded => {
            (Kind::Unavailable, "the disk is full; the next pass goes on once there is space")
        }
        E::ReadOnlyFilesystem | E::PermissionDenied => {
            (Kind::Unavailable, "it must be writable for this user; the next pass tries again")
        }
        E::NotADirectory | E::IsADirectory | E::AlreadyExists | E::InvalidFilename => {
            (Kind::Config, "there can be no such file or folder here; correct names and paths in the configuration")
        }
        _ => (Kind::Unavailable, Kind::Unavailable.policy().hint),
    }
}

/// Tries whether files can be made durable in a folder, or, where it does not exist yet, in the nearest one above it. Nothing stays.
pub fn try_folder(folder: &Path) -> Result<()> {
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let path = nearest.join(format!("k2-offload-try-{}", Uuid::new_v4()));
    let written = DurableFile::create(&path).and_then(|mut file| {
        file.write(b"k2-offload config check\n")?;
        file.finish()
    });
    let deleted = fs::remove_file(&path);
    written.and(deleted).map_err(|e| file_error("write a file in", nearest, e))
}

/// A new file that is written from front to back and durable once [`DurableFile::finish`] returns.
#[derive(Debug)]
pub struct DurableFile {
    file: File,
    path: PathBuf,
}

impl DurableFile {
    /// Creates `path`, which must not exist, and the directories above it.
    pub fn create(path: &Path) -> io::Result<Self> {
        failpoint::hit_disk(Failpoint::FileCreate)?;
        if let Some(parent) = path.parent() {
            create_directories(parent)?;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        failpoint::hit_disk(Failpoint::FileWrite)?;
        self.file.write_all(bytes)
    }

    /// Moves `parts` of what was written, ascending and behind `start`, together from `start` on, and cuts off the rest.
    pub fn compact(&mut self, start: u64, parts: &[Range<u64>]) -> io::Result<()> {
        let mut buffer = vec![0; COPY_BUFFER];
        let mut to = start;
        for part in parts {
            let mut from = part.start;
            while from < part.end {
                let length = usize::try_from(part.end - from).unwrap_or(COPY_BUFFER).min(COPY_BUFFER);
                let buffer = buffer.get_mut(..length).unwrap_or_default();
                self.file.read_exact_at(buffer, from)?;
                self.file.write_all_at(buffer, to)?;
                from += length as u64;
                to += length as u64;
            }
        }
        self.file.set_len(to)?;
        self.file.seek(io::SeekFrom::Start(to)).map(|_| ())
    }

    /// Crash safety: the content is on disk before the name, and both are before this returns.
    pub fn finish(self) -> io::Result<()> {
        failpoint::hit_disk(Failpoint::FileSync)?;
        self.file.sync_all()?;
        self.path.parent().map_or(Ok(()), sync_directory)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A new file without a name, where `path` is: nothing is left of it when the process ends, however it does. For what is only needed meanwhile.
pub fn nameless_file(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        create_directories(parent)?;
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// `create_dir_all` that syncs the parent of every directory that it creates.
fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let Some(parent) = path.parent() else { return Ok(()) };
    create_directories(parent)?;
    match fs::create_dir(path) {
        // Another process was faster; a file of that name fails right below.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_directory(parent),
    }
}

/// [`Storage`] for iceberg over [`DurableFile`].
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct LocalStorage;

/// Builds [`LocalStorage`].
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct LocalFactory;

#[typetag::serde(name = "K2OffloadLocal")]
impl StorageFactory for LocalFactory {
    fn build(&self, _config: &StorageConfig) -> iceberg::Result<Arc<dyn Storage>> {
        Ok(Arc::new(LocalStorage))
    }
}

fn path_of(location: &str) -> iceberg::Result<PathBuf> {
    local_path(location).map_err(|e| IcebergError::new(IcebergErrorKind::FeatureUnsupported, e.to_string()))
}

/// Keeps the `io::Error` as source, so that its kind can still be found ([`crate::target::classify`]).
fn io_error(verb: &str, path: &Path, cause: io::Error) -> IcebergError {
    IcebergError::new(IcebergErrorKind::Unexpected, format!("{verb} {}", path.display())).with_source(cause)
}

#[async_trait]
#[typetag::serde(name = "K2OffloadLocal")]
impl Storage for LocalStorage {
    async fn exists(&self, path: &str) -> iceberg::Result<bool> {
        Ok(path_of(path)?.exists())
    }

    async fn metadata(&self, path: &str) -> iceberg::Result<FileMetadata> {
        let path = path_of(path)?;
        let size = fs::metadata(&path).map_err(|e| io_error("look at", &path, e))?.len();
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> iceberg::Result<Bytes> {
        let path = path_of(path)?;
        fs::read(&path).map(Bytes::from).map_err(|e| io_error("read", &path, e))
    }

    async fn reader(&self, path: &str) -> iceberg::Result<Box<dyn FileRead>> {
        let path = path_of(path)?;
        let file = File::open(&path).map_err(|e| io_error("open", &path, e))?;
        Ok(Box::new(LocalReader { file, path }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> iceberg::Result<()> {
        let mut writer = self.writer(path).await?;
        writer.write(bytes).await?;
        writer.close().await
    }

    async fn writer(&self, path: &str) -> iceberg::Result<Box<dyn FileWrite>> {
        let path = path_of(path)?;
        let file = DurableFile::create(&path).map_err(|e| io_error("create", &path, e))?;
        Ok(Box::new(LocalWriter { file: Some(file), path }))
    }

    async fn delete(&self, path: &str) -> iceberg::Result<()> {
        let path = path_of(path)?;
        fs::remove_file(&path).map_err(|e| io_error("delete", &path, e))
    }

    async fn delete_prefix(&self, path: &str) -> iceberg::Result<()> {
        let path = path_of(path)?;
        fs::remove_dir_all(&path).map_err(|e| io_error("delete", &path, e))
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> iceberg::Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> iceberg::Result<InputFile> {
        Ok(InputFile::new(Arc::new(*self), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> iceberg::Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(*self), path.to_owned()))
    }
}

#[derive(Debug)]
struct LocalReader {
    file: File,
    path: PathBuf,
}

#[async_trait]
impl FileRead for LocalReader {
    async fn read(&self, range: Range<u64>) -> iceberg::Result<Bytes> {
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|e| io_error("read", &self.path, io::Error::other(e)))?;
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, range.start).map_err(|e| io_error("read", &self.path, e))?;
        Ok(buffer.into())
    }
}

#[derive(Debug)]
struct LocalWriter {
    file: Option<DurableFile>,
    path: PathBuf,
}

#[async_trait]
impl FileWrite for LocalWriter {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        let file =
            self.file.as_mut().ok_or_else(|| io_error("write closed", &self.path, io::ErrorKind::BrokenPipe.into()))?;
        file.write(&bytes).map_err(|e| io_error("write", &self.path, e))
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        self.file.take().map_or(Ok(()), DurableFile::finish).map_err(|e| io_error("sync", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_parts_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let mut file = DurableFile::create(&path).unwrap();
        file.write(&content).unwrap();
        let parts = [10..10, 100..200_001, 250_000..300_000];
        file.compact(7, &parts).unwrap();
        file.write(b"end").unwrap();
        file.finish().unwrap();
        let kept = parts.iter().map(|part| &content[part.start as usize..part.end as usize]);
        let expected: Vec<&[u8]> = [&content[..7]].into_iter().chain(kept).chain([&b"end"[..]]).collect();
        assert!(fs::read(&path).unwrap() == expected.concat());
    }

    #[test]
    fn files_have_one_spelling() {
        assert!(["file:///w/x", "file:/w/x", "/w/x"].iter().all(|location| same_spelling(location) == "/w/x"));
        assert_eq!(same_spelling("s3://b/x"), "s3://b/x");
    }
}
