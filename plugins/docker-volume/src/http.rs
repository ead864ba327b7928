//! One HTTP request on a connection of its own, with a time limit for all of it and bounds for what is read.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use httparse::{EMPTY_HEADER, Response as Head, Status, parse_chunk_size};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

use crate::address::Address;

/// Most bytes before the body of a response.
const MAX_HEAD: usize = 16 << 10;

/// Most bytes of a body.
pub const MAX_BODY: usize = 1 << 20;

/// Most bytes of a body in chunks, with their sizes.
const MAX_CHUNKED: usize = 2 * MAX_BODY;

/// Most headers of a response.
const MAX_HEADERS: usize = 64;

pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug)]
pub enum Failed {
    /// Nothing was sent.
    NotConnected(io::Error),
    /// The server may have done what it was told.
    NoResponse(io::Error),
}

/// Sends a request with a JSON body.
pub fn post(address: &Address, path: &str, body: &[u8], timeout: Duration) -> Result<Response, Failed> {
    let end = End::after(timeout);
    let socket = open(address, &end).map_err(Failed::NotConnected)?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    let mut connection = Connection { socket, end, received: Vec::new() };
    connection.send(&request).and_then(|()| connection.response()).map_err(Failed::NoResponse)
}

/// When the whole exchange has to be over.
struct End(Instant);

impl End {
    fn after(timeout: Duration) -> Self {
        // What cannot be represented is far away.
        let far = || Instant::now() + Duration::from_secs(1 << 30);
        Self(Instant::now().checked_add(timeout).unwrap_or_else(far))
    }

    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.0.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(timed_out()) } else { Ok(remaining) }
    }
}

fn timed_out() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "it did not answer in time")
}

fn open(address: &Address, end: &End) -> io::Result<OwnedFd> {
    match address {
        Address::Unix(path) => {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            let address = SocketAddrUnix::new(path.as_path())?;
            // It also limits connect(2), which waits while the queue of the server is full.
            retry(|| {
                set_socket_timeout(&socket, Timeout::Send, Some(end.remaining()?))?;
                connect(&socket, &address).map_err(of_socket)
            })?;
            Ok(socket)
        }
        Address::Tcp(address) => Ok(TcpStream::connect_timeout(address, end.remaining()?)?.into()),
    }
}

struct Connection {
    socket: OwnedFd,
    end: End,
    /// What was received and not used yet.
    received: Vec<u8>,
}

impl Connection {
    fn send(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let sent = retry(|| {
                set_socket_timeout(&self.socket, Timeout::Send, Some(self.end.remaining()?))?;
                send(&self.socket, data, SendFlags::NOSIGNAL).map_err(of_socket)
            })?;
            data = data.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Receives something more. Returns whether there was more.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 8192];
        let length = retry(|| {
            set_socket_timeout(&self.socket, Timeout::Recv, Some(self.end.remaining()?))?;
            rustix::io::read(&self.socket, &mut buffer).map_err(of_socket)
        })?;
        self.received.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    fn require(&mut self) -> io::Result<()> {
        if self.receive()? {
            Ok(())
        } else {
            Err(invalid("it closed the connection in the middle of its answer"))
        }
    }

    fn response(&mut self) -> io::Result<Response> {
        loop {
            let (status, framing) = self.head()?;
            let body = match (status, framing) {
                (..100, _) => return Err(invalid("its answer is not HTTP: invalid status")),
                // An interim response.
                (100..=199, _) => continue,
                (204 | 304, _) => Vec::new(),
                (_, Framing::Length(length)) => self.exactly(length)?,
                (_, Framing::Chunked) => self.chunked()?,
                (_, Framing::UntilEnd) => self.until_end()?,
            };
            return Ok(Response { status, body });
        }
    }

    fn head(&mut self) -> io::Result<(u16, Framing)> {
        loop {
            let mut headers = [EMPTY_HEADER; MAX_HEADERS];
            let mut head = Head::new(&mut headers);
            match head.parse(&self.received) {
                Ok(Status::Complete(length)) => {
                    let found = (head.code.unwrap_or_default(), framing(&head)?);
                    self.received.drain(..length);
                    return Ok(found);
                }
                Ok(Status::Partial) if self.received.len() < MAX_HEAD => self.require()?,
                Ok(Status::Partial) => return Err(invalid("the head of its answer is too long")),
                Err(error) => return Err(invalid(format!("its answer is not HTTP: {error}"))),
            }
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > MAX_BODY {
            return Err(too_long());
        }
        while self.received.len() < length {
            self.require()?;
        }
        self.received.truncate(length);
        Ok(std::mem::take(&mut self.received))
    }

    fn until_end(&mut self) -> io::Result<Vec<u8>> {
        while self.receive()? {
            if self.received.len() > MAX_BODY {
                return Err(too_long());
            }
        }
        Ok(std::mem::take(&mut self.received))
    }

    fn chunked(&mut self) -> io::Result<Vec<u8>> {
        let (mut body, mut at) = (Vec::new(), 0);
        loop {
            let rest = self.received.get(at..).unwrap_or_default();
            match parse_chunk_size(rest) {
                // Trailers are not read.
                Ok(Status::Complete((_, 0))) => return Ok(body),
                Ok(Status::Complete((start, length))) => {
                    let length = usize::try_from(length).ok();
                    let length = length.filter(|length| *length <= MAX_BODY - body.len());
                    let Some(length) = length else { return Err(too_long()) };
                    let chunk = at + start..at + start + length;
                    // After the chunk is the end of a line.
                    if self.received.len() >= chunk.end + 2 {
                        at = chunk.end + 2;
                        body.extend_from_slice(&self.received[chunk]);
                        continue;
                    }
                }
                Ok(Status::Partial) => {}
                Err(_) => return Err(invalid("its answer is not HTTP: invalid chunk size")),
            }
            if self.received.len() > MAX_CHUNKED {
                return Err(too_long());
            }
            self.require()?;
        }
    }
}

/// How the end of a body is found.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilEnd,
}

fn framing(head: &Head<'_, '_>) -> io::Result<Framing> {
    let values = |name: &'static str| {
        head.headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    if let Some(coding) = values("transfer-encoding").next_back() {
        return match coding.eq_ignore_ascii_case(b"chunked") {
            true => Ok(Framing::Chunked),
            false => Err(invalid("its answer has an unknown transfer coding")),
        };
    }
    let mut lengths = values("content-length").map(|value| std::str::from_utf8(value).ok()?.parse().ok());
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(Framing::UntilEnd),
        (Some(Some(length)), None) => Ok(Framing::Length(length)),
        _ => Err(invalid("its answer is not HTTP: invalid length")),
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A time limit of a socket is reported as if the call would block.
fn of_socket(errno: Errno) -> io::Error {
    if errno == Errno::AGAIN || errno == Errno::INPROGRESS { timed_out() } else { errno.into() }
}

fn invalid(message: impl Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message.to_string())
}

fn too_long() -> io::Error {
    invalid(format!("its answer is longer than {MAX_BODY} bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// What is made of an answer that a server sends in pieces of this size.
    fn answer(bytes: &[u8], piece: usize) -> Result<(u16, Vec<u8>), String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let bytes = bytes.to_vec();
        let server = thread::spawn(move || {
            for piece in bytes.chunks(piece) {
                // The client may have had enough.
                if theirs.write_all(piece).is_err() {
                    return;
                }
            }
        });
        let end = End::after(Duration::from_secs(60));
        let mut connection = Connection { socket: ours.into(), end, received: Vec::new() };
        let response = connection.response().map_err(|error| error.to_string());
        drop(connection);
        server.join().unwrap();
        response.map(|response| (response.status, response.body))
    }

    #[test]
    fn bodies_end_where_the_head_says_whatever_the_pieces() {
        let hello = |status| Ok((status, b"hello".to_vec()));
        for piece in [1, 2, 7, 100_000] {
            for (text, expected) in [
                ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, more", hello(200)),
                ("HTTP/1.0 500 Oh\r\n\r\nhello", hello(500)),
                (
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n",
                    hello(200),
                ),
                ("HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", hello(200)),
                ("HTTP/1.1 204 None\r\nContent-Length: 7\r\n\r\n", Ok((204, Vec::new()))),
            ] {
                assert_eq!(answer(text.as_bytes(), piece), expected, "{text}");
            }
        }
    }

    #[test]
    fn rubbish_and_what_is_too_long_is_refused() {
        let long_head = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(1 << 17));
        let headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(100));
        let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(MAX_BODY + 1));
        let chunks = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            "1\r\nx\r\n".repeat(MAX_BODY / 2)
        );
        for (text, expected) in [
            ("", "closed the connection"),
            ("hello\r\n\r\n", "not HTTP"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "closed the connection"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "invalid length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "invalid length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "longer than"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "unknown transfer coding"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "invalid chunk size"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffff\r\n", "longer than"),
            (&long_head, "too long"),
            (&headers, "not HTTP"),
            (&long, "longer than"),
            (&chunks, "longer than"),
        ] {
            let error = answer(text.as_bytes(), 1000).unwrap_err();
            assert!(error.contains(expected), "{}: {error}", text.get(..80).unwrap_or(text));
        }
    }

    #[test]
    fn any_answer_is_read_within_its_bounds() {
        let samples = [
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"Err\": \"\"}",
            "HTTP/1.1 100 Go\r\n\r\nHTTP/1.0 500 Oh\r\nA: b\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n",
        ];
        let samples = samples.map(|text| text.as_bytes().to_vec());
        let words =
            ["\r\n\r\n", "ffffffffffffffff\r\n", "Content-Length: 18446744073709551615\r\n", "chunked"];
        cofferdam_fuzz::fuzz_bytes(&samples, &words, |input| {
            // The other end is closed.
            let (socket, _) = UnixStream::pair().unwrap();
            let end = End::after(Duration::from_secs(60));
            let mut connection = Connection { socket: socket.into(), end, received: input.to_vec() };
            if let Ok(response) = connection.response() {
                assert!(response.status >= 200 && response.body.len() <= MAX_BODY.min(input.len()));
            }
        });
    }

    #[test]
    fn the_time_limit_is_one_for_the_whole_exchange() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut request = [0; 1];
            theirs.read_exact(&mut request).unwrap();
            // Each byte is sent in time, and again and again.
            while theirs.write_all(b"H").is_ok() {
                thread::yield_now();
            }
        });
        let end = End::after(Duration::from_millis(1));
        let mut connection = Connection { socket: ours.into(), end, received: Vec::new() };
        let sent = connection.send(b"x").and_then(|()| connection.response().map(drop));
        assert!(sent.is_err());
        // The request may not have been sent in time.
        let _ = send(&connection.socket, b"x", SendFlags::NOSIGNAL);
        drop(connection);
        server.join().unwrap();
    }
}
