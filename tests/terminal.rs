//! What a terminal, a pipe, a shell and `man` make of us: colours, widths, readers that go away, completions, man pages.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Write, pipe};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Case, TRADES, bare_command, finish};

const COMMANDS: [&[&str]; 14] = [
    &[],
    &["init-tables"],
    &["run"],
    &["watermark"],
    &["watermark", "show"],
    &["watermark", "reset"],
    &["audit"],
    &["status"],
    &["history"],
    &["config"],
    &["config", "check"],
    &["completions"],
    &["man"],
    &["help"],
];

/// What `k2-offload ARGUMENTS` prints on a terminal of so many columns.
fn on_terminal(folder: &Path, columns: u32, environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let call =
        format!("stty cols {columns} rows 50 && exec {} {}", env!("CARGO_BIN_EXE_k2-offload"), arguments.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &call, "/dev/null"]).current_dir(folder).stdin(Stdio::null());
    // Where CI is set, clap takes any terminal for one with colours.
    script.env_remove("NO_COLOR").env_remove("CI").env("TERM", "xterm-256color").envs(environment.iter().copied());
    let output = script.output().expect("`script` of bsdutils is missing");
    let printed = String::from_utf8(output.stdout).unwrap().replace('\r', "");
    assert!(!printed.contains("panicked") && !printed.is_empty(), "{printed}");
    printed
}

/// Whether a text has colours, bold letters and the like.
fn is_coloured(text: &str) -> bool {
    text.split("\x1b[")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[test]
fn help_and_logs_have_colours_on_a_terminal_that_wants_them() {
    let case = Case::with_trades("colours");
    case.trades("trades", "2024-03-10", 10);
    for arguments in [&["--help"][..], &["run", "-h"], &["-v", "run"]] {
        let printed = |environment: &[(&str, &str)]| on_terminal(case.folder(), 100, environment, arguments);
        assert!(is_coloured(&printed(&[])), "{arguments:?}");
        assert!(is_coloured(&printed(&[("NO_COLOR", "")])), "{arguments:?}: empty is not set");
        assert!(!is_coloured(&printed(&[("NO_COLOR", "1")])), "{arguments:?}");
        assert!(!printed(&[("TERM", "dumb")]).contains('\x1b'), "{arguments:?}");
        let piped = finish(bare_command().current_dir(case.folder()).args(arguments));
        assert!(!piped.all().contains('\x1b'), "{arguments:?}");
    }
}

#[test]
fn help_fits_narrow_and_wide_terminals() {
    let folder = tempfile::tempdir().unwrap();
    for columns in [40, 80, 200] {
        for command in COMMANDS {
            for help in ["--help", "-h"] {
                let arguments = if command == ["help"] { &["help", "audit"][..] } else { &[command, &[help]].concat() };
                let printed = on_terminal(folder.path(), columns, &[("NO_COLOR", "1")], arguments);
                // clap does not break the line of usage, nor one word, wherever it ends.
                let fits = |line: &&str| {
                    line.chars().count() <= columns as usize
                        || !line.trim().contains(' ')
                        || line.starts_with("Usage: ")
                };
                let too_long: Vec<&str> = printed.lines().filter(|line| !fits(line)).collect();
                assert!(too_long.is_empty(), "{columns} columns, {arguments:?}: {too_long:#?}");
            }
        }
    }
}

/// Runs with readers that are gone; the exit code, and what it said where its stderr was still read.
fn without_reader(command: &mut Command, with_stderr: bool) -> (Option<i32>, String) {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let stderr = if with_stderr { Stdio::piped() } else { Stdio::from(writer.try_clone().unwrap()) };
    let output = command.stdout(writer).stderr(stderr).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let case = Case::with_trades("pipes");
    case.trades("trades", "2024-03-10", 500);
    let calls: [(&[&str], i32); 18] = [
        (&["run", "--dry-run"], 0),
        (&["-vv", "run"], 0),
        (&["init-tables"], 0),
        (&["watermark", "show"], 0),
        (&["watermark", "show", "--max-lag", "1h"], 0),
        (&["audit"], 0),
        (&["audit", "--checksum"], 0),
        (&["audit", "--orphans"], 0),
        (&["watermark", "reset", "--table", "trades", "--to", "2024-03-09", "--yes"], 0),
        (&["status"], 0),
        (&["history", "--chunks"], 0),
        (&["config", "check"], 0),
        (&["man", "--dir", "man"], 0),
        (&["completions", "bash"], 0),
        (&["--help"], 0),
        (&["--version"], 0),
        (&["fly"], 2),
        (&["run", "--table", "nothing"], 2),
    ];
    for (arguments, code) in calls {
        for format in ["text", "json"] {
            for with_stderr in [true, false] {
                let mut command = case.command(&["--format", format]);
                let (found, said) = without_reader(command.args(arguments), with_stderr);
                assert!(
                    found == Some(code) && !said.contains("panicked"),
                    "{arguments:?} ended with {found:?}: {said}"
                );
            }
        }
    }
    case.target("trades").holds_all("trades");
    assert!(case.path("man/k2-offload-audit.1").exists());
}

/// In a real shell, with a real pipe.
#[test]
fn the_first_line_of_an_audit_may_be_enough() {
    let case = Case::with_trades("head");
    case.config(&format!("{TRADES}late_lookback = '0s'\n"));
    case.trades("trades", "2024-03-10", 500);
    case.pass();
    case.trades("trades", "2024-03-01", 500);
    let audit = format!("'{}' -q audit | head -1; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_k2-offload"));
    let output = finish(Command::new("bash").args(["-c", &audit]).current_dir(case.folder()));
    let output = output.expect(3);
    assert!(output.stdout.starts_with("cold.trades: ") && output.stdout.lines().count() == 1, "{}", output.all());
    assert_eq!(output.stderr, "");
}

/// What bash offers behind these words, the last of which is to be completed.
fn offered(script: &Path, words: &[&str]) -> BTreeSet<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let complete = "source \"$0\" && f=$(complete -p k2-offload | sed 's/.* -F \\([^ ]*\\) .*/\\1/') && \
                    COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) && \"$f\" k2-offload \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\" && \
                    printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-u", "-c", complete]).arg(script).args(words);
    let output = finish(&mut bash);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{quoted:?}");
    output.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("k2-offload.bash");
    fs::write(&script, finish(bare_command().args(["completions", "bash"])).expect(0).stdout).unwrap();
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(offered(&script, &["k2-offload", "wat"]), set(&["watermark"]));
    assert_eq!(offered(&script, &["k2-offload", "watermark", "s"]), set(&["show"]));
    assert_eq!(offered(&script, &["k2-offload", "run", "--la"]), set(&["--layer"]));
    assert_eq!(offered(&script, &["k2-offload", "audit", "--log-format", ""]), set(&["text", "json"]));
    assert_eq!(offered(&script, &["k2-offload", "config", "check", "--off"]), set(&["--offline"]));
    let commands = offered(&script, &["k2-offload", ""]);
    assert!(COMMANDS.iter().filter_map(|command| command.first()).all(|name| commands.contains(*name)), "{commands:?}");
}

#[test]
fn there_are_completions_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        finish(bare_command().args(["completions", shell])).expect(0).says(&["k2-offload", "watermark", "max-lag"]);
    }
    finish(bare_command().args(["completions", "tcsh"])).expect(2).says(&["tcsh", "bash"]);
}

#[test]
fn man_renders_a_page_for_every_command_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let written = finish(bare_command().args(["man", "--dir", "a/man1"]).current_dir(&folder)).expect(0).stdout;
    let pages: BTreeSet<String> =
        written.lines().map(|line| line.strip_prefix("a/man1/").unwrap().to_owned()).collect();
    let named = |command: &&&[&str]| **command != ["help"];
    let expected =
        COMMANDS.iter().filter(named).map(|command| format!("{}.1", [&["k2-offload"], *command].concat().join("-")));
    assert_eq!(pages, expected.collect());
    for page in &pages {
        let source = fs::read_to_string(folder.path().join("a/man1").join(page)).unwrap();
        let mut groff = Command::new("groff");
        groff
            .args(["-man", "-ww", "-Tutf8", "-P-cbou"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut groff = groff.spawn().expect("groff is missing: apt-get install groff-base");
        groff.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        let rendered = groff.wait_with_output().unwrap();
        assert!(
            rendered.status.success() && rendered.stderr.is_empty(),
            "{page}: {}",
            String::from_utf8_lossy(&rendered.stderr)
        );
        let text = String::from_utf8(rendered.stdout).unwrap();
        assert!(
            ["NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES"].iter().all(|section| text.contains(section)),
            "{page}: {text}"
        );
        // Pages refer to each other by names that there are.
        let referred =
            source.split_whitespace().filter_map(|word| word.replace('\\', "").strip_suffix("(1)").map(str::to_owned));
        assert!(
            referred.clone().all(|name| pages.contains(&format!("{name}.1"))),
            "{page}: {:?}",
            referred.collect::<Vec<_>>()
        );
    }
    let first = fs::read_to_string(folder.path().join("a/man1/k2-offload.1")).unwrap();
    assert!(first.contains("EXIT CODES") && first.contains("k2\\-offload\\-watermark(1)"), "{first}");
    let document =
        finish(bare_command().args(["--format", "json", "man", "--dir", "b"]).current_dir(&folder)).expect(0).json();
    assert_eq!(document["pages"].as_array().unwrap().len(), pages.len());
    fs::write(folder.path().join("file"), "").unwrap();
    finish(bare_command().args(["man", "--dir", "file/below"]).current_dir(&folder))
        .expect(2)
        .says(&["file/below", "hint: "]);
}
