//! A pass may die or fail anywhere: the next one leaves every row in the target exactly once. Random moments are in torture.rs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::shapes::{CANDLES, CHUNKED, KEYED, PLAIN, Shape, Work};
use support::{Case, Place, Running, failpoints_at, in_parallel, only_table};

/// Points behind the swap: the rows have left.
const AFTER_COMMIT: [&str; 3] = ["commit-clean", "committed", "remember"];
/// Points that a pass comes by for every file.
const OF_FILES: [&str; 3] = ["file-create", "file-write", "file-sync"];
/// More files, or writes, than a pass of these tests makes.
const MANY: u32 = 60;

/// What a pass is at when it dies: of each shape of table, rows that leave for the first time, or that have left and are compared.
const SCENES: [Scene; 6] = [
    Scene { shape: &PLAIN, work: Work::NewRows, place: Place::Local },
    Scene { shape: &KEYED, work: Work::NewRows, place: Place::Local },
    Scene { shape: &CANDLES, work: Work::NewRows, place: Place::Local },
    Scene { shape: &PLAIN, work: Work::LateRows, place: Place::Local },
    Scene { shape: &KEYED, work: Work::Reset, place: Place::Local },
    Scene { shape: &CANDLES, work: Work::Reset, place: Place::Local },
];

/// The same on the lake.
const SCENES_ON_LAKE: [Scene; 3] = [
    Scene { shape: &PLAIN, work: Work::NewRows, place: Place::Rest },
    Scene { shape: &KEYED, work: Work::Reset, place: Place::Guarded },
    Scene { shape: &PLAIN, work: Work::LateRows, place: Place::Postgres },
];

#[derive(Debug, Clone, Copy)]
struct Scene {
    shape: &'static Shape,
    work: Work,
    place: Place,
}

impl Scene {
    fn case(self, name: &str) -> Case {
        self.shape.case_with(self.work, self.place, name)
    }

    /// What a run without faults comes to.
    fn outcome(self) -> Value {
        let case = self.case("clean");
        self.shape.is_made_good(&case, "no fault");
        self.shape.outcome(&case)
    }

    /// A clean pass must make it good, and come to the same as a run without faults.
    fn is_made_good(self, case: &Case, fault: &str, clean: &Value) {
        let what = format!("{:?}, {:?}, {fault}", self.place, self.work);
        self.shape.is_made_good(case, &what);
        assert_eq!(self.shape.outcome(case), *clean, "{} after {what}", self.shape.name);
    }
}

/// Every failpoint, in each scene, with what that comes to without faults.
fn everywhere(scenes: &[Scene]) -> Vec<(&'static str, Scene, Value)> {
    let of = |scene: &Scene| {
        let clean = scene.outcome();
        failpoints_at(scene.place).map(|point| (point, *scene, clean.clone())).collect::<Vec<_>>()
    };
    scenes.iter().flat_map(of).collect()
}

fn no_file_is_left(case: &Case) {
    case.target("trades").has_only_read_files("");
    case.target("trades").hint_is_right("after the next pass");
}

#[test]
fn a_pass_that_fails_at_any_point_is_made_good_by_the_next() {
    fails_anywhere(&SCENES);
}

#[test]
fn a_pass_over_the_lake_that_fails_at_any_point_is_made_good_by_the_next() {
    fails_anywhere(&SCENES_ON_LAKE);
}

fn fails_anywhere(scenes: &[Scene]) {
    in_parallel(6, everywhere(scenes), |(point, scene, clean)| {
        let case = scene.case("failed");
        let before = case.target("trades").state();
        let output = case.run_failing(&format!("{point}=error"), &["run"]);
        if AFTER_COMMIT.contains(&point) {
            assert!(matches!(output.code, Some(0 | 1)), "{point}\n{}", output.all());
        } else {
            let said = if OF_FILES.contains(&point) { "Input/output error" } else { &format!("failpoint {point}") };
            let output = output.expect(1).says(&[said]);
            assert_eq!(case.target("trades").state(), before, "{point}: nothing stays\n{}", output.all());
        }
        scene.is_made_good(&case, &format!("{point}=error"), &clean);
        no_file_is_left(&case);
    });
}

#[test]
fn a_pass_that_is_killed_at_any_point_is_made_good_by_the_next() {
    is_killed_anywhere(&SCENES);
}

#[test]
fn a_pass_over_the_lake_that_is_killed_at_any_point_is_made_good_by_the_next() {
    is_killed_anywhere(&SCENES_ON_LAKE);
}

fn is_killed_anywhere(scenes: &[Scene]) {
    in_parallel(3, everywhere(scenes), |(point, scene, clean)| {
        let case = scene.case("killed");
        let output = case.run_failing(&format!("{point}=kill"), &["run"]);
        assert_eq!(output.code, None, "{point} did not kill\n{}", output.all());
        scene.is_made_good(&case, &format!("{point}=kill"), &clean);
        // ClickHouse has read it; where the commit itself died, PyIceberg does too.
        if scene.shape.name == PLAIN.name && point.starts_with("commit") {
            case.target("trades").holds_all("wanted");
        }
    });
}

/// Data files, manifest, manifest list, metadata, version hint: each file, each write to it and each sync, one run for each. The disk fails once, or is full for
/// a moment, and the pass itself tries again; but for the hint, which readers of the catalog do not need: it is for the next pass.
#[test]
fn a_disk_that_fails_or_is_full_at_the_nth_write_or_sync_is_made_good() {
    let errors = [("error", "Input/output error"), ("full", "No space left on device")];
    let all = OF_FILES.iter().flat_map(|point| errors.iter().map(move |error| (*point, *error))).collect();
    in_parallel(4, all, |(point, (action, said))| {
        let failures = (1..MANY).take_while(|n| {
            let case = CHUNKED.two_days("disk");
            let fault = format!("{point}={action}@{n}");
            let output = case.run_failing(&fault, &["run"]);
            CHUNKED.is_made_good(&case, &fault);
            no_file_is_left(&case);
            if output.stderr.contains("version-hint.text was not written") {
                output.expect_warning(said);
                return true;
            }
            let output = output.expect(0);
            let failed = output.all().contains("trying again");
            assert!(!failed || output.all().contains(said), "{fault}\n{}", output.all());
            failed
        });
        let failures = failures.count();
        println!("{point}: {failures} times survived: {said}");
        assert!(failures >= 5, "{point}: data file, manifest, manifest list, metadata, hint");
    });
}

#[test]
fn a_pass_that_is_killed_at_the_nth_write_or_sync_is_made_good_by_the_next() {
    in_parallel(3, OF_FILES.to_vec(), |point| {
        let kills = (1..MANY).take_while(|n| {
            let case = PLAIN.two_days("nth");
            let fault = format!("{point}=kill@{n}");
            let killed = case.run_failing(&fault, &["run"]).code.is_none();
            PLAIN.is_made_good(&case, &fault);
            killed
        });
        let kills = kills.count();
        println!("{point}: {kills} kills survived");
        assert!(kills >= 6, "{point}: two days' data files, manifest, manifest list, metadata, hint");
    });
}

/// Every call by which SQLite writes the catalog and its journal fails, or is the last one, by strace. COMMIT itself may fail: its outcome is
/// unknown then (P14).
#[test]
fn p14_every_call_that_writes_the_catalog_may_fail_or_be_the_last() {
    let calls = ["pwrite64", "fsync", "unlink"];
    let faults = ["error=EIO", "error=ENOSPC", "signal=KILL"];
    let all = calls.iter().flat_map(|call| faults.iter().map(move |fault| (*call, *fault))).collect();
    in_parallel(4, all, |(call, fault)| {
        let injected = (1..MANY).take_while(|n| {
            let case = PLAIN.two_days("catalog");
            let log = case.path("trace");
            let catalog = case.path("catalog.db").canonicalize().unwrap();
            let journal = catalog.with_file_name("catalog.db-journal");
            let pass = case.command(&["run"]);
            let mut strace = Command::new("strace");
            strace.arg("-f").arg("-P").arg(&catalog).arg("-P").arg(journal).args(["-e", &format!("trace={call}")]);
            strace.args(["-e", &format!("inject={call}:{fault}:when={n}"), "-o"]).arg(&log);
            let output = Running::start(strace.arg(pass.get_program()).args(pass.get_args())).wait();
            let trace = fs::read_to_string(&log).unwrap();
            let fault = format!("{call}:{fault}:when={n}");
            let happened = trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL");
            let is_killed = fault.contains("KILL") && happened;
            assert!(is_killed || matches!(output.code, Some(0 | 1)), "{fault}\n{}\n{trace}", output.all());
            PLAIN.is_made_good(&case, &format!("{fault}\n{}\n{trace}", output.all()));
            if !is_killed {
                no_file_is_left(&case);
            }
            happened
        });
        let injected = injected.count();
        println!("catalog, {call} {fault}: {injected} survived");
        assert!(injected > 0, "the catalog saw no {call}");
    });
}

/// A merge adds what it did not find. Whether its commit landed, landed late, or twice, it has to find that out as other commits do, and its rows must not be
/// added again by the merge that comes after it (P13).
#[test]
fn p14_a_merge_whose_commit_is_lost_late_or_asked_for_twice_adds_a_row_once() {
    let on_postgres = Scene { shape: &KEYED, work: Work::Reset, place: Place::Postgres };
    let scenes = SCENES.iter().copied().filter(|scene| scene.work != Work::NewRows).chain([on_postgres]);
    let all: Vec<_> = scenes.flat_map(|scene| Lost::ALL.map(|lost| (scene, lost))).collect();
    in_parallel(3, all, |(scene, lost)| {
        let case = scene.case("lost");
        let base = case.target("trades").metadata_file();
        lost.happens(&case, &base);
        scene.shape.is_made_good(&case, &format!("{:?}, {lost:?}", scene.work));
    });
}

/// What may become of the request, or the reply, of a commit.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Reply,
    Request,
    /// The request lands when the pass has given up: before the next pass, in the middle of it, or after it.
    LandsBefore,
    LandsMeanwhile,
    LandsAfter,
    /// The first request seems lost, and lands before it is repeated.
    AskedTwice,
}

impl Lost {
    const ALL: [Self; 6] =
        [Self::Reply, Self::Request, Self::LandsBefore, Self::LandsMeanwhile, Self::LandsAfter, Self::AskedTwice];

    fn happens(self, case: &Case, base: &Path) {
        let target = case.target("trades");
        let unknown = |failpoints: &str| case.run_failing(failpoints, &["run"]).expect_warning("unknown");
        match self {
            Self::Reply => drop(unknown("commit-swap=reply-lost@1")),
            Self::Request => drop(unknown("commit-swap=request-lost@1")),
            Self::AskedTwice => {
                let gate = case.gate("gate");
                let failpoints = format!("commit-swap=request-lost@1;commit-swap={}@2", gate.pause());
                let mut pass = case.spawn("offload.toml", &failpoints, &["run"]);
                gate.wait_for(&mut pass);
                assert!(target.lands_late(base));
                gate.open();
                pass.wait().expect_warning("unknown");
            }
            Self::LandsBefore | Self::LandsMeanwhile | Self::LandsAfter => {
                case.run_failing("commit-swap=request-lost-always", &["run"]).expect(1).says(&["kept"]);
                let late = target.staged(base);
                match self {
                    Self::LandsBefore => assert!(target.lands_late(base)),
                    Self::LandsMeanwhile => {
                        let gate = case.gate("gate");
                        let mut pass = case.spawn("offload.toml", &format!("written={}", gate.pause()), &["run"]);
                        gate.wait_for(&mut pass);
                        assert!(target.lands_late(base));
                        gate.open();
                        pass.wait().expect(0);
                    }
                    _ => {
                        assert!(only_table(&case.pass())["rows_written"].as_u64() > Some(0));
                        assert!(!target.swaps(base, &late));
                    }
                }
            }
        }
    }
}
