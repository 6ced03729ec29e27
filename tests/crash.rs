//! A pass may die anywhere: the next one leaves every row in the target exactly once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Case, HASH_OF_BRONZE, Running, TRADES, failpoints, files_below, random, seed};

const KILLS: u64 = 20;
const ROWS: u64 = 400_000;
const DAYS: u64 = 4;

#[test]
fn a_pass_that_fails_at_any_point_is_made_good_by_the_next() {
    for point in failpoints() {
        let case = two_days("failed");
        let output = case.run_failing(&format!("{point}=error"), &["run"]);
        if point == "committed" {
            // The rows have left: what follows is no more than the cache.
            assert!(matches!(output.code, Some(0 | 1)), "{point}\n{}", output.all());
        } else {
            output.expect(1).says(&[&format!("failpoint {point}")]);
            assert!(case.target("trades").files_on_disk().len() <= 2, "{point}: files of a failed pass stay");
        }
        is_made_good(&case);
        case.target("trades").has_no_other_files();
    }
}

#[test]
fn a_pass_that_is_killed_at_any_point_is_made_good_by_the_next() {
    for point in failpoints() {
        let case = two_days("killed");
        let output = case.run_failing(&format!("{point}=kill"), &["run"]);
        assert_eq!(output.code, None, "{point} did not kill\n{}", output.all());
        is_made_good(&case);
    }
}

/// A target that holds one day, and a source that holds two.
fn two_days(name: &str) -> Case {
    let case = Case::with_trades(name);
    case.trades("trades", "2024-03-09 23:50:00", 200);
    case.pass();
    case.trades("trades", "2024-03-10 23:59:00", 200);
    case
}

fn is_made_good(case: &Case) {
    case.pass();
    let target = case.target("trades");
    target.holds_all("trades");
    assert_eq!(case.sql(&format!("{HASH_OF_BRONZE} trades")), target.icebergs(HASH_OF_BRONZE));
    assert_eq!(case.pass_one()["status"], "nothing");
}

#[test]
fn a_pass_that_is_killed_at_a_random_moment_is_made_good_by_the_next() {
    let seed = seed();
    let mut state = seed;
    let case = Case::new("random_kills");
    case.bronze("trades");
    case.trades_over_days("trades", "2024-03-08 12:00:00", ROWS, DAYS);
    let expected = case.sql(&format!("{HASH_OF_BRONZE} trades"));
    // Two clean passes: the first one also pays for what the server reads for the first time.
    fresh_target(&case, "warm_up");
    case.pass();
    fresh_target(&case, "clean");
    let started = Instant::now();
    case.pass();
    let clean = started.elapsed();

    let mut died_before_commit = 0;
    for round in 0..KILLS {
        let name = format!("round_{round}");
        fresh_target(&case, &name);
        // A little longer than the pass, so that the last moments are hit too.
        let delay = Duration::from_micros(random(&mut state) % u64::try_from(clean.as_micros() * 5 / 4).unwrap());
        let pass = case.spawn("offload.toml", "", &["run"]);
        std::thread::sleep(delay);
        kill_9(pass);
        let again = case.pass_one();
        died_before_commit += u64::from(again["status"] == "offloaded");
        let found = case.target(&name).icebergs(HASH_OF_BRONZE);
        assert_eq!(found, expected, "round {round}, K2_TEST_SEED={seed}, killed after {delay:?} of {clean:?}");
        assert_eq!(case.pass_one()["status"], "nothing", "round {round}, K2_TEST_SEED={seed}");
    }
    assert!(
        died_before_commit > 0,
        "no pass died before its commit: K2_TEST_SEED={seed}, a clean pass takes {clean:?}"
    );
    case.target(&format!("round_{}", KILLS - 1)).holds_all("trades");
}

#[test]
fn a_pass_that_is_killed_while_it_commits_is_made_good_by_the_next() {
    let seed = seed();
    let mut state = seed;
    let case = Case::with_trades("killed_commits");
    let target = case.target("trades");
    let metadata = target.folder().join("metadata");
    for round in 1..=KILLS {
        case.trades("trades", &format!("2024-03-{round:02} 23:59:50"), 100);
        let before = files_below(&metadata).len();
        let mut pass = case.spawn("offload.toml", "", &["run"]);
        while files_below(&metadata).len() == before && !pass.is_over() {
            std::thread::yield_now();
        }
        // The first manifest is there; syncs and swap take a few milliseconds more.
        let delay = Duration::from_micros(random(&mut state) % 6_000);
        std::thread::sleep(delay);
        kill_9(pass);
        case.pass();
        let expected = case.sql(&format!("{HASH_OF_BRONZE} trades"));
        assert_eq!(target.icebergs(HASH_OF_BRONZE), expected, "round {round}, K2_TEST_SEED={seed}, {delay:?}");
    }
    target.holds_for_all_readers("trades");
    assert_eq!(target.snapshots().len() as u64, KILLS, "each round is one commit, of the killed pass or of the next");
}

#[test]
fn passes_that_are_killed_one_after_another_add_up_to_every_row_once() {
    let seed = seed();
    let mut state = seed;
    let case = Case::with_trades("killed_again");
    for day in 10..16 {
        case.trades("trades", &format!("2024-03-{day} 23:59:50"), 20_000);
        for _ in 0..3 {
            let pass = case.spawn("offload.toml", "", &["run"]);
            std::thread::sleep(Duration::from_millis(random(&mut state) % 200));
            kill_9(pass);
        }
    }
    case.pass();
    let expected = case.sql(&format!("{HASH_OF_BRONZE} trades"));
    assert_eq!(case.target("trades").icebergs(HASH_OF_BRONZE), expected, "K2_TEST_SEED={seed}");
    case.target("trades").holds_all("trades");
}

fn fresh_target(case: &Case, name: &str) {
    case.config(&TRADES.replace("cold.trades", &format!("cold.{name}")));
    case.init_tables();
}

fn kill_9(pass: Running) {
    pass.signal("KILL");
    pass.wait();
}
