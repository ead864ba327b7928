//! The I/O switchboard of a container: a process that passes its standard streams, or its terminal, on between the
//! container, the logger and clients that attach. It outlives the agent.
//!
//! ```text
//! container ── stdout, stderr ──▶ ring ──▶ log
//!               or terminal,        └────▶ clients ── input ──▶ container
//!               or an engine
//! ```
//!
//! It is a child of the keeper, outside of the container, and has one thread, which waits for nothing but in its loop.
//! Output is read only while there is space in the ring, which is as soon as the logger and all clients that want output
//! have taken it: who does not read, holds the container up, as with a pipe. It ends when all processes have closed the
//! streams, or have ended themselves, and the log and all clients have received everything.

mod client;
mod counting;
mod frames;
mod log;
mod ring;

use crate::protocol::Switchboard as Request;
use crate::streams::{HAS_ENDED, Kind, MAX_CLIENTS, MAX_OUTPUT, WITH_OUTPUT};
use crate::sys::{self, Errno, Fd, PollSet, Wanted};
use client::{Client, Gone};
use counting::Counting;
use frames::Frames;
use log::Log;
use ring::Ring;

/// Indices in the poll set.
const LISTENER: usize = 0;
const OUTPUTS: usize = 1;
const INPUT: usize = OUTPUTS + 2;
const LOGS: usize = INPUT + 1;
const CLIENTS: usize = LOGS + 2;
const POLLED: usize = CLIENTS + SLOTS;

/// Clients, and one that says that the processes have ended.
const SLOTS: usize = MAX_CLIENTS + 1;

/// How long output may be on its way after the end of all processes, in milliseconds: a terminal passes it on later.
const LAST_DELAY: u64 = 200;

/// How long no client is accepted after that has failed, in milliseconds.
const ACCEPT_DELAY: u64 = 100;

/// Runs in a child of the keeper, with the descriptors of the request, until the streams have ended. Returns the exit
/// status.
pub(crate) fn run(request: Request, descriptors: &[i32]) -> u8 {
    sys::set_name(c"cofferdam-io");
    match Switchboard::new(request, descriptors) {
        Ok(mut switchboard) => {
            sys::release_unused_stack();
            switchboard.serve();
            0
        }
        Err(_) => 1,
    }
}

struct Switchboard {
    /// Closed when the streams have ended.
    listener: Option<Fd>,
    streams: Streams,
    /// Where input goes; `None` if it has ended, or there is none.
    input: Option<Fd>,
    /// The client whose frame has been passed on in part. No other one's may come in between.
    passing: Option<usize>,
    /// The container does not read its input.
    is_input_full: bool,
    log: Log,
    counting: Counting,
    ring: Ring,
    clients: [Option<Client>; SLOTS],
    /// The processes of the container have ended: clients do not delay the log any more.
    has_ended: bool,
    /// Accepting a client has not just failed.
    accepts: bool,
}

/// Where output comes from.
#[derive(Clone, Copy)]
enum Streams {
    /// Two pipes; each `None` at its end.
    Pipes([Option<Fd>; 2]),
    /// The terminal that the container is about to open comes from this socket, and gets this size if a client set one.
    Awaited(Fd, Option<(u16, u16)>),
    Terminal(Fd),
    /// A connection to an engine.
    Engine(Fd, Frames),
    Ended,
}

impl Switchboard {
    fn new(request: Request, descriptors: &[i32]) -> Result<Self, Errno> {
        // Received ones have higher numbers: the keeper has more open than these.
        for (number, fd) in descriptors.iter().enumerate() {
            sys::duplicate_to(Fd(*fd), number as i32, true)?;
        }
        sys::close_range(descriptors.len() as u32, u32::MAX);
        for number in 0..descriptors.len() {
            sys::set_nonblocking(Fd(number as i32))?;
        }
        let (listener, log, counting) = (Some(Fd(0)), Log::new([Fd(1), Fd(2)]), Counting::new(Fd(3)));
        let (streams, input) = match request {
            Request { terminal: true, .. } => (Streams::Awaited(Fd(4), None), None),
            Request { engine: true, input, .. } => {
                let (connection, sender) = (Fd(4), Fd(5));
                if input {
                    // Closed on its own.
                    sys::duplicate_to(connection, sender.0, true)?;
                }
                (Streams::Engine(connection, Frames::default()), input.then_some(sender))
            }
            Request { input, .. } => (Streams::Pipes([Some(Fd(4)), Some(Fd(5))]), input.then_some(Fd(6))),
        };
        Ok(Self {
            listener,
            streams,
            input,
            passing: None,
            is_input_full: false,
            log,
            counting,
            ring: Ring::new()?,
            clients: [const { None }; SLOTS],
            has_ended: false,
            accepts: true,
        })
    }

    fn serve(&mut self) {
        loop {
            self.pass_output_on();
            if self.is_finished() {
                self.finish();
                if self.clients.iter().all(Option::is_none) {
                    return;
                }
            }
            let mut ready = self.poll_set();
            // Only what is on its way can still come, unless somebody outside of the container has the streams open.
            let is_last = self.has_ended && self.ring.space(self.oldest()).is_some();
            let timeout = if is_last { Some(LAST_DELAY) } else { (!self.accepts).then_some(ACCEPT_DELAY) };
            ready.wait(timeout);
            self.accepts = true;
            // A client that has connected before the container wrote anything gets all of it. It may have connected while
            // the descriptors were examined.
            let is_client_waiting = || self.listener.is_some_and(PollSet::is_readable);
            let accepts = ready.is_ready(LISTENER) || (self.ring.end() == 0 && is_client_waiting());
            if accepts {
                self.accept();
            }
            if ready.is_ready(INPUT) {
                self.input_is_ready();
            }
            for index in 0..SLOTS {
                if accepts || ready.is_ready(CLIENTS + index) {
                    self.read_client(index);
                }
            }
            self.pass_input_on();
            self.read_output([ready.is_ready(OUTPUTS), ready.is_ready(OUTPUTS + 1)]);
            if is_last && !ready.is_any_ready() {
                self.end_streams();
            }
        }
    }

    /// Whether all output is logged, and no input can be passed on any more.
    fn is_finished(&self) -> bool {
        let takes_input = self.input.is_some() && !self.has_ended;
        let logged = self.log.position() == self.ring.end() || self.listener.is_none();
        matches!(self.streams, Streams::Ended) && !takes_input && logged
    }

    fn poll_set(&self) -> PollSet<POLLED> {
        let mut set = PollSet::new([None; POLLED]);
        if self.accepts {
            set.set(LISTENER, self.listener, Wanted::Read);
        }
        let space = if self.ring.space(self.oldest()).is_some() { Wanted::Read } else { Wanted::Nothing };
        match self.streams {
            Streams::Pipes(pipes) => {
                for (index, pipe) in pipes.into_iter().enumerate() {
                    set.set(OUTPUTS + index, pipe, space);
                }
            }
            Streams::Awaited(source, _) => set.set(OUTPUTS, Some(source), Wanted::Read),
            Streams::Terminal(fd) | Streams::Engine(fd, _) => set.set(OUTPUTS, Some(fd), space),
            Streams::Ended => {}
        }
        let input = match self.streams {
            _ if self.is_input_full => Wanted::Write,
            // Output tells of the end of a container otherwise.
            Streams::Ended => Wanted::End,
            _ => Wanted::Nothing,
        };
        set.set(INPUT, self.input, input);
        for (index, full) in self.log.full().into_iter().enumerate() {
            set.set(LOGS + index, full, Wanted::Write);
        }
        for (index, client) in self.clients.iter().enumerate() {
            if let Some(client) = client {
                set.set(CLIENTS + index, Some(client.socket()), client.wanted());
            }
        }
        set
    }

    /// The first byte of output that somebody has not received.
    fn oldest(&self) -> u64 {
        let clients = self.clients.iter().flatten().filter_map(Client::position);
        clients.fold(self.log.position(), u64::min)
    }

    // ── output ─────────────────────────────────────────────────────────────────────────────────────────────────

    fn read_output(&mut self, ready: [bool; 2]) {
        let streams = self.streams;
        match streams {
            Streams::Pipes(mut pipes) => {
                for (index, kind) in [Kind::Stdout, Kind::Stderr].into_iter().enumerate() {
                    if let (Some(pipe), Some(true)) = (pipes[index], ready.get(index))
                        && !self.read(pipe, kind)
                    {
                        sys::close(pipe);
                        pipes[index] = None;
                    }
                }
                let ended = pipes.iter().all(Option::is_none);
                self.streams = if ended { Streams::Ended } else { Streams::Pipes(pipes) };
            }
            Streams::Awaited(source, size) if ready[0] => self.receive_terminal(source, size),
            // Ends when no process has the other side open.
            Streams::Terminal(terminal) if ready[0] && !self.read(terminal, Kind::Stdout) => {
                self.end_streams()
            }
            Streams::Engine(connection, frames) if ready[0] => match self.read_frames(connection, frames) {
                Some(frames) => self.streams = Streams::Engine(connection, frames),
                None => self.end_streams(),
            },
            _ => {}
        }
    }

    /// Reads a header, and data that there is space for. Returns `None` at the end.
    fn read_frames(&mut self, from: Fd, mut frames: Frames) -> Option<Frames> {
        if frames.data().is_none() {
            match sys::read(from, frames.header()) {
                Ok(0) => return None,
                Ok(read) => frames.read_header(read).ok()?,
                Err(Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
        if let (Some((kind, missing)), Some(space)) = (frames.data(), self.ring.space(self.oldest())) {
            let mut buffer = [0; MAX_OUTPUT];
            match sys::read(from, buffer.get_mut(..space.min(missing)).unwrap_or_default()) {
                Ok(0) => return None,
                Ok(read) => {
                    self.keep(kind, buffer.get(..read).unwrap_or_default());
                    frames.read_data(read);
                }
                Err(Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
        Some(frames)
    }

    /// Nothing more is read.
    fn end_streams(&mut self) {
        match self.streams {
            Streams::Pipes(pipes) => pipes.into_iter().flatten().for_each(sys::close),
            Streams::Awaited(fd, _) | Streams::Engine(fd, _) => sys::close(fd),
            Streams::Terminal(fd) => {
                sys::close(fd);
                self.input = None;
            }
            Streams::Ended => {}
        }
        self.streams = Streams::Ended;
    }

    /// There is space for input again, or nobody reads it any more.
    fn input_is_ready(&mut self) {
        if core::mem::take(&mut self.is_input_full) {
            return;
        }
        if let Some(input) = self.input.take() {
            sys::close(input);
        }
    }

    /// Reads what there is space for. Returns false at the end.
    fn read(&mut self, from: Fd, kind: Kind) -> bool {
        let Some(space) = self.ring.space(self.oldest()) else { return true };
        let mut buffer = [0; MAX_OUTPUT];
        match sys::read(from, buffer.get_mut(..space).unwrap_or_default()) {
            Ok(0) => false,
            Ok(read) => {
                self.keep(kind, buffer.get(..read).unwrap_or_default());
                true
            }
            Err(errno) => errno == Errno::AGAIN,
        }
    }

    /// Keeps output until everybody has received it.
    fn keep(&mut self, kind: Kind, data: &[u8]) {
        self.ring.push(kind, data);
        self.counting.read(kind, data.len());
    }

    /// Takes the terminal that the setup process has opened.
    fn receive_terminal(&mut self, source: Fd, size: Option<(u16, u16)>) {
        let terminal = match sys::receive(source, &mut [0; 1]) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok((1.., descriptors)) => descriptors.take_only(),
            // The launch failed.
            _ => None,
        };
        sys::close(source);
        self.streams = match terminal {
            Some(terminal) if sys::is_terminal_master(terminal) && sys::set_nonblocking(terminal).is_ok() => {
                if let Some((rows, columns)) = size {
                    let _ = sys::set_terminal_size(terminal, rows, columns);
                }
                self.input = Some(terminal);
                Streams::Terminal(terminal)
            }
            _ => Streams::Ended,
        };
    }

    fn pass_output_on(&mut self) {
        // Before, so that what is lost by a kill in between is counted, rather than what is not.
        self.counting.record();
        self.log.write(&self.ring);
        self.counting.logged(&self.log);
        self.counting.record();
        for index in 0..SLOTS {
            let client = self.clients.get_mut(index).and_then(Option::as_mut);
            if let Some(Err(Gone)) = client.map(|client| client.write(&self.ring)) {
                self.disconnect(index);
            }
        }
        while self.has_ended && self.ring.space(self.oldest()).is_none() {
            let position = |index: &usize| {
                let client = self.clients.get(*index).and_then(Option::as_ref);
                client.and_then(Client::position).unwrap_or(u64::MAX)
            };
            let last = (0..SLOTS).filter(|index| position(index) < self.log.position());
            match last.min_by_key(position) {
                Some(index) => self.disconnect(index),
                None => return,
            }
        }
    }

    /// All output is logged. Closes what is not needed to send the rest to clients.
    fn finish(&mut self) {
        if let Some(listener) = self.listener.take() {
            self.log.close();
            self.ring.push(Kind::End, &[]);
            self.pass_output_on();
            if let Some(input) = self.input.take() {
                sys::close(input);
            }
            // No client is left behind whose connection was made before.
            while PollSet::is_readable(listener) && self.accept_from(listener) {}
            sys::close(listener);
        }
        for index in 0..SLOTS {
            let Some(Some(client)) = self.clients.get(index) else { continue };
            if client.position().is_none_or(|at| at == self.ring.end()) {
                client.tell_end();
                self.disconnect(index);
            }
        }
    }

    // ── clients ────────────────────────────────────────────────────────────────────────────────────────────────

    fn accept(&mut self) {
        if let Some(listener) = self.listener {
            self.accepts = self.accept_from(listener);
        }
    }

    /// Accepts a client, or refuses it. Returns false if that is not possible.
    fn accept_from(&mut self, listener: Fd) -> bool {
        let Ok(socket) = sys::accept(listener) else { return false };
        let free = self.clients.iter_mut().find(|client| client.is_none());
        // The socket's directory is the agent's alone; this does not depend on its mode.
        match free.filter(|_| sys::peer_uid(socket) == Ok(sys::user())) {
            Some(free) if sys::set_nonblocking(socket).is_ok() => *free = Some(Client::new(socket)),
            _ => sys::close(socket),
        }
        true
    }

    fn disconnect(&mut self, index: usize) {
        if let Some(client) = self.clients.get_mut(index).and_then(Option::take) {
            sys::close(client.socket());
        }
        if self.passing == Some(index) {
            self.passing = None;
        }
    }

    fn read_client(&mut self, index: usize) {
        let client = self.clients.get_mut(index).and_then(Option::as_mut);
        if let Some(Err(Gone)) = client.map(Client::read) {
            self.disconnect(index);
        }
    }

    fn pass_input_on(&mut self) {
        // One client may have waited for another one's frame. Each has at most one request here.
        while (0..SLOTS).any(|index| self.pass_input_of(index)) {}
    }

    /// Carries out the request of a client. Returns whether it is done.
    fn pass_input_of(&mut self, index: usize) -> bool {
        let Some(Some(client)) = self.clients.get_mut(index) else { return false };
        let Ok(Some(request)) = client.next() else { return false };
        match (request, self.input) {
            (client::Request::Attach(flags), _) => {
                let (with_output, has_ended) = (flags & WITH_OUTPUT != 0, flags & HAS_ENDED != 0);
                if with_output {
                    client.attach(self.ring.end());
                }
                client.finish_request();
                if index == MAX_CLIENTS && !has_ended {
                    self.disconnect(index);
                }
                if has_ended {
                    // Otherwise, a client that has not read yet loses what does not fit.
                    let _ = self.ring.grow(self.oldest());
                    self.has_ended = true;
                }
                return true;
            }
            (client::Request::Resize(rows, columns), _) => match &mut self.streams {
                Streams::Terminal(terminal) => drop(sys::set_terminal_size(*terminal, rows, columns)),
                Streams::Awaited(_, size) => *size = Some((rows, columns)),
                _ => {}
            },
            (client::Request::Input(_), None) if matches!(self.streams, Streams::Awaited(..)) => {
                return false;
            }
            (_, None) => {}
            (client::Request::EndOfInput, Some(input)) => {
                if !matches!(self.streams, Streams::Terminal(_)) {
                    if self.passing.is_some() {
                        return false;
                    }
                    if matches!(self.streams, Streams::Engine(..)) {
                        sys::end_sending(input);
                    }
                    sys::close(input);
                    self.input = None;
                }
            }
            (client::Request::Input(data), Some(input)) => {
                if self.is_input_full || self.passing.is_some_and(|passing| passing != index) {
                    return false;
                }
                let length = data.len();
                match sys::write(input, data) {
                    Ok(written) if written < length => {
                        client.pass(written);
                        self.is_input_full = true;
                        self.passing = Some(index);
                        return false;
                    }
                    Err(Errno::AGAIN) => {
                        self.is_input_full = true;
                        self.passing = Some(index);
                        return false;
                    }
                    Err(Errno::INTR) => return false,
                    Ok(_) => {}
                    Err(_) => {
                        // The container has closed its side. A terminal is read from until its end.
                        if !matches!(self.streams, Streams::Terminal(_)) {
                            sys::close(input);
                        }
                        self.input = None;
                    }
                }
                self.passing = None;
            }
        }
        client.finish_request();
        true
    }
}
