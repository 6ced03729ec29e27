//! Crontab, logrotate and systemd units of cron/, with the programs that read them: Debian's cron and logrotate, systemd-analyze.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex};

use support::server::repository;
use support::{Case, Running, finish, wait_until};

const CODES: &str = "codes";
const FAILPOINTS: &str = "failpoints";
/// The services and timers, in the order of the lines of the crontab.
const UNITS: [&str; 3] = ["k2-offload", "k2-offload-audit", "k2-offload-repair"];
/// systemd-analyze rates a unit from 0 (nothing to attack) to 10.
const EXPOSURE: f64 = 1.2;

#[test]
fn cron_fires_passes_and_one_into_a_running_pass_changes_nothing() {
    let case = Case::with_trades("cron");
    case.trades("trades", "2024-03-10 00:00:00", 500);
    let gate = case.gate("gate");
    let (mut cron, syslog) = start_cron(&case, &["run"]);
    wait_until("cron has fired twice", || codes_of(&mut cron, &case, "run").len() >= 2);
    let target = case.target("trades");
    target.holds_for_all_readers("trades");

    // The next pass that takes the lock is held, rows or not.
    fs::write(case.path(FAILPOINTS), format!("target={}", gate.pause())).unwrap();
    wait_until("a pass is held", || !support::files_below(&case.path("gate")).is_empty());
    case.trades("trades", "2024-03-11 00:00:00", 500);
    let before = target.state();
    let skipped = |codes: &[String]| codes.iter().filter(|code| *code == "4").count();
    let so_far = skipped(&codes_of(&mut cron, &case, "run"));
    wait_until("cron fires into it", || skipped(&codes_of(&mut cron, &case, "run")) >= so_far + 2);
    assert_eq!(target.state(), before, "a pass that was skipped has changed something");
    fs::write(case.path(FAILPOINTS), "").unwrap();
    gate.open();
    wait_until("the held pass ends", || target.snapshots().len() == 2);
    let after = codes_of(&mut cron, &case, "run").len();
    wait_until("cron goes on", || codes_of(&mut cron, &case, "run").len() >= after + 2);
    target.holds_for_all_readers("trades");
    target.has_no_other_files();

    let codes = codes_of(&mut cron, &case, "run");
    assert!(codes.iter().all(|code| code == "0" || code == "4"), "{codes:?}");
    drop(cron);
    assert!(fs::read_to_string(case.path("log/k2-offload.log")).unwrap().contains("cold.trades: offloaded 500 rows"));
    // To cron no pass failed, as opposed to the line that the test put there for comparison; nothing was left to be mailed.
    let said = syslog.lock().unwrap().join("\n");
    let passes = numbers_behind(&said, "(k2-offload) CMD ([");
    let failed = numbers_behind(&said, "(grandchild #");
    assert!(passes.len() >= codes.len() && !failed.is_empty() && failed.is_disjoint(&passes), "{said}");
    assert!(!said.contains("discarding output"), "{said}");
}

/// The audits' lines of the crontab: the nightly one tells that rows are missing, which cron may call a failure; the weekly one brings them back.
#[test]
fn cron_fires_audits_that_find_and_repair() {
    let case = Case::with_trades("cron_audit");
    case.sql("INSERT INTO trades (exchange_timestamp, sequence_number) SELECT now() - 600 - number, number FROM numbers(500)");
    case.pass();
    let target = case.target("trades");
    target.ask("delete", serde_json::json!({"filter": "sequence_number < 100"}));
    assert_eq!(target.count(), 400);
    let (mut cron, _syslog) = start_cron(&case, &["audit --last"]);
    wait_until("the nightly audit has ended", || !codes_of(&mut cron, &case, "audit --last").is_empty());
    assert_eq!(codes_of(&mut cron, &case, "audit --last")[0], "3");
    assert_eq!(target.count(), 400);
    drop(cron);
    assert!(fs::read_to_string(case.path("log/k2-offload.log")).unwrap().contains("100 missing"));
    let (mut cron, _syslog) = start_cron(&case, &["audit --checksum"]);
    wait_until("the weekly audit has ended", || !codes_of(&mut cron, &case, "audit --checksum").is_empty());
    drop(cron);
    target.holds_for_all_readers("trades");
}

/// The lines of the two crontabs are the same jobs at the same times.
#[test]
fn host_and_container_have_the_same_jobs() {
    let host = include_str!("../cron/crontab").lines().filter(|line| line.starts_with(|c| "*0123456789".contains(c)));
    let host: Vec<_> = host
        .map(|line| line.replace(" k2-offload k2-offload ", " k2-offload ").replace(" >>\"$LOG\" 2>&1", ""))
        .collect();
    let container = include_str!("../cron/crontab.container").lines().filter(|line| !line.starts_with('#'));
    let container: Vec<_> = container.collect();
    assert_eq!(host, container);
    assert_eq!(host.len(), 3);
}

#[test]
fn the_crontab_is_one_to_cron() {
    let case = Case::new("crontab_syntax");
    // `crontab -n` knows crontabs of users only, for which the user is the first word of the command.
    let checked = case.machine("crontab -n cron/crontab; echo '*/15 * * * nobody x' >/tmp/bad; ! crontab -n /tmp/bad");
    checked.wait().expect(0).says(&["successfully checked", "bad"]);
}

/// A pass that is running while its log is rotated goes on writing into the old one, which is compressed a rotation later only. In a folder where the
/// jobs' user may not write, nothing is done.
#[test]
fn logrotate_rotates_and_loses_no_line() {
    let case = Case::new("logrotate");
    let script = format!(
        "{install}
         cd /var/log/k2-offload
         rotate() {{ logrotate \"$@\" /etc/logrotate.conf; }}
         runuser -u k2-offload -- sh -c 'echo first >>k2-offload.log'
         exec 3>>k2-offload.log
         rotate
         echo once: *
         rotate --force
         echo of a running pass >&3
         echo twice: *
         cat k2-offload.log.1
         stat -c '%U %G %a %s' k2-offload.log
         runuser -u k2-offload -- sh -c 'echo second >>k2-offload.log'
         rotate --force
         echo later: *
         zcat k2-offload.log.2.gz
         truncate -s 60M k2-offload.log
         rotate
         echo large: *
         for n in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo $n >>k2-offload.log; rotate --force; done
         ls | wc -l
         chown root: . && ! rotate --force && echo not as root",
        install = installation("With cron"),
    );
    let output = case.machine(&script).wait().expect(0);
    let expected = "once: k2-offload.log
twice: k2-offload.log k2-offload.log.1
first
of a running pass
k2-offload k2-offload 640 0
later: k2-offload.log k2-offload.log.1 k2-offload.log.2.gz
first
of a running pass
large: k2-offload.log k2-offload.log.1 k2-offload.log.2.gz k2-offload.log.3.gz
13
not as root
";
    assert_eq!(output.stdout, expected, "{}", output.stderr);
}

/// `systemd-analyze verify` ends well whatever it finds: it must find nothing, and must find what is wrong in a unit that is.
#[test]
fn systemd_knows_every_key_of_the_units() {
    let case = Case::new("units");
    let script = format!(
        "{install}
         cd /etc/systemd/system
         systemd-analyze verify k2-offload*.service k2-offload*.timer 2>&1
         echo verified
         sed 's/^NoNewPrivileges/&Ever/' k2-offload.service >wrong.service
         systemd-analyze verify wrong.service 2>&1",
        install = units(),
    );
    let output = case.machine(&script).wait();
    let (found, control) = output.stdout.split_once("verified\n").unwrap_or_else(|| panic!("{}", output.all()));
    assert!(found.is_empty() && control.contains("NoNewPrivilegesEver"), "{}", output.all());
}

#[test]
fn the_units_are_due_when_the_crontab_is() {
    // Minutes of the crontab's fields, and the same as systemd writes it.
    let times =
        [("*/15 * * * *", "*-*-* *:00/15:00"), ("7 3 * * *", "*-*-* 03:07:00"), ("37 4 * * 0", "Sun *-*-* 04:37:00")];
    let crontab = include_str!("../cron/crontab");
    for ((cron, systemd), name) in times.into_iter().zip(UNITS) {
        assert!(crontab.lines().any(|line| line.starts_with(cron) && line.contains(&command_of(name))), "{name}");
        let due = lines_with(&unit(name, "timer"), "OnCalendar=");
        let analyzed = finish(Command::new("systemd-analyze").arg("calendar").args(&due)).expect(0);
        assert!(analyzed.stdout.contains(&format!("Normalized form: {systemd}\n")), "{}", analyzed.all());
        assert_eq!(lines_with(&unit(name, "timer"), "Persistent="), ["true"]);
    }
}

#[test]
fn the_units_differ_in_what_they_do_only_and_are_hardened() {
    let own = ["Description=", "ExecStart=", "TimeoutStartSec=", "#"];
    let shared = |name: &str| {
        let text = unit(name, "service");
        let lines = text.lines().filter(|line| !own.iter().any(|key| line.starts_with(key)));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    for name in UNITS {
        assert_eq!(shared(name), shared(UNITS[0]), "{name}");
        let file = repository().join(format!("cron/{name}.service"));
        let rated = finish(Command::new("systemd-analyze").args(["security", "--offline=yes"]).arg(file)).expect(0);
        let overall = rated.stdout.lines().find_map(|line| line.split_once(".service: ")).unwrap();
        let rating: f64 = overall.1.split(' ').next().unwrap().parse().unwrap();
        assert!(rating <= EXPOSURE, "{}", rated.all());
    }
    assert_eq!(lines_with(&unit(UNITS[0], "service"), "SuccessExitStatus="), ["4 143"]);
}

/// The filter of the units lets a pass and a repair do all that they do: seen by strace, compared with systemd's own lists.
#[test]
fn every_system_call_is_one_that_the_units_allow() {
    let case = Case::with_trades("calls");
    case.trades("trades", "2024-03-10 00:00:00", 1000);
    let (trace, binary) = (case.path("trace"), case.path("k2-offload"));
    fs::copy(env!("CARGO_BIN_EXE_k2-offload"), &binary).unwrap();
    // Not as root: for root SQLite calls fchown.
    finish(Command::new("chown").args(["-R", "10001:10001"]).arg(case.folder())).expect(0);
    for command in UNITS.map(command_of) {
        let mut traced = Command::new("setpriv");
        traced.args(["--reuid=10001", "--regid=10001", "--clear-groups", "strace", "-f", "-A", "-o"]);
        traced.arg(&trace).arg(&binary).args(command.split(' ')).current_dir(case.folder());
        finish(&mut traced).expect(0);
    }
    let trace = fs::read_to_string(&trace).unwrap();
    let name = |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    let used: BTreeSet<String> =
        trace.lines().filter_map(name).filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_')).collect();
    assert!(used.contains("fsync") && used.contains("connect"), "{used:?}");
    let mut allowed = BTreeSet::new();
    for filter in lines_with(&unit(UNITS[0], "service"), "SystemCallFilter=") {
        match filter.strip_prefix('~') {
            None => filter.split(' ').for_each(|set| allowed.extend(system_calls(set))),
            Some(sets) => {
                let refused: BTreeSet<_> = sets.split(' ').flat_map(system_calls).collect();
                allowed.retain(|call| !refused.contains(call));
            }
        }
    }
    let refused: Vec<_> = used.difference(&allowed).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// What a set such as `@system-service` stands for.
fn system_calls(set: &str) -> BTreeSet<String> {
    let listed = finish(Command::new("systemd-analyze").args(["syscall-filter", set])).expect(0);
    let names = listed.stdout.lines().map(str::trim).filter(|line| !line.starts_with('#') && *line != set);
    names
        .flat_map(|name| if name.starts_with('@') { system_calls(name) } else { BTreeSet::from([name.to_owned()]) })
        .collect()
}

/// The commands of README that install units; there is no systemd to enable them.
fn units() -> String {
    let commands = format!("{}\n{}", installation("With cron"), installation("With systemd"));
    commands.lines().filter(|line| !line.starts_with("systemctl ")).collect::<Vec<_>>().join("\n")
}

fn unit(name: &str, kind: &str) -> String {
    fs::read_to_string(repository().join(format!("cron/{name}.{kind}"))).unwrap()
}

fn lines_with(text: &str, key: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix(key)).map(str::to_owned).collect()
}

/// What a unit runs, without the program and --quiet.
fn command_of(unit_name: &str) -> String {
    let started = lines_with(&unit(unit_name, "service"), "ExecStart=");
    started[0].strip_prefix("/usr/local/bin/k2-offload --quiet ").unwrap().to_owned()
}

/// Installs as README says, takes away what else cron would fire, and starts Debian's cron there, with a clock that is 60 times as fast. Each of its
/// minutes it fires the lines of `cron/crontab` whose commands begin with one of `commands`, in an environment of their own, and so with the true clock.
fn start_cron(case: &Case, commands: &[&str]) -> (Running, Arc<Mutex<Vec<String>>>) {
    let syslog = syslog(case);
    case.config_for_any_folder("machine.toml");
    fs::write(case.path(FAILPOINTS), "").unwrap();
    // Around the real binary: failpoints from a file, exit codes into a file.
    let folder = case.folder().display();
    let notes = format!(
        "#!/bin/sh\nK2_OFFLOAD_FAILPOINTS=$(cat {folder}/{FAILPOINTS}) k2-offload.real \"$@\"\ncode=$?\n\
         echo \"$code $*\" >>{folder}/{CODES}\nexit $code\n"
    );
    fs::write(case.path("notes"), notes).unwrap();
    let fire: String = commands
        .iter()
        .map(|command| format!("s/^[^#]* k2-offload (k2-offload -q {command})/* * * * * k2-offload \\1/;"))
        .collect();
    let script = format!(
        "{install}
         test \"$(grep -c '^[a-z].*/var/lib/k2-offload/' /etc/k2-offload/offload.toml)\" = 3
         find /etc/crontab /etc/cron.d -type f ! -name k2-offload -delete
         mv /usr/local/bin/k2-offload /usr/local/bin/k2-offload.real
         install -m 755 {folder}/notes /usr/local/bin/k2-offload
         cp {folder}/machine.toml /etc/k2-offload/offload.toml
         mkdir -p {folder}/log && mount --bind {folder}/log /var/log/k2-offload
         chmod 755 {folder} && chown -R k2-offload: {folder}
         ln -s {folder}/syslog /dev/log
         sed -E -i '/^[0-9*]/{{{fire}; /^\\* \\* /!s/^/# /}}' /etc/cron.d/k2-offload
         echo '* * * * * root exit 4' >>/etc/cron.d/k2-offload
         export LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1) FAKETIME='+0 x60' FAKETIME_DONT_RESET=1
         exec cron -f -L 15",
        install = installation("With cron"),
    );
    (case.machine(&script), syslog)
}

/// The commands of a section of README, for the binary that is tested.
fn installation(section: &str) -> String {
    let readme = include_str!("../README.md");
    let text =
        readme.split(&format!("### {section}\n")).nth(1).unwrap_or_else(|| panic!("README has no section {section}"));
    let text = text.split("\n##").next().unwrap();
    let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(commands.len() > 1, "README, {section}: {commands:?}");
    commands.join("\n").replace("target/release/k2-offload", env!("CARGO_BIN_EXE_k2-offload"))
}

/// The exit codes so far of the calls whose arguments begin with `-q COMMAND`.
fn codes_of(cron: &mut Running, case: &Case, command: &str) -> Vec<String> {
    if cron.is_over() {
        panic!("cron has ended\n{}", std::mem::replace(cron, Running::start(&mut Command::new("true"))).wait().all());
    }
    let codes = fs::read_to_string(case.path(CODES)).unwrap_or_default();
    let calls = codes.lines().filter_map(|line| line.split_once(' '));
    calls.filter(|(_, call)| call.starts_with(&format!("-q {command}"))).map(|(code, _)| code.to_owned()).collect()
}

/// What goes to /dev/log of the machine.
fn syslog(case: &Case) -> Arc<Mutex<Vec<String>>> {
    let path = case.path("syslog");
    let _ = fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let received = lines.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length) = socket.recv(&mut buffer) {
            received.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    });
    lines
}

/// The numbers that follow a text.
fn numbers_behind(text: &str, before: &str) -> BTreeSet<u32> {
    let rests = text.split(before).skip(1);
    rests.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}
