//! A server: connected once per pass, its settings learnt and pinned, and the ways to ask it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clickhouse::error::Error as ClientError;
use clickhouse::{Client, Row, RowOwned, RowRead};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use uuid::Uuid;

use super::connection::{http_client, of_first_answer, wants_tls};
use super::errors::{classify, not_clickhouse, of_setting, of_users_sql, stalled};
use super::settings::{self, ServerSetting};
use super::sql;
use crate::config::ClickHouse;
use crate::error::{Error, Kind, Result};
use crate::schema::Column;

/// The oldest ClickHouse, major and minor, whose Parquet writer has all that is needed.
const OLDEST: (u32, u32) = (24, 3);

/// Where the configuration speaks of it.
const SECTION: &str = "clickhouse";

/// A server, as one pass uses it.
pub struct Server {
    pub(super) client: Client,
    run_id: String,
    pub(super) host: String,
    version: String,
    pub(super) settings: BTreeMap<String, ServerSetting>,
    pub(super) idle_timeout: Duration,
    queries: AtomicU32,
}

/// Read as JSON, because servers that are too old have no better format.
#[derive(Deserialize)]
struct HostRow {
    host: String,
    version: String,
}

#[derive(Row, Deserialize)]
struct ClockRow {
    clock_micros: i64,
}

/// One row, because nothing is pinned yet: a `limit` of the user's profile must not cut the list.
#[derive(Row, Deserialize)]
struct SettingsRow {
    /// Name, value, and whether it is readonly.
    settings: Vec<(String, String, u8)>,
}

/// A new name for a run: in query ids, logs and locks; later ones sort behind earlier ones.
pub fn new_run_id() -> String {
    Uuid::now_v7().simple().to_string()
}

impl Server {
    /// Connects and learns what the server lets us set. `run_id` names our queries in its logs.
    pub async fn connect(config: &ClickHouse, run_id: &str) -> Result<Self> {
        let mut server = Self {
            client: http_client(config, SECTION)?,
            run_id: run_id.to_owned(),
            host: String::new(),
            version: String::new(),
            settings: BTreeMap::new(),
            idle_timeout: config.connect_timeout,
            queries: AtomicU32::new(0),
        };
        server.learn(config).await.map_err(|e| e.context(format!("connect to ClickHouse at {}", config.url)))?;
        Ok(server)
    }

    async fn learn(&mut self, config: &ClickHouse) -> Result<()> {
        let hello = "SELECT hostName() AS host, version() AS version";
        let rows = match self.fetch_bytes(hello, "hello", |error| of_first_answer(error, SECTION)).await {
            Err(error) if error.kind() == Kind::Unavailable => {
                return Err(wants_tls(config, SECTION).await.unwrap_or(error));
            }
            rows => rows?,
        };
        let row: HostRow = rows.into_iter().next().ok_or_else(not_clickhouse)?;
        if is_too_old(&row.version) {
            let (major, minor) = OLDEST;
            return Err(Error::new(
                Kind::Config,
                format!("the server is ClickHouse {}, which is too old", row.version),
            )
            .hint(format!("ClickHouse {major}.{minor} or newer writes Parquet as Iceberg needs it")));
        }
        self.host = row.host;
        self.version = row.version;
        self.idle_timeout = config.idle_timeout;
        let names: Vec<String> = settings::names().map(sql::string).collect();
        let query = format!(
            "SELECT groupArray((name, value, readonly)) AS settings FROM system.settings WHERE name IN ({})",
            names.join(", ")
        );
        let row: SettingsRow = self.fetch_one(&query, "settings").await?;
        let setting = |(name, value, readonly)| (name, ServerSetting { value, readonly: readonly != 0 });
        self.settings = row.settings.into_iter().map(setting).collect();
        for (name, value) in &config.settings {
            self.try_setting(name, value).await.map_err(|e| e.context(format!("clickhouse.settings.{name}")))?;
        }
        let mut client = self.client.clone();
        for (name, value) in settings::pinned(&self.settings)?.into_iter().chain(config.settings.clone()) {
            client = client.with_setting(name, value);
        }
        if self.may_set("max_execution_time") {
            client = client.with_setting("max_execution_time", config.query_timeout.as_secs().to_string());
        }
        if self.may_set("log_comment") {
            client = client.with_setting("log_comment", format!("k2-offload {}", self.run_id));
        }
        self.client = client;
        Ok(())
    }

    /// Later, an error would not say which setting it is about.
    async fn try_setting(&self, name: &str, value: &str) -> Result<()> {
        let query = self.client.query_raw("SELECT 1").with_setting("query_id", self.query_id("setting"));
        match timeout(self.idle_timeout, query.with_setting(name, value).execute()).await {
            Ok(answered) => answered.map_err(of_setting),
            Err(_) => Err(stalled(self.idle_timeout)),
        }
    }

    fn may_set(&self, name: &str) -> bool {
        self.settings.get(name).is_some_and(|setting| !setting.readonly)
    }

    /// A readable id: run, what for, and a number that makes it unique.
    pub(super) fn query_id(&self, what: &str) -> String {
        format!("k2-offload/{}/{what}/{}", self.run_id, self.queries.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) async fn fetch<T: RowOwned + RowRead>(&self, query: &str, what: &str) -> Result<Vec<T>> {
        self.fetch_of(&[], query, what).await
    }

    /// Runs a query over `columns`, which its errors may be about.
    pub(super) async fn fetch_of<T: RowOwned + RowRead>(
        &self,
        columns: &[Column],
        query: &str,
        what: &str,
    ) -> Result<Vec<T>> {
        let id = self.query_id(what);
        tracing::debug!(query_id = id, query, "query");
        let rows = self.client.query_raw(query).with_setting("query_id", id).fetch_all::<T>();
        match timeout(self.idle_timeout, rows).await {
            Ok(rows) => rows.map_err(|e| classify(e, columns)),
            Err(_) => Err(stalled(self.idle_timeout)),
        }
    }

    pub(super) async fn fetch_one<T>(&self, query: &str, what: &str) -> Result<T>
    where
        T: RowOwned + RowRead,
    {
        let row = self.fetch(query, what).await?.into_iter().next();
        row.ok_or_else(|| Error::new(Kind::Internal, format!("the query for {what} returned no row")))
    }

    /// Runs a query that every server can answer, with whatever further columns.
    pub(super) async fn fetch_json<T: DeserializeOwned>(&self, query: &str, what: &str) -> Result<Vec<T>> {
        self.fetch_bytes(query, what, |error| classify(error, &[])).await
    }

    async fn fetch_bytes<T: DeserializeOwned>(
        &self,
        query: &str,
        what: &str,
        sort: impl Fn(ClientError) -> Error,
    ) -> Result<Vec<T>> {
        let id = self.query_id(what);
        tracing::debug!(query_id = id, query, "query");
        let query = self.client.query_raw(query).with_setting("query_id", id);
        let mut cursor = query.fetch_bytes("JSONEachRow").map_err(&sort)?;
        let bytes = match timeout(self.idle_timeout, cursor.collect()).await {
            Ok(bytes) => bytes.map_err(sort)?,
            Err(_) => return Err(stalled(self.idle_timeout)),
        };
        let rows = serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<_, _>>();
        rows.map_err(|_| not_clickhouse())
    }

    /// Runs a query that holds SQL of the configuration: its errors are the user's to correct.
    pub(super) async fn fetch_users<T: DeserializeOwned>(&self, query: &str, what: &str) -> Result<Vec<T>> {
        self.fetch_bytes(query, what, of_users_sql).await
    }

    /// Its name for itself and its version.
    pub fn name(&self) -> String {
        format!("{}, ClickHouse {}", self.host, self.version)
    }

    /// The server's clock, microseconds since 1970.
    pub async fn clock_micros(&self) -> Result<i64> {
        let row: ClockRow = self.fetch_one(&format!("SELECT {} AS clock_micros", sql::CLOCK_MICROS), "clock").await?;
        Ok(row.clock_micros)
    }
}

/// A version that does not parse is given a try.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_known_by_their_version() {
        assert!(is_too_old("18.16.1") && is_too_old("24.2.9.1"));
        assert!(!is_too_old("24.3.1.1") && !is_too_old("26.7.2.1") && !is_too_old("head"));
    }
}
