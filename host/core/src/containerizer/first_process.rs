//! The first process of a running container, by its pidfd.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use cofferdam_linux::process::Process;
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
        let pidfd = stored.pidfd.open()?;
        Ok(Some(Arc::new(Process::from_duplicate(stored.pid, stored.start_time, pidfd))))
    }
}
