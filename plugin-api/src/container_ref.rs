//! The container that a call is about.

use std::cell::OnceCell;
use std::os::fd::BorrowedFd;
use std::path::Path;

use cofferdam_plugin_model as model;
use serde::de::DeserializeOwned;

use crate::{Cgroup, Error, Result, ResultExt};

/// The container that a call is about.
///
/// Its id costs nothing; the rest is read the first time it is asked for.
pub struct ContainerRef<'a> {
    id: &'a str,
    payload: &'a [u8],
    details: OnceCell<model::ContainerDetails>,
    descriptors: Vec<BorrowedFd<'a>>,
}

impl<'a> ContainerRef<'a> {
    pub(crate) fn new(id: &'a str, payload: &'a [u8], descriptors: Vec<BorrowedFd<'a>>) -> Self {
        Self { id, payload, details: OnceCell::new(), descriptors }
    }

    /// The container's dotted id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id
    }

    /// All that the agent says of it.
    ///
    /// # Errors
    /// When the agent's words cannot be read.
    pub fn details(&self) -> Result<&model::ContainerDetails> {
        if let Some(details) = self.details.get() {
            return Ok(details);
        }
        let details = if self.payload.is_empty() {
            model::ContainerDetails::default()
        } else {
            serde_json::from_slice(self.payload)
                .context("cannot read what the agent says of the container")?
        };
        Ok(self.details.get_or_init(|| details))
    }

    /// The container's first process, as the host sees it. It may be gone by the time the number is used;
    /// [`ContainerRef::descriptor`] 0 of `isolate` is a pidfd that cannot be mistaken.
    ///
    /// # Errors
    /// When the container has no process now.
    pub fn pid(&self) -> Result<i32> {
        self.details()?.pid.ok_or_else(|| Error::new(format!("container `{}` has no process", self.id)))
    }

    /// The directory with the container's files and logs.
    ///
    /// # Errors
    /// When the agent's words cannot be read.
    pub fn sandbox(&self) -> Result<&Path> {
        Ok(&self.details()?.sandbox)
    }

    /// What the plugin asked the agent to keep for this container; the default when it kept nothing.
    ///
    /// # Errors
    /// When it was kept in another shape than `T` reads.
    pub fn state<T: DeserializeOwned + Default>(&self) -> Result<T> {
        let state = &self.details()?.state;
        if state.is_null() {
            return Ok(T::default());
        }
        T::deserialize(state).context("cannot read the plugin's own state")
    }

    /// The container's knobs of one cgroup controller (`memory`, `cpuacct`, …).
    ///
    /// # Errors
    /// When this host has no such controller.
    pub fn cgroup(&self, controller: &str) -> Result<Cgroup> {
        Ok(Cgroup::of(&self.details()?.cgroups, controller)?)
    }

    /// A descriptor that came with the call, if there is one at that place.
    #[must_use]
    pub fn descriptor(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(index).copied()
    }
}
