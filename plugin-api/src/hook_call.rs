//! The argument of the methods of a hook.

use std::ops::Deref;
use std::os::fd::BorrowedFd;

use cofferdam_plugin_model as model;

use crate::{Deadline, Error, Result};

/// A call of a hook: the container that it is about, and what the agent tells of it. It dereferences to the request, such as
/// [`model::DockerLaunch`].
#[derive(Debug)]
pub struct HookCall<'a, T> {
    container: &'a str,
    request: T,
    descriptors: Vec<BorrowedFd<'a>>,
    deadline: Deadline,
}

impl<'a, T> HookCall<'a, T> {
    pub(crate) fn new(
        container: &'a str,
        request: T,
        descriptors: Vec<BorrowedFd<'a>>,
        deadline: Deadline,
    ) -> Self {
        Self { container, request, descriptors, deadline }
    }

    /// The dotted id of the container.
    #[must_use]
    pub fn container(&self) -> &str {
        self.container
    }

    /// When the agent stops waiting for this call.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }
}

impl HookCall<'_, model::PostFetch> {
    /// The sandbox of the container: a directory that is open for reading. What is in it is hostile. Use it with
    /// [`foreign`](crate::foreign), which follows no links.
    ///
    /// # Errors
    /// If it did not come with the call, which is a mistake of the agent.
    pub fn sandbox(&self) -> Result<BorrowedFd<'_>> {
        let sandbox = self.descriptors.first().copied();
        sandbox.ok_or_else(|| Error::new("the agent did not send the descriptor of the sandbox"))
    }
}

impl<T> Deref for HookCall<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.request
    }
}
