//! One pass per target table on this host (protocol.md P19), and where hosts share a PostgreSQL database, on all of them.
//!
//! A lock of the kernel on a file beside the catalog, so that two configurations with different state folders still exclude each
//! other; kill -9 frees it. Behind it, a lock there. Both save work, no more: what keeps two passes apart is the compare in `commit`.

mod shared;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

use chrono::{SecondsFormat, Utc};

use tokio::sync::OnceCell;

use self::shared::{Database, SharedLock};
use crate::config::{Backend, Config, TableName};
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, application};
use crate::state::Ledger;
use crate::storage::file_error;

/// Held while it lives.
#[derive(Debug)]
pub struct Guard {
    _shared: Option<SharedLock>,
    _file: FileLock,
}

/// The locks of one command.
#[derive(Debug)]
pub struct Locks<'a> {
    config: &'a Config,
    run_id: String,
    ledger: Rc<Ledger>,
    /// `None` where hosts share none, or the one of `[state]` is down.
    database: OnceCell<Option<Database>>,
}

impl<'a> Locks<'a> {
    /// Of the run that also keeps `ledger`.
    pub fn new(config: &'a Config, run_id: &str, ledger: &Rc<Ledger>) -> Self {
        Self { config, run_id: run_id.to_owned(), ledger: Rc::clone(ledger), database: OnceCell::new() }
    }

    /// Takes the lock of a table, or says who holds it.
    pub async fn acquire(&self, table: &TableName) -> Result<Guard> {
        let file = FileLock::acquire(self.config, table, &self.run_id)?;
        let shared = match self.database.get_or_try_init(|| self.connect()).await? {
            None => None,
            Some(database) => match database.acquire(&self.config.catalog, table).await {
                Ok(lock) => Some(lock),
                Err(error) if error.kind() == Kind::Locked || self.is_in_catalog() => return Err(error),
                Err(error) => {
                    self.ledger.failed(&error);
                    None
                }
            },
        };
        Ok(Guard { _shared: shared, _file: file })
    }

    fn is_in_catalog(&self) -> bool {
        matches!(self.config.catalog.backend, Backend::Postgres(_))
    }

    async fn connect(&self) -> Result<Option<Database>> {
        match &self.config.catalog.backend {
            Backend::Postgres(postgres) => {
                let client = Client::connect(postgres, &application(Some(&self.run_id))).await?;
                Ok(Some(Database::of_catalog(client).await?))
            }
            // Only hosts that share a catalog have something to lock against each other, and a file is of one host.
            Backend::Sqlite(_) => Ok(None),
            Backend::Rest(_) => {
                let Some(client) = self.ledger.postgres().await else { return Ok(None) };
                let database = Database::of_records(client).await;
                Ok(database.inspect_err(|error| self.ledger.failed(error)).ok())
            }
        }
    }
}

/// The lock of this host.
#[derive(Debug)]
struct FileLock {
    _file: File,
}

impl FileLock {
    fn acquire(config: &Config, table: &TableName, run_id: &str) -> Result<Self> {
        let path = lock_folder(config).join(format!("{}.{table}.lock", config.catalog.name.replace('/', "_")));
        let failed = |e| file_error("lock", &path, e);
        let folder = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let known = file.read_to_string(&mut holder).is_ok() && !holder.is_empty();
                let holder = if known { holder.trim_end() } else { "another pass" };
                return Err(Error::new(Kind::Locked, format!("`{table}` is locked by {holder}")));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let since = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let holder = format!("pid {} on {}, run {run_id}, since {since}\n", std::process::id(), host_name());
        // Who holds it is only told, never decided on: a note that cannot be written must not stop a pass.
        let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        Ok(Self { _file: file })
    }
}

/// Beside the catalog where that is a file; else beside the state cache: nothing else on this host is known to be there for all passes.
pub fn lock_folder(config: &Config) -> PathBuf {
    let beside = match &config.catalog.backend {
        // One spelling for all that name it; a catalog that is not there yet has but one.
        Backend::Sqlite(path) => path.canonicalize().unwrap_or_else(|_| path.clone()),
        Backend::Postgres(_) | Backend::Rest(_) => config.state.clone(),
    };
    let mut folder = beside.into_os_string();
    folder.push(".locks");
    folder.into()
}

/// This host, as logs and locks name it.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "this host".to_owned(), |h| h.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.db");
        std::fs::write(&path, "").unwrap();
        let text = "[catalog]\nuri = 'sqlite:///c.db'\n[[table]]\nsource = 't'\ntarget = 'c.t'\ncursor = 'ts'\n";
        let catalog = Config::parse(text, folder.path(), |_| None).unwrap();
        let table = |name: &str| TableName { namespace: "cold".into(), name: name.into() };
        let held = FileLock::acquire(&catalog, &table("t"), "first").unwrap();
        let error = FileLock::acquire(&catalog, &table("t"), "second").unwrap_err();
        assert_eq!(error.kind(), Kind::Locked);
        assert!(
            error.to_string().contains(&format!("pid {}", std::process::id())) && error.to_string().contains("first")
        );
        FileLock::acquire(&catalog, &table("other"), "second").unwrap();
        drop(held);
        FileLock::acquire(&catalog, &table("t"), "third").unwrap();
    }
}
