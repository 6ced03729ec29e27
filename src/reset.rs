//! Where a watermark may be put by hand: pure (protocol.md P12, P17, P25).
//!
//! A reset goes forward, and says which rows of the source it skips; it takes over a table that others filled, above all their rows; it keeps a
//! rollback, from what is left of our commits. Going back over rows that have left would double them without a merge, and is refused.

use uuid::Uuid;

use crate::cursor::Tick;
use crate::error::{Error, Kind, Result};
use crate::plan::Window;
use crate::target::Standing;
use crate::watermark::{Marker, Mode, SourceIdentity, VERSION, add_range};

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
}

/// A reset that may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where the watermark was, `None` where nothing had left.
    pub from: Option<Tick>,
    /// Where it will be.
    pub to: Tick,
    mode: Mode,
    source: SourceIdentity,
    skipped: Vec<(Tick, Tick)>,
}

/// Whether the target's rows must be looked at, because no marker of ours tells how far they go.
pub fn needs_largest(standing: &Standing) -> bool {
    matches!(standing, Standing::Foreign)
        || matches!(standing, Standing::RolledBack(rollback) if rollback.left.is_none())
}

impl Situation<'_> {
    /// Our newest marker that still holds.
    fn marker(&self) -> Option<&Marker> {
        match self.standing {
            Standing::Filled(marker) => Some(marker),
            Standing::RolledBack(rollback) => rollback.left.as_ref(),
            Standing::Empty | Standing::Foreign => None,
        }
    }

    /// The bound below which rows of the target lie.
    pub fn filled_to(&self) -> Option<Tick> {
        match self.marker() {
            Some(marker) => Some(marker.watermark),
            None => self.largest.map(|largest| largest.saturating_add(1)),
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
        if let Some(from) = from.filter(|from| to < *from) {
            return Err(match self.marker() {
                Some(_) => Error::refused(format!("{} lies below the watermark {}", time(to), time(from)))
                    .hint("going back takes a merge, without which rows are doubled; this version cannot merge"),
                None => Error::refused(format!("the target itself holds rows up to {}", time(from.saturating_sub(1))))
                    .hint("choose a later time: rows that leave from below it are doubled"),
            });
        }
        let before = self.marker().map(|marker| marker.skipped.as_slice()).unwrap_or_default();
        let mode = if *self.standing == Standing::Foreign { Mode::Adopt } else { Mode::Reset };
        let skipped = add_range(before, (from.unwrap_or(Tick::MIN), to));
        Ok(Reset { from, to, mode, source: self.source.clone(), skipped })
    }
}

impl Reset {
    /// The rows of the source that will never leave, unless a later reset goes back over them.
    pub fn window(&self) -> Window {
        Window { low: self.from, high: self.to }
    }

    /// What its commit will say of itself; `source_rows` are the rows that it skips.
    pub fn marker(&self, source_rows: u64) -> Marker {
        Marker {
            version: VERSION,
            commit_id: Uuid::now_v7(),
            mode: self.mode,
            source: self.source.clone(),
            low: self.from,
            high: self.to,
            watermark: self.to,
            offloaded_to: self.to,
            source_rows,
            rows: 0,
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
        Situation { standing, largest, source: &source, now: 5000 }.plan(to)
    }

    fn kind(result: Result<Reset>) -> Kind {
        result.unwrap_err().kind()
    }

    #[test]
    fn a_reset_goes_forward_and_remembers_what_it_skips() {
        let standing = Standing::Filled(marker(1, 1000));
        let reset = plan(&standing, None, 3000).unwrap();
        assert_eq!(reset.window(), Window { low: Some(1000), high: 3000 });
        let marker = reset.marker(7);
        assert_eq!((marker.mode, marker.watermark, marker.offloaded_to), (Mode::Reset, 3000, 3000));
        assert_eq!((marker.source_rows, marker.rows, marker.skipped), (7, 0, vec![(1, 2), (1000, 3000)]));
        assert_eq!(kind(plan(&standing, None, 999)), Kind::Refused);
        assert_eq!(kind(plan(&standing, None, 5001)), Kind::Config);
    }

    #[test]
    fn a_reset_to_the_same_place_skips_nothing() {
        let reset = plan(&Standing::Filled(marker(1, 1000)), None, 1000).unwrap();
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
        assert_eq!((marker.mode, marker.low, marker.skipped), (Mode::Adopt, Some(2001), vec![(2001, 2500)]));
    }

    #[test]
    fn a_rollback_may_be_kept_from_what_is_left() {
        let rollback = |left| Standing::RolledBack(Rollback { lost: marker(2, 2000), left });
        let left = rollback(Some(marker(1, 1000)));
        assert_eq!(
            plan(&left, None, 1000).unwrap().marker(0).skipped,
            [(1, 2)],
            "all that was rolled back leaves again"
        );
        assert_eq!(kind(plan(&left, None, 999)), Kind::Refused);
        assert_eq!(kind(plan(&rollback(None), Some(1500), 1500)), Kind::Refused);
        assert_eq!(plan(&rollback(None), Some(1500), 1501).unwrap().marker(0).mode, Mode::Reset);
        assert_eq!(plan(&rollback(None), None, 10).unwrap().from, None, "a table without rows");
    }

    #[test]
    fn another_source_is_refused() {
        let mut other = marker(1, 1000);
        other.source.id = "staging.trades".into();
        assert_eq!(kind(plan(&Standing::Filled(other), None, 3000)), Kind::Refused);
    }
}
