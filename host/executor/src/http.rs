//! HTTP/1.1, the client's side: requests as bytes, and responses from bytes.

/// The longest head of a response that is read.
const MAX_HEAD: usize = 16 << 10;

/// Most headers of a response.
const MAX_HEADERS: usize = 64;

/// The longest line with the size of a chunk.
const MAX_CHUNK_LINE: usize = 256;

/// A POST of JSON as the agent expects it.
pub(crate) fn post(path: &str, token: Option<&str>, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nAccept: application/json, \
         application/recordio\r\nContent-Length: {}\r\n",
        body.len()
    );
    if let Some(token) = token {
        request.push_str("Authorization: Bearer ");
        request.push_str(token);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

/// A GET whose connection is closed afterwards.
pub(crate) fn get(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: cofferdam-executor\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// A part of a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The status; bodies follow.
    Head(u16),
    Data(Vec<u8>),
    End,
}

/// Why a response cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HttpError {
    #[error("the response is not HTTP: {0}")]
    Head(httparse::Error),
    #[error("the head of the response is longer than {MAX_HEAD} bytes")]
    LongHead,
    #[error("the response has a length that is not a number")]
    Length,
    #[error("the response has a chunk that is not valid")]
    Chunk,
    #[error("the response has the encoding `{0}`, which is not supported")]
    Encoding(String),
    #[error("the connection was closed before the end of the response")]
    Closed,
}

/// Reads a response from bytes as they come.
#[derive(Debug)]
pub(crate) struct Response {
    buffer: Vec<u8>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// A body with so many bytes to come.
    Sized(u64),
    /// A body up to the end of the connection.
    UntilClosed,
    ChunkSize,
    /// A chunk with so many bytes to come.
    Chunk(u64),
    /// The line feed behind a chunk.
    ChunkEnd,
    /// The lines behind the last chunk.
    Trailer,
    End,
}

impl Response {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::new(), state: State::Head }
    }

    /// Adds bytes of the connection.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The end of the connection.
    pub(crate) fn close(&mut self) -> Result<(), HttpError> {
        match self.state {
            State::UntilClosed | State::End => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(HttpError::Closed),
        }
    }

    /// The next part, if it is there. After [`Part::End`] it is that again.
    pub(crate) fn next(&mut self) -> Result<Option<Part>, HttpError> {
        loop {
            match self.state {
                State::Head => return self.head(),
                State::End => return Ok(Some(Part::End)),
                State::Sized(0) => self.state = State::End,
                State::Chunk(0) => self.state = State::ChunkEnd,
                State::Sized(_) | State::Chunk(_) | State::UntilClosed => return Ok(self.data()),
                State::ChunkSize => {
                    let Some(line) = self.line()? else { return Ok(None) };
                    let size = line.split(';').next().unwrap_or_default().trim();
                    let is_hex = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
                    let size = u64::from_str_radix(size, 16).ok().filter(|_| is_hex);
                    self.state = match size.ok_or(HttpError::Chunk)? {
                        0 => State::Trailer,
                        size => State::Chunk(size),
                    };
                }
                State::ChunkEnd => match self.line()? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::ChunkSize,
                    Some(_) => return Err(HttpError::Chunk),
                },
                State::Trailer => match self.line()? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::End,
                    Some(_) => {}
                },
            }
        }
    }

    fn head(&mut self) -> Result<Option<Part>, HttpError> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut head = httparse::Response::new(&mut headers);
            let length = match head.parse(&self.buffer).map_err(HttpError::Head)? {
                httparse::Status::Complete(length) => length,
                httparse::Status::Partial if self.buffer.len() > MAX_HEAD => return Err(HttpError::LongHead),
                httparse::Status::Partial => return Ok(None),
            };
            let status = head.code.unwrap_or_default();
            let body = body_of(status, head.headers)?;
            self.buffer.drain(..length);
            // 100 and the like announce the response itself.
            if status >= 200 {
                self.state = body;
                return Ok(Some(Part::Head(status)));
            }
        }
    }

    fn data(&mut self) -> Option<Part> {
        if self.buffer.is_empty() {
            return None;
        }
        let remaining = match self.state {
            State::Sized(remaining) | State::Chunk(remaining) => remaining,
            _ => u64::MAX,
        };
        let length = usize::try_from(remaining).unwrap_or(usize::MAX).min(self.buffer.len());
        let rest = self.buffer.split_off(length);
        let data = std::mem::replace(&mut self.buffer, rest);
        match &mut self.state {
            State::Sized(remaining) | State::Chunk(remaining) => *remaining -= length as u64,
            _ => {}
        }
        Some(Part::Data(data))
    }

    /// A line of the framing, without its end.
    fn line(&mut self) -> Result<Option<String>, HttpError> {
        let Some(end) = self.buffer.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
            return if self.buffer.len() >= MAX_CHUNK_LINE { Err(HttpError::Chunk) } else { Ok(None) };
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        let line = String::from_utf8(line).map_err(|_| HttpError::Chunk)?;
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// How the body behind a head is framed.
fn body_of(status: u16, headers: &[httparse::Header<'_>]) -> Result<State, HttpError> {
    let value = |name: &str| {
        let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    if matches!(status, 204 | 304) {
        return Ok(State::End);
    }
    match (value("transfer-encoding"), value("content-length")) {
        (Some(encoding), _) if encoding == "chunked" => Ok(State::ChunkSize),
        (Some(encoding), _) => Err(HttpError::Encoding(encoding)),
        (None, Some(length)) => length.parse().map(State::Sized).map_err(|_| HttpError::Length),
        (None, None) => Ok(State::UntilClosed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The status and body of a response that comes in parts of a size.
    fn read(response: &[u8], size: usize, closed: bool) -> Result<(u16, Vec<u8>, bool), HttpError> {
        let (mut reader, mut status, mut body, mut ended) = (Response::new(), 0, Vec::new(), false);
        let mut drain = |reader: &mut Response| {
            while let Some(part) = reader.next()? {
                match part {
                    Part::Head(code) => status = code,
                    Part::Data(data) => body.extend(data),
                    Part::End => {
                        ended = true;
                        break;
                    }
                }
            }
            Ok(())
        };
        for part in response.chunks(size) {
            reader.push(part);
            drain(&mut reader)?;
        }
        if closed {
            reader.close()?;
            drain(&mut reader)?;
        }
        Ok((status, body, ended))
    }

    #[test]
    fn bodies_are_read_in_each_framing() {
        for size in [1, 3, 1000] {
            let sized = b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\nabc";
            assert_eq!(read(sized, size, false), Ok((202, b"abc".to_vec(), true)));
            let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: x\r\n\r\n";
            assert_eq!(read(chunked, size, false), Ok((200, b"abc0123456789".to_vec(), true)));
            let closed = b"HTTP/1.0 200 OK\r\n\r\nabc";
            assert_eq!(read(closed, size, true), Ok((200, b"abc".to_vec(), true)));
            let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
            assert_eq!(read(interim, size, false), Ok((204, Vec::new(), true)));
        }
    }

    #[test]
    fn responses_that_are_not_complete_or_not_valid_are_errors() {
        let error = |text: &[u8]| read(text, 7, true).unwrap_err();
        assert_eq!(error(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"), HttpError::Closed);
        assert_eq!(error(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), HttpError::Length);
        assert_eq!(
            error(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc"),
            HttpError::Chunk
        );
        assert!(matches!(
            error(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
            HttpError::Encoding(_)
        ));
        assert!(matches!(error(b"220 mail.example.org ESMTP\r\n"), HttpError::Head(_)));
        let long = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; MAX_HEAD + 1]].concat();
        assert_eq!(error(&long), HttpError::LongHead);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1_usize..20) {
            let _ = read(&bytes, size, true);
            let chunked = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(), &bytes].concat();
            let _ = read(&chunked, size, true);
        }
    }
}
