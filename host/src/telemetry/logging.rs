//! The log of this process.

use std::io;

use tracing_subscriber::EnvFilter;

use super::colour::has_colour;

/// Starts logging to standard error. `filter` is in the syntax of [`EnvFilter`].
pub fn start_logging(filter: &str, json: bool) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(has_colour(&io::stderr()))
        .with_writer(io::stderr)
        // Standard error may be closed at any time, which must not fail a launch.
        .log_internal_errors(false);
    // Fails only if there is a subscriber already, which is then kept.
    drop(if json { builder.json().try_init() } else { builder.try_init() });
}
