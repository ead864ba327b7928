//! State shared by all request handlers.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Config;
use crate::telemetry::{Snapshot, Verbosity};
use cofferdam_core::agent::Agent;
use cofferdam_core::blocking::WorkPool;

/// Threads for access to what containers have written.
const FILE_THREADS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// State shared by all request handlers.
pub(super) struct ApiContext {
    pub(super) agent: Agent,
    pub(super) config: Config,
    /// When this began, by the system's clock.
    pub(super) started: SystemTime,
    /// The same time, by the clock that nobody sets.
    pub(super) running_since: Instant,
    pub(super) verbosity: Verbosity,
    /// Threads for access to what containers have written, as a disk may hang.
    pub(super) files: WorkPool,
    /// Becomes true when the agent stops.
    stopping: watch::Receiver<bool>,
    /// Why clients do not find the socket.
    socket_problem: Mutex<Option<String>>,
    /// How many more requests of clients may last.
    lasting: Arc<Semaphore>,
}

impl ApiContext {
    /// `max_connections` is how many connections clients may have.
    pub(super) fn new(
        agent: Agent,
        config: Config,
        verbosity: Verbosity,
        stopping: watch::Receiver<bool>,
        max_connections: usize,
    ) -> Self {
        Self {
            agent,
            config,
            started: SystemTime::now(),
            running_since: Instant::now(),
            verbosity,
            files: WorkPool::on_demand(FILE_THREADS),
            stopping,
            socket_problem: Mutex::default(),
            lasting: Arc::new(Semaphore::new(max_connections - max_connections / 4)),
        }
    }

    /// Counts a request that may last as long as a container runs, or as the client likes, until the result is dropped. `None`
    /// if there are so many that they would keep others from connecting.
    pub(super) fn begin_lasting(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lasting).try_acquire_owned().ok()
    }

    pub(super) fn metrics(&self) -> Snapshot {
        Snapshot::take(&self.agent, self.running_since)
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Why clients do not find the socket, if they do not.
    pub(super) fn socket_problem(&self) -> Option<String> {
        self.socket_problem.lock().clone()
    }

    pub(super) fn set_socket_problem(&self, problem: Option<String>) {
        *self.socket_problem.lock() = problem;
    }

    /// Resolves when the agent stops.
    pub(super) async fn stopped(&self) {
        // An error means that the sender was dropped, which happens only when the server has stopped.
        drop(self.stopping.clone().wait_for(|stopping| *stopping).await);
    }
}
