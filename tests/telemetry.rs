//! What goes to stderr: bars on a terminal only, and logs that are quiet when nothing happened.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;
use support::{Case, Running, TRADES, wait_until};

/// The log lines of a document of JSON lines.
fn lines(stderr: &str) -> Vec<Value> {
    stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn one_line_for_each_table_and_one_for_the_pass_and_none_when_nothing_is_new() {
    let case = Case::new("quiet");
    case.bronze("trades");
    let second = TRADES.replace("cold.trades", "cold.second");
    case.config(&format!("{TRADES}{second}"));
    case.init_tables();
    case.trades("trades", "2024-03-10", 100);
    let output = case.run(&["--log-format", "json", "run"]).expect(0);
    let logged = lines(&output.stderr);
    let messages: Vec<&str> = logged.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["done", "done", "pass done"], "{}", output.all());
    assert_eq!(
        (&logged[0]["rows"], &logged[2]["rows"], &logged[2]["offloaded"]),
        (&100.into(), &200.into(), &2.into())
    );
    let targets: BTreeSet<&str> = logged[..2].iter().map(|line| line["span"]["target"].as_str().unwrap()).collect();
    assert_eq!(targets, BTreeSet::from(["cold.trades", "cold.second"]));

    let output = case.run(&["run"]).expect(0);
    assert_eq!((output.stderr.as_str(), output.stdout.lines().count()), ("", 2), "{}", output.all());
    let output = case.run(&["-q", "run"]).expect(0);
    assert_eq!((output.stderr.as_str(), output.stdout.as_str()), ("", ""), "cron mails nothing");
    case.run(&["-v", "run"]).expect(0).says(&["nothing new"]);

    case.trades("trades", "2024-03-11", 100);
    case.run(&["run", "--table", "cold.second"]).expect(0);
    let output = case.run(&["-q", "run"]).expect(0);
    assert_eq!((output.stderr.as_str(), output.stdout.lines().count()), ("", 1), "{}", output.all());
    assert!(
        output.stdout.contains("cold.trades: offloaded 100 rows") && output.stdout.starts_with("20"),
        "{}",
        output.all()
    );
}

#[test]
fn bars_show_rows_on_a_terminal_and_nowhere_else() {
    let case = Case::with_trades("bars");
    case.trades("trades", "2024-03-10", 1234);
    for columns in [120, 40] {
        let gate = case.gate(&format!("gate{columns}"));
        let typescript = case.path(&format!("typescript{columns}"));
        let pass = case.command(&["run", "--until", &format!("2024-03-{}", if columns == 40 { 12 } else { 11 })]);
        let words: Vec<String> = std::iter::once(pass.get_program())
            .chain(pass.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let mut script = Command::new("script");
        script.args(["-qefc", &format!("stty rows 24 cols {columns}; {}", words.join(" "))]).arg(&typescript);
        script.env("K2_OFFLOAD_FAILPOINTS", format!("counted={}", gate.pause())).env("TERM", "xterm");
        let running = Running::start(&mut script);
        // The pass waits; its bar is drawn all the same.
        let shown = || fs::read_to_string(&typescript).unwrap_or_default();
        wait_until("a bar is drawn", || shown().contains("cold.trades") && shown().contains("0/1,"));
        gate.open();
        let ended = running.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.all());
        assert!(shown().contains("offloaded 1,234 rows"), "{}", shown());
        case.trades("trades", "2024-03-11", 1234);
    }
    let output = case.run(&["run"]).expect(0);
    assert!(!output.all().contains('\r') && !output.all().contains("eta"), "{}", output.all());
}
