//! The compiled program with real processes on the real kernel, as root.
//!
//! Without root these tests are skipped, loudly; under `CI` they fail instead.

#![allow(clippy::unwrap_used, reason = "a panic shows where a test failed")]

mod below_mounts;
mod escape;
mod exchange;
mod filesystem;
mod harness;
mod hooks;
mod keeper;
mod nesting;
mod privileges;
mod races;
mod spawn;
mod start;
mod supervise;
