//! A thread with a descriptor table of its own.
//!
//! In this thread, the numbers of the process's descriptors mean others. So it runs nothing but this file: it logs
//! nothing, wakes no task, and handles no signal.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc;

use nix::sys::signal::SigSet;
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{Request, receive, send};
use crate::readiness::{INTERVAL, has_happened, is_file};

/// What happened to descriptors of a table.
#[derive(Default)]
pub(super) struct Notices(Mutex<(Vec<(u64, bool)>, bool)>);

impl Notices {
    /// Takes the tokens of descriptors that are ready, or lost, and whether the thread has ended.
    pub(super) fn take(&self) -> (Vec<(u64, bool)>, bool) {
        let mut notices = self.0.lock();
        (std::mem::take(&mut notices.0), notices.1)
    }
}

/// Data of the socket in the epoll instance.
const REQUESTS: u64 = u64::MAX;

/// Starts a thread with a table in which there are copies of `requests` and `event`.
pub(super) fn start(requests: &OwnedFd, event: &OwnedFd, notices: Arc<Notices>) -> io::Result<()> {
    let (started, outcome) = mpsc::channel();
    let (requests, event) = (requests.as_raw_fd(), event.as_raw_fd());
    std::thread::Builder::new().name("descriptors".into()).spawn(move || {
        let thread = Thread::enter(requests, event, notices);
        let _ = started.send(thread.as_ref().map(drop).map_err(io::Error::raw_os_error));
        if let Ok(thread) = thread {
            thread.run();
        }
    })?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Some(errno))) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("the thread of a descriptor table ended")),
    }
}

struct Thread {
    requests: OwnedFd,
    event: OwnedFd,
    epoll: OwnedFd,
    notices: Arc<Notices>,
    descriptors: HashMap<u64, OwnedFd>,
    /// Tokens of those that the kernel does not watch, as the user of the agent has no watches left.
    unwatched: Vec<u64>,
}

impl Thread {
    /// Gives the calling thread a table of its own, with `requests`, `event` and the standard streams.
    fn enter(requests: RawFd, event: RawFd, notices: Arc<Notices>) -> io::Result<Self> {
        // A handler may write to a descriptor of the process.
        SigSet::all().thread_block()?;
        // SAFETY: nothing on this thread owns a descriptor, and it runs no other code from now on.
        unsafe { unshare_unsafe(UnshareFlags::FILES)? };
        let (low, high) = (requests.min(event), requests.max(event));
        for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
            if first <= last {
                // SAFETY: these are copies that nothing refers to.
                let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
                if closed != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        // SAFETY: they are open in this table, in which nothing else owns them.
        let (requests, event) = unsafe { (OwnedFd::from_raw_fd(requests), OwnedFd::from_raw_fd(event)) };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &requests, epoll::EventData::new_u64(REQUESTS), epoll::EventFlags::IN)?;
        Ok(Self { requests, event, epoll, notices, descriptors: HashMap::new(), unwatched: Vec::new() })
    }

    /// Serves requests until the process's end of the socket is closed.
    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        let interval = Timespec { tv_sec: 0, tv_nsec: INTERVAL.subsec_nanos().into() };
        loop {
            events.clear();
            let timeout = (!self.unwatched.is_empty()).then_some(&interval);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            let ready = events.iter().map(|event| event.data.u64()).filter(|&token| token != REQUESTS);
            self.notify(ready.map(|token| (token, false)));
            let requested = events.iter().any(|event| event.data.u64() == REQUESTS);
            if requested && !self.serve() {
                break;
            }
            self.check_unwatched();
        }
    }

    fn notify(&self, tokens: impl Iterator<Item = (u64, bool)>) {
        let mut notices = self.notices.0.lock();
        let before = notices.0.len();
        notices.0.extend(tokens);
        let any = notices.0.len() > before;
        drop(notices);
        if any {
            self.wake();
        }
    }

    fn wake(&self) {
        // It can only fail when the counter is at its maximum, and then the task is about to read it.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Serves the requests that have arrived. Returns false at the end.
    fn serve(&mut self) -> bool {
        loop {
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let (message, descriptor) = match receive(self.requests.as_fd(), flags) {
                Ok(Some(message)) => message,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(None) | Err(_) => return false,
            };
            let [request, token @ ..] = message;
            let token = u64::from_le_bytes(token);
            if request == Request::Put as u8 {
                let lost = descriptor.is_none_or(|descriptor| self.put(token, descriptor).is_err());
                self.notify(lost.then_some((token, true)).into_iter());
            } else if request == Request::Open as u8 {
                let descriptor = self.descriptors.get(&token).map(AsFd::as_fd);
                drop(send(self.requests.as_fd(), Request::Open, token, descriptor));
            } else {
                self.descriptors.remove(&token);
            }
        }
    }

    fn put(&mut self, token: u64, descriptor: OwnedFd) -> io::Result<()> {
        match self.watch(token, &descriptor) {
            Err(Errno::NOSPC | Errno::NOMEM) => self.unwatched.push(token),
            watched => watched?,
        }
        self.descriptors.insert(token, descriptor);
        Ok(())
    }

    /// Lets the kernel watch a descriptor until something happens.
    fn watch(&self, token: u64, descriptor: &OwnedFd) -> Result<(), Errno> {
        let flags = interest(descriptor.as_fd()) | epoll::EventFlags::ONESHOT;
        epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(token), flags)
    }

    /// Lets the kernel watch what it has not, or looks at it instead.
    fn check_unwatched(&mut self) {
        let mut ready = Vec::new();
        for token in std::mem::take(&mut self.unwatched) {
            // It may have been closed.
            let Some(descriptor) = self.descriptors.get(&token) else { continue };
            // What has happened is reported as soon as it is watched.
            if self.watch(token, descriptor).is_ok() {
                continue;
            }
            if has_happened(descriptor.as_fd()) {
                ready.push((token, false));
            } else {
                self.unwatched.push(token);
            }
        }
        self.notify(ready.into_iter());
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.notices.0.lock().1 = true;
        self.wake();
    }
}

/// What happens to a descriptor when there is something to do.
fn interest(descriptor: BorrowedFd<'_>) -> epoll::EventFlags {
    if is_file(descriptor) { epoll::EventFlags::PRI } else { epoll::EventFlags::IN }
}
