//! Real plugin files, several of which misbehave. Each test asserts the message for the operator, and that the agent
//! still works.
#![expect(clippy::unwrap_used, reason = "a panic shows where a test failed")]

mod answer;
mod create;
mod file;
mod fixture;
mod hang;
mod hooks;
mod identity;
mod known;
mod layout;
mod log;
mod outside;
mod panic;
mod policy;
mod process;
mod recovery;
mod replace;
mod state;
mod swap;
mod thread;
