//! A thread that looks whether projects exceed their soft limits. The kernel does not tell.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_plugin_api::Event;
use cofferdam_plugin_api::prelude::*;

use crate::disk::Disk;

/// Ends its thread on drop, without waiting for it.
pub struct Poll(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    disk: Arc<Disk>,
    interval: Duration,
}

#[derive(Default)]
struct State {
    /// By container: its project and what is signalled.
    watched: BTreeMap<String, (u32, Event)>,
    has_thread: bool,
    is_closed: bool,
}

impl Poll {
    pub fn new(disk: Arc<Disk>, interval: Duration) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), disk, interval }))
    }

    /// A descriptor that becomes readable when the project of a container exceeds its soft limit.
    pub fn watch(&self, container: &str, project: u32) -> Result<OwnedFd> {
        let event = Event::new()?;
        let descriptor = event.descriptor()?;
        let mut state = self.0.lock();
        if !state.has_thread {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("disk/xfs".to_owned());
            thread.spawn(move || shared.run()).context("cannot create a thread that reads quotas")?;
            state.has_thread = true;
        }
        state.watched.insert(container.to_owned(), (project, event));
        Ok(descriptor)
    }

    pub fn forget(&self, container: &str) {
        self.0.lock().watched.remove(container);
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.is_closed {
            let watched: Vec<(String, u32)> =
                state.watched.iter().map(|(id, (project, _))| (id.clone(), *project)).collect();
            drop(state);
            // A file system may hang, and then no call waits for it.
            let over: Vec<String> = watched
                .into_iter()
                .filter(|(_, project)| {
                    self.disk.read(*project).is_ok_and(|quota| quota.soft > 0 && quota.used > quota.soft)
                })
                .map(|(id, _)| id)
                .collect();
            state = self.lock();
            for id in over {
                if let Some((_, event)) = state.watched.get(&id)
                    && let Err(error) = event.signal()
                {
                    error!(
                        container = id,
                        "cannot report that the container exceeds its disk limit: {error}"
                    );
                }
            }
            if !state.is_closed {
                let waited = self.changed.wait_timeout(state, self.interval);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}
