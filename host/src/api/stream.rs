//! Connections of unix sockets, also while the kernel watches no more descriptors for the user of the agent.
//!
//! It limits how many the processes of a user may have watched (`fs.epoll.max_user_watches`), and root in a container can be
//! the same user. What is not watched is tried again after pauses: then everything is slower, but containers can be killed
//! and removed.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{SocketFlags, accept_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How often a connection that is not watched is tried.
const INTERVAL: Duration = Duration::from_millis(10);

/// A listening socket.
#[derive(Debug)]
pub(super) struct Acceptor(AsyncFd<UnixListener>);

impl Acceptor {
    /// Registers a listening socket that does not block. Needs a tokio runtime.
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        // SAFETY: a `UnixListener` is open, always returns the same number, and is neither closed nor replaced before the
        // `AsyncFd` that owns it is dropped.
        Ok(Self(unsafe { AsyncFd::register(listener) }?))
    }

    /// Accepts a connection.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &UnixListener| Ok(accept_with(listener, flags)?);
        let stream = self.0.async_io(Interest::READABLE, accept).await?;
        Stream::new(stream.into())
    }
}

/// A connection.
pub(super) enum Stream {
    Watched(tokio::net::UnixStream),
    Unwatched(Unwatched),
}

impl Stream {
    fn new(stream: UnixStream) -> io::Result<Self> {
        // The runtime closes what it cannot register.
        let same = stream.try_clone();
        match tokio::net::UnixStream::from_std(stream) {
            Ok(stream) => Ok(Self::Watched(stream)),
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory) => {
                tracing::warn!(
                    "the kernel watches no more descriptors for this user (fs.epoll.max_user_watches), checking a connection \
                     periodically instead"
                );
                same.map(|stream| Self::Unwatched(Unwatched::new(stream)))
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Watched(stream) => stream.as_fd(),
            Self::Unwatched(stream) => stream.stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Watched(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unwatched(stream) => stream.poll(context, |mut stream| {
                let read = stream.read(buffer.initialize_unfilled())?;
                buffer.advance(read);
                Ok(())
            }),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Watched(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unwatched(stream) => stream.poll(context, |mut stream| stream.write(bytes)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Watched(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Unwatched(stream) => stream.poll(context, |mut stream| stream.write_vectored(parts)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Watched(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unwatched(stream) => Poll::Ready(stream.stream.shutdown(Shutdown::Write)),
        }
    }
}

/// A connection that is not watched.
pub(super) struct Unwatched {
    stream: UnixStream,
    pause: Pin<Box<Sleep>>,
}

impl Unwatched {
    fn new(stream: UnixStream) -> Self {
        Self { stream, pause: Box::pin(sleep(INTERVAL)) }
    }

    /// Tries something, and lets the task try it again after a pause if it is not possible yet.
    fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        mut attempt: impl FnMut(&UnixStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match attempt(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => return Poll::Ready(done),
            }
            self.pause.as_mut().reset(Instant::now() + INTERVAL);
            if self.pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_is_not_watched_is_read_and_written() {
        const LENGTH: usize = 4 << 20;
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut stream = Stream::Unwatched(Unwatched::new(ours));
        theirs.set_nonblocking(true).unwrap();
        let mut peer = tokio::net::UnixStream::from_std(theirs).unwrap();
        // More than the kernel buffers, in both directions.
        let peer = tokio::spawn(async move {
            let mut request = vec![0; LENGTH];
            peer.read_exact(&mut request).await.unwrap();
            peer.write_all(&request).await.unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).await.unwrap();
            rest
        });
        stream.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        let mut response = vec![0; LENGTH];
        stream.read_exact(&mut response).await.unwrap();
        assert!(response.iter().all(|byte| *byte == b'x'));
        stream.write_all(b"end").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await.unwrap(), b"end");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
