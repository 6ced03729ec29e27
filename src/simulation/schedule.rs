//! A schedule: what happens, in which order, decided by a seed; and the quiet after it, in which all must come right.

use std::fmt::Write;
use std::rc::Rc;

use uuid::Uuid;

use super::Mutant;
use super::host::{End, Pass};
use super::operator::{Reset, To};
use super::oracle::{Broken, Oracle};
use super::source::{Row, Source};
use super::target::{InFlight, Stored, Table};
use super::world::{CURSOR, LATE_LOOKBACK, Random, SETTLE_DELAY, World};
use crate::cursor::{Cursor, Tick};
use crate::target::Standing;
use crate::watermark::SourceIdentity;

/// The source's clock at the beginning.
const START: Tick = 1000;
/// Events of a schedule, before all gets quiet.
const EVENTS: u64 = 120;
/// Passes in which all must get quiet.
const MAX_PASSES: u32 = 12;
/// Milliseconds from one event to the next.
const EVENT_MS: i64 = 600_000;

/// A world with those who act in it.
pub struct Schedule {
    pub world: World,
    hosts: [Option<Pass>; 2],
    reset: Option<Reset>,
    /// Which of the rarer things happen in this schedule: not all at once, so that each gets its time.
    has: Kinds,
    /// What somebody deleted last: the list of what stayed, and the files that were there.
    pub undeleted: Option<(u64, Vec<Rc<Stored>>)>,
    /// What happened, where it is recorded.
    pub trace: Option<String>,
}

#[derive(Debug)]
struct Kinds {
    late: bool,
    resets: bool,
    deletes: bool,
    rollbacks: bool,
    compaction: bool,
    expiry: bool,
    clock: bool,
    column: bool,
}

impl Schedule {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut random = Random(seed);
        let ttl = random.one_in(3).then(|| 30 + random.ticks(90));
        let max_age = random.one_in(12).then_some(EVENT_MS * 10);
        let mut half = || random.one_in(2);
        let has = Kinds {
            late: half(),
            resets: half(),
            deletes: half() && half(),
            rollbacks: half() && half(),
            compaction: half(),
            expiry: half(),
            clock: half() && half(),
            column: half(),
        };
        let kind = Cursor { name: "ts".into(), kind: CURSOR };
        let world = World {
            source: Source::new(START, SETTLE_DELAY, ttl),
            table: Table::new(max_age),
            oracle: Oracle::default(),
            identity: SourceIdentity { id: "t".into(), uuid: Uuid::nil(), cursor: kind },
            chunk_rows: 1 + random.below(24),
            mutant,
            has_faults: random.below(3) > 0,
            random,
        };
        Self { world, hosts: [None, None], reset: None, has, undeleted: None, trace: None }
    }

    /// Runs to the end, or to the first invariant that breaks.
    pub fn run(&mut self) -> Result<(), (Broken, String)> {
        let (chunk_rows, ttl) = (self.world.chunk_rows, self.world.source.ttl);
        let has = format!("{:?}, chunks of {chunk_rows}, TTL {ttl:?}", self.has);
        self.note(|_| has);
        for _ in 0..EVENTS {
            self.event();
            self.world.table.now_ms += EVENT_MS;
            if self.world.oracle.broken.is_some() {
                break;
            }
        }
        if self.world.oracle.broken.is_none() {
            self.quiet();
        }
        self.world.oracle.broken.take().map_or(Ok(()), Err)
    }

    pub fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let what = what(self);
            let clock = self.world.source.clock;
            let current = self.world.table.current.metadata().current_snapshot_id().unwrap_or(0);
            let Some(trace) = &mut self.trace else { return };
            let _ = writeln!(trace, "at {clock}, snapshot {current}: {what}");
        }
    }

    fn event(&mut self) {
        let number = self.world.random.below(200);
        match number {
            0..110 => self.step(usize::from(number < 55)),
            110..130 => self.insert(|random, source| source.unsettled_from + random.ticks(SETTLE_DELAY + 1)),
            130..138 if self.has.late => {
                self.insert(|random, source| source.clock - SETTLE_DELAY - random.ticks(LATE_LOOKBACK + 20))
            }
            138..140 => self.insert(|random, source| source.clock + random.ticks(60)),
            140..160 => {
                let step = 1 + self.world.random.ticks(8);
                self.set_clock(step);
            }
            160 if self.has.clock => {
                let step = self.world.random.ticks(80) - 40;
                self.set_clock(step);
            }
            161..164 => {
                self.world.source.expire();
                self.note(|_| "the TTL drops rows".into());
            }
            164 if self.has.column && self.world.source.columns == 3 => {
                self.world.source.add_column();
                self.note(|_| "ADD COLUMN extra DEFAULT 0".into());
            }
            165..168 => {
                self.hosts[usize::from(number == 165)] = None;
                self.note(|_| format!("host {} dies", usize::from(number == 165)));
            }
            168 => {
                self.reset = None;
                self.note(|_| "the operator's command dies".into());
            }
            169..185 if self.reset.is_some() => self.step_reset(),
            169..173 if self.has.resets => self.begin_reset(),
            173..186 => self.deliver(),
            186..189 if self.has.compaction => self.compact(),
            189 | 190 if self.has.deletes => self.delete(),
            191..193 if self.has.deletes => self.undelete(),
            193..195 if self.has.expiry => self.expire(),
            195 if self.has.rollbacks => self.roll_back(),
            196..200 => self.resolve(),
            _ => {}
        }
    }

    fn step(&mut self, host: usize) {
        let mut pass = self.hosts[host].take().unwrap_or_else(|| Pass::new(&self.world));
        self.note(|_| format!("host {host} {}", pass.describe()));
        let end = pass.step(&mut self.world);
        if let Some(end) = end {
            self.note(|_| format!("host {host} ends: {end:?}"));
        } else {
            self.hosts[host] = Some(pass);
        }
    }

    fn insert(&mut self, tick: impl FnOnce(&mut Random, &Source) -> Tick) {
        let World { random, source, .. } = &mut self.world;
        let tick = tick(random, source);
        let value = u8::try_from(random.below(3)).unwrap();
        let extra = Some(u8::try_from(random.below(3)).unwrap());
        let row = Row { tick, partition: u8::from(random.one_in(3)), value, extra };
        let times = if random.one_in(4) { 2 } else { 1 };
        (0..times).for_each(|_| source.insert(row));
        self.note(|_| format!("{times} x {row:?}"));
    }

    fn set_clock(&mut self, step: Tick) {
        let clock = self.world.source.clock + step;
        self.world.source.set_clock(clock);
        self.note(|_| format!("the clock goes by {step}"));
    }

    fn begin_reset(&mut self) {
        let random = &mut self.world.random;
        let to = if random.one_in(2) { To::Former(random.below(4)) } else { To::Near(random.ticks(50) - 40) };
        self.reset = Reset::plan(&self.world, to);
        self.note(|schedule| {
            format!("plans a {}", schedule.reset.as_ref().map_or("reset: no".into(), Reset::describe))
        });
    }

    fn step_reset(&mut self) {
        let Some(mut reset) = self.reset.take() else { return };
        self.note(|_| format!("steps on: {}", reset.describe()));
        if !reset.step(&mut self.world) {
            self.reset = Some(reset);
        }
    }

    /// A swap that nobody waits for any more arrives, or never will.
    fn deliver(&mut self) {
        if self.world.table.in_flight.is_empty() {
            return;
        }
        let index = self.world.random.below(self.world.table.in_flight.len() as u64);
        let InFlight { expected, new } = self.world.table.in_flight.swap_remove(usize::try_from(index).unwrap());
        let has_landed = !self.world.random.one_in(4) && self.world.swap(&expected, &new);
        self.note(|_| format!("a swap arrives late, and lands: {has_landed}"));
    }

    /// Where the table was rolled back, the operator rolls it forward, or keeps the rollback.
    fn resolve(&mut self) {
        let version = self.world.table.current.clone();
        let Standing::RolledBack(rollback) = self.world.standing(&version) else { return };
        let metadata = version.metadata();
        let text = rollback.lost.commit_id.to_string();
        let lost = metadata
            .snapshots()
            .find(|snapshot| snapshot.summary().additional_properties.values().any(|value| value.contains(&text)));
        match lost {
            Some(lost) if self.world.random.one_in(2) => {
                let to = lost.snapshot_id();
                self.world.table.set_current(to);
                self.note(|_| format!("rolls forward to {to}"));
            }
            _ => self.begin_reset(),
        }
    }

    /// Nothing disturbs any more: all that is to leave must leave, in few passes.
    fn quiet(&mut self) {
        while !self.world.table.in_flight.is_empty() {
            self.deliver();
        }
        self.world.has_faults = false;
        self.world.chunk_rows = u64::MAX;
        for host in 0..2 {
            while self.hosts[host].is_some() {
                self.step(host);
            }
        }
        while self.reset.is_some() {
            self.step_reset();
        }
        let clock = self.world.source.clock.max(self.world.source.unsettled_from + SETTLE_DELAY) + SETTLE_DELAY + 60;
        self.world.source.set_clock(clock);
        for _ in 0..MAX_PASSES {
            while matches!(self.world.standing(&self.world.table.current), Standing::RolledBack(_)) {
                self.resolve();
                while self.reset.is_some() {
                    self.step_reset();
                }
            }
            let mut pass = Pass::new(&self.world);
            let end = std::iter::repeat_with(|| pass.step(&mut self.world)).find_map(|end| end);
            self.note(|_| format!("a last pass ends: {end:?}"));
            if end == Some(End::Done(false)) {
                let standing = self.world.standing(&self.world.table.current);
                let World { oracle, source, table, .. } = &mut self.world;
                oracle.quiet(source, &table.current, &standing, source.clock - SETTLE_DELAY);
                return;
            }
        }
        self.world.oracle.broken.get_or_insert((Broken::Restless, format!("after {MAX_PASSES} passes")));
    }
}
