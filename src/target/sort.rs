//! Sort orders of a table (Iceberg spec, "Sorting").

use iceberg::spec::{NullOrder, Schema, SortDirection, SortField, SortOrder, Transform};

use super::{Target, classify};
use crate::config::SortBy;
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
}
