//! The containers of one containerizer.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::handle::ContainerHandle;
use crate::events::{EventKind, Events};
use crate::model::{ContainerId, Record};

/// The containers of one containerizer, by id.
pub(crate) struct Table<P> {
    handles: Mutex<BTreeMap<ContainerId, Arc<ContainerHandle<P>>>>,
    /// Where changes of the containers are reported.
    events: Events,
}

impl<P> Default for Table<P> {
    fn default() -> Self {
        Self::new(Events::default())
    }
}

impl<P> Table<P> {
    /// An empty table whose containers report their changes.
    pub(crate) fn new(events: Events) -> Self {
        Self { handles: Mutex::default(), events }
    }
}

impl<P: Clone + Serialize> Table<P> {
    pub(super) fn get(&self, id: &ContainerId) -> Option<Arc<ContainerHandle<P>>> {
        self.handles.lock().get(id).cloned()
    }

    /// Every container, parents before children.
    pub(super) fn all(&self) -> Vec<Arc<ContainerHandle<P>>> {
        self.handles.lock().values().cloned().collect()
    }

    /// A container and all that are nested in it, at any depth.
    pub(super) fn within(&self, id: &ContainerId) -> Vec<Arc<ContainerHandle<P>>> {
        let handles = self.handles.lock();
        handles.get(id).into_iter().chain(descendants(&handles, id)).cloned().collect()
    }

    /// The containers nested directly in one.
    pub(super) fn children(&self, id: &ContainerId) -> Vec<Arc<ContainerHandle<P>>> {
        let depth = id.values().count() + 1;
        let handles = self.handles.lock();
        descendants(&handles, id).filter(|handle| handle.id().values().count() == depth).cloned().collect()
    }

    /// Adds a container. `None` when its id is taken.
    pub(super) fn insert(&self, record: Record<P>) -> Option<Arc<ContainerHandle<P>>> {
        let mut handles = self.handles.lock();
        if handles.contains_key(&record.id) {
            return None;
        }
        let handle = Arc::new(ContainerHandle::new(record, self.events.clone()));
        handles.insert(handle.id().clone(), Arc::clone(&handle));
        Some(handle)
    }

    /// Removes a container and all that are nested in it.
    pub(super) fn remove(&self, id: &ContainerId) {
        let mut handles = self.handles.lock();
        let nested: Vec<ContainerId> = descendants(&handles, id).map(|handle| handle.id().clone()).collect();
        for id in nested.iter().chain([id]) {
            if handles.remove(id).is_some() {
                self.events.record(EventKind::Removed { container: id.clone() });
            }
        }
    }
}

/// All containers nested in one, at any depth. Their ids are contiguous: they begin with its id and a dot.
fn descendants<'a, P>(
    handles: &'a BTreeMap<ContainerId, Arc<ContainerHandle<P>>>,
    id: &ContainerId,
) -> impl Iterator<Item = &'a Arc<ContainerHandle<P>>> + use<'a, P> {
    let first = format!("{id}.");
    // `/` follows `.` in ASCII.
    let end = format!("{id}/");
    handles
        .range::<str, _>((Bound::Included(first.as_str()), Bound::Excluded(end.as_str())))
        .map(|(_, handle)| handle)
}
