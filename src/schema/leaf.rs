//! The flat types.

use clickhouse_types::DataTypeNode;
use clickhouse_types::data_types::DateTimePrecision;
use iceberg::spec::PrimitiveType;

use crate::cursor::datetime64_scale;

/// How a value is written in the SELECT so that its Parquet bytes are what Iceberg wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Projection {
    /// As it is.
    Plain,
    /// Converted to this type, which holds every value.
    Cast(String),
    /// `UInt64` to `Int64`, refusing values above 2^63-1.
    CheckedLong,
    /// A wide integer to `Decimal(38, 0)`, refusing values of more digits.
    CheckedDecimal,
    /// Text, refusing bytes that are not UTF-8.
    CheckedText,
    /// A decimal of at most 9 digits as its unscaled `Int32`.
    Unscaled32,
    /// A decimal of at most 18 digits as its unscaled `Int64`.
    Unscaled64,
    /// A decimal of at most 9 digits as its unscaled `Int64`, for a field that holds more digits.
    Unscaled32AsLong,
}

/// A flat type and what it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Whether the source can hold null.
    pub nullable: bool,
    /// ClickHouse's name of the type, without wrappers.
    pub source: String,
    /// Type of the Iceberg field.
    pub iceberg: PrimitiveType,
    /// How the SELECT writes it.
    pub projection: Projection,
    /// Whether `types` of the configuration asked for that.
    pub overridden: bool,
}

/// What `types` can ask for.
pub const OVERRIDES: &str = "types can make String a binary; UInt64 a decimal(20,0); wider integers a decimal(38,0), checked; \
     DateTime64(7..9) a timestamptz, cut to microseconds; and any flat type a string";

const TO_MICROS: &str = "DateTime64(6, 'UTC')";

/// The table. An `Err` is the hint for a type that is refused.
pub fn leaf(node: &DataTypeNode, nullable: bool) -> Result<Leaf, &'static str> {
    use DataTypeNode as T;
    use PrimitiveType as I;
    use Projection as P;
    let cast = |to: &str| P::Cast(to.to_owned());
    let (iceberg, projection) = match node {
        T::Bool => (I::Boolean, P::Plain),
        T::Int8 | T::Int16 | T::Int32 | T::UInt8 | T::UInt16 => (I::Int, P::Plain),
        T::UInt32 => (I::Long, cast("Int64")),
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
        T::String | T::Enum(..) | T::IPv4 | T::IPv6 | T::JSON | T::JsonWithHint(_) => (I::String, P::CheckedText),
        // Both hold null without being Nullable.
        T::Variant(_) | T::Dynamic => return Ok(new(node, true, I::String, P::CheckedText)),
        T::FixedString(length) => (I::Fixed(*length as u64), P::Plain),
        T::UUID => (I::Uuid, P::Plain),
        T::Date | T::Date32 => (I::Date, P::Plain),
        T::DateTime(_) => (I::Timestamptz, cast(TO_MICROS)),
        T::DateTime64(precision, _) if datetime64_scale(precision).is_some() => (I::Timestamptz, cast(TO_MICROS)),
        T::DateTime64(..) => {
            return Err(
                "Iceberg's timestamptz holds microseconds: ask for it with types = { column = \"timestamptz\" }, which cuts the rest, or for a \"string\"",
            );
        }
        T::Int128 | T::Int256 | T::UInt128 | T::UInt256 => {
            return Err(
                "Iceberg has no such wide integer: ask for types = { column = \"decimal(38,0)\" }, which is checked, or for a \"string\"",
            );
        }
        T::Decimal(..) => return Err("Iceberg's decimals have 38 digits: ask for types = { column = \"string\" }"),
        _ => return Err("offload a view or table without this column, or convert it there"),
    };
    Ok(new(node, nullable, iceberg, projection))
}

/// What the configuration may ask for instead; `None` where a type cannot become that.
pub fn overridden(node: &DataTypeNode, nullable: bool, wanted: &str) -> Option<Leaf> {
    use DataTypeNode as T;
    use PrimitiveType as I;
    use Projection as P;
    let wanted: String = wanted.chars().filter(|character| !character.is_whitespace()).collect();
    let decimal = |precision| I::Decimal { precision, scale: 0 };
    let (iceberg, projection) = match (node, wanted.as_str()) {
        (T::String, "binary") => (I::Binary, P::Plain),
        (T::UInt64, "decimal(20,0)") => (decimal(20), P::Cast("Decimal(20, 0)".to_owned())),
        (T::Int128 | T::Int256 | T::UInt128 | T::UInt256, "decimal(38,0)") => (decimal(38), P::CheckedDecimal),
        (T::DateTime64(precision, _), "timestamptz") if is_finer_than_micros(precision) => {
            (I::Timestamptz, P::Cast(TO_MICROS.to_owned()))
        }
        (T::AggregateFunction(..), _) => return None,
        (_, "string") => (I::String, P::CheckedText),
        _ => return None,
    };
    let nullable = nullable || matches!(node, T::Variant(_) | T::Dynamic);
    Some(Leaf { overridden: true, ..new(node, nullable, iceberg, projection) })
}

/// The leaf as a field of type `target` holds it: as it is, or cast without loss where the field is wider (Iceberg spec, "Schema Evolution").
pub fn widened(leaf: &Leaf, target: &PrimitiveType) -> Option<Leaf> {
    use PrimitiveType as I;
    use Projection as P;
    let cast = |to: &str| P::Cast(to.to_owned());
    let projection = match (&leaf.iceberg, target) {
        (own, target) if own == target => leaf.projection.clone(),
        (I::Int, I::Long) => cast("Int64"),
        (I::Float, I::Double) => cast("Float64"),
        (I::Decimal { precision: own, scale }, I::Decimal { precision, scale: same })
            if own < precision && scale == same =>
        {
            match (own, precision) {
                (..=9, 10..=18) => P::Unscaled32AsLong,
                (..=18, 19..) => P::Cast(format!("Decimal({precision}, {scale})")),
                // As many bytes.
                _ => leaf.projection.clone(),
            }
        }
        _ => return None,
    };
    Some(Leaf { iceberg: target.clone(), projection, ..leaf.clone() })
}

fn new(node: &DataTypeNode, nullable: bool, iceberg: PrimitiveType, projection: Projection) -> Leaf {
    Leaf { nullable, source: node.to_string(), iceberg, projection, overridden: false }
}

fn is_finer_than_micros(precision: &DateTimePrecision) -> bool {
    datetime64_scale(precision).is_none()
}

/// The hint for a type whose name is not known.
pub fn unknown(source_type: &str) -> &'static str {
    if source_type.contains("AggregateFunction(") {
        "it is the state of an aggregation, not a value: finalize it (sumMerge, finalizeAggregation) in a `query` or a view"
    } else {
        "offload a view or table without this column, or convert it there"
    }
}
