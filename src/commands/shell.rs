//! `completions` and `man`: what shells and `man` know of the command line, generated from it. They need no configuration.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::cli::{self, Cli, Format};
use crate::error::{Classify, Kind, Result};
use crate::report::{self, ManReport};
use crate::storage::file_error;

pub fn completions(shell: Shell) -> u8 {
    let mut script = Vec::new();
    // Into memory first: the generator panics where its reader goes away.
    clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    if shell == Shell::Bash {
        // clap-rs/clap issue 6421: in a program whose name holds a hyphen, what the script looks for is spelled in another way than what it finds.
        script = script.replace("k2__subcmd__offload", "k2__offload");
    }
    report::print_text(&script);
    0
}

pub fn man(args: &cli::Man, format: Format) -> Result<u8> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    fs::create_dir_all(&args.dir).map_err(|e| file_error("create", &args.dir, e))?;
    let mut pages = Vec::new();
    write_pages(program, &args.dir, &mut pages)?;
    report::print(&ManReport { pages }, format);
    Ok(0)
}

/// The page of a command, then those of its subcommands.
fn write_pages(command: Command, folder: &Path, written: &mut Vec<PathBuf>) -> Result<()> {
    let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
    let mut text = Vec::new();
    let page = folder.join(render(command, &mut text).or_error(Kind::Internal, "render a man page")?);
    fs::write(&page, text).map_err(|e| file_error("write", &page, e))?;
    written.push(page);
    subcommands.into_iter().try_for_each(|command| write_pages(command, folder, written))
}

/// Renders the page of a command; its file name. Not `Man::render`, which makes one paragraph of all examples and exit codes.
fn render(command: Command, page: &mut Vec<u8>) -> io::Result<String> {
    let after = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command).source(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")));
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if has_subcommands {
        man.render_subcommands_section(page)?;
    }
    sections(&after.unwrap_or_default()).to_writer(page)?;
    Ok(man.get_filename())
}

/// What stands below the options: paragraphs whose first line ends with a colon are sections, with their lines as they are.
fn sections(after: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in after.split("\n\n") {
        let (title, lines) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        roff.control("SH", [title.trim_end_matches(':').to_uppercase().as_str()]).control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    roff
}
