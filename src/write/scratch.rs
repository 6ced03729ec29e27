//! An answer of the server as a file that iceberg reads, for a while: with the table's field ids, and without a name.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use iceberg::spec::Schema;
use parquet::file::metadata::ParquetMetaData;

use super::{MAX_HOLD_BACK, TRAILER, footer, footer_length, rows_of_a_batch};
use crate::error::{Error, Kind, Result};
use crate::storage::{file_error, nameless_file};

/// The file while the answer streams in. Nothing is left of it when the process ends, however it does.
#[derive(Debug)]
pub struct ScratchWriter {
    file: File,
    path: PathBuf,
    length: u64,
}

/// A complete answer on disk.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    /// Its length in bytes.
    pub length: u64,
    /// The ids of its flat fields, at any depth.
    pub fields: BTreeSet<i32>,
    /// As many rows as are decoded at once.
    pub batch_rows: usize,
    /// Its rows.
    pub rows: u64,
}

impl ScratchWriter {
    /// Creates it in a folder.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join(format!("k2-offload-{}.scratch", uuid::Uuid::new_v4()));
        let file = nameless_file(&path).map_err(|e| file_error("create", &path, e))?;
        Ok(Self { file, path, length: 0 })
    }

    /// Appends the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|e| file_error("write", &self.path, e))
    }

    /// Ends a complete answer; `None` where it holds no row.
    pub fn finish(mut self, schema: &Schema) -> Result<Option<Scratch>> {
        let trailer = self.read_end(0, TRAILER)?;
        let footer_length = footer_length(&trailer)?;
        if footer_length > MAX_HOLD_BACK {
            let message = format!("the Parquet footer takes {footer_length} bytes, more than {MAX_HOLD_BACK}");
            return Err(Error::refused(message).hint("offload fewer columns"));
        }
        let footer = self.read_end(TRAILER, footer_length)?;
        let start = self.length - (footer_length + TRAILER) as u64;
        // All Bloom filters that there may be stay, so that nothing moves.
        let all: Vec<String> = schema.as_struct().fields().iter().map(|field| field.name.clone()).collect();
        let rewritten = footer::rewrite(&footer, start, schema, &all)?;
        if rewritten.cut.length() > 0 {
            return Err(Error::new(Kind::Internal, "the footer of an answer left something out"));
        }
        let written = self.file.set_len(start).and_then(|()| self.file.seek(SeekFrom::Start(start)));
        written.and_then(|_| self.file.write_all(&rewritten.bytes)).map_err(|e| file_error("write", &self.path, e))?;
        let length = start + rewritten.bytes.len() as u64;
        let fields = field_ids(&rewritten.metadata);
        let rows = u64::try_from(rewritten.metadata.file_metadata().num_rows()).unwrap_or(0);
        let batch_rows = rows_of_a_batch(rewritten.metadata.row_groups());
        Ok((rows > 0).then_some(Scratch { file: self.file, length, fields, batch_rows, rows }))
    }

    /// `length` bytes that end `before` the end.
    fn read_end(&self, before: usize, length: usize) -> Result<Vec<u8>> {
        let start = self.length.checked_sub((before + length) as u64);
        let start =
            start.ok_or_else(|| Error::new(Kind::Unavailable, "the server's answer is no complete Parquet file"))?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start).map_err(|e| file_error("read", &self.path, e))?;
        Ok(bytes)
    }
}

impl Scratch {
    /// Where this process, and it alone, finds the file.
    pub fn location(&self) -> String {
        format!("file:///proc/self/fd/{}", self.file.as_raw_fd())
    }
}

/// The ids of the flat fields of a file, at any depth.
pub fn field_ids(metadata: &ParquetMetaData) -> BTreeSet<i32> {
    let leaves = metadata.file_metadata().schema_descr().columns().iter();
    let infos = leaves.map(|leaf| leaf.self_type().get_basic_info().clone());
    infos.filter(|info| info.has_id()).map(|info| info.id()).collect()
}
