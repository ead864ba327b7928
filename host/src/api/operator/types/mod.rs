//! The messages of the operator API, as they look on the wire.
//!
//! Names and shapes are those of the Mesos v1 agent API in its JSON form: `snake_case` fields, enum values as
//! upper-case words, unset fields left out. Reading is as tolerant as Mesos is where that helps a client (fields
//! nobody knows are skipped, `null` means unset, 64-bit numbers may be quoted, an infinite limit is
//! `"Infinity"`) and stricter in one place: a word that is not a value of its enum is an error, because a
//! misspelt `ipc_mode` must not quietly become the default.
//!
//! The types carry shape only. Whether an id is well-formed or a volume makes sense is decided by those who use
//! them.

#[macro_use]
mod message;
#[macro_use]
mod envelope;
mod bytes;
mod call;
mod command;
mod container;
mod endpoint;
mod file;
mod id;
mod inspect;
mod network;
mod resource;
mod response;
mod statistics;
mod status;
mod volume;
mod wire;

pub use bytes::Bytes;
pub use call::{
    Call, GetContainers, GetMetrics, InspectContainer, KillContainer, LaunchContainer, LaunchNestedContainer,
    ListFiles, PruneImages, ReadFile, RemoveContainer, UpdateContainer, WaitContainer,
};
pub use command::{
    CommandInfo, Environment, Secret, SecretKind, SecretReference, SecretValue, Uri, Variable, VariableKind,
};
pub use container::{
    Capability, CapabilityInfo, ContainerInfo, ContainerKind, DockerImage, DockerInfo, DockerNetwork, Image,
    ImageKind, IpcMode, LinuxInfo, MesosInfo, Parameter, RLimit, RLimitInfo, RLimitKind, SeccompInfo,
    TtyInfo, WindowSize,
};
pub use endpoint::{ContainerEntry, FlagsPage, StatePage, StatisticsEntry};
pub use envelope::EnvelopeError;
pub use file::FileInfo;
pub use id::{ContainerId, ExecutorId, FrameworkId};
pub use inspect::{
    CallCount, InspectedContainer, PlanEntry, PluginFailure, PluginHealth, PluginInfo, PluginKind,
    ServingPlugin,
};
pub use network::{IpAddress, IpProtocol, Label, Labels, NetworkInfo, PortMapping};
pub use resource::{
    DiskInfo, DiskPersistence, Marker, Range, Ranges, Resource, ResourceKind, Scalar, Set, Text,
};
pub use response::{
    Container, Containers, ExecutorList, FileData, FileList, Flag, Flags, FrameworkList, Health, Metric,
    Metrics, Plugins, Response, State, TaskList, Termination, Version, VersionInfo,
};
pub use statistics::{
    Blkio, BlkioCfq, BlkioOperation, BlkioThrottling, BlkioValue, DeviceNumber, DiskStatistics,
    PerfStatistics, ProtocolCounters, RatePercentiles, RateStatistics, ResourceStatistics, SnmpStatistics,
    TrafficControlStatistics,
};
pub use status::{CgroupInfo, ContainerStatus, NetCls, Reason, TaskResourceLimitation, TaskState};
pub use volume::{
    DockerVolume, DriverOptions, HostPathVolume, MountPropagation, PropagationMode, SandboxPathKind,
    SandboxPathVolume, Volume, VolumeMode, VolumeSource, VolumeSourceKind,
};
pub use wire::{DurationInfo, TimeInfo};
