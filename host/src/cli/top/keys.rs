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

/// The longest sequence of a key. A longer one is none.
const LONGEST: usize = 16;

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
        while let Some(length) = first_length(&self.0) {
            let key: Vec<u8> = self.0.drain(..length).collect();
            actions.extend(SEQUENCES.iter().find(|(known, _)| *known == key).map(|(_, action)| *action));
        }
        actions
    }
}

/// How many bytes the first key has; `None` if it is not complete.
fn first_length(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [] | [b'\x1b'] | [b'\x1b', b'O'] => None,
        // A control sequence: parameters, and a final byte.
        [b'\x1b', b'[', rest @ ..] => {
            let parameters = rest.iter().take_while(|byte| matches!(byte, 0x20..=0x3f)).count();
            match rest.get(parameters) {
                Some(0x40..=0x7e) => Some(2 + parameters + 1),
                None if bytes.len() < LONGEST => None,
                _ => Some(2 + parameters),
            }
        }
        [b'\x1b', b'O', ..] => Some(3),
        _ => Some(1),
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
        for unknown in ["\x1b[1;5A", "\x1b[24;2~", "\x1bOq", "\x1b["] {
            assert_eq!(keys.actions(unknown.as_bytes()), [], "{unknown:?}");
        }
        // The last one was not complete, and is not after this either.
        assert_eq!(keys.actions(b"\x03"), [Action::Quit]);
        // Escape, and then another key.
        assert_eq!(keys.actions(b"\x1b"), []);
        assert_eq!(keys.actions(b"q"), [Action::Quit]);
        assert_eq!(keys.actions(&[b"\x1b["[..].to_vec(), vec![b'1'; 40], b"q".to_vec()].concat()), []);
        assert_eq!(keys.actions(b"q"), [Action::Quit]);
    }
}
