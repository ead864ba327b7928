//! Real births of the real program: root, real kernel, real processes.
//!
//! Without root these tests are skipped, loudly; under `CI` they fail instead.

mod bench;
mod hello;
