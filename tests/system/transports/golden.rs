//! Exchanges as clients and the documentation of Mesos have them, written in files, and replayed on one connection each.
//!
//! ```text
//! # a comment
//! > POST /api/v1 HTTP/1.1              a request: lines of its head, an empty one, and its body
//! > Accept: application/json
//! >
//! > {"type":"GET_HEALTH"}
//! < HTTP/1.1 200 OK                    its response, of whose head these lines are expected
//! < content-type: application/json
//! <
//! < {"type":"GET_HEALTH","get_health":{"healthy":true}}
//! ```
//!
//! `$ADDRESS` is where the agent listens, and `…` in a response is any text. A body that begins with `hex` is of these bytes.
//! The lines `Host`, `Authorization` and `Content-Length` of requests are added.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::world::TOKEN;

use super::{address, script, world};

/// A request and its response.
#[derive(Debug, Default)]
struct Exchange {
    request: Message,
    response: Message,
}

/// A message as it is in a file.
#[derive(Debug, Default)]
struct Message {
    head: Vec<String>,
    body: Option<String>,
}

impl Message {
    fn push(&mut self, line: &str) {
        match &mut self.body {
            Some(body) if body.is_empty() => body.push_str(line),
            Some(body) => *body = format!("{body}\n{line}"),
            None if line.is_empty() => self.body = Some(String::new()),
            None => self.head.push(line.to_owned()),
        }
    }

    fn body(&self) -> Vec<u8> {
        let body = self.body.as_deref().unwrap_or_default();
        match body.strip_prefix("hex") {
            Some(digits) => {
                let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
                data_encoding::HEXLOWER.decode(&digits).expect("bytes")
            }
            None => body.as_bytes().to_vec(),
        }
    }
}

fn read(name: &str, address: &str) -> Vec<Exchange> {
    let text = fs::read_to_string(script("golden").join(name)).unwrap().replace("$ADDRESS", address);
    let mut exchanges: Vec<Exchange> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (kind, rest) = line.split_at(1);
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let is_next = exchanges.last().is_none_or(|last| !last.response.head.is_empty());
        if kind == ">" && is_next {
            exchanges.push(Exchange::default());
        }
        let current = exchanges.last_mut().expect("a request comes first");
        match kind {
            ">" => current.request.push(rest),
            "<" => current.response.push(rest),
            _ => panic!("{name}: `{line}` is neither of a request nor of a response"),
        }
    }
    assert!(!exchanges.is_empty(), "{name}");
    exchanges
}

/// Whether a text is as expected, where `…` is any text.
fn matches(text: &str, expected: &str) -> bool {
    let mut pieces = expected.split('…');
    let Some(mut rest) = text.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        match pieces.peek() {
            None => return rest.ends_with(piece),
            Some(_) => match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            },
        }
    }
    rest.is_empty()
}

fn replay(daemon: &Daemon, name: &str) {
    let address = address(daemon);
    let stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut stream = BufReader::new(stream);
    for Exchange { request, response } in read(name, &address) {
        let (first, lines) = request.head.split_first().expect("a request line");
        let body = request.body();
        let mut sent = format!("{first}\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\n");
        for line in lines {
            sent += &format!("{line}\r\n");
        }
        if request.body.is_some() {
            sent += &format!("Content-Length: {}\r\n", body.len());
        }
        let sent = [format!("{sent}\r\n").as_bytes(), &body].concat();
        stream.get_mut().write_all(&sent).unwrap();

        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = stream.read_line(&mut head).unwrap();
            assert!(read > 0, "{name}, {first}: the connection was not kept\n{head}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut received = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut received).unwrap();
        let shown = String::from_utf8_lossy(&received);
        for line in &response.head {
            assert!(
                head.lines().any(|found| matches(found, line)),
                "{name}, {first}: no `{line}` in\n{head}{shown}"
            );
        }
        let expected = response.body();
        let is_expected = received == expected
            || std::str::from_utf8(&expected).is_ok_and(|expected| matches(&shown, expected));
        assert!(
            is_expected,
            "{name}, {first}:\n{head}{shown}\ninstead of\n{}",
            String::from_utf8_lossy(&expected)
        );
    }
}

#[test]
fn what_clients_of_mesos_send_is_answered_as_they_expect_on_one_connection() {
    let world = world();
    let daemon = Daemon::start(&world);
    for name in ["containers.http", "lists.http", "redirects.http", "protobuf.http", "errors.http"] {
        replay(&daemon, name);
    }
}

#[test]
fn any_text_is_matched_in_its_place() {
    for (text, expected, is_match) in [
        ("a", "a", true),
        ("a b c", "a … c", true),
        ("a b c", "…", true),
        ("abc", "a…", true),
        ("abc", "…c…", true),
        ("abcabd", "a…b…d", true),
        ("abc", "ab", false),
        ("abc", "a…d", false),
        ("", "…a", false),
    ] {
        assert_eq!(matches(text, expected), is_match, "{text} {expected}");
    }
}
