//! What is wrong with a request for a container of an engine, before anything of it exists.

use crate::model::ContainerId;

/// A field of a request that the docker containerizer cannot carry out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` of container `{id}` is invalid: {reason}")]
pub struct InvalidContainerInfo {
    /// The container.
    pub id: ContainerId,
    /// The field, as it is named in the API.
    pub field: String,
    /// What is wrong with it, and what to do.
    pub reason: String,
}

/// The field and the reason.
pub(super) type Problem = (String, String);

pub(super) fn problem<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Problem> {
    Err((field.into(), reason.into()))
}
