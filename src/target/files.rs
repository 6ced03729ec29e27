//! How many data files a table has, and how many of them are small.

use iceberg::io::FileIO;
use iceberg::spec::DataContentType;

use super::{Target, classify, manifests_of};
use crate::error::Result;

/// The data files of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataFiles {
    /// How many there are.
    pub number: u64,
    /// Those that Iceberg's `rewrite_data_files` would take for too small by default: below three quarters of the target size.
    pub small: u64,
    /// Bytes of all.
    pub bytes: u64,
}

impl DataFiles {
    fn add(&mut self, bytes: u64, target_file_size: u64) {
        self.number += 1;
        self.bytes += bytes;
        self.small += u64::from(bytes < target_file_size / 4 * 3);
    }
}

impl Target {
    /// The data files of the newest snapshot.
    pub async fn data_files(&self, file_io: &FileIO, target_file_size: u64) -> Result<DataFiles> {
        let mut files = DataFiles::default();
        let Some(snapshot) = self.metadata.current_snapshot() else { return Ok(files) };
        let failed = |e| classify(e, format!("list the data files of `{}`", self.metadata.location()));
        for manifest in manifests_of(snapshot, &self.metadata, file_io).await.map_err(failed)? {
            let manifest = manifest.load_manifest(file_io).await.map_err(failed)?;
            let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
            for entry in alive.filter(|entry| entry.data_file().content_type() == DataContentType::Data) {
                files.add(entry.data_file().file_size_in_bytes(), target_file_size);
            }
        }
        Ok(files)
    }
}
