//! Descriptors on which nothing is happening, in descriptor tables beside that of the process.
//!
//! The table of a process has a limited size (`RLIMIT_NOFILE`), and the agent waits for two events or more of every
//! container: the end of its first process, and what plugins watch. So the descriptors of containers that have been
//! running for a while are given to threads that have tables of their own, which wait for all of them. A descriptor comes
//! back when it is needed, to be used and closed; the process's own table does not grow with the number of containers.
//!
//! ```text
//! put, open, drop ──requests (a socket, passes descriptors)──▶ thread: table, epoll
//! ready ◀─────── task ◀──notices (an eventfd, and a queue)──────────┘
//! ```
//!
//! A thread whose table is full is joined by another one.

mod table;

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Resource, getrlimit};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::readiness::Awaitable;
use table::Notices;

/// Places of a table that are not used for stored descriptors: for those of the thread itself, and one in transit.
const RESERVED: usize = 16;

/// Stores descriptors. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub(crate) struct DescriptorStore {
    tables: Arc<Mutex<Vec<Arc<Table>>>>,
    /// Where the tasks run that receive notices.
    runtime: Handle,
    /// Of each table.
    capacity: usize,
}

/// A stored descriptor. It is closed when this is dropped.
pub(crate) struct Stored {
    table: Arc<Table>,
    token: u64,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    ready: Notify,
    /// It did not arrive in the table, or its thread has ended.
    lost: AtomicBool,
}

/// The process's side of one table.
struct Table {
    requests: Mutex<OwnedFd>,
    next_token: AtomicU64,
    stored: AtomicUsize,
    capacity: usize,
    /// `None` when the thread has ended.
    states: Mutex<Option<HashMap<u64, Arc<State>>>>,
}

/// Length of a request: what to do, and the token of a descriptor.
const LENGTH: usize = 9;

/// What a table's thread is asked to do.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Request {
    /// Keep the descriptor that comes with this.
    Put = 1,
    /// Answer with a duplicate of a descriptor.
    Open = 2,
    /// Close a descriptor.
    Close = 3,
}

impl DescriptorStore {
    /// An empty store, whose tasks run on `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
        Self { tables: Arc::default(), runtime, capacity: limit.saturating_sub(RESERVED).max(1) }
    }

    /// Stores a duplicate of a descriptor.
    ///
    /// # Errors
    /// If there is no space and no further table can be created.
    pub(crate) fn put(&self, descriptor: BorrowedFd<'_>) -> io::Result<Stored> {
        let table = self.table()?;
        let token = table.next_token.fetch_add(1, Ordering::Relaxed);
        let stored = Stored { table, token, state: Arc::default() };
        match stored.table.states.lock().as_mut() {
            Some(states) => states.insert(token, Arc::clone(&stored.state)),
            None => return Err(Errno::PIPE.into()),
        };
        stored.table.send(Request::Put, token, Some(descriptor))?;
        Ok(stored)
    }

    /// A table with space for one more descriptor.
    fn table(&self) -> io::Result<Arc<Table>> {
        let mut tables = self.tables.lock();
        tables.retain(|table| table.states.lock().is_some());
        let has_space = |table: &&Arc<Table>| {
            let take = |stored: usize| (stored < table.capacity).then_some(stored + 1);
            table.stored.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
        };
        if let Some(table) = tables.iter().find(has_space) {
            return Ok(Arc::clone(table));
        }
        let table = Table::start(&self.runtime, self.capacity)?;
        table.stored.store(1, Ordering::Relaxed);
        tables.push(Arc::clone(&table));
        Ok(table)
    }
}

impl Stored {
    /// Waits until something happens on the descriptor: see [`Awaitable`]. Returns false if it is lost. Resolves once.
    pub(crate) async fn ready(&self) -> bool {
        self.state.ready.notified().await;
        !self.is_lost()
    }

    /// Lets the next call of [`Self::ready`] resolve.
    pub(crate) fn set_ready(&self) {
        self.state.ready.notify_one();
    }

    /// Whether it is lost, so that [`Self::open`] will never succeed.
    pub(crate) fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// A duplicate in the process's own table. Blocks for some microseconds.
    ///
    /// # Errors
    /// If that is full, or the descriptor is lost.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        self.table.open(self.token)
    }
}

impl State {
    fn notify(&self, lost: bool) {
        self.lost.store(lost, Ordering::Relaxed);
        self.ready.notify_one();
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        if let Some(states) = self.table.states.lock().as_mut() {
            states.remove(&self.token);
        }
        // The thread ends with the socket only.
        drop(self.table.send(Request::Close, self.token, None));
        self.table.stored.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Table {
    fn start(runtime: &Handle, capacity: usize) -> io::Result<Arc<Self>> {
        let (requests, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let notices = Arc::new(Notices::default());
        // Its thread has copies of these when this returns.
        table::start(&theirs, &event, Arc::clone(&notices))?;
        drop(theirs);
        let event = {
            let _in_runtime = runtime.enter();
            Awaitable::new(event)?
        };
        let table = Arc::new(Self {
            requests: Mutex::new(requests),
            next_token: AtomicU64::new(0),
            stored: AtomicUsize::new(0),
            capacity,
            states: Mutex::new(Some(HashMap::new())),
        });
        let weak = Arc::downgrade(&table);
        runtime.spawn(async move {
            while event.ready().await.is_ok() {
                let mut count = [0; 8];
                let _ = rustix::io::read(event.as_fd(), &mut count);
                let (arrived, ended) = notices.take();
                let Some(table) = weak.upgrade() else { return };
                let mut states = table.states.lock();
                for (token, lost) in arrived {
                    if let Some(state) = states.as_ref().and_then(|states| states.get(&token)) {
                        state.notify(lost);
                    }
                }
                if ended {
                    // Nothing more will be reported.
                    let left = states.take().unwrap_or_default();
                    left.values().for_each(|state| state.notify(true));
                    return;
                }
            }
        });
        Ok(table)
    }

    fn send(&self, request: Request, token: u64, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(self.requests.lock().as_fd(), request, token, descriptor)
    }

    fn open(&self, token: u64) -> io::Result<OwnedFd> {
        let requests = self.requests.lock();
        send(requests.as_fd(), Request::Open, token, None)?;
        loop {
            match receive(requests.as_fd(), RecvFlags::CMSG_CLOEXEC)? {
                Some(([_, answered @ ..], descriptor)) if answered == token.to_le_bytes() => {
                    return descriptor.ok_or_else(|| Errno::MFILE.into());
                }
                // The answer to an earlier request, which could not be received.
                Some(_) => {}
                None => return Err(Errno::PIPE.into()),
            }
        }
    }
}

fn send(
    socket: BorrowedFd<'_>,
    request: Request,
    token: u64,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut message = [request as u8; LENGTH];
    message[1..].copy_from_slice(&token.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// A message with its descriptor, if it has one and the table has space for it. `None` at the end.
fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Option<([u8; LENGTH], Option<OwnedFd>)>> {
    let mut message = [0; LENGTH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let descriptor = descriptors.next();
    Ok((received.bytes == LENGTH).then_some((message, descriptor)))
}

#[cfg(test)]
mod tests;
