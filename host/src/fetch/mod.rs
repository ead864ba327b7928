//! `cofferdam fetch`: the process that fetches a container's files, as the container's user.
//!
//! It reads a [`FetchJob`](cofferdam_core::fetcher::FetchJob) from standard input; see `cofferdam_core::fetcher` for
//! the protocol.

mod copy;
mod credentials;
mod download;
mod failure;
mod identity;
mod item;
mod local;
mod place;
mod process;
mod report;
mod sandbox;
mod sandbox_path;
mod store;
mod target;
#[cfg(test)]
mod tests;
mod unpack;
mod unzip;

pub(crate) use process::main;
