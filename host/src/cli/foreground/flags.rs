//! Flags for standard input and the terminal, shared by `run` and `exec`.

use std::env;
use std::io::{self, IsTerminal};

use super::detach::DetachKeys;
use super::input::is_open;
use super::terminal::window_size;
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
    /// the terminal or its input explicitly.
    pub(in crate::cli) fn reads_input(&self) -> bool {
        let is_asked_for = self.interactive || self.tty || !io::stdin().is_terminal();
        is_asked_for && !self.no_stdin && is_open()
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
