//! Colours, which say how something is.

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
