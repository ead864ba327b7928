//! What a container is, as plain data: what was asked for, how far it is, how it ended.
//!
//! Nothing here does anything, and nothing here knows the rest of the house.

mod exit;
mod phase;
mod request;

pub use exit::{Ended, Reason, Termination};
pub use phase::{Event, OutOfOrder, Phase};
pub use request::{InvalidRequest, Request, Uri, check_resources};

pub use cofferdam_plugin_model::{
    Command, ContainerClass, ContainerId, InvalidId, Limit, LinuxOptions, Resources, Value,
};
