//! The tables of the state cache, and how each version becomes the next.

use rusqlite::{Connection, TransactionBehavior};

/// What makes each version of the tables from the one before; `user_version` of SQLite counts them.
const MIGRATIONS: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS target_state (
        target TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        checked_to INTEGER,
        last_success_at TEXT,
        last_duration_ms INTEGER,
        failure_count INTEGER NOT NULL DEFAULT 0,
        last_error TEXT) WITHOUT ROWID;",
    "CREATE TABLE passes (
        run_id TEXT NOT NULL,
        target TEXT NOT NULL,
        started_at TEXT NOT NULL,
        duration_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        low TEXT,
        high TEXT,
        watermark TEXT,
        rows_read INTEGER NOT NULL,
        rows_written INTEGER NOT NULL,
        bytes_written INTEGER NOT NULL,
        files INTEGER NOT NULL,
        chunks INTEGER NOT NULL,
        error_kind TEXT,
        error TEXT,
        PRIMARY KEY (target, started_at, run_id)) WITHOUT ROWID;
    CREATE INDEX passes_by_start ON passes (started_at);",
    "ALTER TABLE target_state ADD COLUMN told_drift TEXT NOT NULL DEFAULT '';",
    // The pass under way, what the last ones saw (`_ms`: milliseconds since 1970), and totals that metrics count on from.
    "ALTER TABLE target_state ADD COLUMN run_id TEXT;
    ALTER TABLE target_state ADD COLUMN started_at TEXT;
    ALTER TABLE target_state ADD COLUMN last_hint TEXT;
    ALTER TABLE target_state ADD COLUMN needs_person INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN last_pass_ms INTEGER;
    ALTER TABLE target_state ADD COLUMN watermark TEXT;
    ALTER TABLE target_state ADD COLUMN checked_to_at TEXT;
    ALTER TABLE target_state ADD COLUMN target_rows INTEGER;
    ALTER TABLE target_state ADD COLUMN caught_up_ms INTEGER;
    ALTER TABLE target_state ADD COLUMN ttl_seconds_left INTEGER;
    ALTER TABLE target_state ADD COLUMN ttl_seen_ms INTEGER;
    ALTER TABLE target_state ADD COLUMN audited_ms INTEGER;
    ALTER TABLE target_state ADD COLUMN audit_mismatches INTEGER;
    ALTER TABLE target_state ADD COLUMN audit_first TEXT;
    ALTER TABLE target_state ADD COLUMN audit_exact INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN passes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN rows INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN rows_late INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN rows_duplicate INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN rows_rejected INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN files INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE target_state ADD COLUMN conflicts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE passes ADD COLUMN rows_late INTEGER;
    ALTER TABLE passes ADD COLUMN rows_duplicate INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE passes ADD COLUMN rows_rejected INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE passes ADD COLUMN hint TEXT;
    CREATE TABLE chunks (
        target TEXT NOT NULL,
        started_at TEXT NOT NULL,
        run_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        mode TEXT NOT NULL,
        low TEXT,
        high TEXT,
        rows INTEGER NOT NULL,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        snapshot_id INTEGER NOT NULL,
        committed_at TEXT NOT NULL,
        PRIMARY KEY (target, started_at, run_id, number)) WITHOUT ROWID;
    CREATE INDEX chunks_by_start ON chunks (started_at);
    CREATE TABLE errors (
        target TEXT NOT NULL,
        kind TEXT NOT NULL,
        passes INTEGER NOT NULL,
        PRIMARY KEY (target, kind)) WITHOUT ROWID;
    CREATE TABLE incidents (
        target TEXT NOT NULL,
        trouble TEXT NOT NULL,
        since TEXT NOT NULL,
        told INTEGER NOT NULL,
        PRIMARY KEY (target, trouble)) WITHOUT ROWID;
    CREATE TABLE last_pass (
        id INTEGER PRIMARY KEY CHECK (id = 0),
        ended_ms INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL);",
];

/// The newest version.
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// The version of the tables of a file; 0 of a new one.
pub fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Brings the tables up to the newest version; refuses those of a newer program.
pub fn migrate(connection: &mut Connection) -> anyhow::Result<()> {
    match version(connection)? {
        VERSION => return Ok(()),
        found if found > VERSION => anyhow::bail!("its version is {found}, this program knows {VERSION}"),
        _ => {}
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another pass may have done it meanwhile.
    let found = usize::try_from(version(&transaction)?).unwrap_or_default();
    transaction.execute_batch(&MIGRATIONS.get(found..).unwrap_or_default().concat())?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}
