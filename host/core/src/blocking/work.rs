//! Threads for blocking work that calls no plugin.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::pool::{IDLE, OwnedPool, Size, TaskEnd};

/// Runs work that may block and calls no plugin, such as access to files of the agent. Cheap to clone; all clones share
/// the threads.
///
/// `tokio::task::spawn_blocking` panics when the kernel creates no more threads. Here, work waits for the threads that
/// are kept, or is refused if none is.
#[derive(Clone)]
pub struct WorkPool(Arc<OwnedPool>);

/// The work was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
#[error("a thread of the agent panicked or could not be started; see the agent's log")]
pub struct WorkLost;

impl WorkPool {
    /// A pool of at most `max` threads, of which `kept` are started now and stay for as long as the pool.
    ///
    /// # Errors
    /// If these cannot be started.
    pub fn start(kept: usize, max: NonZeroUsize) -> io::Result<Self> {
        Ok(Self(Arc::new(OwnedPool::start(size(kept, max))?)))
    }

    /// A pool of at most `max` threads, which are started when there is work: for what may be refused.
    #[must_use]
    pub fn on_demand(max: NonZeroUsize) -> Self {
        Self(Arc::new(OwnedPool::on_demand(size(0, max))))
    }

    /// Runs work to its end, whether or not the caller still waits.
    ///
    /// # Errors
    /// [`WorkLost`] if it panicked, or no thread is kept and none could be started.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkLost> {
        let (sender, outcome) = oneshot::channel();
        // The caller may no longer wait.
        self.spawn(move || drop(sender.send(work())));
        outcome.await.map_err(|_| WorkLost)
    }

    /// Runs work whose outcome is not needed.
    pub fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let span = tracing::Span::current();
        self.0.submit(Box::new(move || {
            let _in_span = span.entered();
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("blocking work panicked; this is a bug of the agent");
            }
            TaskEnd::Finished
        }));
    }
}

/// The threads are not checked for what plugins change, which takes descriptors.
fn size(kept: usize, max: NonZeroUsize) -> Size {
    Size { kept, max, idle: IDLE, prepare: || () }
}

impl fmt::Debug for WorkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkPool").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_work_and_not_the_pool() {
        let pool = WorkPool::start(1, NonZeroUsize::MIN).unwrap();
        assert!(pool.run(|| -> () { panic!("deliberate") }).await.is_err());
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }
}
