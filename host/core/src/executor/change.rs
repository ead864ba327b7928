//! What clients may want to know.

use std::sync::Arc;

use cofferdam_plugin_model::ContainerId;

use super::ids::{ExecutorId, FrameworkId};

/// Something that clients may want to know.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// There may be other updates of the executor in this container.
    Updates(ContainerId),
    /// An executor has sent a message to its framework.
    Message(Arc<FrameworkMessage>),
}

/// A message of an executor to its framework. It is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameworkMessage {
    /// The framework.
    pub framework: FrameworkId,
    /// The executor.
    pub executor: ExecutorId,
    /// The message.
    pub data: Vec<u8>,
}
