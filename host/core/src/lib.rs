//! The container agent as a library: launchers, containerizers and the plugin chain.
//!
//! ```text
//! agent ─▶ containerizer ─▶ chain ─▶ plugin ─▶ the plugin's code
//!               │      └──▶ launcher, fetcher, ledger
//!               └──────────▶ model (plain data, known to all)
//! ```
//!
//! [`agent::Agent`] constructs and connects the rest. The library has no HTTP, command line or configuration
//! files, and does not change the process that embeds it: no resource limits, signal handlers, umask, working
//! directory or dumpable attribute. An embedder that runs containers as root should make itself non-dumpable and
//! may raise its `RLIMIT_NOFILE`, as the `cofferdam` binary does. It may also have its allocator give memory back after a
//! peak (`malloc_trim` of glibc), which the program does some time after each request and event.

#![deny(unsafe_code)]

pub mod agent;
pub mod blocking;
pub mod chain;
pub mod config;
pub mod containerizer;
pub mod credentials;
mod descriptor_limit;
mod descriptor_store;
mod directory;
pub mod engine;
pub mod error_chain;
pub mod events;
pub mod executor;
mod fatal;
pub mod fetcher;
pub mod hooks;
mod image_gc;
pub mod keeper;
pub mod launcher;
pub mod ledger;
pub mod model;
mod parallel;
pub mod plugin;
pub mod provisioner;
mod readiness;
mod regular_file;
mod scratch;
mod shared_operation;
mod short_path;
pub mod stats;
pub mod switchboard;
