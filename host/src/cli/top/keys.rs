//! Keys, from what a terminal sends for them.

use super::sort::SortBy;

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Ends the program.
    Quit,
    /// Changes the order.
    Sort(SortBy),
    /// Reverses the order.
    Reverse,
    /// Scrolls by one line.
    Up,
    /// Scrolls by one line.
    Down,
    /// Scrolls by one screen.
    PageUp,
    /// Scrolls by one screen.
    PageDown,
    /// Scrolls to the first line.
    Home,
    /// Scrolls to the last line.
    End,
}

/// The longest sequence of a key that is known.
const LONGEST: usize = 4;

const SEQUENCES: [(&[u8], Action); 20] = [
    (b"q", Action::Quit),
    (b"Q", Action::Quit),
    // Ctrl-C and Ctrl-D.
    (b"\x03", Action::Quit),
    (b"\x04", Action::Quit),
    (b"c", Action::Sort(SortBy::Cpu)),
    (b"m", Action::Sort(SortBy::Memory)),
    (b"p", Action::Sort(SortBy::Processes)),
    (b"i", Action::Sort(SortBy::Io)),
    (b"n", Action::Sort(SortBy::Name)),
    (b"r", Action::Reverse),
    (b"\x1b[A", Action::Up),
    (b"\x1bOA", Action::Up),
    (b"k", Action::Up),
    (b"\x1b[B", Action::Down),
    (b"\x1bOB", Action::Down),
    (b"j", Action::Down),
    (b"\x1b[5~", Action::PageUp),
    (b"\x1b[6~", Action::PageDown),
    (b"\x1b[H", Action::Home),
    (b"\x1b[F", Action::End),
];

/// Reads keys. A sequence may arrive in parts.
#[derive(Debug, Default)]
pub(super) struct Keys(Vec<u8>);

impl Keys {
    /// What the keys do that are complete.
    pub(super) fn actions(&mut self, bytes: &[u8]) -> Vec<Action> {
        self.0.extend_from_slice(bytes);
        let mut actions = Vec::new();
        while let Some(&first) = self.0.first() {
            if let Some((sequence, action)) = SEQUENCES.iter().find(|(known, _)| self.0.starts_with(known)) {
                actions.push(*action);
                self.0.drain(..sequence.len());
            } else if SEQUENCES.iter().any(|(known, _)| known.starts_with(&self.0)) {
                break;
            } else {
                let unknown = if first == b'\x1b' { self.0.len().min(LONGEST) } else { 1 };
                self.0.drain(..unknown);
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_recognised_also_in_parts() {
        let mut keys = Keys::default();
        assert_eq!(keys.actions(b"mr"), [Action::Sort(SortBy::Memory), Action::Reverse]);
        assert_eq!(keys.actions(b"\x1b["), []);
        assert_eq!(keys.actions(b"Aj"), [Action::Up, Action::Down]);
        assert_eq!(keys.actions(b"xyz!"), []);
        assert_eq!(keys.actions(b"\x1b[5~\x1b[6~\x03"), [Action::PageUp, Action::PageDown, Action::Quit]);
        // Of a key that is not known, nothing is taken for another one.
        assert_eq!(keys.actions(b"\x1b[1~"), []);
        assert_eq!(keys.actions(b"q"), [Action::Quit]);
    }
}
