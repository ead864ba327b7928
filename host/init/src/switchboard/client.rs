//! A client that is attached to a container.

use super::ring::Ring;
use crate::streams::{HEADER, Header, Kind, MAX_INPUT, parse_size};
use crate::sys::{self, Errno, Fd, Wanted};

/// A connection.
pub(crate) struct Client {
    socket: Fd,
    /// How far it has read the output; `None` if it wants none.
    position: Option<u64>,
    /// The frame that it is sending, with its header.
    frame: [u8; HEADER + MAX_INPUT],
    received: usize,
    /// How much of the frame's data was passed on.
    passed: usize,
    /// Its socket is full.
    is_full: bool,
}

/// What a client wants.
pub(crate) enum Request<'a> {
    /// The sum of `WITH_OUTPUT` and `HAS_ENDED`.
    Attach(u8),
    /// To write to standard input. What is left of the data after [`Client::passed`].
    Input(&'a [u8]),
    /// To end standard input.
    EndOfInput,
    /// To set the size of the terminal: rows and columns.
    Resize(u16, u16),
}

/// It has gone, or has sent what is no frame.
pub(crate) struct Gone;

impl Client {
    pub(crate) const fn new(socket: Fd) -> Self {
        Self {
            socket,
            position: None,
            frame: [0; HEADER + MAX_INPUT],
            received: 0,
            passed: 0,
            is_full: false,
        }
    }

    pub(crate) const fn socket(&self) -> Fd {
        self.socket
    }

    /// The oldest output that is kept for it.
    pub(crate) const fn position(&self) -> Option<u64> {
        self.position
    }

    pub(crate) fn wanted(&self) -> Wanted {
        // While a frame waits to be passed on, nothing is read: the client has to wait as well.
        match (matches!(self.next(), Ok(None)), self.is_full) {
            (true, true) => Wanted::Both,
            (true, false) => Wanted::Read,
            (false, true) => Wanted::Write,
            (false, false) => Wanted::Nothing,
        }
    }

    /// Sends output, as far as possible without waiting.
    pub(crate) fn write(&mut self, ring: &Ring) -> Result<(), Gone> {
        let Some(position) = &mut self.position else { return Ok(()) };
        while *position < ring.end() {
            match sys::write(self.socket, ring.from(*position)) {
                Ok(written) => *position += written as u64,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.is_full = true;
                    return Ok(());
                }
                Err(_) => return Err(Gone),
            }
        }
        self.is_full = false;
        Ok(())
    }

    /// Tells a client without output that the streams have ended. There is space, as nothing else was sent to it.
    pub(crate) fn tell_end(&self) {
        if self.position.is_none() {
            let _ = sys::write(self.socket, &Header { kind: Kind::End, length: 0 }.encode());
        }
    }

    /// Reads what it has sent, up to the end of a frame. Does not wait.
    pub(crate) fn read(&mut self) -> Result<(), Gone> {
        while let Ok(None) = self.next() {
            let wanted = self.expected_length();
            let space = self.frame.get_mut(self.received..wanted).unwrap_or_default();
            match sys::read(self.socket, space) {
                Ok(0) => return Err(Gone),
                Ok(read) => self.received += read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        self.next().map(drop)
    }

    /// The request that was received completely.
    pub(crate) fn next(&self) -> Result<Option<Request<'_>>, Gone> {
        if self.header().is_some_and(|header| header.is_none()) {
            return Err(Gone);
        }
        let Some((header, data)) = self.complete() else { return Ok(None) };
        match header.kind {
            Kind::Input => Ok(Some(Request::Input(data.get(self.passed..).unwrap_or_default()))),
            Kind::EndOfInput => Ok(Some(Request::EndOfInput)),
            Kind::Resize => {
                parse_size(data).map(|(rows, columns)| Some(Request::Resize(rows, columns))).ok_or(Gone)
            }
            Kind::Attach => Ok(Some(Request::Attach(data.first().copied().unwrap_or(0)))),
            Kind::Stdout | Kind::Stderr | Kind::End => Err(Gone),
        }
    }

    /// It wants output from this position on.
    pub(crate) fn attach(&mut self, position: u64) {
        self.position.get_or_insert(position);
    }

    /// More of the current request is done.
    pub(crate) fn pass(&mut self, bytes: usize) {
        self.passed += bytes;
    }

    /// The current request is done.
    pub(crate) fn finish_request(&mut self) {
        (self.received, self.passed) = (0, 0);
    }

    /// The header, as soon as it is there; `Some(None)` if it is none of a client's.
    fn header(&self) -> Option<Option<Header>> {
        let bytes = self.frame.first_chunk::<HEADER>().filter(|_| self.received >= HEADER)?;
        let header = Header::parse(*bytes);
        Some(header.filter(|header| {
            let is_output = matches!(header.kind, Kind::Stdout | Kind::Stderr | Kind::End);
            !is_output && usize::from(header.length) <= MAX_INPUT
        }))
    }

    fn expected_length(&self) -> usize {
        HEADER + self.header().flatten().map_or(0, |header| usize::from(header.length))
    }

    fn complete(&self) -> Option<(Header, &[u8])> {
        let header = self.header().flatten()?;
        let data = self.frame.get(HEADER..self.received)?;
        (data.len() == usize::from(header.length)).then_some((header, data))
    }
}
