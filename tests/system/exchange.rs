//! A request with a body of chunks, whose response is read as it arrives: calls whose body or response is a stream of records.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use cofferdam::api::operator::types::{ProcessIo, ProcessIoKind};
use cofferdam_tests::daemon::TIMEOUT;
use serde_json::{Value as Json, json};

/// A request, and what was received of its response. The connection is closed on drop.
pub(crate) struct Exchange {
    stream: UnixStream,
    /// What was not returned as a record yet.
    received: Vec<u8>,
    /// The head of the response was read, and what follows are records.
    has_head: bool,
}

impl Exchange {
    /// Connects, and sends the head of a request.
    pub(crate) fn begin(socket: &Path, content_type: &str) -> Self {
        let mut stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        let head = format!(
            "POST /api/v1 HTTP/1.1\r\nHost: agent\r\nContent-Type: {content_type}\r\nAccept: application/json, application/recordio\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the daemon reads");
        Self { stream, received: Vec::new(), has_head: false }
    }

    /// Makes a call whose response is a stream.
    pub(crate) fn call(socket: &Path, call: &Json) -> Self {
        let mut exchange = Self::begin(socket, "application/json");
        exchange.send(&call.to_string());
        exchange.end();
        exchange
    }

    /// Begins to send input to a container.
    pub(crate) fn input(socket: &Path, container: &Json) -> Self {
        let mut exchange = Self::begin(socket, "application/recordio");
        exchange.record(&attach_input(&json!({"type": "CONTAINER_ID", "container_id": container})));
        exchange
    }

    /// Sends a part of the body.
    pub(crate) fn send(&mut self, data: &str) {
        self.try_send(data).expect("the daemon reads");
    }

    /// As [`Self::send`], to a daemon that may close the connection.
    fn try_send(&mut self, data: &str) -> io::Result<()> {
        let chunk = format!("{:x}\r\n{data}\r\n", data.len());
        self.stream.write_all(chunk.as_bytes())
    }

    /// Sends a record.
    pub(crate) fn record(&mut self, call: &str) {
        self.send(&framed(call));
    }

    /// Sends something to a container, after [`Self::input`].
    pub(crate) fn process_io(&mut self, io: &Json) {
        self.record(&attach_input(&json!({"type": "PROCESS_IO", "process_io": io})));
    }

    /// As [`Self::process_io`], to a container that may end meanwhile.
    pub(crate) fn try_process_io(&mut self, io: &Json) -> io::Result<()> {
        self.try_send(&framed(&attach_input(&json!({"type": "PROCESS_IO", "process_io": io}))))
    }

    /// Ends the request.
    pub(crate) fn end(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").expect("the daemon reads");
    }

    /// Reads until the response contains a text.
    pub(crate) fn wait_for(&mut self, text: &str) {
        while !self.received.windows(text.len()).any(|window| window == text.as_bytes()) {
            assert!(self.read(), "`{text}` is not in: {}", String::from_utf8_lossy(&self.received));
        }
    }

    /// Reads something. Returns false at the end.
    fn read(&mut self) -> bool {
        let mut buffer = vec![0; 64 << 10];
        let read = self.stream.read(&mut buffer).expect("the daemon writes");
        self.received.extend(&buffer[..read]);
        read > 0
    }

    /// The next record of the response, of output; `None` at its end.
    pub(crate) fn next(&mut self) -> Option<ProcessIo> {
        self.next_record().map(|record| serde_json::from_value(record).expect("output of a process"))
    }

    /// The next record of the response; `None` at its end. The agent sends each as a chunk.
    pub(crate) fn next_record(&mut self) -> Option<Json> {
        if !self.has_head {
            self.wait_for("\r\n\r\n");
            let end = find(&self.received, b"\r\n\r\n").expect("it was waited for") + 4;
            let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
            let whole = || String::from_utf8_lossy(&self.received);
            assert!(head.starts_with("HTTP/1.1 200 "), "{}", whole());
            assert!(head.to_lowercase().contains("application/recordio"), "{}", whole());
            self.received.drain(..end);
            self.has_head = true;
        }
        loop {
            if let Some(record) = take_chunk(&mut self.received) {
                return record;
            }
            if !self.read() {
                return None;
            }
        }
    }

    /// Output up to a text. Heartbeats are passed over.
    pub(crate) fn output_until(&mut self, wanted: &str) -> String {
        let mut shown = String::new();
        while !shown.contains(wanted) {
            let next = self.next().unwrap_or_else(|| panic!("`{wanted}` is not in: {shown}"));
            if let Some(data) = next.data.and_then(|data| data.data) {
                shown.push_str(&String::from_utf8_lossy(&data.0));
            }
        }
        shown
    }

    /// Waits for a heartbeat; nothing may be before it.
    pub(crate) fn heartbeat(&mut self) {
        let next = self.next().expect("a heartbeat");
        assert_eq!(next.kind, Some(ProcessIoKind::Control), "{next:?}");
        let control = next.control.expect("a control message");
        let interval = control.heartbeat.and_then(|heartbeat| heartbeat.interval).expect("an interval");
        assert_eq!(interval.nanoseconds, 30_000_000_000);
    }
}

/// Takes a chunk off the front, and returns its record, or `None` for the last one. `None` if it is not there yet.
fn take_chunk(received: &mut Vec<u8>) -> Option<Option<Json>> {
    let begin = find(received, b"\r\n")? + 2;
    let length = std::str::from_utf8(&received[..begin - 2]).expect("the length of a chunk");
    let length = usize::from_str_radix(length, 16).expect("the length of a chunk");
    if length == 0 {
        return Some(None);
    }
    let chunk = received.get(begin..begin + length + 2)?;
    let digits = find(chunk, b"\n").expect("the length of a record");
    let record = serde_json::from_slice(&chunk[digits + 1..length]).expect("a record in a chunk");
    received.drain(..begin + length + 2);
    Some(Some(record))
}

/// A record with its length.
pub(crate) fn framed(record: &str) -> String {
    format!("{}\n{record}", record.len())
}

fn attach_input(body: &Json) -> String {
    json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input": body}).to_string()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
