//! Fields of entries, in the native protocol of the journal.

/// The longest name that the journal accepts.
const MAX_NAME: usize = 64;

/// Before the name of a label, so that no label replaces another field.
const LABEL: &str = "LABEL_";

/// Fields that the logger sets.
const RESERVED: [&str; 9] = [
    "CONTAINER_ID",
    "CONTAINER_NAME",
    "CONTAINER_PARTIAL_MESSAGE",
    "COFFERDAM_LOST_BYTES",
    "COFFERDAM_OFFSET",
    "MESSAGE",
    "PRIORITY",
    "STREAM",
    "SYSLOG_IDENTIFIER",
];

/// Whether the journal accepts a name from programs.
pub(crate) fn is_valid(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.bytes().all(is_allowed)
}

/// Whether the logger sets this field itself.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name.starts_with(LABEL)
}

/// The name of the field of a label: `app.tier` becomes `LABEL_APP_TIER`.
pub(crate) fn of_label(label: &str) -> String {
    let replace = |character: char| match character.to_ascii_uppercase() {
        allowed @ ('A'..='Z' | '0'..='9') => allowed,
        _ => '_',
    };
    LABEL.chars().chain(label.chars().map(replace)).take(MAX_NAME).collect()
}

/// Appends a field. The value may contain any bytes.
pub(crate) fn append(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// The beginning of the field `MESSAGE` with a value of this length, which follows it, and then a line feed.
pub(crate) fn message_header(length: usize) -> [u8; 16] {
    let mut header = *b"MESSAGE\n\0\0\0\0\0\0\0\0";
    header[8..].copy_from_slice(&(length as u64).to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_journal_accepts() {
        for valid in ["A", "SITE_2", &"X".repeat(64)] {
            assert!(is_valid(valid), "{valid}");
        }
        for invalid in ["", "_PID", "2A", "site", "A-B", "A=B", "Ä", &"X".repeat(65)] {
            assert!(!is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn every_label_has_a_valid_name() {
        assert_eq!(of_label("app.kubernetes/tier-1"), "LABEL_APP_KUBERNETES_TIER_1");
        for label in ["", "ü\n=", "_", &"long".repeat(99)] {
            assert!(is_valid(&of_label(label)), "{label}");
        }
    }

    #[test]
    fn values_with_line_feeds_have_a_length() {
        let mut entry = Vec::new();
        append(&mut entry, "A", b"b=c");
        append(&mut entry, "B", b"1\n2");
        assert_eq!(entry, b"A=b=c\nB\n\x03\0\0\0\0\0\0\x001\n2\n");
        assert_eq!(&message_header(0x0102), b"MESSAGE\n\x02\x01\0\0\0\0\0\0");
    }
}
