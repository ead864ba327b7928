//! Cofferdam: a container agent whose isolation is made of plugins.
//!
//! ```text
//! cli ─▶ agent ─▶ api ─▶ containerizer ─▶ {chain, launcher, fetcher, ledger}
//!                                      ─▶ {plugin, container}
//! ```
//!
//! [`agent::Agent`] is the one place that constructs and connects; it can be embedded. `ARCHITECTURE.md`
//! has the map and the invariants.

#![deny(unsafe_code)]

pub mod agent;
pub mod api;
pub mod chain;
pub mod cli;
pub mod config;
pub mod container;
pub mod containerizer;
pub mod errand;
pub mod fetcher;
pub mod launcher;
pub mod ledger;
pub mod metrics;
pub mod plugin;
mod readiness;
pub mod report;
pub mod view;
