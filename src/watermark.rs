//! The marker: what a commit says of itself (protocol.md P13, P15).
//!
//! A marker stands in the summary of the snapshot that it belongs to and, set in the same commit, in the table's properties, where
//! it survives the expiry of the snapshot. It is the only store of watermarks; everything else is a cache. Its encoding is
//! JSON under [`KEY`]; golden tests keep every released version readable.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cursor::{Cursor, Tick};
use crate::error::{Error, Result};

/// Key of the marker in snapshot summaries and table properties.
pub const KEY: &str = "k2-offload.marker";

/// Version that this build writes, and the newest that it reads.
pub const VERSION: u32 = 3;

/// How a commit came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// New rows above offloaded-to.
    Append,
    /// `watermark reset`: no rows; those of the source between low and high were skipped (P25), or left to a rollback.
    Reset,
    /// `watermark reset` of a table that others had filled (P17).
    Adopt,
    /// Rows below offloaded-to that the target did not hold, if there were any (P21 to P27); a reset or `audit --repair` asked for them.
    Merge,
    /// The same for rows that came late, which nobody asked for: what others deleted is not among them (P23, P24).
    Late,
}

impl Mode {
    /// Whether rows of both sides were compared.
    pub fn is_merge(self) -> bool {
        matches!(self, Self::Merge | Self::Late)
    }
}

/// Where rows come from, as far as a commit must know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceIdentity {
    /// `source_id` of the configuration; by default `database.table`.
    pub id: String,
    /// UUID of the source table, nil where the server has none.
    pub uuid: Uuid,
    /// The column that orders it.
    pub cursor: Cursor,
}

/// What was in a window, as far as it tells whether that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Rows.
    pub rows: u64,
    /// Of all of them, in any order; 0 where only rows are counted.
    pub hash: u64,
}

/// What a commit says of itself. Bounds are ticks of the cursor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    /// Version of this encoding.
    pub version: u32,
    /// New for every commit, kept over repetitions of one commit.
    pub commit_id: Uuid,
    /// How the commit came to be.
    pub mode: Mode,
    /// Where its rows come from.
    pub source: SourceIdentity,
    /// Inclusive lower bound of the chunk; `None` for the first one, which has no lower bound (P10).
    pub low: Option<Tick>,
    /// Exclusive upper bound of the chunk.
    pub high: Tick,
    /// Every row of the source below it is in the target, or in a skipped range.
    pub watermark: Tick,
    /// The highest watermark ever committed, except for what a rollback that was kept took back.
    pub offloaded_to: Tick,
    /// Raw rows of the chunk in the source, counted before they were read (P7).
    pub source_rows: u64,
    /// What the rows of a query were computed from, looked at before they were read (P23); only of chunks that passes look at again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Fingerprint>,
    /// Rows that the commit added; after a merge, all that the target holds of its range.
    pub rows: u64,
    /// Rows of the target with this commit, with those that others had deleted before and no reset has acknowledged; unknown where a snapshot did not
    /// say, and in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_records: Option<u64>,
    /// Where the table was taken over: below it rows are others', which nothing but a key tells apart (P17).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_to: Option<Tick>,
    /// Below it others deleted rows, which a reset has acknowledged: what no commit tells about does not come back by itself there (P24).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_to: Option<Tick>,
    /// Half-open ranges that a reset, or `start_at` at the first chunk, skipped (P25), ascending; [`Tick::MIN`] is no lower bound.
    pub skipped: Vec<(Tick, Tick)>,
}

impl Marker {
    /// Encodes for a snapshot summary or a table property.
    pub fn encode(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::from_cause(crate::error::Kind::Internal, e).context("encode the marker"))
    }

    /// Decodes a marker. A newer version, or one that does not parse, is refused: guessing a watermark loses rows.
    pub fn decode(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |e: serde_json::Error| {
            Error::refused(format!("the marker of the target does not parse: {e}"))
                .hint("something else wrote the property `k2-offload.marker`; restore it from the table's history")
        };
        let Versioned { version } = serde_json::from_str(text).map_err(damaged)?;
        if version > VERSION {
            return Err(Error::refused(format!(
                "the target's marker has version {version}, this program knows {VERSION}"
            ))
            .hint("a newer k2-offload has written to this table; upgrade this one"));
        }
        serde_json::from_str(text).map_err(damaged)
    }

    /// Refuses to go on where another source, or another cursor, filled the target (P15).
    pub fn check_identity(&self, ours: &SourceIdentity) -> Result<()> {
        if self.source.id != ours.id {
            return Err(Error::refused(format!(
                "the target was filled from source `{}`, not from `{}`",
                self.source.id, ours.id
            ))
            .hint("configure another target, or set `source_id` if this is the same source under a new name"));
        }
        if self.source.cursor != ours.cursor {
            return Err(Error::refused(format!(
                "the target was filled by cursor `{}` ({:?}), not by `{}` ({:?})",
                self.source.cursor.name, self.source.cursor.kind, ours.cursor.name, ours.cursor.kind
            ))
            .hint("a watermark says nothing about another cursor; restore the cursor or fill a new target"));
        }
        Ok(())
    }
}

/// Adds a half-open range to ascending, disjoint ones; what touches becomes one.
pub fn add_range(ranges: &[(Tick, Tick)], (low, high): (Tick, Tick)) -> Vec<(Tick, Tick)> {
    if low >= high {
        return ranges.to_vec();
    }
    let touches = |range: &&(Tick, Tick)| range.0 <= high && low <= range.1;
    let low = ranges.iter().filter(touches).map(|range| range.0).fold(low, Tick::min);
    let high = ranges.iter().filter(touches).map(|range| range.1).fold(high, Tick::max);
    let below = ranges.iter().filter(|range| range.1 < low);
    let above = ranges.iter().filter(|range| range.0 > high);
    below.chain([&(low, high)]).chain(above).copied().collect()
}

/// What of ascending, disjoint ranges lies outside another one.
pub fn remove_range(ranges: &[(Tick, Tick)], (first, last): (Tick, Tick)) -> Vec<(Tick, Tick)> {
    let parts = ranges.iter().flat_map(|(low, high)| [(*low, (*high).min(first)), ((*low).max(last), *high)]);
    parts.filter(|(low, high)| low < high).collect()
}

/// What of ascending, disjoint ranges lies inside another one.
pub fn inside_range(ranges: &[(Tick, Tick)], (first, last): (Tick, Tick)) -> Vec<(Tick, Tick)> {
    let parts = ranges.iter().map(|(low, high)| ((*low).max(first), (*high).min(last)));
    parts.filter(|(low, high)| low < high).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cursor::CursorType;
    use crate::error::Kind;

    pub(crate) fn marker(commit: u128, watermark: Tick) -> Marker {
        Marker {
            version: VERSION,
            commit_id: Uuid::from_u128(commit),
            mode: Mode::Append,
            source: SourceIdentity {
                id: "k2.trades \"x\"".into(),
                uuid: Uuid::from_u128(7),
                cursor: Cursor { name: "ts".into(), kind: CursorType::DateTime64 { scale: 3 } },
            },
            low: Some(-5),
            high: watermark,
            watermark,
            offloaded_to: watermark,
            source_rows: 10,
            input: Some(Fingerprint { rows: 11, hash: 12 }),
            rows: 9,
            total_records: Some(90),
            adopted_to: Some(0),
            deleted_to: Some(5),
            skipped: vec![(1, 2)],
        }
    }

    /// Every encoding that was ever released. Never change a line; add one per version.
    const GOLDEN: [&str; 3] = [
        r#"{"version":1,"commit_id":"00000000-0000-0000-0000-000000000001","mode":"append","source":{"id":"k2.trades \"x\"","uuid":"00000000-0000-0000-0000-000000000007","cursor":{"name":"ts","type":{"name":"DateTime64","scale":3}}},"low":-5,"high":1000,"watermark":1000,"offloaded_to":1000,"source_rows":10,"rows":9,"skipped":[[1,2]]}"#,
        r#"{"version":2,"commit_id":"00000000-0000-0000-0000-000000000001","mode":"append","source":{"id":"k2.trades \"x\"","uuid":"00000000-0000-0000-0000-000000000007","cursor":{"name":"ts","type":{"name":"DateTime64","scale":3}}},"low":-5,"high":1000,"watermark":1000,"offloaded_to":1000,"source_rows":10,"rows":9,"total_records":90,"skipped":[[1,2]]}"#,
        r#"{"version":3,"commit_id":"00000000-0000-0000-0000-000000000001","mode":"append","source":{"id":"k2.trades \"x\"","uuid":"00000000-0000-0000-0000-000000000007","cursor":{"name":"ts","type":{"name":"DateTime64","scale":3}}},"low":-5,"high":1000,"watermark":1000,"offloaded_to":1000,"source_rows":10,"input":{"rows":11,"hash":12},"rows":9,"total_records":90,"adopted_to":0,"deleted_to":5,"skipped":[[1,2]]}"#,
    ];

    #[test]
    fn golden_encodings_stay_readable() {
        let third = marker(1, 1000);
        let second = Marker { version: 2, input: None, adopted_to: None, deleted_to: None, ..third.clone() };
        let first = Marker { version: 1, total_records: None, ..second.clone() };
        assert_eq!(GOLDEN.map(|text| Marker::decode(text).unwrap()), [first, second, third.clone()]);
        assert_eq!(third.encode().unwrap(), GOLDEN[2]);
    }

    #[test]
    fn every_mode_has_a_name() {
        for (mode, name) in [
            (Mode::Append, "append"),
            (Mode::Reset, "reset"),
            (Mode::Adopt, "adopt"),
            (Mode::Merge, "merge"),
            (Mode::Late, "late"),
        ] {
            let text = Marker { mode, ..marker(1, 1000) }.encode().unwrap();
            assert_eq!(text, GOLDEN[2].replace("append", name));
            assert_eq!(Marker::decode(&text).unwrap().mode, mode);
        }
    }

    proptest! {
        #[test]
        fn ranges_hold_the_ticks_that_were_added(added in proptest::collection::vec((-20_i64..20, 0_i64..8), 0..8)) {
            let added: Vec<(Tick, Tick)> = added.into_iter().map(|(low, width)| (low, low + width)).collect();
            let ranges = added.iter().fold(Vec::new(), |ranges, range| add_range(&ranges, *range));
            let hold = |ranges: &[(Tick, Tick)], tick| ranges.iter().any(|(low, high)| (*low..*high).contains(&tick));
            for tick in -25..35 {
                prop_assert_eq!(hold(&ranges, tick), hold(&added, tick), "tick {} of {:?}", tick, ranges);
            }
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ranges);
            let (without, within) = (remove_range(&ranges, (-3, 9)), inside_range(&ranges, (-3, 9)));
            for tick in -25..35 {
                let removed = (-3..9).contains(&tick);
                prop_assert_eq!(hold(&without, tick), hold(&ranges, tick) && !removed, "tick {}", tick);
                prop_assert_eq!(hold(&within, tick), hold(&ranges, tick) && removed, "tick {}", tick);
            }
        }
    }

    #[test]
    fn newer_and_damaged_markers_are_refused() {
        for text in
            [r#"{"version":4,"anything":1}"#, "", "{}", r#"{"version":1}"#, &GOLDEN[0].replace("rows\":9", "rows\":-9")]
        {
            assert_eq!(Marker::decode(text).unwrap_err().kind(), Kind::Refused, "{text}");
        }
    }

    #[test]
    fn another_source_or_cursor_is_refused() {
        let ours = marker(1, 1000);
        assert!(ours.check_identity(&ours.source).is_ok());
        let mut other = ours.source.clone();
        other.uuid = Uuid::nil();
        assert!(ours.check_identity(&other).is_ok(), "a source made anew keeps its identity");
        other.id = "staging.trades".into();
        assert_eq!(ours.check_identity(&other).unwrap_err().kind(), Kind::Refused);
        for kind in [CursorType::DateTime64 { scale: 6 }, CursorType::DateTime, CursorType::Date] {
            let mut other = ours.source.clone();
            other.cursor.kind = kind;
            assert_eq!(ours.check_identity(&other).unwrap_err().kind(), Kind::Refused);
        }
        let mut other = ours.source.clone();
        other.cursor.name = "ingested".into();
        assert_eq!(ours.check_identity(&other).unwrap_err().kind(), Kind::Refused);
    }
}
