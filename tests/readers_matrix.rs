//! Bronze, silver with nested values, and gold, in two versions of their schemas, in the eyes of ClickHouse, PyIceberg and DuckDB: sums, rows, filters and time
//! travel, through every catalog; PyIceberg writes on, with passes before and after. tests/readers/matrix.py tells the story; `scripts/interop` also asks
//! Spark and Trino.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use support::server::{readers_python, repository};

fn is_read_by_all(place: &str) {
    let mut command = Command::new(readers_python());
    command.arg(repository().join("tests/readers/matrix.py"));
    let output = command.args(["--binary", env!("CARGO_BIN_EXE_k2-offload"), "--place", place]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for reader in ["ClickHouse", "PyIceberg", "DuckDB"] {
        let looked = stdout.lines().any(|line| line.contains(reader) && line.contains(" 17 checks;"));
        assert!(looked, "{reader} looked at three tables twice in three ways, but once\n{stdout}");
    }
}

#[test]
fn a_sqlite_catalog_with_files() {
    is_read_by_all("sqlite-file");
}

#[test]
fn a_sqlite_catalog_with_s3() {
    is_read_by_all("sqlite-s3");
}

#[test]
fn a_postgresql_catalog_with_s3() {
    is_read_by_all("postgres-s3");
}

#[test]
fn a_rest_catalog_with_s3() {
    is_read_by_all("rest-s3");
}
