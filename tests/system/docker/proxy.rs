//! A socket between an agent and an engine, which holds a request, loses the answer to one, or does not pass one on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cofferdam_tests::daemon::TIMEOUT;
use tempfile::TempDir;

/// The longest head of a request, or of an answer.
const MAX_HEAD: usize = 64 << 10;

/// The socket. What it passes on goes on until the connections are closed.
pub struct Proxy {
    directory: TempDir,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    armed: Mutex<Option<Armed>>,
    held: Mutex<Option<Held>>,
    /// Gets the next request, which the engine never gets.
    swallowed: Mutex<Option<Sender<String>>>,
}

/// The request that is not passed on yet.
struct Held {
    /// Part of its first line.
    part: &'static str,
    hit: Sender<Lost>,
}

/// The request whose answer is lost.
struct Armed {
    /// How many come before it.
    before: usize,
    /// Gets its first line when the engine answers, and then the connection is closed when the other end says so.
    hit: Sender<Lost>,
}

/// A request that the engine has answered, which the agent does not know, or one that the engine has not got.
pub struct Lost {
    /// Method and path.
    pub request: String,
    /// When this is dropped, the agent learns that there is no answer, or the engine gets the request.
    _release: Sender<()>,
}

/// Tells which request was hit.
pub struct Hit(Receiver<Lost>);

/// A request that is never answered.
pub struct Swallowed(Receiver<String>);

impl Swallowed {
    /// Waits until it is there. Returns its method and path.
    pub fn request(&self) -> String {
        self.0.recv_timeout(TIMEOUT).expect("a request")
    }

    /// Waits until whoever has sent it has closed the connection.
    pub fn wait_until_closed(self) {
        let closed = self.0.recv_timeout(TIMEOUT);
        assert_eq!(closed, Err(RecvTimeoutError::Disconnected), "the connection is not closed");
    }
}

impl Hit {
    /// Waits for the request, at most so long.
    pub fn wait(&self, timeout: Duration) -> Option<Lost> {
        self.0.recv_timeout(timeout).ok()
    }
}

impl Proxy {
    /// Passes connections on to an engine.
    pub fn to(engine: PathBuf) -> Self {
        let directory = tempfile::Builder::new().prefix("cofferdam-proxy-").tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("engine.sock")).unwrap();
        let faults: Arc<Faults> = Arc::default();
        let shared = Arc::clone(&faults);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (engine, faults) = (engine.clone(), Arc::clone(&shared));
                // An error is the end of the connection.
                thread::spawn(move || drop(serve(&client, &engine, &faults)));
            }
        });
        Self { directory, faults }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("engine.sock")
    }

    /// Loses the answer to the n-th request from now on that is not a GET, the first of which is 1.
    pub fn arm(&self, request: usize) -> Hit {
        let (hit, receiver) = channel();
        *self.faults.armed.lock().unwrap() = Some(Armed { before: request - 1, hit });
        Hit(receiver)
    }

    /// Holds the next request that has this in its first line.
    pub fn hold(&self, part: &'static str) -> Hit {
        let (hit, receiver) = channel();
        *self.faults.held.lock().unwrap() = Some(Held { part, hit });
        Hit(receiver)
    }

    /// Does not pass on the next request.
    pub fn swallow(&self) -> Swallowed {
        let (request, receiver) = channel();
        *self.faults.swallowed.lock().unwrap() = Some(request);
        Swallowed(receiver)
    }

    /// Loses none any more.
    pub fn disarm(&self) {
        *self.faults.armed.lock().unwrap() = None;
    }
}

/// The armed fault, if this request is the one. Only those are counted that change something or wait for a change.
fn fault(line: &str, armed: &Mutex<Option<Armed>>) -> Option<Sender<Lost>> {
    if line.starts_with("GET ") {
        return None;
    }
    let mut armed = armed.lock().unwrap();
    match armed.as_mut() {
        Some(fault) if fault.before == 0 => armed.take().map(|fault| fault.hit),
        Some(fault) => {
            fault.before -= 1;
            None
        }
        None => None,
    }
}

fn serve(client: &UnixStream, engine: &Path, faults: &Faults) -> io::Result<()> {
    let server = UnixStream::connect(engine)?;
    let head = head(client)?;
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let request = String::from_utf8_lossy(line).into_owned();
    let swallowed = faults.swallowed.lock().unwrap().take();
    if let Some(sender) = swallowed {
        let _ = sender.send(request);
        // Its end is that of the connection.
        io::copy(&mut &*client, &mut io::sink())?;
        return Ok(());
    }
    let held = faults.held.lock().unwrap().take_if(|held| request.contains(held.part));
    if let Some(Held { hit, .. }) = held {
        hold(&hit, &request);
    }
    let hit = fault(&request, &faults.armed);
    (&server).write_all(&head)?;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        if let Some(hit) = hit {
            // What it does is done when it answers.
            drop(self::head(&server));
            hold(&hit, &request);
            drop(client.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Both));
            return;
        }
        copy(&server, client);
    });
    Ok(())
}

/// Waits until the test says to go on.
fn hold(hit: &Sender<Lost>, request: &str) {
    let (release, released) = channel();
    if hit.send(Lost { request: request.to_owned(), _release: release }).is_ok() {
        let _ = released.recv();
    }
}

/// Reads up to the end of a head, byte by byte, as what follows is passed on.
fn head(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if head.len() == MAX_HEAD || stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend(byte);
    }
    Ok(head)
}

/// Passes one direction of a connection on.
fn copy(mut from: &UnixStream, mut to: &UnixStream) {
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
