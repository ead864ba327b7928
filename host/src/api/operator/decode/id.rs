//! Container ids.

use super::error::{DecodeError, Result};
use crate::api::operator::types as wire;
use cofferdam_core::model::{ContainerId, InvalidId};

/// Decodes an id. `field` is its path in the message.
pub(in crate::api::operator) fn decode_id(
    field: &'static str,
    id: &wire::ContainerId,
) -> Result<ContainerId> {
    let invalid = |source| DecodeError::Id { field, source };
    let levels = std::iter::successors(Some(id), |id| id.parent.as_deref());
    let mut values: Vec<&str> = levels.map(|id| id.value.as_str()).collect();
    let root = values.pop().unwrap_or_default();
    // `ContainerId::parse` would take it for two levels.
    if root.contains('.') {
        return Err(invalid(InvalidId::Character { value: root.to_owned(), character: '.' }));
    }
    let root = ContainerId::parse(root).map_err(invalid)?;
    values.into_iter().rev().try_fold(root, |id, value| id.child(value)).map_err(invalid)
}

/// Decodes an id that must have a parent.
pub(in crate::api::operator) fn decode_nested_id(
    field: &'static str,
    id: &wire::ContainerId,
) -> Result<ContainerId> {
    let id = decode_id(field, id)?;
    if id.is_nested() { Ok(id) } else { Err(DecodeError::NoParent { field }) }
}
