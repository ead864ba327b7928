//! The companion: moves the output of one container from its pipes to its files.
//!
//! ```text
//! container ══ pipe ══▶ splice ══▶ stdout ── rotate ──▶ stdout.1 ── compress ──▶ stdout.1.gz
//!                                  stdout.times
//! ```
//!
//! What cannot be written, as on a full disk, is removed from the pipe and counted, so that the container goes on; the file
//! says how much is missing as soon as it can.

mod compression;
mod directory;
mod log;
mod times;

use std::io;
use std::os::fd::OwnedFd;

use cofferdam_plugin_api::log_companion::{self, LogCompanion, STREAMS, Status, drop_privileges};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};

use self::directory::Directory;
use self::log::Log;
use crate::job::{Job, State};
use crate::options::Options;

/// The program of the companion.
///
/// # Errors
/// If it cannot begin. Afterwards, errors are counted bytes.
pub(crate) fn run(descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let LogCompanion { job: State { job, .. }, status, pipes, descriptors } =
        LogCompanion::enter(descriptors)?;
    let descriptors = <[OwnedFd; 2]>::try_from(descriptors);
    let [sandbox, null] = descriptors.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    drop_privileges(job.owner)?;
    write(&job, &status, pipes, sandbox, &null)
}

/// Moves the output until both pipes have ended.
pub(crate) fn write(
    job: &Job,
    status: &Status,
    pipes: [OwnedFd; 2],
    sandbox: OwnedFd,
    null: &OwnedFd,
) -> io::Result<()> {
    let directory = Directory::new(sandbox);
    let lost = status.read()?.lost;
    let stream = |(index, pipe)| Stream {
        index,
        pipe,
        files: Files { directory: &directory, options: &job.options, index, log: None },
        status,
        null,
        lost: lost[index],
        unreported: 0,
        error: None,
    };
    let mut streams: Vec<Stream<'_>> = pipes.into_iter().enumerate().map(stream).collect();
    let mut failed = None;
    // Also for a stream on which nothing is written.
    for stream in &mut streams {
        // Otherwise it is tried again when there is output.
        let _ = stream.files.log();
    }
    while !streams.is_empty() {
        let timeout = streams.iter().any(|stream| stream.files.is_compressing()).then(Timespec::default);
        let mut ready: Vec<PollFd<'_>> =
            streams.iter().map(|stream| PollFd::new(&stream.pipe, PollFlags::IN)).collect();
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events: Vec<PollFlags> = ready.iter().map(PollFd::revents).collect();
        let mut open = Vec::new();
        for (mut stream, events) in streams.into_iter().zip(events) {
            if events.contains(PollFlags::IN) {
                if let Err(error) = stream.take() {
                    // The other one goes on.
                    failed = Some(error);
                    continue;
                }
            } else if !events.is_empty() {
                stream.end();
                continue;
            }
            if let Some(log) = &mut stream.files.log {
                log.compress();
            }
            open.push(stream);
        }
        streams = open;
    }
    failed.map_or_else(|| status.finish(), Err)
}

/// One stream of the container.
struct Stream<'a> {
    index: usize,
    pipe: OwnedFd,
    files: Files<'a>,
    status: &'a Status,
    null: &'a OwnedFd,
    /// Bytes that are in no file.
    lost: u64,
    /// Those of them that the file does not mention.
    unreported: u64,
    /// Why.
    error: Option<i32>,
}

/// The files of a stream.
struct Files<'a> {
    directory: &'a Directory,
    options: &'a Options,
    index: usize,
    /// `None` as long as the current file can be neither opened nor created.
    log: Option<Log>,
}

impl Files<'_> {
    /// Opens them, if they are not.
    fn log(&mut self) -> io::Result<&mut Log> {
        match &mut self.log {
            Some(log) => Ok(log),
            log => {
                let Options { streams, compress, times } = self.options;
                let (name, limits) = (STREAMS[self.index], streams[self.index]);
                Ok(log.insert(Log::open(self.directory, name, limits, *compress, *times)?))
            }
        }
    }

    fn is_compressing(&self) -> bool {
        self.log.as_ref().is_some_and(Log::is_compressing)
    }
}

impl Stream<'_> {
    /// Moves what is in the pipe.
    fn take(&mut self) -> io::Result<()> {
        let available = ioctl_fionread(&self.pipe)?;
        if available == 0 {
            return Ok(());
        }
        let taken = self.report().and_then(|()| self.files.log()?.take(&self.pipe, available));
        match taken {
            Ok(taken) if taken.lost > 0 => self.count(taken.lost),
            Ok(_) => Ok(()),
            Err(error) => {
                self.error = error.raw_os_error();
                self.discard(available)
            }
        }
    }

    /// Removes bytes from the pipe.
    fn discard(&mut self, bytes: u64) -> io::Result<()> {
        let discarded = self.status.discard(self.index, (&self.pipe, self.null), self.lost, bytes)?;
        self.count(discarded)
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.lost += bytes;
        self.unreported += bytes;
        self.status.set_error(self.index, self.error)?;
        self.status.set_lost(self.index, self.lost)
    }

    /// Says in the file how much is missing.
    fn report(&mut self) -> io::Result<()> {
        if self.unreported == 0 {
            return Ok(());
        }
        let reason = self.error.map_or_else(
            || <State as log_companion::Job>::LOST_WITHOUT_ERROR.to_owned(),
            |errno| io::Error::from_raw_os_error(errno).to_string(),
        );
        let bytes = self.unreported;
        self.files.log()?.note(&format!(
            "\n[cofferdam: {bytes} bytes of output could not be written to this log: {reason}]\n"
        ))?;
        (self.unreported, self.error) = (0, None);
        Ok(())
    }

    /// The container has ended, or closed the stream.
    fn end(mut self) {
        // On a disk that is still full, only the plugin reports the loss.
        let _ = self.report();
        if let Some(log) = self.files.log {
            log.close();
        }
    }
}
