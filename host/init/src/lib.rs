//! The first process of every container: what it is told ([`plan`]), what it answers ([`report`]), what it does.
//!
//! ```text
//! agent                      init                                        task
//! ─────                      ────                                        ────
//! birth ───────────────────▶ block signals, read fd 3 … (held)
//! isolate, fetch
//! plan ────────────────────▶ session, host name, mounts, root,
//!                            operations, pivot, working directory
//!                            fork ─────────────────────────────────────▶ session, limits, user, capabilities
//!                            close all but the status file               `E` to fd 3
//! end of file: it runs ◀───────────────────────────────────────────────  execve closes fd 3
//!                            reap all, pass signals on                   …
//!                            status file, exit ◀─────────────────────── ends
//! ```
//!
//! A failure anywhere before the exec travels the other way on fd 3 as a [`report::Record`], and into the status
//! file, so that neither a listening agent nor one that starts later has to guess.
//!
//! The library is `no_std` and allocates nothing; it is linked into the tiny program that `build.rs` makes of
//! `main.rs`, and into the host, which needs the same formats. The host's half of them is behind `writer`, the
//! program's bytes are behind `image`.

#![cfg_attr(not(any(test, feature = "writer")), no_std)]
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod failure;
mod operation;
pub mod plan;
mod reap;
pub mod report;
mod root;
mod story;
mod sys;
mod task;

pub use story::run;

/// The finished program: a static executable, to be run with the descriptors of [`report`] and [`plan`].
#[cfg(feature = "image")]
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cofferdam-init"));
