//! Opening a source: its columns, what its configuration asks for that cannot be, its UUID and TTL.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::Deserialize;
use uuid::Uuid;

use super::fingerprint::Input;
use super::reject;
use super::relation::{Origin, Relation, Rules};
use super::{Server, Source, no_column, sql, time_type, ttl};
use crate::config::{self, Columns, Table};
use crate::cursor::{Cursor, CursorType, Tick};
use crate::error::{Error, Kind, Result};
use crate::plan::Window;
use crate::schema::Column;

/// Read as JSON, because servers differ in the further columns of DESCRIBE.
#[derive(Clone, PartialEq, Deserialize)]
pub(super) struct DescribeRow {
    name: String,
    r#type: String,
    default_type: String,
    #[serde(default)]
    ttl_expression: String,
}

impl DescribeRow {
    pub fn is_of(&self, name: &str) -> bool {
        self.name == name
    }

    pub fn changes_by_itself(&self) -> bool {
        !self.ttl_expression.is_empty() || !self.default_type.is_empty()
    }
}

#[derive(Deserialize)]
pub(super) struct ExplainRow {
    pub explain: String,
}

#[derive(Row, Deserialize)]
struct DefinitionRow {
    uuid: String,
    engine_full: String,
    fixed_columns: Vec<String>,
}

/// What a table was made with; of a query, and where the server does not tell, nothing.
#[derive(Debug, Default)]
pub(super) struct Definition {
    pub uuid: Uuid,
    /// The engine with all its clauses.
    pub engine: String,
    /// The columns by which it is sorted or partitioned.
    pub fixed_columns: Vec<String>,
}

impl Server {
    /// Opens the source of `table` in `database`: its columns, mapped, its UUID and its TTL.
    pub async fn open(&self, database: &str, table: &Table) -> Result<Source<'_>> {
        let (origin, label) = match &table.query {
            Some(query) => (Origin::Query(query.clone()), format!("query {}", sql::identifier(&table.source))),
            None => {
                let quoted = sql::table(database, &table.source);
                (Origin::Table(quoted.clone()), quoted)
            }
        };
        let opened = self.open_origin(database, table, origin, &label).await;
        opened.map_err(|e| e.context(format!("open source {label}")))
    }

    async fn open_origin(&self, database: &str, table: &Table, origin: Origin, label: &str) -> Result<Source<'_>> {
        let described = self.describe(&origin).await?;
        let mut columns = columns_of(table, &described)?;
        for name in &table.key {
            find_mut(&mut columns, name, "key column", label)?.require()?;
        }
        for by in &table.sort_by {
            find_mut(&mut columns, &by.column, "sort_by column", label)?.check_sortable()?;
        }
        if let Some(version) = &table.version_column {
            find_mut(&mut columns, version, "version_column", label)?;
        }
        refuse_names_that_differ_by_case(&columns)?;
        refuse_own_names(&columns)?;
        check_bloom_filter(&table.bloom_filter, &columns)?;
        let rules = Rules {
            key: table.key.clone(),
            version: table.version_column.clone(),
            is_final: table.is_final,
            reject: table.reject_where.clone(),
            sort: table.sort_by.clone(),
        };
        let relation = Relation {
            database: database.to_owned(),
            name: table.source.clone(),
            origin,
            rules,
            input: self.input(table).await?,
            host: self.host.clone(),
        };
        let definition = match &table.query {
            Some(_) => Definition::default(),
            None => self.definition(database, &table.source).await?,
        };
        if let Some([filtered, tree]) = relation.try_reject() {
            self.check_reject(&filtered, &tree).await?;
        }
        Ok(Source {
            server: self,
            relation,
            name: table.source.clone(),
            label: label.to_owned(),
            columns,
            described,
            uuid: definition.uuid,
            ttl: ttl::expiry(&definition.engine),
            definition,
        })
    }

    /// What a query is computed from.
    async fn input(&self, table: &Table) -> Result<Option<Input>> {
        let Some(config::Input { select, cursor }) = &table.input else { return Ok(None) };
        let described = self.describe(&Origin::Query(select.clone())).await?;
        let column = described.iter().find(|row| row.name == *cursor);
        let column = column.ok_or_else(|| {
            Error::new(Kind::Config, format!("input_cursor `{cursor}` is no column of the input"))
                .hint("name the time column that the SELECT returns")
        })?;
        let kind = time_type(&column.r#type)?.ok_or_else(|| {
            Error::new(Kind::Config, format!("input_cursor `{cursor}` has type {}, which is not time", column.r#type))
                .hint("it must be Date, DateTime or DateTime64(0..6)")
        })?;
        Ok(Some(Input { select: select.clone(), cursor: Cursor { name: cursor.clone(), kind } }))
    }

    /// Refuses a `reject_where` that is no condition on a row.
    async fn check_reject(&self, filtered: &str, tree: &str) -> Result<()> {
        self.fetch_users::<DescribeRow>(filtered, "reject_where").await?;
        let tree: Vec<ExplainRow> = self.fetch_users(tree, "reject_where").await?;
        let lines: Vec<String> = tree.into_iter().map(|row| row.explain).collect();
        match reject::widens(&lines) {
            None => Ok(()),
            Some(what) => Err(Error::new(Kind::Config, format!("reject_where uses {what}"))
                .hint("it must be a condition on the columns of one row; has(array, value) looks into an array")),
        }
    }

    /// The columns of a source as the server describes them.
    pub(super) async fn describe(&self, origin: &Origin) -> Result<Vec<DescribeRow>> {
        match origin {
            Origin::Table(quoted) => self.fetch_json(&format!("DESCRIBE TABLE {quoted}"), "columns").await,
            Origin::Query(query) => {
                let bounds = Window { low: None, high: Tick::MAX };
                let query = sql::bounded(query, CursorType::DateTime64 { scale: 6 }, bounds);
                self.fetch_users(&format!("DESCRIBE TABLE {query}"), "columns").await
            }
        }
    }

    /// What a table was made with.
    async fn definition(&self, database: &str, table: &str) -> Result<Definition> {
        let rows: Vec<DefinitionRow> = self.fetch(&sql::definition(database, table), "definition").await?;
        let Some(DefinitionRow { uuid, engine_full, fixed_columns }) = rows.into_iter().next() else {
            return Ok(Definition::default());
        };
        Ok(Definition { uuid: Uuid::parse_str(&uuid).unwrap_or_default(), engine: engine_full, fixed_columns })
    }
}

/// The columns of a source that leave, mapped.
fn columns_of(table: &Table, rows: &[DescribeRow]) -> Result<Vec<Column>> {
    let Table { types, columns, .. } = table;
    let (Columns::Only(named) | Columns::Except(named)) = columns;
    let known = |name: &String| rows.iter().any(|row| row.name == *name);
    if let Some(unknown) = named.iter().find(|name| !known(name)) {
        let message = format!("columns or exclude: `{unknown}` is no column of the source");
        return Err(Error::new(Kind::Config, message).hint("correct the name; DESCRIBE TABLE lists the columns"));
    }
    let leaves = |row: &&DescribeRow| named.contains(&row.name) == matches!(columns, Columns::Only(_));
    // ALIAS and EPHEMERAL columns are not stored; MATERIALIZED ones are, and may hold what nothing else does.
    let is_stored = |row: &&DescribeRow| !matches!(row.default_type.as_str(), "ALIAS" | "EPHEMERAL");
    let map = |row: &DescribeRow| Column::map(&row.name, &row.r#type, types.get(&row.name).map(String::as_str));
    let columns: Vec<Column> =
        rows.iter().filter(|row| is_stored(row) && leaves(row)).map(map).collect::<Result<_>>()?;
    if let Some(unknown) = types.keys().find(|name| !columns.iter().any(|column| column.name == **name)) {
        let message = format!("types: `{unknown}` is no column of the source");
        return Err(Error::new(Kind::Config, message).hint("correct the name; DESCRIBE TABLE lists the columns"));
    }
    Ok(columns)
}

fn find_mut<'a>(columns: &'a mut [Column], name: &str, role: &str, label: &str) -> Result<&'a mut Column> {
    columns.iter_mut().find(|column| column.name == name).ok_or_else(|| no_column(name, role, label))
}

/// Bloom filters are of top-level columns that are flat.
fn check_bloom_filter(wanted: &[String], columns: &[Column]) -> Result<()> {
    for name in wanted {
        let reason = match columns.iter().find(|column| column.name == *name) {
            Some(column) if column.primitive().is_some() => continue,
            Some(column) => format!("has type {}, which is nested", column.source_type),
            None => "is no column of the source".to_owned(),
        };
        return Err(Error::new(Kind::Config, format!("bloom_filter: `{name}` {reason}"))
            .hint("name flat columns; DESCRIBE TABLE lists them"));
    }
    Ok(())
}

/// Spark, Hive and ClickHouse itself fold case: two such columns, or fields of a struct, would be one there.
fn refuse_names_that_differ_by_case(columns: &[Column]) -> Result<()> {
    for names in columns.iter().flat_map(|column| column.shape.field_names()).chain([names_of(columns)]) {
        let mut seen = BTreeMap::new();
        for name in names {
            if let Some(twin) = seen.insert(name.to_lowercase(), name) {
                let message = format!("columns `{twin}` and `{name}` differ by case only");
                return Err(Error::refused(message).hint("many readers of Iceberg fold case; rename one in a view"));
            }
        }
    }
    Ok(())
}

/// Names that our queries give to what they compute beside the columns.
fn refuse_own_names(columns: &[Column]) -> Result<()> {
    let is_own = |name: &str| {
        let Some(name) = name.strip_prefix("k2_") else { return false };
        let named = ["cursor", "rejected", "final", "count", "copies", "partition", "expires", "hash", "version"]
            .contains(&name);
        let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        named || ["key", "id", "element", "value"].iter().any(|kind| name.strip_prefix(kind).is_some_and(is_number))
    };
    match columns.iter().find(|column| is_own(&column.name)) {
        None => Ok(()),
        Some(column) => {
            Err(Error::new(Kind::Config, format!("column `{}` has a name that our queries use", column.name))
                .hint("rename it in a view or in the query"))
        }
    }
}

fn names_of(columns: &[Column]) -> Vec<&str> {
    columns.iter().map(|column| column.name.as_str()).collect()
}
