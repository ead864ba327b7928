//! Limits of a plugin's reply.

use super::limits::{MAX_MESSAGE, MAX_PAYLOAD, cut};
use super::placement::{Failure, InvokeError, Response};

/// Refuses a reply that is too large, and cuts the message of a failure.
pub(super) fn limited(reply: Result<Response, InvokeError>) -> Result<Response, InvokeError> {
    let size = match &reply {
        Ok(response) => response.payload.len(),
        Err(InvokeError::Failure(failure)) => failure.payload.len(),
        Err(InvokeError::Reply(_)) => 0,
    };
    if size > MAX_PAYLOAD {
        return Err(InvokeError::Reply(format!("a payload of {size} bytes; the limit is {MAX_PAYLOAD}")));
    }
    reply.map_err(|error| match error {
        InvokeError::Failure(Failure { mut message, mut location, kind, retryable, payload }) => {
            cut(&mut message, MAX_MESSAGE);
            cut(&mut location, MAX_MESSAGE);
            InvokeError::Failure(Failure { message, location, kind, retryable, payload })
        }
        other => other,
    })
}
