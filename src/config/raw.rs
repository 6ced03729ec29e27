//! `offload.toml` as it is written: every key, its default, nothing checked. `offload.toml` in the repository is the reference.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawFile {
    #[serde(default)]
    pub clickhouse: RawClickHouse,
    #[serde(default)]
    pub catalog: RawCatalog,
    #[serde(default)]
    pub state: RawState,
    #[serde(default)]
    pub metrics: RawMetrics,
    #[serde(default)]
    pub notify: RawNotify,
    #[serde(default)]
    pub defaults: RawDefaults,
    #[serde(default)]
    pub table: Vec<RawTable>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawClickHouse {
    pub url: String,
    pub database: String,
    pub user: String,
    pub password_env: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: String,
    pub idle_timeout: String,
    pub query_timeout: String,
    pub settings: BTreeMap<String, toml::Value>,
}

impl Default for RawClickHouse {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8123".into(),
            database: "default".into(),
            user: "default".into(),
            password_env: None,
            password_file: None,
            ca_file: None,
            connect_timeout: "10s".into(),
            idle_timeout: "2m".into(),
            query_timeout: "10m".into(),
            settings: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCatalog {
    #[serde(rename = "type")]
    pub kind: String,
    pub uri: String,
    pub name: String,
    pub warehouse: Option<String>,
    pub token_env: Option<String>,
    pub token_file: Option<PathBuf>,
    pub credential_env: Option<String>,
    pub credential_file: Option<PathBuf>,
    pub password_env: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub connect_timeout: String,
    pub timeout: String,
    pub header_env: BTreeMap<String, String>,
    pub properties: BTreeMap<String, String>,
}

impl Default for RawCatalog {
    fn default() -> Self {
        Self {
            kind: "sql".into(),
            uri: "sqlite:///catalog.db".into(),
            name: "k2".into(),
            warehouse: None,
            token_env: None,
            token_file: None,
            credential_env: None,
            credential_file: None,
            password_env: None,
            password_file: None,
            ca_file: None,
            connect_timeout: "10s".into(),
            timeout: "60s".into(),
            header_env: BTreeMap::new(),
            properties: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawState {
    pub path: PathBuf,
    pub history_keep: String,
    pub uri: Option<String>,
    pub password_env: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub timeout: String,
}

impl Default for RawState {
    fn default() -> Self {
        Self {
            path: "state.db".into(),
            history_keep: "90d".into(),
            uri: None,
            password_env: None,
            password_file: None,
            ca_file: None,
            timeout: "10s".into(),
        }
    }
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawMetrics {
    pub textfile: Option<PathBuf>,
    pub otlp: Option<String>,
    pub timeout: String,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { textfile: None, otlp: None, timeout: "5s".into() }
    }
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawNotify {
    pub command: Vec<String>,
    pub webhook_env: Option<String>,
    pub webhook_file: Option<PathBuf>,
    pub timeout: String,
}

impl Default for RawNotify {
    fn default() -> Self {
        Self { command: Vec::new(), webhook_env: None, webhook_file: None, timeout: "10s".into() }
    }
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDefaults {
    pub settle_delay: String,
    pub chunk_rows: u64,
    pub compression: String,
    pub target_file_size: String,
    pub row_group_size: u64,
    pub bloom_filter: Vec<String>,
    pub parallel_tables: usize,
    pub pass_deadline: String,
    pub ttl_margin: String,
    pub late_lookback: String,
    pub max_lag: Option<String>,
    pub merge_memory: String,
}

impl Default for RawDefaults {
    fn default() -> Self {
        Self {
            settle_delay: "5m".into(),
            chunk_rows: 5_000_000,
            target_file_size: "128MB".into(),
            row_group_size: 1_000_000,
            bloom_filter: Vec::new(),
            parallel_tables: 2,
            compression: "zstd(3)".into(),
            pass_deadline: "14m".into(),
            ttl_margin: "24h".into(),
            late_lookback: "24h".into(),
            max_lag: None,
            merge_memory: "64MB".into(),
        }
    }
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawTable {
    pub source: Option<String>,
    pub name: Option<String>,
    pub query: Option<String>,
    pub input: Option<String>,
    pub input_cursor: Option<String>,
    pub target: String,
    pub cursor: String,
    pub layer: Option<String>,
    pub source_id: Option<String>,
    #[serde(default)]
    pub types: BTreeMap<String, String>,
    pub columns: Option<Vec<String>>,
    pub exclude: Option<Vec<String>>,
    #[serde(default)]
    pub key: Vec<String>,
    pub version_column: Option<String>,
    #[serde(default, rename = "final")]
    pub is_final: bool,
    pub reject_where: Option<String>,
    pub window: Option<String>,
    pub chunk_span: Option<String>,
    pub start_at: Option<String>,
    pub partition_by: Option<Vec<String>>,
    #[serde(default)]
    pub sort_by: Vec<String>,
    pub settle_delay: Option<String>,
    pub chunk_rows: Option<u64>,
    pub compression: Option<String>,
    pub target_file_size: Option<String>,
    pub row_group_size: Option<u64>,
    pub bloom_filter: Option<Vec<String>>,
    pub ttl_margin: Option<String>,
    pub late_lookback: Option<String>,
    pub schema_evolution: Option<String>,
}
