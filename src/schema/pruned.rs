//! A schema cut down to some of its flat fields. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use iceberg::spec::{ListType, MapType, NestedField, NestedFieldRef, Schema, SchemaRef, StructType, Type};

use crate::error::{Classify, Kind, Result};

/// The schema with only those flat fields that are in `ids`, at any depth, and what they stand in: a struct without one, a list without its element
/// and a map without its key are gone. Fields are in the order of their ids, and optional, because who compares must not fail on a null.
pub fn pruned(schema: &Schema, ids: &BTreeSet<i32>) -> Result<SchemaRef> {
    let fields = pruned_fields(schema.as_struct().fields(), ids);
    Schema::builder().with_fields(fields).build().map(Arc::new).or_error(Kind::Internal, "build a part of the schema")
}

/// The ids of the flat fields in a field, at any depth.
pub fn leaf_ids(field: &NestedField) -> BTreeSet<i32> {
    match &*field.field_type {
        Type::Primitive(_) => BTreeSet::from([field.id]),
        Type::List(of) => leaf_ids(&of.element_field),
        Type::Map(of) => &leaf_ids(&of.key_field) | &leaf_ids(&of.value_field),
        Type::Struct(of) => of.fields().iter().flat_map(|field| leaf_ids(field)).collect(),
    }
}

fn pruned_fields(fields: &[NestedFieldRef], ids: &BTreeSet<i32>) -> Vec<NestedFieldRef> {
    let mut fields: Vec<NestedFieldRef> = fields.iter().filter_map(|field| pruned_field(field, ids, false)).collect();
    fields.sort_by_key(|field| field.id);
    fields
}

fn pruned_field(field: &NestedField, ids: &BTreeSet<i32>, required: bool) -> Option<NestedFieldRef> {
    let field_type = match &*field.field_type {
        Type::Primitive(primitive) => ids.contains(&field.id).then(|| Type::Primitive(primitive.clone())),
        Type::Struct(of) => {
            let fields = pruned_fields(of.fields(), ids);
            (!fields.is_empty()).then(|| Type::Struct(StructType::new(fields)))
        }
        Type::List(of) => {
            pruned_field(&of.element_field, ids, false).map(|element_field| Type::List(ListType { element_field }))
        }
        Type::Map(of) => pruned_field(&of.key_field, ids, true)
            .zip(pruned_field(&of.value_field, ids, false))
            .map(|(key_field, value_field)| Type::Map(MapType { key_field, value_field })),
    };
    Some(Arc::new(NestedField::new(field.id, &field.name, field_type?, required)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, iceberg_schema};

    #[test]
    fn what_is_left_are_the_flat_fields_and_what_they_stand_in() {
        let columns =
            [("a", "Int32"), ("b", "Tuple(c Int8, d Array(Tuple(e Int8, f String)))"), ("m", "Map(String, Int8)")];
        let columns = columns.map(|(name, kind)| Column::map(name, kind, None).unwrap());
        let schema = iceberg_schema(&columns).unwrap();
        let left = |names: &[&str]| -> Vec<String> {
            let ids = names.iter().map(|name| schema.field_id_by_name(name).unwrap()).collect();
            let left = pruned(&schema, &ids).unwrap();
            let known = ["a", "b", "b.c", "b.d", "b.d.element.e", "b.d.element.f", "m", "m.key"];
            known.iter().filter(|name| left.field_id_by_name(name).is_some()).map(|name| (*name).to_owned()).collect()
        };
        assert_eq!(left(&["a"]), ["a"]);
        assert_eq!(left(&["b.d.element.f"]), ["b", "b.d", "b.d.element.f"]);
        assert_eq!(left(&["m.key"]), [""; 0], "a map is compared as a whole");
        assert_eq!(left(&["m.value"]), [""; 0]);
        assert_eq!(left(&["m.key", "m.value"]), ["m", "m.key"]);
    }
}
