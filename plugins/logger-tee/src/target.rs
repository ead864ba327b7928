//! One stream of one logger: what it has received, and what it has lost.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cofferdam_plugin_api::log_companion::{self, Status};
use rustix::io::{Errno, write};

use crate::job::{Job, StreamSpool, lost_of};

/// Bytes that are written at a time.
const CHUNK: usize = 64 << 10;

/// One stream of one logger.
#[derive(Debug)]
pub(crate) struct Output {
    /// Number of the logger.
    target: usize,
    stream: usize,
    pub(crate) fd: OwnedFd,
    /// Since when the logger has read nothing, if the last write had to wait.
    full_since: Option<Instant>,
    /// Bytes that it has not received.
    lost: u64,
    /// Those of them that it has not been informed of, and why.
    untold: u64,
    errno: Option<Errno>,
}

impl Output {
    pub(crate) fn open(fd: OwnedFd, status: &Status, target: usize, stream: usize) -> io::Result<Self> {
        let lost = status.numbers()?[lost_of(target, stream)];
        Ok(Self { target, stream, fd, full_since: None, lost, untold: 0, errno: None })
    }

    /// How much longer it may read nothing; `None` if it does not have to be waited for.
    pub(crate) fn stalls_in(&self, timeout: Duration) -> Option<Duration> {
        Some(timeout.saturating_sub(self.full_since?.elapsed()))
    }

    /// Bytes that it has not received.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes what is new, as far as possible without waiting. What cannot be written, as on a full disk, is counted.
    pub(crate) fn write(&mut self, spool: &mut StreamSpool<'_>, status: &Status) -> io::Result<()> {
        let mut bytes = vec![0; CHUNK];
        while !spool.is_drained(self.target) {
            if self.untold > 0 && !self.tell_loss() {
                return Ok(());
            }
            let count = spool.read(self.target, 0, &mut bytes)?;
            match write(&self.fd, &bytes[..count]) {
                Ok(written) => {
                    self.full_since = None;
                    spool.advance(self.target, written as u64)?;
                }
                Err(Errno::AGAIN) => {
                    self.full_since.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(errno) => {
                    (self.full_since, self.errno) = (None, Some(errno));
                    self.skip(spool, status, count as u64)?;
                }
            }
        }
        Ok(())
    }

    /// Skips the oldest bytes. They are counted before, so that they are counted if this process is killed meanwhile.
    pub(crate) fn skip(
        &mut self,
        spool: &mut StreamSpool<'_>,
        status: &Status,
        bytes: u64,
    ) -> io::Result<()> {
        self.lost += bytes;
        self.untold += bytes;
        status.set_numbers(lost_of(self.target, self.stream), &[self.lost])?;
        status.set_error(self.stream, self.errno.map(Errno::raw_os_error))?;
        spool.advance(self.target, bytes)?;
        if spool.is_drained(self.target) {
            self.full_since = None;
        }
        Ok(())
    }

    /// Says in the log how much is missing. Returns whether it does.
    fn tell_loss(&mut self) -> bool {
        let reason = self.errno.map_or_else(
            || <Job as log_companion::Job>::LOST_WITHOUT_ERROR.to_owned(),
            |errno| io::Error::from(errno).to_string(),
        );
        let bytes = self.untold;
        let line = format!(
            "\n[cofferdam: {bytes} bytes of output could not be passed on to this logger: {reason}]\n"
        );
        // Shorter than what a pipe takes as a whole, or not at all.
        match write(&self.fd, line.as_bytes()) {
            Ok(_) => {
                (self.untold, self.errno) = (0, None);
                true
            }
            Err(Errno::AGAIN) => {
                self.full_since.get_or_insert_with(Instant::now);
                false
            }
            // As long as nothing can be written, that is no reason to lose what follows in another way.
            Err(_) => true,
        }
    }
}
