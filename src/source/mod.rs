//! The only user of ClickHouse: facts, counts and streams of a source table.
//!
//! It never sees Iceberg. Every query carries the settings of `settings` (protocol.md P3) and a readable `query_id`, and is cancelled by the
//! server when we drop its stream; every query over rows and mutations throws on another server than the pass began on (P4).

mod connection;
mod errors;
mod fingerprint;
mod open;
mod projection;
mod reads;
mod reject;
mod relation;
mod select;
mod server;
mod settings;
mod sql;
mod ttl;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use clickhouse::Row;
use clickhouse::query::BytesCursor;
use serde::Deserialize;
use tokio::time::timeout;
use uuid::Uuid;

pub use self::connection::{http_client, of_first_answer, wants_tls};
pub use self::errors::{classify, stalled};
use self::open::{Definition, DescribeRow};
pub use self::reads::{Grant, Reads};
pub use self::relation::Counting;
use self::relation::{Origin, Relation};
pub use self::server::{Server, new_run_id};
pub use self::settings::reserved_setting;
use crate::config::Table;
use crate::cursor::{Cursor, CursorType, Tick};
use crate::error::{Classify, Error, Kind, Result};
use crate::histogram::Bucket;
use crate::partition::{PartitionBy, PartitionField, Predicate, Value};
use crate::plan::{Partition, Window};
use crate::schema::Column;

/// Bytes in parts (LZ4) for each byte in Parquet (zstd): the rows of `scripts/bench` take 133 MiB there and 70 MiB here. Only the size of
/// first files depends on it.
const PARTS_PER_PARQUET: u64 = 2;

/// A table on a [`Server`].
pub struct Source<'a> {
    server: &'a Server,
    relation: Relation,
    name: String,
    /// Its columns and what they become.
    pub columns: Vec<Column>,
    /// All of them, as the server described them when it was opened.
    described: Vec<DescribeRow>,
    label: String,
    definition: Definition,
    /// Its UUID, nil where the engine has none.
    pub uuid: Uuid,
    /// When a row expires, as SQL over the raw columns: seconds since 1970, null where it never does; `None` for a table without TTL.
    pub ttl: Option<String>,
}

/// What a plan needs to know of a source. Ticks are the cursor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The source's clock, microseconds since 1970.
    pub clock_micros: i64,
    /// Largest cursor that is not in the future; of a query, which is asked for its newest row only when it is counted, [`Tick::MAX`].
    pub newest: Option<Tick>,
    /// Smallest cursor that is not in the future.
    pub oldest: Option<Tick>,
    /// Rows whose cursor is in the future; a query is not asked for them.
    pub future: Option<u64>,
    /// When the first of the rows expires, seconds since 1970; `None` without rows that do.
    pub expires_at_seconds: Option<i64>,
    /// How long, in seconds after its cursor, the TTL lets the oldest row live that expires.
    pub lifetime_seconds: Option<i64>,
}

/// The rows of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Those of each partition.
    pub partitions: Vec<Partition>,
    /// Largest tick, where a query was counted that returned any.
    pub newest: Option<Tick>,
}

/// A SELECT whose answer is a Parquet file.
pub struct ParquetStream {
    cursor: BytesCursor,
    idle_timeout: Duration,
    table: String,
    columns: Vec<Column>,
}

#[derive(Row, Deserialize)]
struct FactsRow {
    clock_micros: i64,
    newest: Option<i64>,
    oldest: Option<i64>,
    future: u64,
    nulls: u64,
    expires_at_seconds: Option<i64>,
    lifetime_seconds: Option<i64>,
}

/// The state of a table's mutations.
#[derive(Debug, Clone, PartialEq, Eq, Row, Deserialize)]
pub struct Mutations {
    /// Those that still change parts.
    pub unfinished: u64,
    /// Some of the tables that they change.
    pub tables: String,
    /// Changes with every new one.
    fingerprint: u64,
}

#[derive(Row, Deserialize)]
struct SizeRow {
    bytes: u64,
    rows: u64,
}

#[derive(Row, Deserialize)]
struct BucketRow {
    low: i64,
    rows: u64,
}

#[derive(Row, Deserialize)]
struct LeavingRow {
    low: i64,
    rows: u64,
    duplicates: u64,
}

#[derive(Row, Deserialize)]
struct ExpiredRow {
    expired: Vec<u8>,
}

#[derive(Row, Deserialize)]
struct LifetimeRow {
    seconds: Option<i64>,
}

#[derive(Row, Deserialize)]
struct PartitionRow {
    key: Vec<String>,
    rows: u64,
    kept: u64,
    rejected: u64,
    newest: Option<i64>,
    outside: u64,
}

impl Source<'_> {
    /// The cursor column of that name, checked to be time.
    pub fn cursor(&self, name: &str) -> Result<Cursor> {
        let (_, column) = self.column(name, "cursor")?;
        let kind = time_type(&column.source_type)?.ok_or_else(|| {
            Error::new(Kind::Config, format!("cursor `{name}` has type {}, which is not time", column.source_type))
                .hint("it must be Date, DateTime or DateTime64(0..6)")
        })?;
        Ok(Cursor { name: name.to_owned(), kind })
    }

    /// A field of the target's partitions over a column of this source.
    pub fn partition_field(&self, by: PartitionBy) -> Result<PartitionField> {
        let (number, column) = self.column(&by.column, "partition column")?;
        PartitionField::new(by, number, column, time_type(&column.source_type)?)
    }

    fn column(&self, name: &str, role: &str) -> Result<(usize, &Column)> {
        self.columns
            .iter()
            .enumerate()
            .find(|(_, column)| column.name == name)
            .ok_or_else(|| no_column(name, role, &self.label))
    }

    fn is_nullable(&self, cursor: &Cursor) -> bool {
        self.columns.iter().any(|column| column.name == cursor.name && column.nullable())
    }

    /// Whether duplicates are dropped.
    pub fn drops_duplicates(&self) -> bool {
        self.relation.rules.is_final || !self.relation.rules.key.is_empty()
    }

    /// Whether it is a query.
    pub fn is_query(&self) -> bool {
        matches!(self.relation.origin, Origin::Query(_))
    }

    /// Reads clock, bounds and expiry of the rows from `low` on, and refuses null cursors: they are in no window (protocol.md P5). A query is only
    /// asked for the clock, because it may take long to answer.
    pub async fn facts(&self, cursor: &Cursor, low: Option<Tick>) -> Result<Facts> {
        if self.is_query() {
            return Ok(Facts {
                clock_micros: self.server.clock_micros().await?,
                newest: Some(Tick::MAX),
                oldest: None,
                future: None,
                expires_at_seconds: None,
                lifetime_seconds: None,
            });
        }
        let row = match self.ask_facts(cursor, low, self.ttl.as_deref()).await {
            // It only feeds warnings, so it must not hold the rows back.
            Err(error) if self.ttl.is_some() && !error.kind().policy().retry => {
                let row = self.ask_facts(cursor, low, None).await?;
                self.warn_of_ttl(&error);
                row
            }
            row => row?,
        };
        if row.nulls > 0 {
            return Err(Error::refused(format!("cursor `{}` is null in {} rows", cursor.name, row.nulls))
                .hint("no window ever holds them; choose a cursor without nulls, or delete or fill these rows"));
        }
        Ok(Facts {
            clock_micros: row.clock_micros,
            newest: row.newest,
            oldest: row.oldest,
            future: Some(row.future),
            expires_at_seconds: row.expires_at_seconds,
            lifetime_seconds: row.lifetime_seconds,
        })
    }

    async fn ask_facts(&self, cursor: &Cursor, low: Option<Tick>, ttl: Option<&str>) -> Result<FactsRow> {
        let query = self.relation.facts(cursor, self.is_nullable(cursor), low, ttl);
        self.server.fetch_one(&query, &self.what("facts")).await
    }

    /// The mutations of the table: an ALTER that moves a row between two SELECTs would lose or double it (P8).
    pub async fn mutations(&self) -> Result<Mutations> {
        self.server.fetch_one(&self.relation.mutations(), &self.what("mutations")).await
    }

    /// Whether the columns are others than when the source was opened: what a new one holds would be lost unseen.
    pub async fn has_other_columns(&self) -> Result<bool> {
        Ok(self.server.describe(&self.relation.origin).await? != self.described)
    }

    /// Counts the rows of a window, or of one partition of it, in buckets of `width` ticks.
    pub async fn histogram(
        &self,
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        values: &[Option<Value>],
        width: Tick,
    ) -> Result<Vec<Bucket>> {
        let query = self.relation.histogram(cursor, window, &predicates(fields, values)?, width);
        let rows: Vec<BucketRow> = self.server.fetch(&query, &self.what("histogram")).await?;
        Ok(rows.into_iter().map(|row| Bucket { low: row.low, width, rows: row.rows }).collect())
    }

    /// Counts the rows of a window that leave, in buckets of `width` ticks; beside each bucket the duplicates of its rows.
    pub async fn leaving_histogram(&self, cursor: &Cursor, window: Window, width: Tick) -> Result<Vec<(Bucket, u64)>> {
        let query = self.relation.leaving_histogram(cursor, window, width);
        let rows: Vec<LeavingRow> = self.server.fetch(&query, &self.what("histogram")).await?;
        let bucket = |row: LeavingRow| (Bucket { low: row.low, width, rows: row.rows }, row.duplicates);
        Ok(rows.into_iter().map(bucket).collect())
    }

    /// The shortest time in seconds that the TTL lets a row of the window live, from its cursor on; `None` where none of them expires, and
    /// where the TTL cannot be evaluated.
    pub async fn shortest_lifetime(&self, cursor: &Cursor, window: Window) -> Result<Option<i64>> {
        let Some(ttl) = &self.ttl else { return Ok(None) };
        let query = self.relation.shortest_lifetime(cursor, window, ttl);
        match self.server.fetch_one::<LifetimeRow>(&query, &self.what("lifetime")).await {
            Err(error) if !error.kind().policy().retry => {
                self.warn_of_ttl(&error);
                Ok(None)
            }
            row => Ok(row?.seconds),
        }
    }

    /// Whether rows of these ticks have expired by now; `None` without a TTL, and where it depends on more than the cursor.
    pub async fn have_expired(&self, cursor: &Cursor, ticks: &[Tick]) -> Result<Option<Vec<bool>>> {
        let Some(ttl) = self.ttl.as_ref().filter(|_| !ticks.is_empty()) else { return Ok(None) };
        let (_, column) = self.column(&cursor.name, "cursor")?;
        let query = self.relation.have_expired(cursor, &column.source_type, ticks, ttl);
        match self.server.fetch_one::<ExpiredRow>(&query, &self.what("expired")).await {
            Err(error) if !error.kind().policy().retry => Ok(None),
            row => Ok(Some(row?.expired.into_iter().map(|expired| expired > 0).collect())),
        }
    }

    /// The TTL may name what is gone, or what we may not read.
    fn warn_of_ttl(&self, error: &Error) {
        tracing::warn!(table = self.label, %error, "cannot evaluate the source's TTL, going on without it");
    }

    /// About how many bytes of Parquet, and rows, the table's parts are; none for views, tables without parts, and users who may not see them.
    pub async fn size(&self) -> Result<(u64, u64)> {
        match self.server.fetch_one::<SizeRow>(&self.relation.size(), &self.what("size")).await {
            Ok(size) => Ok((size.bytes / PARTS_PER_PARQUET, size.rows)),
            Err(error) if error.kind() == Kind::Config => Ok((0, 0)),
            Err(error) => Err(error),
        }
    }

    /// Counts the rows of a window before any is read (P7), for each partition; at most `limit` partitions. A query that returns rows outside the
    /// window is refused (P11).
    pub async fn count(
        &self,
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        counting: Counting,
        limit: usize,
    ) -> Result<Counted> {
        let query = self.relation.count(cursor, window, fields, counting, limit);
        let rows: Vec<PartitionRow> = self.server.fetch_of(&self.columns, &query, &self.what("count")).await?;
        if rows.iter().any(|row| row.outside > 0) {
            return Err(errors::outside());
        }
        let newest = rows.iter().filter_map(|row| row.newest).max();
        let partitions = rows.into_iter().filter(|row| row.rows > 0);
        let partitions =
            partitions.map(|row| Partition { key: row.key, rows: row.rows, kept: row.kept, rejected: row.rejected });
        Ok(Counted { partitions: partitions.collect(), newest })
    }

    /// Raw rows of a window.
    pub async fn rows(&self, cursor: &Cursor, window: Window) -> Result<u64> {
        let counted = self.count(cursor, window, &[], Counting::Raw, 1).await?;
        Ok(counted.partitions.iter().map(|partition| partition.rows).sum())
    }

    /// Starts the SELECT of a window of a table, or of the rows of it with these partition values.
    pub fn parquet(
        &self,
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        values: &[Option<Value>],
        table: &Table,
    ) -> Result<ParquetStream> {
        let query = self.relation.select(&self.columns, cursor, window, &predicates(fields, values)?);
        let (compression, has_filter) = (&table.compression, !table.bloom_filter.is_empty());
        self.stream(&query, settings::parquet(&self.server.settings, compression, table.row_group_size, has_filter)?)
    }

    /// Starts the SELECT of a window of a query: the rows of all partitions, one after the other, each with its partition values and the number of
    /// rows for which it stands, in columns of these names.
    pub fn whole(
        &self,
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        names: (&str, &str),
    ) -> Result<ParquetStream> {
        let query = self.relation.select_whole(&self.columns, cursor, window, fields, names);
        self.stream(&query, settings::spooled(&self.server.settings))
    }

    /// Starts the SELECT of the rows of a window that leave, to compare them: in any order. With `duplicates`, all rows of a key.
    pub fn compared(&self, cursor: &Cursor, window: Window, duplicates: bool) -> Result<ParquetStream> {
        let mut relation = self.relation.clone();
        relation.rules.sort = Vec::new();
        if duplicates {
            relation.rules.key = Vec::new();
            relation.rules.version = None;
        }
        let query = relation.select(&self.columns, cursor, window, &[]);
        self.stream(&query, settings::compared(&self.server.settings))
    }

    /// Starts the SELECT of the rows of a window to merge: also all rows of a key, partition by partition, with their partition values in a column of
    /// that name; of a key the newest version first.
    pub fn merged(
        &self,
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        partition: &str,
    ) -> Result<ParquetStream> {
        let query = self.relation.select_merged(&self.columns, cursor, window, fields, partition);
        self.stream(&query, settings::compared(&self.server.settings))
    }

    /// Whether a column may have another value at the next reading, although nobody changed it: by a TTL of its own, or by a DEFAULT that parts without it
    /// take anew.
    pub fn changes_by_itself(&self, name: &str) -> bool {
        self.described.iter().any(|row| row.is_of(name) && row.changes_by_itself())
    }

    /// The columns that no UPDATE changes, because the table is sorted or partitioned by them.
    pub fn fixed_columns(&self) -> &[String] {
        &self.definition.fixed_columns
    }

    /// The engine of a table, with its clauses; empty for queries, and where the server does not tell.
    pub fn engine(&self) -> &str {
        &self.definition.engine
    }

    fn stream(&self, query: &str, compression: BTreeMap<String, String>) -> Result<ParquetStream> {
        let id = self.server.query_id(&self.what("select"));
        tracing::debug!(query_id = id, query, "query");
        let mut request = self.server.client.query_raw(query).with_setting("query_id", id);
        for (name, value) in compression {
            request = request.with_setting(name, value);
        }
        Ok(ParquetStream {
            cursor: request.fetch_bytes("Parquet").map_err(|e| classify(e, &[]))?,
            idle_timeout: self.server.idle_timeout,
            table: self.label.clone(),
            columns: self.columns.clone(),
        })
    }

    fn what(&self, step: &str) -> String {
        format!("{}/{step}", self.name)
    }
}

/// How the rows with these partition values are looked for.
fn predicates<'a>(fields: &'a [PartitionField], values: &'a [Option<Value>]) -> Result<Vec<(&'a str, Predicate<'a>)>> {
    let predicates = fields.iter().zip(values);
    predicates.map(|(field, value)| Ok((field.by.column.as_str(), field.predicate(value.as_ref())?))).collect()
}

/// The partition values that [`Source::count`] listed.
pub fn partition_values(fields: &[PartitionField], key: &[String]) -> Result<Vec<Option<Value>>> {
    let values = fields.iter().zip(key).map(|(field, text)| match text.strip_prefix(sql::VALUE_KEY) {
        Some(value) => field.value(value).map(Some),
        None => Ok(None),
    });
    values.collect()
}

/// The cursor type of a column of a type, `None` where it is not time.
fn time_type(source_type: &str) -> Result<Option<CursorType>> {
    let node = clickhouse_types::DataTypeNode::new(source_type)
        .or_error(Kind::Internal, format!("parse type {source_type}"))?;
    Ok(CursorType::of(&node))
}

impl ParquetStream {
    /// The next bytes, `None` at the end of a complete answer.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match timeout(self.idle_timeout, self.cursor.next()).await {
            Ok(bytes) => bytes.map_err(|e| classify(e, &self.columns).context(format!("read {}", self.table))),
            Err(_) => Err(stalled(self.idle_timeout).context(format!("read {}", self.table))),
        }
    }
}

fn no_column(name: &str, role: &str, label: &str) -> Error {
    Error::new(Kind::Config, format!("{role} `{name}` is no column of source {label}, or is left out of it"))
        .hint(format!("correct the {role} in the configuration; DESCRIBE TABLE lists the columns"))
}
