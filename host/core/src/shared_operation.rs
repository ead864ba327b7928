//! Operations that several wait for: one for all that need the same, cancelled with the last of them.
//!
//! The first one that needs something begins an operation, later ones wait for the same, and all see its progress and its
//! outcome. Once it has ended or is cancelled, whoever needs the same begins another one.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// How long whoever waits no longer waits for the end of an operation that is cancelled with him.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The operations in progress, by what they are for.
pub(crate) struct Operations<K, P, T>(Mutex<Table<K, P, T>>);

struct Table<K, P, T> {
    active: HashMap<K, Active<P, T>>,
    /// Tells an operation from an earlier one of the same key.
    next: u64,
}

/// An operation that somebody waits for.
struct Active<P, T> {
    number: u64,
    waiting: usize,
    cancel: watch::Sender<bool>,
    progress: watch::Receiver<P>,
    outcome: watch::Receiver<Option<T>>,
}

/// What those that wait see of an operation.
struct Seen<P, T> {
    number: u64,
    progress: watch::Receiver<P>,
    outcome: watch::Receiver<Option<T>>,
}

/// What an operation reports to, and is cancelled by.
pub(crate) struct Operation<P> {
    report: watch::Sender<P>,
    cancelled: watch::Receiver<bool>,
}

/// One that waits for an operation. When the last one is dropped, the operation is cancelled.
pub(crate) struct Waiting<K: Eq + Hash, P, T> {
    operations: Arc<Operations<K, P, T>>,
    key: K,
    seen: Seen<P, T>,
    is_released: bool,
}

impl<P> Operation<P> {
    /// Shows all that wait how far it is.
    pub(crate) fn report(&self, progress: P) {
        self.report.send_replace(progress);
    }

    /// Completes when the operation is cancelled.
    pub(crate) fn cancelled(&self) -> impl Future<Output = ()> + Send + use<P> {
        let mut cancelled = self.cancelled.clone();
        // An error means that the entry of this operation is gone, and with it those that wait.
        async move { drop(cancelled.wait_for(|cancelled| *cancelled).await) }
    }
}

impl<K, P, T> Operations<K, P, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    P: Copy + Default + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Waits for the operation of a key that is in progress, or begins one. Must be called in a tokio runtime.
    pub(crate) fn wait<F>(
        self: &Arc<Self>,
        key: K,
        operation: impl FnOnce(Operation<P>) -> F,
    ) -> Waiting<K, P, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = self.0.lock();
        let seen = match table.active.get_mut(&key) {
            Some(active) => {
                active.waiting += 1;
                let (progress, outcome) = (active.progress.clone(), active.outcome.clone());
                Seen { number: active.number, progress, outcome }
            }
            None => self.begin(&mut table, key.clone(), operation),
        };
        drop(table);
        Waiting { operations: Arc::clone(self), key, seen, is_released: false }
    }

    /// Begins an operation that one waits for.
    fn begin<F>(
        self: &Arc<Self>,
        table: &mut Table<K, P, T>,
        key: K,
        operation: impl FnOnce(Operation<P>) -> F,
    ) -> Seen<P, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let number = table.next;
        table.next += 1;
        let (cancel, cancelled) = watch::channel(false);
        let (report, progress) = watch::channel(P::default());
        let (end, outcome) = watch::channel(None);
        let seen = Seen { number, progress: progress.clone(), outcome: outcome.clone() };
        table.active.insert(key.clone(), Active { number, waiting: 1, cancel, progress, outcome });
        let (operations, work) = (Arc::clone(self), operation(Operation { report, cancelled }));
        tokio::spawn(async move {
            // With the end of this statement, nothing that it has used is left.
            let outcome = work.await;
            operations.forget(&key, number);
            end.send_replace(Some(outcome));
        });
        seen
    }

    /// Forgets an operation that has ended.
    fn forget(&self, key: &K, number: u64) {
        let mut table = self.0.lock();
        if table.active.get(key).is_some_and(|active| active.number == number) {
            table.active.remove(key);
        }
    }
}

impl<K, P, T> Waiting<K, P, T>
where
    K: Eq + Hash,
    P: Copy,
    T: Clone,
{
    /// Waits until the operation has ended. Each progress until then is passed on. `None` if it panicked.
    pub(crate) async fn ended(&mut self, mut each: impl FnMut(P)) -> Option<T> {
        let Seen { progress, outcome, .. } = &mut self.seen;
        loop {
            let current = *progress.borrow_and_update();
            each(current);
            let changed = tokio::select! {
                biased;
                _ = outcome.wait_for(Option::is_some) => break,
                changed = progress.changed() => changed,
            };
            // Its task has ended.
            if changed.is_err() {
                break;
            }
        }
        outcome.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Does not wait any longer. If nobody else does, the operation is cancelled, and the future completes when nothing of it
    /// goes on, or after a while.
    pub(crate) fn leave(mut self) -> impl Future<Output = ()> + use<K, P, T> {
        let cancelled = self.release().then(|| self.seen.outcome.clone());
        async move {
            if let Some(mut outcome) = cancelled {
                drop(tokio::time::timeout(CANCEL_TIMEOUT, outcome.wait_for(Option::is_some)).await);
            }
        }
    }
}

impl<K: Eq + Hash, P, T> Waiting<K, P, T> {
    /// Stops counting this one, once. Returns whether the operation is cancelled, as it was the last one.
    fn release(&mut self) -> bool {
        if std::mem::replace(&mut self.is_released, true) {
            return false;
        }
        let mut table = self.operations.0.lock();
        let Some(active) = table.active.get_mut(&self.key).filter(|active| active.number == self.seen.number)
        else {
            return false;
        };
        active.waiting -= 1;
        if active.waiting > 0 {
            return false;
        }
        active.cancel.send_replace(true);
        table.active.remove(&self.key);
        true
    }
}

impl<K: Eq + Hash, P, T> Drop for Waiting<K, P, T> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<K, P, T> Default for Operations<K, P, T> {
    fn default() -> Self {
        Self(Mutex::new(Table { active: HashMap::new(), next: 0 }))
    }
}

impl<K, P, T> fmt::Debug for Operations<K, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").field("active", &self.0.lock().active.len()).finish_non_exhaustive()
    }
}
