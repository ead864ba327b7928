//! Standard output: tables, lines, colours and JSON.

mod facts;
mod table;
mod tone;

use std::io::{self, Write};

use cofferdam_core::model::ContainerId;
use rustix::termios::tcgetwinsize;
use serde::Serialize;

pub(super) use crate::telemetry::{has_colour, has_screen};
pub(super) use facts::{facts, wrapped};
pub(super) use table::{Cell, Column, Table, truncated};
pub(super) use tone::Tone;

/// Prints a value as indented JSON.
pub(super) fn json(value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    io::stdout().lock().write_all(&text)
}

/// Prints a value as JSON on one line, as one of many.
pub(super) fn json_line(value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    io::stdout().lock().write_all(&text)
}

/// Prints the ids of containers that were changed, as an array.
pub(super) fn json_ids(ids: &[ContainerId]) -> io::Result<()> {
    json(&ids.iter().map(ContainerId::as_str).collect::<Vec<_>>())
}

/// Prints a line.
pub(super) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Escapes control characters, so that untrusted text cannot control the terminal.
pub(super) fn escape_control(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Columns of the terminal at standard output; `None` if there is none.
pub(super) fn width() -> Option<usize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|&columns| columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape_control("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}
