//! A PostgreSQL database: one connection at a time, every wait bounded, every error sorted.
//!
//! Statements are sent without being prepared first, in one round trip each, so that poolers of transactions can stand between. A connection that
//! broke between two statements is made again. What the tables mean is their owners' business.

mod errors;
mod settings;

use std::future::Future;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{NoTls, Row};

use self::errors::Fault;
use self::settings::Settings;
pub use self::settings::parse;
use crate::config::Postgres;
use crate::error::{Error, Result};
use crate::guard::host_name;

/// Longest wait for another session's lock on a row: writers take milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// A value of a statement, and its type.
pub type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// Text as a value.
pub fn text<T: ToSql + Sync>(value: &T) -> Value<'_> {
    (value, Type::TEXT)
}

/// What sessions of a run are called in the server's `pg_stat_activity`.
pub fn application(run_id: Option<&str>) -> String {
    let run = run_id.map_or_else(String::new, |run_id| format!(" {run_id}"));
    format!("k2-offload{run} on {}", host_name())
}

/// How durable a transaction is when COMMIT returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On the server's disk, whatever its settings are. Where they wait for standbys too, that is not waited for longer than for any statement.
    Disk,
    /// A crash of the server may take it back.
    Crash,
}

/// A commit that was not confirmed.
#[derive(Debug)]
pub enum CommitError {
    /// The server took the transaction back.
    NotDone(Error),
    /// It may have been committed (P14).
    Unknown(Error),
}

impl CommitError {
    /// For those to whom it is all the same.
    pub fn into_error(self) -> Error {
        match self {
            Self::NotDone(error) | Self::Unknown(error) => error,
        }
    }
}

/// A database.
pub struct Client {
    settings: Settings,
    connection: Mutex<Option<tokio_postgres::Client>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Client").field(&self.name()).finish()
    }
}

impl Client {
    /// Connects. `application` is how the server's `pg_stat_activity` calls the session.
    pub async fn connect(config: &Postgres, application: &str) -> Result<Self> {
        let settings = Settings::new(config, application)?;
        let client = Self { settings, connection: Mutex::new(None) };
        *client.connection.lock().await = Some(client.open().await?);
        Ok(client)
    }

    /// The database, without user and password.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Runs a statement that may be run twice: it is sent again where the connection turns out to be broken.
    pub async fn query(&self, statement: &str, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let (mut held, is_new) = self.alive().await?;
        match self.try_query(&mut held, statement, values).await {
            Err(fault) if fault.is_broken_connection() && !is_new => {
                *held = Some(self.open().await?);
                self.try_query(&mut held, statement, values).await
            }
            result => result,
        }
        .map_err(Fault::classify)
    }

    async fn try_query(
        &self,
        held: &mut Option<tokio_postgres::Client>,
        statement: &str,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, Fault> {
        let client = held.as_ref().ok_or(Fault::Closed)?;
        let result = self.bounded(client.query_typed(statement, values)).await;
        drop_broken(held, &result);
        result
    }

    /// Runs statements without values, separated by semicolons, that may be run twice.
    pub async fn batch(&self, statements: &str) -> Result<()> {
        self.batch_on(statements).await.map(drop)
    }

    async fn batch_on(&self, statements: &str) -> Result<MutexGuard<'_, Option<tokio_postgres::Client>>> {
        let (mut held, is_new) = self.alive().await?;
        match self.try_batch(&mut held, statements).await {
            Err(fault) if fault.is_broken_connection() && !is_new => {
                *held = Some(self.open().await?);
                self.try_batch(&mut held, statements).await
            }
            result => result,
        }
        .map_err(Fault::classify)?;
        Ok(held)
    }

    async fn try_batch(&self, held: &mut Option<tokio_postgres::Client>, statements: &str) -> Result<(), Fault> {
        let client = held.as_ref().ok_or(Fault::Closed)?;
        let result = self.bounded(client.batch_execute(statements)).await;
        drop_broken(held, &result);
        result
    }

    /// Begins a transaction that sees what others commit meanwhile, and waits for nobody without end.
    pub async fn begin(&self, durability: Durability) -> Result<Transaction<'_>> {
        let limit = self.settings.timeout;
        let synchronous = match durability {
            // `on` is the least that is on disk; `remote_write`, `remote_apply` are on this disk too and are left as they are.
            Durability::Disk => {
                "SELECT set_config('synchronous_commit', 'on', true) \
                                 WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            }
            Durability::Crash => "SET LOCAL synchronous_commit = off",
        };
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; {synchronous}",
            limit.as_millis().min(i32::MAX.unsigned_abs().into()),
            LOCK_TIMEOUT.min(limit / 2).as_millis(),
        );
        Ok(Transaction { client: self, held: self.batch_on(&begin).await?, is_open: true })
    }

    /// The connection, made where there is none; whether it was made just now.
    async fn alive(&self) -> Result<(MutexGuard<'_, Option<tokio_postgres::Client>>, bool)> {
        let mut held = self.connection.lock().await;
        let is_new = held.as_ref().is_none_or(tokio_postgres::Client::is_closed);
        if is_new {
            *held = Some(self.open().await?);
        }
        Ok((held, is_new))
    }

    async fn open(&self) -> Result<tokio_postgres::Client> {
        let opened = match timeout(self.settings.connect_timeout, Box::pin(self.dial())).await {
            Ok(opened) => opened.map_err(Fault::Server),
            Err(_) => Err(Fault::TimedOut(self.settings.connect_timeout)),
        };
        opened.map_err(|fault| {
            let error = fault.classify_connect(&self.settings);
            error.context(format!("connect to {}", self.settings.name))
        })
    }

    async fn dial(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let Settings { session, tls, .. } = &self.settings;
        // The connection's own task: it ends when its client is dropped, or when the connection breaks, which the next statement finds.
        match tls.clone() {
            Some(tls) => {
                let (client, connection) = session.connect(tls).await?;
                tokio::spawn(told(connection));
                Ok(client)
            }
            None => {
                let (client, connection) = session.connect(NoTls).await?;
                tokio::spawn(told(connection));
                Ok(client)
            }
        }
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Fault> {
        match timeout(self.settings.timeout, work).await {
            Ok(result) => result.map_err(Fault::Server),
            Err(_) => Err(Fault::TimedOut(self.settings.timeout)),
        }
    }
}

/// Whoever waits for an answer is told by its own statement.
async fn told(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = %Fault::Server(error).classify(), "a connection to PostgreSQL ended");
    }
}

/// After an error that is not the server's answer nobody knows what the connection carries next.
fn drop_broken<T>(held: &mut Option<tokio_postgres::Client>, result: &Result<T, Fault>) {
    if result.as_ref().is_err_and(|fault| !fault.is_answer()) {
        *held = None;
    }
}

/// A transaction under way; dropped without an end, it ends with its connection, and the server takes it back.
pub struct Transaction<'a> {
    client: &'a Client,
    held: MutexGuard<'a, Option<tokio_postgres::Client>>,
    is_open: bool,
}

impl Transaction<'_> {
    /// Runs a statement; how many rows it changed.
    pub async fn execute(&mut self, statement: &str, values: &[Value<'_>]) -> Result<u64> {
        let client = self.held.as_ref().ok_or_else(|| Fault::Closed.classify())?;
        self.client.bounded(client.execute_typed(statement, values)).await.map_err(Fault::classify)
    }

    /// Runs a query.
    pub async fn query(&mut self, statement: &str, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let client = self.held.as_ref().ok_or_else(|| Fault::Closed.classify())?;
        self.client.bounded(client.query_typed(statement, values)).await.map_err(Fault::classify)
    }

    /// Runs statements without values, separated by semicolons.
    pub async fn batch(&mut self, statements: &str) -> Result<()> {
        let client = self.held.as_ref().ok_or_else(|| Fault::Closed.classify())?;
        self.client.bounded(client.batch_execute(statements)).await.map_err(Fault::classify)
    }

    /// Commits.
    ///
    /// Crash safety: the server answers after the transaction is durable. Where it answers with an error by which it took the transaction back, nothing
    /// was done; without an answer, or with one that came while it ended or lost a standby, nobody knows.
    pub async fn commit(mut self) -> Result<(), CommitError> {
        let client = self.held.as_ref().ok_or_else(|| CommitError::NotDone(Fault::Closed.classify()))?;
        match self.client.bounded(client.batch_execute("COMMIT")).await {
            Ok(()) => {
                self.is_open = false;
                Ok(())
            }
            Err(fault) if fault.is_rolled_back() => Err(CommitError::NotDone(fault.classify())),
            Err(fault) => Err(CommitError::Unknown(fault.classify())),
        }
    }

    /// Takes it back.
    pub async fn roll_back(mut self) -> Result<()> {
        self.batch("ROLLBACK").await?;
        self.is_open = false;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.is_open {
            *self.held = None;
        }
    }
}
