//! `reject_where`: how a predicate of the configuration stands in a query, and what it must not do. Pure.

/// What a predicate does that a condition on a row must not, given its syntax tree as `EXPLAIN AST` prints it: `arrayJoin` makes rows more or
/// fewer, and a name that it gives to an expression takes the place of a column.
pub(super) fn widens(tree: &[String]) -> Option<&'static str> {
    let mut subquery = None;
    for line in tree {
        let node = line.trim_start();
        let depth = line.len() - node.len();
        if subquery.is_some_and(|outer| depth <= outer) {
            subquery = None;
        }
        if subquery.is_some() {
            continue;
        }
        if node.starts_with("Subquery") {
            // Names and rows in it are its own.
            subquery = Some(depth);
        } else if node.starts_with("Function arrayJoin") {
            return Some("arrayJoin");
        } else if node.contains(" (alias ") && !node.starts_with("Literal") {
            return Some("a name for an expression (AS)");
        }
    }
    None
}

/// Whether a predicate of the configuration holds, which may be null. On lines of its own, because it may end with a comment.
pub(super) fn rejected(predicate: &str) -> String {
    format!("ifNull((\n{predicate}\n) != 0, 0)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predicate_neither_joins_arrays_nor_names_anything_outside_its_subqueries() {
        let found = |tree: &str| widens(&tree.lines().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(found("Function less (children 1)\n ExpressionList\n  Identifier price\n  Literal Int64_0"), None);
        assert_eq!(found("Function equals\n ExpressionList\n  Function arrayJoin"), Some("arrayJoin"));
        let named = Some("a name for an expression (AS)");
        assert_eq!(found("Function plus (alias id) (children 1)"), named);
        assert_eq!(found("Identifier price (alias id)"), named);
        let inner = "Function in\n ExpressionList\n  Subquery\n   Function plus (alias id)\n   Function arrayJoin";
        assert_eq!(found(inner), None);
        assert_eq!(found(&format!("{inner}\n  Function plus (alias id)")), named);
    }
}
