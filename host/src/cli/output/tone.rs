//! Colours, which say how something is. They are off unless there is a terminal, and with `NO_COLOR`.

use std::env;
use std::io::IsTerminal;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::cli) enum Tone {
    /// Nothing to remark.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// It needs attention, or is about to change.
    Warning,
    /// It has failed.
    Bad,
    /// It is over.
    Faint,
    /// It is a heading.
    Strong,
}

impl Tone {
    /// Parameters of the control sequence that selects it.
    const fn parameters(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
            Self::Faint => Some("2"),
            Self::Strong => Some("1"),
        }
    }

    /// A text in this tone.
    pub(in crate::cli) fn paint(self, text: &str, has_colour: bool) -> String {
        match self.parameters() {
            Some(parameters) if has_colour && !text.is_empty() => format!("\x1b[{parameters}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// Whether a stream shows colours.
pub(in crate::cli) fn has_colour(stream: &impl IsTerminal) -> bool {
    let is_off = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    has_screen(stream) && !is_off
}

/// Whether a stream is a terminal that obeys control sequences.
pub(in crate::cli) fn has_screen(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("TERM").is_none_or(|value| value != "dumb")
}
