//! A real Prometheus that reads a folder of textfiles through a real node_exporter, as cron/monitoring says; both end with the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use url::form_urlencoded::Serializer;

use super::{Running, finish, wait_until};

const MISSING: &str = "no Prometheus for the tests: run scripts/test";
/// Another process can take a port between our look and the server's bind.
const PORT_ATTEMPTS: u32 = 5;

/// `prometheus`, `promtool` or `prometheus-node-exporter`.
pub fn program(name: &str) -> PathBuf {
    PathBuf::from(std::env::var("K2_TEST_PROMETHEUS").expect(MISSING)).join(name)
}

/// Runs promtool; it must find nothing wrong.
pub fn promtool(command: &mut Command) {
    let output = finish(command);
    assert_eq!(output.code, Some(0), "{command:?}\n{}", output.all());
}

/// Prometheus and the node_exporter that it reads every second.
pub struct Prometheus {
    address: String,
    _prometheus: Running,
    _node_exporter: Running,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts both on the textfiles of `textfiles`, with these rules.
    pub fn start(textfiles: &Path, rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (_node_exporter, exporter) = serve("/metrics", |address| {
            let mut command = Command::new(program("prometheus-node-exporter"));
            command.args(["--collector.disable-defaults", "--collector.textfile", "--log.level=warn"]);
            command.arg(format!("--collector.textfile.directory={}", textfiles.display()));
            command.arg(format!("--web.listen-address={address}"));
            command
        });
        std::fs::write(folder.path().join("rules.yml"), rules).unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nrule_files: [rules.yml]\n\
             scrape_configs: [{{job_name: node, static_configs: [{{targets: ['{exporter}']}}]}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let (_prometheus, address) = serve("/-/ready", |address| {
            let mut command = Command::new(program("prometheus"));
            command.arg(format!("--config.file={}", config.display())).arg("--log.level=warn");
            command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
            command.arg(format!("--web.listen-address={address}"));
            command
        });
        Self { address, _prometheus, _node_exporter, _folder: folder }
    }

    /// `data` of the answer to a GET of its API.
    pub fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query = Serializer::new(String::new()).extend_pairs(parameters).finish();
        let body = get(&self.address, &format!("/api/v1/{path}?{query}")).unwrap();
        let answer: Value =
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path} {parameters:?}: {e}\n{body}"));
        assert_eq!(answer["status"], "success", "{path} {parameters:?}: {answer:#}");
        answer["data"].clone()
    }

    /// The values of the series that a query finds.
    pub fn ask(&self, query: &str) -> Vec<f64> {
        let data = self.api("query", &[("query", query)]);
        let series = data["result"].as_array().unwrap();
        series.iter().map(|series| series["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Waits until a query finds this one value.
    pub fn sees(&self, query: &str, value: f64) {
        wait_until(&format!("`{query}` is {value}"), || self.ask(query) == [value]);
    }

    /// Its rules, as it has read them.
    pub fn rules(&self) -> Vec<Value> {
        let groups = self.api("rules", &[]);
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone())
            .collect()
    }
}

/// Starts a server on a free port; it with its address, once it answers.
fn serve(path: &str, command: impl Fn(&str) -> Command) -> (Running, String) {
    for _ in 0..PORT_ATTEMPTS {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut server = Running::start(&mut command(&address));
        let mut over = false;
        wait_until(&format!("http://{address}{path} answers"), || {
            over = server.is_over();
            over || get(&address, path).is_ok()
        });
        if !over {
            return (server, address);
        }
        let output = server.wait();
        assert!(output.stderr.contains("address already in use"), "{}", output.all());
    }
    panic!("no free port in {PORT_ATTEMPTS} attempts");
}

/// The body of an answer 200; HTTP/1.0, so that it ends with the connection and comes in one piece.
fn get(address: &str, path: &str) -> Result<String, String> {
    let exchange = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let answer = exchange().map_err(|e: std::io::Error| format!("{address}{path}: {e}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP answer: {answer}"))?;
    let ok = head.lines().next().is_some_and(|status| status.contains(" 200 "));
    if ok { Ok(body.to_owned()) } else { Err(answer) }
}
