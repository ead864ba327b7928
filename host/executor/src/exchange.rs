//! A request and its response on a connection of their own, without blocking.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with,
};

use crate::environment::Endpoint;
use crate::http::{HttpError, Part, Response};

/// Bytes that are read at a time.
const BUFFER: usize = 16 << 10;

/// Why an exchange has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] HttpError),
}

impl From<Errno> for ExchangeError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// A request that is being sent, or a response that is being received.
#[derive(Debug)]
pub(crate) struct Exchange {
    socket: OwnedFd,
    request: Vec<u8>,
    written: usize,
    response: Response,
    closed: bool,
}

impl Exchange {
    /// Connects to an endpoint; the request is sent by [`Exchange::advance`].
    pub(crate) fn open(endpoint: &Endpoint, request: Vec<u8>) -> io::Result<Self> {
        let socket = open_socket(endpoint)?;
        Ok(Self { socket, request, written: 0, response: Response::new(), closed: false })
    }

    /// What to poll the descriptor for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.written < self.request.len() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// Sends and receives what is possible now, at most one buffer, so that no peer keeps the others waiting.
    pub(crate) fn advance(&mut self) -> Result<(), ExchangeError> {
        while self.written < self.request.len() {
            match send(&self.socket, &self.request[self.written..], SendFlags::NOSIGNAL) {
                Ok(written) => self.written += written,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if self.written == self.request.len() {
                self.request = Vec::new();
                self.written = 0;
            }
        }
        if self.closed {
            return Ok(());
        }
        let mut buffer = [0; BUFFER];
        match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                self.closed = true;
                self.response.close()?;
            }
            Ok((length, _)) => self.response.push(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// The next part of the response, if it has been received.
    pub(crate) fn next(&mut self) -> Result<Option<Part>, HttpError> {
        self.response.next()
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A connection that is being established.
#[derive(Debug)]
pub(crate) struct Connecting(OwnedFd);

impl Connecting {
    /// Begins to connect.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        open_socket(&Endpoint::Tcp(address)).map(Self)
    }

    /// Whether it is established. To be called when the descriptor is ready for output.
    pub(crate) fn result(&self) -> io::Result<()> {
        Ok(socket_error(&self.0)??)
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open_socket(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let family = match endpoint {
        Endpoint::Unix(_) => AddressFamily::UNIX,
        Endpoint::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
        Endpoint::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    let connected = match endpoint {
        Endpoint::Unix(path) => connect(&socket, &SocketAddrUnix::new(path)?),
        Endpoint::Tcp(address) => connect(&socket, address),
    };
    match connected {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}
