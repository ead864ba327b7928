//! The keys that detach a terminal from a container, as in docker.

use std::str::FromStr;

/// A sequence of keys.
#[derive(Debug, Clone)]
pub(in crate::cli) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed one after the other.
    typed: usize,
}

impl DetachKeys {
    /// Ctrl-P Ctrl-Q.
    pub(in crate::cli) const DEFAULT: &'static str = "ctrl-p,ctrl-q";

    /// What of this input is for the container, and whether the sequence is complete. A part of the sequence is kept back
    /// until the next key shows that it is none.
    pub(super) fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for &byte in input {
            if self.keys.get(self.typed) == Some(&byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend(self.keys.iter().take(self.typed));
            self.typed = 0;
            if self.keys.first() == Some(&byte) {
                self.typed = 1;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |name: &str| match name.as_bytes() {
            [key @ 0x20..=0x7e] => Ok(*key),
            _ => match name.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([key @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(key & 0x1f),
                _ => Err(format!("`{name}` is not a key; expected a character, or `ctrl-` and a letter")),
            },
        };
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, _>>()?;
        Ok(Self { keys, typed: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::DetachKeys;

    fn typed(keys: &str, parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys: DetachKeys = keys.parse().unwrap();
        let mut passed = Vec::new();
        for part in parts {
            let (more, detached) = keys.filter(part);
            passed.extend(more);
            if detached {
                return (passed, true);
            }
        }
        (passed, false)
    }

    #[test]
    fn the_sequence_detaches_and_everything_else_is_passed_on() {
        assert_eq!(typed(DetachKeys::DEFAULT, &[b"a\x10", b"\x11b"]), (b"a".to_vec(), true));
        assert_eq!(typed(DetachKeys::DEFAULT, &[b"a\x10", b"b\x11"]), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(typed(DetachKeys::DEFAULT, &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(typed("q", &[b"abcq"]), (b"abc".to_vec(), true));
    }

    #[test]
    fn other_names_are_no_keys() {
        for wrong in ["", "ctrl-", "ctrl-1", "esc", "ctrl-p,", "ctrl-P"] {
            assert!(wrong.parse::<DetachKeys>().is_err(), "{wrong}");
        }
    }
}
