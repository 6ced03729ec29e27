//! Answers of the server that end too early: cut by the network, or by an exception after HTTP 200.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use support::proxy::Proxy;
use support::{Case, TRADES, only_table};

#[test]
fn an_answer_that_is_cut_anywhere_leaves_nothing_behind() {
    let case = Case::new("cut");
    case.bronze("trades");
    case.trades("trades", "2024-03-10 00:00:00", 2000);
    let proxy = Proxy::start(&case.url);
    let through_proxy = |name: &str| {
        case.config(&TRADES.replace("cold.trades", &format!("cold.{name}")));
        let direct = fs::read_to_string(case.path("offload.toml")).unwrap();
        fs::write(case.path("proxy.toml"), direct.replace(&case.url, &proxy.url)).unwrap();
        case.init_tables();
    };
    through_proxy("whole");
    let whole = only_table(&case.run_with("proxy.toml", &["--format", "json", "run"]).expect(0).json());
    assert_eq!(whole["rows_written"], 2000);
    let longest = proxy.longest();
    assert!(longest > 20_000, "the proxy saw no Parquet: {longest}");

    // Before the header, in it, in the pages, in the footer, and, without a number, after the last byte of Parquet.
    for cut in [Some(0), Some(10), Some(longest / 2), Some(longest - 200), None] {
        let name = cut.map_or("cut_at_end".to_owned(), |cut| format!("cut_{cut}"));
        through_proxy(&name);
        cut.map_or_else(|| proxy.cut_before_end(), |cut| proxy.cut_after(cut));
        let output = case.run_with("proxy.toml", &["run"]);
        proxy.cut_after(usize::MAX);
        let target = case.target(&name);
        assert!(
            output.code == Some(1) && target.files_on_disk().is_empty(),
            "cut after {cut:?} of {longest}\n{}",
            output.all()
        );
        assert!(target.snapshots().is_empty());
        assert_eq!(case.pass_one()["rows_written"], 2000);
        target.holds_all("trades");
        target.has_no_other_files();
    }
}

#[test]
fn an_exception_after_the_first_bytes_leaves_nothing_behind() {
    let case = Case::new("exception");
    case.sql(
        "CREATE VIEW trades AS SELECT toDateTime64('2024-03-10', 3, 'UTC') + intDiv(number, 1000) AS ts, number AS n, \
         throwIf(number = 3500000, 'too late') AS bad FROM numbers(4000000)",
    );
    case.config_file(
        "offload.toml",
        "settings = { max_threads = 1, output_format_parquet_row_group_size = 100000 }",
        "",
        "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'ts'\n",
    );
    case.init_tables();
    case.run(&["run"]).expect(1).says(&["too late"]);
    let target = case.target("trades");
    assert!(target.files_on_disk().is_empty() && target.snapshots().is_empty());
}
