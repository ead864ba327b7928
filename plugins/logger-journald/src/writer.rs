//! The companion: sends the output of one container to the journal.
//!
//! ```text
//! container ══ pipe ══ splice ══▶ spool ══ read ══▶ lines ══ datagrams ══▶ journal
//! ```

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cofferdam_plugin_api::log_companion::{
    self, LogCompanion, STREAMS, Spool, Status, Taken, drop_privileges,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};

use crate::field;
use crate::job::{Job, Priority, WhenFull, number_of};
use crate::journal::Journal;
use crate::line::Lines;

/// How long nothing is taken after the file system had no space, unless something has been sent.
const REFUSED_DELAY: Duration = Duration::from_secs(1);

/// The program of the companion.
///
/// # Errors
/// If it cannot begin. Afterwards, what cannot be sent is kept or counted.
pub(crate) fn run(descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let LogCompanion { job, status, pipes, descriptors } = LogCompanion::<Job>::enter(descriptors)?;
    let descriptors = <[OwnedFd; 3]>::try_from(descriptors);
    let [stdout, stderr, null] = descriptors.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    drop_privileges(job.owner)?;
    write(&job, &status, pipes, [stdout.into(), stderr.into()], &null)
}

/// Sends the output until both pipes have ended and the journal has received everything.
pub(crate) fn write(
    job: &Job,
    status: &Status,
    pipes: [OwnedFd; 2],
    spools: [File; 2],
    null: &OwnedFd,
) -> io::Result<()> {
    let mut journal = Journal::new(job.socket.clone());
    let mut streams = Vec::new();
    for (index, (pipe, spool)) in pipes.into_iter().zip(spools).enumerate() {
        streams.push(Stream::open(job, status, index, pipe, spool, null)?);
    }
    loop {
        for stream in &mut streams {
            stream.send(&mut journal)?;
        }
        if streams.iter().all(Stream::is_finished) {
            return status.finish();
        }
        let ready = wait(&streams, &journal)?;
        for (stream, events) in streams.iter_mut().zip(ready) {
            if events.contains(PollFlags::IN) {
                stream.take()?;
            } else if !events.is_empty() {
                stream.pipe = None;
            }
        }
    }
}

/// Waits until there is something to do. Returns the events of the pipes.
fn wait(streams: &[Stream<'_>], journal: &Journal) -> io::Result<Vec<PollFlags>> {
    let waits = streams.iter().any(Stream::has_unsent);
    // Its end is seen at any time, so a pipe that nothing is taken from is left out.
    let pipes = streams.iter().map(|stream| stream.pipe.as_ref().filter(|_| stream.takes()));
    let mut polled = Vec::new();
    let mut indices = Vec::new();
    for (index, pipe) in pipes.enumerate() {
        if let Some(pipe) = pipe {
            polled.push(PollFd::new(pipe, PollFlags::IN));
            indices.push(index);
        }
    }
    let full = journal.full().filter(|_| waits);
    if let Some(socket) = &full {
        polled.push(PollFd::new(socket, PollFlags::OUT));
    }
    let refused = streams.iter().filter(|stream| stream.pipe.is_some()).filter_map(Stream::retries_in);
    let timeout = refused.chain(journal.retry_in().filter(|_| waits)).min();
    let timeout =
        timeout.map(|timeout| Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut events = vec![PollFlags::empty(); streams.len()];
    for (index, polled) in indices.into_iter().zip(&polled) {
        events[index] = polled.revents();
    }
    Ok(events)
}

/// One stream of the container.
struct Stream<'a> {
    job: &'a Job,
    status: &'a Status,
    index: usize,
    /// `None` at its end.
    pipe: Option<OwnedFd>,
    spool: Spool<'a>,
    lines: Lines,
    null: &'a OwnedFd,
    /// The fields of all its entries.
    fields: Vec<u8>,
    /// Bytes that are lost.
    lost: u64,
    /// Those of them of which the journal has not been told. They follow what is kept.
    untold: Option<Loss>,
    /// The file system had no space; until then, nothing is taken.
    refused_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    bytes: u64,
    /// Why, if it is not that the journal did not receive them.
    errno: Option<Errno>,
}

impl<'a> Stream<'a> {
    fn open(
        job: &'a Job,
        status: &'a Status,
        index: usize,
        pipe: OwnedFd,
        spool: File,
        null: &'a OwnedFd,
    ) -> io::Result<Self> {
        let mut fields = Vec::new();
        for (name, value) in &job.fields {
            field::append(&mut fields, name, value.as_bytes());
        }
        field::append(&mut fields, "STREAM", STREAMS[index].to_ascii_uppercase().as_bytes());
        Ok(Self {
            job,
            status,
            index,
            pipe: Some(pipe),
            spool: Spool::open(spool, status, number_of(index), job.max_buffer)?,
            lines: Lines::new(usize::try_from(job.max_line).unwrap_or(usize::MAX)),
            null,
            fields,
            lost: status.read()?.lost[index],
            untold: None,
            refused_until: None,
        })
    }

    /// Whether something is taken from the pipe.
    fn takes(&self) -> bool {
        self.job.when_full == WhenFull::Drop
            || (self.spool.space() > 0
                && self.untold.is_none()
                && self.retries_in().is_none_or(|left| left.is_zero()))
    }

    /// How long nothing is taken, as the file system had no space; `None` if it had.
    fn retries_in(&self) -> Option<Duration> {
        Some(self.refused_until?.saturating_duration_since(Instant::now()))
    }

    /// Whether there may be something that the journal has not received.
    fn has_unsent(&self) -> bool {
        !self.spool.is_drained(0) || self.untold.is_some()
    }

    /// Whether nothing more is to be done.
    fn is_finished(&self) -> bool {
        self.pipe.is_none() && !self.has_unsent()
    }

    /// Takes what is in the pipe, as far as it may be kept.
    fn take(&mut self) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let available = ioctl_fionread(pipe)?;
        if available == 0 {
            return Ok(());
        }
        // There is one gap at a time, so that each is told at its place.
        if self.spool.space() == 0 || self.untold.is_some() {
            return self.discard(available, self.untold.and_then(|loss| loss.errno));
        }
        match self.spool.take(pipe, available)? {
            Taken::Done => {
                self.refused_until = None;
                Ok(())
            }
            Taken::Refused(_) if self.job.when_full == WhenFull::Wait && !self.spool.is_drained(0) => {
                self.refused_until = Some(Instant::now() + REFUSED_DELAY);
                Ok(())
            }
            Taken::Refused(errno) => self.discard(available, Some(errno)),
        }
    }

    /// Removes bytes from the pipe.
    fn discard(&mut self, bytes: u64, errno: Option<Errno>) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        self.status.set_error(self.index, errno.map(Errno::raw_os_error))?;
        let discarded = self.status.discard(self.index, (pipe, self.null), self.lost, bytes)?;
        self.lost += discarded;
        let earlier = self.untold.map_or(0, |loss| loss.bytes);
        self.untold = Some(Loss { bytes: earlier + discarded, errno });
        Ok(())
    }

    /// Sends what there is, as far as the journal receives it.
    fn send(&mut self, journal: &mut Journal) -> io::Result<()> {
        // A line ends at a gap.
        while let Some(message) =
            self.lines.next(&self.spool, self.pipe.is_none() || self.untold.is_some())?
        {
            let priority = self.job.priorities[self.index];
            let mut header = header(priority, message.partial);
            field::append(&mut header, "COFFERDAM_OFFSET", self.spool.position(0).to_string().as_bytes());
            let length = field::message_header(message.length);
            let parts: [&[u8]; 5] = [&self.fields, &header, &length, self.lines.bytes(message), b"\n"];
            if !journal.send(&parts.map(IoSlice::new)) {
                return Ok(());
            }
            self.spool.advance(0, message.taken() as u64)?;
            self.lines.advance(message);
            self.refused_until = None;
        }
        if let Some(loss) = self.untold
            && self.tell_loss(journal, loss)
        {
            self.untold = None;
        }
        Ok(())
    }

    /// Tells the journal how much is missing. Returns whether it knows.
    fn tell_loss(&self, journal: &mut Journal, Loss { bytes, errno }: Loss) -> bool {
        let reason = errno.map_or_else(
            || <Job as log_companion::Job>::LOST_WITHOUT_ERROR.to_owned(),
            |errno| io::Error::from(errno).to_string(),
        );
        let mut entry = header(Priority::Warning, false);
        field::append(&mut entry, "COFFERDAM_LOST_BYTES", bytes.to_string().as_bytes());
        let message = format!("[cofferdam: {bytes} bytes of output are lost: {reason}]");
        field::append(&mut entry, "MESSAGE", message.as_bytes());
        journal.send(&[IoSlice::new(&self.fields), IoSlice::new(&entry)])
    }
}

/// The fields that differ between the entries of a stream, without its position.
fn header(priority: Priority, partial: bool) -> Vec<u8> {
    let mut header = Vec::with_capacity(96);
    field::append(&mut header, "PRIORITY", priority.number().as_bytes());
    if partial {
        field::append(&mut header, "CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    header
}
