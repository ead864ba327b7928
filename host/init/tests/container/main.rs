//! Real births of the real program: root, real kernel, real processes.
//!
//! Without root these tests are skipped, loudly; under `CI` they fail instead.

#![allow(clippy::unwrap_used, reason = "a test says best where it failed by panicking there")]

mod bench;
mod escape;
mod filesystem;
mod hello;
mod keeping;
mod nesting;
mod privileges;
mod spawn;
