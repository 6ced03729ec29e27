//! The store in ClickHouse: rows are never changed, a newer one replaces them. So one that is told carries on what is not told of it.

use std::cell::RefCell;
use std::time::Duration;

use clickhouse::Client;
use clickhouse::error::Error as ClientError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::{Meaning, READ, RUNNING, Record, TABLE};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::source::{classify, http_client, of_first_answer, stalled, wants_tls};

/// Where its keys are, for hints.
const SECTION: &str = "state";

const MAKE: &str = "CREATE TABLE IF NOT EXISTS offload_watermarks (
    table_name String,
    last_offload_timestamp Nullable(DateTime64(6, 'UTC')),
    last_offload_max_sequence Nullable(Int64),
    last_successful_run Nullable(DateTime64(3, 'UTC')),
    last_run_duration_seconds Nullable(Float64),
    status String,
    failure_count Int64,
    last_error_message Nullable(String),
    checked_to Nullable(Int64),
    updated_at DateTime64(3, 'UTC'))
    ENGINE = ReplacingMergeTree(updated_at) ORDER BY table_name";

/// A column that an insert may name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    default_expression: String,
    engine: String,
}

impl Column {
    fn meaning(&self) -> Option<Meaning> {
        Meaning::of(&self.name)
    }

    fn is_time(&self) -> bool {
        self.kind.contains("Date")
    }

    /// SQL of a field of the record `r`, which is text, as a value of the column.
    fn typed(&self, field: &str) -> String {
        let text = format!("assumeNotNull(r.{field})");
        let value = match self.meaning() {
            Some(Meaning::Watermark | Meaning::Success) if self.is_time() => {
                format!("parseDateTime64BestEffort({text}, 6, 'UTC')")
            }
            Some(Meaning::Seconds) if self.kind.contains("Int") => format!("round(toFloat64({text}))"),
            _ => text,
        };
        format!("CAST({value}, '{}')", escaped(&self.kind))
    }

    /// What it is in the row that replaces `t`, which has defaults of types where there was none.
    fn value(&self) -> String {
        let name = &self.name;
        let is_new = "t.table_name = ''";
        let before = match (self.default_expression.as_str(), self.meaning()) {
            (_, Some(Meaning::Status)) => {
                format!("if({is_new}, CAST('initialized', '{}'), t.{name})", escaped(&self.kind))
            }
            ("", _) => format!("t.`{name}`"),
            (default, _) => format!("if({is_new}, CAST({default}, '{}'), t.`{name}`)", escaped(&self.kind)),
        };
        let Some(meaning) = self.meaning() else { return before };
        let Some(field) = meaning.field() else {
            let now = || format!("CAST(now64(6, 'UTC'), '{}')", escaped(&self.kind));
            return if meaning == Meaning::Updated { now() } else { before };
        };
        let told = self.typed(field);
        match meaning {
            Meaning::Name => told,
            Meaning::Success => format!("if(isNull(r.{field}) OR {told} < t.{name}, {before}, {told})"),
            Meaning::Error => {
                let none = if self.kind.starts_with("Nullable") { "NULL" } else { "''" };
                format!(
                    "multiIf(ifNull(r.status, '{RUNNING}') = '{RUNNING}', {before}, isNull(r.{field}), {none}, {told})"
                )
            }
            _ => format!("if(isNull(r.{field}), {before}, {told})"),
        }
    }

    /// As text.
    fn read(&self) -> String {
        let name = &self.name;
        if self.is_time() { format!("toString(toDateTime64({name}, 6, 'UTC'))") } else { format!("toString({name})") }
    }
}

/// Sorts an error; hints for the source's server would lead astray.
fn sort(error: ClientError) -> Error {
    if !matches!(error, ClientError::BadResponse(_)) {
        return of_first_answer(error, SECTION);
    }
    let error = classify(error, &[]);
    match error.kind() {
        Kind::Config => error.hint("see user, password and database of state.uri, and what the user may do there"),
        _ => error,
    }
}

/// In a literal.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

/// The newest row of each table.
fn newest(columns: &[Column]) -> String {
    let replaces = columns.iter().any(|column| column.engine.contains("Replacing"));
    let has = |name: &str| columns.iter().any(|column| column.name == name);
    match (replaces, has("updated_at")) {
        (true, _) => format!("(SELECT * FROM {TABLE} FINAL)"),
        (false, true) => format!("(SELECT * FROM {TABLE} ORDER BY updated_at DESC LIMIT 1 BY table_name)"),
        (false, false) => format!("(SELECT * FROM {TABLE} LIMIT 1 BY table_name)"),
    }
}

/// One statement for all tables of which `filter` holds.
fn statement(columns: &[Column], rows: &[Value], filter: &str) -> String {
    let fields = [
        "watermark Nullable(String)",
        "checked_to Nullable(String)",
        "succeeded_at Nullable(String)",
        "seconds Nullable(String)",
        "status Nullable(String)",
        "failures Nullable(String)",
        "error Nullable(String)",
    ];
    let names: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name)).collect();
    let values: Vec<String> = columns.iter().map(Column::value).collect();
    let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    format!(
        "INSERT INTO {TABLE} ({}) SELECT {} FROM (SELECT * FROM format(JSONEachRow, 'table_name String, {}', '{}')) AS r \
         LEFT JOIN {} AS t ON t.table_name = r.table_name WHERE {filter} SETTINGS join_use_nulls = 0",
        names.join(", "),
        values.join(", "),
        fields.join(", "),
        escaped(&rows.join("\n")),
        newest(columns),
    )
}

/// The database.
#[derive(Debug)]
pub struct ClickHouse {
    client: Clients,
    name: String,
    limit: Duration,
    /// None as long as there is no table.
    columns: RefCell<Vec<Column>>,
}

/// Its client shows passwords.
struct Clients(Client);

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClickHouse")
    }
}

impl ClickHouse {
    pub async fn connect(config: &config::ClickHouse) -> Result<Self> {
        let client = http_client(config, SECTION).map_err(|error| error.context("open the records"))?;
        let name = format!("{}/{}", config.url, config.database);
        let store = Self { client: Clients(client), name, limit: config.idle_timeout, columns: RefCell::default() };
        let columns = match store.columns().await {
            Err(error) if error.kind() == Kind::Unavailable => {
                return Err(wants_tls(config, SECTION).await.unwrap_or(error));
            }
            columns => columns?,
        };
        store.columns.replace(columns);
        Ok(store)
    }

    async fn columns(&self) -> Result<Vec<Column>> {
        let query = format!(
            "SELECT c.name AS name, c.type AS type, c.default_expression AS default_expression, t.engine AS engine \
             FROM system.columns AS c INNER JOIN system.tables AS t ON t.database = c.database AND t.name = c.table \
             WHERE c.database = currentDatabase() AND c.table = '{TABLE}' \
             AND c.default_kind NOT IN ('MATERIALIZED', 'ALIAS', 'EPHEMERAL') ORDER BY c.position"
        );
        let columns: Vec<Column> =
            self.rows(&query).await.map_err(|error| self.during("read the columns of", error))?;
        if !columns.is_empty() && !columns.iter().any(|column| column.name == "table_name") {
            let message = format!("{TABLE} in {} has no column table_name", self.name);
            return Err(Error::new(Kind::Config, message).hint("correct state.uri, or rename that table"));
        }
        Ok(columns)
    }

    pub async fn publish(&self, rows: &[Value]) -> Result<()> {
        if self.columns.borrow().is_empty() {
            self.execute(MAKE).await.map_err(|error| self.during("make", error))?;
            self.columns.replace(self.columns().await?);
        }
        let statement = statement(&self.columns.borrow(), rows, "true");
        self.execute(&statement).await.map_err(|error| self.during("write", error))
    }

    pub async fn fetch(&self) -> Result<Vec<[Option<String>; 8]>> {
        let query = {
            let columns = self.columns.borrow();
            if columns.is_empty() {
                return Ok(Vec::new());
            }
            let read = READ.map(|meaning| {
                let column = columns.iter().find(|column| column.meaning() == Some(meaning));
                column.map_or_else(|| "CAST(NULL, 'Nullable(String)')".to_owned(), Column::read)
            });
            format!("SELECT [{}] AS texts FROM {}", read.join(", "), newest(&columns))
        };
        let rows: Vec<Texts> = self.rows(&query).await.map_err(|error| self.during("read", error))?;
        Ok(rows.into_iter().map(|row| row.texts).collect())
    }

    pub async fn check(&self) -> Result<String> {
        let query = {
            let columns = self.columns.borrow();
            match columns.is_empty() {
                true => return Ok(format!("answers; {TABLE} does not exist yet, the first pass makes it")),
                // Whether the user may insert shows without a row.
                false => statement(&columns, &[Record::default().json()], "false"),
            }
        };
        self.execute(&query).await.map_err(|error| self.during("write", error))?;
        Ok(format!("{TABLE} can be written"))
    }

    async fn execute(&self, statement: &str) -> Result<()> {
        match timeout(self.limit, self.client.0.query_raw(statement).execute()).await {
            Ok(done) => done.map_err(sort),
            Err(_) => Err(stalled(self.limit)),
        }
    }

    async fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>> {
        let mut cursor = self.client.0.query_raw(query).fetch_bytes("JSONEachRow").map_err(sort)?;
        let bytes = match timeout(self.limit, cursor.collect()).await {
            Ok(bytes) => bytes.map_err(sort)?,
            Err(_) => return Err(stalled(self.limit)),
        };
        let rows = serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<_, _>>();
        rows.map_err(|error| Error::from_cause(Kind::Config, error))
    }

    fn during(&self, verb: &str, error: Error) -> Error {
        error.context(format!("{verb} {TABLE} in {}", self.name))
    }
}

#[derive(Deserialize)]
struct Texts {
    texts: [Option<String>; 8],
}
