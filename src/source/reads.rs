//! Which columns of which tables a pass reads, found out from the server, and the grants that this takes.
//!
//! `EXPLAIN QUERY TREE` resolves a query as the server's check of grants does, down to the columns that an optimization puts in their place
//! (`price.null` for `isNull(price)`), and needs no grant itself. So it is asked about the very queries of a pass.

use std::collections::{BTreeMap, BTreeSet};

use super::open::ExplainRow;
use super::reject::rejected;
use super::relation::{Counting, Origin};
use super::sql::{bounded, identifier, table as quoted_table};
use super::{Server, Source, predicates};
use crate::config::{Columns, Table};
use crate::cursor::{Cursor, CursorType};
use crate::error::Result;
use crate::partition::PartitionField;
use crate::plan::Window;

/// What every user may read.
const ALWAYS_READABLE: [&str; 4] = ["system.one", "system.tables", "system.columns", "system.settings"];

/// A window without rows: its bounds are literals of every cursor.
const NOWHERE: Window = Window { low: None, high: 0 };

/// What queries read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// Columns of each table, under its name as the server prints it.
    columns: BTreeMap<String, BTreeSet<String>>,
    /// Tables that are described.
    described: BTreeSet<String>,
    /// Dictionaries that are asked.
    dictionaries: BTreeSet<String>,
    /// Table functions that are called.
    functions: BTreeSet<String>,
}

/// A right that the user needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The right, as GRANT names it: `SELECT(a, b)`.
    pub right: String,
    /// What it is on, quoted.
    pub on: String,
}

impl Grant {
    /// The statement that gives it to a user.
    pub fn statement(&self, user: &str) -> String {
        format!("GRANT {} ON {} TO {}", self.right, self.on, identifier(user))
    }
}

impl Source<'_> {
    /// What a pass and an audit read of this source, whose target has these partition fields.
    pub async fn reads(&self, cursor: &Cursor, fields: &[PartitionField]) -> Result<Reads> {
        let mut reads = self.server.reads_of(&self.queries(cursor, fields)?, &self.relation.database).await?;
        if let Origin::Table(_) = self.relation.origin {
            reads.described.insert(format!("{}.{}", self.relation.database, self.relation.name));
        }
        Ok(reads)
    }

    /// Asks the server whether the user may run these queries. No row is read.
    pub async fn check_grants(&self, cursor: &Cursor, fields: &[PartitionField]) -> Result<()> {
        for query in self.queries(cursor, fields)? {
            self.server
                .fetch_json::<serde_json::Value>(&format!("DESCRIBE TABLE ({query})"), &self.what("grants"))
                .await?;
        }
        Ok(())
    }

    /// One query of each shape, over no rows.
    fn queries(&self, cursor: &Cursor, fields: &[PartitionField]) -> Result<Vec<String>> {
        let relation = &self.relation;
        let nulls = vec![None; fields.len()];
        let nulls = predicates(fields, &nulls)?;
        let mut queries = vec![
            relation.count(cursor, NOWHERE, fields, Counting::Distinct, 1),
            relation.histogram(cursor, NOWHERE, &nulls, 1),
            relation.leaving_histogram(cursor, NOWHERE, 1),
            relation.select_merged(&self.columns, cursor, NOWHERE, fields, "k2_partition"),
            relation.mutations(),
        ];
        match &relation.origin {
            Origin::Table(quoted) => {
                queries.push(relation.facts(cursor, self.is_nullable(cursor), None, self.ttl.as_deref()));
                queries.push(relation.select(&self.columns, cursor, NOWHERE, &nulls));
                let reject = relation.rules.reject.iter();
                queries.extend(reject.map(|reject| format!("SELECT 1 FROM {quoted} WHERE NOT {}", rejected(reject))));
            }
            Origin::Query(query) => {
                let names = ("k2_partition", "k2_count");
                queries.push(relation.select_whole(&self.columns, cursor, NOWHERE, fields, names));
                queries.push(format!("SELECT * FROM {}", bounded(query, cursor.kind, NOWHERE)));
                let input = relation.input.iter();
                queries.extend(
                    input.map(|input| format!("SELECT * FROM {}", bounded(&input.select, input.cursor.kind, NOWHERE))),
                );
            }
        }
        Ok(queries)
    }
}

impl Server {
    /// What can be told of a source that could not be opened, for want of grants: what its configuration names.
    pub async fn reads_unopened(&self, database: &str, table: &Table) -> Result<Reads> {
        let mutations =
            "SELECT countIf(is_done) FROM system.mutations WHERE database = '' AND table = '' AND mutation_id = ''";
        let kind = CursorType::DateTime64 { scale: 6 };
        let select = |query: &str| format!("SELECT * FROM {}", bounded(query, kind, NOWHERE));
        let Some(query) = &table.query else {
            let from = quoted_table(database, &table.source);
            let named = |names: &[String]| names.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(", ");
            let columns = match &table.columns {
                Columns::Only(names) => named(names),
                Columns::Except(names) if names.is_empty() => "*".to_owned(),
                Columns::Except(names) => format!("* EXCEPT ({})", named(names)),
            };
            let reject = table.reject_where.as_deref().map_or_else(|| "0".to_owned(), rejected);
            let query = format!("SELECT {columns} FROM {from} WHERE NOT {reject}");
            let mut reads = self.reads_of(&[query, mutations.to_owned()], database).await?;
            reads.described.insert(format!("{database}.{}", table.source));
            return Ok(reads);
        };
        let input = table.input.iter().map(|input| select(&input.select));
        let queries: Vec<String> = [select(query), mutations.to_owned()].into_iter().chain(input).collect();
        self.reads_of(&queries, database).await
    }

    /// What tells file sizes, and may be missing.
    pub async fn reads_of_sizes(&self) -> Result<Reads> {
        let query = "SELECT sum(data_compressed_bytes), sum(rows) FROM system.parts WHERE active AND database = '' AND table = ''";
        self.reads_of(&[query.to_owned()], "system").await
    }

    async fn reads_of(&self, queries: &[String], database: &str) -> Result<Reads> {
        let mut reads = Reads::default();
        for query in queries {
            reads.add(&self.explain(query).await?, database);
            // What a view reads, with the rights of the user. Only newer servers can say it.
            let inline = format!("SELECT * FROM ({query}) SETTINGS analyzer_inline_views = 1");
            reads.add(&self.explain(&inline).await.unwrap_or_default(), database);
        }
        Ok(reads)
    }

    async fn explain(&self, query: &str) -> Result<Vec<String>> {
        let rows: Vec<ExplainRow> = self.fetch_users(&format!("EXPLAIN QUERY TREE {query}"), "reads").await?;
        Ok(rows.into_iter().map(|row| row.explain).collect())
    }
}

impl Reads {
    /// What both read.
    pub fn merge(&mut self, other: Self) {
        for (table, columns) in other.columns {
            self.columns.entry(table).or_default().extend(columns);
        }
        self.described.extend(other.described);
        self.dictionaries.extend(other.dictionaries);
        self.functions.extend(other.functions);
    }

    /// The rights to do so, in their order. `database` is that of the sources: names are printed without quotes, and may hold dots.
    pub fn grants(&self, database: &str) -> Vec<Grant> {
        let described = self.described.iter().map(|table| ("SHOW COLUMNS".to_owned(), table));
        let selected = self.columns.iter().map(|(table, columns)| {
            let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
            (format!("SELECT({})", columns.join(", ")), table)
        });
        let asked = self.dictionaries.iter().map(|dictionary| ("dictGet".to_owned(), dictionary));
        let mut grants: Vec<Grant> = described
            .chain(selected)
            .chain(asked)
            .map(|(right, on)| Grant { right, on: quoted(on, database) })
            .collect();
        grants.sort_by(|a, b| (&a.on, &a.right).cmp(&(&b.on, &b.right)));
        grants
    }

    /// Table functions that are called: what grants those take depends on them.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.functions.iter().map(String::as_str)
    }

    /// Adds what a query tree names.
    fn add(&mut self, tree: &[String], database: &str) {
        let nodes: Vec<Node<'_>> = tree.iter().map(|line| Node::parse(line)).collect();
        let tables: BTreeMap<&str, &str> = nodes
            .iter()
            .filter(|node| node.kind == "TABLE")
            .filter_map(|node| Some((node.field("id: ")?, node.field("table_name: ")?)))
            .collect();
        // Below an ALIAS column stands what it is computed from: the right to read it is that of the column itself.
        let mut inside: Option<usize> = None;
        let mut dictionary = false;
        for node in &nodes {
            if inside.is_some_and(|depth| node.depth > depth) {
                continue;
            }
            inside = None;
            match node.kind {
                "COLUMN" => {
                    let table = node.field("source_id: ").and_then(|id| tables.get(id));
                    if let (Some(table), Some(column)) = (table, node.column()) {
                        inside = Some(node.depth);
                        if !ALWAYS_READABLE.contains(table) {
                            self.columns.entry((*table).to_owned()).or_default().insert(column.to_owned());
                        }
                    }
                }
                "TABLE_FUNCTION" => self.functions.extend(node.field("table_function_name: ").map(str::to_owned)),
                "FUNCTION" => dictionary = node.field("function_name: ").is_some_and(|name| name.starts_with("dict")),
                "CONSTANT" if dictionary => {
                    dictionary = false;
                    let name = node.field("constant_value: ").map(|name| name.trim_matches('\''));
                    let qualified =
                        |name: &str| if name.contains('.') { name.to_owned() } else { format!("{database}.{name}") };
                    self.dictionaries.extend(name.map(qualified));
                }
                _ => {}
            }
        }
    }
}

/// A line of a query tree: `COLUMN id: 2, column_name: price, result_type: Int64, source_id: 3`.
struct Node<'a> {
    depth: usize,
    kind: &'a str,
    rest: &'a str,
}

impl<'a> Node<'a> {
    fn parse(line: &'a str) -> Self {
        let text = line.trim_start();
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        Self { depth: line.len() - text.len(), kind, rest }
    }

    /// The value of a field that holds no comma.
    fn field(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.rest.split_once(name)?;
        value.split(", ").next()
    }

    /// A column's name, which may hold anything.
    fn column(&self) -> Option<&'a str> {
        let (_, name) = self.rest.split_once("column_name: ")?;
        name.rsplit_once(", source_id: ")?.0.split_once(", result_type: ").map(|(name, _)| name)
    }
}

/// A table's name, quoted.
fn quoted(name: &str, database: &str) -> String {
    let own = name.strip_prefix(database).and_then(|rest| rest.strip_prefix('.')).map(|table| (database, table));
    let (database, table) = own.or_else(|| name.split_once('.')).unwrap_or((database, name));
    quoted_table(database, table)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ClickHouse 26.7 prints them.
    fn reads(tree: &str) -> Reads {
        let mut reads = Reads::default();
        reads.add(&tree.lines().map(str::to_owned).collect::<Vec<_>>(), "d.b");
        reads
    }

    fn grants(tree: &str) -> Vec<String> {
        reads(tree).grants("d.b").into_iter().map(|Grant { right, on }| format!("{right} ON {on}")).collect()
    }

    #[test]
    fn columns_belong_to_the_table_that_they_come_from() {
        let tree = "QUERY id: 0
  PROJECTION
    LIST id: 1, nodes: 3
      COLUMN id: 2, column_name: a, b`, result_type: Tuple(x Int8, y Int8), source_id: 3
      COLUMN id: 5, column_name: c.null, result_type: UInt8, source_id: 3
      COLUMN id: 6, column_name: computed, result_type: UInt8, source_id: 9
        EXPRESSION
          COLUMN id: 7, column_name: id, result_type: Int64, source_id: 8
  JOIN TREE
    JOIN id: 10, strictness: ALL, kind: LEFT
      TABLE id: 3, alias: __table1, table_name: d.b.t.u, final: 1
      TABLE id: 8, alias: __table2, table_name: other.t
      TABLE id: 11, table_name: system.one
  WHERE
    COLUMN id: 12, column_name: dummy, result_type: UInt8, source_id: 11";
        assert_eq!(grants(tree), ["SELECT(`a, b\\``, `c.null`) ON `d.b`.`t.u`", "SELECT(`id`) ON `other`.`t`"]);
    }

    #[test]
    fn what_an_alias_is_computed_from_needs_no_grant() {
        let tree = "QUERY id: 0
  PROJECTION
    LIST id: 1, nodes: 1
      COLUMN id: 7, column_name: al, result_type: Int64, source_id: 3
        EXPRESSION
          COLUMN id: 10, column_name: a, result_type: Int64, source_id: 3
      COLUMN id: 11, column_name: z, result_type: Int64, source_id: 3
  JOIN TREE
    TABLE id: 3, alias: __table1, table_name: e.t";
        assert_eq!(grants(tree), ["SELECT(`al`, `z`) ON `e`.`t`"]);
    }

    #[test]
    fn dictionaries_and_table_functions_are_found() {
        let tree = "QUERY id: 0
  WHERE
    FUNCTION id: 19, function_name: dictGetOrDefault, function_type: ordinary, result_type: Int64
      ARGUMENTS
        LIST id: 20, nodes: 4
          CONSTANT id: 21, constant_value: 'names', constant_value_type: String
          CONSTANT id: 22, constant_value: 'v', constant_value_type: String
  JOIN TREE
    TABLE_FUNCTION id: 30, alias: __table1, table_function_name: numbers";
        assert_eq!(grants(tree), ["dictGet ON `d.b`.`names`"]);
        assert_eq!(reads(tree).functions().collect::<Vec<_>>(), ["numbers"]);
    }
}
