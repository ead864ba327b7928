//! Clients that do not wait for responses, and a socket that disappears.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::watch;
use cofferdam_tests::world::World;

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";

fn connect(world: &World) -> UnixStream {
    let stream = UnixStream::connect(world.socket()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// The head of a request with a body of a length.
fn head(path: &str, length: usize) -> String {
    let headers = "Host: a\r\nContent-Type: application/json";
    format!("POST {path} HTTP/1.1\r\n{headers}\r\nContent-Length: {length}\r\n\r\n")
}

/// Reads a response with a `Content-Length`; `None` if the connection is closed.
fn response(stream: &mut UnixStream) -> Option<String> {
    let mut text = String::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte).unwrap() {
            0 if text.is_empty() => return None,
            0 => panic!("incomplete: {text}"),
            _ => text.push(byte[0].into()),
        }
        if text.ends_with("\r\n\r\n") {
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.expect("a length").parse().unwrap()];
            stream.read_exact(&mut body).unwrap();
            return Some(text + &String::from_utf8(body).unwrap());
        }
    }
}

fn says_that_it_closes(response: &str) -> bool {
    response.lines().any(|line| line.eq_ignore_ascii_case("connection: close"))
}

#[test]
fn a_connection_can_be_used_after_a_request_that_was_refused_by_its_head() {
    let world = World::posix();
    let _daemon = Daemon::start(&world);
    let mut stream = connect(&world);
    for path in ["/api/v2", "/health", "/api/v1x"] {
        // In one piece, and in two, the second of which arrives after the head was judged.
        for pieces in [1, 2] {
            let (head, body) = (head(path, 1000), "x".repeat(1000));
            match pieces {
                1 => stream.write_all((head + &body).as_bytes()).unwrap(),
                _ => {
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(body.as_bytes()).unwrap();
                }
            }
            let refused = response(&mut stream).unwrap();
            assert!(refused.starts_with("HTTP/1.1 40") && !says_that_it_closes(&refused), "{refused}");
            stream.write_all(HEALTH.as_bytes()).unwrap();
            assert!(response(&mut stream).unwrap().starts_with("HTTP/1.1 200"));
        }
    }
    // Chunked too.
    let chunked = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    stream.write_all((chunked.to_owned() + HEALTH).as_bytes()).unwrap();
    assert!(response(&mut stream).unwrap().starts_with("HTTP/1.1 404"));
    assert!(response(&mut stream).unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_response_before_the_end_of_a_request_is_received_and_says_that_the_connection_is_closed() {
    let world = World::posix();
    let _daemon = Daemon::start(&world);
    let large = 64 << 20;
    for (path, status, body) in [
        // Much more than a socket has space for.
        ("/api/v2", "404", large),
        ("/api/v1", "413", large),
        // Nothing is sent, as by a client that hangs.
        ("/api/v2", "404", 0),
        ("/api/v1", "413", 0),
    ] {
        let mut stream = connect(&world);
        stream.write_all(head(path, large).as_bytes()).unwrap();
        stream.write_all(&vec![b' '; body]).unwrap();
        let refused = response(&mut stream).unwrap();
        assert!(refused.starts_with(&format!("HTTP/1.1 {status}")), "{refused}");
        assert!(says_that_it_closes(&refused), "{refused}");
        assert_eq!(response(&mut stream), None);
    }
    // A client that waits for permission gets the status instead.
    let mut stream = connect(&world);
    let head = head("/api/v2", 1000).replace("Host: a", "Host: a\r\nExpect: 100-continue");
    stream.write_all(head.as_bytes()).unwrap();
    let refused = response(&mut stream).unwrap();
    assert!(refused.starts_with("HTTP/1.1 404") && says_that_it_closes(&refused), "{refused}");
}

#[test]
fn a_socket_that_is_removed_is_restored() {
    let world = World::posix();
    let daemon = Daemon::start(&world);
    let socket = world.socket();
    fs::remove_file(&socket).unwrap();
    let connects = || UnixStream::connect(&socket).is_ok();
    assert!(watch::until(socket.parent().unwrap(), TIMEOUT, connects), "{}", daemon.log());
    assert_eq!(daemon.health().socket, None);
    assert!(daemon.log().contains("was removed; listening on a new one"), "{}", daemon.log());

    // Another program's is not removed. The log tells, and so do open connections, which are closed when they are idle for long.
    let mut connected = connect(&world);
    fs::remove_file(&socket).unwrap();
    let other = UnixListener::bind(&socket).unwrap();
    let log = world.directory().join("agent.log");
    let text =
        watch::content(Path::new(&log), TIMEOUT, |text| text.contains("clients cannot reach this agent"));
    assert!(text.contains("was replaced by another file"), "{text}");
    connected.write_all(HEALTH.as_bytes()).unwrap();
    let health = response(&mut connected).unwrap();
    assert!(
        health.contains(r#""healthy":true"#) && health.contains("was replaced by another file"),
        "{health}"
    );
    drop(other);
    fs::remove_file(&socket).unwrap();
    assert!(watch::until(socket.parent().unwrap(), TIMEOUT, connects), "{}", daemon.log());
    assert_eq!(daemon.health().socket, None);
}
