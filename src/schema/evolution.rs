//! How a target follows a source whose columns change: what is added, widened, left out, or refused. Pure.
//!
//! Only what the Iceberg specification allows ("Schema Evolution"): fields keep their ids, new ones get ids that were never used and are
//! optional, types become wider. So old files stay readable, and old snapshots keep their own schema. A map's key never changes.

use iceberg::spec::{Schema, SchemaRef, TableMetadata, Type};

use super::Column;
use super::comparison::{Comparison, Part, Rule};
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
    let mut comparison = Comparison::new(columns, target);
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use iceberg::TableCreation;
    use iceberg::spec::{NestedField, StructType, Transform, UnboundPartitionSpec};
    use proptest::prelude::*;

    use super::*;
    use crate::schema::comparison::{is_wider, told};
    use crate::schema::{Projection, Shape, iceberg_schema};

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
