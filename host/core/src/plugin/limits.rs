//! How much of a plugin the agent takes into memory, records and its log.

use super::placement::{Failure, InvokeError, Response};

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

/// Refuses a reply that is too large, and cuts the message of a failure.
pub(super) fn limited(reply: Result<Response, InvokeError>) -> Result<Response, InvokeError> {
    let check = |size: usize| {
        let reason = || format!("a payload of {size} bytes; the limit is {MAX_PAYLOAD}");
        if size > MAX_PAYLOAD { Err(InvokeError::Reply(reason())) } else { Ok(()) }
    };
    match reply {
        Ok(response) => check(response.payload.len()).map(|()| response),
        Err(InvokeError::Failure(Failure { payload, .. })) if payload.len() > MAX_PAYLOAD => {
            Err(check(payload.len()).err().unwrap_or_else(|| InvokeError::Reply(String::new())))
        }
        Err(InvokeError::Failure(mut failure)) => {
            cut(&mut failure.message, MAX_MESSAGE);
            cut(&mut failure.location, MAX_MESSAGE);
            Err(InvokeError::Failure(failure))
        }
        other => other,
    }
}

/// Cuts a text to a number of bytes, and says so.
pub(super) fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let size = text.len();
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(&format!("… (cut: {size} bytes)"));
    }
}
