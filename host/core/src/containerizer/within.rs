//! Work that is not awaited for longer than it is of use.

use std::time::Duration;

/// Does work, and stops waiting for it after a limit.
pub(super) async fn within(limit: Option<Duration>, work: impl Future<Output = ()>) {
    match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_default(),
        None => work.await,
    }
}
