//! Help as a terminal shows it: its paragraphs are written over several lines in the code, and wrapped to the width of the
//! terminal.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::ErrorKind;

/// The definition of the command line, with help in paragraphs.
pub(super) fn program() -> clap::Command {
    rewrap(super::Arguments::command())
}

/// The help that was asked for, in paragraphs, or another error as it is. Most invocations do not show help, so the text is not
/// changed before.
pub(super) fn wrapped(error: clap::Error, words: Vec<OsString>) -> clap::Error {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            program().try_get_matches_from(words).err().unwrap_or(error)
        }
        _ => error,
    }
}

fn rewrap(mut command: clap::Command) -> clap::Command {
    if let Some(long) = command.get_long_about() {
        let paragraphs = join_lines(&long.to_string());
        command = command.long_about(StyledStr::from(paragraphs));
    }
    command.mut_subcommands(rewrap)
}

/// Makes each paragraph one line. Lines that are indented, such as examples, stay lines.
fn join_lines(text: &str) -> String {
    let mut joined = String::new();
    let mut continues = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if !joined.is_empty() {
            joined.push(if continues && is_prose { ' ' } else { '\n' });
        }
        joined.push_str(line);
        continues = is_prose;
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_one_line_and_examples_are_not() {
        let text = "Runs it\n\nWithout an agent,\nit is one.\n\nExamples:\n  a b\n  c\nThe rest\nfollows.";
        let joined = "Runs it\n\nWithout an agent, it is one.\n\nExamples:\n  a b\n  c\nThe rest follows.";
        assert_eq!(join_lines(text), joined);
    }

    #[test]
    fn no_line_of_prose_ends_before_the_width_of_a_terminal() {
        for columns in [80, 110] {
            let mut program = program().term_width(columns);
            let run = program.find_subcommand_mut("run").unwrap();
            let help = run.clone().term_width(columns).render_long_help().to_string();
            let prose: Vec<&str> = help.split("\n\n").nth(1).unwrap().lines().collect();
            for line in &prose[..prose.len() - 1] {
                assert!(line.len() + 15 > columns, "{columns}: {line}");
            }
        }
    }
}
