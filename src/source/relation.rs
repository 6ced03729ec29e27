//! What is asked of a source before and after its rows are read: facts, counts, mutations. Pure.
//!
//! Queries with aliases of their own rename the column first, because ClickHouse resolves a name in WHERE to an alias of the SELECT (protocol.md P2).

use super::fingerprint::Input;
use super::reject::rejected;
use super::sql::{
    CLOCK_MICROS, OTHER_SERVER, bounded, identifier, keys, literal, seconds, string, tick_of_now, ticks, within,
    within_partition,
};
use crate::config::SortBy;
use crate::cursor::{Cursor, Tick};
use crate::partition::{PartitionField, Predicate};
use crate::plan::Window;

/// Text of our own in the error of a SELECT over a query that returned a row outside its window (P11).
pub const OUTSIDE: &str = "k2-offload-outside-window";

/// Seconds that nobody knows.
const NO_SECONDS: &str = "CAST(NULL, 'Nullable(Int64)')";

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A table, quoted, with its database.
    Table(String),
    /// A SELECT with bounds to put in.
    Query(String),
}

/// Which rows of the source leave, and how they are sorted.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Columns whose values name a row: of rows with the same one leaves.
    pub key: Vec<String>,
    /// That with the largest value here.
    pub version: Option<String>,
    /// The table's engine drops duplicates (FINAL).
    pub is_final: bool,
    /// Rows for which this holds do not leave.
    pub reject: Option<String>,
    /// Order of the rows of a file.
    pub sort: Vec<SortBy>,
}

/// What a count tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// Rows, as if none of them were duplicates: what is cheap.
    Raw,
    /// Rows, and how many are left of them without duplicates.
    Distinct,
}

/// A source as the queries name it.
#[derive(Debug, Clone)]
pub struct Relation {
    /// Its database.
    pub database: String,
    /// Its name.
    pub name: String,
    /// Where its rows come from.
    pub origin: Origin,
    /// Which of them leave.
    pub rules: Rules,
    /// What a query is computed from, where that is told.
    pub input: Option<Input>,
    /// `hostName()` of the server that the pass began on.
    pub host: String,
}

impl Relation {
    /// What stands behind FROM for the rows of a window.
    pub(super) fn from(&self, cursor: &Cursor, window: Window) -> String {
        match &self.origin {
            Origin::Table(quoted) => quoted.clone(),
            Origin::Query(query) => bounded(query, cursor.kind, window),
        }
    }

    /// Selects `columns` of the rows that `filter` leaves; throws on another server than the pass began on (P4).
    pub(super) fn rows(&self, columns: &str, from: &str, filter: &str) -> String {
        format!("SELECT {columns} FROM {from} WHERE ({filter}) AND {}", self.here())
    }

    fn here(&self) -> String {
        format!("(SELECT throwIf(hostName() != {}, '{OTHER_SERVER}')) = 0", string(&self.host))
    }

    /// Queries about `reject_where` before any row is read: one that fails where it is no condition on a row of the table, and one that prints its
    /// syntax tree (see [`widens`](super::reject::widens)); `None` without it.
    pub fn try_reject(&self) -> Option<[String; 2]> {
        let (Origin::Table(quoted), Some(reject)) = (&self.origin, &self.rules.reject) else { return None };
        let filtered = format!("DESCRIBE TABLE (SELECT 1 AS k2_rejected FROM {quoted} WHERE NOT {})", rejected(reject));
        Some([filtered, format!("EXPLAIN AST SELECT (\n{reject}\n)")])
    }

    /// Unfinished mutations, and a number that changes with every new one; for a query, of the tables that its text names.
    pub fn mutations(&self) -> String {
        let tables = match &self.origin {
            Origin::Table(_) => format!("database = {} AND table = {}", string(&self.database), string(&self.name)),
            Origin::Query(query) => {
                let query = string(query);
                let edge = "[^0-9A-Za-z_]";
                let named = |column: &str| {
                    format!("match({query}, concat('(^|{edge})', regexpQuoteMeta({column}), '($|{edge})'))")
                };
                let database = string(&self.database);
                format!("{} AND (database = {database} OR {})", named("table"), named("database"))
            }
        };
        format!(
            "SELECT toUInt64(countIf(NOT is_done)) AS unfinished, arrayStringConcat(groupUniqArrayIf(3)(table, NOT is_done), ', ') AS tables, groupBitXor(cityHash64(database, table, mutation_id)) AS fingerprint \
             FROM system.mutations WHERE {tables} AND {}",
            self.here()
        )
    }

    /// Of a table: clock, newest and oldest row, rows from the future and null cursors, in ticks, and what `ttl` says of the rows, in seconds;
    /// one row.
    pub fn facts(&self, cursor: &Cursor, nullable: bool, low: Option<Tick>, ttl: Option<&str>) -> String {
        let column = identifier(&cursor.name);
        let mut filter = low.map_or("1".to_owned(), |low| format!("{column} >= {}", literal(low, cursor.kind)));
        if nullable {
            filter = format!("{filter} OR isNull({column})");
        }
        let tick = ticks("k2_cursor", cursor.kind);
        let now = tick_of_now(cursor.kind);
        let present = format!("ifNull({tick} <= {now}, 0)");
        // Rows of a backfill live longer than live ones, so that the oldest row tells how long those beside it lived; one that had
        // expired before its own time tells nothing.
        let lifetime = format!("k2_expires - {}", seconds(&tick, cursor.kind));
        let from = self.from(cursor, Window { low, high: Tick::MAX });
        format!(
            "SELECT {CLOCK_MICROS} AS clock_micros, \
             maxOrNullIf(assumeNotNull({tick}), {present}) AS newest, \
             minOrNullIf(assumeNotNull({tick}), {present}) AS oldest, \
             toUInt64(countIf(ifNull({tick} > {now}, 0))) AS future, \
             toUInt64(countIf(isNull(k2_cursor))) AS nulls, \
             minOrNull(k2_expires) AS expires_at_seconds, \
             argMinOrNullIf({lifetime}, {tick}, {present} AND ifNull({lifetime} > 0, 0)) AS lifetime_seconds \
             FROM ({})",
            self.rows(&format!("{column} AS k2_cursor, {} AS k2_expires", ttl.unwrap_or(NO_SECONDS)), &from, &filter)
        )
    }

    /// Raw rows of a window, or of one partition of it, for each bucket of `width` ticks that holds any; ascending.
    pub fn histogram(
        &self,
        cursor: &Cursor,
        window: Window,
        partition: &[(&str, Predicate<'_>)],
        width: Tick,
    ) -> String {
        format!(
            "SELECT {} AS low, count() AS rows FROM ({}) GROUP BY low ORDER BY low",
            bucket(cursor, width),
            self.rows(
                &format!("{} AS k2_cursor", identifier(&cursor.name)),
                &self.from(cursor, window),
                &within_partition(cursor, window, partition)
            )
        )
    }

    /// Rows of a window that leave, for each bucket of `width` ticks that holds any, and their duplicates; ascending.
    pub fn leaving_histogram(&self, cursor: &Cursor, window: Window, width: Tick) -> String {
        let [rows, kept, rejected] = self.aggregates(Counting::Distinct);
        let renamed = Cursor { name: "k2_cursor".to_owned(), kind: cursor.kind };
        format!(
            "SELECT {} AS low, toUInt64({kept}) AS rows, toUInt64({rows} - {kept} - {rejected}) AS duplicates FROM ({}) WHERE {} \
             GROUP BY low ORDER BY low",
            bucket(cursor, width),
            self.keyed_rows(cursor, window, &[], Counting::Distinct),
            within(&renamed, window)
        )
    }

    /// The shortest time in seconds from the cursor of a row to its expiry; null where no row of the window expires. One that had expired before
    /// its own time tells nothing.
    pub fn shortest_lifetime(&self, cursor: &Cursor, window: Window, ttl: &str) -> String {
        let lifetime = format!("k2_expires - {}", seconds(&ticks("k2_cursor", cursor.kind), cursor.kind));
        format!(
            "SELECT minOrNullIf({lifetime}, ifNull({lifetime} > 0, 0)) AS seconds FROM ({})",
            self.rows(
                &format!("{} AS k2_cursor, {ttl} AS k2_expires", identifier(&cursor.name)),
                &self.from(cursor, window),
                &within(cursor, window)
            )
        )
    }

    /// Whether rows of these ticks, of which nothing else is known, have expired.
    pub fn have_expired(&self, cursor: &Cursor, source_type: &str, ticks: &[Tick], ttl: &str) -> String {
        let values: Vec<String> = ticks.iter().map(|tick| literal(*tick, cursor.kind)).collect();
        format!(
            "SELECT arrayMap(row -> row.2, arraySort(groupArray((k2_number, toUInt8(ifNull({ttl} <= toUnixTimestamp(now()), 0)))))) AS expired \
             FROM (SELECT k2_row.1 AS k2_number, CAST(k2_row.2, {}) AS {} FROM (SELECT arrayJoin(arrayZip(range({}), [{}])) AS k2_row))",
            string(source_type),
            identifier(&cursor.name),
            ticks.len(),
            values.join(", ")
        )
    }

    /// Compressed bytes and rows of the table's parts.
    pub fn size(&self) -> String {
        format!(
            "SELECT sum(data_compressed_bytes) AS bytes, sum(rows) AS rows FROM system.parts \
             WHERE active AND database = {} AND table = {}",
            string(&self.database),
            string(&self.name)
        )
    }

    /// Rows of a window for each partition: its values as text (see [`keys`]), raw rows, those that leave and those that are rejected, ascending;
    /// of a query also the largest tick, and rows outside the window.
    pub fn count(
        &self,
        cursor: &Cursor,
        window: Window,
        fields: &[PartitionField],
        counting: Counting,
        limit: usize,
    ) -> String {
        let [rows, kept, rejected] = self.aggregates(counting);
        let (newest, outside) = match &self.origin {
            Origin::Table(_) => ("CAST(NULL, 'Nullable(Int64)')".to_owned(), "0".to_owned()),
            Origin::Query(_) => {
                let renamed = Cursor { name: "k2_cursor".to_owned(), kind: cursor.kind };
                let newest = format!("maxOrNull(assumeNotNull({}))", ticks(&renamed.name, cursor.kind));
                (newest, format!("countIf({})", outside(&renamed, window)))
            }
        };
        format!(
            "SELECT {} AS key, toUInt64({rows}) AS rows, toUInt64({kept}) AS kept, toUInt64({rejected}) AS rejected, {newest} AS newest, \
             toUInt64({outside}) AS outside FROM ({}) GROUP BY key ORDER BY key LIMIT {limit}",
            keys(fields),
            self.keyed_rows(cursor, window, fields, counting)
        )
    }

    /// The aggregates that count raw rows, those that leave and those that are rejected.
    fn aggregates(&self, counting: Counting) -> [String; 3] {
        let Rules { key, is_final, reject, .. } = &self.rules;
        let is_distinct = counting == Counting::Distinct;
        let (is_final, reject) = (*is_final && is_distinct, reject.is_some());
        let ids: Vec<String> = (0..key.len()).map(|number| format!("k2_id{number}")).collect();
        let ids = (is_distinct && !is_final && !ids.is_empty()).then(|| format!("({})", ids.join(", ")));
        let conditions = [is_final.then_some("k2_final"), reject.then_some("NOT k2_rejected")];
        let condition = conditions.into_iter().flatten().collect::<Vec<_>>().join(" AND ");
        let kept = match (ids, condition.as_str()) {
            (None, "") => "count()".to_owned(),
            (None, condition) => format!("countIf({condition})"),
            (Some(ids), "") => format!("uniqExact({ids})"),
            (Some(ids), condition) => format!("uniqExactIf({ids}, {condition})"),
        };
        let (rows, of_these) = if is_final { ("countIf(NOT k2_final)", "k2_final AND ") } else { ("count()", "") };
        let rejected = if reject { format!("countIf({of_these}k2_rejected)") } else { "0".to_owned() };
        [rows.to_owned(), kept, rejected]
    }

    /// The columns of a window that a count needs, renamed; of a table that is read with FINAL the rows as they are and as FINAL leaves them.
    fn keyed_rows(&self, cursor: &Cursor, window: Window, fields: &[PartitionField], counting: Counting) -> String {
        let column = |name: &str, prefix: &str, number: usize| format!("{} AS k2_{prefix}{number}", identifier(name));
        let mut columns: Vec<String> =
            fields.iter().enumerate().map(|(number, field)| column(&field.by.column, "key", number)).collect();
        columns.push(format!("{} AS k2_cursor", identifier(&cursor.name)));
        let from = self.from(cursor, window);
        let filter = match &self.origin {
            Origin::Table(_) => within(cursor, window),
            Origin::Query(_) => "1".to_owned(),
        };
        let Rules { key, is_final, reject, .. } = &self.rules;
        columns.extend(key.iter().enumerate().map(|(number, name)| column(name, "id", number)));
        columns.extend(reject.iter().map(|reject| format!("{} AS k2_rejected", rejected(reject))));
        let columns = columns.join(", ");
        if !is_final || counting == Counting::Raw {
            return self.rows(&columns, &from, &filter);
        }
        let raw = self.rows(&format!("{columns}, 0 AS k2_final"), &from, &filter);
        let last = self.rows(&format!("{columns}, 1 AS k2_final"), &format!("{from} FINAL"), &filter);
        format!("{raw} UNION ALL {last}")
    }
}

/// The first tick of the bucket of a row whose cursor was renamed.
fn bucket(cursor: &Cursor, width: Tick) -> String {
    let tick = format!("assumeNotNull({})", ticks("k2_cursor", cursor.kind));
    format!("{tick} - positiveModulo({tick}, toInt64({width}))")
}

/// Whether a row does not lie in the window; one without cursor lies in none.
pub(super) fn outside(cursor: &Cursor, window: Window) -> String {
    format!("NOT ifNull({}, 0)", within(cursor, window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::CursorType;
    use crate::partition::{Grain, PartitionBy};
    use crate::schema::Column;
    use crate::source::sql::table;

    const MILLIS: CursorType = CursorType::DateTime64 { scale: 3 };
    const WINDOW: Window = Window { low: Some(0), high: 60_000 };

    fn relation() -> Relation {
        with(Rules::default())
    }

    fn with(rules: Rules) -> Relation {
        let origin = Origin::Table(table("d", "t"));
        Relation { database: "d".into(), name: "t".into(), origin, rules, input: None, host: "h".into() }
    }

    fn query(sql: &str) -> Relation {
        Relation { origin: Origin::Query(sql.into()), ..relation() }
    }

    fn ts() -> Cursor {
        Cursor { name: "ts".into(), kind: MILLIS }
    }

    fn columns() -> Vec<Column> {
        [("ts", "DateTime64(3)"), ("id", "Int64"), ("side", "Enum8('b' = 1, 'a' = 2)")]
            .map(|(name, kind)| Column::map(name, kind, None).unwrap())
            .into()
    }

    #[test]
    fn window_stands_inside_and_casts_outside() {
        let columns = [
            Column::map("ts", "DateTime64(3)", None).unwrap(),
            Column::map("n", "Nullable(UInt64)", None).unwrap(),
            Column::map("s", "LowCardinality(String)", None).unwrap(),
            Column::map("p", "Decimal(18, 8)", None).unwrap(),
        ];
        let sql = relation().select(&columns, &ts(), Window { low: None, high: 7 }, &[]);
        assert_eq!(
            sql,
            "SELECT CAST(`ts`, 'DateTime64(6, \\'UTC\\')') AS `ts`, \
             if(throwIf(`n` > 9223372036854775807, 'k2-offload-refused-column-1'), 0, accurateCast(`n`, 'Nullable(Int64)')) AS `n`, \
             if(throwIf(NOT isValidUTF8(CAST(`s`, 'String')), 'k2-offload-refused-column-2'), '', CAST(`s`, 'String')) AS `s`, \
             reinterpretAsInt64(`p`) AS `p` \
             FROM (SELECT `ts`, `n`, `s`, `p` FROM `d`.`t` WHERE (`ts` < reinterpret(toInt64(7), 'DateTime64(3, \\'UTC\\')')) \
             AND (SELECT throwIf(hostName() != 'h', 'k2-offload-other-server')) = 0)"
        );
    }

    /// P2: every query filters on the raw column, whatever it is called.
    #[test]
    fn a_cursor_may_bear_the_name_of_an_alias() {
        for name in ["day", "rows", "newest", "future", "nulls", "clock_micros", "low", "key", "seconds"] {
            let cursor = Cursor { name: name.into(), kind: CursorType::Date };
            let column = Column::map(name, "Date", None).unwrap();
            let by = PartitionBy { grain: Grain::Day, column: name.into() };
            let day = PartitionField::new(by, 0, &column, Some(CursorType::Date)).unwrap();
            let day = std::slice::from_ref(&day);
            let window = Window { low: None, high: 7 };
            let filter = format!("FROM `d`.`t` WHERE (`{name}` < toDate(toUInt16(7)))");
            for sql in [
                relation().histogram(&cursor, window, &[], 5),
                relation().count(&cursor, window, &[], Counting::Distinct, 9),
                relation().count(&cursor, window, day, Counting::Distinct, 9),
                relation().shortest_lifetime(&cursor, window, "toInt64(`day` + 1)"),
            ] {
                assert!(sql.contains(&filter), "{sql}");
                assert!(!sql.split_once(&filter).unwrap().0.split("FROM").last().unwrap().contains("count"), "{sql}");
            }
            let raw = format!("(SELECT `{name}` AS k2_cursor, `rows` + 1 AS k2_expires FROM `d`.`t`");
            assert!(relation().facts(&cursor, false, None, Some("`rows` + 1")).contains(&raw));
        }
    }

    #[test]
    fn partition_values_that_do_not_fit_are_refused_where_they_are_listed() {
        let column = Column::map("e", "String", None).unwrap();
        let field = PartitionField::new(PartitionBy::parse("e").unwrap(), 4, &column, None).unwrap();
        let sql = relation().count(&ts(), Window { low: None, high: 7 }, &[field], Counting::Distinct, 9);
        assert!(sql.contains("throwIf(NOT isValidUTF8(toString(k2_key0)), 'k2-offload-refused-column-4')"), "{sql}");
    }

    /// What the SELECT reads, without its casts and its check of the server.
    fn rows_of(relation: &Relation) -> String {
        let sql = relation.select(&columns(), &ts(), WINDOW, &[("id", Predicate::Null)]);
        let (_, rows) = sql.split_once("FROM (").unwrap();
        let here = format!(" AND {}", relation.here());
        rows.strip_suffix(')').unwrap().replace(&here, "")
    }

    #[test]
    fn one_row_of_each_key_leaves() {
        let key = vec!["id".to_owned(), "si`de".to_owned()];
        let rows = rows_of(&with(Rules { key: key.clone(), ..Rules::default() }));
        assert!(rows.ends_with("isNull(`id`)) LIMIT 1 BY `id`, `si\\`de`"), "{rows}");
        let newest = Rules { key: key.clone(), version: Some("v".into()), ..Rules::default() };
        let rows = rows_of(&with(newest.clone()));
        assert!(rows.ends_with("isNull(`id`)) ORDER BY `v` DESC LIMIT 1 BY `id`, `si\\`de`"), "{rows}");
        let sort = vec![SortBy::parse("side desc").unwrap(), SortBy::parse("id").unwrap()];
        let rows = rows_of(&with(Rules { sort, ..newest }));
        let sorted = ") ORDER BY CAST(`side`, 'Nullable(String)') DESC NULLS LAST, `id` ASC NULLS FIRST";
        assert!(rows.starts_with("SELECT * FROM (SELECT `ts`") && rows.ends_with(sorted), "{rows}");
        let rows = rows_of(&with(Rules { key, is_final: true, ..Rules::default() }));
        assert!(rows.contains("FROM `d`.`t` FINAL WHERE") && !rows.contains("LIMIT 1 BY"), "{rows}");
    }

    #[test]
    fn rejected_rows_stay_and_are_counted() {
        let rejecting = with(Rules { reject: Some("price < 0 -- odd".into()), ..Rules::default() });
        assert!(rows_of(&rejecting).contains("AND NOT ifNull((\nprice < 0 -- odd\n) != 0, 0)"));
        let sql = rejecting.count(&ts(), WINDOW, &[], Counting::Distinct, 9);
        assert!(sql.contains("countIf(NOT k2_rejected)) AS kept, toUInt64(countIf(k2_rejected)) AS rejected"), "{sql}");
        let keyed = with(Rules { key: vec!["id".into()], ..Rules::default() });
        assert!(
            keyed.count(&ts(), WINDOW, &[], Counting::Distinct, 9).contains("toUInt64(uniqExact((k2_id0))) AS kept")
        );
        assert!(keyed.count(&ts(), WINDOW, &[], Counting::Raw, 9).contains("toUInt64(count()) AS kept"));
    }

    /// P11: the bounds stand in the query itself, and a row outside them fails the SELECT.
    #[test]
    fn a_query_gets_its_bounds_and_is_held_to_them() {
        let candles = query("SELECT ts FROM trades WHERE t >= {low} AND t < {high} -- {high}");
        let names = ("p", "c");
        let sql = candles.select_whole(&columns(), &ts(), WINDOW, &[], names);
        let (low, high) = (literal(0, MILLIS), literal(60_000, MILLIS));
        assert!(sql.contains(&format!(
            "FROM (\nSELECT ts FROM trades WHERE t >= {low} AND t < {high} -- {high}\n) WHERE (1)"
        )));
        assert!(sql.contains(&format!(
            "throwIf(NOT ifNull(`ts` >= {low} AND `ts` < {high}, 0), 'k2-offload-outside-window')"
        )));
        let sql = candles.count(&ts(), WINDOW, &[], Counting::Distinct, 9);
        assert!(
            sql.contains(&format!("countIf(NOT ifNull(`k2_cursor` >= {low} AND `k2_cursor` < {high}, 0))")),
            "{sql}"
        );
        let open = candles.select_whole(&columns(), &ts(), Window { low: None, high: Tick::MAX }, &[], names);
        assert!(
            open.contains(&literal(-2_208_988_800_000, MILLIS)) && open.contains(&literal(10_413_791_999_000, MILLIS))
        );
    }
}
