//! Logging and metrics of this process.

mod logging;
mod open_metrics;
mod snapshot;

pub use logging::start_logging;
pub use open_metrics::encode;
pub use snapshot::Snapshot;
