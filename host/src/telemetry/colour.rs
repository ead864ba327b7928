//! When colours are shown: on a terminal that obeys control sequences, unless the environment has `NO_COLOR`.

use std::env;
use std::io::IsTerminal;

/// Whether a stream shows colours.
#[must_use]
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    has_screen(stream) && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether a stream is a terminal that obeys control sequences.
#[must_use]
pub fn has_screen(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("TERM").is_none_or(|value| value != "dumb")
}
