//! Pulls of images that the store does not have: one for all containers that wait for the same image.
//!
//! How an image is pulled is up to who embeds the agent, who passes a [`Puller`]: this library has no HTTP. The first
//! container that needs an image begins its pull, later ones wait for the same, and it is cancelled with the last of them.
//! Until all that wait have taken the image, they have a lock on the store, so that nobody removes the image before.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::store::Import;
use super::{ImageName, Store, StoreError};
use crate::blocking::BlockingPool;
use crate::model::PullProgress;
use crate::shared_operation::{Operation, Operations, Waiting};

/// Pulls at a time. Others wait, and can be cancelled meanwhile.
const MAX_PULLS: usize = 8;

/// Work on the store that takes this long is reported.
const STALL_WARNING: Duration = Duration::from_secs(60);

/// Pulls images from registries, and imports them from files and directories.
#[async_trait]
pub trait Puller: fmt::Debug + Send + Sync {
    /// Pulls an image for this machine into a store, unless that has what its name stands for in the registry.
    ///
    /// When `cancelled` completes, or the future is dropped, the pull ends at once; in the first case nothing of it goes on
    /// when this returns.
    ///
    /// # Errors
    /// [`PullError`]. Nothing of the image can be used then.
    async fn pull(
        &self,
        pull: &Pull,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
        cancelled: Cancelled,
    ) -> Result<(), PullError>;
}

/// Completes when a pull is to end.
pub type Cancelled = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is pulled.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pull {
    /// Where the image is.
    pub source: PullSource,
    /// The store that it is added to.
    pub store: PathBuf,
    /// Credentials of whoever needs it, as `docker login` writes them; otherwise those of the agent are used.
    pub credentials: Option<String>,
}

/// Where an image is that the store does not have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PullSource {
    /// In a registry, under this name.
    Registry(ImageName),
    /// In a file or directory of this machine, which is read by [`LocalImage`](super::LocalImage) and whose path is the name of
    /// the image in the store.
    Local {
        /// The path.
        path: PathBuf,
        /// Directories that what the path leads to has to be in.
        permitted: Vec<PathBuf>,
    },
}

/// As people write it.
impl fmt::Display for PullSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(name) => f.write_str(&name.familiar()),
            Self::Local { path, .. } => path.display().fmt(f),
        }
    }
}

/// Without the credentials.
impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull")
            .field("source", &self.source)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Why an image was not pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The agent has no [`Puller`].
    #[error("this agent pulls no images, so the registry cannot be asked for it; use the image of the store")]
    NotConfigured,
    /// The registry, the image or this machine fails.
    #[error("{reason}")]
    Failed {
        /// Which image and registry, and why, with all causes.
        reason: String,
        /// Whether the request is wrong: there is no such image.
        is_invalid: bool,
    },
    /// The last container that needs it has ended.
    #[error("the pull was cancelled")]
    Cancelled,
    /// A thread or a task of the agent panicked.
    #[error("the pull was interrupted by an internal error: {reason}")]
    Interrupted {
        /// What happened.
        reason: String,
    },
}

/// The end of a pull: a lock on the store, in which the image is.
type Outcome = Result<Arc<Import>, PullError>;

/// The pulls of an agent.
#[derive(Debug)]
pub(super) struct Pulls {
    puller: Option<Arc<dyn Puller>>,
    active: Arc<Operations<Pull, PullProgress, Outcome>>,
    permits: Arc<Semaphore>,
}

/// A container that waits for a pull. When the last one is dropped, the pull is cancelled.
pub(crate) struct WaitingForPull(Waiting<Pull, PullProgress, Outcome>);

/// An image that was pulled, and that nobody removes from the store meanwhile.
#[derive(Debug)]
pub(crate) struct Pulled {
    _store: Arc<Import>,
}

impl Pulls {
    pub(super) fn new(puller: Option<Arc<dyn Puller>>) -> Self {
        Self { puller, active: Arc::default(), permits: Arc::new(Semaphore::new(MAX_PULLS)) }
    }

    pub(super) fn can_pull(&self) -> bool {
        self.puller.is_some()
    }

    /// Begins a pull, or waits for one that is in progress. Must be called in a tokio runtime.
    pub(super) fn wait(&self, pull: Pull, pool: &BlockingPool) -> Result<WaitingForPull, PullError> {
        let puller = self.puller.clone().ok_or(PullError::NotConfigured)?;
        let (permits, pool) = (Arc::clone(&self.permits), pool.clone());
        let task = Task { puller, permits, pull: pull.clone(), pool };
        Ok(WaitingForPull(self.active.wait(pull, |operation| task.run(operation))))
    }
}

/// The task of a pull.
struct Task {
    puller: Arc<dyn Puller>,
    permits: Arc<Semaphore>,
    pull: Pull,
    pool: BlockingPool,
}

impl Task {
    async fn run(self, operation: Operation<PullProgress>) -> Outcome {
        let _permit = tokio::select! {
            biased;
            () = operation.cancelled() => return Err(PullError::Cancelled),
            permit = self.permits.acquire() => permit,
        };
        let store = Store::at(&self.pull.store);
        let lock = self.in_store(move || store.import()).await?;
        let progress = |progress| operation.report(progress);
        let pulled = self.puller.pull(&self.pull, &progress, Box::pin(operation.cancelled())).await;
        if let Err(error) = pulled {
            // What was unpacked in part.
            drop(lock);
            let store = Store::at(&self.pull.store);
            if let Err(left) = self.in_store(move || store.sweep()).await {
                tracing::warn!("what a pull has left behind stays until the next one: {left}");
            }
            return Err(error);
        }
        Ok(Arc::new(lock))
    }

    async fn in_store<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, PullError> {
        match self.pool.run(STALL_WARNING, move |_| work()).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                let reason = crate::error_chain::describe(&error);
                Err(PullError::Failed { reason, is_invalid: false })
            }
            Err(abandoned) => Err(PullError::Interrupted { reason: abandoned.to_string() }),
        }
    }
}

impl WaitingForPull {
    /// Waits until the pull has ended. Each progress until then is passed on.
    pub(crate) async fn pulled(&mut self, mut each: impl FnMut(PullProgress)) -> Result<Pulled, PullError> {
        let each = |progress: PullProgress| {
            if progress.layers > 0 {
                each(progress);
            }
        };
        let interrupted = || PullError::Interrupted { reason: "its task panicked".to_owned() };
        let store = self.0.ended(each).await.ok_or_else(interrupted)??;
        Ok(Pulled { _store: store })
    }

    /// Does not wait any longer. If nobody else does, the pull is cancelled, and the future completes when nothing of it
    /// goes on, or after a while.
    pub(crate) fn leave(self) -> impl Future<Output = ()> + use<> {
        self.0.leave()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use tokio::sync::{Notify, mpsc};

    use super::*;
    use crate::blocking::MaxThreads;

    /// Reports its begin, and ends when it is told to, or cancelled.
    #[derive(Debug)]
    struct Told {
        begun: mpsc::UnboundedSender<String>,
        end: Arc<Notify>,
        outcome: Result<(), PullError>,
    }

    #[async_trait]
    impl Puller for Told {
        async fn pull(
            &self,
            pull: &Pull,
            progress: &(dyn Fn(PullProgress) + Send + Sync),
            cancelled: Cancelled,
        ) -> Result<(), PullError> {
            progress(PullProgress { layers: 2, pulled_layers: 1, bytes: 10, received: 5 });
            self.begun.send(pull.source.to_string()).unwrap();
            tokio::select! {
                biased;
                () = cancelled => {
                    self.begun.send("cancelled".to_owned()).unwrap();
                    Err(PullError::Cancelled)
                }
                () = self.end.notified() => self.outcome.clone(),
            }
        }
    }

    struct Fixture {
        directory: tempfile::TempDir,
        pulls: Pulls,
        pool: BlockingPool,
        begun: mpsc::UnboundedReceiver<String>,
        end: Arc<Notify>,
    }

    impl Fixture {
        fn new(outcome: Result<(), PullError>) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (begun, receiver) = mpsc::unbounded_channel();
            let end = Arc::new(Notify::new());
            let told = Told { begun, end: Arc::clone(&end), outcome };
            let pulls = Pulls::new(Some(Arc::new(told)));
            let max = MaxThreads { jobs: NonZeroUsize::MIN, removals: NonZeroUsize::MIN };
            let pool = BlockingPool::new(max).unwrap();
            Self { directory, pulls, pool, begun: receiver, end }
        }

        fn wait(&self, name: &str) -> WaitingForPull {
            let store = self.directory.path().join("store");
            let source = PullSource::Registry(name.parse().unwrap());
            let pull = Pull { source, store, credentials: None };
            self.pulls.wait(pull, &self.pool).unwrap()
        }
    }

    #[tokio::test]
    async fn concurrent_requests_share_a_pull_and_its_end() {
        let mut fixture = Fixture::new(Ok(()));
        let (mut one, mut other) = (fixture.wait("web"), fixture.wait("docker.io/library/web:latest"));
        assert_eq!(fixture.begun.recv().await.unwrap(), "web:latest");
        fixture.end.notify_one();
        let mut seen = Vec::new();
        let first = one.pulled(|progress| seen.push(progress.received)).await.unwrap();
        let second = other.pulled(drop).await.unwrap();
        assert_eq!((seen, fixture.begun.try_recv().is_err()), (vec![5], true), "one pull");
        // Nothing is removed before both have taken the image.
        let store = Store::at(fixture.directory.path().join("store"));
        drop((one, other, first));
        assert!(store.try_lock_exclusive().unwrap().is_none());
        drop(second);
        assert!(store.try_lock_exclusive().unwrap().is_some());
        let again = fixture.wait("web");
        assert_eq!(fixture.begun.recv().await.unwrap(), "web:latest", "another pull");
        again.leave().await;
    }

    #[tokio::test]
    async fn a_pull_is_cancelled_with_the_last_that_waits() {
        let mut fixture = Fixture::new(Ok(()));
        let (one, other) = (fixture.wait("web"), fixture.wait("web"));
        assert_eq!(fixture.begun.recv().await.unwrap(), "web:latest");
        one.leave().await;
        assert!(fixture.begun.try_recv().is_err(), "the other one waits");
        other.leave().await;
        assert_eq!(fixture.begun.try_recv().unwrap(), "cancelled");
        let (third, _fourth) = (fixture.wait("web"), fixture.wait("db"));
        let mut begun = [fixture.begun.recv().await.unwrap(), fixture.begun.recv().await.unwrap()];
        begun.sort();
        assert_eq!(begun, ["db:latest", "web:latest"]);
        drop(third);
        assert_eq!(fixture.begun.recv().await.unwrap(), "cancelled");
    }

    #[tokio::test]
    async fn all_that_wait_learn_why_a_pull_has_failed() {
        let failed = PullError::Failed { reason: "no such tag".to_owned(), is_invalid: true };
        let mut fixture = Fixture::new(Err(failed.clone()));
        let (mut one, mut other) = (fixture.wait("web"), fixture.wait("web"));
        assert_eq!(fixture.begun.recv().await.unwrap(), "web:latest");
        fixture.end.notify_one();
        assert_eq!(one.pulled(drop).await.unwrap_err(), failed);
        assert_eq!(other.pulled(drop).await.unwrap_err(), failed);
        let none = Pulls::new(None);
        let source = PullSource::Registry("web".parse().unwrap());
        let pull = Pull { source, store: PathBuf::new(), credentials: None };
        assert!(matches!(none.wait(pull, &fixture.pool), Err(PullError::NotConfigured)));
    }
}
