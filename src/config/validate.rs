//! Raw keys in, checked values out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::{RawClickHouse, RawDefaults, RawFile, RawState, RawTable};
use super::{Backend, ClickHouse, Compression, Config, Postgres, Records, Secret, Table, TableName};
use super::{lake, outlets, rows};
use crate::cursor::parse_instant;
use crate::partition::PartitionBy;
use crate::schema::SchemaEvolution;

/// Rows are compared slice by slice; with less, slices would be many.
const MIN_MERGE_MEMORY: u64 = 1_000_000;

/// Of certificates that nobody would look at; the `s` was forgotten.
const NEEDS_HTTPS: &str = "is for https, and the URL begins with http://";

/// Collects problems, so that a user sees all of them at once.
#[derive(Default)]
pub struct Problems(pub Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, key: &str, reason: impl fmt::Display) {
        self.0.push(format!("{key}: {reason}"));
    }

    /// A duration that bounds a wait; ClickHouse counts in seconds, and takes 0 for no limit.
    pub(super) fn timeout(&mut self, key: &str, text: &str) -> Duration {
        let known = self.0.len();
        let timeout = self.duration(key, text);
        if timeout < Duration::from_secs(1) && self.0.len() == known {
            self.add(key, format_args!("`{text}` is too short, it must be 1s or more"));
        }
        timeout
    }

    fn size(&mut self, key: &str, text: &str) -> u64 {
        let size = text.parse::<bytesize::ByteSize>().map_or(0, |size| size.as_u64());
        if size == 0 {
            self.add(key, format_args!("`{text}` is no size such as 64MB or 128MiB"));
        }
        size
    }

    fn merge_memory(&mut self, key: &str, text: &str) -> u64 {
        let known = self.0.len();
        let size = self.size(key, text);
        if size < MIN_MERGE_MEMORY && self.0.len() == known {
            self.add(key, format_args!("`{text}` is too small, it must be 1MB or more"));
        }
        size
    }

    fn at_least_one<N: PartialOrd + From<u8>>(&mut self, key: &str, number: N) -> N {
        if number < N::from(1) {
            self.add(key, "must be 1 or more");
        }
        number
    }

    /// What the variable `env`, or the file `file`, holds; `None` where neither is named.
    pub(super) fn secret(
        &mut self,
        key: &str,
        env: Option<String>,
        file: Option<PathBuf>,
        folder: &Path,
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Option<Secret> {
        match (env, file) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                let name = key.rsplit('.').next().unwrap_or(key);
                self.add(&format!("{key}_env"), format_args!("give either {name}_env or {name}_file"));
            }
            (Some(name), None) => match environment(&name) {
                Some(secret) => return Some(Secret::new(secret)),
                None => {
                    // Who puts the secret itself there must not find it in a log.
                    let is_name = name.chars().all(|c| matches!(c, 'A'..='Z' | '0'..='9' | '_'));
                    let variable =
                        if is_name { format!("variable `{name}`") } else { "variable that it names".to_owned() };
                    self.add(&format!("{key}_env"), format_args!("the {variable} is not set"));
                }
            },
            (None, Some(file)) => {
                let file = folder.join(file);
                match std::fs::read_to_string(&file) {
                    Ok(text) => return Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned())),
                    Err(e) => self.add(&format!("{key}_file"), format_args!("cannot read {}: {e}", file.display())),
                }
            }
        }
        Some(Secret::default())
    }

    /// The URL itself is not repeated: it may hold a secret.
    pub(super) fn http_url(&mut self, key: &str, text: &str) {
        let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            self.add(key, "is no http or https URL");
        }
    }

    pub(super) fn duration(&mut self, key: &str, text: &str) -> Duration {
        humantime::parse_duration(text).unwrap_or_else(|e| {
            self.add(key, format_args!("`{text}` is no duration such as 90s, 5m or 24h ({e})"));
            Duration::ZERO
        })
    }
}

/// Checks everything, notes every problem; the result counts only where there is none.
pub fn validate(
    raw: RawFile,
    folder: &Path,
    environment: impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Config {
    let secrets = secret_variables(&raw);
    let clickhouse = validate_clickhouse(raw.clickhouse, folder, &environment, problems);
    let catalog = lake::catalog(raw.catalog, folder, &environment, problems);
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
    let records = records(&raw.state, folder, &environment, problems);
    let state = folder.join(raw.state.path);
    if matches!(&catalog.backend, Backend::Sqlite(path) if *path == state) {
        problems.add("state.path", "is the catalog's file; the state cache needs a file of its own");
    }
    Config {
        clickhouse,
        catalog,
        state,
        records,
        history_keep: problems.duration("state.history_keep", &raw.state.history_keep),
        metrics: outlets::metrics(raw.metrics, folder, problems),
        notify: outlets::notify(raw.notify, folder, secrets, &environment, problems),
        parallel_tables: problems.at_least_one("defaults.parallel_tables", raw.defaults.parallel_tables),
        pass_deadline: problems.duration("defaults.pass_deadline", &raw.defaults.pass_deadline),
        max_lag: raw.defaults.max_lag.map(|text| problems.duration("defaults.max_lag", &text)),
        merge_memory: problems.merge_memory("defaults.merge_memory", &raw.defaults.merge_memory),
        tables: by_layer(tables),
    }
}

/// The variables with secrets that it names.
fn secret_variables(raw: &RawFile) -> Vec<String> {
    let RawFile { clickhouse, catalog, state, .. } = raw;
    let named = [
        &clickhouse.password_env,
        &catalog.token_env,
        &catalog.credential_env,
        &catalog.password_env,
        &state.password_env,
    ];
    named.into_iter().flatten().chain(catalog.header_env.values()).cloned().collect()
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
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> ClickHouse {
    // The URL itself is not repeated: it may hold a password.
    match url::Url::parse(&raw.url) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") || url.host().is_none() => {
            problems.add("clickhouse.url", "is no http or https URL such as http://127.0.0.1:8123");
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() || url.query().is_some() => {
            problems.add("clickhouse.url", "credentials and parameters do not belong into the URL");
        }
        Ok(_) => {}
        Err(e) => problems.add("clickhouse.url", format_args!("is no URL ({e})")),
    }
    if raw.ca_file.is_some() && raw.url.starts_with("http:") {
        problems.add("clickhouse.ca_file", NEEDS_HTTPS);
    }
    let password = problems
        .secret("clickhouse.password", raw.password_env, raw.password_file, folder, environment)
        .unwrap_or_default();
    for (key, text) in [("clickhouse.user", raw.user.as_str()), ("clickhouse.password", password.expose())] {
        if text.contains(char::is_control) {
            problems.add(key, "holds a line break or another control character");
        }
    }
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
        ca_file: raw.ca_file.map(|file| folder.join(file)),
        connect_timeout: problems.timeout("clickhouse.connect_timeout", &raw.connect_timeout),
        idle_timeout: problems.timeout("clickhouse.idle_timeout", &raw.idle_timeout),
        query_timeout: problems.timeout("clickhouse.query_timeout", &raw.query_timeout),
        settings,
    }
}

/// Where the state of tables is told beside the cache.
fn records(
    raw: &RawState,
    folder: &Path,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<Records> {
    let password =
        problems.secret("state.password", raw.password_env.clone(), raw.password_file.clone(), folder, environment);
    let timeout = problems.timeout("state.timeout", &raw.timeout);
    let ca_file = raw.ca_file.as_ref().map(|file| folder.join(file));
    let Some(uri) = &raw.uri else {
        if password.is_some() || ca_file.is_some() {
            problems.add("state.uri", "is missing: a password and ca_file are for the database that it names");
        }
        return None;
    };
    let password = password.unwrap_or_default();
    if lake::is_postgres(uri) {
        lake::check_postgres("state.uri", uri, problems);
        let url = uri.clone();
        return Some(Records::Postgres(Postgres { url, password, ca_file, connect_timeout: timeout, timeout }));
    }
    let parsed = url::Url::parse(uri).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(mut url) = parsed else {
        problems.add(
            "state.uri",
            "is neither postgresql://USER@HOST/DATABASE nor http(s)://USER@HOST:PORT/DATABASE of ClickHouse",
        );
        return None;
    };
    if url.password().is_some() || url.query().is_some() {
        problems.add("state.uri", "a password and parameters do not belong into the URI");
    }
    let user = if url.username().is_empty() { "default" } else { url.username() }.to_owned();
    let database = url.path().trim_matches('/').to_owned();
    if database.is_empty() || database.contains('/') {
        problems.add("state.uri", "names no database: http://USER@HOST:PORT/DATABASE");
    }
    if ca_file.is_some() && url.scheme() == "http" {
        problems.add("state.ca_file", NEEDS_HTTPS);
    }
    url.set_path("");
    // A URL with a host takes both.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    Some(Records::ClickHouse(Box::new(ClickHouse {
        url: url.to_string().trim_end_matches('/').to_owned(),
        database,
        user,
        password,
        ca_file,
        connect_timeout: timeout,
        idle_timeout: timeout,
        query_timeout: timeout,
        settings: BTreeMap::new(),
    })))
}

fn validate_table(
    raw: RawTable,
    number: usize,
    defaults: &RawDefaults,
    database: &str,
    problems: &mut Problems,
) -> Table {
    let (source, query) = rows::source(&raw, number, problems);
    let key = |name: &str| format!("table {number} (`{source}`) {name}");
    if raw.cursor.is_empty() {
        problems.add(&key("cursor"), "is empty");
    }
    let target = raw.target.rsplit_once('.').filter(|(namespace, name)| {
        let bad = |part: &str| part.is_empty() || part == ".." || part.contains(['/', '\\', '\0']);
        !namespace.split('.').any(bad) && !bad(name)
    });
    let (namespace, name) = target.unwrap_or_else(|| {
        problems.add(&key("target"), format_args!("`{}` is not namespace.table", raw.target));
        ("", "")
    });
    let mut partition_by: Vec<PartitionBy> = Vec::new();
    for text in raw.partition_by.iter().flatten() {
        match PartitionBy::parse(text) {
            None => problems.add(
                &key("partition_by"),
                format_args!(
                    "`{text}` is none of year(C), month(C), day(C), hour(C) and C, the transforms of this version"
                ),
            ),
            Some(by) if partition_by.contains(&by) => {
                problems.add(&key("partition_by"), format_args!("`{by}` stands twice"))
            }
            Some(by) => partition_by.push(by),
        }
    }
    let start_at = raw
        .start_at
        .as_deref()
        .and_then(|text| parse_instant(text).map_err(|e| problems.add(&key("start_at"), e)).ok());
    let (window, chunk_span) = rows::spans(&raw, start_at, key, problems);
    rows::check_duplicates(&raw, key, problems);
    let bloom_filter = raw.bloom_filter.clone().unwrap_or_else(|| defaults.bloom_filter.clone());
    if let Some(twice) =
        (1..).zip(&bloom_filter).find(|(next, name)| bloom_filter.iter().skip(*next).any(|n| n == *name))
    {
        problems.add(&key("bloom_filter"), format_args!("`{}` stands twice", twice.1));
    }
    let compression = raw.compression.as_deref().unwrap_or(&defaults.compression);
    Table {
        source_id: raw.source_id.clone().unwrap_or_else(|| format!("{database}.{source}")),
        columns: rows::columns(&raw, key, problems),
        key: raw.key.clone(),
        version_column: raw.version_column.clone(),
        is_final: raw.is_final,
        reject_where: raw.reject_where.clone(),
        window,
        chunk_span,
        sort_by: rows::sort_by(&raw, key, problems),
        target: TableName { namespace: namespace.to_owned(), name: name.to_owned() },
        layer: raw.layer.clone().unwrap_or_else(|| "default".to_owned()),
        cursor: raw.cursor.clone(),
        types: raw.types.clone(),
        start_at,
        settle_delay: problems
            .duration(&key("settle_delay"), raw.settle_delay.as_deref().unwrap_or(&defaults.settle_delay)),
        chunk_rows: problems.at_least_one(&key("chunk_rows"), raw.chunk_rows.unwrap_or(defaults.chunk_rows)),
        partition_by,
        target_file_size: problems
            .size(&key("target_file_size"), raw.target_file_size.as_deref().unwrap_or(&defaults.target_file_size)),
        compression: parse_compression(compression).unwrap_or_else(|reason| {
            problems.add(&key("compression"), reason);
            Compression { codec: "zstd".into(), level: None }
        }),
        row_group_size: problems
            .at_least_one(&key("row_group_size"), raw.row_group_size.unwrap_or(defaults.row_group_size)),
        bloom_filter,
        schema_evolution: match raw.schema_evolution.as_deref() {
            None | Some("add-columns") => SchemaEvolution::AddColumns,
            Some("frozen") => SchemaEvolution::Frozen,
            Some(text) => {
                problems.add(&key("schema_evolution"), format_args!("`{text}` is neither add-columns nor frozen"));
                SchemaEvolution::Frozen
            }
        },
        input: rows::input(&raw, key, problems),
        late_lookback: problems
            .duration(&key("late_lookback"), raw.late_lookback.as_deref().unwrap_or(&defaults.late_lookback)),
        ttl_margin: problems.duration(&key("ttl_margin"), raw.ttl_margin.as_deref().unwrap_or(&defaults.ttl_margin)),
        query,
        source,
    }
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
