//! The Iceberg catalog in PostgreSQL: the tables of PyIceberg's `SqlCatalog`, read and swapped.
//!
//! What [`super::catalog`] is for a SQLite file. Other clients may use the same tables at the same time; a swap that finds another location changes
//! nothing, whoever wrote it.

use std::time::Duration;

use super::catalog::{Moved, SCHEMA, SwapError};
use crate::config::{Postgres as Config, TableName};
use crate::error::{Error, Kind, Result};
use crate::failpoint::{self, Action, Failpoint};
use crate::postgres::{Client, CommitError, Durability, Transaction, application, text};

/// Columns of a table, wherever the user's `search_path` finds it; none where there is none.
const COLUMNS: &str = "SELECT a.attname::text FROM pg_catalog.pg_attribute a \
                       WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
const TABLES: &str = "iceberg_tables";
const NAMESPACES: &str = "iceberg_namespace_properties";

/// Tries of making the tables while others make them too, and the wait between them.
const TRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(100);

/// An open catalog.
#[derive(Debug)]
pub struct Postgres {
    client: Client,
    name: String,
    /// Older PyIceberg has no `iceberg_type`; newer ones also keep views in the table.
    has_type: bool,
}

impl Postgres {
    /// Opens an existing catalog. `name` is the `catalog_name` of its rows.
    pub async fn open(name: &str, config: &Config) -> Result<Self> {
        let client = connect(config).await?;
        let columns = columns(&client, TABLES).await?;
        if columns.is_empty() {
            let message = format!("{} is no Iceberg catalog: it has no table {TABLES}", client.name());
            return Err(Error::refused(message).hint(
                "run `k2-offload init-tables` first; if it was there before, see catalog.uri and the search_path of its user",
            ));
        }
        Self::over(client, name, &columns)
    }

    /// Opens the catalog, and makes its two tables where they are missing.
    pub async fn open_or_create(name: &str, config: &Config) -> Result<Self> {
        let client = connect(config).await?;
        let context = |error: Error| error.context(format!("create the tables of catalog {}", client.name()));
        let mut columns = columns(&client, TABLES).await?;
        // Where they are there the user need not be one who may make tables.
        if columns.is_empty() || self::columns(&client, NAMESPACES).await?.is_empty() {
            make_tables(&client).await.map_err(context)?;
            columns = self::columns(&client, TABLES).await?;
        }
        Self::over(client, name, &columns)
    }

    fn over(client: Client, name: &str, columns: &[String]) -> Result<Self> {
        if !columns.iter().any(|column| column == "metadata_location") {
            let message = format!("{TABLES} of {} is no table of an Iceberg catalog", client.name());
            return Err(Error::new(Kind::Config, message).hint("correct catalog.uri"));
        }
        let has_type = columns.iter().any(|column| column == "iceberg_type");
        Ok(Self { client, name: name.to_owned(), has_type })
    }

    /// Tries whether the user may change the tables; changes nothing.
    pub async fn try_writing(&self) -> Result<()> {
        let tried = async {
            let mut transaction = self.client.begin(Durability::Crash).await?;
            transaction
                .batch(&format!(
                    "UPDATE {TABLES} SET metadata_location = NULL WHERE false; \
                     INSERT INTO {TABLES} (catalog_name) SELECT '' WHERE false; \
                     INSERT INTO {NAMESPACES} (catalog_name) SELECT '' WHERE false"
                ))
                .await?;
            transaction.roll_back().await
        };
        tried.await.map_err(|error| self.during("write to", error))
    }

    /// The current metadata location of a table, `None` where there is no such table.
    pub async fn location(&self, table: &TableName) -> Result<Option<String>> {
        let only_tables = if self.has_type { "AND coalesce(iceberg_type, 'TABLE') = 'TABLE'" } else { "" };
        let query = format!(
            "SELECT metadata_location FROM {TABLES} \
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 {only_tables}"
        );
        let values = [text(&self.name), text(&table.namespace), text(&table.name)];
        let rows = self.client.query(&query, &values).await.map_err(|error| self.during("read", error))?;
        let Some(row) = rows.first() else { return Ok(None) };
        row.try_get(0).map_err(|error| self.during("read", Error::from_cause(Kind::Config, error)))
    }

    /// Adds a table and its namespace; `false` where the table exists.
    pub async fn insert(&self, table: &TableName, location: &str) -> Result<bool, SwapError> {
        let not_done = |error| SwapError::NotDone(self.during("add a table to", error));
        let (column, value) = if self.has_type { (", iceberg_type", ", 'TABLE'") } else { ("", "") };
        let statement = format!(
            "INSERT INTO {TABLES} (catalog_name, table_namespace, table_name, metadata_location{column}) \
             VALUES ($1, $2, $3, $4{value}) ON CONFLICT DO NOTHING"
        );
        let namespace = format!(
            "INSERT INTO {NAMESPACES} (catalog_name, namespace, property_key, property_value) \
             VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING"
        );
        let mut transaction = self.client.begin(Durability::Disk).await.map_err(not_done)?;
        let values = [text(&self.name), text(&table.namespace), text(&table.name), text(&location)];
        let rows = transaction.execute(&statement, &values).await.map_err(not_done)?;
        let values = [text(&self.name), text(&table.namespace)];
        transaction.execute(&namespace, &values).await.map_err(not_done)?;
        self.commit(transaction, "add a table to").await?;
        Ok(rows == 1)
    }

    /// Replaces the metadata location `old` by `new`, if it still is `old`.
    ///
    /// Crash safety: a transaction that was not asked to commit ends with its connection, and is taken back. Once asked, only the server's answer
    /// tells; without one the outcome is unknown.
    pub async fn swap(&self, table: &TableName, old: &str, new: &str) -> Result<Moved, SwapError> {
        let action = failpoint::hit(Failpoint::CommitSwap).map_err(SwapError::NotDone)?;
        let lost = || SwapError::Unknown(Error::new(Kind::Unavailable, "failpoint commit-swap"));
        if action == Action::RequestLost {
            return Err(lost());
        }
        let not_done = |error| SwapError::NotDone(self.during("commit to", error));
        let statement = format!(
            "UPDATE {TABLES} SET metadata_location = $1, previous_metadata_location = $2 \
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 AND metadata_location = $2"
        );
        let mut transaction = self.client.begin(Durability::Disk).await.map_err(not_done)?;
        let values = [text(&new), text(&old), text(&self.name), text(&table.namespace), text(&table.name)];
        let rows = transaction.execute(&statement, &values).await.map_err(not_done)?;
        if rows == 0 {
            // Nothing was changed: however this ends, the answer stays.
            let _ = transaction.roll_back().await;
            return Ok(Moved::Stale);
        }
        failpoint::hit(Failpoint::CommitSwapped).map_err(SwapError::NotDone)?;
        self.commit(transaction, "commit to").await?;
        if action == Action::ReplyLost { Err(lost()) } else { Ok(Moved::Done) }
    }

    async fn commit(&self, transaction: Transaction<'_>, verb: &str) -> Result<(), SwapError> {
        transaction.commit().await.map_err(|error| match error {
            CommitError::NotDone(error) => SwapError::NotDone(self.during(verb, error)),
            CommitError::Unknown(error) => SwapError::Unknown(self.during(verb, error)),
        })
    }

    fn during(&self, verb: &str, error: Error) -> Error {
        error.context(format!("{verb} catalog {}", self.client.name()))
    }
}

async fn connect(config: &Config) -> Result<Client> {
    let client = Client::connect(config, &application(None)).await;
    client.map_err(|error| error.context("open the catalog"))
}

async fn columns(client: &Client, table: &str) -> Result<Vec<String>> {
    let read = async {
        let rows = client.query(COLUMNS, &[text(&table)]).await?;
        let names = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>();
        names.map_err(|error| Error::from_cause(Kind::Config, error))
    };
    read.await.map_err(|error: Error| error.context(format!("read catalog {}", client.name())))
}

/// Two that make the same table at once meet in PostgreSQL's own catalog, IF NOT EXISTS or not: one of them fails, and finds it there afterwards.
async fn make_tables(client: &Client) -> Result<()> {
    for _ in 1..TRIES {
        let Err(error) = client.batch(SCHEMA).await else { return Ok(()) };
        if !columns(client, TABLES).await?.is_empty() && !columns(client, NAMESPACES).await?.is_empty() {
            return Ok(());
        }
        if !matches!(error.kind(), Kind::Internal | Kind::Config) {
            return Err(error);
        }
        tokio::time::sleep(BACKOFF).await;
    }
    client.batch(SCHEMA).await
}
