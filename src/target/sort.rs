//! Sort orders of a table (Iceberg spec, "Sorting").

use std::collections::BTreeSet;

use iceberg::spec::{NullOrder, Schema, SortDirection, SortField, SortOrder, Transform};

use super::{Target, classify};
use crate::config::{SortBy, Table};
use crate::error::{Error, Kind, Result};

/// The order of a new table.
pub fn sort_order(sort_by: &[SortBy], schema: &Schema) -> Result<SortOrder> {
    let fields = fields(sort_by, schema)
        .ok_or_else(|| Error::new(Kind::Config, "sort_by names a column that the target does not have"))?;
    let order = SortOrder::builder().with_fields(fields).build(schema);
    order.map_err(|e| classify(e, "plan the sort order".to_owned()))
}

/// Nulls stand where Iceberg has them by default, which is where the source is told to put them.
fn fields(sort_by: &[SortBy], schema: &Schema) -> Option<Vec<SortField>> {
    let field = |by: &SortBy| {
        let (direction, null_order) = match by.descending {
            false => (SortDirection::Ascending, NullOrder::First),
            true => (SortDirection::Descending, NullOrder::Last),
        };
        let source_id = schema.field_id_by_name(&by.column)?;
        Some(SortField { source_id, transform: Transform::Identity, direction, null_order })
    };
    sort_by.iter().map(field).collect()
}

impl Target {
    /// The table's id of an order, `None` where it has no such order: files are sorted all the same, but nothing claims it.
    pub fn sort_order_id(&self, sort_by: &[SortBy]) -> Option<i32> {
        let fields = fields(sort_by, self.metadata.current_schema()).filter(|fields| !fields.is_empty())?;
        let order = self.metadata.sort_orders_iter().find(|order| order.fields == fields)?;
        i32::try_from(order.order_id).ok()
    }

    /// How the table's own order differs from what the configuration says, if it does.
    pub fn order_difference(&self, table: &Table) -> Option<String> {
        let order = self.metadata.default_sort_order();
        let wanted = fields(&table.sort_by, self.metadata.current_schema());
        (wanted.as_ref() != Some(&order.fields)).then(|| {
            "the target has another sort order than `sort_by` says; files are sorted as configured, and claim the order only where the target knows it"
                .to_owned()
        })
    }

    /// How the table's identifier fields differ from the configured key, if they do.
    pub fn key_difference(&self, table: &Table) -> Option<String> {
        let schema = self.metadata.current_schema();
        let own: BTreeSet<&str> = schema.identifier_field_ids().filter_map(|id| schema.name_by_field_id(id)).collect();
        let wanted: BTreeSet<&str> = table.key.iter().map(String::as_str).collect();
        (own != wanted).then(|| {
            let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
            format!(
                "the identifier fields of the target are [{}], `key` says [{}]; rows are told apart by the key, the target stays as it is",
                list(own),
                list(wanted)
            )
        })
    }
}
