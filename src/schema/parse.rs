//! ClickHouse's names of types, as DESCRIBE prints them, into their structure. The clickhouse crate's own parser forgets the names in tuples.

use clickhouse_types::DataTypeNode;

/// Types within types that are looked into; ClickHouse itself refuses deeper ones.
const MAX_DEPTH: usize = 64;

/// A type without `LowCardinality` and `SimpleAggregateFunction`, which change how values are stored, not what they are.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceType {
    /// Whether it is wrapped in `Nullable`.
    pub nullable: bool,
    /// What it is then.
    pub structure: Structure,
}

/// Leaf or nested.
#[derive(Debug, Clone, PartialEq)]
pub enum Structure {
    /// A flat type.
    Leaf(DataTypeNode),
    /// `Array(T)`.
    Array(Box<SourceType>),
    /// `Map(K, V)`.
    Map(Box<SourceType>, Box<SourceType>),
    /// `Tuple(a A, b B)`, with numbers from 1 where it has no names. `Nested(..)` is an array of it.
    Tuple(Vec<(String, SourceType)>),
}

/// Parses a type; `None` where it is unknown.
pub fn parse(text: &str) -> Option<SourceType> {
    parse_at(text.trim(), 0)
}

fn parse_at(text: &str, depth: usize) -> Option<SourceType> {
    if depth > MAX_DEPTH {
        return None;
    }
    let inner = |text| parse_at(text, depth + 1);
    let plain = |structure| SourceType { nullable: false, structure };
    let composite = text.strip_suffix(')').and_then(|text| text.split_once('('));
    Some(match composite {
        Some(("LowCardinality", of)) => inner(of)?,
        Some(("SimpleAggregateFunction", of)) => inner(arguments(of)?.get(1)?)?,
        Some(("Nullable", of)) => SourceType { nullable: true, ..inner(of)? },
        Some(("Array", of)) => plain(Structure::Array(Box::new(inner(of)?))),
        Some(("Map", of)) => match arguments(of)?.as_slice() {
            [key, value] => plain(Structure::Map(Box::new(inner(key)?), Box::new(inner(value)?))),
            _ => return None,
        },
        Some(("Tuple", of)) => plain(elements(of, depth)?),
        Some(("Nested", of)) => plain(Structure::Array(Box::new(plain(elements(of, depth)?)))),
        _ => plain(Structure::Leaf(leaf(text)?)),
    })
}

/// The crate's parser cuts off a last parenthesis unseen, and panics where that is no character's border.
fn leaf(text: &str) -> Option<DataTypeNode> {
    let (name, is_closed) = text.split_once('(').map_or((text, true), |(name, of)| (name, of.ends_with(')')));
    let is_name = !name.is_empty() && name.chars().all(|character| character.is_ascii_alphanumeric());
    if is_name && is_closed { DataTypeNode::new(text).ok() } else { None }
}

fn elements(text: &str, depth: usize) -> Option<Structure> {
    let elements = arguments(text)?.into_iter().zip(1..).map(|(element, number)| {
        let (name, of) = named(element)?;
        Some((name.unwrap_or_else(|| number.to_string()), parse_at(of, depth + 1)?))
    });
    elements.collect::<Option<_>>().map(Structure::Tuple)
}

/// Splits `name T` or `` `name` T ``; a type alone holds no space outside of its parentheses.
fn named(element: &str) -> Option<(Option<String>, &str)> {
    if !element.starts_with('`') {
        let end = element.find([' ', '(']).filter(|end| element[*end..].starts_with(' '));
        return Some(end.map_or((None, element), |end| (Some(element[..end].to_owned()), element[end..].trim_start())));
    }
    let mut name = String::new();
    let mut characters = element.char_indices().skip(1);
    while let Some((position, character)) = characters.next() {
        match character {
            '\\' => name.push(characters.next()?.1),
            '`' => return Some((Some(name), element[position + 1..].trim_start())),
            other => name.push(other),
        }
    }
    None
}

/// Splits at the commas that stand outside of parentheses and quotes.
fn arguments(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut depth, mut start, mut quote) = (0_usize, 0, None);
    let mut characters = text.char_indices();
    while let Some((position, character)) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => drop(characters.next()),
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`' | '"') => quote = Some(character),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.checked_sub(1)?,
            (None, ',') if depth == 0 => {
                parts.push(text[start..position].trim());
                start = position + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaf(name: &str) -> SourceType {
        SourceType { nullable: false, structure: Structure::Leaf(DataTypeNode::new(name).unwrap()) }
    }

    fn array(of: SourceType) -> SourceType {
        SourceType { nullable: false, structure: Structure::Array(Box::new(of)) }
    }

    fn tuple(elements: &[(&str, SourceType)]) -> SourceType {
        let elements = elements.iter().map(|(name, of)| ((*name).to_owned(), of.clone())).collect();
        SourceType { nullable: false, structure: Structure::Tuple(elements) }
    }

    #[test]
    fn structure_and_names_are_found() {
        let text = "Array(Tuple(a LowCardinality(Nullable(String)), `b c\\`,(` Map(String, Array(Decimal(9, 2)))))";
        let string = SourceType { nullable: true, ..leaf("String") };
        let map = Structure::Map(Box::new(leaf("String")), Box::new(array(leaf("Decimal(9, 2)"))));
        let map = SourceType { nullable: false, structure: map };
        assert_eq!(parse(text), Some(array(tuple(&[("a", string), ("b c`,(", map)]))));
        assert_eq!(parse("Nested(a Int8)"), Some(array(tuple(&[("a", leaf("Int8"))]))));
        assert_eq!(
            parse("Tuple(Enum8('a b' = 1), UUID)"),
            Some(tuple(&[("1", leaf("Enum8('a b' = 1)")), ("2", leaf("UUID"))]))
        );
        assert_eq!(parse("SimpleAggregateFunction(sum, Decimal(38, 8))"), Some(leaf("Decimal(38, 8)")));
        assert_eq!(parse("Enum8('a\\'(,' = 1, 'b' = 2)"), Some(leaf("Enum8('a\\'(,' = 1, 'b' = 2)")));
    }

    #[test]
    fn what_is_no_type_is_unknown() {
        for text in [
            "",
            "Array",
            "Array(",
            "Array()",
            "Map(String)",
            "Tuple(`a Int8)",
            "Array(Int8))",
            "Nothing",
            &"Array(".repeat(500),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&format!("{}Int8{}", "Array(".repeat(100), ")".repeat(100))), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_unknown(text in "(Array\\(|Tuple\\(|Map\\(|Nullable\\(|\\)|,|`|'|\\\\|a |Int8|Ü){0,12}") {
            let _ = parse(&text);
        }
    }
}
