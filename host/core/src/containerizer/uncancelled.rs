//! Work that a client cannot cut short.

/// Runs work to completion even if the caller stops waiting: a client may disconnect at any time, and the operation
/// lock or a pending record update would be lost.
pub(super) async fn uncancelled<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}
