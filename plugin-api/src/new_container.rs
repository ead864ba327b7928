//! The container that `prepare` is about.

use std::ops::Deref;

use cofferdam_plugin_model as model;
use serde::de::DeserializeOwned;

use crate::{Deadline, Result, ResultExt};

/// A container that is to be launched: the argument of `prepare`. It dereferences to [`model::Container`], which has
/// all that was asked for.
#[derive(Debug, Clone)]
pub struct NewContainer {
    container: model::Container,
    deadline: Deadline,
}

impl NewContainer {
    pub(crate) fn new(container: model::Container, deadline: Deadline) -> Self {
        Self { container, deadline }
    }

    /// When the agent stops waiting for this call.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The plugin's own state for the container that this one is nested in; `None` for a top-level container, and if
    /// the plugin has no state for the parent.
    ///
    /// # Errors
    /// If `T` cannot be read from the state.
    pub fn parent_state<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let Some(parent) = self.container.parent.as_ref().filter(|parent| !parent.state.is_null()) else {
            return Ok(None);
        };
        let state = T::deserialize(&parent.state);
        state.map(Some).context(format!("cannot read the plugin's state for container `{}`", parent.id))
    }
}

impl Deref for NewContainer {
    type Target = model::Container;

    fn deref(&self) -> &model::Container {
        &self.container
    }
}

/// The dotted id.
impl AsRef<str> for NewContainer {
    fn as_ref(&self) -> &str {
        self.container.id.as_str()
    }
}
