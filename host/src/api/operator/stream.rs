//! Several messages in one body, sent as they become known: RecordIO, as in Mesos.
//!
//! ```text
//! 121\n{"type": "RUN_CONTAINER", …}98\n{"type": …}      the length of a record in bytes, a line feed, the record
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response as HttpResponse};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use serde::Serialize;
use tokio::sync::mpsc;

use super::media::{MESSAGE_CONTENT_TYPE, ResponseMedia};
use crate::api::encoding::Codec;

/// Records that wait for the other side to read. It delays whoever sends more.
const WAITING: usize = 4;

/// Where the records of a stream are sent.
#[derive(Debug)]
pub(crate) struct Records {
    codec: Codec,
    sender: mpsc::Sender<Bytes>,
}

/// The other side has gone.
#[derive(Debug)]
pub(crate) struct Disconnected;

impl Records {
    /// A stream of JSON, and the body that sends it.
    pub(crate) fn new() -> (Self, RecordsBody) {
        Self::encoded(Codec::Json)
    }

    /// A stream, and the body that sends it.
    pub(in crate::api) fn encoded(codec: Codec) -> (Self, RecordsBody) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { codec, sender }, BytesBody(receiver))
    }

    /// Sends a record, as soon as there is space.
    pub(crate) async fn send(&self, message: &impl Serialize) -> Result<(), Disconnected> {
        let message = self.codec.write(message).map_err(|error| {
            // What clients send is checked when it arrives.
            tracing::error!("a stream ends, as a message cannot be encoded: {error}");
            Disconnected
        })?;
        let mut record = format!("{}\n", message.len()).into_bytes();
        record.extend(message);
        self.sender.send(record.into()).await.map_err(|_| Disconnected)
    }

    /// Waits until the other side has gone.
    pub(in crate::api) async fn disconnected(&self) {
        self.sender.closed().await;
    }
}

/// A response whose records are sent by `produce`, in a task that continues when the client disconnects.
pub(in crate::api) fn respond<P>(
    media: ResponseMedia,
    codec: Codec,
    produce: impl FnOnce(Records) -> P,
) -> HttpResponse
where
    P: Future<Output = ()> + Send + 'static,
{
    let (records, response) = response(media, codec);
    tokio::spawn(produce(records));
    response
}

/// A response, and where its records are sent.
pub(in crate::api) fn response(media: ResponseMedia, codec: Codec) -> (Records, HttpResponse) {
    let (records, body) = Records::encoded(codec);
    let headers = [(header::CONTENT_TYPE.as_str(), media.stream), (MESSAGE_CONTENT_TYPE, codec.media_type())];
    (records, (headers, Body::new(body)).into_response())
}

/// A body that consists of the records of a stream.
pub(crate) type RecordsBody = BytesBody;

/// A body whose parts are sent when they become known.
pub(crate) struct BytesBody(mpsc::Receiver<Bytes>);

impl BytesBody {
    pub(super) fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self(parts)
    }
}

impl HttpBody for BytesBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|record| record.map(|record| Ok(Frame::data(record))))
    }
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
