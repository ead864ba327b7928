//! Plugins: from a file to something that can be called.
//!
//! ```text
//! file ─▶ preflight (no plugin code runs) ─▶ store (private copy by hash) ─▶ load (dlopen, layout check)
//!                                                                               │
//! chain ─▶ Plugin::invoke ─▶ placement::Instance ─▶ ABI     placement::Placement ◀┘
//! ```

mod admit;
mod counters;
mod elf;
mod error;
mod health;
mod in_flight;
mod index;
mod limits;
mod load;
mod log;
mod placement;
#[expect(clippy::module_inception, reason = "the main type of the module")]
mod plugin;
mod preflight;
mod services;
mod store;

pub use admit::{AdmitError, PluginEnv};
pub use error::CallError;
pub use health::Health;
pub use index::{LookupError, PluginIndex};
pub(crate) use limits::MAX_STATE;
pub use load::LoadError;
pub use placement::Response;
pub use plugin::{Durability, Plugin, Recoverer, StateError};
pub use preflight::{Candidate, PreflightError, find, inspect_file};
pub use services::Services;
pub use store::{Store, StoreError};
