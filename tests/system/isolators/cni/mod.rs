//! `network/cni`, with the reference plugins of CNI. Each test has a network namespace of its own, which is that of the
//! host for its agent: bridges and packet filters of the machine are not touched.

mod crash;
mod example;
mod failure;
mod files;
pub(crate) mod lab;
mod nested;
mod traffic;
