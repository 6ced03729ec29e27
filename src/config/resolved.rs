//! The configuration as it counts, spelled as `offload.toml` spells it: paths absolute, defaults filled in, also for each table.
//!
//! It holds what the file holds: where secrets come from, never a secret.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::lake::properties::{FILES, located};
use super::raw::{RawDefaults, RawFile, RawTable};
use super::{Backend, Config, Table};

/// See the module. Reading it again, from wherever, gives the same [`Config`].
#[derive(Serialize)]
#[serde(transparent)]
pub struct Resolved(RawFile);

impl Resolved {
    /// `raw` is what `config` was made of.
    pub(super) fn new(mut raw: RawFile, folder: &Path, config: &Config) -> Self {
        raw.clickhouse.password_file = raw.clickhouse.password_file.map(|file| folder.join(file));
        raw.clickhouse.ca_file = raw.clickhouse.ca_file.map(|file| folder.join(file));
        if let Backend::Sqlite(path) = &config.catalog.backend {
            raw.catalog.uri = format!("sqlite:///{}", path.display());
        }
        raw.catalog.warehouse = Some(config.catalog.warehouse.clone());
        for file in [
            &mut raw.catalog.token_file,
            &mut raw.catalog.credential_file,
            &mut raw.catalog.password_file,
            &mut raw.catalog.ca_file,
            &mut raw.state.password_file,
            &mut raw.state.ca_file,
        ] {
            *file = file.take().map(|file| folder.join(file));
        }
        raw.catalog.properties = located(raw.catalog.properties, folder);
        raw.state.path.clone_from(&config.state);
        raw.metrics.textfile.clone_from(&config.metrics.textfile);
        raw.notify.webhook_file = raw.notify.webhook_file.map(|file| folder.join(file));
        for raw_table in &mut raw.table {
            if let Some(table) = config.tables.iter().find(|table| table.target.to_string() == raw_table.target) {
                fill(raw_table, &raw.defaults, table);
            }
        }
        Self(raw)
    }

    /// The files beside it that are read: secrets and certificates.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let RawFile { clickhouse, catalog, state, notify, .. } = &self.0;
        let named = [
            &clickhouse.password_file,
            &clickhouse.ca_file,
            &catalog.token_file,
            &catalog.credential_file,
            &catalog.password_file,
            &catalog.ca_file,
            &state.password_file,
            &state.ca_file,
            &notify.webhook_file,
        ];
        let of_storage = FILES.iter().filter_map(|key| catalog.properties.get(*key)).map(Path::new);
        named.into_iter().flatten().map(PathBuf::as_path).chain(of_storage)
    }

    /// As a file.
    pub fn toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }
}

fn fill(raw: &mut RawTable, defaults: &RawDefaults, table: &Table) {
    raw.layer = Some(table.layer.clone());
    raw.source_id = Some(table.source_id.clone());
    raw.chunk_span = table.chunk_span.map(|span| humantime::format_duration(span).to_string());
    raw.schema_evolution.get_or_insert("add-columns".to_owned());
    raw.partition_by.get_or_insert_default();
    if raw.columns.is_none() {
        raw.exclude.get_or_insert_default();
    }
    raw.settle_delay.get_or_insert_with(|| defaults.settle_delay.clone());
    raw.chunk_rows.get_or_insert(defaults.chunk_rows);
    raw.target_file_size.get_or_insert_with(|| defaults.target_file_size.clone());
    raw.row_group_size.get_or_insert(defaults.row_group_size);
    raw.bloom_filter.get_or_insert_with(|| defaults.bloom_filter.clone());
    raw.compression.get_or_insert_with(|| defaults.compression.clone());
    raw.ttl_margin.get_or_insert_with(|| defaults.ttl_margin.clone());
    raw.late_lookback.get_or_insert_with(|| defaults.late_lookback.clone());
}
