//! The agent's side of [`crate::protocol`] and [`crate::report`].

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg,
    sendmsg, socket_with, socketpair,
};

use crate::protocol::{
    ENTRY_LENGTH, Entry, HEADER, MAX_SLOTS, OLDEST, REPLY_LENGTH, Reply, Request, Slot, Spawn, State,
    Switchboard, VERSION,
};
use crate::report::{MAX_DETAIL, READY, RECORD_HEAD, Record, STARTED};

/// Maximum number of descriptors of a request.
pub const MAX_DESCRIPTORS: usize = crate::sys::MAX_DESCRIPTORS;

/// Creates the socket on which a keeper accepts connections, at a path that is at most 107 bytes long.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub fn listener(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // There is one agent, and possibly one that has died a moment ago.
    listen(&socket, 4)?;
    Ok(socket)
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A connection to a keeper. Requests of several threads must not overlap.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

/// Why a request was not answered as expected.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The keeper has ended, or does not answer: the connection cannot be used any more.
    #[error("the keeper does not answer")]
    Connection(#[source] io::Error),
    /// The keeper refused the request.
    #[error("the keeper cannot do it")]
    Refused(#[source] io::Error),
    /// It speaks a version of the protocol that this agent does not.
    #[error(
        "the keeper speaks version {version} of its protocol; this agent speaks versions {OLDEST} to {VERSION}"
    )]
    Version {
        /// The keeper's version.
        version: u32,
        /// The keeper's pid.
        pid: i32,
    },
}

impl RequestError {
    fn malformed() -> Self {
        Self::Connection(io::Error::new(io::ErrorKind::InvalidData, "malformed reply"))
    }
}

/// A first process that a keeper has created.
#[derive(Debug)]
pub struct Spawned {
    /// Where the keeper records its end.
    pub slot: Slot,
    /// Its pid in the keeper's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// What has not ended of a container whose command has: pids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Process 1 of its pid namespace: then other processes in it may not have ended either.
    pub reaper: Option<i32>,
    /// Its setup process, which has reported that the command runs and is about to end. It has the container's mounts.
    pub setup: Option<i32>,
}

impl Connection {
    /// A connection, and the keeper's end of it. `timeout` is that of each request.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair(timeout: Duration) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::new(ours, timeout)?, theirs))
    }

    /// Connects to a keeper's socket.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn open(path: &Path, timeout: Duration) -> io::Result<Self> {
        let connection = Self::new(seqpacket()?, timeout)?;
        connect(&connection.socket, &SocketAddrUnix::new(path)?)?;
        Ok(connection)
    }

    fn new(socket: OwnedFd, timeout: Duration) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        Ok(Self { socket })
    }

    /// The first request of a connection. Returns the keeper's pid.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn hello(&self, kill_on_disconnect: bool) -> Result<i32, RequestError> {
        let (reply, _) = self.request(&Request::Hello { version: VERSION, kill_on_disconnect }, &[])?;
        match reply.version {
            OLDEST..=VERSION => Ok(reply.pid),
            version => Err(RequestError::Version { version, pid: reply.pid }),
        }
    }

    /// Creates a first process. `descriptors` are in the order of [`Spawn`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn spawn(&self, spawn: Spawn, descriptors: &[BorrowedFd<'_>]) -> Result<Spawned, RequestError> {
        let (reply, pidfd) = self.request(&Request::Spawn(spawn), descriptors)?;
        let pidfd = pidfd.ok_or_else(RequestError::malformed)?;
        Ok(Spawned { slot: reply.slot, pid: reply.pid, pidfd })
    }

    /// The state of a slot, and with [`State::Ended`] and [`State::Exited`] the wait status.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn collect(&self, slot: Slot) -> Result<(State, i32), RequestError> {
        self.collect_with_remaining(slot).map(|(state, status, _)| (state, status))
    }

    /// As [`Connection::collect`], and with [`State::Exited`] what has not ended.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn collect_with_remaining(&self, slot: Slot) -> Result<(State, i32, Remaining), RequestError> {
        let (reply, _) = self.request(&Request::Collect(slot), &[])?;
        let remaining = match reply.state {
            State::Exited => {
                let [reaper, setup] = [reply.pid, reply.setup].map(|pid| (pid > 0).then_some(pid));
                Remaining { reaper, setup }
            }
            _ => Remaining::default(),
        };
        Ok((reply.state, reply.status, remaining))
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn forget(&self, slot: Slot) -> Result<(), RequestError> {
        self.request(&Request::Forget(slot), &[]).map(drop)
    }

    /// Creates an I/O switchboard. `descriptors` are in the order of [`Switchboard`]. Returns its pid and its pidfd.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn create_switchboard(
        &self,
        switchboard: Switchboard,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(i32, OwnedFd), RequestError> {
        let (reply, pidfd) = self.request(&Request::Switchboard(switchboard), descriptors)?;
        Ok((reply.pid, pidfd.ok_or_else(RequestError::malformed)?))
    }

    /// Number of containers that have processes.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn count(&self) -> Result<u32, RequestError> {
        self.request(&Request::Count, &[]).map(|(reply, _)| reply.status.cast_unsigned())
    }

    /// Whether the keeper still has its end open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let mut ends = [PollFd::new(&self.socket, PollFlags::empty())];
        let polled = poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_ok() && !ends[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn request(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Option<OwnedFd>), RequestError> {
        let (reply, received) = self.exchange(&request.encode(), descriptors)?;
        match reply.errno {
            0 => Ok((reply, received)),
            errno => Err(RequestError::Refused(io::Error::from_raw_os_error(errno))),
        }
    }

    /// Sends any message and waits for the reply.
    ///
    /// # Errors
    /// [`RequestError::Connection`].
    #[doc(hidden)]
    pub fn raw(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<Reply, RequestError> {
        self.exchange(message, descriptors).map(|(reply, _)| reply)
    }

    fn exchange(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Option<OwnedFd>), RequestError> {
        let failed = |error: io::Error| RequestError::Connection(error);
        self.send(message, descriptors).map_err(failed)?;
        let mut message = [0; REPLY_LENGTH + 1];
        let (length, mut received) = receive(self.socket.as_fd(), &mut message).map_err(failed)?;
        if length == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let reply = Reply::parse(message.get(..length).unwrap_or_default());
        let reply = reply.ok_or_else(RequestError::malformed)?;
        Ok((reply, received.pop()))
    }

    fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(crate::sys::MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                other => return other.map(drop).map_err(Into::into),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Receives a message with at most one descriptor. Returns its length.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    Ok((received.bytes, descriptors.collect()))
}

/// The agent's end of the control socket of a setup process.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    received: Vec<u8>,
    pidfd: Option<OwnedFd>,
}

/// How the start of a container's command ended.
#[derive(Debug)]
pub enum Outcome {
    /// The command runs.
    Started {
        /// Pid of the container's first process.
        pid: i32,
        /// Its pidfd.
        pidfd: OwnedFd,
    },
    /// A step failed: an encoded [`Record`].
    Failed(Vec<u8>),
    /// The setup process or the command's process was killed.
    Ended,
    /// Nothing was reported in time.
    TimedOut,
}

impl Control {
    /// A control socket, and the setup process's end of it.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket, received: Vec::new(), pidfd: None }, theirs))
    }

    /// Waits until the setup process is in its namespaces and cgroups. Returns false if it reports a failure or has
    /// ended, or at the deadline: [`Control::outcome`] tells.
    pub fn wait_until_ready(&mut self, deadline: Instant) -> bool {
        while self.received.is_empty() {
            if !matches!(self.receive(deadline), Ok(Received::Some)) {
                return false;
            }
        }
        self.received.first() == Some(&READY)
    }

    /// Sends the encoded plan. A setup process that has ended is no error: [`Control::outcome`] tells.
    ///
    /// # Errors
    /// Those of send(2).
    pub fn send_plan(&self, mut message: &[u8], deadline: Instant) -> io::Result<()> {
        while !message.is_empty() {
            if !wait_for(self.socket.as_fd(), PollFlags::OUT, deadline)? {
                return Ok(());
            }
            match rustix::net::send(&self.socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => message = message.get(sent..).unwrap_or_default(),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Waits for the report on the start, at most until the deadline.
    ///
    /// # Errors
    /// Those of recvmsg(2).
    pub fn outcome(&mut self, deadline: Instant) -> io::Result<Outcome> {
        loop {
            match self.receive(deadline)? {
                Received::Some if self.received.len() <= 1 + RECORD_HEAD + MAX_DETAIL => {}
                Received::Nothing => return Ok(Outcome::TimedOut),
                _ => break,
            }
        }
        let report = match self.received.split_first() {
            Some((&READY, report)) => report,
            _ => &self.received,
        };
        Ok(match (report, self.pidfd.take()) {
            ([STARTED, p0, p1, p2, p3], Some(pidfd)) => {
                Outcome::Started { pid: i32::from_ne_bytes([*p0, *p1, *p2, *p3]), pidfd }
            }
            _ if Record::parse(report).is_some() => Outcome::Failed(report.to_vec()),
            _ => Outcome::Ended,
        })
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Received> {
        if !wait_for(self.socket.as_fd(), PollFlags::IN, deadline)? {
            return Ok(Received::Nothing);
        }
        let mut buffer = [0; 512];
        match receive(self.socket.as_fd(), &mut buffer) {
            // Closed with data that it has not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::End),
            Err(error) => Err(error),
            Ok((0, _)) => Ok(Received::End),
            Ok((length, mut descriptors)) => {
                self.received.extend_from_slice(buffer.get(..length).unwrap_or_default());
                self.pidfd = descriptors.pop().or(self.pidfd.take());
                Ok(Received::Some)
            }
        }
    }
}

enum Received {
    Some,
    End,
    /// Not before the deadline.
    Nothing,
}

fn wait_for(socket: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The file in which a keeper records how processes end.
#[derive(Debug)]
pub struct Statuses {
    file: File,
}

impl Statuses {
    /// Creates the file, for a new keeper.
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.write_all_at(&HEADER, 0)?;
        Ok(Self { file })
    }

    /// Opens the file of an existing keeper.
    ///
    /// # Errors
    /// Those of open(2), and `InvalidData` if it was written by another version.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Neither through a link nor waiting for the writer of a named pipe.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or(0);
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let mut header = [0; ENTRY_LENGTH];
        file.read_exact_at(&mut header, 0)?;
        if header == HEADER {
            Ok(Self { file })
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "not a statuses file of this version"))
        }
    }

    /// Every slot that is in use.
    ///
    /// # Errors
    /// Those of read(2), and `InvalidData` for an unknown state.
    pub fn all(&self) -> io::Result<Vec<(Slot, Entry)>> {
        let mut used = Vec::new();
        let mut bytes = [0; ENTRY_LENGTH];
        for index in 0..u32::try_from(MAX_SLOTS).unwrap_or(u32::MAX) {
            match self.file.read_exact_at(&mut bytes, Entry::offset(index)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                other => other?,
            }
            let entry = Entry::parse(&bytes).ok_or(io::ErrorKind::InvalidData)?;
            if entry.state != State::Free {
                used.push((Slot { index, generation: entry.generation }, entry));
            }
        }
        Ok(used)
    }

    /// What the keeper recorded for a use of a slot. `None` if the slot has another one.
    ///
    /// # Errors
    /// Those of read(2), and `InvalidData` for an unknown state.
    pub fn read(&self, slot: Slot) -> io::Result<Option<Entry>> {
        let mut bytes = [0; ENTRY_LENGTH];
        match self.file.read_exact_at(&mut bytes, Entry::offset(slot.index)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let entry = Entry::parse(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok((entry.generation == slot.generation).then_some(entry))
    }
}

impl AsFd for Statuses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
