//! The ELF note with a plugin's manifest. The manifest is JSON, which is built in constants when the plugin is compiled
//! and read by the agent without running plugin code.

use cofferdam_plugin_abi::{NOTE_OWNER, NOTE_TYPE};

/// Maximum length of a manifest in bytes.
const CAPACITY: usize = 32 * 1024;

/// A string buffer that can be filled in constants.
pub struct Text {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Text {
    /// An empty buffer.
    #[expect(clippy::new_without_default, reason = "`Default` cannot be called in a constant")]
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; CAPACITY], len: 0 }
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no caller needs it")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The content.
    #[cfg(test)]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    const fn byte(&mut self, byte: u8) {
        assert!(self.len < CAPACITY, "the plugin's manifest is longer than 32 KiB: shorten its descriptions");
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// Appends a string as it is.
    pub const fn raw(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            self.byte(bytes[i]);
            i += 1;
        }
    }

    /// Appends a JSON string.
    pub const fn quoted(&mut self, text: &str) {
        self.byte(b'"');
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            match bytes[i] {
                b'"' | b'\\' => {
                    self.byte(b'\\');
                    self.byte(bytes[i]);
                }
                // Control characters need escapes in JSON. Descriptions do not need them, so they become spaces.
                0..0x20 => self.byte(b' '),
                other => self.byte(other),
            }
            i += 1;
        }
        self.byte(b'"');
    }

    /// Appends `"name":"value",`.
    pub const fn entry(&mut self, name: &str, value: &str) {
        self.quoted(name);
        self.byte(b':');
        self.quoted(value);
        self.byte(b',');
    }

    /// Appends `"name":["value",…],`.
    pub const fn entries(&mut self, name: &str, values: &[&str]) {
        self.quoted(name);
        self.byte(b':');
        self.list(values);
        self.byte(b',');
    }

    /// Appends `"name":true,` or `"name":false,`.
    pub const fn flag(&mut self, name: &str, value: bool) {
        self.quoted(name);
        self.raw(if value { ":true," } else { ":false," });
    }

    /// Appends a JSON array of strings.
    pub const fn list(&mut self, values: &[&str]) {
        self.byte(b'[');
        let mut i = 0;
        while i < values.len() {
            self.comma_unless(i == 0);
            self.quoted(values[i]);
            i += 1;
        }
        self.byte(b']');
    }

    /// Appends a comma, unless this is before the first element of an array or object.
    pub const fn comma_unless(&mut self, first: bool) {
        if !first {
            self.byte(b',');
        }
    }

    /// Appends a number.
    pub const fn number(&mut self, number: i64) {
        if number < 0 {
            self.byte(b'-');
        }
        let magnitude = number.unsigned_abs();
        let mut divisor = 1;
        while magnitude / divisor >= 10 {
            divisor *= 10;
        }
        while divisor > 0 {
            self.byte(b'0' + (magnitude / divisor % 10) as u8);
            divisor /= 10;
        }
    }
}

const OWNER_LEN: usize = NOTE_OWNER.len() + 1;
const OWNER_PADDED: usize = OWNER_LEN.next_multiple_of(4);

/// Number of bytes that a text takes in a note, with padding.
#[must_use]
pub const fn note_len(text: &Text) -> usize {
    text.len.next_multiple_of(4)
}

/// An ELF note with the layout that it has in the file: all fields in the byte order of the target, aligned to four
/// bytes.
#[repr(C, align(4))]
pub struct Note<const LEN: usize> {
    namesz: u32,
    descsz: u32,
    kind: u32,
    name: [u8; OWNER_PADDED],
    desc: [u8; LEN],
}

impl<const LEN: usize> Note<LEN> {
    /// A note whose descriptor is `text`.
    #[must_use]
    pub const fn new(text: &Text) -> Self {
        let mut name = [0; OWNER_PADDED];
        let mut i = 0;
        while i < NOTE_OWNER.len() {
            name[i] = NOTE_OWNER.as_bytes()[i];
            i += 1;
        }
        let mut desc = [0; LEN];
        let mut i = 0;
        while i < text.len {
            desc[i] = text.bytes[i];
            i += 1;
        }
        Self { namesz: OWNER_LEN as u32, descsz: text.len as u32, kind: NOTE_TYPE, name, desc }
    }

    /// The descriptor, without padding.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.desc[..self.descsz as usize]
    }
}
