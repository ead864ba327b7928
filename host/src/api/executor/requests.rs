//! How many requests of an executor may be in progress.

use std::collections::HashMap;
use std::sync::Arc;

use cofferdam_core::model::ContainerId;
use parking_lot::Mutex;

/// Requests of an executor that may be in progress at a time: its subscription, and waits for nested containers.
const MAX: usize = 256;

/// The requests in progress, by executor.
#[derive(Debug, Default)]
pub(in crate::api) struct Requests(Mutex<HashMap<ContainerId, usize>>);

/// A request in progress.
#[derive(Debug)]
pub(super) struct InProgress {
    requests: Arc<Requests>,
    container: ContainerId,
}

impl Requests {
    /// Adds a request, unless there are too many.
    pub(super) fn begin(self: &Arc<Self>, container: &ContainerId) -> Option<InProgress> {
        let mut requests = self.0.lock();
        let count = requests.entry(container.clone()).or_default();
        if *count == MAX {
            return None;
        }
        *count += 1;
        Some(InProgress { requests: Arc::clone(self), container: container.clone() })
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut requests = self.requests.0.lock();
        if let Some(count) = requests.get_mut(&self.container) {
            *count -= 1;
            if *count == 0 {
                requests.remove(&self.container);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_has_so_many_requests_and_others_have_theirs() {
        let requests = Arc::new(Requests::default());
        let [one, other] = ["one", "other"].map(|id| ContainerId::parse(id).unwrap());
        let mut pending: Vec<_> = (0..MAX).map(|_| requests.begin(&one).unwrap()).collect();
        assert!(requests.begin(&one).is_none());
        assert!(requests.begin(&other).is_some());
        pending.pop();
        pending.push(requests.begin(&one).unwrap());
        drop(pending);
        assert!(requests.0.lock().is_empty());
    }
}
