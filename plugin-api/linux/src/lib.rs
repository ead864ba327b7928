//! Safe interfaces to the Linux kernel: cgroups, namespaces, pidfds, process creation, trees of files. No policy, state
//! or async.
//!
//! The agent and every plugin that uses this crate link their own copy of it, so nothing here may have state: the
//! copies in one process could disagree.
//!
//! `unsafe` is denied except in five modules: `spawn/clone.rs`, because no safe code can run between clone3(2) and
//! execveat(2), `signal.rs`, for signal numbers that have no name, and `bpf.rs`, `perf.rs` and `quota.rs`, for system calls
//! that libc does not wrap.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod boot;
pub mod bpf;
pub mod capability;
pub mod cgroup;
mod descent;
pub mod devices;
pub mod foreign;
pub mod generated;
pub mod image;
pub mod measure;
pub mod mounts;
pub mod namespace;
pub mod overlay;
pub mod own_table;
pub mod perf;
mod pidfd_info;
pub mod process;
pub mod quota;
pub mod resource_limit;
mod signal;
pub mod spawn;
pub mod tree;
