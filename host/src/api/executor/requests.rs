//! How many requests of an executor may be in progress.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use parking_lot::Mutex;

use crate::api::operator::error::ApiError;
use cofferdam_core::executor::MAX_RUNNING;
use cofferdam_core::model::ContainerId;

/// Requests that are limited apart from others, so that none of them keeps an executor from its subscription or its updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Subscriptions, updates and messages.
    Own,
    /// What concerns nested containers.
    Nested,
    /// Waits for nested containers, which may take as long as these run.
    Wait,
    /// Requests whose body is longer than others may be.
    Long,
}

impl Kind {
    /// How many an executor may have in progress at a time.
    fn max(self) -> usize {
        match self {
            Self::Own => 16,
            Self::Nested => 256,
            // One for each task of a default executor, and as many for checks.
            Self::Wait => 2 * MAX_RUNNING,
            Self::Long => 1,
        }
    }

    /// Whether all executors together may have a part of the connections only.
    fn is_shared(self) -> bool {
        matches!(self, Self::Nested | Self::Wait)
    }
}

/// The requests in progress.
#[derive(Debug)]
pub(in crate::api) struct Requests {
    counts: Mutex<Counts>,
    /// Requests about nested containers that all executors may have in progress at a time.
    max_shared: usize,
}

#[derive(Debug, Default)]
struct Counts {
    executors: HashMap<ContainerId, [usize; 4]>,
    shared: usize,
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct InProgress {
    requests: Arc<Requests>,
    container: ContainerId,
    kind: Mutex<Kind>,
}

impl Requests {
    /// Requests about nested containers leave a quarter of the connections to subscriptions and updates.
    pub(in crate::api) fn new(max_connections: usize) -> Self {
        Self { counts: Mutex::default(), max_shared: max_connections - max_connections / 4 }
    }

    /// Adds a request, unless there are too many.
    pub(super) fn begin(self: &Arc<Self>, container: &ContainerId, kind: Kind) -> Option<InProgress> {
        self.add(container, kind).then(|| InProgress {
            requests: Arc::clone(self),
            container: container.clone(),
            kind: Mutex::new(kind),
        })
    }

    fn add(&self, container: &ContainerId, kind: Kind) -> bool {
        let mut counts = self.counts.lock();
        if kind.is_shared() && counts.shared >= self.max_shared {
            return false;
        }
        let count = &mut counts.executors.entry(container.clone()).or_default()[kind as usize];
        if *count == kind.max() {
            return false;
        }
        *count += 1;
        counts.shared += usize::from(kind.is_shared());
        true
    }

    fn remove(&self, container: &ContainerId, kind: Kind) {
        let mut counts = self.counts.lock();
        counts.shared -= usize::from(kind.is_shared());
        if let Some(executor) = counts.executors.get_mut(container) {
            executor[kind as usize] -= 1;
            if *executor == [0; 4] {
                counts.executors.remove(container);
            }
        }
    }
}

impl InProgress {
    /// Counts it as one of another kind, unless there are too many of these.
    pub(super) fn becomes(&self, kind: Kind) -> bool {
        let mut own = self.kind.lock();
        let is_possible = self.requests.add(&self.container, kind);
        if is_possible {
            self.requests.remove(&self.container, std::mem::replace(&mut *own, kind));
        }
        is_possible
    }

    /// Counts it as one of another kind as well, until the result is dropped.
    pub(super) fn with(&self, kind: Kind) -> Option<Self> {
        self.requests.begin(&self.container, kind)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.requests.remove(&self.container, *self.kind.get_mut());
    }
}

/// There are too many requests.
pub(super) fn too_many() -> ApiError {
    let text = "too many requests of executors are in progress; try again later";
    ApiError::message(StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executors() -> [ContainerId; 2] {
        ["one", "other"].map(|id| ContainerId::parse(id).unwrap())
    }

    #[test]
    fn an_executor_has_so_many_requests_and_others_have_theirs() {
        let requests = Arc::new(Requests::new(4096));
        let [one, other] = executors();
        for kind in [Kind::Own, Kind::Nested, Kind::Wait, Kind::Long] {
            let mut pending: Vec<_> = (0..kind.max()).map(|_| requests.begin(&one, kind).unwrap()).collect();
            assert!(requests.begin(&one, kind).is_none());
            assert!(requests.begin(&other, kind).is_some());
            pending.pop();
            pending.push(requests.begin(&one, kind).unwrap());
        }
        assert!(requests.counts.lock().executors.is_empty());
    }

    #[test]
    fn waits_do_not_keep_an_executor_from_anything_else() {
        let requests = Arc::new(Requests::new(4096));
        let [one, _] = executors();
        let wait = |_| {
            let request = requests.begin(&one, Kind::Nested).unwrap();
            assert!(request.becomes(Kind::Wait));
            request
        };
        let waits: Vec<_> = (0..Kind::Wait.max()).map(wait).collect();
        let more = requests.begin(&one, Kind::Nested).unwrap();
        assert!(!more.becomes(Kind::Wait));
        assert!(requests.begin(&one, Kind::Own).is_some());
        drop((waits, more));
        assert_eq!(requests.counts.lock().shared, 0);
        assert!(requests.counts.lock().executors.is_empty());
    }

    #[test]
    fn connections_are_left_for_updates_whatever_executors_wait_for() {
        let requests = Arc::new(Requests::new(16));
        let [one, other] = executors();
        let _waits: Vec<_> = (0..12).map(|_| requests.begin(&one, Kind::Wait).unwrap()).collect();
        assert!(requests.begin(&one, Kind::Wait).is_none());
        assert!(requests.begin(&other, Kind::Nested).is_none());
        let updates: Vec<_> = (0..4).map_while(|_| requests.begin(&other, Kind::Own)).collect();
        assert_eq!(updates.len(), 4);
    }
}
