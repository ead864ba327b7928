//! Container ids.

use crate::api::operator::types as wire;
use cofferdam_core::model::ContainerId;

/// Encodes an id.
pub(crate) fn encode_id(id: &ContainerId) -> wire::ContainerId {
    let parent = id.parent().map(|parent| Box::new(encode_id(&parent)));
    wire::ContainerId { value: id.value().to_owned(), parent }
}
