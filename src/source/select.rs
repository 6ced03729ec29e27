//! The SELECTs of a source whose answers are rows: pure. Each becomes a data file, is encoded here by partition, or is merged.
//!
//! Rules that stand here: window, key and sort stand in an inner query on raw columns, casts outside, because ClickHouse resolves a name in
//! WHERE to an alias of the SELECT (protocol.md P2); each cast refers to its own column only, for the same reason.

use iceberg::spec::PrimitiveType;

use super::projection::project;
use super::reject::rejected;
use super::relation::{OUTSIDE, Origin, Relation, Rules, outside};
use super::sql::{identifier, keys, matches, within};
use crate::config::SortBy;
use crate::cursor::Cursor;
use crate::partition::{PartitionField, Predicate};
use crate::plan::Window;
use crate::schema::{Column, Shape};

impl Relation {
    /// The SELECT of a table whose Parquet becomes a data file: one window, or one partition of it.
    pub fn select(
        &self,
        columns: &[Column],
        cursor: &Cursor,
        window: Window,
        partition: &[(&str, Predicate<'_>)],
    ) -> String {
        let names: Vec<String> = columns.iter().map(|column| identifier(&column.name)).collect();
        let casts: Vec<String> = columns.iter().enumerate().map(|(number, column)| project(column, number)).collect();
        format!(
            "SELECT {} FROM ({})",
            casts.join(", "),
            self.leaving_rows(columns, &names.join(", "), cursor, window, partition)
        )
    }

    /// The SELECT of a query over a whole window, which throws where a row lies outside it: its columns, the partition values of each row
    /// (as `partition`) and how many rows of its key there are (as `copies`); ordered by partition, and within as rows are sorted.
    pub fn select_whole(
        &self,
        columns: &[Column],
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        (partition, copies): (&str, &str),
    ) -> String {
        let Rules { key, version, sort, .. } = &self.rules;
        let key: Vec<String> = key.iter().map(|name| identifier(name)).collect();
        let key = key.join(", ");
        // Here, because of rows with one key not all go on.
        let mut raw: Vec<String> = columns.iter().map(|column| checked(column, cursor, window, true)).collect();
        let values = fields.iter().enumerate();
        raw.extend(values.map(|(number, field)| format!("{} AS k2_key{number}", identifier(&field.by.column))));
        let count =
            if key.is_empty() { "toUInt64(1)".to_owned() } else { format!("count() OVER (PARTITION BY {key})") };
        raw.push(format!("{count} AS k2_count"));
        let mut rows = self.rows(&raw.join(", "), &self.from(cursor, window), "1");
        if let Some(version) = version {
            rows = format!("{rows} ORDER BY {} DESC", identifier(version));
        }
        if !key.is_empty() {
            rows = format!("{rows} LIMIT 1 BY {key}");
        }
        let selected = columns.iter().enumerate().map(|(number, column)| project(column, number));
        let ours = [format!("toJSONString({}) AS {partition}", keys(fields)), format!("k2_count AS {copies}")];
        let selected: Vec<String> = selected.chain(ours).collect();
        let sort = sort.iter().filter(|by| columns.iter().any(|column| column.name == by.column));
        let order: Vec<String> = [partition.to_owned()].into_iter().chain(sort.map(|by| term(by, None))).collect();
        format!("SELECT * FROM (SELECT {} FROM ({rows})) ORDER BY {}", selected.join(", "), order.join(", "))
    }

    /// The SELECT of rows to merge; see [`merged`](super::Source::merged).
    pub fn select_merged(
        &self,
        columns: &[Column],
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        partition: &str,
    ) -> String {
        let Rules { version, is_final, reject, .. } = &self.rules;
        let is_query = matches!(self.origin, Origin::Query(_));
        let mut raw: Vec<String> = columns.iter().map(|column| checked(column, cursor, window, is_query)).collect();
        let values = fields.iter().enumerate();
        raw.extend(values.map(|(number, field)| format!("{} AS k2_key{number}", identifier(&field.by.column))));
        raw.extend(version.iter().map(|version| format!("{} AS k2_version", identifier(version))));
        let rejects = reject.iter().map(|reject| format!("NOT {}", rejected(reject)));
        let within = if is_query { "1".to_owned() } else { within(cursor, window) };
        let filter: Vec<String> = [within].into_iter().chain(rejects).collect();
        let from = format!("{}{}", self.from(cursor, window), if *is_final { " FINAL" } else { "" });
        let rows = self.rows(&raw.join(", "), &from, &filter.join(" AND "));
        let selected = columns.iter().enumerate().map(|(number, column)| project(column, number));
        let partitions = [format!("toJSONString({}) AS {partition}", keys(fields))];
        let versions = version.iter().map(|_| "k2_version".to_owned());
        let selected: Vec<String> = selected.chain(partitions).chain(versions).collect();
        let but = if version.is_some() { " EXCEPT (k2_version)" } else { "" };
        let order: Vec<&str> = [(!fields.is_empty()).then_some(partition), version.as_ref().map(|_| "k2_version DESC")]
            .into_iter()
            .flatten()
            .collect();
        let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
        format!("SELECT *{but} FROM (SELECT {} FROM ({rows})){order}", selected.join(", "))
    }

    /// Raw columns of the rows that leave: without rejected ones, one of each key, sorted.
    fn leaving_rows(
        &self,
        columns: &[Column],
        names: &str,
        cursor: &Cursor,
        window: Window,
        partition: &[(&str, Predicate<'_>)],
    ) -> String {
        let Rules { key, version, is_final, reject, sort } = &self.rules;
        let values = partition.iter().map(|(column, predicate)| matches(column, predicate));
        let rejects = reject.iter().map(|reject| format!("NOT {}", rejected(reject)));
        let filter: Vec<String> = [within(cursor, window)].into_iter().chain(values).chain(rejects).collect();
        let from = format!("{}{}", self.from(cursor, window), if *is_final { " FINAL" } else { "" });
        let rows = self.rows(names, &from, &filter.join(" AND "));
        let one_of_a_key = (!key.is_empty() && !is_final).then(|| {
            let key: Vec<String> = key.iter().map(|name| identifier(name)).collect();
            format!(" LIMIT 1 BY {}", key.join(", "))
        });
        let sort = order_by(columns, sort);
        match (one_of_a_key, version) {
            (Some(one_of_a_key), Some(version)) => {
                // LIMIT BY takes what ORDER BY puts first.
                let newest = format!("{rows} ORDER BY {} DESC{one_of_a_key}", identifier(version));
                if sort.is_empty() { newest } else { format!("SELECT * FROM ({newest}){sort}") }
            }
            (one_of_a_key, _) => format!("{rows}{sort}{}", one_of_a_key.unwrap_or_default()),
        }
    }
}

/// A raw column; the cursor of a query throws where it lies outside the window.
fn checked(column: &Column, cursor: &Cursor, window: Window, is_query: bool) -> String {
    let name = identifier(&column.name);
    match is_query && column.name == cursor.name {
        true => format!("if(throwIf({}, '{OUTSIDE}'), {name}, {name}) AS {name}", outside(cursor, window)),
        false => name,
    }
}

/// ORDER BY over raw columns that makes rows follow each other as Iceberg orders their values.
fn order_by(columns: &[Column], sort: &[SortBy]) -> String {
    let column = |by: &SortBy| columns.iter().find(|column| column.name == by.column);
    let terms: Vec<String> = sort.iter().map(|by| term(by, column(by))).collect();
    if terms.is_empty() { String::new() } else { format!(" ORDER BY {}", terms.join(", ")) }
}

/// A term of ORDER BY with nulls where Iceberg has them by default; `raw` is the column where it is not cast yet: what becomes text (labels,
/// addresses) is ordered as text.
fn term(by: &SortBy, raw: Option<&Column>) -> String {
    let name = identifier(&by.column);
    let value = match raw.map(|column| &column.shape) {
        Some(Shape::Leaf(leaf)) if leaf.iceberg == PrimitiveType::String && leaf.source != "String" => {
            format!("CAST({name}, 'Nullable(String)')")
        }
        _ => name,
    };
    format!("{value} {}", if by.descending { "DESC NULLS LAST" } else { "ASC NULLS FIRST" })
}
