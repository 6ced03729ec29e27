//! The ClickHouse of the tests: the shared one of scripts/test, or one of a test's own with users of its own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const MISSING: &str = "no ClickHouse for the tests: run scripts/test";

/// URL of the server that scripts/test started.
pub fn shared_url() -> String {
    std::env::var("K2_TEST_CLICKHOUSE").expect(MISSING)
}

/// Python with the foreign readers.
pub fn readers_python() -> String {
    std::env::var("K2_TEST_PYTHON").expect(MISSING)
}

/// Runs a query.
pub fn post(url: &str, database: &str, query: &str) -> Result<String, String> {
    // Without wait_end_of_query a query that fails midway has already been answered with 200.
    ask(url, &format!("POST /?wait_end_of_query=1&database={database}"), query)
}

/// Gets what lies at a path.
pub fn get(url: &str, path: &str) -> Result<String, String> {
    ask(url, &format!("GET {path}"), "")
}

/// HTTP/1.0, so that the answer ends with the connection and comes in one piece.
fn ask(url: &str, request: &str, body: &str) -> Result<String, String> {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).map_err(|e| format!("connect to {url}: {e}"))?;
    let head = format!("{request} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut answer = Vec::new();
    let exchanged = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()))
        .and_then(|()| stream.read_to_end(&mut answer));
    exchanged.map_err(|e| format!("ask {url}: {e}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP answer: {answer}"))?;
    let ok = head.lines().next().is_some_and(|status| status.contains(" 200 "));
    if ok { Ok(body.trim_end_matches('\n').to_owned()) } else { Err(body.to_owned()) }
}

/// A server of one test's own, stopped when the test ends.
pub struct Server {
    pub url: String,
    pid: String,
    folder: TempDir,
}

impl Server {
    /// Starts one with the users of tests/server/users.xml in the time zone `zone`.
    pub fn start(zone: &str) -> Self {
        let config = repository().join("tests/server/config.xml");
        Self::launch(&["--config", config.to_str().unwrap()], zone)
    }

    /// Starts ClickHouse 18.16.
    pub fn old() -> Self {
        Self::launch(&["--old"], "UTC")
    }

    fn launch(flags: &[&str], zone: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (url, pid) = start(script(folder.path(), "start").args(flags).env("TZ", zone));
        Self { url, pid, folder }
    }

    /// Starts one that takes itself for another host, which needs root.
    pub fn on_another_host() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = script(folder.path(), "start");
        let mut other = Command::new("unshare");
        other.args(["--uts", "sh", "-c", "hostname k2-elsewhere && exec \"$0\" \"$@\""]).arg(script.get_program());
        let (url, pid) = start(other.args(script.get_args()));
        Self { url, pid, folder }
    }

    pub fn stop(&self) {
        script(self.folder.path(), "stop").output().unwrap();
    }

    /// kill -9.
    pub fn kill(&self) {
        let killed = Command::new("kill").args(["-9", &self.pid]).status().unwrap();
        assert!(killed.success(), "kill -9 {}", self.pid);
    }

    /// Stops it and starts it again on its data, with another configuration.
    pub fn restart_with(&mut self, config: &Path) {
        self.stop();
        (self.url, self.pid) = start(script(self.folder.path(), "start").arg("--config").arg(config));
    }

    /// Starts it again after its end, on its data, as the server that scripts/clickhouse starts by itself.
    pub fn start_again(&mut self) {
        (self.url, self.pid) = start(&mut script(self.folder.path(), "start"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// URL and process of the server that a call of scripts/clickhouse starts.
fn start(call: &mut Command) -> (String, String) {
    let output = call.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let facts: BTreeMap<&str, &str> = stdout.lines().filter_map(|line| line.split_once('=')).collect();
    (facts["url"].to_owned(), facts["pid"].to_owned())
}

fn script(folder: &Path, command: &str) -> Command {
    let mut script = Command::new(repository().join("scripts/clickhouse"));
    script.arg(command).arg("--dir").arg(folder);
    script
}

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
