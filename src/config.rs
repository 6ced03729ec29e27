//! `offload.toml`: raw TOML in, a validated [`Config`] out, all problems reported at once.
//!
//! Below this module nothing is optional or unchecked. Unknown keys are errors everywhere. Secrets never stand in the
//! file: it names an environment variable or a file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::cursor::parse_instant;
use crate::error::{Classify, Error, Kind, Result};

/// Looked for in this order where neither `-c` nor the environment names a file.
pub const DEFAULT_FILES: [&str; 2] = ["offload.toml", "/etc/k2-offload/offload.toml"];

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The warm tier.
    pub clickhouse: ClickHouse,
    /// The cold tier.
    pub catalog: Catalog,
    /// SQLite file of the state cache.
    pub state: PathBuf,
    /// No table is started later than this after the start of a pass.
    pub pass_deadline: Duration,
    /// Lag above which `watermark show` exits with 3.
    pub max_lag: Option<Duration>,
    /// The tables, in the order of their layers' first appearance.
    pub tables: Vec<Table>,
}

/// Where ClickHouse is and who we are there.
#[derive(Debug, Clone)]
pub struct ClickHouse {
    /// HTTP URL of the server.
    pub url: String,
    /// Database of the sources.
    pub database: String,
    /// User name.
    pub user: String,
    /// Password, empty for none.
    pub password: Secret,
    /// Longest wait for the first answer of the server.
    pub connect_timeout: Duration,
    /// Longest silence of a running query.
    pub idle_timeout: Duration,
    /// `max_execution_time` of each query.
    pub query_timeout: Duration,
    /// Further settings of each query.
    pub settings: BTreeMap<String, String>,
}

/// The Iceberg catalog: SQLite tables that PyIceberg's `SqlCatalog` shares.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The SQLite file.
    pub path: PathBuf,
    /// `catalog_name` of its rows.
    pub name: String,
    /// `file:///` URI below which new tables are created.
    pub warehouse: String,
}

/// A source and its target.
#[derive(Debug, Clone)]
pub struct Table {
    /// Table in [`ClickHouse::database`].
    pub source: String,
    /// What a marker calls the source (protocol.md P15).
    pub source_id: String,
    /// The Iceberg table.
    pub target: TableName,
    /// Layer, for `--layer` and for the order of a pass.
    pub layer: String,
    /// Column that orders the source in time.
    pub cursor: String,
    /// Lower bound of the first window.
    pub start_at: Option<DateTime<Utc>>,
    /// How far behind the source's clock a window ends.
    pub settle_delay: Duration,
    /// Column whose UTC day partitions a new target.
    pub partition_by_day: Option<String>,
    /// Parquet compression.
    pub compression: Compression,
}

/// Namespace and name of an Iceberg table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Dotted namespace.
    pub namespace: String,
    /// Name within it.
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

/// Codec and level of Parquet pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// `zstd`, `lz4`, `snappy`, `gzip` or `none`: ClickHouse's and Iceberg's common names.
    pub codec: String,
    /// Level, where the codec has one.
    pub level: Option<u8>,
}

/// A value that never shows itself.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    clickhouse: RawClickHouse,
    #[serde(default)]
    catalog: RawCatalog,
    #[serde(default)]
    state: RawState,
    #[serde(default)]
    defaults: RawDefaults,
    #[serde(default)]
    table: Vec<RawTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawClickHouse {
    url: String,
    database: String,
    user: String,
    password_env: Option<String>,
    password_file: Option<PathBuf>,
    connect_timeout: String,
    idle_timeout: String,
    query_timeout: String,
    settings: BTreeMap<String, toml::Value>,
}

impl Default for RawClickHouse {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8123".into(),
            database: "default".into(),
            user: "default".into(),
            password_env: None,
            password_file: None,
            connect_timeout: "10s".into(),
            idle_timeout: "2m".into(),
            query_timeout: "10m".into(),
            settings: BTreeMap::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCatalog {
    #[serde(rename = "type")]
    kind: String,
    uri: String,
    name: String,
    warehouse: String,
}

impl Default for RawCatalog {
    fn default() -> Self {
        Self {
            kind: "sql".into(),
            uri: "sqlite:///catalog.db".into(),
            name: "k2".into(),
            warehouse: "warehouse".into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawState {
    path: PathBuf,
}

impl Default for RawState {
    fn default() -> Self {
        Self { path: "state.db".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDefaults {
    settle_delay: String,
    compression: String,
    pass_deadline: String,
    max_lag: Option<String>,
}

impl Default for RawDefaults {
    fn default() -> Self {
        Self { settle_delay: "5m".into(), compression: "zstd(3)".into(), pass_deadline: "14m".into(), max_lag: None }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    source: String,
    target: String,
    cursor: String,
    layer: Option<String>,
    source_id: Option<String>,
    start_at: Option<String>,
    partition_by: Option<Vec<String>>,
    settle_delay: Option<String>,
    compression: Option<String>,
}

/// Finds the configuration file: `given`, else the first of [`DEFAULT_FILES`] that exists.
pub fn find(given: Option<PathBuf>) -> Result<PathBuf> {
    given.or_else(|| DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.is_file())).ok_or_else(|| {
        Error::new(Kind::Config, format!("no configuration file: looked for {}", DEFAULT_FILES.join(" and ")))
            .hint("name one with -c FILE or K2_OFFLOAD_CONFIG")
    })
}

impl Config {
    /// Reads and validates a file. Relative paths in it are relative to its folder.
    pub fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).or_error(Kind::Config, format!("read {}", file.display()))?;
        let folder = std::path::absolute(file).or_error(Kind::Config, format!("locate {}", file.display()))?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, folder, |name| std::env::var(name).ok())
            .map_err(|e| e.context(format!("configuration file {}", file.display())))
    }

    /// Validates `text`; `environment` looks up the variables that it names.
    pub fn parse(text: &str, folder: &Path, environment: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let raw: RawFile = toml::from_str(text).map_err(|e| {
            Error::new(Kind::Config, e.to_string().trim_end().replace('\n', "\n  "))
                .hint("the shipped offload.toml lists every key that this version knows")
        })?;
        let mut problems = Problems::default();
        let config = validate(raw, folder, environment, &mut problems);
        if problems.0.is_empty() { Ok(config) } else { Err(Error::new(Kind::Config, problems.0.join("; "))) }
    }
}

/// Collects problems, so that a user sees all of them at once.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, key: &str, reason: impl fmt::Display) {
        self.0.push(format!("{key}: {reason}"));
    }

    fn duration(&mut self, key: &str, text: &str) -> Duration {
        humantime::parse_duration(text).unwrap_or_else(|e| {
            self.add(key, format_args!("`{text}` is no duration such as 90s, 5m or 24h ({e})"));
            Duration::ZERO
        })
    }
}

fn validate(
    raw: RawFile,
    folder: &Path,
    environment: impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Config {
    let clickhouse = validate_clickhouse(raw.clickhouse, folder, environment, problems);
    let catalog = validate_catalog(raw.catalog, folder, problems);
    let mut tables: Vec<Table> = Vec::with_capacity(raw.table.len());
    for (number, table) in (1..).zip(raw.table) {
        let table = validate_table(table, number, &raw.defaults, &clickhouse.database, problems);
        if let Some(twin) = tables.iter().find(|t| t.target == table.target) {
            problems.add(
                &format!("table {number} target"),
                format_args!("`{}` is already the target of source `{}`", table.target, twin.source),
            );
        }
        tables.push(table);
    }
    if tables.is_empty() {
        problems.add("[[table]]", "there is none");
    }
    let state = folder.join(raw.state.path);
    if state == catalog.path {
        problems.add("state.path", "is the catalog's file; the state cache needs a file of its own");
    }
    Config {
        clickhouse,
        catalog,
        state,
        pass_deadline: problems.duration("defaults.pass_deadline", &raw.defaults.pass_deadline),
        max_lag: raw.defaults.max_lag.map(|text| problems.duration("defaults.max_lag", &text)),
        tables: by_layer(tables),
    }
}

/// Orders tables by the first appearance of their layer; stable within a layer.
fn by_layer(tables: Vec<Table>) -> Vec<Table> {
    let layers: Vec<String> = tables.iter().map(|t| t.layer.clone()).collect();
    let mut tables = tables;
    tables.sort_by_key(|table| layers.iter().position(|layer| *layer == table.layer));
    tables
}

fn validate_clickhouse(
    raw: RawClickHouse,
    folder: &Path,
    environment: impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> ClickHouse {
    match url::Url::parse(&raw.url) {
        Ok(url) if url.scheme() == "https" => {
            problems.add("clickhouse.url", "https is not supported by this version; use http over a private network");
        }
        Ok(url) if url.scheme() != "http" || url.host().is_none() => {
            problems.add("clickhouse.url", format_args!("`{}` is no http URL", raw.url));
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() || url.query().is_some() => {
            problems.add("clickhouse.url", "credentials and parameters do not belong into the URL");
        }
        Ok(_) => {}
        Err(e) => problems.add("clickhouse.url", format_args!("`{}` is no URL ({e})", raw.url)),
    }
    let password = match (raw.password_env, raw.password_file) {
        (None, None) => Secret::default(),
        (Some(_), Some(_)) => {
            problems.add("clickhouse.password_env", "give either password_env or password_file");
            Secret::default()
        }
        (Some(name), None) => environment(&name).map(Secret).unwrap_or_else(|| {
            problems.add("clickhouse.password_env", format_args!("the variable `{name}` is not set"));
            Secret::default()
        }),
        (None, Some(file)) => {
            let file = folder.join(file);
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| {
                problems.add("clickhouse.password_file", format_args!("cannot read {}: {e}", file.display()));
                String::new()
            });
            Secret(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let settings = raw.settings.into_iter().filter_map(|(name, value)| {
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => u8::from(flag).to_string(),
            _ => {
                problems.add(&format!("clickhouse.settings.{name}"), "must be text, a number or a boolean");
                return None;
            }
        };
        if let Some(reason) = crate::source::reserved_setting(&name) {
            problems.add(&format!("clickhouse.settings.{name}"), reason);
        }
        Some((name, text))
    });
    let settings = settings.collect();
    ClickHouse {
        url: raw.url,
        database: raw.database,
        user: raw.user,
        password,
        connect_timeout: problems.duration("clickhouse.connect_timeout", &raw.connect_timeout),
        idle_timeout: problems.duration("clickhouse.idle_timeout", &raw.idle_timeout),
        query_timeout: problems.duration("clickhouse.query_timeout", &raw.query_timeout),
        settings,
    }
}

fn validate_catalog(raw: RawCatalog, folder: &Path, problems: &mut Problems) -> Catalog {
    if raw.kind != "sql" {
        problems.add("catalog.type", format_args!("`{}` is not supported by this version, which has `sql`", raw.kind));
    }
    let path = raw.uri.strip_prefix("sqlite:///").filter(|path| !path.is_empty()).unwrap_or_else(|| {
        problems.add("catalog.uri", format_args!("`{}` is not sqlite:///FILE", raw.uri));
        ""
    });
    let warehouse = if let Some(path) = raw.warehouse.strip_prefix("file://") {
        if !path.starts_with('/') {
            problems.add("catalog.warehouse", format_args!("`{}` needs three slashes: file:///path", raw.warehouse));
        }
        raw.warehouse.trim_end_matches('/').to_owned()
    } else if raw.warehouse.contains("://") {
        problems.add("catalog.warehouse", format_args!("`{}`: this version writes to file:/// only", raw.warehouse));
        raw.warehouse
    } else {
        format!("file://{}", folder.join(&raw.warehouse).display()).trim_end_matches('/').to_owned()
    };
    Catalog { path: folder.join(path), name: raw.name, warehouse }
}

fn validate_table(
    raw: RawTable,
    number: usize,
    defaults: &RawDefaults,
    database: &str,
    problems: &mut Problems,
) -> Table {
    let key = |name: &str| format!("table {number} (`{}`) {name}", raw.source);
    for (name, value) in [("source", &raw.source), ("cursor", &raw.cursor)] {
        if value.is_empty() {
            problems.add(&key(name), "is empty");
        }
    }
    let target = raw.target.rsplit_once('.').filter(|(namespace, name)| {
        let bad = |part: &str| part.is_empty() || part == ".." || part.contains(['/', '\\', '\0']);
        !namespace.split('.').any(bad) && !bad(name)
    });
    let (namespace, name) = target.unwrap_or_else(|| {
        problems.add(&key("target"), format_args!("`{}` is not namespace.table", raw.target));
        ("", "")
    });
    let partition_by_day = match raw.partition_by.as_deref() {
        None | Some([]) => None,
        Some([transform]) => parse_day(transform).map(str::to_owned).or_else(|| {
            problems.add(&key("partition_by"), format_args!("`{transform}`: this version knows day(COLUMN) only"));
            None
        }),
        Some(_) => {
            problems.add(&key("partition_by"), "this version knows one transform, day(COLUMN)");
            None
        }
    };
    let start_at = raw
        .start_at
        .as_deref()
        .and_then(|text| parse_instant(text).map_err(|e| problems.add(&key("start_at"), e)).ok());
    let compression = raw.compression.as_deref().unwrap_or(&defaults.compression);
    Table {
        source_id: raw.source_id.clone().unwrap_or_else(|| format!("{database}.{}", raw.source)),
        target: TableName { namespace: namespace.to_owned(), name: name.to_owned() },
        layer: raw.layer.clone().unwrap_or_else(|| "default".to_owned()),
        cursor: raw.cursor.clone(),
        start_at,
        settle_delay: problems
            .duration(&key("settle_delay"), raw.settle_delay.as_deref().unwrap_or(&defaults.settle_delay)),
        partition_by_day,
        compression: parse_compression(compression).unwrap_or_else(|reason| {
            problems.add(&key("compression"), reason);
            Compression { codec: "zstd".into(), level: None }
        }),
        source: raw.source,
    }
}

/// The column of `day(column)` or `days(column)`.
fn parse_day(transform: &str) -> Option<&str> {
    let inner = transform.strip_prefix("days(").or_else(|| transform.strip_prefix("day("))?;
    inner.strip_suffix(')').map(str::trim).filter(|column| !column.is_empty())
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    let (codec, level) = match text.split_once('(') {
        Some((codec, rest)) => (codec, Some(rest.strip_suffix(')').and_then(|level| level.parse().ok()))),
        None => (text, None),
    };
    match (codec, level) {
        ("zstd", Some(Some(level @ 1..=22))) => Ok(Compression { codec: codec.into(), level: Some(level) }),
        ("gzip", Some(Some(level @ 1..=9))) => Ok(Compression { codec: codec.into(), level: Some(level) }),
        ("zstd" | "gzip" | "lz4" | "snappy" | "none", None) => Ok(Compression { codec: codec.into(), level: None }),
        _ => Err(format!("`{text}` is none of zstd(1..22), gzip(1..9), lz4, snappy, none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\n";

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/etc/x"), |name| (name == "PW").then(|| "s3cret".to_owned()))
    }

    #[test]
    fn the_shipped_file_is_valid_and_says_the_defaults() {
        let shipped = include_str!("../offload.toml");
        parse(shipped).unwrap();
        let uncommented: String = shipped
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let all = parse(&uncommented).unwrap();
        let default = parse(MINIMAL).unwrap();
        assert_eq!(format!("{:?}", all.clickhouse), format!("{:?}", default.clickhouse));
        assert_eq!(format!("{:?}", all.catalog), format!("{:?}", default.catalog));
        assert_eq!((all.state, all.pass_deadline), (default.state, default.pass_deadline));
        assert_eq!(all.tables[0].settle_delay, default.tables[0].settle_delay);
        assert_eq!(all.tables[0].compression, default.tables[0].compression);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let text = "[clickhouse]\nurl = 'ftp://x'\npassword_env = 'NOPE'\n[defaults]\nsettle_delay = 'soon'\n[[table]]\n\
                    source = ''\ntarget = 'x'\ncursor = 'ts'\npartition_by = ['bucket(4, a)']\ncompression = 'zip'\nstart_at = 'x'\n";
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        for key in ["clickhouse.url", "NOPE", "settle_delay", "source", "target", "bucket", "zip", "start_at"] {
            assert!(error.to_string().contains(key), "{key} is missing in: {error}");
        }
    }

    #[test]
    fn unknown_keys_and_twin_targets_are_refused() {
        assert!(parse(&format!("[clickhouse]\nurll = 'x'\n{MINIMAL}")).unwrap_err().to_string().contains("urll"));
        assert!(parse(&format!("{MINIMAL}chunk_rows = 5\n")).unwrap_err().to_string().contains("chunk_rows"));
        assert!(parse(&format!("{MINIMAL}{MINIMAL}")).unwrap_err().to_string().contains("already the target"));
        assert!(parse("").unwrap_err().to_string().contains("[[table]]"));
    }

    #[test]
    fn secrets_never_show() {
        let config = parse(&format!("[clickhouse]\npassword_env = 'PW'\n{MINIMAL}")).unwrap();
        assert_eq!(config.clickhouse.password.expose(), "s3cret");
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.catalog.path, Path::new("/etc/x/catalog.db"));
        assert_eq!(config.catalog.warehouse, "file:///etc/x/warehouse");
        assert_eq!(config.state, Path::new("/etc/x/state.db"));
        let absolute = format!("[catalog]\nuri = 'sqlite:////var/c.db'\nwarehouse = 'file:///data/'\n{MINIMAL}");
        let config = parse(&absolute).unwrap();
        assert_eq!(
            (config.catalog.path.as_path(), config.catalog.warehouse.as_str()),
            (Path::new("/var/c.db"), "file:///data")
        );
    }

    #[test]
    fn layers_go_in_the_order_of_their_first_appearance() {
        let table = |source: &str, layer: &str| {
            format!("[[table]]\nsource = '{source}'\ntarget = 'cold.{source}'\ncursor = 'ts'\nlayer = '{layer}'\n")
        };
        let text = [table("a", "silver"), table("b", "bronze"), table("c", "silver")].concat();
        let sources: Vec<_> = parse(&text).unwrap().tables.into_iter().map(|t| t.source).collect();
        assert_eq!(sources, ["a", "c", "b"]);
    }
}
