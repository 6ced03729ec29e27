//! Answers of the server that end too early or not at all: cut by the network or by kill -9, stalled, or broken off by an exception after
//! HTTP 200. The table fails with exit code 1 and is as before; another one is done. And whichever request to it is lost, cut, late or repeated, or
//! its answer, the pass tries again.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;

use support::faults::{Fault, FaultyProxy};
use support::proxy::Proxy;
use support::shapes::PLAIN;
use support::{Case, HASH_OF_BRONZE, Output, Server, TRADES, fails, in_parallel, table_of, wait_until};

const JSON_RUN: [&str; 3] = ["--format", "json", "run"];

/// Tables `trades` of 2000 rows and `others`; `proxy.toml` reads through a proxy that can spoil the answers of `trades`.
fn behind_proxy(name: &str) -> (Case, Proxy) {
    let case = Case::new(name);
    case.bronze("trades");
    case.bronze("others");
    case.trades("trades", "2024-03-10 00:00:00", 2000);
    let proxy = Proxy::start(&case.url, "trades");
    (case, proxy)
}

/// Another target for `trades`.
fn with_target(case: &Case, proxy: &Proxy, name: &str) {
    let others = TRADES.replace("'trades'", "'others'").replace("cold.trades", "cold.others");
    let trades = TRADES.replace("cold.trades", &format!("cold.{name}"));
    case.config_file("offload.toml", "idle_timeout = '1s'", "", &format!("{trades}{others}"));
    let direct = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("proxy.toml"), direct.replace(&case.url, &proxy.url)).unwrap();
    case.init_tables();
}

/// Bytes of a whole answer.
fn whole_answer(case: &Case, proxy: &Proxy) -> usize {
    with_target(case, proxy, "whole");
    let whole = case.run_with("proxy.toml", &JSON_RUN).expect(0).json();
    assert_eq!(table_of(&whole, "cold.whole")["rows_written"], 2000);
    let longest = proxy.longest();
    assert!(longest > 20_000, "the proxy saw no Parquet: {longest}");
    longest
}

/// `spoilt` comes from a pass that must leave the target of that name as init-tables made it, and have done the other table.
fn nothing_is_left(case: &Case, name: &str, texts: &[&str], spoilt: impl FnOnce() -> Output) {
    let target = case.target(name);
    let before = target.state();
    let day = case.sql("SELECT toDate('2024-03-10') + intDiv(count(), 10) FROM others");
    case.trades("others", &day, 10);
    let output = spoilt();
    fails(table_of(&output.json(), &format!("cold.{name}")), "unavailable", texts);
    let rows = target.icebergs("SELECT count() FROM");
    assert_eq!((target.state(), rows.as_str()), (before, "0"), "{name}\n{}", output.all());
    assert_eq!(table_of(&output.expect(1).json(), "cold.others")["rows_written"], 10);
}

fn is_made_good(case: &Case, name: &str) {
    case.pass();
    case.target(name).holds_all("trades");
    case.target(name).has_no_other_files();
}

#[test]
fn an_answer_that_is_cut_anywhere_leaves_nothing_behind() {
    let (case, proxy) = behind_proxy("cut");
    let longest = whole_answer(&case, &proxy);
    // Before the header, in it, in the pages, in the footer, and, without a number, after the last byte of Parquet.
    for cut in [Some(0), Some(10), Some(longest / 2), Some(longest - 200), None] {
        let name = cut.map_or("cut_at_end".to_owned(), |cut| format!("cut_{cut}"));
        with_target(&case, &proxy, &name);
        cut.map_or_else(|| proxy.cut_before_end(), |cut| proxy.cut_after(cut));
        nothing_is_left(&case, &name, &["`trades`", "next pass"], || case.run_with("proxy.toml", &JSON_RUN));
        proxy.let_pass();
        is_made_good(&case, &name);
    }
}

#[test]
fn an_answer_that_stalls_is_given_up_and_leaves_nothing_behind() {
    let (case, proxy) = behind_proxy("stall");
    let longest = whole_answer(&case, &proxy);
    for stall in [0, longest / 2] {
        let name = format!("stall_{stall}");
        with_target(&case, &proxy, &name);
        proxy.stall_after(stall);
        let texts = ["`trades`", "said nothing for 1s", "idle_timeout"];
        nothing_is_left(&case, &name, &texts, || case.run_with("proxy.toml", &JSON_RUN));
        proxy.let_pass();
        is_made_good(&case, &name);
    }
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_its_answer_leaves_nothing_behind() {
    let mut server = Server::start("UTC");
    let mut case = Case::on(&server.url, "killed");
    case.bronze("early");
    case.trades("early", "2024-03-10", 10);
    let trades = |slow: &str, rows: &str| {
        format!(
            "VIEW trades AS SELECT toDateTime64('2024-03-10', 3, 'UTC') + number AS ts, {slow} AS slow FROM numbers({rows})"
        )
    };
    case.sql(&format!("CREATE {}", trades("sleepEachRow(0.0001)", "1000000")));
    let proxy = Proxy::start(&case.url, "trades");
    let config = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\nlayer = 'second'\nrow_group_size = 1000\n";
    let settings = "settings = { max_block_size = 1000, max_threads = 1, \
                    function_sleep_max_microseconds_per_block = 0 }";
    let early = TRADES.replace("'trades'", "'early'").replace("cold.trades", "cold.early");
    case.url.clone_from(&proxy.url);
    case.config_file("offload.toml", settings, "", &format!("{early}{config}"));
    case.init_tables();
    let before = case.target("trades").state();
    let mut pass = case.spawn("offload.toml", "", &JSON_RUN);
    wait_until("bytes of the answer have come", || {
        assert!(!pass.is_over(), "the pass ended before");
        proxy.longest() > 100_000
    });
    server.kill();
    let document = pass.wait().expect(1).json();
    fails(table_of(&document, "cold.trades"), "unavailable", &["`trades`", "next pass"]);
    assert_eq!(case.target("trades").state(), before);
    assert_eq!((case.target("trades").count(), case.target("early").count()), (0, 10));

    server.start_again();
    case.url.clone_from(&server.url);
    case.sql(&format!("CREATE OR REPLACE {}", trades("toUInt8(0)", "1000")));
    case.config(&format!("{early}{config}"));
    case.pass();
    case.target("trades").holds_all("trades");
    case.target("trades").has_no_other_files();
}

#[test]
fn an_exception_after_the_first_bytes_leaves_nothing_behind() {
    let case = Case::new("exception");
    case.bronze("others");
    let rows =
        "SELECT toDateTime64('2024-03-10', 3, 'UTC') + intDiv(number, 1000) AS ts, number AS n FROM numbers(4000000)";
    case.sql(&format!("CREATE VIEW trades AS SELECT *, throwIf(n = 3500000, 'too late') AS bad FROM ({rows})"));
    let trades = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\nrow_group_size = 100000\n";
    let others = TRADES.replace("'trades'", "'others'").replace("cold.trades", "cold.others");
    let settings = "settings = { max_threads = 1 }";
    case.config_file("offload.toml", settings, "", &format!("{trades}{others}"));
    case.init_tables();
    nothing_is_left(&case, "trades", &["`trades`", "too late", "next pass"], || case.run(&JSON_RUN));
    case.sql(&format!("CREATE OR REPLACE VIEW trades AS SELECT *, toUInt8(0) AS bad FROM ({rows}) WHERE n < 1000"));
    is_made_good(&case, "trades");
}

/// What the network does to one request, whichever it is.
const OF_ANY: [Fault; 6] = [
    Fault::RequestLost,
    // In the body: ClickHouse 26.7 itself dies of a header that ends too early.
    Fault::RequestCut(usize::MAX),
    Fault::ReplyLost,
    Fault::ReplyCut(150),
    Fault::Repeated,
    Fault::Held,
];
/// More requests than a pass of these tests makes, and not more than days of a month.
const MANY: usize = 31;

#[test]
fn whichever_request_is_lost_cut_late_or_repeated_the_pass_brings_every_row_once() {
    in_parallel(6, OF_ANY.to_vec(), |fault| {
        let case = PLAIN.case("nth");
        let proxy = FaultyProxy::http(&case.url);
        let direct = fs::read_to_string(case.path("offload.toml")).unwrap();
        fs::write(case.path("proxy.toml"), direct.replace(&case.url, &proxy.url)).unwrap();
        // The first, second, .. request of a pass meets the fault, each time with the rows of one more day.
        let nth = |number: usize| {
            let what = format!("{fault:?} of request {number}");
            case.trades("trades", &format!("2024-01-{:02} 12:00:00", number + 1), 100);
            let met = proxy.met();
            proxy.inject("*", number..number + 1, fault);
            let mut pass = case.spawn("proxy.toml", "", &["run"]);
            if fault == Fault::Held {
                wait_until("a request is held", || pass.is_over() || proxy.met() > met);
                proxy.release();
            }
            let output = pass.wait();
            proxy.calm();
            assert_eq!(output.code, Some(0), "{what}: it tries again\n{}", output.all());
            let wanted = case.sql(&format!("{HASH_OF_BRONZE} trades"));
            let found = case.target("trades").icebergs(HASH_OF_BRONZE);
            assert_eq!(found, wanted, "{what}\n{}", output.expect(0).all());
            proxy.met() > met
        };
        let count = (0..MANY).take_while(|number| nth(*number)).count();
        println!("{fault:?}: {count} requests");
        assert!(count >= 10, "{fault:?}: {count} requests");
        PLAIN.is_made_good(&case, &format!("{fault:?}"));
        case.target("trades").has_no_other_files();
    });
}
