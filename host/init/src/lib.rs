//! The first process of every container: its input ([`plan`]), its output ([`report`]), and what it does in between.
//!
//! ```text
//! agent                      init                                        task
//! ─────                      ────                                        ────
//! spawn ───────────────────▶ block signals, read fd 3 … (waits)
//! isolate, fetch
//! plan ────────────────────▶ session, host name, mounts, root,
//!                            operations, pivot, working directory
//!                            fork ─────────────────────────────────────▶ session, limits, user, capabilities
//!                            close all but the status file               `E` to fd 3
//! end of file: it runs ◀───────────────────────────────────────────────  execve closes fd 3
//!                            reap, forward signals                       …
//!                            status file, exit ◀─────────────────────── ends
//! ```
//!
//! A failure of any step up to the exec is sent on fd 3 as a [`report::Record`] and written to the status file, so
//! that both a connected agent and one that starts later know why the task did not run.
//!
//! The library is `no_std` and does not allocate. It is linked into the program that `build.rs` compiles from
//! `main.rs`, and into the agent, which uses the same formats. The feature `writer` adds the agent's side of them,
//! `image` adds the compiled program.

#![cfg_attr(not(any(test, feature = "writer")), no_std)]
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod failure;
mod hook;
mod operation;
pub mod plan;
mod privileges;
mod reap;
pub mod report;
mod root;
mod run;
mod sys;
mod task;

pub use run::run;

/// The compiled program: a static executable, to be run with the descriptors of [`report`] and [`plan`].
#[cfg(feature = "image")]
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cofferdam-init"));
