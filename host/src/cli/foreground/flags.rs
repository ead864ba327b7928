//! Flags for standard input and the terminal, shared by `run` and `exec`.

use std::env;

use super::detach::DetachKeys;
use super::input::{is_open, is_terminal};
use super::terminal::{is_in_foreground, wait_for_foreground, window_size};
use crate::cli::failure::Failure;
use cofferdam_core::model::{Request, Tty};

/// Flags for standard input and the terminal.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct TerminalFlags {
    /// Keep standard input open, also with -d, and read it from a terminal; from a pipe or a file, that is the default
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Do not read standard input, as in a loop that reads it
    #[arg(long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// Keys that detach from the terminal
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    pub(in crate::cli) detach_keys: DetachKeys,
}

impl TerminalFlags {
    /// Whether standard input is to be read. What is typed at a terminal may be for the shell, unless the container was given
    /// the terminal or its input explicitly; in the background, with `-i` only. Then this waits for the foreground, so that
    /// nothing is launched before somebody can type.
    pub(in crate::cli) fn reads_input(&self) -> Result<bool, Failure> {
        let is_asked_for = self.interactive || !is_terminal() || (self.tty && is_in_foreground());
        Ok(is_asked_for && !self.no_stdin && can_read_input()?)
    }

    /// Adds the terminal to a request.
    pub(in crate::cli) fn apply(&self, request: &mut Request) {
        request.interactive = self.interactive;
        if self.tty {
            let (rows, columns) = window_size().unwrap_or_default();
            request.tty = Some(Tty { rows, columns });
            // What it can show is known to this program only.
            let term = env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            request.command.environment.entry("TERM".to_owned()).or_insert(term);
        }
    }
}

/// Whether there is anything to read from standard input. At a terminal, waits until this program is in the foreground.
pub(in crate::cli) fn can_read_input() -> Result<bool, Failure> {
    if is_terminal() {
        wait_for_foreground().map_err(|source| {
            let hint = "start it in the foreground, or leave its input out with `--no-stdin`";
            Failure::system("cannot read from the terminal in the background", source).with_hint(hint)
        })?;
    }
    Ok(is_open())
}
