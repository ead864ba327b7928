//! Sends entries to the journal by its native protocol: a datagram per entry, or a sealed file in memory if it is too large
//! for one.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

/// How long after a failure the journal is tried again. Doubled each time.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The journal, which may be stopped, restarted or absent.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    socket: Option<OwnedFd>,
    state: State,
    delay: Duration,
}

/// Whether entries can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Its queue is full; the socket is writable when it has read.
    Full,
    /// It does not respond, and is tried again at this time.
    Unavailable(Instant),
}

impl Journal {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, socket: None, state: State::Ready, delay: RETRY_DELAY }
    }

    /// Whether a socket accepts entries.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn check(path: &Path) -> io::Result<()> {
        open(path).map(drop)
    }

    /// The socket, if its space has to be waited for.
    pub(crate) fn full(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().filter(|_| self.state == State::Full).map(AsFd::as_fd)
    }

    /// How long to wait before entries can be sent again; `None` if that is not a matter of time.
    pub(crate) fn retry_in(&self) -> Option<Duration> {
        match self.state {
            State::Ready => None,
            // Its end wakes up whoever waits for space, but nothing promises that.
            State::Full => Some(MAX_RETRY_DELAY),
            State::Unavailable(until) => Some(until.saturating_duration_since(Instant::now())),
        }
    }

    /// Sends an entry. Returns whether the journal has it; if not, the entry is to be sent again later.
    pub(crate) fn send(&mut self, entry: &[IoSlice<'_>]) -> bool {
        if let State::Unavailable(until) = self.state
            && Instant::now() < until
        {
            return false;
        }
        self.state = match self.try_send(entry) {
            Ok(()) => {
                self.delay = RETRY_DELAY;
                State::Ready
            }
            Err(Errno::AGAIN) => State::Full,
            // Also if it has no more descriptors, or this process has none: none of that lasts.
            Err(_) => {
                self.socket = None;
                let until = Instant::now() + self.delay;
                self.delay = (self.delay * 2).min(MAX_RETRY_DELAY);
                State::Unavailable(until)
            }
        };
        self.state == State::Ready
    }

    fn try_send(&mut self, entry: &[IoSlice<'_>]) -> Result<(), Errno> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let opened = open(&self.path);
                self.socket.insert(opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?)
            }
        };
        loop {
            match sendmsg(socket, entry, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::MSGSIZE | Errno::NOBUFS) => return send_file(socket, entry),
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Connects to the socket of a journal.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends an entry as a file, which the journal reads only if nobody can change it any more.
fn send_file(socket: &OwnedFd, entry: &[IoSlice<'_>]) -> Result<(), Errno> {
    let file = memfd_create("journal-entry", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut writer = io::BufWriter::new(std::fs::File::from(file));
    let written = entry.iter().try_for_each(|part| writer.write_all(part));
    let file = written.and_then(|()| writer.into_inner().map_err(io::IntoInnerError::into_error));
    let file = file.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::INVAL);
    }
    loop {
        match sendmsg(socket, &[], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
