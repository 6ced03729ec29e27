//! What somebody was told of and is not over yet, so that it is told once.

use rusqlite::Row;

use super::State;

/// A trouble of a table that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// The table.
    pub target: String,
    /// What kind of trouble.
    pub trouble: String,
    /// When it was seen first, RFC 3339.
    pub since: String,
    /// Whether somebody was told.
    pub told: bool,
}

impl State {
    /// All that go on.
    pub fn incidents(&self) -> Vec<Incident> {
        let incident = |row: &Row<'_>| {
            Ok(Incident { target: row.get(0)?, trouble: row.get(1)?, since: row.get(2)?, told: row.get(3)? })
        };
        let found = self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT target, trouble, since, told FROM incidents")?;
            statement.query_map([], incident)?.collect::<rusqlite::Result<Vec<_>>>()
        });
        found.unwrap_or_default()
    }

    /// Replaces what is remembered of incidents: `open` go on, `over` are forgotten.
    pub fn remember_incidents(&self, open: &[Incident], over: &[Incident]) {
        if open.is_empty() && over.is_empty() {
            return;
        }
        self.write(|transaction| {
            for Incident { target, trouble, .. } in over {
                transaction.execute("DELETE FROM incidents WHERE target = ?1 AND trouble = ?2", [target, trouble])?;
            }
            for Incident { target, trouble, since, told } in open {
                transaction.execute(
                    "INSERT OR REPLACE INTO incidents VALUES (?1, ?2, ?3, ?4)",
                    rusqlite::params![target, trouble, since, told],
                )?;
            }
            Ok(0)
        });
    }
}
