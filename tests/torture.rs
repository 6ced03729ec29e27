//! Passes that are killed, or told to stop, at random moments, again and again: no row is lost or doubled, whether rows leave for the first time, come
//! late, or are compared after a reset. `scripts/torture` repeats this for hours.
//!
//! `K2_TEST_SEED` repeats the sizes and the moments; what a process has reached by then is up to the machine.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::time::{Duration, Instant};

use support::shapes::{CANDLES, CHUNKED, KEYED, PLAIN, Shape};
use support::{Case, Place, files_below, in_parallel, random, seed};

/// Passes of each table that die before their end.
const KILLS: u64 = 76;
/// Passes of each table that a SIGTERM stops.
const STOPS: u64 = 8;
/// The same of each table on the lake.
const KILLS_ON_LAKE: u64 = 20;
const STOPS_ON_LAKE: u64 = 4;
/// Signals for one that comes before the end of its pass, at most.
const MOST_SIGNALS: u64 = 6;
/// A manifest is there; syncs and swap take a few milliseconds more.
const COMMIT_MICROS: u64 = 6_000;
/// How often the folder is looked at for a manifest.
const LOOK: Duration = Duration::from_micros(300);

/// Days before the newest into which rows come late, and to which a reset goes back, at most.
const LATE_DAYS: u64 = 2;
/// However far the passes that die carry the watermark before their late rows are merged.
const LOOKBACK: &str = "late_lookback = '2d'\n";

/// One table under attack.
struct Torture<'a> {
    shape: &'a Shape,
    case: Case,
    seed: u64,
    state: u64,
    /// How long the last pass took that was left alone.
    clean: Duration,
    /// Days of rows so far.
    days: u64,
    rounds: u64,
    /// How often the watermark was put back.
    resets: u64,
    /// Inserts of late rows.
    late: u64,
}

impl<'a> Torture<'a> {
    fn new(shape: &'a Shape, place: Place, seed: u64) -> Self {
        let case = shape.case_at(place, "torture");
        shape.configure(&case, LOOKBACK);
        let (clean, state) = (Duration::ZERO, seed);
        let mut torture = Self { shape, case, seed, state, clean, days: 0, rounds: 0, resets: 0, late: 0 };
        // The first pass also pays for what the server reads for the first time.
        for _ in 0..2 {
            torture.new_rows();
            torture.clean_pass();
        }
        torture
    }

    fn clean_pass(&mut self) {
        let started = Instant::now();
        self.case.pass();
        self.clean = started.elapsed();
    }

    fn random_below(&mut self, bound: u64) -> u64 {
        random(&mut self.state) % bound
    }

    /// Rows of one more day, one time in four of the night to the next.
    fn new_rows(&mut self) {
        let rows = 1 + self.random_below(1_000);
        let time = if self.random_below(4) == 0 { "23:50:00" } else { "12:00:00" };
        let start = self.case.sql(&format!("SELECT toDateTime('2020-01-01 {time}', 'UTC') + 86400 * {}", self.days));
        self.case.trades("trades", &start, rows);
        self.days += 1;
    }

    /// Midnight of a day that had rows, not long ago.
    fn recent_day(&mut self) -> String {
        let day = self.days - 1 - self.random_below(LATE_DAYS.min(self.days));
        self.case.sql(&format!("SELECT toDate('2020-01-01') + {day}"))
    }

    /// What the next passes find to do: new rows, every second time late ones too, and every eighth time a reset over all that. What queries are computed
    /// from is not looked at, so their late rows come with the reset only.
    fn work(&mut self) {
        let round = self.rounds % 8;
        self.rounds += 1;
        self.new_rows();
        let is_reset = round == 7;
        if !is_reset && (round.is_multiple_of(2) || self.shape.name == CANDLES.name) {
            return;
        }
        let (start, rows) = (self.recent_day(), 1 + self.random_below(50));
        self.shape.late_rows(&self.case, &start, &format!("LATE-{}", self.rounds), rows);
        self.late += 1;
        if is_reset {
            let to = format!("{start}T00:00:00Z");
            self.case.run(&["watermark", "reset", "--table", "cold.trades", "--yes", "--to", &to]).expect(0);
            self.resets += 1;
        }
    }

    /// Starts a pass and sends it `signal` at a random moment, half of the times in its commit; whether it ended before.
    fn ends_before(&mut self, signal: &str) -> bool {
        let metadata = self.case.target("trades").folder().join("metadata");
        let before = files_below(&metadata).len();
        let in_commit = self.random_below(2) == 0;
        // A little longer than the pass, so that its last moments are hit too.
        let whole = u64::try_from(self.clean.as_micros()).unwrap() * 10 / 9;
        let delay = Duration::from_micros(self.random_below(if in_commit { COMMIT_MICROS } else { whole }));
        let mut pass = self.case.spawn("offload.toml", "", &["run"]);
        while in_commit && files_below(&metadata).len() == before && !pass.is_over() {
            std::thread::sleep(LOOK);
        }
        std::thread::sleep(delay);
        pass.signal(signal);
        let output = pass.wait();
        // A signal that comes before the pass listens for it ends the process; the shell calls that 143 too.
        let expected = matches!((signal, output.code), (_, None | Some(0)) | ("TERM", Some(143)));
        assert!(expected, "{}: {}", self.what(), output.all());
        let is_whole = output.code == Some(0);
        if let Some(code) = output.code {
            output.expect(code);
        }
        is_whole
    }

    fn made_good(&self) -> String {
        format!("{} rounds, late rows in {}, a reset in {}", self.rounds, self.late, self.resets)
    }

    fn what(&self) -> String {
        format!("{}, {:?}, K2_TEST_SEED={}, day {}", self.shape.name, self.case.place(), self.seed, self.days)
    }
}

/// Kills until there were enough: one to four passes in a row, then a clean one that must make it good.
fn kill_again_and_again(shape: &Shape, place: Place, kills: u64, seed: u64) {
    let mut torture = Torture::new(shape, place, seed);
    let (mut signals, mut died) = (0, 0);
    while died < kills {
        assert!(signals < MOST_SIGNALS * kills, "{}: most passes had ended already", torture.what());
        torture.work();
        for _ in 0..=torture.random_below(4) {
            died += u64::from(!torture.ends_before("KILL"));
            signals += 1;
        }
        torture.clean_pass();
        let (target, source) = (shape.hash_of_target(&torture.case), shape.hash_of_source(&torture.case));
        assert_eq!(target, source, "{} after kill -9", torture.what());
    }
    println!("{}: {died} passes died of {signals} kill -9, {}", torture.what(), torture.made_good());
    ends_well(&torture);
}

/// A pass that is told to stop leaves no file behind.
fn stop_again_and_again(shape: &Shape, place: Place, stops: u64, seed: u64) {
    let mut torture = Torture::new(shape, place, seed);
    let (mut signals, mut stopped) = (0, 0);
    while stopped < stops {
        assert!(signals < MOST_SIGNALS * stops, "{}: most passes had ended already", torture.what());
        signals += 1;
        torture.work();
        stopped += u64::from(!torture.ends_before("TERM"));
        let target = torture.case.target("trades");
        let read = target.icebergs("SELECT uniqExact(_path) FROM");
        assert_eq!(target.files_on_disk().len().to_string(), read, "{} after SIGTERM", torture.what());
        // Else the next reset could go forward, over rows that this one was to compare.
        torture.clean_pass();
    }
    println!("{}: {stopped} passes were stopped by {signals} SIGTERM, {}", torture.what(), torture.made_good());
    ends_well(&torture);
}

fn ends_well(torture: &Torture<'_>) {
    torture.shape.is_made_good(&torture.case, &torture.what());
    torture.case.target("trades").holds_for_all_readers("wanted");
}

/// All shapes side by side, from one seed.
fn all_shapes(each: impl Fn(&Shape, u64) + Sync) {
    let seed = seed();
    println!("K2_TEST_SEED={seed}");
    in_parallel(4, vec![&PLAIN, &CHUNKED, &KEYED, &CANDLES], |shape| each(shape, seed));
}

#[test]
fn passes_that_are_killed_at_random_moments_lose_and_double_nothing() {
    all_shapes(|shape, seed| kill_again_and_again(shape, Place::Local, KILLS, seed));
}

#[test]
fn passes_that_are_stopped_at_random_moments_leave_nothing_behind() {
    all_shapes(|shape, seed| stop_again_and_again(shape, Place::Local, STOPS, seed));
}

/// Tables on the lake, one after another from one seed.
fn on_lake(each: impl Fn(&Shape, Place, u64) + Sync) {
    let seed = seed();
    println!("K2_TEST_SEED={seed}");
    let tables = vec![(&CHUNKED, Place::Rest), (&KEYED, Place::Guarded), (&PLAIN, Place::Postgres)];
    in_parallel(3, tables, |(shape, place)| each(shape, place, seed));
}

#[test]
fn passes_over_the_lake_that_are_killed_at_random_moments_lose_and_double_nothing() {
    on_lake(|shape, place, seed| kill_again_and_again(shape, place, KILLS_ON_LAKE, seed));
}

#[test]
fn passes_over_the_lake_that_are_stopped_at_random_moments_leave_nothing_behind() {
    on_lake(|shape, place, seed| stop_again_and_again(shape, place, STOPS_ON_LAKE, seed));
}
