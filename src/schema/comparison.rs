//! The walk over a source's shapes and a target's fields, side by side: which rule holds where, and what each difference means. Pure.

use std::ops::RangeInclusive;
use std::sync::Arc;

use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, SchemaRef, StructType, TableMetadata, Type,
};

use super::leaf::widened;
use super::{Column, Shape};

/// What may happen to a part of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The target follows.
    Follow,
    /// The target stays; what is new is left out.
    Keep,
    /// No difference at all, as in the keys of maps: readers find entries by them.
    Same,
}

/// A column or a field of a struct, as the source has it; without a shape it is not read.
pub(super) type Part<'a> = (&'a str, Option<&'a Shape>);

/// What a comparison has found so far, and the ids that it may still give.
pub(super) struct Comparison {
    /// Ids that the table has never used.
    ids: RangeInclusive<i32>,
    /// Columns of the key: a null in them is refused where it is read.
    keys: Vec<String>,
    /// Fields that the table is partitioned by.
    partition_sources: Vec<i32>,
    pub(super) changes: Vec<String>,
    pub(super) differences: Vec<String>,
    pub(super) renames: Vec<String>,
    pub(super) refused: Vec<String>,
}

impl Comparison {
    pub(super) fn new(columns: &[Column], target: &TableMetadata) -> Self {
        Comparison {
            ids: target.last_column_id().saturating_add(1)..=i32::MAX,
            keys: columns.iter().filter(|column| column.required).map(|column| column.name.clone()).collect(),
            partition_sources: target.default_partition_spec().fields().iter().map(|field| field.source_id).collect(),
            changes: Vec::new(),
            differences: Vec::new(),
            renames: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Compares columns, or the fields of a struct; returns what is read of each, and the target's fields.
    pub(super) fn fields(
        &mut self,
        rule: Rule,
        path: &str,
        source: &[Part<'_>],
        target: &[NestedFieldRef],
    ) -> (Vec<Option<Shape>>, Vec<NestedFieldRef>) {
        let mut shapes = vec![None; source.len()];
        let mut fields = Vec::with_capacity(target.len());
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for field in target {
            let own = shapes.iter_mut().zip(source).find(|(_, (name, _))| *name == field.name);
            match own.and_then(|(slot, (_, shape))| Some((slot, (*shape)?))) {
                Some((slot, shape)) => {
                    let (shape, field) = self.field(rule, &format!("{path}{}", field.name), shape, field);
                    *slot = Some(shape);
                    fields.push(field);
                }
                None => {
                    self.gone(rule, path, field);
                    gone.push(field.name.as_str());
                    fields.push(field.clone());
                }
            }
        }
        for ((name, shape), slot) in source.iter().zip(&mut shapes) {
            let Some(shape) = shape.filter(|_| !target.iter().any(|field| field.name == *name)) else { continue };
            if let Some(field) = self.added(rule, path, name, shape, target) {
                fields.push(field);
                *slot = Some(shape.clone());
            }
            new.push(*name);
        }
        if !gone.is_empty() && !new.is_empty() {
            self.renames.push(format!(
                "`{path}{}` went and `{path}{}` came: a rename looks like this; old rows keep their values under the old name, \
                 unless the column is renamed in the target before the next rows",
                gone.join("`, `"),
                new.join("`, `"),
            ));
        }
        if rule == Rule::Keep && shapes.iter().all(Option::is_none) {
            let of = path.strip_suffix('.').map_or("the source".to_owned(), |path| format!("`{path}`"));
            self.refused.push(format!("{of} has no column that the target has"));
        }
        (shapes, fields)
    }

    /// A field of the target that the source has no more.
    fn gone(&mut self, rule: Rule, path: &str, field: &NestedField) {
        let name = format!("`{path}{}`", field.name);
        if field.required {
            self.refused.push(format!("column {name} is required in the target and is not in the source"));
        } else if self.partition_sources.contains(&field.id) {
            self.refused.push(format!("the target is partitioned by {name}, which is not in the source"));
        } else if rule == Rule::Same {
            self.refused.push(format!("column {name}, part of a map's key, is not in the source"));
        } else {
            self.differences
                .push(format!("column {name} of the target is not in the source; new rows have null there"));
        }
    }

    /// The field that a column or field becomes which the target has not; `None` where it is left out.
    fn added(
        &mut self,
        rule: Rule,
        path: &str,
        name: &str,
        shape: &Shape,
        target: &[NestedFieldRef],
    ) -> Option<NestedFieldRef> {
        let full = format!("`{path}{name}`");
        let twin = target.iter().find(|field| field.name.to_lowercase() == name.to_lowercase());
        match (rule, twin) {
            (Rule::Keep, _) => {
                self.differences.push(format!(
                    "column {full} of the source is not in the target and is left out, because schema_evolution is \"frozen\""
                ));
                return None;
            }
            (Rule::Same, _) => {
                self.refused.push(format!("column {full}, part of a map's key, is not in the target"));
                return None;
            }
            (Rule::Follow, Some(twin)) => {
                self.refused.push(format!(
                    "column {full} of the source and `{path}{}` of the target differ by case only, which many readers fold",
                    twin.name
                ));
                return None;
            }
            (Rule::Follow, None) => {}
        }
        let id = self.ids.next().unwrap_or(i32::MAX);
        let field_type = shape.iceberg(&mut self.ids);
        self.changes.push(format!("column {full} is added as {}", told(&field_type)));
        Some(Arc::new(NestedField::optional(id, name, field_type)))
    }

    /// A field that both have.
    fn field(&mut self, rule: Rule, path: &str, shape: &Shape, field: &NestedField) -> (Shape, NestedFieldRef) {
        if field.required && shape.nullable() && !self.keys.iter().any(|key| key == path) {
            self.refused.push(format!("column `{path}` can be null in the source and is required in the target"));
        }
        let (shape, field_type) = self.kind(rule, path, shape, &field.field_type);
        (shape, Arc::new(NestedField { field_type: Box::new(field_type), ..field.clone() }))
    }

    /// The types of a field that both have.
    fn kind(&mut self, rule: Rule, path: &str, shape: &Shape, target: &Type) -> (Shape, Type) {
        match (shape, target) {
            (Shape::Leaf(leaf), Type::Primitive(held)) => {
                // What `types` asks for is no change of the source, so it must agree.
                let may_differ = !leaf.overridden;
                if let Some(wide) = widened(leaf, held).filter(|_| may_differ || leaf.iceberg == *held) {
                    return (Shape::Leaf(wide), target.clone());
                }
                if is_wider(held, &leaf.iceberg) && rule == Rule::Follow && may_differ {
                    self.changes.push(format!(
                        "column `{path}` becomes {} (it is {held}, and {} in the source)",
                        leaf.iceberg, leaf.source
                    ));
                    return (shape.clone(), Type::Primitive(leaf.iceberg.clone()));
                }
                self.refused.push(self.mismatch(rule, path, shape, target));
            }
            (Shape::List(of), Type::List(list)) => {
                let (of, element_field) = self.field(rule, &format!("{path}.element"), of, &list.element_field);
                return (Shape::List(Box::new(of)), Type::List(ListType { element_field }));
            }
            (Shape::Map(key, value), Type::Map(map)) => {
                let (key, key_field) = self.field(Rule::Same, &format!("{path}.key"), key, &map.key_field);
                let (value, value_field) = self.field(rule, &format!("{path}.value"), value, &map.value_field);
                return (Shape::Map(Box::new(key), Box::new(value)), Type::Map(MapType { key_field, value_field }));
            }
            (Shape::Struct(source), Type::Struct(target)) => {
                let parts: Vec<Part<'_>> = source.iter().map(|(name, shape)| (name.as_str(), shape.as_ref())).collect();
                let (shapes, fields) = self.fields(rule, &format!("{path}."), &parts, target.fields());
                let source = source.iter().map(|(name, _)| name.clone()).zip(shapes).collect();
                return (Shape::Struct(source), Type::Struct(StructType::new(fields)));
            }
            _ => self.refused.push(self.mismatch(rule, path, shape, target)),
        }
        (shape.clone(), target.clone())
    }

    fn mismatch(&self, rule: Rule, path: &str, shape: &Shape, target: &Type) -> String {
        let wanted = shape.iceberg(&mut (1..));
        let widens = match (&wanted, target) {
            (Type::Primitive(wanted), Type::Primitive(held)) => is_wider(held, wanted),
            _ => false,
        };
        let why = match (shape, rule) {
            (Shape::Leaf(leaf), _) if leaf.overridden => "; types must ask for that",
            (_, Rule::Keep) if widens => ", which schema_evolution = \"frozen\" does not widen",
            (_, Rule::Same) if widens => ", the key of a map, which never changes",
            _ => "",
        };
        let own = match shape {
            Shape::Leaf(leaf) => &leaf.source,
            Shape::List(_) => "Array",
            Shape::Map(..) => "Map",
            Shape::Struct(_) => "Tuple",
        };
        let (wanted, held) = (told(&wanted), told(target));
        format!("column `{path}` is {own} in the source, which becomes {wanted}, but {held} in the target{why}")
    }

    /// The new schema, tried on the target, because iceberg knows more rules, such as names that partitions have.
    pub(super) fn schema(&mut self, fields: Vec<NestedFieldRef>, target: &TableMetadata) -> Option<SchemaRef> {
        let schema = Schema::builder()
            .with_fields(fields)
            .with_identifier_field_ids(target.current_schema().identifier_field_ids())
            .build();
        let tried = schema.and_then(|schema| {
            target.clone().into_builder(None).add_current_schema(schema.clone())?.build()?;
            Ok(Arc::new(schema))
        });
        tried.map_err(|error| self.refused.push(format!("the target cannot follow the source: {error}"))).ok()
    }
}

/// Whether Iceberg lets a field of type `held` become `wanted`.
pub(super) fn is_wider(held: &PrimitiveType, wanted: &PrimitiveType) -> bool {
    use PrimitiveType as I;
    match (held, wanted) {
        (I::Int, I::Long) | (I::Float, I::Double) => true,
        (I::Decimal { precision: held, scale }, I::Decimal { precision, scale: same }) => {
            held < precision && scale == same
        }
        _ => false,
    }
}

/// A type without ids.
pub(super) fn told(kind: &Type) -> String {
    match kind {
        Type::Primitive(primitive) => primitive.to_string(),
        Type::List(list) => format!("list<{}>", told(&list.element_field.field_type)),
        Type::Map(map) => format!("map<{}, {}>", told(&map.key_field.field_type), told(&map.value_field.field_type)),
        Type::Struct(of) => {
            let fields = of.fields().iter().map(|field| format!("{}: {}", field.name, told(&field.field_type)));
            format!("struct<{}>", fields.collect::<Vec<_>>().join(", "))
        }
    }
}
