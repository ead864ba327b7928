//! The messages of the operator API.
//!
//! Names and structure are those of the Mesos v1 agent API in JSON: `snake_case` fields, upper-case enum values,
//! unset fields left out. Decoding is as lenient as in Mesos (unknown fields are ignored, `null` means unset, 64-bit
//! integers may be quoted, an infinite limit is `"Infinity"`) with one exception: an unknown enum value is an error,
//! as a misspelt `ipc_mode` must not silently become the default.
//!
//! The types define structure only; values are validated where they are decoded into the agent's types.

#[macro_use]
mod message;
#[macro_use]
mod envelope;
mod bytes;
mod call;
mod command;
mod container;
mod docker;
mod endpoint;
mod event;
mod file;
mod id;
mod image;
mod inspect;
mod linux;
mod network;
mod plugin;
mod process_io;
mod resource;
mod response;
mod rlimit;
mod statistics;
mod status;
mod task;
mod termination;
mod volume;
mod wire;

pub use bytes::Bytes;
pub use call::{
    Call, GetContainers, GetMetrics, InspectContainer, KillContainer, KillContainers, LaunchContainer,
    LaunchNestedContainer, ListFiles, PruneImages, ReadFile, RemoveContainer, SetLoggingLevel,
    UpdateContainer, WaitContainer,
};
pub use command::{
    CommandInfo, Environment, Secret, SecretKind, SecretReference, SecretValue, Uri, Variable, VariableKind,
};
pub use container::{ContainerInfo, ContainerKind, MesosInfo, TtyInfo, WindowSize};
pub use docker::{DockerInfo, DockerNetwork, Parameter};
pub use endpoint::{ContainerEntry, FlagsPage, StatePage, StatisticsEntry};
pub use envelope::EnvelopeError;
pub use event::{ContainerEvent, Event, EventKind, EventsMissed, PluginEvent, Subscribe, Subscribed};
pub use file::FileInfo;
pub use id::{ContainerId, ExecutorId, FrameworkId, TaskId};
pub use image::{DockerImage, FetchProgress, Image, ImageKind, PrunedImages, PullProgress};
pub use inspect::{InspectedContainer, Participant, PlanEntry};
pub use linux::{Capability, CapabilityInfo, IpcMode, LinuxInfo, SeccompInfo};
pub use network::{IpAddress, IpProtocol, Label, Labels, NetworkInfo, PortMapping};
pub use plugin::{CallCount, InterruptedCall, PluginFailure, PluginHealth, PluginInfo, PluginKind};
pub use process_io::{
    AttachContainerInput, AttachContainerOutput, AttachInfo, AttachInputKind, Heartbeat, ProcessControl,
    ProcessControlKind, ProcessData, ProcessIo, ProcessIoKind, ProcessStream,
};
pub use resource::{
    DiskInfo, DiskPersistence, Marker, Range, Ranges, Resource, ResourceKind, Scalar, Set, Text,
};
pub use response::{
    AgentDescription, AgentId, AgentInfo, Container, Containers, ExecutorList, FileData, FileList, Flag,
    Flags, FrameworkList, Health, Keepers, LaunchedContainer, LoggingLevel, Metric, Metrics, OperationList,
    Plugins, ResourceProviderList, Response, RunningContainer, State, TaskList, Version, VersionInfo,
};
pub use rlimit::{RLimit, RLimitInfo, RLimitKind};
pub use statistics::{
    Blkio, BlkioCfq, BlkioOperation, BlkioThrottling, BlkioValue, DeviceNumber, DiskStatistics,
    PerfStatistics, ProtocolCounters, RatePercentiles, RateStatistics, ResourceStatistics, SnmpStatistics,
    TrafficControlStatistics,
};
pub use status::{CgroupInfo, ContainerStatus, NetCls};
pub use task::{
    AcknowledgeStatusUpdate, ExecutorInfo, FrameworkCapability, FrameworkInfo, FrameworkMessage, KillTask,
    LaunchTask, LaunchTaskGroup, MessageExecutor, ShutdownExecutor, StatusUpdate, SubscribeStatusUpdates,
    TaskGroup, TaskInfo, UpdateEvent,
};
pub use termination::{Reason, TaskResourceLimitation, TaskState, Termination};
pub use volume::{
    DockerVolume, DriverOptions, HostPathVolume, MountPropagation, PropagationMode, SandboxPathKind,
    SandboxPathVolume, Volume, VolumeMode, VolumeSource, VolumeSourceKind,
};
pub use wire::{DurationInfo, TimeInfo};
