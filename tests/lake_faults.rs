//! Faults between k2-offload and the lake: requests and answers of S3 and of catalogs that are lost, late, repeated, cut or refused. After each of them,
//! by then or after one clean pass, every row is in the target once, and nothing lies in S3 that nobody refers to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use support::faults::{ALWAYS, Fault, FaultyProxy, ONCE};
use support::shapes::PLAIN;
use support::{Case, HASH_OF_BRONZE, Place, Proxies, TRADES, in_parallel, only_table};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];
/// More requests than a pass of these tests makes.
const MANY: usize = 60;
/// The configuration of a pass that meets requests that nobody answers; those around it have the time of a busy machine.
const HASTY: &str = "hasty.toml";

/// A case of trades behind proxies: its target is empty.
fn behind_proxies(place: Place, name: &str) -> (Case, Proxies) {
    let mut case = Case::at(place, name);
    let proxies = case.lake.as_mut().unwrap().behind_proxies();
    PLAIN.set_up(&case);
    let hasty = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path(HASTY), hasty.replace("[catalog]", "[catalog]\ntimeout = '2s'")).unwrap();
    (case, proxies)
}

/// The same with one day in the target and a second one that waits.
fn two_days(place: Place, name: &str) -> (Case, Proxies) {
    let (case, proxies) = behind_proxies(place, name);
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
        let (case, proxies) = two_days(place, "commit");
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
    let (case, proxies) = behind_proxies(place, "nth");
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

/// When the request of a commit that nobody waited for arrives.
#[derive(Debug, Clone, Copy)]
enum Lands {
    /// When the pass has given up, before the next one.
    Before,
    /// While the next one is about to commit the same rows.
    Meanwhile,
    /// When the next one has committed them.
    After,
}

/// A pass whose requests to commit are held by the network until it has given up.
fn given_up(place: Place) -> (Case, Proxies) {
    let (case, proxies) = two_days(place, "late");
    proxies.catalog.inject(case.lake.as_ref().unwrap().commit_request(), ALWAYS, Fault::Held);
    case.run_with(HASTY, &["run"]).expect(1).says(&["kept"]);
    proxies.catalog.calm();
    (case, proxies)
}

#[test]
fn p14_a_commit_that_lands_late_is_there_once() {
    let all = [Place::Rest, Place::Guarded, Place::Postgres];
    let all = all.iter().flat_map(|place| [Lands::Before, Lands::Meanwhile, Lands::After].map(|lands| (*place, lands)));
    in_parallel(6, all.collect(), |(place, lands)| {
        let what = format!("{place:?}, {lands:?}");
        let (case, proxies) = given_up(place);
        let target = case.target("trades");
        match lands {
            Lands::Before => proxies.catalog.release(),
            Lands::Meanwhile => {
                let gate = case.gate("gate");
                let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &JSON_RUN);
                gate.wait_for(&mut pass);
                proxies.catalog.release();
                gate.open();
                assert_eq!(only_table(&pass.wait().expect(0).json())["rows_written"], 0, "{what}");
            }
            Lands::After if place == Place::Postgres => {
                // What is not committed yet holds its row: the next pass is not let through, and its rows are there by the first.
                case.run_with(HASTY, &["run"]).expect(1).says(&["another session holds the row"]);
                proxies.catalog.release();
            }
            Lands::After => {
                assert_eq!(case.pass_one()["rows_written"], 200, "{what}");
                proxies.catalog.release();
            }
        }
        PLAIN.is_made_good(&case, &what);
        assert_eq!(target.snapshots().len(), 2, "{what}");
        if !matches!(lands, Lands::After) {
            target.has_only_read_files(&what);
        }
    });
}

/// A file of this many trades is sent in two parts.
const TRADES_IN_PARTS: u64 = 210_000;

/// A case whose files are sent in parts, behind proxies.
fn in_parts(name: &str) -> (Case, Proxies) {
    let (case, proxies) = behind_proxies(Place::Rest, name);
    PLAIN.configure(&case, "compression = 'none'\n");
    (case, proxies)
}

/// The rows of one more day.
fn another_day(case: &Case, number: usize) {
    let day = case.sql(&format!("SELECT toDate('2024-01-01') + {number}"));
    case.trades_over_days("trades", &day, TRADES_IN_PARTS, 1);
}

const CREATE: &str = "POST *uploads*";
const FIRST_PART: &str = "PUT *partNumber=1*";
const SECOND_PART: &str = "PUT *partNumber=2*";
const COMPLETE: &str = "POST *uploadId=*";
const ABORT: &str = "DELETE *uploadId=*";
/// S3's request to delete any number of objects.
const DELETE: &str = "POST *?delete*";

#[test]
fn an_upload_in_parts_survives_what_the_network_does_to_each_of_its_requests() {
    in_parallel(2, vec![CREATE, FIRST_PART, SECOND_PART, COMPLETE], |request| {
        let (case, proxies) = in_parts("parts");
        // Who does not know what an upload is called cannot give it up.
        let mut nameless = 0;
        for (number, fault) in OF_ANY.into_iter().enumerate() {
            let what = format!("{request}, {fault:?}");
            another_day(&case, number);
            proxies.s3.inject(request, ONCE, fault);
            let output = case.run(&["run"]).expect(0);
            proxies.s3.calm();
            assert_eq!(proxies.s3.met(), number + 1, "{what}");
            assert!(!output.all().contains("trying again"), "{what}: the upload itself goes on\n{}", output.all());
            is_whole(&case, &format!("{what}\n{}", output.all()));
            let arrived = matches!(fault, Fault::ReplyLost | Fault::ReplyCut(_) | Fault::Repeated);
            nameless += usize::from(request == CREATE && arrived);
        }
        assert_eq!(case.pass_one()["status"], "nothing");
        let left = case.target("trades").ask("uploads", json!({}));
        assert_eq!(left.as_array().unwrap().len(), nameless, "{request}: {left:#}");
    });
}

/// Not every store remembers what it has completed.
#[test]
fn an_upload_whose_completion_is_done_and_forgotten_is_found_to_be_there() {
    let (case, proxies) = in_parts("forgotten");
    another_day(&case, 0);
    proxies.s3.inject(COMPLETE, ONCE, Fault::ReplyLost);
    proxies.s3.inject(COMPLETE, 1..2, Fault::Answered(404, ""));
    case.run(&["run"]).expect(0).keeps_back(&["trying again"]);
    assert_eq!(proxies.s3.met(), 2);
    PLAIN.is_made_good(&case, "a completion that was forgotten");
    case.target("trades").has_no_uploads("completed");
    // One that was never done is another matter.
    another_day(&case, 1);
    proxies.s3.inject(COMPLETE, ONCE, Fault::Answered(404, ""));
    case.run(&["run"]).expect(0).says(&["trying again"]);
    is_whole(&case, "an upload that was not there");
    case.target("trades").has_no_uploads("given up, and sent anew");
}

#[test]
fn an_upload_that_fails_is_given_up_with_its_parts() {
    let (case, proxies) = in_parts("given_up");
    another_day(&case, 0);
    let before = case.target("trades").state();
    for (request, said) in [(SECOND_PART, "write s3://"), (COMPLETE, "write s3://"), ("POST */tables/trades", "")] {
        match request.ends_with("trades") {
            true => proxies.catalog.inject(request, ALWAYS, Fault::Answered(400, "")),
            false => proxies.s3.inject(request, ALWAYS, Fault::Answered(400, "")),
        }
        let code = if request.ends_with("trades") { 3 } else { 1 };
        case.run(&["run"]).expect(code).says(&[said]).keeps_back(&["left behind"]);
        proxies.s3.calm();
        proxies.catalog.calm();
        assert_eq!(case.target("trades").state(), before, "{request}");
        case.target("trades").has_no_uploads(request);
    }
    // A store that does not take that either is told of.
    proxies.s3.inject(SECOND_PART, ALWAYS, Fault::Answered(400, ""));
    proxies.s3.inject(ABORT, ALWAYS, Fault::Answered(400, ""));
    case.run(&["run"]).expect(1).says(&["parts of a file were left behind", "lifecycle rule"]);
    proxies.s3.calm();
    assert_eq!(case.target("trades").state(), before);
    assert!(!case.target("trades").ask("uploads", json!({})).as_array().unwrap().is_empty());
    case.pass();
    is_whole(&case, "given up");
}

/// Giving up, and deleting what is whole, may be asked for twice, or find nothing: it is done all the same.
#[test]
fn an_upload_is_given_up_whatever_the_network_does_to_that() {
    let (case, proxies) = in_parts("abort");
    another_day(&case, 0);
    let before = case.target("trades").state();
    for fault in OF_ANY {
        proxies.s3.inject(SECOND_PART, ALWAYS, Fault::Answered(400, ""));
        proxies.s3.inject(ABORT, ONCE, fault);
        case.run(&["run"]).expect(1).keeps_back(&["left behind"]);
        proxies.s3.calm();
        assert_eq!(case.target("trades").state(), before, "{fault:?}");
        case.target("trades").has_no_uploads(&format!("{fault:?}"));
    }
    for fault in OF_ANY {
        let met = proxies.s3.met();
        proxies.catalog.inject("POST */tables/trades", ALWAYS, Fault::Answered(400, ""));
        proxies.s3.inject(DELETE, ONCE, fault);
        case.run(&["run"]).expect(3).keeps_back(&["left behind"]);
        proxies.s3.calm();
        proxies.catalog.calm();
        assert_eq!((proxies.s3.met(), case.target("trades").state()), (met + 1, before.clone()), "{fault:?}");
    }
    case.pass();
    is_whole(&case, "abort");
}

#[test]
fn a_signal_in_the_middle_of_an_upload_gives_it_up() {
    in_parallel(2, vec![FIRST_PART, SECOND_PART, COMPLETE], |request| {
        let (case, proxies) = in_parts("signal");
        another_day(&case, 0);
        let before = case.target("trades").state();
        proxies.s3.inject(request, ONCE, Fault::Held);
        let pass = case.spawn("offload.toml", "", &["run"]);
        proxies.s3.wait_for_held(1);
        pass.signal("TERM");
        pass.wait().expect(143);
        assert_eq!(case.target("trades").state(), before, "{request}");
        case.target("trades").has_no_uploads(request);
        // What was under way arrives after all, and finds nothing to add to.
        proxies.s3.release();
        assert_eq!(case.target("trades").state(), before, "{request}");
        case.target("trades").has_no_uploads(request);
        case.pass();
        is_whole(&case, request);
    });
}

/// kill -9 leaves what nobody sees: parts, which only the store's lifecycle rule ends, and whole objects, which are orphans.
#[test]
fn what_was_under_way_at_a_kill_or_a_signal_is_never_seen_by_halves() {
    let (case, proxies) = in_parts("killed");
    another_day(&case, 0);
    let before = case.target("trades").state();
    proxies.s3.inject(SECOND_PART, ONCE, Fault::Held);
    let pass = case.spawn("offload.toml", "", &["run"]);
    proxies.s3.wait_for_held(1);
    pass.signal("KILL");
    assert_eq!(pass.wait().code, None);
    proxies.s3.release();
    assert_eq!(case.target("trades").state(), before);
    assert_eq!(case.target("trades").ask("uploads", json!({})).as_array().unwrap().len(), 1);
    case.pass();
    is_whole(&case, "killed");

    // A request that the store gets when its sender has gone, and given up.
    let data = |case: &Case| -> Vec<PathBuf> { case.target("trades").files_on_disk() };
    let known = data(&case);
    case.trades("trades", "2024-02-01 12:00:00", 100);
    proxies.s3.inject("PUT *.parquet*", ONCE, Fault::Held);
    let pass = case.spawn("offload.toml", "", &["run"]);
    proxies.s3.wait_for_held(1);
    pass.signal("TERM");
    pass.wait().expect(143);
    assert_eq!(data(&case), known);
    proxies.s3.release();
    assert_eq!(data(&case).len(), known.len() + 1, "an orphan");
    case.pass();
    PLAIN.is_made_good(&case, "a late PUT");
}

#[test]
fn a_store_or_catalog_that_is_busy_for_a_moment_is_waited_for() {
    let busy = [Fault::Answered(503, ""), Fault::Answered(429, ""), Fault::Answered(500, "")];
    in_parallel(3, busy.to_vec(), |fault| {
        let (case, proxies) = two_days(Place::Rest, "busy");
        proxies.s3.inject("*", 1..4, fault);
        if fault != Fault::Answered(500, "") {
            proxies.catalog.inject("GET *", 0..2, fault);
        }
        case.run(&["run"]).expect(0).keeps_back(&["trying again", "WARN"]);
        assert!(proxies.s3.met() == 3, "{fault:?}");
        PLAIN.is_made_good(&case, &format!("{fault:?}"));
    });
}

/// What stays busy, or says nothing, fails the pass, in a time that has an end, and nothing is left.
#[test]
fn a_store_or_catalog_that_stays_away_fails_the_pass_and_leaves_nothing() {
    let away = [Fault::Answered(503, ""), Fault::RequestLost, Fault::ReplyLost, Fault::Swallowed];
    let all = away.iter().flat_map(|fault| [("s3", *fault), ("catalog", *fault)]).collect();
    in_parallel(8, all, |(part, fault)| {
        let what = format!("{part}, {fault:?}");
        let (case, proxies) = two_days(Place::Rest, "away");
        let before = case.target("trades").state();
        let proxy = if part == "s3" { &proxies.s3 } else { &proxies.catalog };
        // What was written stays where it cannot be deleted either; so only writing fails.
        proxy.inject(if part == "s3" { "PUT *" } else { "GET *" }, ALWAYS, fault);
        case.run_with(HASTY, &["run"]).expect(1).says(&["hint: "]);
        proxies.s3.calm();
        proxies.catalog.calm();
        assert_eq!(case.target("trades").state(), before, "{what}");
        PLAIN.is_made_good(&case, &what);
    });
}

/// The answer to a commit stays away again and again: files stay, and the next pass goes on.
#[test]
fn p14_files_stay_while_a_server_does_not_tell_whether_a_commit_landed() {
    in_parallel(2, vec![Place::Rest, Place::Guarded, Place::Postgres], |place| {
        let (case, proxies) = two_days(place, "untold");
        let request = case.lake.as_ref().unwrap().commit_request();
        proxies.catalog.inject(request, ALWAYS, Fault::RequestLost);
        let known = case.target("trades").files_on_disk().len();
        case.run(&["run"]).expect(1).says(&["kept"]);
        assert!(case.target("trades").files_on_disk().len() > known, "{place:?}");
        proxies.catalog.calm();
        PLAIN.is_made_good(&case, &format!("{place:?}"));
    });
}

/// A file that could not be read may be the one that names others, or the newest.
#[test]
fn metadata_that_cannot_be_read_is_not_taken_for_none() {
    let (case, proxies) = two_days(Place::Postgres, "unread");
    let folder = case.location(&case.target("trades").folder());
    proxies.s3.inject("GET */metadata/00000-*", ALWAYS, Fault::Answered(403, ""));
    case.run(&["audit", "--orphans"]).expect(2).says(&["00000-", "403"]);
    proxies.s3.calm();
    proxies.s3.inject("GET */metadata/00001-*", ALWAYS, Fault::Answered(403, ""));
    case.config(&TRADES.replace("cold.trades", "cold.again"));
    case.run(&["init-tables", "--table", "cold.again", "--register", &folder]).expect(2).says(&["00001-", "403"]);
    proxies.s3.calm();
    PLAIN.configure(&case, "");
    PLAIN.is_made_good(&case, "as before");
}

/// Requests cost money and time: 96 passes a day, most of which find nothing.
#[test]
fn a_pass_asks_no_more_than_it_needs() {
    let (case, proxies) = behind_proxies(Place::Rest, "requests");
    let tables: Vec<String> = (0..9).map(|number| format!("t{number}")).collect();
    let mut config = String::new();
    for table in &tables {
        case.bronze(table);
        case.trades(table, "2024-03-10 10:00:00", 100);
        config += &format!("[[table]]\nsource = '{table}'\ntarget = 'cold.{table}'\ncursor = 'exchange_timestamp'\n");
    }
    case.config(&config);
    case.init_tables();
    case.pass();
    proxies.s3.take_answers();
    proxies.catalog.take_answers();
    case.pass();
    let (asked, stored) = (proxies.catalog.take_answers(), proxies.s3.take_answers());
    println!("nothing to do: {} requests to the catalog, {} to the store", asked.len(), stored.len());
    assert_eq!(asked.iter().filter(|answer| answer.starts_with("200 GET /v1/config")).count(), 1);
    assert!(asked.len() + stored.len() <= 1 + 2 * tables.len(), "{asked:#?}\n{stored:#?}");
    for table in &tables {
        let of_table = asked.iter().filter(|answer| answer.ends_with(&format!("/tables/{table}"))).count();
        assert_eq!(of_table, 1, "{asked:#?}");
    }

    // Before it commits it asks whether the table is another one, and is not sent it again.
    case.trades("t0", "2024-03-11 10:00:00", 100);
    case.pass();
    let asked = proxies.catalog.take_answers();
    let of_table: Vec<_> = asked.iter().filter(|answer| answer.ends_with("/tables/t0")).collect();
    let statuses: Vec<_> = of_table.iter().map(|answer| answer.split(" /").next().unwrap()).collect();
    assert_eq!(statuses, ["200 GET", "304 GET", "200 POST"]);
    let stored = proxies.s3.take_answers();
    println!("a day of one table: {} requests to the store\n{stored:#?}", stored.len());
    assert!(stored.iter().all(|answer| !answer.contains(".metadata.json")), "{stored:#?}");
}
