//! Where the logger wants the output.

use super::ring::Ring;
use crate::failure::Text;
use crate::streams::{HEADER, Kind};
use crate::sys::{self, Errno, Fd};

/// Targets of the two streams, and how much of the output they have received.
pub(crate) struct Log {
    targets: [Target; 2],
    position: u64,
    /// The stream of the frame at the position, and how much of its data is missing.
    frame: Option<(usize, usize)>,
}

struct Target {
    fd: Fd,
    /// Bytes that were written.
    logged: u64,
    /// The last write had to wait: the logger does not read.
    is_full: bool,
    /// Bytes that could not be written since the last message about it.
    lost: u64,
    /// Why the last of all bytes that could not be written were not; 0 if all could.
    errno: Errno,
}

impl Log {
    pub(crate) fn new(targets: [Fd; 2]) -> Self {
        let target = |fd| Target { fd, logged: 0, is_full: false, lost: 0, errno: Errno(0) };
        Self { targets: targets.map(target), position: 0, frame: None }
    }

    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes of output both targets have received.
    pub(crate) fn logged(&self) -> [u64; 2] {
        let [out, err] = &self.targets;
        [out.logged, err.logged]
    }

    /// Why something was lost last; 0 if everything could be written.
    pub(crate) fn errno(&self) -> [u32; 2] {
        let [out, err] = &self.targets;
        [out, err].map(|target| target.errno.0.unsigned_abs())
    }

    /// Those whose space has to be waited for.
    pub(crate) fn full(&self) -> [Option<Fd>; 2] {
        let [out, err] = &self.targets;
        [out, err].map(|target| target.is_full.then_some(target.fd))
    }

    /// Writes what is new, as far as possible without waiting. What cannot be written, as on a full disk, is counted,
    /// and the container goes on; the log says so as soon as it can.
    pub(crate) fn write(&mut self, ring: &Ring) {
        loop {
            let (stream, left) = match self.frame {
                Some(frame) => frame,
                None => match ring.header(self.position) {
                    None => return,
                    Some(header) => {
                        self.position += HEADER as u64;
                        (usize::from(header.kind == Kind::Stderr), usize::from(header.length))
                    }
                },
            };
            let bytes = ring.from(self.position);
            let bytes = bytes.get(..left).unwrap_or(bytes);
            let Some(target) = self.targets.get_mut(stream) else { return };
            let Some(written) = target.write(bytes) else {
                self.frame = Some((stream, left));
                return;
            };
            self.position += written as u64;
            self.frame = (written < left).then_some((stream, left - written));
        }
    }

    /// Writes what is still to be said, and closes the targets.
    pub(crate) fn close(&mut self) {
        for target in &mut self.targets {
            target.report_loss();
            sys::close(target.fd);
        }
    }
}

impl Target {
    /// Returns how many bytes are done with, `None` if the logger has to read first.
    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        if bytes.is_empty() {
            return Some(0);
        }
        self.report_loss();
        match sys::write(self.fd, bytes) {
            Ok(written) => {
                self.is_full = false;
                self.logged += written as u64;
                Some(written)
            }
            Err(Errno::AGAIN) => {
                self.is_full = true;
                None
            }
            Err(Errno::INTR) => Some(0),
            Err(errno) => {
                (self.is_full, self.errno) = (false, errno);
                self.lost += bytes.len() as u64;
                Some(bytes.len())
            }
        }
    }

    fn report_loss(&mut self) {
        if self.lost == 0 {
            return;
        }
        let mut line = Text::<160>::new();
        line.push(b"\n[cofferdam: ");
        line.push_number(self.lost);
        line.push(b" bytes of output could not be written to this log: errno ");
        line.push_number(self.errno.0.unsigned_abs());
        line.push(b"]\n");
        if sys::write(self.fd, line.as_bytes()) == Ok(line.as_bytes().len()) {
            self.lost = 0;
        }
    }
}
