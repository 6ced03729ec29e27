//! What the integration tests share: a [`Case`] is one test's own database, folder and configuration.
//!
//! Tests drive the built binary against a real ClickHouse ([`server`]), on rows that are the same on every machine ([`data`]), and look
//! at the result with readers that are not ours ([`readers`]). Each test binary uses its part of all this.
#![allow(dead_code, unused_imports)]

pub mod data;
pub mod disk;
pub mod faults;
pub mod lake;
pub mod machine;
pub mod place;
pub mod prometheus;
pub mod proxy;
pub mod readers;
pub mod scene;
pub mod server;
pub mod shapes;
pub mod tls;
pub mod webhook;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use data::{BRONZE, HASH_OF_BRONZE};
pub use disk::Disk;
pub use place::{Lake, Place, Proxies};
pub use readers::Target;
pub use server::Server;
pub use webhook::Webhook;

/// Longest wait for a condition; nothing that is waited for should take a tenth of it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether a condition has come to be.
pub const POLL: Duration = Duration::from_millis(5);

/// The only table of most tests.
pub const TRADES: &str = "[[table]]\nsource = 'trades'\ntarget = 'cold.trades'\ncursor = 'exchange_timestamp'\npartition_by = ['day(exchange_timestamp)']\n";

/// A database and a folder with configuration, state and, where they are not on the lake, catalog and warehouse, all of one test.
pub struct Case {
    pub database: String,
    pub url: String,
    /// Where catalog and warehouse are, if not in the folder.
    pub lake: Option<Lake>,
    folder: TempDir,
}

impl Case {
    /// A case on the server of scripts/test.
    pub fn new(name: &str) -> Self {
        Self::on(&server::shared_url(), name)
    }

    /// A case on another server.
    pub fn on(url: &str, name: &str) -> Self {
        let database = format!("{name}_{}", uuid::Uuid::new_v4().simple());
        server::post(url, "default", &format!("CREATE DATABASE {database}")).unwrap();
        Self { database, url: url.to_owned(), lake: None, folder: tempfile::tempdir().unwrap() }
    }

    /// A case whose targets lie in S3, behind the REST catalog.
    pub fn on_lake(name: &str) -> Self {
        Self::at(Place::Rest, name)
    }

    /// A case whose targets lie there.
    pub fn at(place: Place, name: &str) -> Self {
        let mut case = Self::new(name);
        case.lake = (place != Place::Local).then(|| Lake::new(place, name));
        case
    }

    /// A case with an empty bronze table `trades`, its configuration, and its target.
    pub fn with_trades(name: &str) -> Self {
        Self::with_trades_at(Place::Local, name)
    }

    /// The same with its target there.
    pub fn with_trades_at(place: Place, name: &str) -> Self {
        let case = Self::at(place, name);
        case.bronze("trades");
        case.config(TRADES);
        case.init_tables();
        case
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a query in the database of this case; its answer without the last line break.
    pub fn sql(&self, query: &str) -> String {
        server::post(&self.url, &self.database, query).unwrap_or_else(|e| panic!("{e}\nquery: {query}"))
    }

    /// Writes offload.toml: server and database of this case, no settle delay, then `tables`.
    pub fn config(&self, tables: &str) {
        self.config_file("offload.toml", "", "", tables);
    }

    /// Writes a configuration with further keys of `[clickhouse]` and, as `rest`, further sections.
    pub fn config_file(&self, file: &str, clickhouse: &str, rest: &str, tables: &str) {
        let (url, database) = (&self.url, &self.database);
        let delay = if tables.contains("settle_delay") { "" } else { "[defaults]\nsettle_delay = '0s'\n" };
        let catalog = self.lake.as_ref().filter(|_| !rest.contains("[catalog]")).map(Lake::config).unwrap_or_default();
        let text = format!(
            "[clickhouse]\nurl = '{url}'\ndatabase = '{database}'\n{clickhouse}\n{catalog}{delay}{rest}\n{tables}"
        );
        fs::write(self.path(file), self.in_namespace(&text)).unwrap();
    }

    /// A text of a test whose `cold` is the namespace of this case.
    pub fn in_namespace(&self, text: &str) -> String {
        self.lake.as_ref().map_or_else(|| text.to_owned(), |lake| lake.in_namespace(text))
    }

    /// Where the targets of this case are.
    pub fn place(&self) -> Place {
        self.lake.as_ref().map_or(Place::Local, |lake| lake.place)
    }

    /// The file of this host that holds what is at a location: also S3 keeps each object as a file.
    pub fn file(&self, location: &str) -> PathBuf {
        match &self.lake {
            Some(lake) => lake.prefix.file(location),
            None => PathBuf::from(location.strip_prefix("file://").unwrap_or(location)),
        }
    }

    /// The location of such a file.
    pub fn location(&self, file: &Path) -> String {
        match &self.lake {
            Some(lake) => lake.prefix.location(file),
            None => format!("file://{}", file.display()),
        }
    }

    /// `k2-offload -c offload.toml` of this case, in an environment without our variables.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_with("offload.toml", arguments)
    }

    pub fn command_with(&self, config: &str, arguments: &[&str]) -> Command {
        let mut command = bare_command();
        let arguments = arguments.iter().map(|argument| self.in_namespace(argument));
        command.current_dir(self.folder()).arg("-c").arg(self.path(config)).args(arguments);
        if let Some(lake) = &self.lake {
            lake.lend_secrets(&mut command);
        }
        command
    }

    /// Runs to the end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Output {
        finish(&mut self.command(arguments))
    }

    pub fn run_with(&self, config: &str, arguments: &[&str]) -> Output {
        finish(&mut self.command_with(config, arguments))
    }

    /// Runs with failpoints.
    pub fn run_failing(&self, failpoints: &str, arguments: &[&str]) -> Output {
        finish(self.command(arguments).env("K2_OFFLOAD_FAILPOINTS", failpoints))
    }

    /// Starts in the background.
    pub fn spawn(&self, config: &str, failpoints: &str, arguments: &[&str]) -> Running {
        Running::start(self.command_with(config, arguments).env("K2_OFFLOAD_FAILPOINTS", failpoints))
    }

    /// Creates the targets; all must succeed.
    pub fn init_tables(&self) -> Value {
        self.run(&["--format", "json", "init-tables"]).expect(0).json()
    }

    /// One pass that must succeed without a warning; its document.
    pub fn pass(&self) -> Value {
        self.run(&["--format", "json", "run"]).expect(0).json()
    }

    /// One pass over the only table, as its entry of the document.
    pub fn pass_one(&self) -> Value {
        only_table(&self.pass())
    }

    /// One pass over the only table that finds rows with other content, and warns.
    pub fn warned_pass_one(&self) -> Value {
        only_table(&self.run(&["--format", "json", "run"]).expect_warning("with other content were left").json())
    }

    /// One pass over the only table that moves its rows and ends with exit code 3, saying this.
    pub fn alarmed_pass_one(&self, said: &str) -> Value {
        only_table(&self.run(&["--format", "json", "run"]).expect(3).says(&[said]).json())
    }

    /// The Iceberg table `cold.NAME`, in the namespace of this case.
    pub fn target(&self, name: &str) -> Target<'_> {
        let namespace = self.lake.as_ref().map_or("cold", |lake| &lake.namespace);
        Target { case: self, namespace: namespace.to_owned(), table: name.to_owned() }
    }

    /// A folder where paused passes say that they have arrived.
    pub fn gate(&self, name: &str) -> Gate {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        Gate { folder }
    }

    /// Ends the case although its server is gone.
    pub fn abandon(mut self) {
        self.database.clear();
    }

    /// Every file below the folder of this case with its content, for before and after.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files_below(self.folder()).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// The same without the state cache, which remembers when audits were.
    pub fn contents_but_state(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let is_cache = |path: &Path| path.to_string_lossy().contains("state.db");
        self.contents().into_iter().filter(|(path, _)| !is_cache(path)).collect()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if self.database.is_empty() {
            return;
        }
        let dropped = server::post(&self.url, "default", &format!("DROP DATABASE IF EXISTS {}", self.database));
        if !std::thread::panicking() {
            dropped.unwrap();
        }
    }
}

/// The binary under test, in an environment without our variables.
pub fn bare_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_k2-offload"));
    for (name, _) in std::env::vars_os() {
        if ["K2_", "AWS_", "AZURE_", "GOOGLE_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

pub fn finish(command: &mut Command) -> Output {
    Running::start(command).wait()
}

/// A process that is killed when the test fails.
pub struct Running {
    child: Option<Child>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self { child: Some(child.unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"))) }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn is_over(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Whether its main thread sleeps for a time, as where SQLite waits for a lock: the kernel's nanosleep and clock_nanosleep on x86-64 and arm64.
    pub fn sleeps(&self) -> bool {
        let call = fs::read_to_string(format!("/proc/{}/syscall", self.pid())).unwrap_or_default();
        ["35", "230", "101", "115"].contains(&call.split(' ').next().unwrap_or_default())
    }

    /// Sends a signal such as TERM; a process that is over gets none.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {} 2>&1", self.pid());
        Command::new("sh").args(["-c", &kill]).output().unwrap();
    }

    /// Its end, which must come by itself; it says no more than a pipe holds.
    pub fn wait_until_over(mut self) -> Output {
        wait_until("the process has ended", || self.is_over());
        self.wait()
    }

    pub fn wait(mut self) -> Output {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        Output {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a process said; `code` is `None` where a signal ended it.
#[derive(Debug, Clone)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The exit code must be this one. Only a process that failed may have warned.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n{}", self.all());
        let quiet = !matches!(code, 1..=3);
        let warned = self.stderr.lines().any(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        assert!(!(quiet && warned), "unexpected warning\n{}", self.all());
        self
    }

    /// The exit code must be 0 although there is a warning, which must hold `text`.
    pub fn expect_warning(self, text: &str) -> Self {
        assert_eq!(self.code, Some(0), "exit code\n{}", self.all());
        assert!(
            self.stderr.lines().any(|line| line.contains(" WARN ") && line.contains(text)),
            "no warning\n{}",
            self.all()
        );
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is no JSON: {e}\n{}", self.all()))
    }

    /// Everything that it printed must hold each of `texts`.
    pub fn says(self, texts: &[&str]) -> Self {
        let all = self.all();
        for text in texts {
            assert!(all.contains(text), "nothing says `{text}`\n{all}");
        }
        self
    }

    /// Nothing that it printed may hold one of `texts`.
    pub fn keeps_back(self, texts: &[&str]) -> Self {
        let all = self.all();
        for text in texts {
            assert!(!all.contains(text), "something says `{text}`\n{all}");
        }
        self
    }

    pub fn all(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// Where passes wait at a failpoint `pause:DIR`.
pub struct Gate {
    folder: PathBuf,
}

impl Gate {
    /// The failpoint action.
    pub fn pause(&self) -> String {
        format!("pause:{}", self.folder.display())
    }

    /// Waits until this pass has arrived; fails when it ends before.
    pub fn wait_for(&self, pass: &mut Running) {
        let arrived = self.folder.join(format!("{}.arrived", pass.pid()));
        let mut over = false;
        wait_until("a pass arrives at its failpoint", || {
            over = pass.is_over();
            over || arrived.exists()
        });
        if over && !arrived.exists() {
            let pass = std::mem::replace(pass, Running { child: None });
            panic!("a pass ended before its failpoint\n{}", pass.wait().all());
        }
    }

    /// Lets all of them go on.
    pub fn open(&self) {
        fs::write(self.folder.join("go"), "").unwrap();
    }
}

pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, condition);
}

/// The same with a limit of its own, for what takes its time by design.
pub fn wait_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        std::thread::sleep(POLL);
    }
}

/// Does all of `work`, up to `workers` items at a time; the first failure fails the test when all are done.
pub fn in_parallel<T: Send>(workers: usize, work: Vec<T>, each: impl Fn(T) + Sync) {
    let queue = std::sync::Mutex::new(work.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(item) = next else { break };
                    each(item);
                }
            });
        }
    });
}

/// The only entry of `tables`.
pub fn only_table(document: &Value) -> Value {
    let tables = document["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 1, "{document:#}");
    tables[0].clone()
}

/// The entry of a target.
pub fn table_of<'a>(document: &'a Value, target: &str) -> &'a Value {
    let tables = document["tables"].as_array().unwrap();
    tables.iter().find(|t| t["target"] == target).unwrap_or_else(|| panic!("no `{target}` in {document:#}"))
}

/// The entry of a table must be a failure of this kind, whose error and hint together say `texts`.
pub fn fails(table: &Value, kind: &str, texts: &[&str]) {
    let error = &table["error"];
    assert_eq!((&table["status"], &error["kind"]), (&"failed".into(), &kind.into()), "{table:#}");
    let (message, hint) = (error["message"].as_str().unwrap(), error["hint"].as_str().unwrap());
    let said = format!("{message}\nhint: {hint}");
    assert!(!hint.is_empty() && texts.iter().all(|text| said.contains(text)), "{texts:?} in: {said}");
}

/// All files below a folder, sorted; none where it does not exist.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Those that passes come by whose target lies there: a transaction of the catalog of ours is none of a server's.
pub fn failpoints_at(place: Place) -> impl Iterator<Item = &'static str> {
    failpoints().into_iter().filter(move |point| !place.is_rest() || *point != "commit-swapped")
}

/// The seed of K2_TEST_SEED, else one from the clock; print it, so that a failure can be repeated.
pub fn seed() -> u64 {
    let given = std::env::var("K2_TEST_SEED").ok().map(|text| text.parse().expect("K2_TEST_SEED is no number"));
    given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0)
}

/// The next number of a sequence that a seed decides (SplitMix64).
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The names in the list of src/failpoint.rs.
pub fn failpoints() -> Vec<&'static str> {
    let list = include_str!("../../src/failpoint.rs");
    let entries = list.lines().filter_map(|line| line.trim().strip_prefix("(Failpoint::"));
    let names: Vec<_> = entries.filter_map(|entry| entry.split('"').nth(1)).collect();
    assert!(
        names.len() >= 6 && names.contains(&"commit-swap"),
        "the list of failpoints reads otherwise now: {names:?}"
    );
    names
}
