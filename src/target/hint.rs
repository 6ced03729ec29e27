//! `metadata/version-hint.text`: for who reads a table by its folder, without the catalog, and would take whatever metadata file has the highest number.
//!
//! ClickHouse (`iceberg_use_version_hint`) and DuckDB (`iceberg_scan`) read the file that the hint names. It is written after a commit; a pass
//! that finds it behind, because others committed or it died in between, puts it right. A hint that is a number is a Hadoop catalog's, and stays.

use bytes::Bytes;

use super::Target;
use super::register::{VERSION_HINT, parts};
use crate::error::Result;
use crate::storage::{Storage, same_spelling};

const SUFFIX: &str = ".metadata.json";

impl Target {
    /// Lets the hint name this version, after a commit that made it.
    pub async fn write_hint(&self, storage: &Storage) {
        self.put_hint_right(storage, true).await;
    }

    /// Lets a hint that is there name this version.
    pub async fn check_hint(&self, storage: &Storage) {
        self.put_hint_right(storage, false).await;
    }

    /// Readers of the catalog do not need it: what goes wrong is a warning.
    async fn put_hint_right(&self, storage: &Storage, make: bool) {
        let (folder, name) = parts(&self.metadata_location);
        let own = format!("{}/metadata", self.metadata.location().trim_end_matches('/'));
        // Where others keep their metadata elsewhere, readers have no hint, or theirs.
        if same_spelling(folder) != same_spelling(&own) {
            return;
        }
        let location = format!("{folder}/{VERSION_HINT}");
        let put = async || match (read(storage, &location).await?, named(name)) {
            (Some(text), _) if is_number(&text) => Ok(()),
            (Some(text), Some(stem)) if text == stem => Ok(()),
            (None, Some(_)) if !make => Ok(()),
            (_, Some(stem)) => storage.replace(&location, Bytes::copy_from_slice(stem.as_bytes())).await,
            // One of ours that names an older version: none is better.
            (Some(_), None) => storage.delete(&location).await,
            (None, None) => Ok(()),
        };
        if let Err(error) = put().await {
            tracing::warn!(%error, "version-hint.text was not written: who reads the table without its catalog sees an older version");
        }
    }
}

/// What a hint says of a metadata file; `None` for one that readers would not find by it: compressed, or a Hadoop catalog's.
fn named(file: &str) -> Option<&str> {
    file.strip_suffix(SUFFIX).filter(|stem| !stem.ends_with(".gz") && !stem.starts_with('v'))
}

/// What a hint says; `None` where there is none.
async fn read(storage: &Storage, location: &str) -> Result<Option<String>> {
    let bytes = storage.read_if_exists(location).await?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
