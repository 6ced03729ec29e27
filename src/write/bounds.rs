//! What a manifest says of a data file: counts, sizes and bounds, read from its Parquet footer.
//!
//! A bound that is missing costs time; a bound that is wrong hides rows. So a column has bounds only where every row group that holds a
//! value has usable statistics.

use std::collections::HashMap;

use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, PrimitiveType, Type};
use parquet::basic::Type as Physical;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::Placement;
use crate::error::{Classify, Kind, Result};

/// Iceberg's properties for what manifests say of columns: of all, and of one. (Iceberg, `MetricsConfig`.)
const METRICS_DEFAULT: &str = "write.metadata.metrics.default";
const METRICS_COLUMN: &str = "write.metadata.metrics.column.";
/// Where a table does not say, or says what is no mode: Iceberg's default.
const DEFAULT_MODE: Mode = Mode::Truncate(16);

/// What the manifest of a table says of its columns, as the table's properties ask for.
#[derive(Debug, Clone, Copy)]
pub struct Metrics<'a> {
    properties: &'a HashMap<String, String>,
}

/// What a manifest says of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing.
    None,
    /// Sizes and numbers of values.
    Counts,
    /// And bounds, those of text cut to this many characters.
    Truncate(usize),
    /// And bounds as they are.
    Full,
}

impl<'a> Metrics<'a> {
    /// As the properties of a table say.
    pub fn of(properties: &'a HashMap<String, String>) -> Self {
        Self { properties }
    }

    fn mode(&self, column: &str) -> Mode {
        let parse = |key: &str| self.properties.get(key).and_then(|text| Mode::parse(text));
        parse(&format!("{METRICS_COLUMN}{column}")).or_else(|| parse(METRICS_DEFAULT)).unwrap_or(DEFAULT_MODE)
    }
}

impl Mode {
    fn parse(text: &str) -> Option<Self> {
        match text.trim().to_lowercase().as_str() {
            "none" => Some(Self::None),
            "counts" => Some(Self::Counts),
            "full" => Some(Self::Full),
            text => {
                let length = text.strip_prefix("truncate(")?.strip_suffix(')')?.trim().parse().ok()?;
                (length > 0).then_some(Self::Truncate(length))
            }
        }
    }
}

/// Describes a finished file of `size` bytes.
pub fn data_file(metadata: &ParquetMetaData, placement: &Placement<'_>, size: u64) -> Result<DataFile> {
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(placement.location.clone())
        .file_format(DataFileFormat::Parquet)
        .partition(placement.partition.clone())
        .partition_spec_id(placement.partition_spec_id)
        .record_count(u64::try_from(metadata.file_metadata().num_rows()).or_error(Kind::Internal, "count rows")?)
        .file_size_in_bytes(size)
        .split_offsets(Some(
            metadata.row_groups().iter().filter_map(|group| group.columns().first()).map(start).collect(),
        ));
    let statistics = Statistics::collect(metadata, placement);
    builder
        .column_sizes(statistics.sizes)
        .value_counts(statistics.values)
        .null_value_counts(statistics.nulls)
        .lower_bounds(statistics.lower)
        .upper_bounds(statistics.upper);
    if let Some(id) = placement.sort_order_id {
        builder.sort_order_id(id);
    }
    builder.build().or_error(Kind::Internal, "describe a data file")
}

/// Offset of the first page of a column chunk.
fn start(chunk: &ColumnChunkMetaData) -> i64 {
    chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset())
}

#[derive(Debug, Default)]
struct Statistics {
    sizes: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    nulls: HashMap<i32, u64>,
    lower: HashMap<i32, Datum>,
    upper: HashMap<i32, Datum>,
}

impl Statistics {
    fn collect(metadata: &ParquetMetaData, placement: &Placement<'_>) -> Self {
        let schema = placement.schema;
        let mut all = Self::default();
        for (index, leaf) in metadata.file_metadata().schema_descr().columns().iter().enumerate() {
            let id = leaf.self_type().get_basic_info().id();
            let Some(Type::Primitive(primitive)) = schema.field_by_id(id).map(|field| &*field.field_type) else {
                continue;
            };
            let mode = placement.metrics.mode(schema.name_by_field_id(id).unwrap_or_default());
            if mode == Mode::None {
                continue;
            }
            let chunks: Vec<&ColumnChunkMetaData> =
                metadata.row_groups().iter().map(|group| group.column(index)).collect();
            let sum =
                |of: fn(&ColumnChunkMetaData) -> i64| chunks.iter().filter_map(|c| u64::try_from(of(c)).ok()).sum();
            all.sizes.insert(id, sum(ColumnChunkMetaData::compressed_size));
            if leaf.max_rep_level() > 0 {
                // Below a list or map there are values, not rows: readers would take their counts and bounds for those of rows.
                continue;
            }
            all.values.insert(id, sum(ColumnChunkMetaData::num_values));
            let required = leaf.max_def_level() == 0;
            let nulls: Option<Vec<u64>> = chunks.iter().map(|chunk| null_count(chunk, required)).collect();
            if let Some(nulls) = &nulls {
                all.nulls.insert(id, nulls.iter().sum());
            }
            if let Some((lower, upper)) = bounds(&chunks, nulls.as_deref(), primitive, mode) {
                all.lower.extend(lower.map(|datum| (id, datum)));
                all.upper.extend(upper.map(|datum| (id, datum)));
            }
        }
        all
    }
}

/// ClickHouse writes null counts for Nullable columns only.
fn null_count(chunk: &ColumnChunkMetaData, required: bool) -> Option<u64> {
    if required { Some(0) } else { chunk.statistics()?.null_count_opt() }
}

/// Lower and upper bound over all row groups; a group of nulls has none and does not count.
fn bounds(
    chunks: &[&ColumnChunkMetaData],
    nulls: Option<&[u64]>,
    primitive: &PrimitiveType,
    mode: Mode,
) -> Option<(Option<Datum>, Option<Datum>)> {
    let length = match mode {
        Mode::None | Mode::Counts => return None,
        // They may be long, and few filter by them.
        Mode::Truncate(_) if matches!(primitive, PrimitiveType::Binary | PrimitiveType::Fixed(_)) => return None,
        Mode::Truncate(length) => length,
        Mode::Full => usize::MAX,
    };
    let mut whole: Option<(Datum, Datum)> = None;
    for (index, chunk) in chunks.iter().enumerate() {
        let null = nulls.and_then(|nulls| nulls.get(index)).copied();
        if null.is_some() && null == u64::try_from(chunk.num_values()).ok() {
            continue;
        }
        let statistics = chunk.statistics()?;
        let min = datum(statistics.min_bytes_opt()?, chunk.column_type(), primitive)?;
        let max = datum(statistics.max_bytes_opt()?, chunk.column_type(), primitive)?;
        whole = Some(match whole {
            None => (min, max),
            Some((low, high)) => (if min < low { min } else { low }, if max > high { max } else { high }),
        });
    }
    let (low, high) = whole?;
    Some((shorten(low, length, false), shorten(high, length, true)))
}

/// A statistic as an Iceberg value; `None` where it cannot be a bound.
fn datum(bytes: &[u8], physical: Physical, primitive: &PrimitiveType) -> Option<Datum> {
    // Iceberg's bytes of a decimal are big-endian; Parquet's of an INT32 or INT64 little-endian.
    let reversed: Vec<u8>;
    let little_endian = matches!(physical, Physical::INT32 | Physical::INT64);
    let bytes = if little_endian && matches!(primitive, PrimitiveType::Decimal { .. }) {
        reversed = bytes.iter().rev().copied().collect();
        &reversed
    } else {
        bytes
    };
    let not_a_number = match primitive {
        PrimitiveType::Float => f32::from_le_bytes(bytes.try_into().ok()?).is_nan(),
        PrimitiveType::Double => f64::from_le_bytes(bytes.try_into().ok()?).is_nan(),
        _ => false,
    };
    if not_a_number { None } else { Datum::try_from_bytes(bytes, primitive.clone()).ok() }
}

/// Cuts a string bound: a prefix is a lower bound; an upper bound needs its last character raised.
fn shorten(datum: Datum, length: usize, upper: bool) -> Option<Datum> {
    let iceberg::spec::PrimitiveLiteral::String(text) = datum.literal() else { return Some(datum) };
    if text.chars().nth(length).is_none() {
        return Some(datum);
    }
    let mut prefix: String = text.chars().take(length).collect();
    if !upper {
        return Some(Datum::string(prefix));
    }
    while let Some(last) = prefix.pop() {
        if let Some(next) = next_char(last) {
            prefix.push(next);
            return Some(Datum::string(prefix));
        }
    }
    None
}

/// The next Unicode scalar value; UTF-8 bytes order like scalar values.
fn next_char(c: char) -> Option<char> {
    match c {
        '\u{D7FF}' => Some('\u{E000}'),
        _ => char::from_u32(u32::from(c) + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decimals_are_read_from_both_byte_orders() {
        let decimal = PrimitiveType::Decimal { precision: 18, scale: 2 };
        let expected = Datum::try_from_bytes(&(-150_i64).to_be_bytes(), decimal.clone()).unwrap();
        assert_eq!(datum(&(-150_i64).to_le_bytes(), Physical::INT64, &decimal), Some(expected));
        let wide = PrimitiveType::Decimal { precision: 38, scale: 2 };
        let expected = Datum::try_from_bytes(&(-150_i128).to_be_bytes(), wide.clone()).unwrap();
        assert_eq!(datum(&(-150_i128).to_be_bytes(), Physical::FIXED_LEN_BYTE_ARRAY, &wide), Some(expected));
    }

    #[test]
    fn nan_is_no_bound() {
        assert_eq!(datum(&f64::NAN.to_le_bytes(), Physical::DOUBLE, &PrimitiveType::Double), None);
        assert_eq!(datum(&f32::NAN.to_le_bytes(), Physical::FLOAT, &PrimitiveType::Float), None);
        assert!(datum(&1.5_f64.to_le_bytes(), Physical::DOUBLE, &PrimitiveType::Double).is_some());
    }

    #[test]
    fn a_table_says_what_its_manifests_say() {
        let properties = [
            (METRICS_DEFAULT, "full"),
            ("write.metadata.metrics.column.a", "counts"),
            ("write.metadata.metrics.column.b.c", "None"),
        ];
        let mut properties: HashMap<String, String> =
            properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let modes =
            |properties: &HashMap<String, String>| ["a", "b.c", "d"].map(|column| Metrics::of(properties).mode(column));
        assert_eq!(modes(&properties), [Mode::Counts, Mode::None, Mode::Full]);
        properties.insert(METRICS_DEFAULT.to_owned(), "truncate(7)".to_owned());
        properties.insert("write.metadata.metrics.column.a".to_owned(), "truncate(0)".to_owned());
        assert_eq!(modes(&properties), [Mode::Truncate(7), Mode::None, Mode::Truncate(7)]);
        assert_eq!(modes(&HashMap::new()), [DEFAULT_MODE; 3]);
    }

    proptest! {
        #[test]
        fn shortened_strings_still_bound(text in "\\PC{0,24}|[\u{D7FF}\u{10FFFF}a]{0,24}") {
            let bound = |upper| shorten(Datum::string(&text), 16, upper).map(|d| match d.literal() {
                iceberg::spec::PrimitiveLiteral::String(s) => s.clone(),
                other => panic!("{other:?}"),
            });
            prop_assert!(bound(false).unwrap() <= text);
            let upper = bound(true);
            prop_assert!(upper.as_ref().is_none_or(|upper| *upper >= text), "{:?} {:?}", upper, text);
            prop_assert!(upper.is_none_or(|upper| upper.chars().count() <= 16));
        }
    }
}
