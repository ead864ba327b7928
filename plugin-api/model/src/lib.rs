//! Payloads of the plugin ABI: the plain data that the agent and its plugins exchange.
//!
//! Every payload is one of these types, encoded as JSON. The types can grow without breaking older agents and plugins:
//!
//! - New fields have defaults.
//! - Plugins ignore unknown fields of requests. The agent refuses unknown fields of replies and of service requests,
//!   because ignoring them would drop what the plugin requests.
//! - An enum variant that is unknown to the receiver is decoded as `Unknown`, except in [`Value`] and [`Limit`].
//!
//! Except for [`units`] and [`ContainerId`], this crate contains no logic.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bpf;
mod cgroups;
mod container;
mod exchange;
mod hook;
mod id;
mod launch;
mod manifest;
mod resources;
pub mod service;
pub mod units;

pub use bpf::BpfInstruction;
pub use cgroups::Cgroups;
pub use container::{
    Command, Container, ContainerClass, ContainerDetails, ImageConfig, ImageRoot, IpcMode, LinuxOptions,
    LogPlace, LogTarget, NetworkRequest, Parent, PortMapping, SeccompRequest, Secret, TerminationDetails,
    Tty, Volume, VolumeSource,
};
pub use exchange::{
    AgentInfo, AgentProcess, CreateRequest, Limitation, LogFiles, LoggerReply, PrepareReply, RecoverReply,
    RecoverRequest, Recovered, StateReply, Status, Stream, UpdateRequest, Usage, Verdict,
};
pub use hook::{
    DockerLaunch, DockerLaunchReply, DockerParameter, ExecutorDetails, ExecutorEnvironment,
    ExecutorEnvironmentReply, ExecutorKind, FrameworkDetails, PostFetch, TaskDetails, TaskStatus,
    TaskStatusReply,
};
pub use id::{ContainerId, InvalidId};
pub use launch::{
    Capabilities, CommandRewrite, DeviceKind, HookStage, IdMapping, IdMappings, LaunchHook, LaunchInfo,
    Namespace, Operation, Owner, Propagation, Rlimit, Root, Seccomp, TimeOffsets,
};
pub use manifest::{FEATURES, Kind, LINUX_LAUNCHER, LOG_TARGETS, Manifest, Method, Methods, REQUEST_PARTS};
pub use resources::{Limit, Resources, Value};
pub use semver::Version;
