//! The SELECT list: each column cast and checked so that its Parquet bytes are what Iceberg wants, at any depth.
//!
//! Each expression refers to its own column only, under its own name (protocol.md P2).

use super::sql::{identifier, string};
use crate::schema::{Column, Leaf, Projection, Shape};

/// Text of our own in errors of `throwIf`, followed by the number of the column whose value was refused.
pub const REFUSED_VALUE: &str = "k2-offload-refused-column-";

/// The largest and the smallest decimal of 38 digits.
const MOST_DIGITS: &str = "99999999999999999999999999999999999999";

/// `column AS name`, cast and checked so that it fits its Iceberg type.
pub fn project(column: &Column, number: usize) -> String {
    let name = identifier(&column.name);
    let (shape, value) = match &column.shape {
        Shape::Leaf(leaf) if column.required && leaf.nullable => {
            let checked = format!("if(throwIf(isNull({name}), '{REFUSED_VALUE}{number}'), {name}, {name})");
            (&Shape::Leaf(Leaf { nullable: false, ..leaf.clone() }), format!("assumeNotNull({checked})"))
        }
        shape => (shape, name.clone()),
    };
    let converted = convert(shape, &value, number, 0).unwrap_or(value);
    if converted == name { name } else { format!("{converted} AS {name}") }
}

/// The expression that converts `value`; `None` where it is right as it is. Lambdas at `depth` have names of their own.
fn convert(shape: &Shape, value: &str, number: usize, depth: usize) -> Option<String> {
    match shape {
        Shape::Leaf(leaf) => convert_leaf(leaf, value, number),
        Shape::List(of) => {
            let element = format!("k2_element{depth}");
            let converted = convert(of, &element, number, depth + 1)?;
            Some(format!("arrayMap({element} -> {converted}, {value})"))
        }
        Shape::Map(key, of) => {
            let names = (format!("k2_key{depth}"), format!("k2_value{depth}"));
            let (new_key, new_value) =
                (convert(key, &names.0, number, depth + 1), convert(of, &names.1, number, depth + 1));
            if new_key.is_none() && new_value.is_none() {
                return None;
            }
            let pair = (new_key.as_ref().unwrap_or(&names.0), new_value.as_ref().unwrap_or(&names.1));
            Some(format!("mapApply(({}, {}) -> ({}, {}), {value})", names.0, names.1, pair.0, pair.1))
        }
        Shape::Struct(fields) => {
            let parts = fields.iter().zip(1..).filter_map(|((_, shape), position)| {
                let part = format!("tupleElement({value}, {position})");
                Some(convert(shape.as_ref()?, &part, number, depth).ok_or(part))
            });
            let parts: Vec<Result<String, String>> = parts.collect();
            if parts.len() == fields.len() && parts.iter().all(Result::is_err) {
                return None;
            }
            let parts: Vec<String> = parts.into_iter().map(|part| part.unwrap_or_else(|same| same)).collect();
            // A tuple that is built has no names.
            Some(format!("CAST(tuple({}), {})", parts.join(", "), string(&target_type(shape))))
        }
    }
}

fn convert_leaf(leaf: &Leaf, value: &str, number: usize) -> Option<String> {
    let to = string(&leaf_type(leaf));
    let checked = |bad: &str, otherwise: &str, value: &str| {
        format!("if(throwIf({bad}, '{REFUSED_VALUE}{number}'), {otherwise}, {value})")
    };
    Some(match &leaf.projection {
        Projection::Plain => return None,
        Projection::Cast(_) => format!("CAST({value}, {to})"),
        Projection::CheckedLong => {
            checked(&format!("{value} > 9223372036854775807"), "0", &format!("accurateCast({value}, {to})"))
        }
        Projection::CheckedDecimal => {
            let wide = |sign: &str| format!("toInt256('{sign}{MOST_DIGITS}')");
            let zero = format!("CAST(0, {to})");
            // ClickHouse converts wide integers to decimals by way of their digits only.
            let digits = string(if leaf.nullable { "Nullable(String)" } else { "String" });
            let converted = format!("CAST(CAST({value}, {digits}), {to})");
            checked(&format!("{value} > {} OR {value} < {}", wide(""), wide("-")), &zero, &converted)
        }
        Projection::CheckedText => {
            let text = format!("CAST({value}, {to})");
            checked(&format!("NOT isValidUTF8({text})"), "''", &text)
        }
        Projection::Unscaled32 => format!("reinterpretAsInt32({value})"),
        Projection::Unscaled64 => format!("reinterpretAsInt64({value})"),
        Projection::Unscaled32AsLong => format!("CAST(reinterpretAsInt32({value}), {to})"),
    })
}

/// ClickHouse's type of a converted value.
fn target_type(shape: &Shape) -> String {
    match shape {
        Shape::Leaf(leaf) => leaf_type(leaf),
        Shape::List(of) => format!("Array({})", target_type(of)),
        Shape::Map(key, of) => format!("Map({}, {})", target_type(key), target_type(of)),
        Shape::Struct(fields) => {
            let typed = |(name, shape): &(String, Option<Shape>)| {
                Some(format!("{} {}", identifier(name), target_type(shape.as_ref()?)))
            };
            format!("Tuple({})", fields.iter().filter_map(typed).collect::<Vec<_>>().join(", "))
        }
    }
}

fn leaf_type(leaf: &Leaf) -> String {
    let plain = match &leaf.projection {
        Projection::Plain => &leaf.source,
        Projection::Cast(to) => to,
        Projection::CheckedLong => "Int64",
        Projection::CheckedDecimal => "Decimal(38, 0)",
        Projection::CheckedText => "String",
        Projection::Unscaled32 => "Int32",
        Projection::Unscaled64 | Projection::Unscaled32AsLong => "Int64",
    };
    if leaf.nullable { format!("Nullable({plain})") } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str) -> String {
        project(&Column::map("c", kind, None).unwrap(), 3)
    }

    #[test]
    fn what_is_right_as_it_is_stays() {
        for kind in ["Int32", "Array(Int64)", "Map(UUID, Array(Float64))", "Tuple(a Date, b Array(Tuple(Int8, Bool)))"]
        {
            assert_eq!(of(kind), "`c`", "{kind}");
        }
    }

    #[test]
    fn casts_reach_every_depth() {
        assert_eq!(of("Array(UInt32)"), "arrayMap(k2_element0 -> CAST(k2_element0, 'Int64'), `c`) AS `c`");
        assert_eq!(
            of("Map(UInt32, Array(Nullable(DateTime)))"),
            "mapApply((k2_key0, k2_value0) -> (CAST(k2_key0, 'Int64'), \
             arrayMap(k2_element1 -> CAST(k2_element1, 'Nullable(DateTime64(6, \\'UTC\\'))'), k2_value0)), `c`) AS `c`"
        );
        assert_eq!(
            of("Tuple(a UInt32, `b '` Int8)"),
            "CAST(tuple(CAST(tupleElement(`c`, 1), 'Int64'), tupleElement(`c`, 2)), 'Tuple(`a` Int64, `b \\'` Int8)') AS `c`"
        );
    }

    #[test]
    fn what_is_not_read_of_a_tuple_is_left_out() {
        let column = Column::map("c", "Array(Tuple(a UUID, b Int8, d UUID))", None).unwrap();
        let Shape::List(of) = column.shape else { panic!("no list") };
        let Shape::Struct(mut fields) = *of else { panic!("no struct") };
        fields[1].1 = None;
        let column = Column { shape: Shape::List(Box::new(Shape::Struct(fields))), ..column };
        assert_eq!(
            project(&column, 3),
            "arrayMap(k2_element0 -> CAST(tuple(tupleElement(k2_element0, 1), tupleElement(k2_element0, 3)), \
             'Tuple(`a` UUID, `d` UUID)'), `c`) AS `c`"
        );
    }

    #[test]
    fn checks_name_the_column_at_every_depth() {
        for kind in ["Array(UInt64)", "Map(String, Int8)", "Array(Tuple(a Array(String)))"] {
            assert!(of(kind).contains("'k2-offload-refused-column-3'"), "{kind}");
        }
    }
}
