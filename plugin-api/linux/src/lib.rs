//! Safe interfaces to the Linux kernel: cgroups, namespaces, pidfds, process creation, removal of trees. No policy, state
//! or async.
//!
//! The agent and every plugin that uses this crate link their own copy of it, so nothing here may have state: the
//! copies in one process could disagree.
//!
//! `unsafe` is denied except in two modules: `spawn/clone.rs`, because no safe code can run between clone3(2) and
//! execveat(2), and `signal.rs`, for signal numbers that have no name.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod boot;
pub mod capability;
pub mod cgroup;
pub mod foreign;
pub mod generated;
pub mod image;
pub mod mounts;
pub mod namespace;
mod pidfd_info;
pub mod process;
mod signal;
pub mod spawn;
pub mod tree;
