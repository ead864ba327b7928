//! What crosses the boundary between the agent and its plugins, as plain data.
//!
//! Every payload of the plugin ABI is one of these types as JSON. They grow without breaking anybody:
//! every field has a default, unknown fields are ignored, and every enum has a catch-all for what a newer
//! side may say. Nothing here does any work, but for [`units`]; the agent and the SDK do.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod cgroups;
mod container;
mod exchange;
mod id;
mod launch;
mod manifest;
mod resources;
pub mod service;
pub mod units;

pub use cgroups::Cgroups;
pub use container::{
    Command, Container, ContainerClass, ContainerDetails, ImageConfig, IpcMode, LinuxOptions, NetworkRequest,
    Parent, PortMapping, SeccompRequest, Secret, TerminationDetails, Tty, Volume, VolumeSource,
};
pub use exchange::{
    AgentInfo, CreateRequest, Limitation, LogFiles, LoggerReply, PrepareReply, RecoverReply, RecoverRequest,
    Recovered, StateReply, Status, Stream, UpdateRequest, Usage, Verdict,
};
pub use id::{ContainerId, InvalidId};
pub use launch::{
    BpfInstruction, Capabilities, CommandRewrite, DeviceKind, Hook, HookStage, IdMapping, IdMappings,
    LaunchInfo, Namespace, Operation, Owner, Propagation, Rlimit, Root, Seccomp, TimeOffsets,
};
pub use manifest::{FEATURES, Kind, Manifest, Method, Methods, REQUEST_PARTS};
pub use resources::{Limit, Resources, Value};
pub use semver::Version;
