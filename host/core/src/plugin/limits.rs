//! How much of a plugin the agent takes into memory, records and its log.

/// Payload of one reply, in bytes.
pub(super) const MAX_PAYLOAD: usize = 4 << 20;

/// State for one container, encoded, in bytes.
pub(crate) const MAX_STATE: usize = 1 << 20;

/// Message of one error, in bytes; longer ones are cut.
pub(super) const MAX_MESSAGE: usize = 16 << 10;

/// One log event or field, in bytes; longer ones are cut.
pub(super) const MAX_LOG_TEXT: usize = 16 << 10;

/// Log callsites of one plugin. They stay registered for the life of the process.
pub(super) const MAX_CALLSITES: usize = 4096;

/// Open spans of one plugin.
pub(super) const MAX_SPANS: usize = 4096;

/// Descriptors of one reply.
pub(super) const MAX_DESCRIPTORS: usize = 64;

/// Cuts a text to a number of bytes, and says so.
pub(super) fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let size = text.len();
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(&format!("… (cut: {size} bytes)"));
    }
}
