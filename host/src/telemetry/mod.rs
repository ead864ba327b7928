//! Logging and metrics of this process.

mod colour;
mod containers;
mod logging;
mod mesos;
mod number;
mod open_metrics;
mod process;
mod snapshot;
mod text;
pub mod usage;

pub use colour::{has_colour, has_screen};
pub use logging::{FixedLog, Verbosity, start_logging};
pub use open_metrics::{Format, encode};
pub use snapshot::Snapshot;
