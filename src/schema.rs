//! The type table: how a ClickHouse column becomes an Iceberg field, and how a Parquet leaf carries it.
//!
//! Every type goes through without loss or is refused by name (invariant 8). The mapping is one `match`; nothing else in the
//! crate decides about types.

use std::sync::Arc;

use clickhouse_types::DataTypeNode;
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use parquet::basic::{LogicalType, TimeUnit, Type as Physical};

use crate::cursor::datetime64_scale;
use crate::error::{Classify, Error, Kind, Result};

/// How a column is written in the SELECT so that its Parquet bytes are what Iceberg wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// As it is.
    Plain,
    /// Converted to this type, which holds every value of the column.
    Cast(&'static str),
    /// `UInt64` to `Int64`, refusing values above 2^63-1.
    CheckedLong,
    /// Text, refusing bytes that are not UTF-8.
    CheckedText,
    /// A decimal of at most 9 digits as its unscaled `Int32`.
    Unscaled32,
    /// A decimal of at most 18 digits as its unscaled `Int64`.
    Unscaled64,
}

/// A source column and the field that it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, the same on both sides.
    pub name: String,
    /// ClickHouse's name of the type.
    pub source_type: String,
    /// Whether the source can hold null.
    pub nullable: bool,
    /// Type of the Iceberg field.
    pub iceberg: PrimitiveType,
    /// How the SELECT writes it.
    pub projection: Projection,
}

impl Column {
    /// Maps a column, or says which type is refused and what would work.
    pub fn map(name: &str, source_type: &str) -> Result<Self> {
        let refused = |hint: &str| {
            Error::refused(format!("column `{name}` has type {source_type}, which this version does not offload"))
                .hint(hint)
        };
        let node = DataTypeNode::new(source_type)
            .map_err(|_| refused("offload a view or table without this column, or convert it there"))?;
        let (node, nullable) = unwrap(&node);
        let (iceberg, projection) = table(node).map_err(refused)?;
        Ok(Self { name: name.to_owned(), source_type: source_type.to_owned(), nullable, iceberg, projection })
    }
}

/// Strips `LowCardinality` and `Nullable`.
fn unwrap(node: &DataTypeNode) -> (&DataTypeNode, bool) {
    match node {
        DataTypeNode::LowCardinality(inner) => unwrap(inner),
        DataTypeNode::Nullable(inner) => (inner, true),
        other => (other, false),
    }
}

/// The table. An `Err` is the hint for a type that is refused.
fn table(node: &DataTypeNode) -> Result<(PrimitiveType, Projection), &'static str> {
    use DataTypeNode as T;
    use PrimitiveType as I;
    use Projection as P;
    Ok(match node {
        T::Bool => (I::Boolean, P::Plain),
        T::Int8 | T::Int16 | T::Int32 | T::UInt8 | T::UInt16 => (I::Int, P::Plain),
        T::UInt32 => (I::Long, P::Cast("Int64")),
        T::Int64 => (I::Long, P::Plain),
        T::UInt64 => (I::Long, P::CheckedLong),
        T::Float32 => (I::Float, P::Plain),
        T::Float64 => (I::Double, P::Plain),
        T::Decimal(precision @ ..=38, scale, _) => {
            let (precision, scale) = (u32::from(*precision), u32::from(*scale));
            let projection = match precision {
                ..=9 => P::Unscaled32,
                10..=18 => P::Unscaled64,
                _ => P::Plain,
            };
            (I::Decimal { precision, scale }, projection)
        }
        T::String => (I::String, P::CheckedText),
        T::Enum(..) => (I::String, P::CheckedText),
        T::UUID => (I::Uuid, P::Plain),
        T::Date | T::Date32 => (I::Date, P::Plain),
        T::DateTime(_) => (I::Timestamptz, P::Cast("DateTime64(6, 'UTC')")),
        T::DateTime64(precision, _) if datetime64_scale(precision).is_some() => {
            (I::Timestamptz, P::Cast("DateTime64(6, 'UTC')"))
        }
        T::DateTime64(..) => {
            return Err("Iceberg's timestamptz holds microseconds; convert to DateTime64(6) in a view");
        }
        T::Int128 | T::Int256 | T::UInt128 | T::UInt256 | T::Decimal(..) => {
            return Err("Iceberg has no such wide number; convert to Decimal(38, 0) or String in a view");
        }
        _ => return Err("offload a view or table without this column, or convert it there"),
    })
}

/// The Iceberg schema of new tables: fields in the order of the source, ids from 1, all optional.
pub fn iceberg_schema(columns: &[Column]) -> Result<Schema> {
    let fields = (1..)
        .zip(columns)
        .map(|(id, column)| Arc::new(NestedField::optional(id, &column.name, Type::Primitive(column.iceberg.clone()))));
    Schema::builder().with_fields(fields).build().or_error(Kind::Refused, "build the target's schema")
}

/// Differences between what the source would give and what the target holds, one sentence each; empty when they fit.
pub fn drift(columns: &[Column], target: &Schema) -> Vec<String> {
    let fields = target.as_struct().fields();
    let changed = columns.iter().filter_map(|column| match fields.iter().find(|f| f.name == column.name) {
        None => Some(format!("column `{}` ({}) is not in the target", column.name, column.source_type)),
        Some(field) if field.required && column.nullable => {
            Some(format!("column `{}` can be null in the source and is required in the target", column.name))
        }
        Some(field) => {
            let same = *field.field_type == Type::Primitive(column.iceberg.clone());
            (!same).then(|| {
                format!(
                    "column `{}` is {} in the source, which becomes {}, but {} in the target",
                    column.name, column.source_type, column.iceberg, field.field_type
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

/// The physical Parquet type and its annotation for an Iceberg type (Iceberg spec, appendix A "Parquet"). Decimals above 18 digits
/// come as ClickHouse's 16 bytes where the spec says "minimum bytes"; the end-to-end test reads them with three foreign readers.
pub fn parquet_leaf(iceberg: &PrimitiveType) -> Option<(Physical, Option<LogicalType>)> {
    Some(match iceberg {
        PrimitiveType::Boolean => (Physical::BOOLEAN, None),
        PrimitiveType::Int => (Physical::INT32, None),
        PrimitiveType::Long => (Physical::INT64, None),
        PrimitiveType::Float => (Physical::FLOAT, None),
        PrimitiveType::Double => (Physical::DOUBLE, None),
        PrimitiveType::Date => (Physical::INT32, Some(LogicalType::Date)),
        PrimitiveType::Timestamptz => {
            (Physical::INT64, Some(LogicalType::Timestamp { is_adjusted_to_u_t_c: true, unit: TimeUnit::MICROS }))
        }
        PrimitiveType::String => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        PrimitiveType::Uuid => (Physical::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Uuid)),
        PrimitiveType::Decimal { precision, scale } => {
            let physical = match precision {
                ..=9 => Physical::INT32,
                10..=18 => Physical::INT64,
                _ => Physical::FIXED_LEN_BYTE_ARRAY,
            };
            let (precision, scale) = (i32::try_from(*precision).ok()?, i32::try_from(*scale).ok()?);
            (physical, Some(LogicalType::Decimal { scale, precision }))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_table() {
        use Projection as P;
        let micros = P::Cast("DateTime64(6, 'UTC')");
        let rows = [
            ("Bool", "boolean", P::Plain),
            ("Int8", "int", P::Plain),
            ("UInt16", "int", P::Plain),
            ("Int32", "int", P::Plain),
            ("UInt32", "long", P::Cast("Int64")),
            ("Int64", "long", P::Plain),
            ("UInt64", "long", P::CheckedLong),
            ("Float32", "float", P::Plain),
            ("Float64", "double", P::Plain),
            ("Decimal(9, 2)", "decimal(9, 2)", P::Unscaled32),
            ("Decimal(18, 8)", "decimal(18, 8)", P::Unscaled64),
            ("Decimal(38, 8)", "decimal(38, 8)", P::Plain),
            ("String", "string", P::CheckedText),
            ("LowCardinality(Nullable(String))", "string", P::CheckedText),
            ("Enum8('it\\'s' = 1, 'b, c' = -2)", "string", P::CheckedText),
            ("UUID", "uuid", P::Plain),
            ("Date", "date", P::Plain),
            ("Date32", "date", P::Plain),
            ("DateTime", "timestamptz", micros),
            ("DateTime('America/New_York')", "timestamptz", micros),
            ("DateTime64(3)", "timestamptz", micros),
            ("Nullable(DateTime64(6, 'UTC'))", "timestamptz", micros),
        ];
        for (source, iceberg, projection) in rows {
            let column = Column::map("c", source).unwrap();
            assert_eq!((column.iceberg.to_string().as_str(), column.projection), (iceberg, projection), "{source}");
            assert_eq!(column.nullable, source.contains("Nullable"));
            assert!(parquet_leaf(&column.iceberg).is_some(), "{source}");
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for source in [
            "Int128",
            "UInt256",
            "Decimal(76, 2)",
            "DateTime64(9)",
            "Array(String)",
            "Map(String, String)",
            "IPv4",
            "Tuple(a Int8)",
            "AggregateFunction(sum, UInt64)",
            "FixedString(4)",
            "JSON",
            "Nothing",
            "",
        ] {
            let error = Column::map("price `x`", source).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.to_string().contains("column `price `x``") && error.to_string().contains(source), "{error}");
        }
    }

    #[test]
    fn drift_is_named() {
        let columns = |list: &[(&str, &str)]| -> Vec<Column> {
            list.iter().map(|(name, kind)| Column::map(name, kind).unwrap()).collect()
        };
        let target = iceberg_schema(&columns(&[("a", "Int32"), ("b", "String")])).unwrap();
        assert!(drift(&columns(&[("b", "LowCardinality(String)"), ("a", "UInt16")]), &target).is_empty());
        assert_eq!(drift(&columns(&[("a", "Int64"), ("c", "Date")]), &target).len(), 3);
    }
}
