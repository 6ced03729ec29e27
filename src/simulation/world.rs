//! What hosts and operator share: source, table, chance, and the oracle that sees every change.

use std::rc::Rc;

use super::Mutant;
use super::attempt::Fault;
use super::oracle::Oracle;
use super::source::Source;
use super::target::{Table, Version};
use crate::cursor::{CursorType, Tick};
use crate::target::Standing;
use crate::watermark::SourceIdentity;

pub const CURSOR: CursorType = CursorType::DateTime;
pub const SETTLE_DELAY: Tick = 5;
pub const LATE_LOOKBACK: Tick = 60;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn ticks(&mut self, bound: Tick) -> Tick {
        i64::try_from(self.below(bound.unsigned_abs())).unwrap()
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// All that hosts and operator share.
pub struct World {
    pub source: Source,
    pub table: Table,
    pub oracle: Oracle,
    pub identity: SourceIdentity,
    pub chunk_rows: u64,
    pub mutant: Option<Mutant>,
    pub random: Random,
    /// Whether swaps get lost, or their answers.
    pub has_faults: bool,
}

impl World {
    /// What becomes of the next swap.
    pub fn fault(&mut self) -> Fault {
        match self.random.below(10) {
            0 if self.has_faults => Fault::Lost,
            1 if self.has_faults => Fault::ReplyLost,
            2 | 3 if self.has_faults => Fault::Delayed,
            _ => Fault::None,
        }
    }

    /// A request to swap arrives.
    pub fn swap(&mut self, expected: &str, new: &Rc<Version>) -> bool {
        let before = self.table.current.clone();
        let has_landed = self.table.swap(expected, new);
        if let (true, Standing::Filled(commit)) = (has_landed, self.standing(new)) {
            let before = self.found(&before);
            self.oracle.landed(&self.source, &self.table, &before, &commit);
        }
        has_landed
    }

    pub fn delete(&mut self, ids: impl Iterator<Item = u64>) {
        self.table.deleted.extend(ids);
        self.oracle.files(self.table.broken());
    }
}
