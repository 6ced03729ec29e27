//! What names a row where its content may have changed: its key, or what an UPDATE cannot change (protocol.md P21).

use std::collections::BTreeSet;

use arrow_array::ArrayRef;
use arrow_array::cast::AsArray;
use clickhouse_types::DataTypeNode;
use iceberg::spec::SchemaRef;

use super::Route;
use crate::error::{Error, Kind, Result};
use crate::rows::{Image, Imager};
use crate::schema::pruned;
use crate::target::no_key_column;
use crate::watermark::Mode;

/// What makes the identity of a row.
pub(super) struct Identity {
    /// The columns, and the cursor.
    pub schema: SchemaRef,
    /// Which of them count.
    columns: Vec<usize>,
    /// Of them those whose labels may have been renamed, with all that there are now.
    labels: Vec<(usize, BTreeSet<String>)>,
}

impl Route<'_> {
    /// What makes the identity of a row, where all files have these fields: its key. Without a key it is all that does not change by itself, as labels
    /// do, and columns with a TTL or a DEFAULT. Among rows that nobody asked for, of a source that is sorted by more than its cursor, it is
    /// less: what no UPDATE can change, because it must never double a row that was updated.
    pub(super) fn identity(&self, common: &BTreeSet<i32>, mode: Mode) -> Result<Identity> {
        let field = |name: &String| {
            let field = self.schema().field_by_name(name)?;
            (field.field_type.is_primitive() && common.contains(&field.id)).then_some(field.id)
        };
        let labels = |name: &String| {
            let column = self.source.columns.iter().find(|column| column.name == *name);
            column.and_then(|column| labels(&column.source_type))
        };
        let key = &self.table.key;
        let mut ids = BTreeSet::new();
        for name in key {
            ids.insert(field(name).ok_or_else(|| no_key_column(name))?);
        }
        let cursor = field(&self.cursor().name);
        if key.is_empty() {
            let names = self.source.columns.iter().map(|column| &column.name);
            let stable = names.filter(|name| labels(name).is_none() && !self.source.changes_by_itself(name));
            let stable: BTreeSet<i32> = stable.filter_map(field).chain(cursor).collect();
            let fixed = self.source.fixed_columns().iter().filter_map(field).chain(cursor);
            let fixed: BTreeSet<i32> = fixed.filter(|id| stable.contains(id)).collect();
            ids = if mode == Mode::Late && fixed.len() > 1 { fixed } else { stable };
        }
        // Rows are read with their cursor in any case.
        let schema = pruned(self.schema(), &ids.iter().copied().chain(cursor).collect())?;
        let fields = || schema.as_struct().fields().iter().enumerate().filter(|(_, field)| ids.contains(&field.id));
        let columns = fields().map(|(position, _)| position).collect();
        let labels = match key.is_empty() {
            true => Vec::new(),
            false => fields().filter_map(|(position, field)| Some((position, labels(&field.name)?))).collect(),
        };
        Ok(Identity { columns, labels, schema })
    }
}

impl Identity {
    pub fn images(&self, imager: Imager, columns: &[ArrayRef], rows: usize) -> Result<Vec<Image>> {
        let counted: Option<Vec<ArrayRef>> = self.columns.iter().map(|column| columns.get(*column).cloned()).collect();
        imager.rows(&counted.ok_or_else(other_rows)?, rows)
    }

    /// Refuses a key of which a label was renamed: the rows that have it would come once more, under its new name.
    pub fn check_labels(&self, columns: &[ArrayRef]) -> Result<()> {
        for (column, known) in &self.labels {
            let held = columns.get(*column).and_then(|column| column.as_string_opt::<i32>()).ok_or_else(other_rows)?;
            if held.iter().flatten().any(|label| !known.contains(label)) {
                return Err(Error::refused("the target holds a label of an Enum in the key that the source does not have any more")
                    .hint("a renamed label gives rows another key; give the label its old name again, or leave the column out of the key"));
            }
        }
        Ok(())
    }
}

/// Two readings of one file must bring the same rows.
pub(super) fn other_rows() -> Error {
    Error::new(Kind::Internal, "a file of rows was read twice and is not the same")
}

/// The labels of an Enum.
fn labels(source_type: &str) -> Option<BTreeSet<String>> {
    fn of(node: DataTypeNode) -> Option<BTreeSet<String>> {
        match node {
            DataTypeNode::Nullable(inner) | DataTypeNode::LowCardinality(inner) => of(*inner),
            DataTypeNode::Enum(_, labels) => Some(labels.into_values().collect()),
            _ => None,
        }
    }
    DataTypeNode::new(source_type).ok().and_then(of)
}
