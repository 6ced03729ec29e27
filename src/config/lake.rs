//! `[catalog]`: where the target's catalog is, who we are there, and how its storage is reached.

pub(super) mod properties;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::RawCatalog;
use super::validate::Problems;
use super::{ClickHouse, Secret};

/// The Iceberg catalog, and the storage of its tables.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// What the catalog is called: `catalog_name` of the rows of an SQL catalog.
    pub name: String,
    /// URI below which new tables are created; for a REST catalog also the name of a warehouse there, and empty for its default.
    pub warehouse: String,
    /// Where it is.
    pub backend: Backend,
    /// How the files of its tables are reached.
    pub storage: Storage,
}

/// Where a catalog is.
#[derive(Debug, Clone)]
pub enum Backend {
    /// The tables of PyIceberg's `SqlCatalog` in a SQLite file.
    Sqlite(PathBuf),
    /// The same tables in PostgreSQL.
    Postgres(Postgres),
    /// A server that speaks Iceberg's REST protocol.
    Rest(Box<Rest>),
}

/// Where it is, as people know it: no secret.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(postgres) => f.write_str(&postgres.url),
            Self::Rest(rest) => f.write_str(&rest.url),
        }
    }
}

/// A PostgreSQL database.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// `postgresql://USER@HOST:PORT/DATABASE?sslmode=..`, without a password.
    pub url: String,
    /// Empty for none.
    pub password: Secret,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// A database that tells the state of all tables to dashboards, and to hosts without a cache of their own.
#[derive(Debug, Clone)]
pub enum Records {
    /// A PostgreSQL database.
    Postgres(Postgres),
    /// A ClickHouse database.
    ClickHouse(Box<ClickHouse>),
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(postgres) => f.write_str(&postgres.url),
            Self::ClickHouse(clickhouse) => write!(f, "{}/{}", clickhouse.url, clickhouse.database),
        }
    }
}

/// A server that speaks Iceberg's REST protocol.
#[derive(Debug, Clone)]
pub struct Rest {
    /// Its URL, below which `v1/config` lies.
    pub url: String,
    /// Who we are there.
    pub auth: Auth,
    /// Further headers of each request, by name in lower case.
    pub headers: BTreeMap<String, Secret>,
    /// Iceberg's properties of REST clients: `prefix`, `scope`, `audience`, `resource`, `oauth2-server-uri`, all optional.
    pub properties: BTreeMap<String, String>,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// Who we are for a REST catalog.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Nobody.
    None,
    /// Whoever holds this bearer token.
    Token(Secret),
    /// An OAuth2 client: its id, where it has one, and its secret.
    Client(Option<String>, Secret),
}

/// How files of tables are reached, where they are not on this host.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Iceberg's properties: `s3.*`, `client.region`, `gcs.*`, `adls.*`. No secrets.
    pub properties: BTreeMap<String, String>,
    /// Certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// Schemes of warehouses.
const SCHEMES: [&str; 7] = ["file", "s3", "s3a", "gs", "abfs", "abfss", "az"];

pub(super) fn catalog(
    raw: RawCatalog,
    folder: &Path,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Catalog {
    let secret = |problems: &mut Problems, name: &str, env: &Option<String>, file: &Option<PathBuf>| {
        let (key, known) = (format!("catalog.{name}"), problems.0.len());
        let secret = problems.secret(&key, env.clone(), file.clone(), folder, environment);
        match &secret {
            Some(secret) if problems.0.len() == known => check_secret(&key, secret, problems),
            _ => {}
        }
        secret
    };
    let token = secret(problems, "token", &raw.token_env, &raw.token_file);
    let credential = secret(problems, "credential", &raw.credential_env, &raw.credential_file);
    let password = secret(problems, "password", &raw.password_env, &raw.password_file);
    let ca_file = raw.ca_file.as_ref().map(|file| folder.join(file));
    let connect_timeout = problems.timeout("catalog.connect_timeout", &raw.connect_timeout);
    let timeout = problems.timeout("catalog.timeout", &raw.timeout);
    properties::check(&raw, problems);
    let (token_given, credential_given, password_given) = (token.is_some(), credential.is_some(), password.is_some());
    let backend = match raw.kind.as_str() {
        "sql" if is_postgres(&raw.uri) => {
            check_postgres("catalog.uri", &raw.uri, problems);
            let password = password.unwrap_or_default();
            let (url, ca_file) = (raw.uri.clone(), ca_file.clone());
            Backend::Postgres(Postgres { url, password, ca_file, connect_timeout, timeout })
        }
        "sql" => {
            // URIs of other schemes are not repeated: they may hold a password.
            let path = raw.uri.strip_prefix("sqlite:///").filter(|path| !path.is_empty()).unwrap_or_else(|| {
                problems.add("catalog.uri", "is neither sqlite:///FILE nor postgresql://USER@HOST/DATABASE");
                ""
            });
            Backend::Sqlite(folder.join(path))
        }
        "rest" => {
            properties::check_url("catalog.uri", &raw.uri, problems);
            let auth = match (token, credential) {
                (Some(_), Some(_)) => {
                    problems.add("catalog.token", "give either a token or a credential");
                    Auth::None
                }
                (Some(token), None) => Auth::Token(token),
                (None, Some(credential)) => client(&credential),
                (None, None) => Auth::None,
            };
            Backend::Rest(Box::new(Rest {
                url: raw.uri.trim_end_matches('/').to_owned(),
                auth,
                headers: properties::headers(&raw, environment, problems),
                properties: properties::of_rest(&raw),
                ca_file: ca_file.clone(),
                connect_timeout,
                timeout,
            }))
        }
        kind => {
            problems.add("catalog.type", format_args!("`{kind}` is neither sql nor rest"));
            Backend::Sqlite(PathBuf::new())
        }
    };
    for (name, given, wanted) in [
        ("token", token_given, matches!(backend, Backend::Rest(_))),
        ("credential", credential_given, matches!(backend, Backend::Rest(_))),
        ("password", password_given, matches!(backend, Backend::Postgres(_))),
    ] {
        if given && !wanted {
            let what = if name == "password" { "a postgresql:// catalog" } else { "type = \"rest\"" };
            problems.add(&format!("catalog.{name}"), format_args!("is for {what} only"));
        }
    }
    Catalog {
        warehouse: warehouse(raw.warehouse.as_deref(), &backend, folder, problems),
        name: raw.name.clone(),
        backend,
        storage: Storage { properties: properties::of_storage(&raw, folder), ca_file, connect_timeout, timeout },
    }
}

/// Whether a URI names a PostgreSQL database.
pub(super) fn is_postgres(uri: &str) -> bool {
    uri.starts_with("postgresql://") || uri.starts_with("postgres://")
}

/// Checks the form of a PostgreSQL URI, without repeating it.
pub(super) fn check_postgres(key: &str, uri: &str, problems: &mut Problems) {
    match crate::postgres::parse(uri) {
        Ok(session) if session.get_password().is_some() => {
            problems.add(key, "a password does not belong into the URI, but into password_env or password_file");
        }
        Ok(session) if session.get_dbname().is_none_or(str::is_empty) => problems.add(key, "names no database"),
        Ok(_) => {}
        Err(e) => problems.add(key, format_args!("is no URI ({e})")),
    }
}

/// `ID:SECRET`, or a secret alone, as Iceberg's clients have it.
fn client(credential: &Secret) -> Auth {
    match credential.expose().split_once(':') {
        Some((id, secret)) => Auth::Client(Some(id.to_owned()), Secret::new(secret.to_owned())),
        None => Auth::Client(None, credential.clone()),
    }
}

/// An empty file or variable is a secret that did not arrive; none is asked for by naming none.
fn check_secret(key: &str, secret: &Secret, problems: &mut Problems) {
    if secret.expose().is_empty() {
        problems.add(key, "is empty");
    }
    if secret.expose().contains(char::is_control) {
        problems.add(key, "holds a line break or another control character");
    }
}

fn warehouse(given: Option<&str>, backend: &Backend, folder: &Path, problems: &mut Problems) -> String {
    let trimmed = |text: &str| text.trim_end_matches('/').to_owned();
    let default = if matches!(backend, Backend::Rest(_)) { "" } else { "warehouse" };
    let (given, key) = (given.unwrap_or(default), "catalog.warehouse");
    if let Some(path) = given.strip_prefix("file://") {
        if !path.starts_with('/') {
            problems.add(key, format_args!("`{given}` needs three slashes: file:///path"));
        }
        return trimmed(given);
    }
    if let Some((scheme, rest)) = given.split_once("://") {
        // What stands before an @ may be a secret, except in Azure's container@account.
        let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
        let azure = matches!(scheme, "abfs" | "abfss");
        if !SCHEMES.contains(&scheme) {
            problems.add(key, format_args!("begins with none of {}://, nor is it a folder", SCHEMES.join("://, ")));
        } else if authority.is_empty() || (authority.contains(['@', ':']) && !azure) {
            problems.add(key, "names no bucket, or more than that: credentials do not belong here");
        }
        return trimmed(given);
    }
    match backend {
        Backend::Rest(_) => given.to_owned(),
        _ => trimmed(&format!("file://{}", folder.join(given).display())),
    }
}
