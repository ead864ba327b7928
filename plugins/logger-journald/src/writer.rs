//! The companion: sends the output of one container to the journal.
//!
//! ```text
//! container ══ pipe ══ splice ══▶ spool ══ read ══▶ lines ══ datagrams ══▶ journal
//! ```

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use cofferdam_plugin_api::log_companion::{LogCompanion, STREAMS, Spool, Status, Taken, drop_privileges};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};

use crate::field;
use crate::job::{Job, Priority, WhenFull, number_of};
use crate::journal::Journal;
use crate::line::Lines;

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
    let timeout = journal.retry_in().filter(|_| waits);
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
    /// Those of them of which the journal has not been told, why, and the position up to which it is told after.
    untold: Option<Loss>,
    /// The file system had no space; nothing is taken until something has been sent.
    is_refused: bool,
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    bytes: u64,
    errno: Option<Errno>,
    after: u64,
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
            is_refused: false,
        })
    }

    /// Whether something is taken from the pipe.
    fn takes(&self) -> bool {
        self.job.when_full == WhenFull::Drop || (self.spool.space() > 0 && !self.is_refused)
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
        if self.spool.space() == 0 || self.is_refused {
            return self.discard(available, None);
        }
        match self.spool.take(pipe, available)? {
            Taken::Done => Ok(()),
            // There will be when something has been sent.
            Taken::Refused(_) if self.job.when_full == WhenFull::Wait && !self.spool.is_drained(0) => {
                self.is_refused = true;
                Ok(())
            }
            Taken::Refused(errno) => self.discard(available, Some(errno)),
        }
    }

    /// Removes bytes from the pipe. They are counted before, so that they are counted if this process is killed meanwhile.
    fn discard(&mut self, bytes: u64, errno: Option<Errno>) -> io::Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        self.status.set_lost(self.index, self.lost + bytes)?;
        let mut discarded = 0;
        while discarded < bytes {
            let length = usize::try_from(bytes - discarded).unwrap_or(usize::MAX);
            match splice(pipe, None, self.null, None, length, SpliceFlags::NONBLOCK) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(moved) => discarded += moved as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.lost += discarded;
        self.status.set_lost(self.index, self.lost)?;
        let earlier = self.untold.map_or(0, |loss| loss.bytes);
        self.untold = Some(Loss { bytes: earlier + discarded, errno, after: self.spool.end() });
        Ok(())
    }

    /// Sends what there is, as far as the journal receives it.
    fn send(&mut self, journal: &mut Journal) -> io::Result<()> {
        loop {
            // The end of a line may be lost with a gap. If more has been taken since, the line continues with that.
            let is_before_gap = self.untold.is_some_and(|loss| loss.after == self.spool.end());
            let Some(message) = self.lines.next(&self.spool, self.pipe.is_none() || is_before_gap)? else {
                break;
            };
            if self.untold.is_some_and(|loss| self.spool.position(0) >= loss.after)
                && !self.tell_loss(journal)
            {
                return Ok(());
            }
            let priority = self.job.priorities[self.index];
            let header = header(priority, self.spool.position(0), message.partial);
            let length = field::message_header(message.length);
            let parts: [&[u8]; 5] = [&self.fields, &header, &length, self.lines.bytes(message), b"\n"];
            if !journal.send(&parts.map(IoSlice::new)) {
                return Ok(());
            }
            self.spool.advance(0, message.taken() as u64)?;
            self.lines.advance(message);
            self.is_refused = false;
        }
        if self.untold.is_some_and(|loss| self.spool.position(0) >= loss.after) {
            self.tell_loss(journal);
        }
        Ok(())
    }

    /// Tells the journal how much is missing. Returns whether it knows.
    fn tell_loss(&mut self, journal: &mut Journal) -> bool {
        let Some(Loss { bytes, errno, .. }) = self.untold else { return true };
        let reason = errno.map_or_else(
            || "the journal did not receive them, and no more were kept".to_owned(),
            |errno| io::Error::from(errno).to_string(),
        );
        let mut entry = header(Priority::Warning, self.spool.position(0), false);
        field::append(&mut entry, "COFFERDAM_LOST_BYTES", bytes.to_string().as_bytes());
        let message = format!("[cofferdam: {bytes} bytes of output are lost: {reason}]");
        field::append(&mut entry, "MESSAGE", message.as_bytes());
        let sent = journal.send(&[IoSlice::new(&self.fields), IoSlice::new(&entry)]);
        if sent {
            self.untold = None;
        }
        sent
    }
}

/// The fields that differ between the entries of a stream.
fn header(priority: Priority, position: u64, partial: bool) -> Vec<u8> {
    let mut header = Vec::with_capacity(96);
    field::append(&mut header, "PRIORITY", priority.number().as_bytes());
    field::append(&mut header, "COFFERDAM_OFFSET", position.to_string().as_bytes());
    if partial {
        field::append(&mut header, "CONTAINER_PARTIAL_MESSAGE", b"true");
    }
    header
}
