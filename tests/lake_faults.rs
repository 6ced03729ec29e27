//! Faults between k2-offload and the lake: requests and replies of S3 and of catalogs that are lost, late, repeated, cut or refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use support::{Case, Place};

#[test]
fn every_place_is_read_by_all_readers() {
    for place in [Place::Local, Place::Sqlite, Place::Postgres, Place::Rest, Place::Guarded] {
        let case = Case::with_trades_at(place, "place");
        case.trades("trades", "2024-03-10 10:00:00", 100);
        assert_eq!(case.pass_one()["rows_written"], 100, "{place:?}");
        let target = case.target("trades");
        target.holds_for_all_readers("trades");
        target.has_no_other_files();
        assert_eq!(target.icebergs("SELECT count() FROM"), "100");
        assert_eq!(target.marker()["rows"], 100);
        case.run(&["audit", "--checksum"]).expect(0);
    }
}
