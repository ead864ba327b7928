//! Plugins: from a file to something that can be called.
//!
//! ```text
//! file ─▶ preflight (no plugin code runs) ─▶ store (private copy by hash) ─▶ load (dlopen, layout check)
//!                                                                               │
//! chain ─▶ Plugin::invoke ─▶ placement::Instance ─▶ ABI     placement::Placement ◀┘
//! ```

mod admit;
mod attribute;
mod counters;
mod elf;
mod error;
#[cfg(test)]
mod fuzz;
mod health;
mod in_flight;
mod lifecycle;
mod limits;
mod load;
mod log;
mod lookup;
mod placement;
#[expect(clippy::module_inception, reason = "the main type of the module")]
mod plugin;
mod preflight;
mod recoverer;
mod reply;
mod services;
mod store;

pub use admit::{AdmitError, LoadedPlugin, PluginEnv};
pub use attribute::attribute;
/// Version of the plugin API of this agent.
pub use cofferdam_plugin_abi::API_VERSION;
pub use error::CallError;
pub use lifecycle::Health;
pub(crate) use limits::MAX_STATE;
pub use load::LoadError;
pub use lookup::{LookupError, PluginIndex};
pub use placement::Response;
pub use plugin::Plugin;
pub use preflight::{PreflightError, find, inspect_file, read_manifest};
pub use recoverer::{Durability, LeaseError, Recoverer, StateError};
pub use services::Services;
pub use store::{Candidate, Store, StoreError, Trust};
