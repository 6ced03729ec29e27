//! A person who puts the watermark elsewhere, with a command that takes its time: `commands::reset`, step by step.

use super::attempt::{Attempt, Outcome};
use super::world::World;
use crate::commit::Base;
use crate::cursor::Tick;
use crate::plan::Window;
use crate::reset::{Situation, needs_largest};
use crate::target::{Standing, deleted_by_others};

/// What the operator wants.
pub enum To {
    /// So many ticks from the watermark.
    Near(Tick),
    /// Where the watermark stood so many commits ago.
    Former(u64),
}

/// A reset under way.
pub struct Reset {
    attempt: Attempt,
    /// What it skips.
    window: Window,
}

impl Reset {
    /// Plans one, or one that keeps a rollback.
    pub fn plan(world: &World, to: To) -> Option<Self> {
        let version = world.table.current.clone();
        let standing = world.standing(&version);
        let largest = version.contents.rows().map(|row| row.tick).max();
        let largest = largest.filter(|_| needs_largest(&standing));
        let deleted = match &standing {
            Standing::Filled(marker) => deleted_by_others(version.metadata(), marker).is_some(),
            _ => false,
        };
        let (source, now) = (&world.identity, world.source.clock);
        let situation = Situation { standing: &standing, largest, source, now, deleted };
        let filled_to = situation.filled_to();
        let to = match (&standing, to) {
            (Standing::RolledBack(_), _) => filled_to.unwrap_or(world.source.clock),
            (_, To::Near(ticks)) => filled_to? + ticks,
            (_, To::Former(back)) => version.markers().get(usize::try_from(back).unwrap())?.watermark,
        };
        let plan = situation.plan(to).ok()?;
        if plan.again().is_some() {
            plan.check_adopted(false).ok()?;
        }
        let marker = plan.marker(world.source.raw_rows(plan.window()));
        let (files, base) = (Vec::new(), Base::Snapshot);
        let attempt = Attempt { planned_on: version, base, marker, files, brings_column: false, number: 0, swap: None };
        Some(Self { attempt, window: plan.window() })
    }

    /// One step; whether it was the last.
    pub fn step(&mut self, world: &mut World) -> bool {
        match self.attempt.step(world) {
            None => false,
            Some(Outcome::Landed(_) | Outcome::Undecided | Outcome::Rejected) => true,
        }
    }

    pub fn describe(&self) -> String {
        format!("reset to {} (skips {:?})", self.attempt.marker.watermark, self.window)
    }
}
