//! cron/RUNBOOK.md: every command in it is executed where its symptom is real, in the order in which it stands there, and ends as it says. After the
//! last one source and target are equal, and `status` is content.
//!
//! Of a block marked `sh` each line is a command, executed by bash with `k2-offload` on the path; it must end with 0 or with the code of a comment
//! `# exit 3`. Lines `NAME=value`, `export` and `cd` last for the whole section, and a scenario may put another value there. The lines of a `text` block
//! must each be among what the `sh` block before it printed; `...` stands for anything. A `toml` block is put into the configuration. A block `sh host`
//! needs a machine: its syntax is checked, no more.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::Write;
use std::mem;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use clap::Parser;
use serde_json::json;
use support::faults::{ALWAYS, Fault, ONCE};
use support::lake::{S3, variable};
use support::proxy::Proxy;
use support::server::{readers_python, repository};
use support::{
    BRONZE, Case, Disk, Output, Place, Proxies, Running, Server, files_below, finish, only_table, wait_until,
};

const RUNBOOK: &str = include_str!("../cron/RUNBOOK.md");
/// The symptoms that it must know; alerts and others link to them.
const ANCHORS: [&str; 26] = [
    "scheduler-not-firing",
    "a-table-fails",
    "a-table-is-stuck",
    "a-table-is-missing",
    "a-pass-takes-over-15-minutes",
    "lag-grows",
    "the-watermark-looks-wrong-or-is-missing",
    "no-new-data",
    "out-of-memory",
    "clickhouse-is-down",
    "the-catalog-is-down",
    "the-storage-is-down",
    "the-disk-is-full",
    "the-catalog-server-is-down",
    "the-object-store-is-down",
    "keys-are-refused",
    "another-host-holds-a-table",
    "unfinished-uploads",
    "a-rollback-was-noticed",
    "audit-mismatch",
    "the-ttl-is-about-to-win",
    "late-or-duplicate-rows",
    "moving-hosts",
    "restoring-from-nothing-but-the-lake",
    "upgrading",
    "cutting-over-from-the-predecessor",
];
/// What a shell does in front of a command that we check.
const SHELL_ENDS: [char; 6] = ['|', '>', '<', ';', '&', ')'];

const TABLE: &str = "[[table]]\nsource = 'bronze_trades_binance'\ntarget = 'cold.bronze_trades_binance'\ncursor = 'exchange_timestamp'\n\
                     partition_by = ['day(exchange_timestamp)']\n";
const SOURCE: &str = "bronze_trades_binance";

// --- the document

/// A fenced block: its language, its section, its lines.
#[derive(Debug, Clone)]
struct Block {
    section: String,
    language: String,
    lines: Vec<String>,
}

fn anchor(heading: &str) -> String {
    heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect::<String>().replace(' ', "-")
}

fn sections() -> Vec<String> {
    RUNBOOK.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect()
}

fn blocks() -> Vec<Block> {
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in RUNBOOK.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => {
                open = Some(Block { section: section.clone(), language: language.to_owned(), lines: Vec::new() });
            }
            (None, Some(mut block)) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => section = line.strip_prefix("## ").map_or(section, anchor),
        }
    }
    assert!(open.is_none(), "a block that does not end");
    blocks
}

fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last == Some("")
}

// --- a section at work

/// The blocks of a section that have not been executed yet, on a case that has its symptom.
struct Page<'a> {
    case: &'a Case,
    blocks: VecDeque<Block>,
    /// Assignments and the like so far.
    prefix: Vec<String>,
    /// Values of this case for those of the document.
    values: Vec<(String, String)>,
    /// Variables of the environment, beside those of the lake.
    environment: Vec<(&'static str, String)>,
}

impl<'a> Page<'a> {
    fn of(section: &str, case: &'a Case) -> Self {
        let blocks: VecDeque<Block> =
            blocks().into_iter().filter(|block| block.section == section && block.language != "sh host").collect();
        assert!(!blocks.is_empty(), "no section {section}");
        let bin = case.path("bin");
        if !bin.exists() {
            let missing =
                "for tool in curl sqlite3 fuser ps findmnt; do command -v $tool >/dev/null || echo $tool; done";
            let missing = finish(Command::new("bash").args(["-c", missing])).stdout;
            assert_eq!(missing, "", "apt-get install curl sqlite3 psmisc procps util-linux");
            fs::create_dir(&bin).unwrap();
            symlink(env!("CARGO_BIN_EXE_k2-offload"), bin.join("k2-offload")).unwrap();
            for (name, program) in [("python3", readers_python()), ("psql", variable("K2_TEST_PSQL"))] {
                fs::write(bin.join(name), format!("#!/bin/sh\nexec {program} \"$@\"\n")).unwrap();
                finish(Command::new("chmod").arg("+x").arg(bin.join(name))).expect(0);
            }
            fs::create_dir(case.path("log")).unwrap();
        }
        let prefix = vec![
            "set -u".to_owned(),
            format!("export K2_OFFLOAD_CONFIG={}", case.path("offload.toml").display()),
            format!("cd {}", case.folder().display()),
            format!("CH='{}/?database={}'", case.url, case.database),
            format!("T={}", case.in_namespace("cold.bronze_trades_binance")),
            format!("S={SOURCE}"),
        ];
        Self { case, blocks, prefix, values: Vec::new(), environment: Vec::new() }
    }

    /// From now on `name=` has this value, also where it stood before.
    fn set(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        if self.values.iter().any(|(known, _)| known == name) {
            self.prefix.push(format!("{name}='{value}'"));
        }
        self.values.retain(|(known, _)| known != name);
        self.values.push((name.to_owned(), value.to_string()));
        self
    }

    /// From now on a variable of the environment has this value.
    fn environment(&mut self, name: &'static str, value: impl std::fmt::Display) -> &mut Self {
        self.environment.push((name, value.to_string()));
        self
    }

    /// Executes the next block; all that it printed, which must be what stands behind it.
    fn next(&mut self) -> String {
        let block = self.blocks.pop_front().expect("the section has no further block");
        assert_eq!(block.language, "sh", "{block:?}");
        let mut printed = String::new();
        for line in &block.lines {
            printed += &self.execute(line);
        }
        if let Some(said) = self.blocks.front().filter(|block| block.language == "text").cloned() {
            self.blocks.pop_front();
            for pattern in &said.lines {
                assert!(
                    printed.lines().any(|line| matches(&self.case.in_namespace(pattern), line)),
                    "no line `{pattern}` of {block:#?} in\n{printed}"
                );
            }
        }
        printed
    }

    fn execute(&mut self, line: &str) -> String {
        let (command, comment) = line.split_once("   #").unwrap_or((line, ""));
        let code = comment.trim().strip_prefix("exit ").map_or(0, |code| code.parse().unwrap());
        let command = self.here(command.trim_end());
        if command.starts_with("export ") || command.starts_with("cd ") || assigned(&command).is_some() {
            self.prefix.push(command);
            return String::new();
        }
        let script = format!("{}\n{command}", self.prefix.join("\n"));
        let path = format!("{}:{}", self.case.path("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("PATH", path).env("TZ", "UTC").current_dir("/");
        if let Some(lake) = &self.case.lake {
            lake.lend_secrets(&mut bash);
        }
        bash.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let Output { code: ended, stdout, stderr } = Running::start(&mut bash).wait();
        assert_eq!(ended, Some(code), "{command}\n{stdout}{stderr}");
        format!("{stdout}{stderr}")
    }

    /// The command with what stands for it in this case.
    fn here(&self, command: &str) -> String {
        let value = assigned(command).and_then(|name| self.values.iter().find(|(known, _)| known == name));
        if let Some((name, value)) = value {
            return format!("{name}='{value}'");
        }
        let folder = self.case.folder().display().to_string();
        let url = format!("{}/?database={}", self.case.url, self.case.database);
        command
            .replace("/etc/k2-offload", &folder)
            .replace("/var/lib/k2-offload", &folder)
            .replace("/var/backups", &folder)
            .replace("/var/log/k2-offload", &format!("{folder}/log"))
            .replace("http://127.0.0.1:8123/?database=k2", &url)
    }

    /// Puts the next block into the configuration.
    fn configure(&mut self) -> &mut Self {
        let block = self.blocks.pop_front().expect("the section has no further block");
        assert_eq!(block.language, "toml", "{block:?}");
        let (header, keys) = block.lines.split_first().unwrap();
        let file = self.case.path("offload.toml");
        let text = fs::read_to_string(&file).unwrap();
        // The last of its kind; keys that are there give way.
        let at = text.rfind(header).unwrap_or_else(|| panic!("no {header} in {text}")) + header.len();
        let is_new = |line: &&str| !keys.iter().any(|key| key.split(' ').next() == line.split(' ').next());
        let (before, after) = text.split_at(at);
        let after: Vec<&str> = after.lines().filter(|line| line.is_empty() || is_new(line)).collect();
        fs::write(&file, format!("{before}\n{}{}\n", keys.join("\n"), after.join("\n"))).unwrap();
        self
    }

    /// The section is over: every block was executed, all is well, and all rows are there for a foreign reader too.
    fn ends_well(self) {
        self.ends_well_with("1");
    }

    /// The same of rows of the source with this filter.
    fn ends_well_with(self, filter: &str) {
        self.case.run(&["audit", "--checksum"]).expect(0).keeps_back(&["missing", "extra"]);
        self.case.run(&["status"]).expect(0).says(&["ok: "]);
        self.case.target(SOURCE).holds(&["pyiceberg"], SOURCE, filter);
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        assert!(thread::panicking() || self.blocks.is_empty(), "not executed: {:#?}", self.blocks);
    }
}

fn assigned(command: &str) -> Option<&str> {
    let (name, _) = command.split_once('=')?;
    (!name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase())).then_some(name)
}

// --- cases

/// A table whose source holds nothing yet.
fn case_of(name: &str) -> Case {
    made(Case::new(name), "")
}

/// The same of a case that is there, with further keys of the table.
fn made(case: Case, keys: &str) -> Case {
    case.bronze(SOURCE);
    case.config(&format!("{TABLE}{keys}"));
    case.init_tables();
    case
}

/// Inserts a trade a second, the last of them so many seconds ago.
fn trades(case: &Case, seconds_ago: u64, rows: u64) {
    case.sql(&format!(
        "INSERT INTO {SOURCE} (exchange_timestamp, sequence_number, symbol, price, ingestion_timestamp) \
         SELECT now64(3) - {seconds_ago} - number, number + {seconds_ago} * 1000000, 'BTC-USD', number / 8, now() FROM numbers({rows})"
    ));
}

/// 300 rows that have left in two commits, and 100 that have not.
fn with_rows(name: &str) -> Case {
    filled(case_of(name))
}

fn filled(case: Case) -> Case {
    trades(&case, 7200, 200);
    case.pass();
    trades(&case, 3600, 100);
    case.pass();
    trades(&case, 1, 100);
    case
}

fn watermark(case: &Case) -> String {
    let shown = only_table(&case.run(&["--format", "json", "watermark", "show"]).expect(0).json());
    shown["watermark"].as_str().unwrap().to_owned()
}

fn change_state(case: &Case, statement: &str) {
    rusqlite::Connection::open(case.path("state.db")).unwrap().execute_batch(statement).unwrap();
}

/// Executes the next block, which ends this process; how it ended.
fn ended_by(page: &mut Page<'_>, mut process: Child) -> ExitStatus {
    let pid = process.id().to_string();
    // Whoever waits for it must find it gone: somebody has to take its exit code meanwhile.
    let waits = thread::spawn(move || process.wait().unwrap());
    let executed = panic::catch_unwind(AssertUnwindSafe(|| page.next()));
    if let Err(failure) = executed {
        finish(Command::new("kill").args(["-9", &pid]));
        panic::resume_unwind(failure);
    }
    waits.join().unwrap()
}

/// The process whose pid a command printed behind these words.
fn pid_behind(printed: &str, words: &str) -> String {
    let (_, rest) = printed.split_once(words).unwrap_or_else(|| panic!("no `{words}` in {printed}"));
    rest.trim_start().chars().take_while(char::is_ascii_digit).collect()
}

// --- what holds for the whole document

#[test]
fn every_section_with_commands_has_its_test() {
    let sections = sections();
    assert_eq!(sections.len(), sections.iter().collect::<BTreeSet<_>>().len(), "a heading stands twice");
    for anchor in ANCHORS {
        assert!(sections.iter().any(|section| section == anchor), "no section {anchor}");
    }
    let tests = include_str!("runbook.rs");
    for section in blocks().into_iter().filter(|block| block.language == "sh").map(|block| block.section) {
        let name = section.replace('-', "_");
        let test = format!("#[test]\nfn {name}() {{");
        assert!(tests.contains(&test) && tests.contains(&format!("Page::of(\"{section}\"")), "no test {name}");
    }
    for block in blocks() {
        assert!(["sh", "sh host", "text", "toml"].contains(&block.language.as_str()), "{block:?}");
    }
}

#[test]
fn every_link_leads_to_a_section() {
    let sections = sections();
    let links: Vec<&str> = RUNBOOK.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > ANCHORS.len());
    for link in links {
        assert!(sections.iter().any(|section| section == link), "#{link}");
    }
}

/// Of each line of blocks, and of each word between backticks, all calls of ours.
#[test]
fn every_command_is_one_of_the_command_line() {
    let inline =
        RUNBOOK.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2));
    let inline: Vec<String> = inline.map(str::to_owned).collect();
    let lines = blocks().into_iter().filter(|block| block.language.starts_with("sh")).flat_map(|block| block.lines);
    let mut calls = 0;
    for text in lines.chain(inline) {
        let code = text.split("   #").next().unwrap_or_default();
        for call in calls_of(code) {
            calls += 1;
            let words: Vec<String> = call.iter().map(|word| sample(word)).collect();
            let shows = ["--help", "--version"].iter().any(|flag| words.iter().any(|word| word == flag));
            let parsed = k2_offload::cli::Cli::try_parse_from(&words);
            assert!(shows || parsed.is_ok(), "{text}: {}", parsed.unwrap_err());
        }
    }
    assert!(calls > 100, "{calls}");
}

/// The calls of k2-offload in a line, as words. A path or a unit that has its name is none, nor is a program that gets it as an argument.
fn calls_of(code: &str) -> Vec<Vec<&str>> {
    let words: Vec<&str> = code.split_whitespace().collect();
    let is_call = |at: usize| {
        let before = at.checked_sub(1).map(|at| words[at]);
        let starts = before.is_none_or(|before| ["--", "--rm", "k2-offload", "&&", "||", ";"].contains(&before));
        words[at] == "k2-offload" && words.len() > at + 1 && starts && words[at + 1] != "k2-offload"
    };
    let call = |at: usize| words[at..].iter().copied().take_while(|word| !word.starts_with(SHELL_ENDS)).collect();
    (0..words.len()).filter(|at| is_call(*at)).map(call).collect()
}

/// A word with a value for what stands for one.
fn sample(word: &str) -> String {
    let word = word.trim_matches(['"', '\'']);
    word.replace("$TO", "2026-11-20T10:00:00Z").replace("TIMESTAMP", "2026-11-20")
}

#[test]
fn what_needs_a_machine_is_shell_at_least() {
    let known = "systemctl journalctl docker runuser ls tail cp install rm mount dmesg pgrep set";
    for block in blocks().into_iter().filter(|block| block.language == "sh host") {
        finish(Command::new("bash").args(["-n", "-c", &block.lines.join("\n")])).expect(0);
        for line in block.lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(known.split(' ').any(|program| program == words[0]), "{line}");
            let verbs = match words[0] {
                "systemctl" => ["status", "restart", "enable", "disable", "list-timers", "show"].as_slice(),
                "docker" => &["compose"],
                _ => continue,
            };
            assert!(verbs.contains(&words[1]), "{line}");
            for unit in words.iter().filter(|word| word.starts_with("k2-offload") && word.contains('.')) {
                assert!(repository().join("cron").join(unit).is_file(), "{unit}");
            }
        }
    }
}

/// The table of alerts is that of cron/monitoring: name, severity, how long, section.
#[test]
fn every_alert_stands_in_the_escalation() {
    let rules = include_str!("../cron/monitoring/rules.yml");
    let after = |text: &'static str, key: &str| -> &'static str {
        let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key} in {text}"));
        rest.lines().next().unwrap().split([',', '}']).next().unwrap()
    };
    let expected: BTreeSet<[String; 4]> = rules
        .split("- alert: ")
        .skip(1)
        .map(|rule| {
            let escalates = if rule.contains("escalate: \"true\"") { ", escalate" } else { "" };
            let lasts = after(rule, "for: ").replace('m', " min").replace('h', " h");
            [
                rule.lines().next().unwrap().to_owned(),
                format!("{}{escalates}", after(rule, "severity: ")),
                lasts,
                after(rule, "RUNBOOK.md#").to_owned(),
            ]
        })
        .collect();
    let rows = RUNBOOK.lines().filter(|line| line.starts_with("| K2Offload"));
    let told = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let lasts = cells[3].split(';').next().unwrap().rsplit(", ").next().unwrap();
        let section = cells[4].split("](#").nth(1).unwrap().split(')').next().unwrap();
        [cells[1], cells[2], lasts, section].map(str::to_owned)
    });
    assert_eq!(told.collect::<BTreeSet<_>>(), expected);
}

#[test]
fn every_metric_is_named_and_every_name_is_a_metric() {
    let names = |text: &str| -> BTreeSet<String> {
        let rest = text.split("k2_offload_").skip(1);
        let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
        rest.map(name).collect()
    };
    assert_eq!(names(RUNBOOK), names(include_str!("../src/metrics/mod.rs")));
}

// --- sections

#[test]
fn quick_reference() {
    let case = with_rows("quick_reference");
    case.pass();
    let mut page = Page::of("quick-reference", &case);
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn maintenance_schedule() {
    let case = with_rows("maintenance");
    case.pass();
    let mut page = Page::of("maintenance-schedule", &case);
    page.next();
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn scheduler_not_firing() {
    let case = with_rows("scheduler");
    let hours = "ms = {} - 2 * 3600000";
    let set = |name: &str| hours.replace("ms", name).replace("{}", name);
    change_state(
        &case,
        &format!(
            "UPDATE last_pass SET {}; UPDATE target_state SET {}, {}",
            set("ended_ms"),
            set("last_pass_ms"),
            set("caught_up_ms")
        ),
    );
    let mut page = Page::of("scheduler-not-firing", &case);
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn a_table_fails() {
    let case = with_rows("fails");
    case.sql(&format!(
        "INSERT INTO {SOURCE} (exchange_timestamp, sequence_number) VALUES (now64(3) - 1, 18446744073709551615)"
    ));
    for _ in 0..4 {
        case.run(&["run"]).expect(3);
    }
    let mut page = Page::of("a-table-fails", &case);
    page.next();
    assert!(page.next().starts_with("1\t"));
    page.configure().next();
    page.ends_well_with("sequence_number < 9223372036854775808");
}

#[test]
fn a_table_is_missing() {
    let case = with_rows("missing");
    case.target(SOURCE).ask("drop", json!({}));
    let mut page = Page::of("a-table-is-missing", &case);
    page.next();
    page.next();
    case.target(SOURCE).holds_for_all_readers(SOURCE);
    case.bronze("bronze_trades_kraken");
    case.trades("bronze_trades_kraken", "2024-03-10", 100);
    case.config(&format!("{TABLE}{}", TABLE.replace("binance", "kraken")));
    page.next();
    page.ends_well();
}

#[test]
fn restoring_from_nothing_but_the_lake() {
    let case = with_rows("restoring");
    lose_all_but_the_lake(&case);
    let mut page = Page::of("restoring-from-nothing-but-the-lake", &case);
    page.next();
    case.target(SOURCE).holds_for_all_readers(SOURCE);
    assert_eq!(case.target(SOURCE).snapshots().len(), 3, "no commit but those of passes with rows");

    trades(&case, 0, 1);
    assert_eq!(case.run_failing("commit-swap=kill", &["run"]).code, None);
    case.pass();
    trades(&case, 0, 1);
    lose_all_but_the_lake(&case);
    let printed = page.next();
    let (file, _) = printed.split_once(" is not the only file").unwrap();
    page.set("FILE", file.rsplit(' ').next().unwrap()).next();
    page.ends_well();
}

fn lose_all_but_the_lake(case: &Case) {
    for file in files_below(case.folder()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.starts_with("catalog.db") || name.starts_with("state.db") {
            fs::remove_file(&file).unwrap();
        }
    }
}

#[test]
fn a_table_is_stuck() {
    let case = with_rows("stuck");
    let proxy = Proxy::start(&case.url, SOURCE);
    proxy.stall_after(100);
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    fs::write(case.path("proxied.toml"), good.replace(&case.url, &proxy.url)).unwrap();
    let mut page = Page::of("a-table-is-stuck", &case);
    let stuck = quietly(&mut case.command_with("proxied.toml", &["run"]));
    wait_until("the pass waits for the server", || proxy.longest() == 100);
    let printed = page.next();
    page.set("PID", pid_behind(&printed, "locked by pid")).next();
    assert_eq!(ended_by(&mut page, stuck).code(), Some(143));

    trades(&case, 1, 50);
    let gate = case.gate("gate");
    let deaf = quietly(case.command(&["run"]).env("K2_OFFLOAD_FAILPOINTS", format!("written={}", gate.pause())));
    wait_until("the pass has arrived", || !files_below(&case.path("gate")).is_empty());
    page.set("PID", deaf.id());
    assert_eq!(ended_by(&mut page, deaf).signal(), Some(9));
    page.ends_well();
}

fn quietly(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_pass_takes_over_15_minutes() {
    let case = case_of("slow");
    trades(&case, 1, 20_000);
    case.config_file("offload.toml", "", "pass_deadline = '1s'\nchunk_rows = 100", TABLE);
    case.run(&["run"]).expect(1);
    let mut page = Page::of("a-pass-takes-over-15-minutes", &case);
    page.next();
    let before = watermark(&case);
    page.configure().next();
    assert!(watermark(&case) > before);
    page.ends_well();
}

#[test]
fn lag_grows() {
    let case = case_of("lag");
    trades(&case, 1, 20_000);
    let until = case.sql("SELECT formatDateTime(now() - INTERVAL 150 MINUTE, '%Y-%m-%dT%H:%i:%SZ', 'UTC')");
    case.run(&["run", "--until", &until]).expect(0);
    let mut page = Page::of("lag-grows", &case);
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn the_watermark_looks_wrong_or_is_missing() {
    let case = case_of("watermark");
    trades(&case, 4 * 3600, 300);
    case.pass();
    trades(&case, 3600, 300);
    let forward = case.sql("SELECT formatDateTime(now() - INTERVAL 30 MINUTE, '%Y-%m-%dT%H:%i:%SZ', 'UTC')");
    case.run(&["watermark", "reset", "--table", SOURCE, "--to", &forward, "--yes"]).expect(0);
    let mut page = Page::of("the-watermark-looks-wrong-or-is-missing", &case);
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn no_new_data() {
    let case = with_rows("quiet");
    case.pass();
    let mut page = Page::of("no-new-data", &case);
    page.next();
    page.ends_well();
}

#[test]
fn out_of_memory() {
    let case = with_rows("memory");
    case.sql(&format!("INSERT INTO {SOURCE} (exchange_timestamp, symbol) SELECT now64(3) - 1, randomPrintableASCII(100000) FROM numbers(200)"));
    let gate = case.gate("gate");
    let mut pass = case.spawn("offload.toml", &format!("file-write={}", gate.pause()), &["run"]);
    gate.wait_for(&mut pass);
    // From here on the kernel gives it nothing more.
    finish(Command::new("prlimit").args(["--data=1", "--pid", &pass.pid().to_string()])).expect(0);
    gate.open();
    let died = pass.wait();
    assert_eq!(died.code, None, "{}", died.all());
    let mut page = Page::of("out-of-memory", &case);
    page.next();
    trades(&case, 1, 50);
    page.configure().next();
    page.ends_well();
}

#[test]
fn clickhouse_is_down() {
    let mut server = Server::start("UTC");
    let case = Case::on(&server.url, "down");
    case.bronze(SOURCE);
    case.config(TABLE);
    case.init_tables();
    let mut case = filled(case);
    server.kill();
    let address = case.url.strip_prefix("http://").unwrap().to_owned();
    wait_until("nobody listens", || TcpStream::connect(&address).is_err());
    for _ in 0..3 {
        case.run(&["run"]).expect(1);
    }
    let mut page = Page::of("clickhouse-is-down", &case);
    page.next();
    // Here, and here only, it comes back on another port.
    let rest = mem::take(&mut page.blocks);
    drop(page);
    server.start_again();
    case.url.clone_from(&server.url);
    case.config(TABLE);
    let mut page = Page::of("clickhouse-is-down", &case);
    page.blocks = rest;
    page.next();
    page.ends_well();
}

#[test]
fn the_catalog_is_down() {
    let case = case_of("catalog");
    trades(&case, 7200, 100);
    case.pass();
    fs::copy(case.path("catalog.db"), case.path("k2-catalog.db")).unwrap();
    trades(&case, 3600, 100);
    case.pass();
    trades(&case, 1, 100);
    fs::remove_file(case.path("catalog.db")).unwrap();
    let mut page = Page::of("the-catalog-is-down", &case);
    page.next();
    page.next();
    case.target(SOURCE).holds_for_all_readers(SOURCE);

    trades(&case, 1, 50);
    // Somebody's open shell.
    let lock = format!("BEGIN EXCLUSIVE;\n.shell touch {}\n.shell cat\n", case.path("locked").display());
    let mut holder = Command::new("sqlite3");
    holder.arg(case.path("catalog.db")).stdin(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut typed = holder.stdin.take().unwrap();
    typed.write_all(lock.as_bytes()).unwrap();
    wait_until("somebody holds the catalog", || case.path("locked").exists());
    page.next();
    page.set("PID", holder.id());
    ended_by(&mut page, holder);
    page.ends_well();
}

/// What the section warns of: rows are whole, and the commits between cannot be brought back.
#[test]
fn passes_that_go_on_from_an_old_catalog_leave_commits_behind() {
    let case = with_rows("old_catalog");
    fs::copy(case.path("catalog.db"), case.path("k2-catalog.db")).unwrap();
    case.pass();
    fs::copy(case.path("k2-catalog.db"), case.path("catalog.db")).unwrap();
    case.pass();
    case.run(&["audit", "--checksum"]).expect(0);
    case.target(SOURCE).holds_for_all_readers(SOURCE);
    let lost =
        files_below(&case.path("warehouse")).into_iter().filter(|file| file.to_string_lossy().contains("/00003-"));
    let newest = case.target(SOURCE).metadata_file();
    let lost = lost.into_iter().find(|file| *file != newest).unwrap();
    let register = ["init-tables", "--table", SOURCE, "--register", lost.to_str().unwrap()];
    case.run(&register).expect(3).says(&["not in the catalog's"]);
}

#[test]
fn the_storage_is_down() {
    let (case, disk) = on_disk("storage");
    let mut page = Page::of("the-storage-is-down", &case);
    // An empty folder over the disk is what there is where it is not mounted.
    let warehouse = case.path("warehouse");
    fs::create_dir(case.path("empty")).unwrap();
    finish(Command::new("mount").arg("--bind").arg(case.path("empty")).arg(&warehouse)).expect(0);
    let gone = panic::catch_unwind(AssertUnwindSafe(|| page.next()));
    finish(Command::new("umount").arg(&warehouse)).expect(0);
    gone.unwrap();
    disk.make_read_only();
    page.next();
    disk.make_writable();
    page.next();
    page.ends_well();
}

#[test]
fn the_disk_is_full() {
    let (case, disk) = on_disk("full");
    disk.fill_but(0);
    let mut page = Page::of("the-disk-is-full", &case);
    page.next();
    page.next();
    disk.free();
    page.next();
    page.ends_well();
}

/// Rows that have left, and rows that have not, in a warehouse on a disk of its own.
fn on_disk(name: &str) -> (Case, Disk) {
    let case = Case::new(name);
    let disk = Disk::mount(case.path("warehouse"));
    case.bronze(SOURCE);
    case.config(TABLE);
    case.init_tables();
    (filled(case), disk)
}

/// Rows that have left into a lake, and rows that have not.
fn on_lake(place: Place, name: &str) -> Case {
    filled(made(Case::at(place, name), ""))
}

/// The same behind a REST catalog and proxies, with further keys of the table.
fn behind_proxies(name: &str, keys: &str) -> (Case, Proxies) {
    let mut case = Case::on_lake(name);
    let proxies = case.lake.as_mut().unwrap().behind_proxies();
    (filled(made(case, keys)), proxies)
}

/// Puts `to` into the configuration for `from`; what it was.
fn configure(case: &Case, from: &str, to: &str) -> String {
    let good = fs::read_to_string(case.path("offload.toml")).unwrap();
    assert!(good.contains(from), "no `{from}` in {good}");
    fs::write(case.path("offload.toml"), good.replace(from, to)).unwrap();
    good
}

#[test]
fn the_catalog_server_is_down() {
    for place in [Place::Rest, Place::Postgres] {
        let case = on_lake(place, "server");
        let url = &case.lake.as_ref().unwrap().catalog_url;
        let server = url.split(['/', '@']).find(|part| part.contains(':') && !part.ends_with(':')).unwrap();
        let good = configure(&case, server, "127.0.0.1:1");
        let mut page = Page::of("the-catalog-server-is-down", &case);
        page.next();
        fs::write(case.path("offload.toml"), good).unwrap();
        page.next();
        case.target(SOURCE).holds_for_all_readers(SOURCE);
        if place == Place::Rest {
            // The backup of a REST catalog is its own.
            page.blocks.clear();
            page.ends_well();
            continue;
        }
        let old = case.target(SOURCE).metadata_location();
        trades(&case, 1, 50);
        case.pass();
        let new = case.target(SOURCE).metadata_location();
        assert!(case.lake.as_ref().unwrap().swaps(&new, &old), "an old backup");
        trades(&case, 1, 50);
        let (folder, _) = new.split_once("/metadata/").unwrap();
        page.set("LOCATION", folder).next();
        case.target(SOURCE).holds_for_all_readers(SOURCE);
        page.ends_well();
    }
}

#[test]
fn the_object_store_is_down() {
    let case = on_lake(Place::Rest, "store");
    let good = configure(&case, &case.lake.as_ref().unwrap().s3_url, "http://127.0.0.1:1");
    let mut page = Page::of("the-object-store-is-down", &case);
    page.set("STORE", "http://127.0.0.1:1").next();
    fs::write(case.path("offload.toml"), good).unwrap();
    page.next();
    page.ends_well();
}

#[test]
fn keys_are_refused() {
    let (case, proxies) = behind_proxies("keys", "");
    let mut page = Page::of("keys-are-refused", &case);
    page.environment("AWS_SECRET_ACCESS_KEY", "wrong").next();
    page.environment("AWS_SECRET_ACCESS_KEY", variable("K2_TEST_S3_SECRET_KEY"));
    let expired = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";
    proxies.s3.inject("* *", ALWAYS, Fault::Told(400, expired));
    page.next();
    proxies.s3.calm();
    // The next block and its output are of a catalog that asks who comes; the last one is for both.
    let mut rest = mem::take(&mut page.blocks);
    let of_catalog: Vec<Block> = rest.drain(..2).collect();
    page.blocks.clone_from(&rest);
    page.next();
    page.ends_well();

    let case = on_lake(Place::Guarded, "client");
    let mut page = Page::of("keys-are-refused", &case);
    let right = format!("{}:{}", variable("K2_TEST_REST_CLIENT_ID"), variable("K2_TEST_REST_CLIENT_SECRET"));
    page.blocks = of_catalog.into_iter().chain(rest).collect();
    page.environment("LAKE_CREDENTIAL", format!("{right}-not")).next();
    page.environment("LAKE_CREDENTIAL", right).next();
    page.ends_well();
}

#[test]
fn another_host_holds_a_table() {
    let case = on_lake(Place::Postgres, "hosts");
    case.config_file("other.toml", "", "[state]\npath = 'other/state.db'\n", TABLE);
    let gate = case.gate("gate");
    let mut other = case.spawn("other.toml", &format!("planned={}", gate.pause()), &["run"]);
    gate.wait_for(&mut other);
    let mut page = Page::of("another-host-holds-a-table", &case);
    page.next();
    let holders = page.set("PG", &case.lake.as_ref().unwrap().postgres().url).next();
    let holder = holders.lines().find(|line| line.contains("| k2-offload ")).unwrap();
    page.set("PID", holder.split('|').next().unwrap().trim()).next();
    gate.open();
    other.wait().expect(0);
    page.ends_well();
}

#[test]
fn unfinished_uploads() {
    let (case, proxies) = behind_proxies("uploads", "compression = 'none'\n");
    // Of about 13 MB, which are two parts.
    case.sql(&format!("INSERT INTO {SOURCE} (exchange_timestamp, symbol) SELECT now64(3) - 1, randomPrintableASCII(65) FROM numbers(200000)"));
    proxies.s3.inject("PUT *partNumber=2*", ONCE, Fault::Held);
    let pass = case.spawn("offload.toml", "", &["run"]);
    proxies.s3.wait_for_held(1);
    pass.signal("KILL");
    assert_eq!(pass.wait().code, None);
    proxies.s3.release();
    let (s3, moto) = (S3::shared(), S3::moto());
    let mut page = Page::of("unfinished-uploads", &case);
    page.set("STORE", &s3.url).set("BUCKET", &s3.bucket).set("REGION", &s3.region);
    let printed = page.next();
    let upload = printed.lines().find(|line| line.contains(&case.target(SOURCE).namespace)).unwrap();
    let words: Vec<&str> = upload.rsplitn(3, ' ').collect();
    page.set("UPLOAD", words[0]).set("KEY", words[1]);
    // The one of the two that knows such rules.
    page.set("STORE", &moto.url);
    page.environment("AWS_ACCESS_KEY_ID", moto.access_key).environment("AWS_SECRET_ACCESS_KEY", moto.secret_key).next();
    page.set("STORE", &s3.url);
    page.environment("AWS_ACCESS_KEY_ID", s3.access_key).environment("AWS_SECRET_ACCESS_KEY", s3.secret_key).next();
    case.target(SOURCE).has_no_uploads("given up by hand");
    page.ends_well();
}

#[test]
fn a_rollback_was_noticed() {
    let case = with_rows("rollback");
    let target = case.target(SOURCE);
    target.ask("rollback", json!({}));
    let mut page = Page::of("a-rollback-was-noticed", &case);
    page.next();
    let newest = target.snapshots().last().unwrap()["id"].to_string();
    page.set("SNAPSHOT", newest).next();
    target.holds_for_all_readers(SOURCE);

    target.ask("rollback", json!({}));
    let refused = case.run(&["run"]).expect(3).all();
    let (_, keep) = refused.split_once("--to TIMESTAMP`, ").unwrap();
    page.set("TO", keep.split(": ").next().unwrap()).next();
    page.ends_well();
}

#[test]
fn audit_mismatch() {
    let case = with_rows("mismatch");
    case.pass();
    let before: u64 = case.target(SOURCE).count();
    case.target(SOURCE).ask("delete", json!({"filter": "sequence_number < 3600000000"}));
    assert_eq!(case.target(SOURCE).count(), before - 100);
    let mut page = Page::of("audit-mismatch", &case);
    page.next();
    page.next();
    page.next();
    page.set("TO", watermark(&case)).next();
    case.target(SOURCE).holds_for_all_readers(SOURCE);
    page.ends_well();
}

#[test]
fn the_ttl_is_about_to_win() {
    let case = Case::new("ttl");
    case.sql(&format!(
        "CREATE TABLE {SOURCE} ({BRONZE}) ENGINE = MergeTree ORDER BY exchange_timestamp TTL ingestion_timestamp + INTERVAL 7 DAY"
    ));
    case.config(TABLE);
    case.init_tables();
    // The TTL is 168 hours.
    for hours in [166, 163, 1] {
        case.sql(&format!(
            "INSERT INTO {SOURCE} (exchange_timestamp, ingestion_timestamp) SELECT now64(3) - {hours} * 3600 - number AS at, at FROM numbers(100)"
        ));
    }
    let until = case.sql("SELECT formatDateTime(now() - INTERVAL 165 HOUR, '%Y-%m-%dT%H:%i:%SZ', 'UTC')");
    case.run(&["run", "--until", &until]).expect_warning("will soon expire");
    let mut page = Page::of("the-ttl-is-about-to-win", &case);
    page.next();
    page.next();
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn late_or_duplicate_rows() {
    let case = case_of("late");
    for days in [5, 3, 2] {
        trades(&case, days * 86_400, 20);
        case.pass();
    }
    let case = filled(case);
    case.pass();
    trades(&case, 4 * 86_400, 20);
    let mut page = Page::of("late-or-duplicate-rows", &case);
    page.next();
    page.next();
    page.ends_well();
}

#[test]
fn moving_hosts() {
    let case = with_rows("moving");
    let mut page = Page::of("moving-hosts", &case);
    page.next();
    // The new host has the same path, and nothing there.
    fs::rename(case.path("warehouse"), case.path("old")).unwrap();
    for file in ["catalog.db", "state.db"] {
        fs::remove_file(case.path(file)).unwrap();
    }
    fs::remove_dir_all(case.path("catalog.db.locks")).unwrap();
    page.next();
    page.ends_well();
}

#[test]
fn upgrading() {
    let case = with_rows("upgrading");
    // As version 0.1 left it.
    fs::remove_file(case.path("state.db")).unwrap();
    change_state(
        &case,
        "CREATE TABLE target_state (target TEXT PRIMARY KEY, status TEXT NOT NULL, checked_to INTEGER, last_success_at TEXT, \
         last_duration_ms INTEGER, failure_count INTEGER NOT NULL DEFAULT 0, last_error TEXT) WITHOUT ROWID; PRAGMA user_version = 1",
    );
    let mut page = Page::of("upgrading", &case);
    page.next();
    change_state(&case, "PRAGMA user_version = 99");
    trades(&case, 1, 50);
    page.next();
    page.ends_well();
}

#[test]
fn cutting_over_from_the_predecessor() {
    let case = Case::new("cutover");
    case.bronze(SOURCE);
    case.config(TABLE);
    trades(&case, 3600, 100);
    let last = case.sql(&format!("SELECT addMilliseconds(max(exchange_timestamp), 1) FROM {SOURCE}"));
    let source = json!({"url": case.url, "database": case.database, "table": SOURCE});
    let arguments = json!({"folder": case.path("spark"), "uri": "file:", "source": source, "where": "1"});
    fs::create_dir(case.path("spark")).unwrap();
    let metadata = case.target(SOURCE).ask("hadoop_append", arguments);
    let folder = Path::new(metadata.as_str().unwrap()).ancestors().nth(2).unwrap();
    trades(&case, 1, 100);
    let mut page = Page::of("cutting-over-from-the-predecessor", &case);
    page.set("SPARK", folder.display()).set("TO", format!("{}Z", last.replace(' ', "T"))).next();
    page.ends_well();
}
