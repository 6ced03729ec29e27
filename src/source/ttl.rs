//! The TTL that deletes a table's rows, read from `engine_full` of `system.tables`: pure.
//!
//! ```text
//! engine .. [TTL element [, element]*] [SETTINGS ..]
//! element: expression [DELETE | TO .. | RECOMPRESS .. | GROUP BY .. [SET ..]] [WHERE condition]
//! ```
//!
//! ClickHouse prints keywords in capitals and leaves columns that are called like them unquoted (`TTL WHERE + 5 WHERE (WHERE > 5)`), so
//! that only the place tells them apart: a keyword stands where an operand has just ended, a column where one is due.

/// What stands for "never" where the least of several expiries is looked for.
const NEVER: &str = "toInt64(9223372036854775807)";

/// Words whose second word belongs to them.
const TAKES_BY_OR_KEY: [&str; 6] = ["PARTITION", "PRIMARY", "UNIQUE", "ORDER", "SAMPLE", "GROUP"];

/// When a row expires, as one SQL expression over the raw columns of the table: seconds since 1970, null where it never does. `None` for a
/// table whose rows do not expire. Rows that a TTL rolls up (`GROUP BY`) count as expired: they are not what they were.
pub fn expiry(engine_full: &str) -> Option<String> {
    let elements: Vec<String> =
        elements(engine_full).into_iter().filter(|element| element.deletes).map(|element| element.sql()).collect();
    match elements.as_slice() {
        [] => None,
        [only] => Some(only.clone()),
        several => {
            let least: Vec<String> = several.iter().map(|sql| format!("ifNull({sql}, {NEVER})")).collect();
            Some(format!("nullIf(arrayMin([{}]), {NEVER})", least.join(", ")))
        }
    }
}

/// One element of a TTL clause.
#[derive(Debug)]
struct Element<'a> {
    expression: &'a str,
    condition: Option<&'a str>,
    deletes: bool,
}

impl Element<'_> {
    /// Dates expire at midnight of the server's zone, and 0 is never (`ITTLAlgorithm` in ClickHouse's MergeTree).
    fn sql(&self) -> String {
        let seconds = format!("nullIf(toInt64(toDateTime64({}, 0, serverTimezone())), 0)", self.expression);
        match self.condition {
            Some(condition) => format!("if({condition}, {seconds}, NULL)"),
            None => seconds,
        }
    }
}

/// The elements of the TTL clause.
fn elements(text: &str) -> Vec<Element<'_>> {
    let tokens = tokens(text);
    let keyword = |name: &str| tokens.iter().position(|token| token.role == Role::Keyword && token.text == name);
    let settings = keyword("SETTINGS").unwrap_or(tokens.len());
    let end = tokens.get(settings).map_or(text.len(), |token| token.start);
    let mut rest = keyword("TTL").and_then(|ttl| tokens.get(ttl + 1..settings)).unwrap_or_default();
    let mut elements = Vec::new();
    while let Some(first) = rest.first() {
        let (own, further) = rest.split_at(element_length(rest));
        let end = further.first().map_or(end, |comma| comma.start);
        elements.push(element(text, own, first.start, end));
        rest = further.get(1..).unwrap_or_default();
    }
    elements
}

/// Tokens up to the comma that ends an element: not one between the keys of a GROUP BY or before an assignment of its SET.
fn element_length(tokens: &[Token<'_>]) -> usize {
    let mut list = None;
    for (number, token) in tokens.iter().enumerate() {
        match (token.role, token.text) {
            (Role::Keyword, "GROUP" | "SET") => list = Some(token.text),
            (Role::Comma, _) => {
                let next = tokens.get(number + 1..).unwrap_or_default();
                let goes_on = match list {
                    Some("GROUP") => true,
                    Some(_) => matches!(next, [name, equals, ..] if name.role == Role::Operand && equals.text == "="),
                    None => false,
                };
                if !goes_on {
                    return number;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

fn element<'a>(text: &'a str, tokens: &[Token<'a>], start: usize, end: usize) -> Element<'a> {
    let keywords: Vec<&Token<'_>> = tokens
        .iter()
        .filter(|token| token.role == Role::Keyword)
        .filter(|token| matches!(token.text, "DELETE" | "TO" | "RECOMPRESS" | "GROUP" | "SET" | "WHERE"))
        .collect();
    let slice = |from: usize, number: usize| {
        let to = keywords.get(number).map_or(end, |token| token.start);
        text.get(from..to).unwrap_or_default().trim()
    };
    let condition = keywords.iter().position(|token| token.text == "WHERE");
    Element {
        expression: slice(start, 0),
        condition: condition.and_then(|number| Some(slice(keywords.get(number)?.end(), number + 1))),
        deletes: !keywords.iter().any(|token| matches!(token.text, "TO" | "RECOMPRESS")),
    }
}

/// What a token is in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Operand,
    /// A word where no operand is due: a keyword, or an operator that is a word.
    Keyword,
    Operator,
    Comma,
}

/// A token outside of parentheses.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    role: Role,
    text: &'a str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// Splits a text. Of parentheses only the opening one is a token: with what stands inside it is an operand, or the end of one.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens: Vec<Token<'_>> = Vec::new();
    let mut depth = 0_usize;
    let mut rest = text;
    // Whether an operand has just ended.
    let mut ended = false;
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        let length = match first {
            '\'' | '"' | '`' => quoted_length(rest, first),
            _ if is_word(first) => rest.find(|c| !is_word(c) && c != '.').unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, further) = rest.split_at(length);
        rest = further;
        let role = match first {
            '(' | '[' | '{' => {
                depth += 1;
                if depth > 1 {
                    continue;
                }
                Role::Operand
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                continue;
            }
            _ if depth > 0 || first.is_whitespace() => continue,
            '\'' | '"' | '`' => Role::Operand,
            ',' => Role::Comma,
            _ if is_word(first) => role_of_word(token, ended, tokens.last()),
            _ => Role::Operator,
        };
        ended = role == Role::Operand || (ended && matches!(token, "ASC" | "DESC"));
        tokens.push(Token { role, text: token, start });
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn role_of_word(word: &str, ended: bool, before: Option<&Token<'_>>) -> Role {
    match word {
        _ if ended => Role::Keyword,
        // `NOT a`, `a NOT LIKE b`: ClickHouse cannot read such columns back either, unquoted as it prints them.
        "NOT" | "IN" | "LIKE" | "ILIKE" => Role::Operator,
        "BY" | "KEY"
            if before.is_some_and(|token| token.role == Role::Keyword && TAKES_BY_OR_KEY.contains(&token.text)) =>
        {
            Role::Operator
        }
        _ => Role::Operand,
    }
}

/// Length with both quotes; a quote inside is doubled or stands behind a backslash.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut inside = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = inside.next() {
        if c == '\\' || (c == quote && inside.peek().is_some_and(|(_, next)| *next == quote)) {
            inside.next();
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(expression: &str) -> String {
        format!("nullIf(toInt64(toDateTime64({expression}, 0, serverTimezone())), 0)")
    }

    /// As ClickHouse 26.7 prints them.
    #[test]
    fn a_ttl_without_condition_is_its_expression() {
        for (engine, expression) in [
            (
                "MergeTree ORDER BY ts TTL ts + toIntervalDay(7) SETTINGS index_granularity = 8192",
                "ts + toIntervalDay(7)",
            ),
            ("MergeTree ORDER BY ts TTL d", "d"),
            ("MergeTree ORDER BY (a, b) TTL dt + 5 DELETE SETTINGS x = 1", "dt + 5"),
            ("MergeTree ORDER BY dt DESC TTL dt + 5. SETTINGS x = 1", "dt + 5."),
            ("MergeTree ORDER BY dt TTL (arr[1]) + 5 SETTINGS x = 1", "(arr[1]) + 5"),
            (
                "MergeTree ORDER BY dt TTL multiIf((n IN (1, 2)), dt, n > 5, dt + 4, toDateTime(0))",
                "multiIf((n IN (1, 2)), dt, n > 5, dt + 4, toDateTime(0))",
            ),
            (
                "ReplacingMergeTree(ts) PARTITION BY toYYYYMM(ts) PRIMARY KEY n ORDER BY (n, ts) SAMPLE BY n TTL dt + 1 SETTINGS x = 1",
                "dt + 1",
            ),
            (
                "ReplicatedMergeTree('/t/{uuid} TTL x', '{replica}') ORDER BY n TTL dt + 1 SETTINGS x = ' TTL y'",
                "dt + 1",
            ),
        ] {
            assert_eq!(expiry(engine), Some(seconds(expression)), "{engine}");
        }
    }

    #[test]
    fn a_table_whose_rows_stay_has_no_expiry() {
        for engine in [
            "",
            "MergeTree ORDER BY ts SETTINGS index_granularity = 8192",
            "MergeTree ORDER BY tuple() TTL dt + 1 TO DISK IF EXISTS 'cold', dt + 2 TO VOLUME 'x, y' SETTINGS x = 1",
            "MergeTree ORDER BY ts TTL dt + 1 RECOMPRESS CODEC(Delta(4), ZSTD(3))",
            "MergeTree ORDER BY (`a TTL b`, ` TTL `) SETTINGS index_granularity = 8192",
            "Distributed('c', 'd', 't TTL x', cityHash64(a TTL b))",
            "Kafka SETTINGS kafka_topic_list = 'a TTL dt', kafka_format = '\\' TTL dt'",
        ] {
            assert_eq!(expiry(engine), None, "{engine}");
        }
    }

    #[test]
    fn a_condition_makes_it_null() {
        let engine = r#"MergeTree ORDER BY ts TTL dt WHERE (n = 5) AND (s = ' SETTINGS it\'s, TTL \\ "') AND (NOT m) SETTINGS x = 1"#;
        let condition = r#"(n = 5) AND (s = ' SETTINGS it\'s, TTL \\ "') AND (NOT m)"#;
        assert_eq!(expiry(engine), Some(format!("if({condition}, {}, NULL)", seconds("dt"))));
        for condition in [
            "NOT n",
            "n NOT LIKE s",
            "n NOT IN (4)",
            "n IS NOT NULL",
            "n IS DISTINCT FROM 5",
            "n GLOBAL IN (5)",
            "-n",
            "tu.`b c` > 1e-30",
        ] {
            let engine = format!("MergeTree ORDER BY n TTL dt + 1 WHERE {condition} SETTINGS x = 1");
            assert_eq!(expiry(&engine), Some(format!("if({condition}, {}, NULL)", seconds("dt + 1"))), "{engine}");
        }
    }

    #[test]
    fn the_least_of_several_elements_counts() {
        let engine = "MergeTree ORDER BY n TTL dt + 1 TO DISK 'x', dt + 2 WHERE n = 1, dt + 3 SETTINGS x = 1";
        let never = "toInt64(9223372036854775807)";
        let (second, third) = (format!("if(n = 1, {}, NULL)", seconds("dt + 2")), seconds("dt + 3"));
        let least = format!("nullIf(arrayMin([ifNull({second}, {never}), ifNull({third}, {never})]), {never})");
        assert_eq!(expiry(engine), Some(least));
    }

    #[test]
    fn rolled_up_rows_are_gone() {
        let rolled_up = "MergeTree ORDER BY (a, n) TTL dt GROUP BY a, n SET s = max(s), `d,` = any(`d,`)";
        assert_eq!(expiry(rolled_up), Some(seconds("dt")));
        assert_eq!(expiry("MergeTree ORDER BY (a, n) TTL dt GROUP BY a, n SETTINGS x = 1"), Some(seconds("dt")));
        let and_deleted = expiry(&format!("{rolled_up}, dt + 6 SETTINGS x = 1")).unwrap();
        assert!(and_deleted.contains(&seconds("dt")) && and_deleted.contains(&seconds("dt + 6")), "{and_deleted}");
        assert!(!and_deleted.contains("max"), "{and_deleted}");
    }

    /// ClickHouse does not quote them.
    #[test]
    fn columns_may_be_called_like_keywords() {
        for (engine, expression, condition) in [
            ("MergeTree ORDER BY TTL TTL TTL + 5 SETTINGS x = 1", "TTL + 5", None),
            ("MergeTree ORDER BY BY TTL SETTINGS + 5 SETTINGS x = 1", "SETTINGS + 5", None),
            ("MergeTree ORDER BY t TTL DELETE, SETTINGS TO DISK 'x'", "DELETE", None),
            (
                "MergeTree ORDER BY t TTL WHERE + 5 WHERE (WHERE > 5) AND SET SETTINGS x = 1",
                "WHERE + 5",
                Some("(WHERE > 5) AND SET"),
            ),
        ] {
            let expected = match condition {
                Some(condition) => format!("if({condition}, {}, NULL)", seconds(expression)),
                None => seconds(expression),
            };
            assert_eq!(expiry(engine), Some(expected), "{engine}");
        }
    }

    proptest! {
        /// Names go out as the server prints them: quoted where they are no plain word.
        #[test]
        fn hostile_names_stay_inside_their_quotes(parts in proptest::collection::vec(
            prop_oneof![
                Just(" TTL ".to_owned()), Just(" SETTINGS ".to_owned()), Just(" WHERE ".to_owned()), Just("`".to_owned()),
                Just("'".to_owned()), Just("\"".to_owned()), Just("\\".to_owned()), Just("(".to_owned()), Just(", ".to_owned()),
                Just("новый".to_owned()), ".{0,3}",
            ], 1..6)
        ) {
            let name = super::super::sql::identifier(&parts.concat());
            let text = super::super::sql::string(&parts.concat());
            let expression = format!("{name} + toIntervalDay(1)");
            let condition = format!("({name} > {text}) AND {name}");
            let engine = format!(
                "MergeTree({name}) PARTITION BY {name} ORDER BY ({name}, b) TTL {expression} WHERE {condition}, {name} TO DISK {text} \
                 SETTINGS x = {text}"
            );
            prop_assert_eq!(expiry(&engine), Some(format!("if({condition}, {}, NULL)", seconds(&expression))), "{}", engine);
            prop_assert_eq!(expiry(&format!("MergeTree ORDER BY {name} SETTINGS x = {text}")), None);
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,40}") {
            let _ = expiry(&format!("MergeTree ORDER BY x TTL {text}"));
        }
    }
}
