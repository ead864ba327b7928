//! Everything needed to write an isolator, a container logger or a hook for Cofferdam.
//!
//! ```
//! use cofferdam_plugin_api::prelude::*;
//!
//! /// Tells a container which building it runs in.
//! struct Building {
//!     name: String,
//! }
//!
//! #[derive(Deserialize, PluginConfig)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     /// What `BUILDING` is set to.
//!     name: String,
//! }
//!
//! #[cofferdam_plugin_api::isolator]
//! impl Isolator for Building {
//!     const NAME: &'static str = "example/building";
//!     type Config = Config;
//!
//!     fn create(config: Config, _host: Host) -> Result<Self> {
//!         Ok(Self { name: config.name })
//!     }
//!
//!     fn prepare(&self, _container: &NewContainer) -> Result<Prepared> {
//!         Ok(Prepared::new().environment("BUILDING", &self.name))
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! ```text
//!   author's impl ◀── bridge ◀── cofferdam-plugin-abi ◀── agent
//!        │              │ decode, catch panics, encode
//!        └─ prelude     └─ log: tracing events and spans go to the agent
//! ```
//!
//! The documentation of the traits [`Isolator`], [`Logger`] and [`Hook`] is the manual. [`testing::PluginHarness`] calls a plugin in
//! a unit test as the agent does.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod bridge;
pub mod cgroup;
mod changes;
pub mod command;
pub mod companion;
pub mod config;
mod container_ref;
mod controllers;
mod deadline;
mod descriptors;
mod error;
pub mod event;
mod event_counters;
mod export;
mod hook;
mod hook_call;
mod host;
mod isolator;
mod leases;
mod log;
pub mod log_companion;
mod logger;
pub mod mount;
pub mod network;
mod new_container;
mod note;
mod panic;
mod perf_samples;
mod prepared;
mod pressure;
pub mod process;
mod recovery;
pub mod secret;
pub mod space;
pub mod testing;
pub mod volume;

pub use cofferdam_linux::{capability, devices, foreign, measure, perf, quota, resource_limit, tree};
pub use cofferdam_plugin_macros::{PluginConfig, hook, isolator, logger};
pub use cofferdam_plugin_model as model;

pub use cgroup::Cgroup;
pub use changes::Changes;
pub use config::PluginConfig;
pub use container_ref::ContainerRef;
pub use controllers::{Controllers, OwnCgroups};
pub use deadline::Deadline;
pub use error::{Error, Result, ResultExt};
pub use event::Event;
pub use event_counters::EventCounters;
pub use hook::Hook;
pub use hook_call::HookCall;
pub use host::Host;
pub use isolator::Isolator;
pub use leases::Leases;
pub use logger::{Logger, Output, Streams};
pub use new_container::NewContainer;
pub use perf_samples::{PerfSample, PerfSamples};
pub use prepared::{Applied, Prepared};
pub use pressure::Pressure;
pub use recovery::{RecoverRequest, Recovery};
pub use serde_json::{Value as Json, json};

/// What most plugins need.
pub mod prelude {
    pub use serde::{Deserialize, Serialize};
    pub use tracing::{debug, error, info, trace, warn};

    pub use crate::model::{
        Container, ContainerId, DeviceKind, Limitation, Namespace, Operation, Owner, Recovered, Resources,
        Root, Status, Usage, Value, Version,
    };
    pub use crate::{
        Applied, Cgroup, ContainerRef, Controllers, Error, Event, Hook, HookCall, Host, Isolator, Json,
        Logger, NewContainer, Output, PluginConfig, Prepared, RecoverRequest, Recovery, Result, ResultExt,
        Streams, json,
    };
}

/// Used by the expansion of the export attributes. Not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult};
    pub use abi_stable::prefix_type::PrefixTypeTrait;
    pub use cofferdam_plugin_abi::{Module, ModuleRef};

    pub use crate::bridge::{new_hook, new_isolator, new_logger, no_hook, no_isolator, no_logger};
    pub use crate::export::Export;
    pub use crate::note::{Note, Text, note_len};
}
