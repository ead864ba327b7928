//! Gives memory back that was needed for a while.
//!
//! The allocator keeps what is freed, in parts for groups of threads. Thousands of containers, or a few lists of them,
//! would leave tens of megabytes in the process for good.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use cofferdam_core::blocking::WorkPool;
use cofferdam_core::events::Subscription;
use tokio::sync::Notify;

/// How long after a request or an event memory is given back: not after every one of many.
const DELAY: Duration = Duration::from_secs(10);

/// Gives memory back a while after `activity`, or after something has happened to a container, on one of `threads`. Does
/// nothing, and wakes nothing, without that.
pub(super) async fn give_back(activity: Arc<Notify>, mut events: Subscription, threads: WorkPool) {
    loop {
        tokio::select! {
            () = activity.notified() => {}
            _ = events.next() => {}
        }
        tokio::time::sleep(DELAY).await;
        while events.try_next().is_some() {}
        // Takes milliseconds. It is done after another request or event if there is no thread.
        drop(threads.run(trim).await);
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it has no preconditions, and may be called on any thread.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
