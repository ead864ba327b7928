//! Help as a terminal shows it: its paragraphs are written over several lines in the code, and wrapped to the width of the
//! terminal.

use clap::CommandFactory;
use clap::builder::StyledStr;

/// The definition of the command line.
pub(super) fn program() -> clap::Command {
    rewrap(super::Arguments::command())
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
