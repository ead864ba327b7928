//! Guests: how a file becomes a plugin, and how a plugin is called.
//!
//! ```text
//!   file ─▶ preflight (nothing runs) ─▶ store (private copy by hash) ─▶ load (dlopen, both-way check)
//!                                                                          │
//!   chain ─▶ Plugin::call ─▶ instance ─▶ boundary            instance ◀────┘ create
//! ```

mod call;
mod descriptors;
mod elf;
mod instance;
mod load;
mod log;
mod preflight;
mod store;

pub use call::{AdmitError, CallError, Health, Plugin, Premises, Recoverer};
pub use instance::Reaction;
pub use load::LoadError;
pub use preflight::{Candidate, PreflightError, find, inspect_file};
pub use store::{Store, StoreError};
