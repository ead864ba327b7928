//! `cofferdam fetch`: the process that fetches a container's files, as the container's user.
//!
//! It reads a [`FetchJob`](cofferdam_core::fetcher::FetchJob) from its standard input; see
//! `cofferdam_core::fetcher` for the protocol.

mod child;
mod copy;
mod identity;
mod item;
mod name;
mod sandbox;
#[cfg(test)]
mod tests;
mod unpack;
mod web;

pub(crate) use child::main;
