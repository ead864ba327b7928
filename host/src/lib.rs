//! The program `cofferdam`: an agent with a configuration file, an HTTP API and a command line, around the library
//! `cofferdam-core`.
//!
//! ```text
//! cli ─▶ api ─▶ telemetry ─▶ cofferdam-core
//!  │      └───────────────────▲
//!  └──▶ config, fetch, image, engine
//! ```
//!
//! `ARCHITECTURE.md` has the map and the invariants.

#![deny(unsafe_code)]

mod agent_watch;
pub mod api;
mod archive;
pub mod cli;
pub mod config;
pub mod engine;
mod fetch;
mod http;
mod image;
mod secret_file;
pub mod telemetry;
