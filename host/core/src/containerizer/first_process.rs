//! The first process of a running container, by its pidfd.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use cofferdam_linux::process::{Process, ProcessError};
use parking_lot::Mutex;

use crate::descriptor_store::{DescriptorStore, Stored};

/// The first process of a container, if it has one.
#[derive(Default)]
pub(super) struct FirstProcess(Mutex<Place>);

/// Where its pidfd is.
#[derive(Default)]
enum Place {
    #[default]
    Nowhere,
    /// In the process's table.
    Table(Arc<Process>),
    Stored(Arc<StoredProcess>),
}

/// A process whose pidfd is stored.
pub(crate) struct StoredProcess {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pub(crate) pidfd: Stored,
}

impl StoredProcess {
    /// Opens the process by its pid and start time, as its pidfd is lost. `None` if it has been reaped.
    pub(super) fn reopen(&self) -> io::Result<Option<Arc<Process>>> {
        match Process::open(self.pid, self.start_time) {
            Ok(process) => Ok(Some(Arc::new(process))),
            Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. }) => Ok(None),
            Err(ProcessError::Open { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl FirstProcess {
    pub(super) fn set(&self, process: Option<Arc<Process>>) {
        *self.0.lock() = process.map_or(Place::Nowhere, Place::Table);
    }

    /// Stores the pidfd of `process`, which becomes the first process.
    pub(super) fn store(&self, process: &Process, descriptors: &DescriptorStore) -> io::Result<()> {
        let pidfd = descriptors.put(process.as_fd())?;
        let stored = StoredProcess { pid: process.pid(), start_time: process.start_time(), pidfd };
        *self.0.lock() = Place::Stored(Arc::new(stored));
        Ok(())
    }

    pub(super) fn in_table(&self) -> Option<Arc<Process>> {
        match &*self.0.lock() {
            Place::Table(process) => Some(Arc::clone(process)),
            _ => None,
        }
    }

    pub(super) fn stored(&self) -> Option<Arc<StoredProcess>> {
        match &*self.0.lock() {
            Place::Stored(stored) => Some(Arc::clone(stored)),
            _ => None,
        }
    }

    /// A handle of it, wherever its pidfd is.
    pub(super) fn open(&self) -> io::Result<Option<Arc<Process>>> {
        let stored = match &*self.0.lock() {
            Place::Nowhere => return Ok(None),
            Place::Table(process) => return Ok(Some(Arc::clone(process))),
            Place::Stored(stored) => Arc::clone(stored),
        };
        match stored.pidfd.open() {
            Ok(pidfd) => Ok(Some(Arc::new(Process::from_duplicate(stored.pid, stored.start_time, pidfd)))),
            Err(_) if stored.pidfd.is_lost() => stored.reopen(),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tokio::runtime::Handle;

    use super::*;

    #[tokio::test]
    async fn a_process_whose_stored_pidfd_is_lost_is_found_until_it_is_reaped() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let (first, store) = (FirstProcess::default(), DescriptorStore::new(Handle::current()));
        first.store(&Process::open_any(pid).unwrap(), &store).unwrap();
        assert_eq!(first.open().unwrap().unwrap().pid(), pid);

        store.end_threads();
        assert!(!first.stored().unwrap().pidfd.ready().await);
        assert_eq!(first.open().unwrap().unwrap().pid(), pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(first.open().unwrap().is_none());
    }
}
