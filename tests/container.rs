//! The container of cron/: the last stage of the Dockerfile and the limits of the Compose file, without an engine.
//!
//! A root of its own is made by the lines of the Dockerfile, in their order, on busybox, which Alpine is. Nothing else is in it but the libraries of
//! the binary, which here is a debug build with glibc, and `setpriv`, which takes the capabilities away as an engine does. The entrypoint is process 1,
//! in a control group with the limits.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::machine::tools;
use support::server::repository;
use support::{Case, PATIENCE, Running, finish, wait_until, wait_within};

const ROWS: u64 = 300_000;
/// crond looks at its crontabs once a minute, and busybox is static: libfaketime cannot hurry it.
const MINUTE: Duration = Duration::from_secs(60);
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the entrypoint is without a pass: itself and crond.
const IDLE: usize = 2;

#[test]
fn crond_starts_a_pass_that_fits_into_the_limits() {
    let case = case("container");
    case.trades_over_days("trades", "2024-03-10", ROWS, 3);
    let group = ControlGroup::new(&service());
    let container = start(&case, &group, "", &[]);
    wait_for_crond(|| !case.target("trades").files_on_disk().is_empty());
    wait_until("the pass ends", || group.processes().len() == IDLE);
    group.signal_first("TERM");
    let output = container.wait();
    assert!(
        output.code == Some(0) && output.stdout.contains("cold.trades: offloaded 300,000 rows"),
        "{}",
        output.all()
    );
    case.target("trades").holds_for_all_readers("trades");

    // The audit takes more memory than a pass: merge_memory, and what it decodes.
    start(&case, &group, "", &["audit", "--checksum", "--repair"]).wait().expect(0).says(&["target 300,000"]);
    group.was_in_force();
}

#[test]
fn the_health_check_tells_a_table_that_needs_a_person() {
    let case = case("container_health");
    let group = ControlGroup::new(&service());
    let image = Image::of_dockerfile();
    assert_eq!(image.healthcheck[0], image.entrypoint[0]);
    let check: Vec<&str> = image.healthcheck[1..].iter().map(String::as_str).collect();
    start(&case, &group, "", &["run"]).wait().expect(0);
    start(&case, &group, "", &check).wait().expect(0).says(&["cold.trades"]);
    case.target("trades").ask("drop", serde_json::json!({}));
    start(&case, &group, "", &check).wait().expect(3).says(&["cold.trades"]);
}

#[test]
fn the_memory_limit_is_one() {
    let case = case("container_small");
    case.trades_over_days("trades", "2024-03-10", ROWS, 3);
    let mut service = service();
    service["mem_limit"] = "4m".into();
    let group = ControlGroup::new(&service);
    let code = start(&case, &group, "", &["run"]).wait().code;
    assert!(code != Some(0) && group.kills() > 0, "{code:?}, {} processes killed", group.kills());
    assert_eq!(case.target("trades").snapshots().len(), 0);
}

#[test]
fn a_container_that_is_stopped_waits_for_its_pass() {
    let case = case("container_stopped");
    case.trades("trades", "2024-03-10 00:00:00", 500);
    let gate = case.gate("gate");
    give_to_user(&case);
    let group = ControlGroup::new(&service());
    let mut container = start(&case, &group, &format!("K2_OFFLOAD_FAILPOINTS=written={}", gate.pause()), &[]);
    wait_for_crond(|| !support::files_below(&case.path("gate")).is_empty());
    group.signal_first("TERM");
    wait_until("crond ends", || !group.names().contains(&"crond".to_owned()));
    assert!(!container.is_over() && group.names().contains(&"k2-offload".to_owned()), "{:?}", group.names());
    gate.open();
    assert_eq!(container.wait().code, Some(0));
    case.target("trades").has_no_other_files();
}

#[test]
fn what_the_container_runs_is_not_root() {
    let case = case("container_user");
    let group = ControlGroup::new(&service());
    case.trades("trades", "2024-03-10 00:00:00", 500);
    let gate = case.gate("gate");
    give_to_user(&case);
    let container = start(&case, &group, &format!("K2_OFFLOAD_FAILPOINTS=written={}", gate.pause()), &["run"]);
    wait_until("a pass is held", || !support::files_below(&case.path("gate")).is_empty());
    let status = fs::read_to_string(format!("/proc/{}/status", group.first())).unwrap();
    for line in ["Name:\tk2-offload", "Uid:\t10001\t10001\t10001\t10001", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(status.contains(line), "{line}\n{status}");
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", group.first())).unwrap();
    let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[4] == "/").unwrap();
    assert!(root[5].starts_with("ro"), "{mounts}");
    gate.open();
    container.wait().expect(0);
    case.target("trades").holds_all("trades");
}

/// A case with a table, whose folder stands for the volumes.
fn case(name: &str) -> Case {
    let case = Case::with_trades(name);
    case.config_for_any_folder("container.toml");
    give_to_user(&case);
    case
}

fn give_to_user(case: &Case) {
    finish(Command::new("chown").args(["-R", "10001:10001"]).arg(case.folder())).expect(0);
}

/// crond starts one when a minute begins.
fn wait_for_crond(is_started: impl FnMut() -> bool) {
    wait_within(MINUTE + PATIENCE, "crond has started a pass", is_started);
}

/// The service `k2-offload` of the Compose file.
fn service() -> Value {
    let python = format!("{}/python", tools("lint"));
    let program =
        "import json, sys; from ruamel.yaml import YAML; print(json.dumps(YAML(typ='safe').load(open(sys.argv[1]))))";
    let file = repository().join("cron/compose.yaml");
    finish(Command::new(python).args(["-c", program]).arg(file)).expect(0).json()["services"]["k2-offload"].clone()
}

/// $1 folder of the case, $2 programs of `scripts/tools cron`, $3 the binary, $4 what the Dockerfile does, $5 control groups; the command follows.
const BOOT: &str = r#"
set -eu
case=$1 busybox=$2/usr/bin/busybox binary=$3 build=$4 groups=$5
shift 5
cd "$REPOSITORY"
root=$case/root
mkdir -p "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root/bin" "$root/usr/local/bin" "$root/etc/crontabs" "$root/dev" "$root/proc" "$root/tmp" "$root/engine" "$root/etc/k2-offload" "$root$case"
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"; done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:root' >"$root/etc/group"
touch "$root/etc/crontabs/root" "$root/etc/k2-offload/offload.toml"
cp "$(command -v setpriv)" "$root/engine/setpriv"
ldd "$binary" "$root/engine/setpriv" | grep -o '/[^ ]*\.so[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$root${library%/*}"
    cp "$library" "$root$library"
done
eval "$build"
sed -i -e 's|^\*/15 \* |* * |' -e '/^[0-9]/d' "$root/etc/crontabs/k2-offload"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do : >"$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t proc proc "$root/proc"
mount --bind "$case" "$root$case"
mount --bind "$case/container.toml" "$root/etc/k2-offload/offload.toml"
mount -o remount,ro "$root"
for group in $groups; do echo 0 >"$group/cgroup.procs"; done
cd /
exec "$@"
"#;

/// Starts the container with further variables, and arguments for its entrypoint.
fn start(case: &Case, group: &ControlGroup, variables: &str, arguments: &[&str]) -> Running {
    let service = service();
    assert!(service["read_only"] == true && service["cap_drop"] == serde_json::json!(["ALL"]), "{service:#}");
    assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]));
    let capabilities = service["cap_add"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| format!(",+{}", name.as_str().unwrap().to_lowercase()));
    let image = Image::of_dockerfile();
    let mut boot = Command::new("unshare");
    boot.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", BOOT, "boot"]);
    boot.arg(case.folder())
        .arg(tools("cron"))
        .arg(env!("CARGO_BIN_EXE_k2-offload"))
        .arg(&image.build)
        .arg(group.folders());
    boot.args(["env", "-i", PATH]).args(&image.variables).args(variables.split_whitespace());
    boot.arg("chroot").arg(case.path("root")).args(["/engine/setpriv", "--no-new-privs", "--inh-caps=-all"]);
    boot.arg(format!("--bounding-set=-all{}", capabilities.collect::<String>()));
    boot.args(&image.entrypoint).args(arguments);
    Running::start(boot.env("REPOSITORY", repository()))
}

/// What the last stage of the Dockerfile makes of its base.
#[derive(Default)]
struct Image {
    /// Shell commands that do the same to `$root`.
    build: String,
    variables: Vec<String>,
    entrypoint: Vec<String>,
    healthcheck: Vec<String>,
}

impl Image {
    fn of_dockerfile() -> Self {
        let text = include_str!("../cron/Dockerfile").replace("\\\n", " ");
        let stage = text.rsplit("\nFROM alpine:").next().unwrap();
        let mut image = Self::default();
        for line in stage.lines().skip(1).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (instruction, rest) = line.split_once(' ').unwrap();
            match instruction {
                "RUN" => image.build += &format!("chroot \"$root\" /bin/sh -euc '{}'\n", rest.replace('\'', "'\\''")),
                "COPY" => image.build += &copy(rest),
                "ENV" => image.variables.push(rest.to_owned()),
                "ENTRYPOINT" => image.entrypoint = serde_json::from_str(rest).unwrap(),
                "HEALTHCHECK" => image.healthcheck = serde_json::from_str(rest.split_once("CMD ").unwrap().1).unwrap(),
                _ => panic!("the test does not know what this does: {line}"),
            }
        }
        assert!(!image.entrypoint.is_empty() && image.build.contains("/etc/crontabs/k2-offload"), "{}", image.build);
        image
    }
}

/// `COPY [--from=build] [--chmod=MODE] FROM TO`; what the first stage builds is the binary.
fn copy(rest: &str) -> String {
    let (options, files): (Vec<&str>, Vec<&str>) = rest.split_whitespace().partition(|word| word.starts_with("--"));
    let [from, to] = files[..] else { panic!("COPY {rest}") };
    let built = options.contains(&"--from=build");
    let mode = options.iter().find_map(|option| option.strip_prefix("--chmod=")).unwrap_or("755");
    assert_eq!(options.len(), usize::from(built) + usize::from(rest.contains("--chmod=")), "COPY {rest}");
    format!("install -m {mode} {} \"$root\"{to}\n", if built { "\"$binary\"" } else { from })
}

/// The limits of a service, as an engine sets them: in the control groups of version 1, or the one of version 2.
struct ControlGroup {
    memory: PathBuf,
    others: Vec<PathBuf>,
    limit: u64,
}

impl ControlGroup {
    fn new(service: &Value) -> Self {
        let limit = bytes(service["mem_limit"].as_str().unwrap());
        let name = format!("k2-test-{}", uuid::Uuid::new_v4().simple());
        let quota = (service["cpus"].as_f64().unwrap() * 100_000.0).to_string();
        let processes = service["pids_limit"].to_string();
        let base = PathBuf::from("/sys/fs/cgroup");
        if base.join("cgroup.controllers").exists() {
            let folder = base.join(name);
            fs::create_dir(&folder).unwrap();
            for (file, value) in [
                ("memory.max", limit.to_string()),
                ("memory.swap.max", "0".into()),
                ("cpu.max", format!("{quota} 100000")),
                ("pids.max", processes),
            ] {
                set(&folder, file, &value);
            }
            return Self { memory: folder, others: Vec::new(), limit };
        }
        let [memory, cpu, pids] = ["memory", "cpu", "pids"].map(|controller| {
            let folder = base.join(controller).join(&name);
            fs::create_dir(&folder)
                .unwrap_or_else(|e| panic!("create the control group {folder:?}: {e}; it needs root"));
            folder
        });
        set(&memory, "memory.limit_in_bytes", &limit.to_string());
        set(&cpu, "cpu.cfs_quota_us", &quota);
        set(&pids, "pids.max", &processes);
        Self { memory, others: vec![cpu, pids], limit }
    }

    fn folders(&self) -> String {
        let all = std::iter::once(&self.memory).chain(&self.others);
        all.map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" ")
    }

    fn processes(&self) -> Vec<String> {
        let list = fs::read_to_string(self.memory.join("cgroup.procs")).unwrap();
        list.lines().map(str::to_owned).collect()
    }

    fn names(&self) -> Vec<String> {
        let name = |pid: String| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
        self.processes().into_iter().map(name).collect()
    }

    /// Process 1 of the container, by its number outside.
    fn first(&self) -> String {
        let is_first = |pid: &String| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
        };
        self.processes().into_iter().find(is_first).expect("the container is over")
    }

    fn signal_first(&self, signal: &str) {
        finish(Command::new("kill").arg(format!("-{signal}")).arg(self.first())).expect(0);
    }

    /// How many processes the kernel killed because of the limit.
    fn kills(&self) -> u64 {
        let file = if self.others.is_empty() { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory.join(file)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
    }

    /// The limit was what the Compose file says, memory was counted, and nothing was killed.
    fn was_in_force(&self) {
        let (limit, peak) = if self.others.is_empty() {
            ("memory.max", "memory.peak")
        } else {
            ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        };
        let read = |file: &str| fs::read_to_string(self.memory.join(file)).unwrap().trim().parse::<u64>().unwrap();
        assert_eq!(read(limit), self.limit);
        assert!((16 << 20..=self.limit).contains(&read(peak)), "peak of {} bytes", read(peak));
        assert_eq!(self.kills(), 0);
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for folder in std::iter::once(&self.memory).chain(&self.others) {
            let emptied = Instant::now() + MINUTE;
            while fs::remove_dir(folder).is_err() && Instant::now() < emptied && !std::thread::panicking() {
                std::thread::yield_now();
            }
        }
    }
}

fn set(folder: &std::path::Path, file: &str, value: &str) {
    fs::write(folder.join(file), value).unwrap_or_else(|e| panic!("set {file} of {folder:?} to {value}: {e}"));
}

/// `256m` as Compose reads it.
fn bytes(size: &str) -> u64 {
    size.strip_suffix('m').unwrap().parse::<u64>().unwrap() << 20
}
