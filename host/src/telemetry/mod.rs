//! Metrics of the agent: a snapshot, and its encodings.

mod prometheus;
mod snapshot;

pub use prometheus::encode;
pub use snapshot::Snapshot;
