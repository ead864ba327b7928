//! Answers of several messages, sent as they become known: RecordIO, as in Mesos.
//!
//! ```text
//! 121\n{"type": "RUN_CONTAINER", …}98\n{"type": …}      the length of a record in bytes, a line feed, the record
//! ```

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response as HttpResponse};
use hyper::body::{Body as HttpBody, Bytes, Frame};

use super::error::ApiError;
use super::types::Response;

/// The media type of RecordIO.
pub(crate) const RECORDIO: &str = "application/recordio";

/// Which encoding the records have.
pub(crate) const MESSAGE_CONTENT_TYPE: &str = "message-content-type";

/// Answers with one message now and, unless `rest` is `None`, another one later.
pub(super) fn two_part(
    first: &Response,
    rest: impl Future<Output = Option<Response>> + Send + 'static,
) -> Result<HttpResponse, ApiError> {
    let internal = |error| ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, &error);
    let first = Some(record(first).map_err(internal)?);
    let rest = async move { rest.await.and_then(|response| record(&response).ok()) };
    let headers = [(header::CONTENT_TYPE.as_str(), RECORDIO), (MESSAGE_CONTENT_TYPE, "application/json")];
    Ok((headers, Body::new(TwoParts { first, rest: Some(Box::pin(rest)) })).into_response())
}

fn record(response: &Response) -> Result<Bytes, serde_json::Error> {
    let message = serde_json::to_vec(response)?;
    let mut record = format!("{}\n", message.len()).into_bytes();
    record.extend(message);
    Ok(record.into())
}

/// Takes the first record off the front of what has been received of a stream, once all of it is there.
///
/// # Errors
/// When what is there is not a record.
pub(crate) fn take_record(received: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    /// Digits of a length; a longer record is not a message of this API.
    const MAX_DIGITS: usize = 8;
    let Some(digits) = received.iter().position(|&byte| byte == b'\n') else {
        return match received.len() {
            0..=MAX_DIGITS => Ok(None),
            _ => Err("a record does not begin with its length".to_owned()),
        };
    };
    let length = std::str::from_utf8(&received[..digits]).ok().filter(|digits| digits.len() <= MAX_DIGITS);
    let length: usize = length
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| "the length of a record is not a number".to_owned())?;
    let end = digits + 1 + length;
    if received.len() < end {
        return Ok(None);
    }
    let record = received[digits + 1..end].to_vec();
    received.drain(..end);
    Ok(Some(record))
}

struct TwoParts {
    first: Option<Bytes>,
    rest: Option<Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>>,
}

impl HttpBody for TwoParts {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let last = std::task::ready!(rest.as_mut().poll(context));
        self.rest = None;
        Poll::Ready(last.map(|last| Ok(Frame::data(last))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_when_all_of_it_is_there() {
        let whole = b"5\nhello0\n12\nhello, world".to_vec();
        let mut taken = Vec::new();
        let mut received = Vec::new();
        for byte in whole {
            received.push(byte);
            taken.extend(take_record(&mut received).unwrap());
        }
        assert_eq!(taken, [&b"hello"[..], b"", b"hello, world"]);
        assert!(received.is_empty());
    }

    #[test]
    fn what_is_not_a_record_is_an_error() {
        for wrong in ["x\n", "-1\n", "\n", "123456789", "999999999\n", "{\"type\": 1}\n"] {
            assert!(take_record(&mut wrong.as_bytes().to_vec()).is_err(), "{wrong:?}");
        }
    }
}
