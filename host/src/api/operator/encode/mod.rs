//! From the agent's types to messages.

mod agent;
mod container;
mod event;
mod id;
mod image;
mod launch;
mod linux;
mod plugin;
mod reports;
mod resources;
mod settings;
pub(in crate::api) mod task;
mod termination;
mod volume;

pub(crate) use agent::agent_info;
pub(super) use agent::{host_resources, hostname};
pub(super) use container::{container, inspection};
pub(super) use event::{received, subscribed};
pub(crate) use id::encode_id;
pub(crate) use image::encode_fetch;
pub(super) use image::pruned;
pub use launch::encode_launch;
pub(super) use plugin::plugin;
pub(crate) use resources::{encode_limits, encode_resources};
pub(crate) use settings::flags;
pub(super) use settings::version;
pub(super) use termination::termination;
