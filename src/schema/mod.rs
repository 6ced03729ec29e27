//! The type table: how a ClickHouse column becomes an Iceberg field, and how a Parquet leaf carries it.
//!
//! Every type goes through without loss or is refused by name (invariant 8), nested to any depth. The mapping is one `match` in
//! `leaf`, and one for the overrides that a configuration asks for; nothing else in the crate decides about types.

mod comparison;
mod evolution;
mod leaf;
mod parse;
mod pruned;

use std::sync::Arc;

use iceberg::spec::{ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, StructType, Type};
use parquet::basic::{LogicalType, TimeUnit, Type as Physical};

pub use self::evolution::{Evolution, SchemaEvolution, evolve, fitting_types};
pub use self::leaf::{Leaf, Projection};
use self::parse::{SourceType, Structure};
pub use self::pruned::{leaf_ids, pruned};
use crate::error::{Classify, Error, Kind, Result};

/// A source column and the field that it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, the same on both sides.
    pub name: String,
    /// ClickHouse's name of the type.
    pub source_type: String,
    /// What it becomes.
    pub shape: Shape,
    /// Whether it belongs to the key: null is refused, and the field is required.
    pub required: bool,
}

/// What a type becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A flat field.
    Leaf(Leaf),
    /// A list.
    List(Box<Shape>),
    /// A map.
    Map(Box<Shape>, Box<Shape>),
    /// A struct, with all fields of the source; one without a shape is not read.
    Struct(Vec<(String, Option<Shape>)>),
}

impl Column {
    /// Maps a column, as `wanted` (`types` of the configuration) says where it is given; or says which type is refused and what would work.
    pub fn map(name: &str, source_type: &str, wanted: Option<&str>) -> Result<Self> {
        let refused = |hint: &str| {
            Error::refused(format!("column `{name}` has type {source_type}, which is not offloaded as it is"))
                .hint(hint)
        };
        let parsed = parse::parse(source_type).ok_or_else(|| refused(leaf::unknown(source_type)))?;
        let shape = match wanted {
            None => shape(&parsed).map_err(refused)?,
            Some(wanted) => Shape::Leaf(overridden(&parsed, wanted).ok_or_else(|| {
                let message = format!("types: column `{name}` ({source_type}) cannot become {wanted}");
                Error::new(Kind::Config, message).hint(leaf::OVERRIDES)
            })?),
        };
        Ok(Self { name: name.to_owned(), source_type: source_type.to_owned(), shape, required: false })
    }

    /// Makes it part of the key; refuses what cannot name a row in Iceberg.
    pub fn require(&mut self) -> Result<()> {
        match self.primitive() {
            None | Some(PrimitiveType::Float | PrimitiveType::Double) => {
                let message =
                    format!("key column `{}` has type {}, which cannot name a row", self.name, self.source_type);
                Err(Error::new(Kind::Config, message).hint("a key is made of flat columns that are no floats"))
            }
            Some(_) => {
                self.required = true;
                Ok(())
            }
        }
    }

    /// Refuses what ClickHouse and Iceberg order differently, or not at all: floats (NaN, -0), UUID, bytes, nested types.
    pub fn check_sortable(&self) -> Result<()> {
        use PrimitiveType as I;
        match self.primitive() {
            Some(I::Boolean | I::Int | I::Long | I::Decimal { .. } | I::String | I::Date | I::Timestamptz) => Ok(()),
            _ => {
                let message = format!("column `{}` ({}) cannot sort the rows of a file", self.name, self.source_type);
                Err(Error::new(Kind::Config, message)
                    .hint("sort_by takes integers, decimals, text, times and booleans"))
            }
        }
    }

    /// Whether the source can hold null.
    pub fn nullable(&self) -> bool {
        self.shape.nullable()
    }

    /// Type of the Iceberg field, where it is flat.
    pub fn primitive(&self) -> Option<&PrimitiveType> {
        match &self.shape {
            Shape::Leaf(leaf) => Some(&leaf.iceberg),
            _ => None,
        }
    }
}

/// What a type becomes; an `Err` is the hint for one that is refused.
fn shape(source: &SourceType) -> Result<Shape, &'static str> {
    Ok(match &source.structure {
        Structure::Leaf(node) => Shape::Leaf(leaf::leaf(node, source.nullable)?),
        _ if source.nullable => return Err("a nested type that can be null is not known here; convert it in a view"),
        Structure::Array(of) => Shape::List(Box::new(shape(of)?)),
        Structure::Map(key, value) => Shape::Map(Box::new(shape(key)?), Box::new(shape(value)?)),
        Structure::Tuple(elements) => {
            let fields = elements.iter().map(|(name, of)| shape(of).map(|shape| (name.clone(), Some(shape))));
            Shape::Struct(fields.collect::<Result<_, _>>()?)
        }
    })
}

fn overridden(source: &SourceType, wanted: &str) -> Option<Leaf> {
    match &source.structure {
        Structure::Leaf(node) => leaf::overridden(node, source.nullable, wanted),
        _ => None,
    }
}

impl Shape {
    /// Whether the source can hold null; only what is flat can.
    pub fn nullable(&self) -> bool {
        matches!(self, Self::Leaf(leaf) if leaf.nullable)
    }

    /// The names in each struct of it, at any depth.
    pub fn field_names(&self) -> Vec<Vec<&str>> {
        match self {
            Self::Leaf(_) => Vec::new(),
            Self::List(of) => of.field_names(),
            Self::Map(key, value) => [key.field_names(), value.field_names()].concat(),
            Self::Struct(fields) => {
                let own = fields.iter().map(|(name, _)| name.as_str()).collect();
                fields.iter().filter_map(|(_, shape)| shape.as_ref()).flat_map(Self::field_names).chain([own]).collect()
            }
        }
    }

    /// The Iceberg type; ids of what is nested in it are taken from `ids`.
    pub fn iceberg(&self, ids: &mut impl Iterator<Item = i32>) -> Type {
        let mut field = |name: &str, shape: &Shape, required: bool| -> NestedFieldRef {
            let id = ids.next().unwrap_or(i32::MAX);
            Arc::new(NestedField::new(id, name, shape.iceberg(ids), required))
        };
        match self {
            Self::Leaf(leaf) => Type::Primitive(leaf.iceberg.clone()),
            Self::List(of) => Type::List(ListType { element_field: field("element", of, false) }),
            Self::Map(key, value) => {
                let (key_field, value_field) = (field("key", key, true), field("value", value, false));
                Type::Map(MapType { key_field, value_field })
            }
            Self::Struct(fields) => {
                let read = fields.iter().filter_map(|(name, shape)| Some(field(name, shape.as_ref()?, false)));
                Type::Struct(StructType::new(read.collect()))
            }
        }
    }
}

/// The Iceberg schema of new tables: fields in the order of the source, optional but for keys of maps and the columns of the key, which become
/// Iceberg's identifier fields. Ids are those of the columns from 1, then of what is nested in them; iceberg gives a new table ids of its own.
pub fn iceberg_schema(columns: &[Column]) -> Result<Schema> {
    let mut nested = (1..).skip(columns.len());
    let fields = (1..).zip(columns).map(|(id, column)| {
        let of_type = column.shape.iceberg(&mut nested);
        Arc::new(NestedField::new(id, &column.name, of_type, column.required))
    });
    let key = (1..).zip(columns).filter(|(_, column)| column.required).map(|(id, _)| id);
    let schema = Schema::builder().with_fields(fields).with_identifier_field_ids(key);
    schema.build().or_error(Kind::Refused, "build the target's schema")
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
        PrimitiveType::Binary => (Physical::BYTE_ARRAY, None),
        PrimitiveType::Fixed(_) => (Physical::FIXED_LEN_BYTE_ARRAY, None),
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

    fn leaf(source: &str, wanted: Option<&str>) -> Leaf {
        match Column::map("c", source, wanted).unwrap().shape {
            Shape::Leaf(leaf) => leaf,
            nested => panic!("{nested:?}"),
        }
    }

    #[test]
    fn the_type_table() {
        use Projection as P;
        let micros = || P::Cast("DateTime64(6, 'UTC')".into());
        let rows = [
            ("Bool", "boolean", P::Plain),
            ("Int8", "int", P::Plain),
            ("UInt16", "int", P::Plain),
            ("Int32", "int", P::Plain),
            ("UInt32", "long", P::Cast("Int64".into())),
            ("Int64", "long", P::Plain),
            ("UInt64", "long", P::CheckedLong),
            ("Float32", "float", P::Plain),
            ("Float64", "double", P::Plain),
            ("Decimal(9, 2)", "decimal(9, 2)", P::Unscaled32),
            ("Decimal(18, 8)", "decimal(18, 8)", P::Unscaled64),
            ("Decimal(38, 8)", "decimal(38, 8)", P::Plain),
            ("SimpleAggregateFunction(sum, Decimal(38, 8))", "decimal(38, 8)", P::Plain),
            ("String", "string", P::CheckedText),
            ("LowCardinality(Nullable(String))", "string", P::CheckedText),
            ("Enum8('it\\'s' = 1, 'b, c' = -2)", "string", P::CheckedText),
            ("IPv4", "string", P::CheckedText),
            ("Nullable(IPv6)", "string", P::CheckedText),
            ("JSON", "string", P::CheckedText),
            ("FixedString(4)", "fixed(4)", P::Plain),
            ("UUID", "uuid", P::Plain),
            ("Date", "date", P::Plain),
            ("Date32", "date", P::Plain),
            ("DateTime", "timestamptz", micros()),
            ("DateTime('America/New_York')", "timestamptz", micros()),
            ("DateTime64(3)", "timestamptz", micros()),
            ("Nullable(DateTime64(6, 'UTC'))", "timestamptz", micros()),
        ];
        for (source, iceberg, projection) in rows {
            let leaf = leaf(source, None);
            assert_eq!((leaf.iceberg.to_string().as_str(), leaf.projection), (iceberg, projection), "{source}");
            assert_eq!(leaf.nullable, source.contains("Nullable"));
            assert!(parquet_leaf(&leaf.iceberg).is_some(), "{source}");
        }
        assert!(leaf("Dynamic", None).nullable && leaf("Variant(Int8, String)", None).nullable);
    }

    #[test]
    fn types_can_be_asked_for() {
        for (source, wanted, iceberg) in [
            ("String", "binary", "binary"),
            ("UInt64", "decimal(20, 0)", "decimal(20, 0)"),
            ("Nullable(UInt256)", "decimal(38,0)", "decimal(38, 0)"),
            ("Int128", "string", "string"),
            ("Decimal(76, 2)", "string", "string"),
            ("DateTime64(9)", "timestamptz", "timestamptz"),
        ] {
            assert_eq!(leaf(source, Some(wanted)).iceberg.to_string(), iceberg, "{source}");
        }
        for (source, wanted) in
            [("Int32", "long"), ("String", "int"), ("Array(UInt64)", "string"), ("Float64", "decimal(20,0)")]
        {
            assert_eq!(Column::map("c", source, Some(wanted)).unwrap_err().kind(), Kind::Config, "{source} {wanted}");
        }
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for source in [
            "Int128",
            "UInt256",
            "Decimal(76, 2)",
            "DateTime64(9)",
            "Array(Int256)",
            "Map(String, Tuple(a Int8, b AggregateFunction(sum, UInt64)))",
            "AggregateFunction(sum, UInt64)",
            "Nullable(Tuple(a Int8))",
            "Nothing",
            "",
        ] {
            let error = Column::map("price `x`", source, None).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.to_string().contains("column `price `x``") && error.to_string().contains(source), "{error}");
            assert!(!error.hint_text().is_empty());
        }
    }

    #[test]
    fn nested_types_get_ids_of_their_own() {
        let columns = [("n", "Array(Tuple(a Int8, b Map(String, UInt32)))"), ("c", "Date")];
        let columns = columns.map(|(name, kind)| Column::map(name, kind, None).unwrap());
        let schema = iceberg_schema(&columns).unwrap();
        let found: Vec<Option<i32>> = ["n", "c", "n.element.a", "n.element.b.key", "n.element.b.value"]
            .map(|name| schema.field_id_by_name(name))
            .into();
        assert!(found.iter().all(Option::is_some), "{found:?}");
        assert_eq!(schema.highest_field_id(), 7);
    }
}
