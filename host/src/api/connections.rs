//! How many connections there are, and which is closed when there are too many.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

/// The part of `RLIMIT_NOFILE` that connections may have: the rest is needed for containers.
const SHARE: u64 = 8;

/// Least and greatest number of connections.
const BOUNDS: (u64, u64) = (16, 4096);

/// The open connections.
pub(super) struct Connections {
    max: usize,
    open: Vec<Weak<Connection>>,
    requests: Arc<AtomicU64>,
}

/// An open connection.
pub(super) struct Connection {
    /// Requests whose responses are not complete.
    pending: AtomicUsize,
    /// Number of its last request, among those of all connections.
    last: AtomicU64,
    requests: Arc<AtomicU64>,
    closing: AtomicBool,
    close: Notify,
}

/// A request whose response is not complete.
pub(super) struct Pending(Arc<Connection>);

impl Connections {
    /// At most a part of the descriptors that this process may have.
    pub(super) fn new() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let max = (limit.unwrap_or(u64::MAX) / SHARE).clamp(BOUNDS.0, BOUNDS.1);
        Self::at_most(usize::try_from(max).unwrap_or(usize::MAX))
    }

    fn at_most(max: usize) -> Self {
        Self { max, open: Vec::new(), requests: Arc::default() }
    }

    /// How many there may be.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Whether another connection can be added; if not, one of them is about to be closed.
    pub(super) fn has_space(&mut self) -> bool {
        if self.open.len() < self.max + self.max / 4 {
            return true;
        }
        self.open.retain(|connection| connection.strong_count() > 0);
        let is_closing = |connection: Arc<Connection>| connection.closing.load(Ordering::Relaxed);
        self.open.len() < self.max + self.max / 4
            || !self.open.iter().filter_map(Weak::upgrade).any(is_closing)
    }

    /// Adds a connection. If there are too many, the one that has been idle for longest is closed; `None` if all have
    /// requests.
    pub(super) fn add(&mut self) -> Option<Arc<Connection>> {
        if self.open.len() >= self.max {
            self.open.retain(|connection| connection.strong_count() > 0);
        }
        if self.open.len() >= self.max {
            let open: Vec<_> = self.open.iter().filter_map(Weak::upgrade).collect();
            let idle = open.iter().filter(|connection| connection.is_idle());
            let longest_idle = idle.min_by_key(|connection| connection.last.load(Ordering::Relaxed))?;
            longest_idle.closing.store(true, Ordering::Relaxed);
            longest_idle.close.notify_one();
        }
        let connection = Arc::new(Connection {
            pending: AtomicUsize::new(0),
            last: AtomicU64::new(self.requests.fetch_add(1, Ordering::Relaxed)),
            requests: Arc::clone(&self.requests),
            closing: AtomicBool::new(false),
            close: Notify::new(),
        });
        self.open.push(Arc::downgrade(&connection));
        Some(connection)
    }
}

impl Connection {
    /// Notes a request, until the result is dropped.
    pub(super) fn request(self: &Arc<Self>) -> Pending {
        self.pending.fetch_add(1, Ordering::Relaxed);
        self.last.store(self.requests.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Pending(Arc::clone(self))
    }

    /// Waits until it is to be closed for another one.
    pub(super) async fn to_be_closed(&self) {
        self.close.notified().await;
    }

    fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Relaxed) == 0 && !self.closing.load(Ordering::Relaxed)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_connection_that_is_idle_for_longest_is_closed_for_another() {
        let mut connections = Connections::at_most(4);
        let open: Vec<_> = (0..4).map(|_| connections.add().unwrap()).collect();
        let pending = open[0].request();
        drop(open[1].request());
        assert!(connections.has_space());
        let _fifth = connections.add().unwrap();
        open[2].to_be_closed().await;
        // It is not closed yet.
        assert!(!connections.has_space());
        drop(open);
        assert!(connections.has_space());
        let _more: Vec<_> = (0..2).map(|_| connections.add().unwrap()).collect();
        drop(pending);
    }

    #[test]
    fn a_connection_with_a_request_is_not_closed_for_another() {
        let mut connections = Connections::at_most(2);
        let open: Vec<_> = (0..2).map(|_| connections.add().unwrap()).collect();
        let pending: Vec<_> = open.iter().map(Connection::request).collect();
        assert!(connections.has_space(), "nothing is about to be closed");
        assert!(connections.add().is_none());
        drop(pending);
        assert!(connections.add().is_some());
    }
}
