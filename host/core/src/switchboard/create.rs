//! The streams of a container that has a switchboard.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use cofferdam_init::protocol::Switchboard;
use cofferdam_linux::process::Process;
use cofferdam_plugin_model::Tty;
use nix::unistd::geteuid;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{counts, listener};
use crate::keeper::{KeeperError, Keepers};
use crate::model::Request;

/// What a container's streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Pipes; for standard input only if clients may write to it.
    Pipes {
        /// They may.
        input: bool,
    },
    /// A terminal.
    Terminal(Tty),
}

impl Streams {
    /// The streams of a container with a switchboard. `None` if it has none.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        match (request.tty, request.interactive, request.attached) {
            (Some(tty), ..) => Some(Self::Terminal(tty)),
            (None, false, false) => None,
            (None, input, _) => Some(Self::Pipes { input }),
        }
    }
}

/// The standard streams of a container with a switchboard: the container's side.
pub(crate) struct Switched {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// The socket over which the setup process sends the terminal that it opens.
    pub(crate) terminal: Option<OwnedFd>,
    /// The process of the switchboard.
    pub(crate) process: Process,
}

impl Switched {
    /// Creates streams for a container with this user, and a switchboard that listens in `directory`. `stdin` is what
    /// the container reads if it has no input; `stdout` and `stderr` are those of the logger.
    ///
    /// # Errors
    /// The first is about the streams, the second about the keeper.
    pub(crate) fn create(
        streams: Streams,
        directory: &Path,
        keepers: &Arc<Keepers>,
        [stdin, stdout, stderr]: [OwnedFd; 3],
        (uid, gid): (u32, u32),
    ) -> Result<io::Result<Self>, KeeperError> {
        let (listener, counts) = match listener(directory).and_then(|it| Ok((it, counts::create(directory)?)))
        {
            Ok(files) => files,
            Err(error) => return Ok(Err(error)),
        };
        let logs = match [&stdout, &stderr].map(own_description) {
            [Ok(stdout), Ok(stderr)] => [stdout, stderr],
            [Err(error), _] | [_, Err(error)] => return Ok(Err(error)),
        };
        let request = |request: Switchboard, ends: &[&OwnedFd]| {
            let files = [&listener, &logs[0], &logs[1], &counts];
            let descriptors: Vec<BorrowedFd<'_>> = files.iter().chain(ends).map(|end| end.as_fd()).collect();
            keepers.create_switchboard(request, &descriptors)
        };
        match streams {
            Streams::Terminal(_) => {
                let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let (ours, theirs) = match pair {
                    Ok(pair) => pair,
                    Err(error) => return Ok(Err(error.into())),
                };
                let process = request(Switchboard { terminal: true, ..Switchboard::default() }, &[&theirs])?;
                Ok(Ok(Self { stdin, stdout, stderr, terminal: Some(ours), process }))
            }
            Streams::Pipes { input } => {
                let pipes = || {
                    let input = input.then(|| pipe_of(uid, gid)).transpose()?;
                    Ok((pipe_of(uid, gid)?, pipe_of(uid, gid)?, input))
                };
                let ((out, stdout2), (err, stderr2), input) = match pipes() {
                    Ok(pipes) => pipes,
                    Err(error) => return Ok(Err(error)),
                };
                let (stdin, writer) = match input {
                    Some((reader, writer)) => (reader, Some(writer)),
                    None => (stdin, None),
                };
                let ends: Vec<&OwnedFd> = [&out, &err].into_iter().chain(&writer).collect();
                let process =
                    request(Switchboard { input: writer.is_some(), ..Switchboard::default() }, &ends)?;
                Ok(Ok(Self { stdin, stdout: stdout2, stderr: stderr2, terminal: None, process }))
            }
        }
    }
}

/// Creates a switchboard for a container of an engine, which listens in `directory`. `stdout` and `stderr` are those of the
/// logger; `connection` carries both streams, in frames of the engine, and input if `input` says so.
///
/// # Errors
/// The first is about the streams, the second about the keeper.
pub(crate) fn switch_engine(
    directory: &Path,
    keepers: &Arc<Keepers>,
    [stdout, stderr]: [&OwnedFd; 2],
    connection: &OwnedFd,
    input: bool,
) -> Result<io::Result<Process>, KeeperError> {
    let files = || {
        let logs = [own_description(stdout)?, own_description(stderr)?];
        Ok((listener(directory)?, logs, counts::create(directory)?))
    };
    let (listener, [stdout, stderr], counts) = match files() {
        Ok(files) => files,
        Err(error) => return Ok(Err(error)),
    };
    let descriptors = [&listener, &stdout, &stderr, &counts, connection].map(AsFd::as_fd);
    let request = Switchboard { input, engine: true, ..Switchboard::default() };
    keepers.create_switchboard(request, &descriptors).map(Ok)
}

/// Where a logger wants output. A pipe is opened again, as the switchboard does not wait for it: the logger may have given
/// the same one to containers that do. Also for reading if the logger's descriptor is: then it can be written to while
/// nobody else reads it.
fn own_description(log: &OwnedFd) -> io::Result<OwnedFd> {
    if FileType::from_raw_mode(fstat(log)?.st_mode) != FileType::Fifo {
        return log.try_clone();
    }
    let path = format!("/proc/self/fd/{}", log.as_raw_fd());
    let access = fcntl_getfl(log)? & OFlags::RWMODE;
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(opened) => Ok(opened),
        // It belongs to another user. Nobody reads it any more: as without a switchboard, writing fails.
        Err(Errno::ACCESS | Errno::NXIO) => log.try_clone(),
        Err(errno) => Err(errno.into()),
    }
}

/// A pipe that a user can open again through `/dev/stdout`, like a terminal or a file.
fn pipe_of(uid: u32, gid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    if geteuid().is_root() {
        fchown(&reader, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok((reader, writer))
}
