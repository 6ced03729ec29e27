//! Local files that are on disk before anyone is told their name (protocol.md P18).
//!
//! iceberg's own `LocalFsStorage` neither syncs directories nor keeps the cause of an error. This syncs each file when it is closed and the
//! directory that names it right after, including directories that it had to create.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use super::Stored;
use crate::error::{Error, Kind, Result};
use crate::failpoint::{self, Failpoint};

/// Bytes that are moved at once.
const COPY_BUFFER: usize = 1 << 16;
/// Bytes of a piece of a file that is sent elsewhere.
const PIECE: usize = 1 << 20;

/// The path of a `file:` URI (`file:///p`, `file:/p`) or of a bare absolute path.
pub fn local_path(location: &str) -> Result<PathBuf> {
    let path = location.strip_prefix("file://").or_else(|| location.strip_prefix("file:")).unwrap_or(location);
    if !path.starts_with('/') {
        let message = format!("location `{location}` is not a local file");
        return Err(Error::refused(message));
    }
    Ok(PathBuf::from(path))
}

/// Deletes a file; one that is not there is fine.
pub(super) fn delete(path: &Path) -> Result<()> {
    let Err(error) = fs::remove_file(path) else { return Ok(()) };
    // A file system that is read-only refuses before it looks whether there is such a file.
    let is_gone = error.kind() == io::ErrorKind::NotADirectory || matches!(path.try_exists(), Ok(false));
    if is_gone { Ok(()) } else { Err(file_error("delete", path, error)) }
}

/// Writes a file as a whole, durably; a reader finds the old one or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_file_name(format!("k2-offload-{}.tmp", Uuid::now_v7()));
    let written = DurableFile::create(&unfinished).and_then(|mut file| {
        file.write(bytes)?;
        file.finish()?;
        fs::rename(&unfinished, path)?;
        path.parent().map_or(Ok(()), sync_directory)
    });
    written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// A file, piece by piece.
pub(super) struct Pieces<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Pieces<'a> {
    pub(super) fn of(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, at: 0, end: file.metadata()?.len() })
    }

    /// The next piece, `None` after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        let length = usize::try_from(self.end - self.at).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; length];
        self.file.read_exact_at(&mut piece, self.at)?;
        self.at += length as u64;
        Ok((length > 0).then(|| piece.into()))
    }
}

/// Every file below a folder; links are not followed.
pub(super) fn files_below(folder: &Path, files: &mut Vec<Stored>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files_below(&entry.path(), files)?;
        } else if kind.is_file() {
            let (location, metadata) = (entry.path().to_string_lossy().into_owned(), entry.metadata()?);
            files.push(Stored { location, bytes: metadata.len(), modified: metadata.modified()? });
        }
    }
    Ok(())
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
        compact(&mut self.file, start, parts)
    }

    /// Crash safety: the content is on disk before the name, and both are before this returns.
    pub fn finish(self) -> io::Result<()> {
        failpoint::hit_disk(Failpoint::FileSync)?;
        self.file.sync_all()?;
        self.path.parent().map_or(Ok(()), sync_directory)
    }
}

/// Moves `parts` of a file, ascending and behind `start`, together from `start` on, and cuts off the rest.
pub fn compact(file: &mut File, start: u64, parts: &[Range<u64>]) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER];
    let mut to = start;
    for part in parts {
        let mut from = part.start;
        while from < part.end {
            let length = usize::try_from(part.end - from).unwrap_or(COPY_BUFFER).min(COPY_BUFFER);
            let buffer = buffer.get_mut(..length).unwrap_or_default();
            file.read_exact_at(buffer, from)?;
            file.write_all_at(buffer, to)?;
            from += length as u64;
            to += length as u64;
        }
    }
    file.set_len(to)?;
    file.seek(io::SeekFrom::Start(to)).map(|_| ())
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
}
