//! The companion: passes the output of one container on to two loggers.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cofferdam_plugin_api::log_companion::{LogCompanion, Status, Taken, drop_privileges};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};

use crate::job::{Job, StreamSpool, TARGETS, discarded_of, number_of};
use crate::target::Output;

/// How long nothing is taken after the file system had no space, unless something has been passed on.
const REFUSED_DELAY: Duration = Duration::from_secs(1);

/// The program of the companion.
///
/// # Errors
/// If it cannot begin. Afterwards, what cannot be passed on is counted.
pub(crate) fn run(descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let LogCompanion { job, status, pipes, descriptors } = LogCompanion::<Job>::enter(descriptors)?;
    drop_privileges(job.owner)?;
    write(&job, &status, pipes, descriptors)
}

/// Passes the output on until both pipes have ended and the loggers have received everything. The descriptors are those of
/// the job.
pub(crate) fn write(
    job: &Job,
    status: &Status,
    [stdout, stderr]: [OwnedFd; 2],
    descriptors: Vec<OwnedFd>,
) -> io::Result<()> {
    let [spool1, spool2, null, out1, err1, out2, err2] =
        <[OwnedFd; 7]>::try_from(descriptors).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let stall = Duration::from_millis(job.stall_millis);
    let open = |index, pipe, spool: OwnedFd, outputs| {
        Stream::open(job, status, index, pipe, spool.into(), outputs, &null)
    };
    let mut streams = [open(0, stdout, spool1, [out1, out2])?, open(1, stderr, spool2, [err1, err2])?];
    loop {
        for stream in &mut streams {
            stream.pass_on(stall)?;
        }
        if streams.iter().all(Stream::is_finished) {
            return status.finish();
        }
        for (stream, events) in wait(&streams, stall)?.into_iter().enumerate() {
            if events.contains(PollFlags::IN) {
                streams[stream].take()?;
            } else if !events.is_empty() {
                streams[stream].pipe = None;
            }
        }
    }
}

/// Waits until there is something to do. Returns the events of the pipes.
fn wait(streams: &[Stream<'_>; 2], stall: Duration) -> io::Result<[PollFlags; 2]> {
    let mut polled = Vec::new();
    let mut indices = Vec::new();
    let mut timeout: Option<Duration> = None;
    for (index, stream) in streams.iter().enumerate() {
        // Its end is seen at any time, so a pipe that nothing is taken from is left out.
        if let Some(pipe) = stream.pipe.as_ref().filter(|_| stream.takes()) {
            polled.push(PollFd::new(pipe, PollFlags::IN));
            indices.push(index);
        }
    }
    for stream in streams {
        if stream.pipe.is_some() {
            timeout = timeout.into_iter().chain(stream.retries_in()).min();
        }
        for output in &stream.outputs {
            let Some(stalls_in) = output.stalls_in(stall) else { continue };
            polled.push(PollFd::new(&output.fd, PollFlags::OUT));
            // It is waited for only while it holds the container up.
            if !stream.takes() {
                timeout = timeout.into_iter().chain([stalls_in]).min();
            }
        }
    }
    let timeout =
        timeout.map(|timeout| Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut events = [PollFlags::empty(); 2];
    for (index, polled) in indices.into_iter().zip(&polled) {
        events[index] = polled.revents();
    }
    Ok(events)
}

/// One stream of the container.
struct Stream<'a> {
    status: &'a Status,
    index: usize,
    /// `None` at its end.
    pipe: Option<OwnedFd>,
    spool: StreamSpool<'a>,
    outputs: [Output; TARGETS],
    null: &'a OwnedFd,
    /// How much is kept.
    max_buffer: u64,
    /// Bytes that no logger has received, as they could not be kept.
    discarded: u64,
    /// The file system had no space; until then, nothing is taken.
    refused_until: Option<Instant>,
}

impl<'a> Stream<'a> {
    fn open(
        job: &Job,
        status: &'a Status,
        index: usize,
        pipe: OwnedFd,
        spool: File,
        [first, second]: [OwnedFd; TARGETS],
        null: &'a OwnedFd,
    ) -> io::Result<Self> {
        let outputs = [Output::open(first, status, 0, index)?, Output::open(second, status, 1, index)?];
        let stream = Self {
            status,
            index,
            pipe: Some(pipe),
            spool: StreamSpool::open(spool, status, number_of(index), job.max_buffer)?,
            outputs,
            null,
            max_buffer: job.max_buffer,
            discarded: status.numbers()?[discarded_of(index)],
            refused_until: None,
        };
        // The last companion may have been killed between the two.
        status.set_lost(index, stream.lost())?;
        Ok(stream)
    }

    /// Whether something is taken from the pipe.
    fn takes(&self) -> bool {
        self.spool.space() > 0 && self.retries_in().is_none_or(|left| left.is_zero())
    }

    /// How long nothing is taken, as the file system had no space; `None` if it had.
    fn retries_in(&self) -> Option<Duration> {
        Some(self.refused_until?.saturating_duration_since(Instant::now()))
    }

    fn is_drained(&self) -> bool {
        (0..TARGETS).all(|target| self.spool.is_drained(target))
    }

    /// Whether nothing more is to be done.
    fn is_finished(&self) -> bool {
        self.pipe.is_none() && self.is_drained()
    }

    /// Passes on what there is, as far as the loggers take it. One that has taken nothing for too long loses what there is no
    /// space for.
    fn pass_on(&mut self, stall: Duration) -> io::Result<()> {
        let before = self.lost();
        for (target, output) in self.outputs.iter_mut().enumerate() {
            let position = self.spool.position(target);
            output.write(&mut self.spool, self.status)?;
            if self.spool.position(target) > position {
                self.refused_until = None;
            }
        }
        if !self.takes() {
            // The one that is behind the other holds it up.
            let first = (0..TARGETS).map(|target| self.spool.position(target)).min().unwrap_or_default();
            for (target, output) in self.outputs.iter_mut().enumerate() {
                let position = self.spool.position(target);
                let is_stuck = output.stalls_in(stall).is_some_and(|left| left.is_zero());
                if position == first && is_stuck {
                    // Half of the buffer, so that not every byte is skipped by itself.
                    let bytes = (self.spool.end() - position).min(self.max_buffer / 2);
                    output.skip(&mut self.spool, self.status, bytes)?;
                    self.refused_until = None;
                }
            }
        }
        if self.lost() != before {
            self.status.set_lost(self.index, self.lost())?;
        }
        Ok(())
    }

    fn lost(&self) -> u64 {
        self.outputs.iter().map(Output::lost).sum::<u64>() + self.discarded
    }

    /// Takes what is in the pipe, as far as it may be kept.
    fn take(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let available = ioctl_fionread(pipe)?;
        if available == 0 {
            return Ok(());
        }
        match self.spool.take(pipe, available)? {
            Taken::Done => {
                self.refused_until = None;
                Ok(())
            }
            // There may be when something has been passed on.
            Taken::Refused(_) if !self.is_drained() => {
                self.refused_until = Some(Instant::now() + REFUSED_DELAY);
                Ok(())
            }
            Taken::Refused(errno) => self.discard(available, errno),
        }
    }

    /// Removes bytes from the pipe.
    fn discard(&mut self, bytes: u64, errno: Errno) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        self.status.set_error(self.index, Some(errno.raw_os_error()))?;
        // Counted before, as by the call.
        self.status.set_numbers(discarded_of(self.index), &[self.discarded + bytes])?;
        let discarded = self.status.discard(self.index, (pipe, self.null), self.lost(), bytes)?;
        self.discarded += discarded;
        self.status.set_numbers(discarded_of(self.index), &[self.discarded])
    }
}
