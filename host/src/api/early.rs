//! Responses to requests that have not arrived completely, as when the head of a request shows that it is refused.
//!
//! A client may send the rest of such a request before it reads the response. If that is short, it is read, so that the
//! connection can be used for the next request. If not, the response says that the connection is closed, and what still
//! arrives is read for a while: closed before, the client would get an error instead of the response.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The rest of a request that is read to keep the connection, and how long that may take. Clients often send head and
/// body one right after the other.
const MAX_REST: u64 = 64 << 10;
const REST_TIMEOUT: Duration = Duration::from_millis(100);

/// How much of what arrives after a response is read before the connection is closed, and for how long.
const MAX_LINGER: u64 = 256 << 20;
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Responds to a request, and closes the connection if not all of it was read.
pub(super) async fn respond(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // Read, it would make the client send a body for which it waits for permission.
    let is_asked_for = request.headers().contains_key(header::EXPECT);
    let unread = Unread::default();
    let request = request.map(|body| Body::new(Tracked { body: Some(body), unread: Arc::clone(&unread) }));
    let mut response = next.run(request).await;
    let rest = unread.lock().take();
    if let Some(rest) = rest
        && (is_asked_for || !is_read(rest).await)
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads and discards what arrives until the client closes the connection, within limits.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let discard = async {
        // An error means that the client has closed it.
        if stream.shutdown().await.is_ok() {
            let mut rest = stream.take(MAX_LINGER);
            drop(tokio::io::copy(&mut rest, &mut tokio::io::sink()).await);
        }
    };
    drop(tokio::time::timeout(LINGER_TIMEOUT, discard).await);
}

/// Reads the rest of a request. Returns whether all of it arrived.
async fn is_read(mut body: Body) -> bool {
    if body.size_hint().lower() > MAX_REST {
        return false;
    }
    let read = async {
        let mut left = MAX_REST;
        loop {
            match body.frame().await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                    let Some(rest) = left.checked_sub(length) else { return false };
                    left = rest;
                }
            }
        }
    };
    tokio::time::timeout(REST_TIMEOUT, read).await.unwrap_or(false)
}

/// The body of a request that was dropped before all of it was read.
type Unread = Arc<Mutex<Option<Body>>>;

/// A body that is kept when it is dropped before its end.
struct Tracked {
    /// `None` only while it is dropped.
    body: Option<Body>,
    unread: Unread,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        *self.unread.lock() = unread;
    }
}
