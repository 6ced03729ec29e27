//! A person who puts the watermark elsewhere, with a command that takes its time: `commands::reset`, step by step.

use super::attempt::{Attempt, Outcome};
use super::world::World;
use crate::commit::Base;
use crate::cursor::Tick;
use crate::plan::Window;
use crate::reset::{Situation, needs_largest};
use crate::target::Standing;

/// A reset under way.
pub struct Reset {
    attempt: Attempt,
    /// What it skips.
    window: Window,
}

impl Reset {
    /// Plans one to about `wish` ticks from the watermark, or one that keeps a rollback.
    pub fn plan(world: &mut World, wish: Tick) -> Option<Self> {
        let version = world.table.current.clone();
        let standing = world.standing(&version);
        let largest = version.contents.rows().map(|row| row.tick).max();
        let largest = largest.filter(|_| needs_largest(&standing));
        let situation = Situation { standing: &standing, largest, source: &world.identity, now: world.source.clock };
        let filled_to = situation.filled_to();
        let to = match &standing {
            Standing::RolledBack(_) => filled_to.unwrap_or(world.source.clock),
            // Bounds of former commits are what people, and tests, take.
            Standing::Filled(marker) if wish <= 0 && wish.rem_euclid(2) == 0 => {
                let former = version.markers().get(usize::try_from(-wish / 2).unwrap());
                former.map_or(marker.watermark, |former| former.watermark.min(marker.watermark))
            }
            _ => filled_to? + wish,
        };
        let plan = situation.plan(to).ok()?;
        if plan.again().is_some() {
            plan.check_adopted(false).ok()?;
        }
        let marker = plan.marker(world.source.raw_rows(plan.window()));
        let (files, base) = (Vec::new(), Base::Snapshot);
        let attempt =
            Attempt { planned_on: version, base, marker, files, brings_column: false, number: 0, swap: None };
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
