//! How a target follows a source whose columns change: what is added, widened, left out, or refused. Pure.
//!
//! Only what the Iceberg specification allows ("Schema Evolution"): fields keep their ids, new ones get ids that were never used and are
//! optional, types become wider. So old files stay readable, and old snapshots keep their own schema. A map's key never changes.

use std::ops::RangeInclusive;
use std::sync::Arc;

use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, SchemaRef, StructType, TableMetadata, Type,
};

use super::leaf::widened;
use super::{Column, Shape};
use crate::error::{Error, Result};

/// What may become of a target's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaEvolution {
    /// New columns are added, types are widened.
    AddColumns,
    /// It stays as it is; what is new in the source is left out.
    Frozen,
}

/// How a source and its target fit together.
#[derive(Debug, Clone)]
pub struct Evolution {
    /// What is read: the columns that the target has or will have, as its types hold them.
    pub columns: Vec<Column>,
    /// The schema that the target needs for that, where it is another one than now.
    pub schema: Option<SchemaRef>,
    /// How that schema differs, a sentence each.
    pub changes: Vec<String>,
    /// What stays different: read as null, or left out.
    pub differences: Vec<String>,
    /// What may be a rename.
    pub renames: Vec<String>,
    /// Why nothing can be offloaded.
    pub refused: Vec<String>,
}

/// Compares the columns of a source with a target.
pub fn evolve(columns: &[Column], target: &TableMetadata, mode: SchemaEvolution) -> Evolution {
    let schema = target.current_schema();
    let mut comparison = Comparison {
        ids: target.last_column_id().saturating_add(1)..=i32::MAX,
        keys: columns.iter().filter(|column| column.required).map(|column| column.name.clone()).collect(),
        partition_sources: target.default_partition_spec().fields().iter().map(|field| field.source_id).collect(),
        changes: Vec::new(),
        differences: Vec::new(),
        renames: Vec::new(),
        refused: Vec::new(),
    };
    let rule = match mode {
        SchemaEvolution::AddColumns => Rule::Follow,
        SchemaEvolution::Frozen => Rule::Keep,
    };
    let fields: Vec<Part<'_>> = columns.iter().map(|column| (column.name.as_str(), Some(&column.shape))).collect();
    let (shapes, fields) = comparison.fields(rule, "", &fields, schema.as_struct().fields());
    let read =
        columns.iter().zip(shapes).filter_map(|(column, shape)| Some(Column { shape: shape?, ..column.clone() }));
    let columns = read.collect();
    let changed = !comparison.changes.is_empty() && comparison.refused.is_empty();
    let schema = if changed { comparison.schema(fields, target) } else { None };
    let Comparison { changes, differences, renames, refused, .. } = comparison;
    Evolution { columns, schema, changes, differences, renames, refused }
}

impl Evolution {
    /// Refuses what does not fit.
    pub fn check(&self) -> Result<()> {
        if self.refused.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!("source and target differ: {}", self.refused.join("; "))).hint(
            "`k2-offload init-tables` prints all differences; convert the column in the source or in a view, or offload into a new target",
        ))
    }

    /// All of it, for people.
    pub fn sentences(&self) -> Vec<String> {
        let changes = self.changes.iter().map(|change| format!("with the next rows, {change}"));
        let refused = self.refused.iter().map(|refused| format!("refused: {refused}"));
        refused.chain(changes).chain(self.differences.iter().chain(&self.renames).cloned()).collect()
    }
}

/// Entries for `types` of the configuration, with which columns would become what a target holds.
pub fn fitting_types(columns: &[Column], target: &Schema) -> Vec<String> {
    let fitting = columns.iter().filter_map(|column| {
        let field = target.as_struct().fields().iter().find(|field| field.name == column.name)?;
        let Type::Primitive(held) = &*field.field_type else { return None };
        let wanted = held.to_string();
        let asked = Column::map(&column.name, &column.source_type, Some(&wanted)).ok()?;
        let fits = |column: &Column| column.primitive() == Some(held);
        (fits(&asked) && !fits(column)).then(|| format!("{} = \"{wanted}\"", column.name))
    });
    fitting.collect()
}

/// What may happen to a part of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The target follows.
    Follow,
    /// The target stays; what is new is left out.
    Keep,
    /// No difference at all, as in the keys of maps: readers find entries by them.
    Same,
}

/// A column or a field of a struct, as the source has it; without a shape it is not read.
type Part<'a> = (&'a str, Option<&'a Shape>);

struct Comparison {
    /// Ids that the table has never used.
    ids: RangeInclusive<i32>,
    /// Columns of the key: a null in them is refused where it is read.
    keys: Vec<String>,
    /// Fields that the table is partitioned by.
    partition_sources: Vec<i32>,
    changes: Vec<String>,
    differences: Vec<String>,
    renames: Vec<String>,
    refused: Vec<String>,
}

impl Comparison {
    /// Compares columns, or the fields of a struct; returns what is read of each, and the target's fields.
    fn fields(
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
    fn schema(&mut self, fields: Vec<NestedFieldRef>, target: &TableMetadata) -> Option<SchemaRef> {
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
fn is_wider(held: &PrimitiveType, wanted: &PrimitiveType) -> bool {
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
fn told(kind: &Type) -> String {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use iceberg::TableCreation;
    use iceberg::spec::{Transform, UnboundPartitionSpec};
    use proptest::prelude::*;

    use super::*;
    use crate::schema::{Projection, iceberg_schema};

    fn columns(list: &[(&str, &str)]) -> Vec<Column> {
        list.iter().map(|(name, kind)| Column::map(name, kind, None).unwrap()).collect()
    }

    fn table(schema: Schema, partition_by: &[&str]) -> TableMetadata {
        let sources = partition_by.iter().map(|name| (schema.field_id_by_name(name).unwrap(), format!("{name}_part")));
        let fields = sources.map(|(id, name)| iceberg::spec::UnboundPartitionField {
            source_id: id,
            field_id: None,
            name,
            transform: Transform::Identity,
        });
        let spec = UnboundPartitionSpec::builder().add_partition_fields(fields.collect::<Vec<_>>()).unwrap().build();
        let creation = TableCreation::builder()
            .name("t".to_owned())
            .location("file:///t".to_owned())
            .schema(schema)
            .partition_spec(spec)
            .properties(HashMap::new())
            .build();
        let builder = iceberg::spec::TableMetadataBuilder::from_table_creation(creation).unwrap();
        builder.build().unwrap().metadata
    }

    fn target(list: &[(&str, &str)]) -> TableMetadata {
        table(iceberg_schema(&columns(list)).unwrap(), &[])
    }

    fn followed(target: &TableMetadata, schema: &SchemaRef) -> TableMetadata {
        let builder = target.clone().into_builder(None).add_current_schema(schema.as_ref().clone()).unwrap();
        builder.build().unwrap().metadata
    }

    fn follow(source: &[(&str, &str)], target: &TableMetadata) -> Evolution {
        evolve(&columns(source), target, SchemaEvolution::AddColumns)
    }

    /// What is read of a column, without spaces.
    fn told_fields(schema: &Schema) -> Vec<String> {
        schema.as_struct().fields().iter().map(|field| format!("{} {}", field.name, told(&field.field_type))).collect()
    }

    #[test]
    fn the_same_columns_change_nothing() {
        let target = target(&[("a", "Int32"), ("b", "String"), ("n", "Array(Tuple(x Int8, m Map(String, UInt32)))")]);
        let source = [
            ("b", "LowCardinality(String)"),
            ("n", "Nested(x UInt16, m Map(String, Nullable(Int64)))"),
            ("a", "UInt16"),
        ];
        let evolution = follow(&source, &target);
        assert_eq!((evolution.schema.clone(), evolution.sentences()), (None, Vec::new()));
        assert_eq!(evolution.columns, columns(&source), "in the order of the source");
        evolution.check().unwrap();
    }

    #[test]
    fn new_columns_come_last_optional_and_with_ids_of_their_own() {
        let old = target(&[
            ("a", "Int32"),
            ("s", "Tuple(x Int8)"),
            ("l", "Array(Tuple(y Int8))"),
            ("m", "Map(String, Tuple(z Date))"),
        ]);
        let source = [
            ("new", "Array(Tuple(p Int8, q String))"),
            ("a", "Int32"),
            ("s", "Tuple(w UUID, x Int8)"),
            ("l", "Array(Tuple(y Int8, k Map(String, Bool)))"),
            ("m", "Map(String, Tuple(z Date, zz Date))"),
        ];
        let evolution = follow(&source, &old);
        let schema = evolution.schema.clone().unwrap();
        assert_eq!(
            told_fields(&schema),
            [
                "a int",
                "s struct<x: int, w: uuid>",
                "l list<struct<y: int, k: map<string, boolean>>>",
                "m map<string, struct<z: date, zz: date>>",
                "new list<struct<p: int, q: string>>"
            ]
        );
        assert_eq!(evolution.changes.len(), 4, "{:?}", evolution.changes);
        assert!(evolution.changes.iter().any(|change| change.contains("`l.element.k`")), "{:?}", evolution.changes);
        assert!(schema.highest_field_id() > old.last_column_id());
        assert!(is_legal(old.current_schema().as_struct(), schema.as_struct(), old.last_column_id(), false));
        assert_eq!(evolution.columns, columns(&source));
    }

    #[test]
    fn types_grow_on_either_side() {
        let list = [("i", "Int32"), ("f", "Nullable(Float32)"), ("d", "Decimal(9, 2)"), ("e", "Array(Decimal(18, 4))")];
        let wider =
            [("i", "UInt32"), ("f", "Nullable(Float64)"), ("d", "Decimal(18, 2)"), ("e", "Array(Decimal(38, 4))")];
        let evolution = follow(&wider, &target(&list));
        let fields = ["i long", "f double", "d decimal(18, 2)", "e list<decimal(38, 4)>"];
        assert_eq!(told_fields(evolution.schema.as_ref().unwrap()), fields);
        assert_eq!((evolution.columns, evolution.changes.len()), (columns(&wider), 4));

        let evolution = follow(&list, &target(&wider));
        assert_eq!((evolution.schema, evolution.refused.len()), (None, 0));
        let projections = evolution.columns.iter().map(|column| match &column.shape {
            Shape::List(of) => of.as_ref().clone(),
            other => other.clone(),
        });
        let projections: Vec<Projection> = projections
            .map(|shape| match shape {
                Shape::Leaf(leaf) => leaf.projection,
                other => panic!("{other:?}"),
            })
            .collect();
        let cast = |to: &str| Projection::Cast(to.to_owned());
        assert_eq!(projections, [cast("Int64"), cast("Float64"), Projection::Unscaled32AsLong, cast("Decimal(38, 4)")]);
    }

    #[test]
    fn other_types_are_refused_by_name() {
        let list = [("c", "Tuple(a Int64, l Array(Decimal(18, 4)), m Map(Int32, String), t DateTime)")];
        for (kind, name) in [
            ("String", "`c`"),
            ("Tuple(a Float64, l Array(Decimal(18, 4)), m Map(Int32, String), t DateTime)", "`c.a`"),
            ("Tuple(a Int64, l Array(Decimal(18, 5)), m Map(Int32, String), t DateTime)", "`c.l.element`"),
            ("Tuple(a Int64, l Array(Decimal(9, 2)), m Map(Int32, String), t DateTime)", "`c.l.element`"),
            ("Tuple(a Int64, l Array(Decimal(18, 4)), m Map(Int64, String), t DateTime)", "`c.m.key`"),
            ("Tuple(a Int64, l Array(Decimal(18, 4)), m Map(Int32, String), t Date)", "`c.t`"),
            ("Tuple(a Int64, l Decimal(18, 4), m Map(Int32, String), t DateTime)", "`c.l`"),
        ] {
            let evolution = follow(&[("c", kind), ("new", "Int8")], &target(&list));
            assert_eq!((evolution.refused.len(), &evolution.schema), (1, &None), "{kind}: {:?}", evolution.refused);
            let error = evolution.check().unwrap_err();
            assert!(error.to_string().contains(name) && !error.hint_text().is_empty(), "{error}");
        }
    }

    #[test]
    fn keys_of_maps_stay_as_they_are() {
        let kinds = |key: &str| target(&[("m", &format!("Map({key}, Int8)"))]);
        let old = kinds("Tuple(a Int8, b Int64)");
        for kind in ["Tuple(a Int8)", "Tuple(a Int8, b Int64, c Int8)", "Tuple(a Int64, b Int64)"] {
            let evolution = follow(&[("m", &format!("Map({kind}, Int8)"))], &old);
            assert_eq!(evolution.refused.len(), 1, "{kind}: {:?}", evolution.refused);
        }
        assert!(follow(&[("m", "Map(Tuple(b Int32, a Int8), Int8)")], &old).refused.is_empty(), "cast without loss");
    }

    #[test]
    fn what_is_gone_reads_as_null_and_may_be_a_rename() {
        let old = target(&[("a", "Int32"), ("fee", "Int64"), ("s", "Tuple(x Int8, y Int8)")]);
        let gone = follow(&[("a", "Int32"), ("s", "Tuple(x Int8)")], &old);
        assert_eq!((gone.differences.len(), &gone.schema, gone.renames.len(), gone.refused.len()), (2, &None, 0, 0));
        assert!(gone.sentences().iter().any(|sentence| sentence.contains("`s.y`")), "{:?}", gone.sentences());
        let renamed = follow(&[("a", "Int32"), ("cost", "Int64"), ("s", "Tuple(x Int8, z Int8)")], &old);
        assert_eq!((renamed.differences.len(), renamed.changes.len(), renamed.renames.len()), (2, 2, 2));
        assert!(renamed.renames[1].contains("`fee` went and `cost` came"), "{:?}", renamed.renames);
        assert_eq!(renamed.differences, gone.differences, "what was told once is not told again");
        assert_eq!(told_fields(&renamed.schema.unwrap())[1], "fee long", "no column leaves the target");
    }

    #[test]
    fn required_columns_and_those_of_partitions_cannot_go() {
        let optional = iceberg_schema(&columns(&[("id", "Int64"), ("day", "Date"), ("n", "Int8")])).unwrap();
        let fields = optional
            .as_struct()
            .fields()
            .iter()
            .map(|field| Arc::new(NestedField { required: field.name == "id", ..field.as_ref().clone() }));
        let schema = Schema::builder().with_fields(fields).with_identifier_field_ids([1]).build().unwrap();
        let old = table(schema, &["day"]);
        let refused = |source: &[(&str, &str)]| follow(source, &old).refused.join("; ");
        assert!(refused(&[("day", "Date"), ("n", "Int8")]).contains("`id` is required"));
        assert!(refused(&[("id", "Nullable(Int64)"), ("day", "Date"), ("n", "Int8")]).contains("`id` can be null"));
        assert!(refused(&[("id", "Int64"), ("n", "Int8")]).contains("partitioned by `day`"));
        let taken = refused(&[("id", "Int64"), ("day", "Date"), ("n", "Int8"), ("day_part", "Int8")]);
        assert!(taken.contains("day_part"), "a name that a partition has: {taken}");
        let kept = follow(&[("id", "Int32"), ("day", "Date"), ("new", "Int8")], &old);
        let schema = kept.schema.unwrap();
        assert_eq!(schema.identifier_field_ids().collect::<Vec<_>>(), [1]);
        assert!(schema.field_by_id(1).unwrap().required && !schema.field_by_name("new").unwrap().required);
    }

    #[test]
    fn names_that_differ_by_case_are_refused() {
        let old = target(&[("Venue", "String"), ("s", "Tuple(A Int8)")]);
        let evolution = follow(&[("venue", "String"), ("s", "Tuple(a Int8)")], &old);
        assert_eq!(evolution.refused.len(), 2, "{:?}", evolution.refused);
    }

    #[test]
    fn an_override_must_agree_with_a_column_that_is_there() {
        let column = |wanted| [Column::map("n", "UInt128", Some(wanted)).unwrap()];
        let old = table(iceberg_schema(&column("decimal(38,0)")).unwrap(), &[]);
        assert!(evolve(&column("decimal(38,0)"), &old, SchemaEvolution::AddColumns).refused.is_empty());
        let other = evolve(&column("string"), &old, SchemaEvolution::AddColumns);
        assert_eq!(other.refused.len(), 1, "{:?}", other.refused);
        let narrow = [Column::map("n", "UInt64", Some("decimal(20,0)")).unwrap()];
        for (columns, target) in
            [(&narrow[..], &old), (&column("decimal(38,0)"), &table(iceberg_schema(&narrow).unwrap(), &[]))]
        {
            let evolution = evolve(columns, target, SchemaEvolution::AddColumns);
            assert!(
                evolution.refused[0].contains("`n`") && evolution.refused[0].contains("types"),
                "{:?}",
                evolution.refused
            );
            assert_eq!(evolution.schema, None);
        }
    }

    #[test]
    fn a_frozen_target_leaves_out_what_is_new() {
        let old = target(&[("a", "Int64"), ("s", "Array(Tuple(x Int8, y Int8))")]);
        let frozen = |source: &[(&str, &str)]| evolve(&columns(source), &old, SchemaEvolution::Frozen);
        let evolution = frozen(&[("new", "String"), ("a", "Int8"), ("s", "Array(Tuple(w Int8, y Int8))")]);
        evolution.check().unwrap();
        assert_eq!((&evolution.schema, evolution.changes.len(), evolution.differences.len()), (&None, 0, 3));
        let names: Vec<&str> = evolution.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["a", "s"]);
        assert_eq!(told(&evolution.columns[1].shape.iceberg(&mut (1..))), "list<struct<y: int>>");
        let old = target(&[("a", "Int32")]);
        let wider = evolve(&columns(&[("a", "Int64")]), &old, SchemaEvolution::Frozen);
        assert!(wider.refused[0].contains("frozen"), "{:?}", wider.refused);
        assert!(!frozen(&[("b", "Int8")]).refused.is_empty(), "nothing is left to read");
    }

    /// Whether every reader of `old` understands `new`: the same ids and names, types the same or wider, the rest new and optional.
    fn is_legal(old: &StructType, new: &StructType, used: i32, is_key: bool) -> bool {
        let kept = old.fields().iter().zip(new.fields()).all(|(old, new)| is_legal_field(old, new, used, is_key));
        let added = new.fields().iter().skip(old.fields().len()).all(|new| new.id > used && !new.required && !is_key);
        kept && added && new.fields().len() >= old.fields().len()
    }

    fn is_legal_field(old: &NestedField, new: &NestedField, used: i32, is_key: bool) -> bool {
        let same = (old.id, &old.name, old.required) == (new.id, &new.name, new.required);
        same && match (&*old.field_type, &*new.field_type) {
            (Type::Primitive(old), Type::Primitive(new)) => old == new || (is_wider(old, new) && !is_key),
            (Type::Struct(old), Type::Struct(new)) => is_legal(old, new, used, is_key),
            (Type::List(old), Type::List(new)) => is_legal_field(&old.element_field, &new.element_field, used, is_key),
            (Type::Map(old), Type::Map(new)) => {
                is_legal_field(&old.key_field, &new.key_field, used, true)
                    && is_legal_field(&old.value_field, &new.value_field, used, is_key)
            }
            _ => false,
        }
    }

    /// Whether a file of this shape fits into a field of this type.
    fn fits(shape: &Shape, target: &Type) -> bool {
        match (shape, target) {
            (Shape::Leaf(leaf), Type::Primitive(target)) => leaf.iceberg == *target,
            (Shape::List(of), Type::List(list)) => fits(of, &list.element_field.field_type),
            (Shape::Map(key, value), Type::Map(map)) => {
                fits(key, &map.key_field.field_type) && fits(value, &map.value_field.field_type)
            }
            (Shape::Struct(fields), Type::Struct(of)) => {
                let read = fields.iter().filter_map(|(name, shape)| Some((name, shape.as_ref()?)));
                let target = |name: &str| of.fields().iter().find(|field| field.name == name);
                read.into_iter().all(|(name, shape)| target(name).is_some_and(|field| fits(shape, &field.field_type)))
            }
            _ => false,
        }
    }

    fn any_type() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "Int32",
            "Int64",
            "UInt32",
            "Float32",
            "Float64",
            "Decimal(9, 2)",
            "Decimal(18, 2)",
            "Decimal(38, 2)",
            "String",
            "Nullable(Int32)",
            "Nullable(Float64)",
        ]);
        leaf.prop_map(str::to_owned).prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|of| format!("Array({of})")),
                inner.clone().prop_map(|of| format!("Map(String, {of})")),
                inner.clone().prop_map(|of| format!("Map(Tuple(k Int32, l {of}), {of})")),
                prop::collection::btree_map("[a-d]", inner, 1..4).prop_map(|fields| {
                    let fields = fields.iter().map(|(name, of)| format!("{name} {of}"));
                    format!("Tuple({})", fields.collect::<Vec<_>>().join(", "))
                }),
            ]
        })
    }

    fn any_columns() -> impl Strategy<Value = Vec<Column>> {
        let columns = prop::collection::btree_map("[e-i]", any_type(), 1..5);
        columns.prop_map(|columns| columns.iter().map(|(name, kind)| Column::map(name, kind, None).unwrap()).collect())
    }

    /// What may become of a source; each column is changed by some of these.
    const ALTERS: [(&str, &str); 8] = [
        ("Int32", "Int64"),
        ("Int64", "Int32"),
        ("Float32", "Float64"),
        ("Decimal(9, 2)", "Decimal(18, 2)"),
        ("Decimal(38, 2)", "Decimal(9, 2)"),
        ("(a ", "(z "),
        ("b String", "b String, y Int32"),
        ("Array(", "Nullable("),
    ];

    /// Columns, and the same after some ALTERs; one may be gone, one may be new.
    fn altered_columns() -> impl Strategy<Value = (Vec<Column>, Vec<Column>)> {
        let masks = prop::collection::vec(any::<u8>(), 6);
        (any_columns(), masks, any_type(), 0..8_usize).prop_map(|(old, masks, new, gone)| {
            let altered = old.iter().zip(masks).filter_map(|(column, mask)| {
                let chosen = ALTERS.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0);
                let kind = chosen.fold(column.source_type.clone(), |kind, (_, (from, to))| kind.replace(from, to));
                Column::map(&column.name, &kind, None).ok()
            });
            let added = Column::map("new", &new, None).ok();
            let new = added.into_iter().chain(altered).enumerate().filter(|(number, _)| *number != gone);
            let new = new.map(|(_, column)| column).collect();
            (old, new)
        })
    }

    proptest! {
        #[test]
        fn a_target_evolves_as_iceberg_allows_and_once(
            (old, new) in prop_oneof![4 => altered_columns(), 1 => (any_columns(), any_columns())],
        ) {
            let target = table(iceberg_schema(&old).unwrap(), &[]);
            let evolution = evolve(&new, &target, SchemaEvolution::AddColumns);
            prop_assert_eq!(evolution.schema.is_some(), !evolution.changes.is_empty() && evolution.refused.is_empty());
            if let Some(schema) = &evolution.schema {
                let (was, used) = (target.current_schema().as_struct(), target.last_column_id());
                prop_assert!(is_legal(was, schema.as_struct(), used, false));
                let ids: Vec<i32> = schema.field_id_to_name_map().keys().copied().collect();
                prop_assert!(ids.iter().filter(|id| **id > used).all(|id| target.current_schema().field_by_id(*id).is_none()));
            }
            if evolution.refused.is_empty() {
                let after = evolution.schema.as_ref().map_or(target.clone(), |schema| followed(&target, schema));
                prop_assert_eq!(evolution.columns.len(), new.len());
                for column in &evolution.columns {
                    let field = after.current_schema().field_by_name(&column.name).unwrap();
                    prop_assert!(fits(&column.shape, &field.field_type), "{:?} {:?}", column, field);
                }
                for mode in [SchemaEvolution::AddColumns, SchemaEvolution::Frozen] {
                    let again = evolve(&new, &after, mode);
                    prop_assert_eq!((&again.schema, again.changes.len()), (&None, 0));
                    prop_assert_eq!(&again.columns, &evolution.columns);
                    prop_assert_eq!(&again.differences, &evolution.differences);
                }
            }
            let frozen = evolve(&new, &target, SchemaEvolution::Frozen);
            prop_assert_eq!((&frozen.schema, frozen.changes.len()), (&None, 0));
            for column in frozen.columns.iter().filter(|_| frozen.refused.is_empty()) {
                let field = target.current_schema().field_by_name(&column.name).unwrap();
                prop_assert!(fits(&column.shape, &field.field_type), "{:?} {:?}", column, field);
            }
        }
    }
}
