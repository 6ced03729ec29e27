//! Where a watermark may be put by hand: pure (protocol.md P12, P17, P25).
//!
//! A reset goes forward, and says which rows of the source it skips; it goes back, so that passes compare both sides from there on once more and add what
//! is missing; it takes over a table that others filled, above all their rows; it keeps a rollback, from what is left of our commits.

use uuid::Uuid;

use crate::cursor::{CursorType, Tick};
use crate::error::{Error, Kind, Result};
use crate::plan::Window;
use crate::target::Standing;
use crate::watermark::{Marker, Mode, SourceIdentity, VERSION, add_range, inside_range};

/// What a reset is decided on. Ticks are the cursor's.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// How far the target was filled.
    pub standing: &'a Standing,
    /// Largest cursor of the target; asked for only where no marker of ours tells ([`needs_largest`]).
    pub largest: Option<Tick>,
    /// What the new marker will say of the source.
    pub source: &'a SourceIdentity,
    /// The source's clock.
    pub now: Tick,
    /// Whether others deleted rows of the target, which a reset acknowledges (P24).
    pub deleted: bool,
}

/// A reset that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where the watermark was, `None` where nothing had left.
    pub from: Option<Tick>,
    /// Where it will be.
    pub to: Tick,
    /// The highest watermark ever.
    offloaded_to: Tick,
    mode: Mode,
    source: SourceIdentity,
    /// Below it rows are others'.
    adopted_to: Option<Tick>,
    /// Below it others deleted rows.
    deleted_to: Option<Tick>,
    /// The first tick that has never left.
    never: Tick,
    skipped: Vec<(Tick, Tick)>,
}

/// Whether the target's rows must be looked at, because no marker of ours tells how far they go: somebody may have put back what a
/// rollback took away.
pub fn needs_largest(standing: &Standing) -> bool {
    matches!(standing, Standing::Foreign | Standing::RolledBack(_))
}

/// Refuses to compare rows of others from a tick on, which only a key tells apart (P17).
pub fn check_adopted(adopted_to: Option<Tick>, from: Tick, keyed: bool, cursor: CursorType) -> Result<()> {
    match adopted_to.filter(|adopted| !keyed && from < *adopted) {
        None => Ok(()),
        Some(adopted) => Err(Error::refused(format!(
            "below {} the target's rows are those of the predecessor that it was taken over from",
            cursor.format(adopted)
        ))
        .hint("to compare them takes a `key`; else begin at that time")),
    }
}

impl Situation<'_> {
    /// Our newest marker, also where it was rolled back.
    fn marker(&self) -> Option<&Marker> {
        match self.standing {
            Standing::Filled(marker) => Some(marker),
            Standing::RolledBack(rollback) => Some(rollback.left.as_ref().unwrap_or(&rollback.lost)),
            Standing::Empty | Standing::Foreign => None,
        }
    }

    /// The bound below which rows of the target lie, whoever wrote them.
    pub fn filled_to(&self) -> Option<Tick> {
        let above_all = self.largest.map(|largest| largest.saturating_add(1));
        match self.standing {
            Standing::Empty => None,
            Standing::Filled(marker) => Some(marker.watermark),
            Standing::RolledBack(rollback) => above_all.max(rollback.left.as_ref().map(|left| left.watermark)),
            Standing::Foreign => above_all,
        }
    }

    /// Whether, and how, the watermark may be put to `to`; [`Tick::MIN`] is before all rows.
    pub fn plan(&self, to: Tick) -> Result<Reset> {
        let time = |tick| match tick {
            Tick::MIN => "the beginning".to_owned(),
            tick => self.source.cursor.kind.format(tick),
        };
        if let Some(marker) = self.marker() {
            marker.check_identity(self.source)?;
        }
        if to > self.now {
            let message = format!("{} lies in the source's future (it is {} there)", time(to), time(self.now));
            return Err(Error::new(Kind::Config, message)
                .hint("rows that come until then would be skipped unseen; choose a time that has passed"));
        }
        let from = self.filled_to();
        let filled = match self.standing {
            Standing::Filled(marker) => Some(marker.offloaded_to),
            _ => None,
        };
        if let Some(from) = from.filter(|from| to < *from && filled.is_none()) {
            return Err(Error::refused(format!("the target itself holds rows up to {}", time(from.saturating_sub(1))))
                .hint(format!(
                    "the watermark is exclusive: give {}, or later; rows that leave from below it are doubled",
                    time(from)
                )));
        }
        // Above the watermark it says what never left; passes take from it what they bring (P25).
        let kept = filled.map_or(from.map_or(Tick::MIN, |from| from.min(to)), |filled| filled);
        let before = self.marker().map(|marker| marker.skipped.as_slice()).unwrap_or_default();
        let before = inside_range(before, (Tick::MIN, kept));
        let mode = if *self.standing == Standing::Foreign { Mode::Adopt } else { Mode::Reset };
        let never = filled.max(from).unwrap_or(Tick::MIN);
        let skipped = add_range(&before, (never, to));
        let offloaded_to = filled.map_or(to, |filled| filled.max(to));
        let adopted_to = match self.standing {
            Standing::Foreign => Some(to),
            // Rows above our commits are others', also where somebody put back what the rollback took away.
            Standing::RolledBack(rollback) => {
                let left = rollback.left.as_ref();
                let others = from.filter(|from| left.is_none_or(|left| left.watermark < *from));
                others.max(left.and_then(|left| left.adopted_to))
            }
            Standing::Filled(_) | Standing::Empty => self.marker().and_then(|marker| marker.adopted_to),
        };
        // Passes take from it what they compare, because that is asked for.
        let before = self.marker().and_then(|marker| marker.deleted_to);
        let deleted_to = if self.deleted { before.max(from) } else { before };
        Ok(Reset { from, to, offloaded_to, adopted_to, deleted_to, mode, source: self.source.clone(), never, skipped })
    }
}

impl Reset {
    /// The rows of the source that will never leave, unless a later reset goes back over them.
    pub fn window(&self) -> Window {
        Window { low: self.from.map(|_| self.never), high: self.to }
    }

    /// See [`check_adopted`].
    pub fn check_adopted(&self, keyed: bool) -> Result<()> {
        check_adopted(self.adopted_to, self.to, keyed, self.source.cursor.kind)
    }

    /// The rows that have left and that passes compare once more.
    pub fn again(&self) -> Option<Window> {
        self.from.filter(|_| self.to < self.never).map(|_| Window { low: Some(self.to), high: self.never })
    }

    /// What its commit will say of itself; `source_rows` are the rows that it skips.
    pub fn marker(&self, source_rows: u64) -> Marker {
        Marker {
            version: VERSION,
            commit_id: Uuid::now_v7(),
            mode: self.mode,
            source: self.source.clone(),
            low: self.from.map(|from| from.min(self.to)),
            high: self.to,
            watermark: self.to,
            offloaded_to: self.offloaded_to,
            source_rows,
            input: None,
            rows: 0,
            // What is there now is as it shall be.
            total_records: None,
            adopted_to: self.adopted_to,
            deleted_to: self.deleted_to,
            skipped: self.skipped.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Rollback;
    use crate::watermark::tests::marker;

    fn plan(standing: &Standing, largest: Option<Tick>, to: Tick) -> Result<Reset> {
        let source = marker(1, 0).source;
        Situation { standing, largest, source: &source, now: 5000, deleted: false }.plan(to)
    }

    fn kind(result: Result<Reset>) -> Kind {
        result.unwrap_err().kind()
    }

    #[test]
    fn a_reset_goes_forward_and_remembers_what_it_skips() {
        let standing = Standing::Filled(Box::new(marker(1, 1000)));
        let reset = plan(&standing, None, 3000).unwrap();
        assert_eq!(reset.window(), Window { low: Some(1000), high: 3000 });
        let marker = reset.marker(7);
        assert_eq!((marker.mode, marker.watermark, marker.offloaded_to), (Mode::Reset, 3000, 3000));
        assert_eq!((marker.source_rows, marker.rows, marker.skipped), (7, 0, vec![(1, 2), (1000, 3000)]));
        assert_eq!(kind(plan(&standing, None, 5001)), Kind::Config);
    }

    #[test]
    fn a_reset_goes_back_over_rows_that_have_left() {
        let skipped = vec![(Tick::MIN, 100), (300, 400), (600, 1000)];
        let standing = Standing::Filled(Box::new(Marker { skipped, ..marker(1, 1000) }));
        let reset = plan(&standing, None, 350).unwrap();
        assert_eq!(reset.again(), Some(Window { low: Some(350), high: 1000 }));
        assert!(reset.window().is_empty(), "nothing is skipped");
        let back = reset.marker(0);
        assert_eq!((back.watermark, back.offloaded_to), (350, 1000));
        assert_eq!(back.skipped, [(Tick::MIN, 100), (300, 400), (600, 1000)], "passes take away what they bring");

        let standing = Standing::Filled(Box::new(back));
        let forward = plan(&standing, None, 700).unwrap();
        assert!(forward.window().is_empty(), "what never left was skipped before, and still is");
        assert_eq!(forward.again(), Some(Window { low: Some(700), high: 1000 }));
        assert_eq!((forward.marker(0).watermark, forward.marker(0).offloaded_to), (700, 1000));
        assert_eq!(forward.marker(0).skipped, [(Tick::MIN, 100), (300, 400), (600, 1000)]);
        let beyond = plan(&standing, None, 1200).unwrap();
        assert_eq!(beyond.window(), Window { low: Some(1000), high: 1200 });
        assert_eq!(beyond.marker(5).skipped, [(Tick::MIN, 100), (300, 400), (600, 1200)]);
        assert_eq!(beyond.marker(5).offloaded_to, 1200);
    }

    #[test]
    fn a_reset_acknowledges_what_others_deleted() {
        let standing = Standing::Filled(Box::new(Marker { deleted_to: None, ..marker(1, 1000) }));
        let deleted_to = |deleted, to| {
            let situation =
                Situation { standing: &standing, largest: None, source: &marker(1, 0).source, now: 5000, deleted };
            situation.plan(to).unwrap().marker(0).deleted_to
        };
        assert_eq!([deleted_to(true, 1000), deleted_to(true, 3000)], [Some(1000); 2]);
        assert_eq!(deleted_to(true, 400), Some(1000), "passes take away what they compare");
        assert_eq!(deleted_to(false, 1000), None);
    }

    #[test]
    fn a_reset_to_the_same_place_skips_nothing() {
        let reset = plan(&Standing::Filled(Box::new(marker(1, 1000))), None, 1000).unwrap();
        assert_eq!(reset.marker(0).skipped, [(1, 2)]);
    }

    #[test]
    fn an_empty_target_may_begin_anywhere() {
        let reset = plan(&Standing::Empty, None, 3000).unwrap();
        assert_eq!((reset.from, reset.marker(0).skipped), (None, vec![(Tick::MIN, 3000)]));
    }

    #[test]
    fn a_table_of_others_is_taken_over_above_its_rows() {
        assert_eq!(kind(plan(&Standing::Foreign, Some(2000), 2000)), Kind::Refused);
        let marker = plan(&Standing::Foreign, Some(2000), 2500).unwrap().marker(0);
        assert_eq!(marker.adopted_to, Some(2500));
        let back = plan(&Standing::Filled(Box::new(marker.clone())), None, 2400).unwrap();
        assert_eq!(kind(back.check_adopted(false).map(|()| back.clone())), Kind::Refused);
        assert!(back.check_adopted(true).is_ok() && back.marker(0).adopted_to == Some(2500));
        assert_eq!((marker.mode, marker.low, marker.skipped), (Mode::Adopt, Some(2001), vec![(2001, 2500)]));
    }

    fn rollback(left: Option<Marker>) -> Standing {
        Standing::RolledBack(Box::new(Rollback { lost: marker(2, 2000), left }))
    }

    #[test]
    fn a_rollback_may_be_kept_from_what_is_left() {
        let left = rollback(Some(marker(1, 1000)));
        let reset = plan(&left, Some(999), 1000).unwrap();
        assert_eq!(reset.marker(0).skipped, [(1, 2)], "all that was rolled back leaves again");
        assert_eq!(kind(plan(&left, Some(999), 999)), Kind::Refused);
        assert_eq!(kind(plan(&left, Some(1500), 1500)), Kind::Refused, "somebody has put rows back");
        let above = plan(&left, Some(1500), 1502).unwrap();
        assert_eq!(
            (above.from, above.adopted_to, reset.adopted_to),
            (Some(1501), Some(1501), marker(1, 1000).adopted_to)
        );
    }

    #[test]
    fn a_rollback_of_which_nothing_is_left_remembers_source_and_skipped_ranges() {
        assert_eq!(kind(plan(&rollback(None), Some(1500), 1500)), Kind::Refused);
        let marker_ = plan(&rollback(None), Some(1500), 1501).unwrap().marker(0);
        assert_eq!((marker_.mode, marker_.skipped), (Mode::Reset, vec![(1, 2)]));
        let empty = plan(&rollback(None), None, 10).unwrap();
        assert_eq!((empty.from, empty.marker(0).skipped), (None, vec![(Tick::MIN, 10)]));
        let mut other = marker(2, 2000);
        other.source.id = "staging.trades".into();
        let other = Standing::RolledBack(Box::new(Rollback { lost: other, left: None }));
        assert_eq!(kind(plan(&other, Some(1500), 1501)), Kind::Refused);
    }

    #[test]
    fn another_source_is_refused() {
        let mut other = marker(1, 1000);
        other.source.id = "staging.trades".into();
        assert_eq!(kind(plan(&Standing::Filled(Box::new(other)), None, 3000)), Kind::Refused);
    }
}
