//! Differences between what a source would give and what its target holds.

use iceberg::spec::{Schema, Type};

use super::Column;

/// One sentence each; empty when they fit.
pub fn drift(columns: &[Column], target: &Schema) -> Vec<String> {
    let fields = target.as_struct().fields();
    let changed = columns.iter().filter_map(|column| match fields.iter().find(|f| f.name == column.name) {
        None => Some(format!("column `{}` ({}) is not in the target", column.name, column.source_type)),
        Some(field) if field.required && column.nullable() && !column.required => {
            Some(format!("column `{}` can be null in the source and is required in the target", column.name))
        }
        Some(field) => {
            let wanted = column.shape.iceberg(&mut (1..));
            (!is_same(&wanted, &field.field_type)).then(|| {
                format!(
                    "column `{}` is {} in the source, which becomes {wanted}, but {} in the target",
                    column.name, column.source_type, field.field_type
                )
            })
        }
    });
    let gone = fields
        .iter()
        .filter(|field| !columns.iter().any(|column| column.name == field.name))
        .map(|field| format!("column `{}` of the target is not in the source", field.name));
    changed.chain(gone).collect()
}

/// Entries for `types` of the configuration, with which columns would become what a target holds.
pub fn fitting_types(columns: &[Column], target: &Schema) -> Vec<String> {
    let fitting = columns.iter().filter_map(|column| {
        let field = target.as_struct().fields().iter().find(|field| field.name == column.name)?;
        let wanted = field.field_type.to_string();
        let asked = Column::map(&column.name, &column.source_type, Some(&wanted)).ok()?;
        let fits = |column: &Column| is_same(&column.shape.iceberg(&mut (1..)), &field.field_type);
        (fits(&asked) && !fits(column)).then(|| format!("{} = \"{wanted}\"", column.name))
    });
    fitting.collect()
}

/// Whether two types differ in ids, docs and optionality only.
fn is_same(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Primitive(a), Type::Primitive(b)) => a == b,
        (Type::List(a), Type::List(b)) => is_same(&a.element_field.field_type, &b.element_field.field_type),
        (Type::Map(a), Type::Map(b)) => {
            is_same(&a.key_field.field_type, &b.key_field.field_type)
                && is_same(&a.value_field.field_type, &b.value_field.field_type)
        }
        (Type::Struct(a), Type::Struct(b)) => {
            let same = |(a, b): (&iceberg::spec::NestedFieldRef, &iceberg::spec::NestedFieldRef)| {
                a.name == b.name && is_same(&a.field_type, &b.field_type)
            };
            a.fields().len() == b.fields().len() && a.fields().iter().zip(b.fields()).all(same)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::iceberg_schema;

    fn columns(list: &[(&str, &str)]) -> Vec<Column> {
        list.iter().map(|(name, kind)| Column::map(name, kind, None).unwrap()).collect()
    }

    #[test]
    fn drift_is_named() {
        let target = iceberg_schema(&columns(&[("a", "Int32"), ("b", "String")])).unwrap();
        assert!(drift(&columns(&[("b", "LowCardinality(String)"), ("a", "UInt16")]), &target).is_empty());
        assert_eq!(drift(&columns(&[("a", "Int64"), ("c", "Date")]), &target).len(), 3);
    }

    #[test]
    fn drift_is_seen_at_any_depth() {
        let of = |kind: &str| columns(&[("n", kind)]);
        let target = iceberg_schema(&of("Array(Tuple(a Int8, m Map(String, Array(UInt8))))")).unwrap();
        assert!(
            drift(&of("Nested(a UInt16, m Map(LowCardinality(String), Array(Nullable(Int32))))"), &target).is_empty()
        );
        for kind in [
            "Array(Tuple(a Int8))",
            "Array(Tuple(b Int8, m Map(String, Array(UInt8))))",
            "Array(Tuple(a Int8, m Map(String, Array(Int64))))",
            "String",
        ] {
            assert_eq!(drift(&of(kind), &target).len(), 1, "{kind}");
        }
    }
}
