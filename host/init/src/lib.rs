//! The keeper and the processes that it creates: their input ([`plan`], [`protocol`]), their output ([`report`]), and
//! what they do in between.
//!
//! ```text
//! agent                      setup process                               command
//! ─────                      ─────────────                               ───────
//! protocol: spawn ─────────▶ namespaces
//! isolate, fetch ◀────────── ready; reads the plan … (waits)
//! plan ────────────────────▶ mounts, root, operations, pivot, cgroups
//!                            fork ─────────────────────────────────────▶ session, limits, user, capabilities
//!                            ◀──────────────────────────────────────────  execve
//!                            registers with the keeper
//! it runs ◀───────────────── started, or the step that failed; ends      …
//! protocol: collect ───────▶ keeper: the exit status ◀─────────────────── ends
//! ```
//!
//! The library is `no_std` and does not allocate. It is linked into the program that `build.rs` compiles from
//! `main.rs`, and into the agent, which uses the same formats. The feature `writer` adds the agent's side of them,
//! `image` adds the compiled program.

#![cfg_attr(not(any(test, feature = "writer")), no_std)]
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod cgroup;
#[cfg(feature = "writer")]
pub mod client;
mod failure;
mod hook;
mod keeper;
mod operation;
pub mod plan;
mod privileges;
mod proc;
pub mod protocol;
pub mod report;
mod root;
mod setup;
pub mod streams;
mod supervise;
mod switchboard;
mod sys;
mod task;
mod terminal;

pub use keeper::run;

/// The compiled program: a static executable, to be run with the descriptors of [`protocol`].
#[cfg(feature = "image")]
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cofferdam-init"));

/// Distinguishes this [`IMAGE`] from those of other builds: 12 hexadecimal digits. Computed when it was built, as each start of an
/// agent needs it.
#[cfg(feature = "image")]
pub const BUILD: &str = env!("COFFERDAM_INIT_BUILD");
