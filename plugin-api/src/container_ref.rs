//! The container that a call after `prepare` is about.

use std::cell::OnceCell;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::Path;

use cofferdam_plugin_model as model;
use serde::de::DeserializeOwned;

use crate::process::{self, Process};
use crate::{Cgroup, Deadline, Error, Result, ResultExt};

/// The container that a call after `prepare` is about.
///
/// The id and the deadline cost nothing; the rest is decoded at the first access. The methods that return a `Result`
/// fail if the agent's message cannot be decoded.
pub struct ContainerRef<'a> {
    id: &'a str,
    payload: &'a [u8],
    details: OnceCell<model::ContainerDetails>,
    descriptors: Vec<BorrowedFd<'a>>,
    deadline: Deadline,
}

impl<'a> ContainerRef<'a> {
    /// The details are decoded from `payload` when they are needed.
    pub(crate) fn new(
        id: &'a str,
        payload: &'a [u8],
        descriptors: Vec<BorrowedFd<'a>>,
        deadline: Deadline,
    ) -> Self {
        Self { id, payload, details: OnceCell::new(), descriptors, deadline }
    }

    /// With details that have been decoded already.
    pub(crate) fn with_details(self, details: model::ContainerDetails) -> Self {
        Self { details: OnceCell::from(details), ..self }
    }

    /// The container's dotted id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id
    }

    /// When the agent stops waiting for this call.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// What is known of the container: class, user, resources, labels, how it ended, ….
    ///
    /// # Errors
    /// If the agent's message cannot be decoded.
    pub fn details(&self) -> Result<&model::ContainerDetails> {
        if let Some(details) = self.details.get() {
            return Ok(details);
        }
        let details = if self.payload.is_empty() {
            model::ContainerDetails::default()
        } else {
            serde_json::from_slice(self.payload).context("cannot decode the agent's message")?
        };
        Ok(self.details.get_or_init(|| details))
    }

    /// Pid of the container's first process in the agent's pid namespace. The process may have exited by the time the
    /// pid is used; [`ContainerRef::descriptor`] 0 of `isolate` is a pidfd, which stays valid.
    ///
    /// # Errors
    /// If the container has no process now.
    pub fn pid(&self) -> Result<i32> {
        self.details()?.pid.ok_or_else(|| Error::new(format!("container `{}` has no process", self.id)))
    }

    /// The directory of the host with the container's files and logs.
    ///
    /// # Errors
    /// If the agent's message cannot be decoded.
    pub fn sandbox(&self) -> Result<&Path> {
        Ok(&self.details()?.sandbox)
    }

    /// The plugin's state for this container; the default if there is none.
    ///
    /// # Errors
    /// If `T` cannot be read from the state.
    pub fn state<T: DeserializeOwned + Default>(&self) -> Result<T> {
        let state = &self.details()?.state;
        if state.is_null() {
            return Ok(T::default());
        }
        T::deserialize(state).context("cannot read the plugin's own state")
    }

    /// The container's cgroup of one controller (`memory`, `cpuacct`, …). For a container that shares the cgroups of
    /// its parent it is the parent's, see [`ContainerDetails::shares_cgroups`](crate::model::ContainerDetails::shares_cgroups).
    ///
    /// # Errors
    /// If this host has no such controller.
    pub fn cgroup(&self, controller: &str) -> Result<Cgroup> {
        Ok(Cgroup::of(&self.details()?.cgroups, controller)?)
    }

    /// The container's first process and its descendants; none before it exists and after it exited. See
    /// [`process::tree`](crate::process::tree) for what is left out.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let Some(pid) = self.details()?.pid else { return Ok(Vec::new()) };
        match process::tree(pid) {
            Ok(processes) => Ok(processes),
            // It has exited, and the agent has not noticed yet.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context(format!("cannot read process {pid} and its descendants")),
        }
    }

    /// The descriptor of that index that came with the call: the pidfd (0) of `isolate`, the watched descriptor (0) of
    /// `limitation`.
    #[must_use]
    pub fn descriptor(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(index).copied()
    }
}

/// The dotted id.
impl AsRef<str> for ContainerRef<'_> {
    fn as_ref(&self) -> &str {
        self.id
    }
}
