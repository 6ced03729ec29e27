//! Faults between k2-offload and the lake: requests and answers of S3 and of catalogs that are lost, late, repeated, cut or refused. After each of them,
//! by then or after one clean pass, every row is in the target once, and nothing lies in S3 that nobody refers to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::ops::Range;

use serde_json::{Value, json};
use support::faults::{ALWAYS, Fault, FaultyProxy, ONCE};
use support::shapes::{PLAIN, Shape};
use support::{Case, HASH_OF_BRONZE, Output, Place, Proxies, TRADES, in_parallel, only_table, wait_until};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];
/// More requests than a pass of these tests makes.
const MANY: usize = 60;
/// For requests that nobody answers.
const HASTY: &str = "timeout = '2s'";

/// A case of trades behind proxies: its target is empty. `keys` are further ones of `[catalog]`.
fn behind_proxies(place: Place, name: &str, keys: &str) -> (Case, Proxies) {
    let mut case = Case::at(place, name);
    let lake = case.lake.as_mut().unwrap();
    keys.clone_into(&mut lake.keys);
    let proxies = lake.behind_proxies();
    PLAIN.set_up(&case);
    (case, proxies)
}

/// The same with one day in the target and a second one that waits.
fn two_days(place: Place, name: &str, keys: &str) -> (Case, Proxies) {
    let (case, proxies) = behind_proxies(place, name, keys);
    case.trades("trades", "2024-03-09 23:50:00", 200);
    case.pass();
    case.trades("trades", "2024-03-10 23:59:00", 200);
    (case, proxies)
}

/// The target must hold the rows of the source for ClickHouse, and no other files lie there.
fn is_whole(case: &Case, what: &str) {
    let target = case.target("trades");
    assert_eq!(target.icebergs(HASH_OF_BRONZE), case.sql(&format!("{HASH_OF_BRONZE} trades")), "{what}");
    target.has_only_read_files(what);
}

#[test]
fn every_place_is_read_by_all_readers() {
    in_parallel(2, vec![Place::Sqlite, Place::Postgres, Place::Rest, Place::Guarded], |place| {
        let case = Case::with_trades_at(place, "place");
        case.trades("trades", "2024-03-10 10:00:00", 100);
        assert_eq!(case.pass_one()["rows_written"], 100, "{place:?}");
        let target = case.target("trades");
        target.holds_for_all_readers("trades");
        target.has_no_other_files();
        is_whole(&case, "no fault");
    });
}

/// What happens to the request of a commit, and whether the pass cannot know what came of it.
const OF_COMMIT: [(Fault, bool); 10] = [
    (Fault::RequestLost, true),
    (Fault::RequestCut(200), true),
    (Fault::ReplyLost, true),
    (Fault::ReplyCut(100), true),
    (Fault::Repeated, false),
    (Fault::Answered(500, ""), true),
    (Fault::Answered(502, ""), true),
    (Fault::Answered(503, "Retry-After: 0\r\n"), true),
    (Fault::Answered(504, ""), true),
    (Fault::Answered(429, "Retry-After: 0\r\n"), false),
];

#[test]
fn p14_a_commit_whose_request_or_reply_is_lost_or_repeated_is_there_once() {
    let is_for =
        |place: Place, fault: Fault| place.is_rest() || !matches!(fault, Fault::Repeated | Fault::Answered(..));
    let places = [Place::Rest, Place::Guarded, Place::Postgres];
    let all = places.iter().flat_map(|place| OF_COMMIT.map(|(fault, unknown)| (*place, fault, unknown)));
    let all: Vec<_> = all.filter(|(place, fault, _)| is_for(*place, *fault)).collect();
    assert_eq!(all.len(), 24);
    in_parallel(4, all, |(place, fault, is_unknown)| {
        let what = format!("{place:?}, {fault:?}");
        let (case, proxies) = two_days(place, "commit", "");
        proxies.catalog.inject(case.lake.as_ref().unwrap().commit_request(), ONCE, fault);
        let output = case.run(&JSON_RUN);
        assert_eq!(proxies.catalog.met(), 1, "{what}");
        let output = if is_unknown { output.expect_warning("unknown") } else { output.expect(0) };
        assert_eq!(only_table(&output.json())["rows_written"], 200, "{what}");
        is_whole(&case, &what);
        PLAIN.is_made_good(&case, &what);
        assert_eq!(case.target("trades").snapshots().len(), 2, "{what}");
    });
}

/// What the network does to one request, whichever it is.
const OF_ANY: [Fault; 6] = [
    Fault::RequestLost,
    Fault::RequestCut(300),
    Fault::ReplyLost,
    Fault::ReplyCut(150),
    Fault::Repeated,
    Fault::Answered(503, "Retry-After: 0\r\n"),
];

/// The first, second, .. request of a pass meets the fault, each time with the rows of one more day.
fn any_request_meets(place: Place, fault: Fault, proxy: fn(&Proxies) -> &FaultyProxy) {
    let (case, proxies) = behind_proxies(place, "nth", "");
    let proxy = proxy(&proxies);
    let nth = |number: usize| {
        let what = format!("{place:?}, {fault:?} of request {number}");
        let day = case.sql(&format!("SELECT toDate('2024-01-01') + {number}"));
        case.trades("trades", &format!("{day} 12:00:00"), 100);
        let before = proxy.met();
        proxy.inject("*", number..number + 1, fault);
        let output = case.run(&["run"]);
        proxy.calm();
        assert!(matches!(output.code, Some(0 | 1)), "{what}\n{}", output.all());
        if output.code == Some(0) {
            is_whole(&case, &format!("{what}\n{}", output.all()));
        } else {
            case.target("trades").has_only_read_files(&format!("{what}\n{}", output.all()));
        }
        case.pass();
        is_whole(&case, &what);
        proxy.met() > before
    };
    let count = (0..MANY).take_while(|number| nth(*number)).count();
    println!("{place:?}, {fault:?}: {count} requests");
    assert!(count >= 3, "{place:?}, {fault:?}: {count} requests");
    PLAIN.is_made_good(&case, &format!("{place:?}, {fault:?}"));
    case.target("trades").has_no_uploads("small files have none");
}

#[test]
fn whichever_request_to_s3_is_lost_cut_or_refused_no_row_is() {
    in_parallel(3, OF_ANY.to_vec(), |fault| any_request_meets(Place::Rest, fault, |proxies| &proxies.s3));
}

#[test]
fn whichever_request_to_the_catalog_is_lost_cut_or_refused_no_row_is() {
    let all = [Place::Rest, Place::Guarded].iter().flat_map(|place| OF_ANY.map(|fault| (*place, fault))).collect();
    in_parallel(3, all, |(place, fault)| any_request_meets(place, fault, |proxies| &proxies.catalog));
}
