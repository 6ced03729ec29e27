//! `metadata/version-hint.text`: for who reads a table by its folder, without the catalog, and would take whatever metadata file has the highest number.
//!
//! ClickHouse (`iceberg_use_version_hint`) and DuckDB (`iceberg_scan`) read the file that the hint names. It is written after a commit; a pass
//! that finds it behind, because others committed or it died in between, puts it right. A hint that is a number is a Hadoop catalog's, and stays.

use bytes::Bytes;

use super::Target;
use super::register::{VERSION_HINT, parts};
use crate::error::Result;
use crate::storage::{Missing, Storage, same_spelling};

const SUFFIX: &str = ".metadata.json";

impl Target {
    /// What the hint must say, and where; `None` for metadata that does not lie where readers look for it, or is compressed.
    fn hint(&self) -> Option<(String, &str)> {
        let (folder, name) = parts(&self.metadata_location);
        let own = format!("{}/metadata", self.metadata.location().trim_end_matches('/'));
        let named = name.strip_suffix(SUFFIX).filter(|stem| !stem.ends_with(".gz") && !stem.starts_with('v'));
        named
            .filter(|_| same_spelling(folder) == same_spelling(&own))
            .map(|stem| (format!("{folder}/{VERSION_HINT}"), stem))
    }

    /// Lets the hint name this version. Readers of the catalog do not need it: what goes wrong is a warning.
    pub async fn put_hint_right(&self, storage: &Storage) {
        let Some((location, stem)) = self.hint() else { return };
        let put = async || match read(storage, &location).await? {
            Some(text) if text == stem || is_number(&text) => Ok(()),
            _ => storage.replace(&location, Bytes::copy_from_slice(stem.as_bytes())).await,
        };
        if let Err(error) = put().await {
            tracing::warn!(%error, "version-hint.text was not written: who reads the table without its catalog sees an older version");
        }
    }
}

/// What a hint says; `None` where there is none.
async fn read(storage: &Storage, location: &str) -> Result<Option<String>> {
    match storage.read(location).await {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(Missing::Gone(_)) => Ok(None),
        Err(Missing::Failed(error)) => Err(error),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
