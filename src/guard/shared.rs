//! One pass per target table on all hosts that share a PostgreSQL database: that of the catalog, else that of `[state]`.
//!
//! An advisory lock of a session: it ends with the session, so that kill -9 and a power cut free it too. It saves work, no more: a session that
//! broke, and with it the lock, stops no commit, because the commit compares (P13). The URI must lead to the server itself or to a pooler of
//! sessions; a pooler of transactions would keep the lock on a session that somebody else gets next.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use twox_hash::XxHash3_128;

use crate::config::{Backend, Catalog, TableName};
use crate::error::{Error, Kind, Result};
use crate::guard::host_name;
use crate::postgres::{Client, Value};

/// Makes the server find out soon that this host is gone.
const KEEP_ALIVE: &str = "SELECT set_config(name, CASE name WHEN 'tcp_keepalives_idle' THEN '30' WHEN 'tcp_keepalives_interval' THEN '10' \
                          WHEN 'tcp_keepalives_count' THEN '3' ELSE '0' END, false) FROM pg_catalog.pg_settings \
                          WHERE name IN ('tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count', 'idle_session_timeout')";

/// A pass of this host that has just ended may leave its session to the server for a moment.
const TRIES: u32 = 20;
const POLL: Duration = Duration::from_millis(50);

/// Where the locks are.
#[derive(Debug, Clone)]
pub struct Database {
    client: Arc<Client>,
    /// The locked key: the same number means another table in another schema of the catalog's database.
    key: &'static str,
}

impl Database {
    /// The database of the catalog itself.
    pub async fn of_catalog(client: Client) -> Result<Self> {
        let key = "$1 # coalesce(to_regclass('iceberg_tables')::oid::bigint, 0)";
        Self { client: Arc::new(client), key }.prepared().await
    }

    /// The one of `[state]`.
    pub async fn of_records(client: Arc<Client>) -> Result<Self> {
        Self { client, key: "$1" }.prepared().await
    }

    async fn prepared(self) -> Result<Self> {
        self.client.query(KEEP_ALIVE, &[]).await?;
        Ok(self)
    }

    /// Takes the lock of a table, or says who holds it.
    pub async fn acquire(&self, catalog: &Catalog, table: &TableName) -> Result<SharedLock> {
        let context = |error: Error| error.context(format!("lock `{table}` in {}", self.client.name()));
        let number = number(catalog, table);
        let statement = format!("SELECT pg_try_advisory_lock({})", self.key);
        for attempt in 1.. {
            let rows = self.client.query(&statement, &[bigint(&number)]).await.map_err(context)?;
            if rows.first().is_some_and(|row| row.try_get(0).unwrap_or(false)) {
                break;
            }
            let holder = self.holder(number).await.map_err(context)?;
            if attempt == TRIES || !holder.as_deref().is_some_and(is_of_this_host) {
                let holder = holder.as_deref().unwrap_or("another pass");
                return Err(Error::new(Kind::Locked, format!("`{table}` is locked by {holder}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(SharedLock { database: self.clone(), number })
    }

    /// What is known of who holds it: it may have let go meanwhile, and what others do need not be ours to see.
    async fn holder(&self, number: i64) -> Result<Option<String>> {
        let query = format!(
            "SELECT a.application_name, host(a.client_addr), a.backend_start \
             FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid), (SELECT {} AS key) k \
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
             AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
             AND l.classid::bigint = (k.key >> 32) & 4294967295 AND l.objid::bigint = k.key & 4294967295",
            self.key
        );
        let rows = self.client.query(&query, &[bigint(&number)]).await?;
        Ok(rows.first().and_then(describe))
    }
}

/// The server calls sessions by the first 63 bytes of their names.
fn is_of_this_host(holder: &str) -> bool {
    let host = holder.split_once(" on ").map(|(_, rest)| rest.split([' ', ',']).next().unwrap_or_default());
    host.is_some_and(|host| !host.is_empty() && host_name().starts_with(host))
}

/// `k2-offload RUN on HOST at ADDRESS, since TIME`.
fn describe(row: &Row) -> Option<String> {
    let name: String = row.try_get(0).ok().filter(|name: &String| !name.is_empty())?;
    let address: Option<String> = row.try_get(1).ok().flatten();
    let since: Option<DateTime<Utc>> = row.try_get(2).ok().flatten();
    let address = address.map_or_else(String::new, |address| format!(" at {address}"));
    let since =
        since.map_or_else(String::new, |since| format!(", since {}", since.to_rfc3339_opts(SecondsFormat::Secs, true)));
    Some(format!("{name}{address}{since}"))
}

fn bigint(number: &i64) -> Value<'_> {
    (number, Type::INT8)
}

/// Held while it lives.
#[derive(Debug)]
pub struct SharedLock {
    database: Database,
    number: i64,
}

impl Drop for SharedLock {
    /// The session goes on with the locks of other tables. Where nothing runs any more, it ends anyway.
    fn drop(&mut self) {
        let (Database { client, key }, number) = (self.database.clone(), self.number);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let unlock = format!("SELECT pg_advisory_unlock({key})");
            if let Err(error) = client.query(&unlock, &[bigint(&number)]).await {
                tracing::debug!(%error, "a lock ends with its session");
            }
        });
    }
}

/// The number of a table's lock: the same on all hosts that mean the same table.
///
/// Of a catalog in PostgreSQL without its URI, which other hosts may spell otherwise: the lock lies in the catalog's own database.
fn number(catalog: &Catalog, table: &TableName) -> i64 {
    let (kind, place) = match &catalog.backend {
        Backend::Postgres(_) => ("postgresql", String::new()),
        Backend::Rest(rest) => ("rest", format!("{}\0{}", rest.url.to_lowercase(), catalog.warehouse)),
        Backend::Sqlite(path) => ("sqlite", path.display().to_string()),
    };
    let name = format!("k2-offload\0{kind}\0{}\0{place}\0{}\0{}", catalog.name, table.namespace, table.name);
    // The first 8 of its 16 bytes.
    ((XxHash3_128::oneshot(name.as_bytes()) >> 64) as u64).cast_signed()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn number_of(catalog: &str, table: &str) -> i64 {
        let text = format!("[catalog]\n{catalog}\n[[table]]\nsource = 't'\ntarget = '{table}'\ncursor = 'ts'\n");
        let config = Config::parse(&text, Path::new("/"), |_| Some("s3cret".into())).unwrap();
        number(&config.catalog, &config.tables[0].target)
    }

    #[test]
    fn hosts_agree_on_the_number_of_a_table() {
        let postgres = number_of("uri = 'postgresql://a@db/lake'", "cold.t");
        assert_eq!(
            postgres,
            number_of("uri = 'postgres://b@10.0.0.1:5432/lake?sslmode=require'\npassword_env = 'PW'", "cold.t")
        );
        let rest = number_of("type = 'rest'\nuri = 'https://c.example/api/'\nwarehouse = 'w'", "cold.t");
        assert_eq!(
            rest,
            number_of("type = 'rest'\nuri = 'https://C.example/api'\nwarehouse = 'w'\ntoken_env = 'T'", "cold.t")
        );
        let others = [
            number_of("uri = 'postgresql://a@db/lake'", "cold.u"),
            number_of("uri = 'postgresql://a@db/lake'\nname = 'other'", "cold.t"),
            number_of("type = 'rest'\nuri = 'https://c.example/api'\nwarehouse = 'x'", "cold.t"),
            number_of("type = 'rest'\nuri = 'https://d.example/api'\nwarehouse = 'w'", "cold.t"),
        ];
        assert!(!others.contains(&postgres) && !others.contains(&rest) && postgres != rest);
    }

    /// Versions that run side by side must agree on it too.
    #[test]
    fn the_number_stays() {
        assert_eq!(number_of("uri = 'postgresql://a@db/lake'", "cold.t"), 8_499_834_132_260_413_973);
    }
}
