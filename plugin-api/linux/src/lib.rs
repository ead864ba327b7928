//! The kernel in safe words: no policy, no state, no async.
//!
//! Linked into the host and into every plugin that wants it, so nothing here may remember anything: several
//! copies of this crate live in one process, and they must not be able to disagree.
//!
//! `unsafe` is denied, and reopened in two rooms: `birth/clone.rs`, because between clone3(2) and execveat(2)
//! there is nothing safe to stand on, and `signal.rs`, for the numbers that have no name.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod boot;
pub mod capability;
pub mod cgroup;
pub mod image;
pub mod mounts;
pub mod namespace;
pub mod process;
mod signal;
pub mod spawn;
