//! From messages to the agent's types.
//!
//! A field that this agent does not implement is rejected by name: a container without a volume that was asked for
//! is worse than none.

mod container;
mod error;
mod id;
mod image;
mod launch;
mod linux;
mod network;
mod resources;
mod secret;
pub(in crate::api) mod task;
mod volume;

pub(crate) use error::DecodeError;
pub(super) use id::{decode_id, decode_nested_id};
pub(in crate::api) use image::decode_prune;
pub(in crate::api) use launch::{decode_launch, decode_nested_launch, decode_session};
pub(super) use linux::decode_tty;
pub(crate) use resources::decode_resources;
