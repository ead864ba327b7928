//! The programs, with real tasks, against a peer on a unix socket that says exactly what a test wants it to.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

mod checks;
mod default;
mod hostile;
mod lifecycle;
mod peer;
mod program;
mod recovery;
