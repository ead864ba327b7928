//! Checks over the network, from the namespaces of the container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::checks::Outcome;
use crate::environment::Endpoint;
use crate::exchange::{Connecting, Exchange};
use crate::http::{self, Part};
use crate::message::Service;

/// A check that is being done. It is stopped by dropping it.
#[derive(Debug)]
pub(crate) enum Probe {
    Http(Exchange),
    Tcp(Connecting),
}

impl Probe {
    /// Begins to connect. Of an HTTP response, only the status is read.
    pub(crate) fn open(service: &Service) -> Result<Self, Outcome> {
        match service {
            Service::Http { port, path, ipv6 } => {
                let address = loopback(*port, *ipv6);
                let request = http::get(&address.to_string(), path);
                let exchange = Exchange::open(&Endpoint::Tcp(address), request);
                exchange.map(Self::Http).map_err(|error| Outcome::Failed(error.to_string()))
            }
            Service::Tcp { port, ipv6 } => {
                let connecting = Connecting::open(loopback(*port, *ipv6));
                connecting.map(Self::Tcp).map_err(|_| Outcome::Connected(false))
            }
        }
    }

    /// Continues as far as possible without waiting.
    pub(crate) fn advance(&mut self) -> Option<Outcome> {
        match self {
            Self::Http(exchange) => {
                let advanced = exchange.advance();
                match (exchange.next(), advanced) {
                    (Ok(Some(Part::Head(status))), _) => Some(Outcome::Answered(status)),
                    (Ok(_), Ok(())) => None,
                    (_, Err(error)) => Some(Outcome::Failed(error.to_string())),
                    (Err(error), _) => Some(Outcome::Failed(error.to_string())),
                }
            }
            Self::Tcp(connecting) => {
                is_ready(connecting.as_fd()).then(|| Outcome::Connected(connecting.result().is_ok()))
            }
        }
    }

    /// What to wait for.
    pub(crate) fn source(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self {
            Self::Http(exchange) => (exchange.as_fd(), exchange.interest()),
            Self::Tcp(connecting) => (connecting.as_fd(), PollFlags::OUT),
        }
    }
}

/// Whether a connection has been established or refused.
fn is_ready(descriptor: BorrowedFd<'_>) -> bool {
    let mut wait = [PollFd::from_borrowed_fd(descriptor, PollFlags::OUT)];
    poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

fn loopback(port: u16, ipv6: bool) -> SocketAddr {
    let address = if ipv6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    SocketAddr::new(address, port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Waits until a check has ended.
    fn finish(mut probe: Probe) -> Outcome {
        loop {
            if let Some(outcome) = probe.advance() {
                return outcome;
            }
            let (descriptor, interest) = probe.source();
            poll(&mut [PollFd::from_borrowed_fd(descriptor, interest)], None).unwrap();
        }
    }

    fn http(port: u16, path: &str) -> Probe {
        Probe::open(&Service::Http { port, path: path.to_owned(), ipv6: false }).unwrap()
    }

    /// A server that answers one request, and the port of it.
    fn serve(answer: &'static [u8]) -> (u16, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 512];
            while !request.ends_with(b"\r\n\r\n") {
                let length = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..length]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(request).unwrap()
        });
        (port, server)
    }

    #[test]
    fn http_checks_report_the_status() {
        let (port, server) = serve(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100\r\n\r\nx");
        assert_eq!(finish(http(port, "/health?x")), Outcome::Answered(503));
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /health?x HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("\r\nHost: 127.0.0.1:{port}\r\n")), "{request}");
    }

    #[test]
    fn what_is_not_http_is_a_failure() {
        let (port, server) = serve(b"SSH-2.0-x\r\n\r\n");
        assert!(matches!(finish(http(port, "/")), Outcome::Failed(_)));
        server.join().unwrap();
    }

    #[test]
    fn tcp_checks_connect() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(
            finish(Probe::open(&Service::Tcp { port, ipv6: false }).unwrap()),
            Outcome::Connected(true)
        );
        drop(listener);
        let refused = Probe::open(&Service::Tcp { port, ipv6: false }).map_or_else(|outcome| outcome, finish);
        assert_eq!(refused, Outcome::Connected(false));
    }
}
