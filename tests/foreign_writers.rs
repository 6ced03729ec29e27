//! Other writers, between passes and in the middle of one (protocol.md P13 to P17): PyIceberg appends, deletes, overwrites, expires, rolls back, and makes
//! the table anew. Our rows are there once, theirs as they left them, and what only a person can decide is exit 3.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use support::{Case, HASH_OF_BRONZE, Output, Place, TRADES, in_parallel, only_table};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];
/// 2024-03-09T12:00:00Z, in the window of our first chunk.
const NOON: u64 = 1_709_985_600_000_000;
/// Trades of the first day before this time fall victim to others.
const VICTIMS: &str = "exchange_timestamp < '2024-03-09T10:00:10+00:00'";
const NO_VICTIM: &str = "exchange_timestamp >= toDateTime64('2024-03-09 10:00:10', 3, 'UTC')";
const NO_FOREIGNER: &str = "exchange_timestamp != toDateTime64('2024-03-09 12:00:00', 3, 'UTC')";
const EVERY_ROW: &str = "1";

/// What PyIceberg does to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Append,
    Delete,
    Overwrite,
    Expire,
    /// A commit of its own, and then it expires all others.
    AppendAndExpire,
    RollBack,
    MakeAnew,
}

/// When it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instant {
    BetweenPasses,
    /// The data files are durable.
    BeforeCommit,
    /// The commit is ready to swap.
    BeforeSwap,
    /// A first request to swap got lost, and never arrives.
    RequestLost,
    /// A first request to swap has landed, which the pass cannot know.
    ReplyLost,
}

const ACTS: [Act; 7] =
    [Act::Append, Act::Delete, Act::Overwrite, Act::Expire, Act::AppendAndExpire, Act::RollBack, Act::MakeAnew];
const INSTANTS: [Instant; 5] =
    [Instant::BetweenPasses, Instant::BeforeCommit, Instant::BeforeSwap, Instant::RequestLost, Instant::ReplyLost];

impl Act {
    fn happens(self, case: &Case) {
        let target = case.target("trades");
        let append = || target.ask("append", json!({"rows": 5, "micros": NOON}));
        match self {
            Self::Append => drop(append()),
            Self::Delete => drop(target.ask("delete", json!({"filter": VICTIMS}))),
            Self::Overwrite => {
                let changed = target.ask("change", json!({"filter": VICTIMS, "column": "price", "value": 7}));
                assert_eq!(changed, 20);
            }
            Self::Expire => drop(target.ask("expire", json!({}))),
            Self::AppendAndExpire => {
                append();
                target.ask("expire", json!({}));
            }
            Self::RollBack => drop(target.ask("rollback", json!({}))),
            Self::MakeAnew => {
                target.ask("drop", json!({}));
                // A table is not made over the files of another.
                case.run(&["init-tables"]).expect(3).says(&["a table lies at", "moved away"]);
                fs::rename(case.path("warehouse/cold/trades"), case.path("warehouse/cold/dropped")).unwrap();
                case.init_tables();
            }
        }
    }

    /// Which rows of ours must be in the target in the end, of those that others did not write.
    fn ours(self) -> &'static str {
        if matches!(self, Self::Delete | Self::Overwrite) { NO_VICTIM } else { EVERY_ROW }
    }
}

impl Instant {
    fn failpoints(self, pause: &str) -> String {
        match self {
            Self::BetweenPasses => String::new(),
            Self::BeforeCommit => format!("written={pause}"),
            Self::BeforeSwap => format!("commit-swap={pause}"),
            Self::RequestLost | Self::ReplyLost => {
                format!("commit-swap=request-lost@1;commit-swap={pause}@2")
            }
        }
    }
}

/// A target of two chunks, of a hundred trades each, and a third day that waits.
fn two_chunks() -> Case {
    two_chunks_at(Place::Local)
}

fn two_chunks_at(place: Place) -> Case {
    let case = Case::with_trades_at(place, "foreign");
    for day in ["2024-03-09", "2024-03-10"] {
        case.trades("trades", &format!("{day} 10:00:00"), 100);
        case.pass();
    }
    case.trades("trades", "2024-03-11 10:00:00", 100);
    case
}

/// A pass during which, or before which, `act` happens.
fn disturbed_pass(case: &Case, act: Act, instant: Instant) -> Output {
    let target = case.target("trades");
    if instant == Instant::BetweenPasses {
        act.happens(case);
        return case.run(&JSON_RUN);
    }
    let base = target.metadata_file();
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &instant.failpoints(&gate.pause()), &JSON_RUN);
    gate.wait_for(&mut pass);
    if instant == Instant::ReplyLost {
        assert!(target.lands_late(&base));
    }
    act.happens(case);
    gate.open();
    pass.wait()
}

/// Exit code of that pass, and what it must say; and what is in the way of the next ones, until somebody decides.
fn expected(place: Place, act: Act, instant: Instant) -> (i32, &'static [&'static str], Option<&'static str>) {
    const UNTRACEABLE: &[&str] = &["kept, because nobody could tell"];
    const ROLLED_BACK: &str = "rolled back";
    // A server's refusal may be that of a repetition, which something on the way has made.
    let is_asked = place.is_rest() && instant == Instant::BeforeSwap;
    let is_lost = is_asked || matches!(instant, Instant::RequestLost | Instant::ReplyLost);
    let landed = instant == Instant::ReplyLost;
    match act {
        Act::Append | Act::Overwrite | Act::Expire => (0, &[], None),
        Act::Delete if instant == Instant::BetweenPasses => {
            (3, &["20 rows were deleted"], Some("20 rows were deleted"))
        }
        Act::Delete => (0, &[], Some("20 rows were deleted")),
        // Nobody can tell any more what became of the first request.
        Act::AppendAndExpire | Act::MakeAnew if is_lost => (1, UNTRACEABLE, None),
        Act::AppendAndExpire | Act::MakeAnew => (0, &[], None),
        // It had landed, and was rolled back.
        Act::RollBack if landed => (0, &[], Some(ROLLED_BACK)),
        Act::RollBack if is_lost => (1, UNTRACEABLE, Some(ROLLED_BACK)),
        Act::RollBack => (3, &[ROLLED_BACK], Some(ROLLED_BACK)),
    }
}

/// Goes on as the hint of exit 3 says: `reset --to` the watermark that the pass shows, or that the hint names.
fn decide(case: &Case, alarmed: &Value) {
    let hint = alarmed["error"]["hint"].as_str().unwrap();
    let named = || hint.split("TIMESTAMP`, ").nth(1).unwrap().split(": ").next().unwrap();
    let to = alarmed["watermark"].as_str().unwrap_or_else(named);
    case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to", to]).expect(0);
}

fn is_disturbed_by(place: Place, act: Act, instant: Instant) {
    let what = format!("{place:?}, {act:?}, {instant:?}");
    let case = two_chunks_at(place);
    let target = case.target("trades");
    let (code, texts, alarm) = expected(place, act, instant);
    let output = disturbed_pass(&case, act, instant).says(texts);
    assert_eq!(output.code, Some(code), "{what}\n{}", output.all());

    // New rows move although a person is asked, unless the watermark itself is in doubt.
    case.trades("trades", "2024-03-12 10:00:00", 50);
    if let Some(alarm) = alarm {
        let table = only_table(&case.run(&JSON_RUN).expect(3).says(&[alarm]).json());
        let moved = u64::from(act != Act::RollBack) * 50;
        assert_eq!(table["rows_written"], moved, "{what}");
        decide(&case, &table);
    }
    case.pass();
    let ours = format!("{} AND {NO_FOREIGNER}", act.ours());
    let wanted = case.sql(&format!("{HASH_OF_BRONZE} trades WHERE {ours}"));
    assert_eq!(target.icebergs_of(HASH_OF_BRONZE, &ours), wanted, "{what}");
    let foreign = target.icebergs_where(&format!("NOT ({ours})"));
    let expected = match act {
        Act::Append | Act::AppendAndExpire => 5,
        Act::Overwrite => 20,
        _ => 0,
    };
    assert_eq!(foreign, expected, "{what}");
    assert_eq!(case.pass_one()["status"], "nothing", "{what}");

    // What others added or changed is told, and what they took.
    let (audited, verdict) = match act {
        Act::Append | Act::AppendAndExpire => (3, "0 missing, 5 extra"),
        Act::Delete => (3, "20 missing, 0 extra"),
        Act::Overwrite => (3, "20 missing, 20 extra"),
        _ => (0, "equal"),
    };
    case.run(&["audit", "--checksum"]).expect(audited).says(&[verdict]);
    if code != 1 {
        let left = orphans(&case);
        // PyIceberg lets snapshots go, and leaves their files.
        let theirs = |path: &String| matches!(act, Act::Expire | Act::AppendAndExpire) && path.contains("/snap-");
        assert!(left.iter().all(theirs), "{what}: {left:#?}");
    }
}

/// What `audit --orphans` lists once it is old.
fn orphans(case: &Case) -> Vec<String> {
    let files = support::files_below(&case.target("trades").folder());
    assert!(Command::new("touch").args(["-d", "4 days ago"]).args(files).status().unwrap().success());
    let found = only_table(&case.run(&["--format", "json", "audit", "--orphans"]).expect(0).json());
    let path = |orphan: &Value| orphan["path"].as_str().unwrap().to_owned();
    found["orphans"].as_array().unwrap().iter().map(path).collect()
}

/// What overlap.rs and protocol.rs try too is left out.
fn is_tried_elsewhere(act: Act, instant: Instant) -> bool {
    match instant {
        Instant::BetweenPasses => !matches!(act, Act::Overwrite | Act::MakeAnew),
        Instant::BeforeCommit => matches!(act, Act::Append | Act::Expire | Act::AppendAndExpire),
        Instant::BeforeSwap => act == Act::AppendAndExpire,
        Instant::RequestLost | Instant::ReplyLost => false,
    }
}

#[test]
fn whatever_other_writers_do_whenever_they_do_it_our_rows_are_there_once() {
    let all = ACTS.iter().flat_map(|act| INSTANTS.map(|instant| (*act, instant)));
    let all: Vec<_> = all.filter(|(act, instant)| !is_tried_elsewhere(*act, *instant)).collect();
    assert_eq!(all.len(), 26);
    in_parallel(4, all, |(act, instant)| is_disturbed_by(Place::Local, act, instant));
}

/// A server compares snapshots, schemas and partitions, and not the metadata as a whole: what was committed on another one is refused all the same, and made
/// anew.
#[test]
fn whatever_other_writers_do_beside_us_through_a_rest_catalog_our_rows_are_there_once() {
    let acts = [Act::Append, Act::Delete, Act::Overwrite, Act::Expire, Act::AppendAndExpire, Act::RollBack];
    let before_swap = acts.map(|act| (act, Instant::BeforeSwap)).into_iter();
    let all: Vec<_> =
        before_swap.chain([(Act::Append, Instant::BeforeCommit), (Act::RollBack, Instant::BeforeCommit)]).collect();
    in_parallel(4, all, |(act, instant)| is_disturbed_by(Place::Rest, act, instant));
}

/// P13, P21: what others add where our rows stand is no row of ours and no reason to add one, or to leave one out.
#[test]
fn rows_that_others_write_into_our_windows_are_extra_and_never_touched() {
    let case = two_chunks();
    let target = case.target("trades");
    // 2024-03-10T23:00:00Z
    target.ask("append", json!({"rows": 5, "micros": 1_710_111_600_000_000_u64}));
    assert_eq!(target.ask("double", json!({"filter": VICTIMS})), 20);
    let theirs: Vec<_> = target.files_on_disk();
    let is_told = |target: &support::Target<'_>| {
        target.holds_with_foreign_rows("trades", 25);
        case.run(&["audit", "--checksum"]).expect(3).says(&["0 missing, 20 extra", "0 missing, 5 extra"]);
    };
    assert_eq!(case.pass_one()["rows_written"], 100);
    is_told(&target);
    // A late row where they have written: the window is compared, by itself and because a reset asks for it.
    case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 23:00:00.001', 'LATE')");
    assert_eq!(case.pass_one()["rows_late"], 1);
    is_told(&target);
    case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to-earliest"]).expect(0);
    assert_eq!(case.pass_one()["rows_written"], 0);
    is_told(&target);
    assert!(theirs.iter().all(|file| file.exists()));
}

/// P13: five hosts that share nothing but the catalog find the same late row.
#[test]
fn p13_of_several_passes_that_find_the_same_late_row_one_adds_it() {
    let case = two_chunks();
    case.pass();
    let config = |host: usize| {
        let name = format!("host_{host}.toml");
        case.config_file(&name, "", &format!("[state]\npath = 'host_{host}.db'"), TRADES);
        name
    };
    for passes in [2, 5] {
        case.sql(&format!(
            "INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-11 10:00:00.001', 'LATE-{passes}')"
        ));
        let gate = case.gate(&format!("gate_{passes}"));
        let failpoints = format!("guard=skip;written={}", gate.pause());
        let mut running: Vec<_> = (0..passes).map(|n| case.spawn(&config(n), &failpoints, &JSON_RUN)).collect();
        running.iter_mut().for_each(|pass| gate.wait_for(pass));
        gate.open();
        for pass in running {
            let output = pass.wait();
            assert!(matches!(output.code, Some(0 | 1)), "{}", output.all());
        }
        case.pass();
        assert_eq!(case.pass_one()["status"], "nothing");
    }
    let target = case.target("trades");
    target.holds_for_all_readers("trades");
    target.has_no_other_files();
    case.run(&["audit", "--checksum"]).expect(0);
}

/// P13: a merge depends on all rows that it compared, so whoever commits beside it makes it compare again, also where our marker is the same.
#[test]
fn p13_a_merge_beside_which_others_commit_compares_again() {
    for (act, code, restored, theirs) in [(Act::Delete, 3, 20, 0), (Act::Overwrite, 0, 20, 20), (Act::Append, 0, 0, 5)]
    {
        let case = two_chunks();
        case.pass();
        case.sql("INSERT INTO trades (exchange_timestamp, symbol) VALUES ('2024-03-10 10:00:00.001', 'LATE')");
        case.run(&["watermark", "reset", "--table", "trades", "--yes", "--to-earliest"]).expect(0);
        let output = disturbed_pass(&case, act, Instant::BeforeCommit).expect(code).says(&["trying again"]);
        assert_eq!(only_table(&output.json())["rows_written"], 1 + restored, "{act:?}");
        // What they wrote instead stays.
        match theirs {
            0 => case.target("trades").holds_all("trades"),
            _ => case.target("trades").holds_with_foreign_rows("trades", theirs),
        }
        // That they deleted rows stays told until it is acknowledged.
        let again = case.run(&["--format", "json", "run"]).expect(code);
        assert_eq!(only_table(&again.json())["rows_written"], 0, "{act:?}");
    }
}
