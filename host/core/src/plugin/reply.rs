//! Limits of a plugin's reply.

use super::limits::{MAX_MESSAGE, MAX_PAYLOAD, cut};
use super::placement::{Failure, InvokeError, Response};

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
