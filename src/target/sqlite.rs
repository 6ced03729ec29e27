//! A catalog in SQLite: the tables of PyIceberg's `SqlCatalog`, read and swapped (protocol.md P19).
//!
//! iceberg's own SQL catalog commits through `Transaction`, which re-applies on whatever is current; our commits must not. So this is
//! ours, on rusqlite. It stores and compares metadata locations; what they mean is [`super`]'s and `commit`'s business.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::catalog::{Moved, SCHEMA, SwapError};
use crate::config::TableName;
use crate::error::{Error, Kind, Result};
use crate::failpoint::{self, Action, Failpoint};
use crate::storage::file_error;

/// How long a statement waits for another process that holds the file. Writers of a catalog take milliseconds: one that takes this long hangs,
/// and then every table of a pass waits this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// An open catalog file.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    path: PathBuf,
    name: String,
    /// Older PyIceberg has no `iceberg_type`; newer ones also keep views in the table.
    has_type: bool,
}

impl Sqlite {
    /// Opens an existing catalog file. Its journal mode is left as found.
    pub fn open(path: &Path, name: &str) -> Result<Self> {
        if !path.exists() {
            return Err(Error::refused(format!("the catalog file {} does not exist", path.display()))
                .hint("run `k2-offload init-tables` first; if it was there before, mount its disk, or restore it"));
        }
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        Self::over(connection, path, name)
    }

    /// Opens the catalog file, or creates it with the two tables.
    pub fn open_or_create(path: &Path, name: &str) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| file_error("create", parent, e))?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = connect(path, flags)?;
        begin(&connection)
            .and_then(|tx| {
                tx.execute_batch(SCHEMA)?;
                tx.commit()
            })
            .map_err(|e| classify(e, path, "create the tables of"))?;
        Self::over(connection, path, name)
    }

    /// Tries whether this process may write to the file and to its folder, where SQLite keeps a journal; changes nothing.
    pub fn try_writing(&self) -> Result<()> {
        let tried = begin(&self.connection).and_then(|tx| {
            tx.execute_batch("CREATE TABLE k2_offload_try (x)")?;
            tx.rollback()
        });
        tried.map_err(|e| classify(e, &self.path, "write to"))
    }

    fn over(connection: Connection, path: &Path, name: &str) -> Result<Self> {
        let columns: Vec<String> = connection
            .prepare("SELECT name FROM pragma_table_info('iceberg_tables')")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(|e| classify(e, path, "read"))?;
        if !columns.iter().any(|column| column == "metadata_location") {
            let message = format!("{} is no Iceberg catalog: it has no table iceberg_tables", path.display());
            return Err(Error::new(Kind::Config, message).hint("correct catalog.uri, or run `k2-offload init-tables`"));
        }
        Ok(Self {
            connection,
            path: path.to_owned(),
            name: name.to_owned(),
            has_type: columns.iter().any(|column| column == "iceberg_type"),
        })
    }

    /// The current metadata location of a table, `None` where there is no such table.
    pub fn location(&self, table: &TableName) -> Result<Option<String>> {
        let only_tables = if self.has_type { "AND coalesce(iceberg_type, 'TABLE') = 'TABLE'" } else { "" };
        let query = format!(
            "SELECT metadata_location FROM iceberg_tables \
             WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3 {only_tables}"
        );
        self.connection
            .query_row(&query, params![self.name, table.namespace, table.name], |row| row.get::<_, Option<String>>(0))
            .optional()
            .map(Option::flatten)
            .map_err(|e| classify(e, &self.path, "read"))
    }

    /// Adds a table and its namespace; `false` where the table exists.
    pub fn insert(&self, table: &TableName, location: &str) -> Result<bool, SwapError> {
        let (name, path) = (&self.name, &self.path);
        let not_done = |e| SwapError::NotDone(classify(e, path, "add a table to"));
        let (column, value) = if self.has_type { (", iceberg_type", ", 'TABLE'") } else { ("", "") };
        let statement = format!(
            "INSERT OR IGNORE INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location{column}) \
             VALUES (?1, ?2, ?3, ?4{value})"
        );
        let tx = begin(&self.connection).map_err(not_done)?;
        let rows = tx.execute(&statement, params![name, table.namespace, table.name, location]).map_err(not_done)?;
        tx.execute(
            "INSERT OR IGNORE INTO iceberg_namespace_properties VALUES (?1, ?2, 'exists', 'true')",
            params![name, table.namespace],
        )
        .map_err(not_done)?;
        tx.commit().map_err(|e| SwapError::Unknown(classify(e, path, "add a table to")))?;
        Ok(rows == 1)
    }

    /// Replaces the metadata location `old` by `new`, if it still is `old`.
    ///
    /// Crash safety: SQLite makes the transaction durable before COMMIT returns. An error of COMMIT itself leaves the outcome
    /// unknown; an error before it does not.
    pub fn swap(&self, table: &TableName, old: &str, new: &str) -> Result<Moved, SwapError> {
        let action = failpoint::hit(Failpoint::CommitSwap).map_err(SwapError::NotDone)?;
        let lost = || SwapError::Unknown(Error::new(Kind::Unavailable, "failpoint commit-swap"));
        if action == Action::RequestLost {
            return Err(lost());
        }
        let (name, path) = (&self.name, &self.path);
        let not_done = |e| SwapError::NotDone(classify(e, path, "commit to"));
        let tx = begin(&self.connection).map_err(not_done)?;
        let rows = tx
            .execute(
                "UPDATE iceberg_tables SET metadata_location = ?1, previous_metadata_location = ?2 \
                 WHERE catalog_name = ?3 AND table_namespace = ?4 AND table_name = ?5 AND metadata_location = ?2",
                params![new, old, name, table.namespace, table.name],
            )
            .map_err(not_done)?;
        if rows == 0 {
            return Ok(Moved::Stale);
        }
        failpoint::hit(Failpoint::CommitSwapped).map_err(SwapError::NotDone)?;
        tx.commit().map_err(|e| SwapError::Unknown(classify(e, path, "commit to")))?;
        if action == Action::ReplyLost { Err(lost()) } else { Ok(Moved::Done) }
    }
}

/// BEGIN IMMEDIATE: a transaction that begins by reading could not become a writing one while another process writes.
fn begin(connection: &Connection) -> rusqlite::Result<Transaction<'_>> {
    // No transaction is open while another one begins: none lives across an await.
    Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
        .and_then(|connection| {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Invariant 11: the transaction is on disk before COMMIT returns, whatever the build's default is.
            connection.pragma_update(None, "synchronous", "FULL")?;
            Ok(connection)
        })
        .map_err(|e| classify(e, path, "open"))
}

/// Sorts an error by SQLite's result code.
fn classify(error: rusqlite::Error, path: &Path, verb: &str) -> Error {
    let (kind, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => (Kind::Config, "catalog.uri names a file that is not SQLite; correct it"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (Kind::Busy, "another process holds the catalog file, see which (`fuser FILE`); the next pass tries again")
        }
        Some(ErrorCode::CannotOpen) if path.is_dir() => (Kind::Config, "catalog.uri names a folder; it must be a file"),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            (Kind::Unavailable, "the catalog file and its folder must be writable for this user")
        }
        Some(ErrorCode::DiskFull) => (Kind::Unavailable, "the disk of the catalog is full"),
        Some(ErrorCode::DatabaseCorrupt) => (Kind::Internal, "the catalog file is damaged; restore it from a backup"),
        _ => (Kind::Unavailable, Kind::Unavailable.policy().hint),
    };
    Error::from_cause(kind, error).context(format!("{verb} catalog {}", path.display())).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("c.db")
    }

    fn name(name: &str) -> TableName {
        TableName { namespace: "cold".into(), name: name.into() }
    }

    #[test]
    fn a_swap_needs_the_location_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Sqlite::open_or_create(&path(&folder), "k2").unwrap();
        assert!(catalog.insert(&name("t"), "a").unwrap());
        assert!(!catalog.insert(&name("t"), "b").unwrap());
        assert_eq!(catalog.swap(&name("t"), "b", "c").unwrap(), Moved::Stale);
        assert_eq!(catalog.swap(&name("t"), "a", "c").unwrap(), Moved::Done);
        assert_eq!(catalog.swap(&name("other"), "a", "c").unwrap(), Moved::Stale);
        let again = Sqlite::open(&path(&folder), "k2").unwrap();
        again.try_writing().and_then(|()| again.try_writing()).unwrap();
        assert_eq!(again.location(&name("t")).unwrap().as_deref(), Some("c"));
        assert_eq!(again.location(&name("other")).unwrap(), None);
    }

    #[test]
    fn views_and_other_catalogs_are_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Sqlite::open_or_create(&path(&folder), "k2").unwrap();
        catalog.insert(&name("t"), "a").unwrap();
        catalog.connection.execute("UPDATE iceberg_tables SET iceberg_type = NULL", []).unwrap();
        assert!(catalog.location(&name("t")).unwrap().is_some(), "older PyIceberg leaves the type null");
        catalog.connection.execute("UPDATE iceberg_tables SET iceberg_type = 'VIEW'", []).unwrap();
        assert_eq!(catalog.location(&name("t")).unwrap(), None);
        let other = Sqlite::open(&path(&folder), "else").unwrap();
        assert_eq!(other.location(&name("t")).unwrap(), None);
    }

    #[test]
    fn the_tables_of_older_pyiceberg_work_too() {
        let folder = tempfile::tempdir().unwrap();
        let old = SCHEMA.replace("iceberg_type VARCHAR(5),", "");
        Connection::open(path(&folder)).unwrap().execute_batch(&old).unwrap();
        let catalog = Sqlite::open_or_create(&path(&folder), "k2").unwrap();
        assert!(catalog.insert(&name("t"), "a").unwrap());
        assert_eq!(catalog.location(&name("t")).unwrap().as_deref(), Some("a"));
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Sqlite::open(&path(&folder), "k2").unwrap_err().kind(), Kind::Refused);
        std::fs::write(path(&folder), "certainly no database, but long enough to look like one".repeat(50)).unwrap();
        assert_eq!(Sqlite::open(&path(&folder), "k2").unwrap_err().kind(), Kind::Config);
        std::fs::remove_file(path(&folder)).unwrap();
        Connection::open(path(&folder)).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
        assert_eq!(Sqlite::open(&path(&folder), "k2").unwrap_err().kind(), Kind::Config);
    }
}
