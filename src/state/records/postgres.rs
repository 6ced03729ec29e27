//! The store in PostgreSQL.

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Row;

use super::{Meaning, NEVER, READ, RUNNING, TABLE};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, Durability, application, text};

const MAKE: &str = "CREATE TABLE IF NOT EXISTS offload_watermarks (
    table_name TEXT PRIMARY KEY,
    last_offload_timestamp TIMESTAMPTZ,
    last_offload_max_sequence BIGINT,
    last_successful_run TIMESTAMPTZ,
    last_run_duration_seconds DOUBLE PRECISION,
    status TEXT NOT NULL,
    failure_count BIGINT NOT NULL DEFAULT 0,
    last_error_message TEXT,
    checked_to BIGINT,
    updated_at TIMESTAMPTZ NOT NULL)";

/// Its columns, wherever the user's `search_path` finds it: name, type, and whether an insert must name it.
const COLUMNS: &str = "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull AND NOT atthasdef AND attidentity = '' \
                       FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped";

/// A column that we write.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    meaning: Meaning,
    kind: String,
    is_required: bool,
}

impl Column {
    /// SQL of text as a value of the column.
    fn typed(&self, text: &str) -> String {
        let Self { kind, meaning, .. } = self;
        let is_integer = matches!(kind.as_str(), "smallint" | "integer" | "bigint");
        if kind.contains("without time zone") {
            format!("(({text})::timestamptz AT TIME ZONE 'UTC')::{kind}")
        } else if is_integer && *meaning == Meaning::Seconds {
            format!("round(({text})::numeric)::{kind}")
        } else {
            format!("({text})::{kind}")
        }
    }

    /// What the record `r` says; null where it says nothing.
    fn told(&self) -> String {
        match self.meaning.field() {
            Some(field) => self.typed(&format!("r.{field}")),
            None if self.meaning == Meaning::Updated => self.typed("now()::text"),
            None => "NULL".to_owned(),
        }
    }

    /// What it becomes in the row `t`.
    fn updated(&self) -> String {
        let (name, told) = (&self.name, self.told());
        match self.meaning {
            Meaning::Success => format!("greatest(t.{name}, {told})"),
            Meaning::Error => {
                format!("CASE WHEN coalesce(r.status, '{RUNNING}') = '{RUNNING}' THEN t.{name} ELSE {told} END")
            }
            _ => format!("coalesce({told}, t.{name})"),
        }
    }

    /// What it is in a new row.
    fn inserted(&self) -> String {
        let instead = match self.meaning {
            Meaning::Status => "initialized",
            Meaning::Failures => "0",
            Meaning::Watermark | Meaning::Success if self.is_required => NEVER,
            Meaning::Sequence | Meaning::Seconds | Meaning::CheckedTo if self.is_required => "0",
            Meaning::Error if self.is_required => "",
            _ => return self.told(),
        };
        format!("coalesce({}, {})", self.told(), self.typed(&format!("'{instead}'")))
    }

    /// As text.
    fn read(&self) -> String {
        let (name, pattern) = (&self.name, "'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'");
        if self.kind.contains("without time zone") {
            format!("to_char({name}, {pattern})")
        } else if self.kind.contains("with time zone") {
            format!("to_char({name} AT TIME ZONE 'UTC', {pattern})")
        } else {
            format!("{name}::text")
        }
    }
}

/// One statement for all tables: rows that are there are changed, the others added.
fn statement(columns: &[Column]) -> String {
    let fields = "table_name text, watermark text, checked_to text, succeeded_at text, seconds text, status text, failures text, error text";
    let changed = columns.iter().filter(|column| !matches!(column.meaning, Meaning::Name | Meaning::Sequence));
    let changed: Vec<String> = changed.map(|column| format!("{} = {}", column.name, column.updated())).collect();
    let added = || columns.iter().filter(|column| column.meaning != Meaning::Sequence || column.is_required);
    let names: Vec<&str> = added().map(|column| column.name.as_str()).collect();
    let values: Vec<String> = added().map(Column::inserted).collect();
    format!(
        "WITH r AS (SELECT * FROM json_to_recordset($1::json) AS r({fields})), \
         changed AS (UPDATE {TABLE} t SET {} FROM r WHERE t.table_name = r.table_name RETURNING t.table_name) \
         INSERT INTO {TABLE} ({}) SELECT {} FROM r WHERE r.table_name NOT IN (SELECT table_name FROM changed)",
        changed.join(", "),
        names.join(", "),
        values.join(", "),
    )
}

/// The database.
#[derive(Debug)]
pub struct Postgres {
    client: Arc<Client>,
    /// None as long as there is no table.
    columns: RefCell<Vec<Column>>,
}

impl Postgres {
    pub async fn connect(config: &config::Postgres, run_id: &str) -> Result<Self> {
        let client = Client::connect(config, &application(Some(run_id))).await;
        let client = Arc::new(client.map_err(|error| error.context("open the records"))?);
        let columns = RefCell::new(columns(&client).await?);
        Ok(Self { client, columns })
    }

    pub fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    pub async fn publish(&self, rows: &[Value]) -> Result<()> {
        self.make().await.map_err(|error| self.during("make", error))?;
        let statement = statement(&self.columns.borrow());
        let rows = Value::from(rows).to_string();
        let write = async {
            let mut transaction = self.client.begin(Durability::Crash).await?;
            // Of two that add the same row one would fail, or without a unique key both would not. Readers are not held up.
            transaction.batch(&format!("LOCK TABLE {TABLE} IN SHARE ROW EXCLUSIVE MODE")).await?;
            transaction.execute(&statement, &[text(&rows)]).await?;
            transaction.commit().await.map_err(crate::postgres::CommitError::into_error)
        };
        write.await.map_err(|error| self.during("write", error))
    }

    /// Two that make the table at once: one of them fails, and finds it there.
    async fn make(&self) -> Result<()> {
        if !self.columns.borrow().is_empty() {
            return Ok(());
        }
        let made = self.client.batch(MAKE).await;
        let columns = columns(&self.client).await?;
        if columns.is_empty() {
            made?;
        }
        self.columns.replace(columns);
        Ok(())
    }

    pub async fn fetch(&self) -> Result<Vec<[Option<String>; 8]>> {
        let query = {
            let columns = self.columns.borrow();
            if columns.is_empty() {
                return Ok(Vec::new());
            }
            let read = READ.map(|meaning| {
                let column = columns.iter().find(|column| column.meaning == meaning);
                column.map_or_else(|| "NULL::text".to_owned(), Column::read)
            });
            format!("SELECT {} FROM {TABLE}", read.join(", "))
        };
        let rows = self.client.query(&query, &[]).await.map_err(|error| self.during("read", error))?;
        let texts = |row: &Row| std::array::from_fn(|number| row.try_get(number).ok().flatten());
        Ok(rows.iter().map(texts).collect())
    }

    pub async fn check(&self) -> Result<String> {
        let exists = !self.columns.borrow().is_empty();
        let statement = match exists {
            true => statement(&self.columns.borrow()),
            false => MAKE.to_owned(),
        };
        let tried = async {
            let mut transaction = self.client.begin(Durability::Crash).await?;
            match exists {
                true => transaction.execute(&statement, &[text(&"[]")]).await.map(drop)?,
                false => transaction.batch(&statement).await?,
            }
            transaction.roll_back().await
        };
        tried.await.map_err(|error| self.during("write", error))?;
        let found = if exists { "can be written" } else { "does not exist yet, and can be made" };
        Ok(format!("{TABLE} {found}"))
    }

    fn during(&self, verb: &str, error: Error) -> Error {
        error.context(format!("{verb} {TABLE} in {}", self.client.name()))
    }
}

async fn columns(client: &Client) -> Result<Vec<Column>> {
    let context = |error: Error| error.context(format!("read the columns of {TABLE} in {}", client.name()));
    let rows = client.query(COLUMNS, &[text(&TABLE)]).await.map_err(context)?;
    let mut columns = Vec::new();
    for row in &rows {
        let column = || Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        let (name, kind, is_required): (String, String, bool) =
            column().map_err(|error| context(Error::from_cause(Kind::Config, error)))?;
        columns.extend(Meaning::of(&name).map(|meaning| Column { name, meaning, kind, is_required }));
    }
    if !rows.is_empty() && !columns.iter().any(|column| column.meaning == Meaning::Name) {
        let message = format!("{TABLE} in {} has no column table_name", client.name());
        return Err(Error::new(Kind::Config, message).hint("correct state.uri, or rename that table"));
    }
    Ok(columns)
}
