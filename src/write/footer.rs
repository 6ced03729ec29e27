//! Gives ClickHouse's Parquet footer the table's field ids.
//!
//! Readers of Iceberg find columns by id, which ClickHouse does not write (Altinity 2161). The schema is rebuilt from the table's: ids
//! and annotations are Iceberg's, repetition is the file's. Where physical types differ nothing is guessed.
//!
//! Bounds of UUIDs are left out. They are in the order of their bytes, as Parquet and Iceberg want them; ClickHouse takes them for bounds in its own,
//! which begins with the last eight, and then finds no row where there is one, or breaks off (its issues 118371, of files, and 118366, of manifests).
//! Iceberg 1.12 in Spark finds no row by a UUID in a file with such statistics (scripts/interop; its issue 14216 is about their order).

use std::sync::Arc;

use iceberg::spec::{NestedField, NestedFieldRef, PrimitiveType, Schema, Type};
use parquet::basic::{LogicalType, Type as Physical};
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader,
    ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::statistics::Statistics;
use parquet::schema::types::{SchemaDescriptor, Type as ParquetType, TypePtr};

use super::bloom::{self, Cut};
use crate::error::{Classify, Error, Kind, Result};
use crate::schema::parquet_leaf;

/// A footer with field ids.
#[derive(Debug)]
pub struct Rewritten {
    /// Its bytes, with length and magic.
    pub bytes: Vec<u8>,
    /// What they say.
    pub metadata: ParquetMetaData,
    /// What they no longer refer to.
    pub cut: Cut,
}

/// Rewrites a thrift footer (without length and magic) for `schema`, with the Bloom filters of these columns only; it begins at `start` in
/// the file.
pub fn rewrite(footer: &[u8], start: u64, schema: &Schema, bloom_filter: &[String]) -> Result<Rewritten> {
    let metadata =
        ParquetMetaDataReader::decode_metadata(footer).or_error(Kind::Unavailable, "decode the Parquet footer")?;
    let old = metadata.file_metadata();
    let root = ParquetType::group_type_builder(old.schema().name())
        .with_fields(annotate(old.schema().get_fields(), schema.as_struct().fields())?)
        .build()
        .or_error(Kind::Internal, "build the Parquet schema")?;
    let file = FileMetaData::new(
        old.version(),
        old.num_rows(),
        old.created_by().map(str::to_owned),
        old.key_value_metadata().cloned(),
        Arc::new(SchemaDescriptor::new(Arc::new(root))),
        None,
    );
    let (row_groups, cut) = bloom::keep_only(bloom_filter, metadata.row_groups(), start)?;
    let row_groups = row_groups.into_iter().map(|group| without_bounds_of_uuids(group, file.schema_descr()));
    let row_groups = row_groups.collect::<Result<_>>()?;
    let metadata = ParquetMetaDataBuilder::new(file).set_row_groups(row_groups).build();
    let mut bytes = Vec::with_capacity(footer.len() + 1024);
    ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().or_error(Kind::Internal, "encode the Parquet footer")?;
    Ok(Rewritten { bytes, metadata, cut })
}

fn without_bounds_of_uuids(group: RowGroupMetaData, schema: &SchemaDescriptor) -> Result<RowGroupMetaData> {
    let is_uuid = |index: usize| schema.column(index).logical_type_ref() == Some(&LogicalType::Uuid);
    let chunks = group.columns().iter().enumerate();
    let chunks = chunks.map(|(index, chunk)| if is_uuid(index) { without_bounds(chunk) } else { Ok(chunk.clone()) });
    let chunks = chunks.collect::<Result<_>>()?;
    group.into_builder().set_column_metadata(chunks).build().or_error(Kind::Internal, "rebuild a row group")
}

/// Without smallest and largest value, those of its pages too; how many are null stays.
fn without_bounds(chunk: &ColumnChunkMetaData) -> Result<ColumnChunkMetaData> {
    let nulls = chunk.statistics().and_then(Statistics::null_count_opt);
    chunk
        .clone()
        .into_builder()
        .set_statistics(Statistics::fixed_len_byte_array(None, None, None, nulls, false))
        .set_column_index_offset(None)
        .set_column_index_length(None)
        .build()
        .or_error(Kind::Internal, "rebuild a column chunk")
}

/// The fields of a file, or of a group in it, with the ids and annotations of the table's. The table may have more: readers find null there.
fn annotate(fields: &[TypePtr], wanted: &[NestedFieldRef]) -> Result<Vec<TypePtr>> {
    let is_there = |wanted: &NestedFieldRef| fields.iter().any(|field| field.name() == wanted.name);
    if let Some(missing) = wanted.iter().find(|wanted| wanted.required && !is_there(wanted)) {
        let message = format!("column `{}` is required in the table, and the file does not have it", missing.name);
        return Err(Error::new(Kind::Internal, message));
    }
    let pairs = fields.iter().map(|field| {
        let wanted = wanted.iter().find(|wanted| wanted.name == field.name());
        let wanted = wanted.ok_or_else(|| unfit(field.name(), "but is not in the table"))?;
        annotate_field(field, wanted)
    });
    pairs.collect()
}

fn annotate_field(field: &ParquetType, wanted: &NestedField) -> Result<TypePtr> {
    let name = field.name();
    match (&*wanted.field_type, field) {
        (Type::Primitive(primitive), ParquetType::PrimitiveType { .. }) => annotate_leaf(field, primitive, wanted.id),
        (Type::Struct(of), ParquetType::GroupType { fields, .. }) => {
            group(field, annotate(fields, of.fields())?, Some(wanted.id))
        }
        // The standard form: a group annotated as list or map, with one repeated group in it.
        (Type::List(of), ParquetType::GroupType { fields, .. }) => {
            let repeated = only(fields, name)?;
            let element = annotate_field(only(repeated.get_fields(), name)?, &of.element_field)?;
            group(field, vec![group(repeated, vec![element], None)?], Some(wanted.id))
        }
        (Type::Map(of), ParquetType::GroupType { fields, .. }) => {
            let repeated = only(fields, name)?;
            let [key, value] = repeated.get_fields() else { return Err(unfit(name, "map without key and value")) };
            let entries = vec![annotate_field(key, &of.key_field)?, annotate_field(value, &of.value_field)?];
            group(field, vec![group(repeated, entries, None)?], Some(wanted.id))
        }
        (wanted, ParquetType::PrimitiveType { physical_type, .. }) => {
            Err(unfit(name, &format!("{physical_type} for {wanted}")))
        }
        (wanted, ParquetType::GroupType { .. }) => Err(unfit(name, &format!("group for {wanted}"))),
    }
}

fn unfit(name: &str, what: &str) -> Error {
    Error::refused(format!("column `{name}` came from ClickHouse as Parquet {what}"))
}

fn only<'a>(fields: &'a [TypePtr], name: &str) -> Result<&'a ParquetType> {
    match fields {
        [field] => Ok(field),
        _ => Err(unfit(name, "list or map in another form than the standard's")),
    }
}

/// A group like `old` with other fields.
fn group(old: &ParquetType, fields: Vec<TypePtr>, id: Option<i32>) -> Result<TypePtr> {
    let info = old.get_basic_info();
    let mut builder = ParquetType::group_type_builder(old.name())
        .with_logical_type(info.logical_type_ref().cloned())
        .with_converted_type(info.converted_type())
        .with_fields(fields)
        .with_id(id);
    if info.has_repetition() {
        builder = builder.with_repetition(info.repetition());
    }
    builder.build().map(Arc::new).or_error(Kind::Internal, format!("annotate column `{}`", old.name()))
}

fn annotate_leaf(field: &ParquetType, primitive: &PrimitiveType, id: i32) -> Result<TypePtr> {
    let name = field.name();
    let ParquetType::PrimitiveType { basic_info, physical_type, type_length, .. } = field else {
        return Err(unfit(name, "group"));
    };
    let (physical, annotation) =
        parquet_leaf(primitive).ok_or_else(|| unfit(name, &format!("{physical_type} for {primitive}")))?;
    if *physical_type != physical {
        return Err(unfit(name, &format!("{physical_type}, but {primitive} is {physical}"))
            .hint("the server is too old or has unusual Parquet settings; ClickHouse 24.3 or newer is needed"));
    }
    let (precision, scale) = match primitive {
        PrimitiveType::Decimal { precision, scale } => (*precision, *scale),
        _ => (0, 0),
    };
    let as_i32 = |n: u32| i32::try_from(n).or_error(Kind::Internal, "convert a decimal");
    ParquetType::primitive_type_builder(name, physical)
        .with_repetition(basic_info.repetition())
        .with_logical_type(annotation)
        .with_length(if physical == Physical::FIXED_LEN_BYTE_ARRAY { *type_length } else { -1 })
        .with_precision(if precision == 0 { -1 } else { as_i32(precision)? })
        .with_scale(if precision == 0 { -1 } else { as_i32(scale)? })
        .with_id(Some(id))
        .build()
        .map(Arc::new)
        .or_error(Kind::Internal, format!("annotate column `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, iceberg_schema};
    use crate::write::footer_length;
    use parquet::basic::Repetition;
    use parquet::data_type::{FixedLenByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::reader::FileReader;
    use parquet::file::serialized_reader::SerializedFileReader;
    use parquet::file::writer::SerializedFileWriter;

    /// A file as ClickHouse would send it: no ids, a decimal as a bare INT64, nullable columns optional.
    fn own_file() -> Vec<u8> {
        let leaf = |name: &str, repetition| {
            Arc::new(
                ParquetType::primitive_type_builder(name, Physical::INT64).with_repetition(repetition).build().unwrap(),
            )
        };
        let root = ParquetType::group_type_builder("schema")
            .with_fields(vec![leaf("n", Repetition::REQUIRED), leaf("price", Repetition::OPTIONAL)])
            .build()
            .unwrap();
        let mut bytes = Vec::new();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(root), properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[-150, 250], Some(&[1, 0, 1]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    fn split(file: &[u8]) -> (&[u8], &[u8]) {
        let start = file.len() - 8 - footer_length(file).unwrap();
        (&file[..start], &file[start..file.len() - 8])
    }

    fn schema() -> Schema {
        iceberg_schema(&[
            Column::map("n", "Int64", None).unwrap(),
            Column::map("price", "Nullable(Decimal(18, 2))", None).unwrap(),
        ])
        .unwrap()
    }

    #[test]
    fn ids_and_annotations_are_the_tables_and_pages_stay_readable() {
        let file = own_file();
        let (pages, footer) = split(&file);
        let rewritten = rewrite(footer, 0, &schema(), &[]).unwrap();
        let whole = [pages, &rewritten.bytes].concat();
        let reader = SerializedFileReader::new(bytes::Bytes::from(whole)).unwrap();
        let leaves = reader.metadata().file_metadata().schema_descr();
        let ids: Vec<i32> = leaves.columns().iter().map(|c| c.self_type().get_basic_info().id()).collect();
        assert_eq!(ids, [1, 2]);
        assert_eq!(leaves.column(1).logical_type_ref(), Some(&LogicalType::Decimal { scale: 2, precision: 18 }));
        let rows: Vec<String> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect();
        assert_eq!(rows, ["{n: 1, price: -1.50}", "{n: 2, price: null}", "{n: 3, price: 2.50}"]);
    }

    #[test]
    fn uuids_have_no_bounds() {
        let leaf = |name: &str| {
            ParquetType::primitive_type_builder(name, Physical::FIXED_LEN_BYTE_ARRAY)
                .with_length(16)
                .with_repetition(Repetition::OPTIONAL)
                .build()
                .map(Arc::new)
                .unwrap()
        };
        let root =
            ParquetType::group_type_builder("schema").with_fields(vec![leaf("id"), leaf("bytes")]).build().unwrap();
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(root), Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            let values = [vec![1; 16].into(), vec![2; 16].into()];
            column.typed::<FixedLenByteArrayType>().write_batch(&values, Some(&[1, 0, 1]), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();

        let schema = iceberg_schema(&[
            Column::map("id", "Nullable(UUID)", None).unwrap(),
            Column::map("bytes", "Nullable(FixedString(16))", None).unwrap(),
        ]);
        let rewritten = rewrite(split(&bytes).1, 0, &schema.unwrap(), &[]).unwrap();
        let said = |index: usize| {
            let chunk = rewritten.metadata.row_group(0).column(index);
            let statistics = chunk.statistics().unwrap();
            let has_bounds = statistics.min_bytes_opt().is_some() || statistics.max_bytes_opt().is_some();
            (has_bounds, chunk.column_index_offset().is_some(), statistics.null_count_opt())
        };
        assert_eq!([said(0), said(1)], [(false, false, Some(1)), (true, true, Some(1))]);
    }

    #[test]
    fn another_physical_type_or_column_is_refused() {
        let file = own_file();
        let (_, footer) = split(&file);
        let schema_of = |columns: &[(&str, &str)]| {
            iceberg_schema(&columns.iter().map(|(n, t)| Column::map(n, t, None).unwrap()).collect::<Vec<_>>()).unwrap()
        };
        for columns in
            [&[("n", "Int32"), ("price", "Int64")][..], &[("n", "Int64"), ("cost", "Int64")], &[("n", "Int64")]]
        {
            assert!(rewrite(footer, 0, &schema_of(columns), &[]).is_err(), "{columns:?}");
        }
        assert_eq!(rewrite(b"junk", 0, &schema(), &[]).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn the_table_may_have_columns_that_a_file_has_not_unless_they_are_required() {
        let file = own_file();
        let (_, footer) = split(&file);
        let wider = iceberg_schema(&[
            Column::map("new", "Int64", None).unwrap(),
            Column::map("price", "Nullable(Decimal(18, 2))", None).unwrap(),
            Column::map("n", "Int64", None).unwrap(),
        ]);
        let wider = wider.unwrap();
        let rewritten = rewrite(footer, 0, &wider, &[]).unwrap();
        let leaves = rewritten.metadata.file_metadata().schema_descr();
        let ids: Vec<i32> = leaves.columns().iter().map(|c| c.self_type().get_basic_info().id()).collect();
        assert_eq!(ids, [3, 2]);
        let required = wider
            .as_struct()
            .fields()
            .iter()
            .map(|field| Arc::new(NestedField { required: field.name == "new", ..field.as_ref().clone() }));
        let required = Schema::builder().with_fields(required).build().unwrap();
        assert!(rewrite(footer, 0, &required, &[]).unwrap_err().to_string().contains("`new`"));
    }

    #[test]
    fn a_cut_file_is_noticed() {
        let file = own_file();
        for length in [0, 3, 7, file.len() - 1] {
            assert!(footer_length(&file[..length]).is_err());
        }
    }
}
