//! I/O switchboards: processes that pass the standard streams of containers on to the logger and to clients.
//!
//! ```text
//! create.rs        pipes or a terminal for a container, and the request for its switchboard
//! attachment.rs    a client's connection to it
//! counts.rs        what was lost of the output
//! ```
//!
//! A container has one if it has a terminal, if clients may write to its standard input, or if a client is about to
//! attach. The output of others goes to the logger directly. The process is a child of the keeper and outlives the agent;
//! its socket is in the directory of the container's record, with a file in which it counts what the logger has received.

mod attachment;
mod counts;
mod create;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_init::streams::{HAS_ENDED, HEADER, Header, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, send,
    socket_with,
};

use crate::short_path::at_short_path;

pub(crate) use attachment::first_attachment;
pub use attachment::{AttachError, AttachedInput, AttachedOutput, Attachment, Output, OutputStream};
pub(crate) use counts::take_lost_output;
pub(crate) use create::{Streams, Switched, switch_engine};

/// Name of the socket in the directory of a container's record.
const SOCKET: &str = "attach";

/// Connections that wait to be accepted. The switchboard accepts at once.
const BACKLOG: i32 = 16;

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Creates the socket of a container's switchboard.
fn listener(directory: &Path) -> io::Result<OwnedFd> {
    let listener = socket()?;
    at_short_path(directory, |path| Ok(bind(&listener, &SocketAddrUnix::new(path.join(SOCKET))?)?))?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Connects to the switchboard of a container. Fails with `ConnectionRefused` or `NotFound` if there is none any more, and
/// with `WouldBlock` if it does not accept connections. Does not wait.
fn connection(directory: &Path, flags: u8) -> io::Result<OwnedFd> {
    let [a, b, c, d] = Header { kind: Kind::Attach, length: 1 }.encode();
    loop {
        let connection = socket()?;
        at_short_path(directory, |path| Ok(connect(&connection, &SocketAddrUnix::new(path.join(SOCKET))?)?))?;
        // The socket of a connection that was just made has space.
        match send(&connection, &[a, b, c, d, flags], SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(connection),
            // It was closed at this moment: the next connection is refused.
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits until the logger has received all output of a container whose processes have ended. Returns false if that takes
/// longer than `timeout`.
pub(crate) fn wait_until_logged(directory: &Path, timeout: Duration) -> io::Result<bool> {
    wait_for_end(directory, HAS_ENDED, timeout)
}

/// As [`wait_until_logged`], for output that may take any time to arrive after the end of the processes: until its sender has
/// closed the connection.
pub(crate) fn wait_until_closed(directory: &Path, timeout: Duration) -> io::Result<bool> {
    wait_for_end(directory, 0, timeout)
}

fn wait_for_end(directory: &Path, flags: u8, timeout: Duration) -> io::Result<bool> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let deadline = Instant::now() + timeout;
    loop {
        let connection = match connection(directory, flags) {
            Err(error) if matches!(error.kind(), ConnectionRefused | NotFound) => return Ok(true),
            connection => connection?,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&connection, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return Ok(false),
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        let mut answer = [0; HEADER];
        if rustix::io::read(&connection, &mut answer) == Ok(HEADER)
            && Header::parse(answer).is_some_and(|header| header.kind == Kind::End)
        {
            return Ok(true);
        }
        // It had no space for another client, or was killed: the next connection tells.
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}
