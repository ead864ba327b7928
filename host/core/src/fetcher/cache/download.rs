//! One download for the cache.

use std::path::Path;
use std::sync::Arc;

use super::Wanted;
use super::files::Draft;
use super::index::{Content, Index, Reservation};
use crate::blocking::WorkPool;
use crate::fetcher::child::Child;
use crate::fetcher::counters::count;
use crate::fetcher::{FetchError, FetchJob, FetchMessage, Known, Program, Reason, StoreJob, Stored};
use crate::model::FetchProgress;
use crate::shared_operation::Operation;

/// A download for the cache, or the validation of what it has.
pub(super) struct Download {
    pub(super) index: Arc<Index>,
    pub(super) pool: WorkPool,
    pub(super) key: String,
    pub(super) wanted: Wanted,
    pub(super) program: Program,
}

/// How the process that downloads has ended.
enum End {
    Stored(Stored, Reservation),
    Unchanged,
    /// It does not fit into the cache.
    NoSpace,
    /// It cannot be written to the cache.
    NotWritten(Reason),
}

impl Download {
    /// Returns the content, or `None` if the file has to be fetched without the cache.
    pub(super) async fn run(
        self,
        operation: Operation<FetchProgress>,
    ) -> Result<Option<Arc<Content>>, FetchError> {
        let (index, key) = (Arc::clone(&self.index), self.key.clone());
        let (found, draft) = self.in_pool(move || (index.find(&key), index.draft())).await?;
        let known = found.as_ref().map(|(_, known)| known.clone());
        let draft = match draft {
            Ok(draft) => draft,
            Err(error) => return Ok(self.bypass(&format!("cannot create a file in its directory: {error}"))),
        };
        let end = self.receive(&draft, known, &operation).await;
        match end {
            Ok(End::Stored(stored, reservation)) => self.add(draft, stored, reservation).await,
            Ok(End::Unchanged) => {
                let (index, key) = (Arc::clone(&self.index), self.key.clone());
                self.pool.spawn(move || {
                    index.touch(&key);
                    drop(draft);
                });
                count(&self.program.counters.hits);
                Ok(found.map(|(content, _)| content))
            }
            Ok(End::NoSpace) => {
                self.abandon(draft, found);
                Ok(self.bypass("it does not fit, beside what is in use"))
            }
            Ok(End::NotWritten(reason)) => {
                self.abandon(draft, found);
                Ok(self.bypass(&format!("the file cannot be written: {reason}")))
            }
            Err(error) => {
                self.pool.spawn(move || drop(draft));
                Err(error)
            }
        }
    }

    async fn receive(
        &self,
        draft: &Draft,
        known: Option<Known>,
        operation: &Operation<FetchProgress>,
    ) -> Result<End, FetchError> {
        let has_known = known.is_some();
        let Wanted { source, uid, gid } = self.wanted.clone();
        let limits = self.program.limits.clone();
        let credentials = self.program.credentials.as_deref().map(Path::to_owned);
        let job = StoreJob { into: draft.path.clone(), uid, gid, source, known, limits, credentials };
        let mut child = self.program.start(&FetchJob::Store(job))?;
        let end = tokio::select! {
            biased;
            () = operation.cancelled() => Err(FetchError::Stopped),
            end = self.follow(&mut child, has_known, operation) => end,
        };
        if matches!(end, Ok(End::NoSpace) | Err(FetchError::Stopped)) {
            child.end().await?;
        }
        end
    }

    /// Follows what the process reports, until it ends or there is no space for more.
    async fn follow(
        &self,
        child: &mut Child,
        has_known: bool,
        operation: &Operation<FetchProgress>,
    ) -> Result<End, FetchError> {
        let mut reservation = self.index.reserve();
        let mut end = None;
        while let Some(message) = child.next().await {
            match message {
                FetchMessage::Progress(progress) => {
                    operation.report(progress);
                    match self.reserve(reservation, &progress).await? {
                        Some(grown) => reservation = grown,
                        None => return Ok(End::NoSpace),
                    }
                }
                FetchMessage::Stored(_) | FetchMessage::Unchanged | FetchMessage::NotWritten(_) => {
                    end = Some(message);
                }
                FetchMessage::Failed(_) => {}
            }
        }
        child.outcome().await?;
        match end {
            Some(FetchMessage::Stored(stored)) => Ok(End::Stored(stored, reservation)),
            Some(FetchMessage::Unchanged) if has_known => Ok(End::Unchanged),
            Some(FetchMessage::NotWritten(reason)) => Ok(End::NotWritten(reason)),
            _ => Err(FetchError::Silent),
        }
    }

    /// Reserves what is needed for a file as far as it is known. `None` if there is no space.
    async fn reserve(
        &self,
        mut reservation: Reservation,
        progress: &FetchProgress,
    ) -> Result<Option<Reservation>, FetchError> {
        let FetchProgress { bytes, received, .. } = *progress;
        let needed = bytes.max(received);
        if needed <= reservation.bytes() {
            return Ok(Some(reservation));
        }
        let index = Arc::clone(&self.index);
        self.in_pool(move || {
            let is_announced = bytes >= received;
            let has_space = match is_announced {
                true => index.grow(&mut reservation, needed),
                false => index.follow(&mut reservation, needed),
            };
            has_space.then_some(reservation)
        })
        .await
    }

    async fn add(
        &self,
        draft: Draft,
        stored: Stored,
        reservation: Reservation,
    ) -> Result<Option<Arc<Content>>, FetchError> {
        let (index, key) = (Arc::clone(&self.index), self.key.clone());
        match self.in_pool(move || index.add(&key, draft, reservation, stored)).await? {
            Ok(content) => {
                count(&self.program.counters.misses);
                Ok(Some(content))
            }
            Err(error) => Ok(self.bypass(&format!("cannot add the file: {error}"))),
        }
    }

    /// Removes what was received, and the version that it was to replace: that is not current any more, and its space may
    /// be what the next attempt needs.
    fn abandon(&self, draft: Draft, found: Option<(Arc<Content>, Known)>) {
        let (index, key) = (Arc::clone(&self.index), self.key.clone());
        self.pool.spawn(move || {
            if let Some((content, _)) = found {
                index.discard(&key, &content);
            }
            drop(draft);
        });
    }

    fn bypass(&self, reason: &str) -> Option<Arc<Content>> {
        tracing::info!("a file is fetched without the fetcher's cache: {reason}");
        count(&self.program.counters.bypasses);
        None
    }

    async fn in_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FetchError> {
        self.pool.run(work).await.map_err(|_| FetchError::Interrupted)
    }
}
