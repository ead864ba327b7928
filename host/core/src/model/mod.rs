//! Plain data about containers: requests, phases, records, terminations. Imports no other module.

mod docker;
mod encoded;
mod phase;
mod record;
mod request;
mod termination;
pub mod view;

pub use docker::{DockerNetwork, DockerOptions, DockerParameter};
pub use encoded::Encoded;
pub use phase::Phase;
pub use record::{Cause, ProcessId, Record, now_unix_ms};
pub use request::{HostDirectory, InvalidRequest, Request, Uri, check_resources};
pub use termination::{Ended, Reason, Termination};
pub use view::{FetchProgress, PullProgress};

pub use cofferdam_plugin_model::{
    Command, ContainerClass, ContainerId, InvalidId, IpcMode, Limit, LinuxOptions, NetworkRequest,
    PortMapping, Resources, Rlimit, SeccompRequest, Secret, Tty, Value, Volume, VolumeSource,
};
