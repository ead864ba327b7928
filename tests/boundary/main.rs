//! Real plugin files, several of them rude. Each test asserts what the operator reads, and that the agent
//! lives.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is the point")]

mod answer;
mod create;
mod file;
mod hang;
mod identity;
mod layout;
mod log;
mod panic;
mod policy;
mod process;
mod recovery;
mod replace;
mod scene;
mod swap;
