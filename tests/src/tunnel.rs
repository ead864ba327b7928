//! Servers that pass connections on: to a fixed address, or to the one that a client asks for with `CONNECT`.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A server that passes connections on. It ends with the process of the test.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Its address.
    pub address: SocketAddr,
    /// What each connection has asked for, in order.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnel {
    /// Passes all connections on to a server.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        Self::start(target, false)
    }

    /// A proxy for `CONNECT`, which connects to one server whatever name it is asked for.
    #[must_use]
    pub fn proxy(target: SocketAddr) -> Self {
        Self::start(target, true)
    }

    fn start(target: SocketAddr, is_proxy: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let tunnel = Self { address, asked: Arc::default() };
        let asked = Arc::clone(&tunnel.asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let asked = Arc::clone(&asked);
                // An error is the end of the connection.
                thread::spawn(move || drop(serve(client, target, is_proxy, &asked)));
            }
        });
        tunnel
    }

    /// What each connection has asked for, in order. Without `CONNECT`, an empty text.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    client: TcpStream,
    target: SocketAddr,
    is_proxy: bool,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut line = String::new();
    if is_proxy {
        // The client sends nothing more before the response, so nothing of the tunnel is in the buffer.
        let mut reader = BufReader::new(&client);
        reader.read_line(&mut line)?;
        let mut rest = String::new();
        while !rest.ends_with("\r\n\r\n") && rest != "\r\n" {
            if reader.read_line(&mut rest)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(line.trim_end().to_owned());
    if is_proxy && !line.starts_with("CONNECT ") {
        return (&client).write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    }
    let server = TcpStream::connect(target)?;
    if is_proxy {
        (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    }
    thread::scope(|scope| {
        scope.spawn(|| copy(&client, &server));
        copy(&server, &client);
    });
    Ok(())
}

/// Passes one direction of a connection on.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    // An error is its end.
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
