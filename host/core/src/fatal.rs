//! Errors after which the agent cannot go on.
//!
//! A container whose task panicked would never be destroyed, and nobody would know. The library does not end the
//! process that embeds it; it tells the embedder, which ends or restarts the agent.

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where such errors are reported. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FatalErrors(watch::Sender<Option<String>>);

impl Default for FatalErrors {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl FatalErrors {
    /// Starts a task without which the agent cannot go on.
    pub(crate) fn spawn(
        &self,
        task: String,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let report = ReportPanic { task, errors: self.clone() };
        tokio::spawn(async move {
            let _report = report;
            work.await;
        })
    }

    /// Waits for the first error.
    pub(crate) async fn first(&self) -> String {
        let mut error = self.0.subscribe();
        let found = error.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match found {
            Some(error) => error,
            // Unreachable while `self` is borrowed, as it owns the sender.
            None => std::future::pending().await,
        }
    }
}

/// Dropped by a panic of its task.
struct ReportPanic {
    task: String,
    errors: FatalErrors,
}

impl Drop for ReportPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = format!("{} panicked; this is a bug of the agent", self.task);
            tracing::error!("{error}");
            self.errors.0.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(error);
                is_first
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_panic_of_a_task_is_reported_and_its_end_is_not() {
        let errors = FatalErrors::default();
        let (done, ended) = tokio::sync::oneshot::channel::<()>();
        errors.spawn("the first task".into(), async move { drop(done) });
        ended.await.unwrap_err();
        errors.spawn("the task of container `web`".into(), async { panic!("deliberate") });
        assert_eq!(errors.first().await, "the task of container `web` panicked; this is a bug of the agent");
        errors.spawn("a later task".into(), async { panic!("deliberate") });
        assert!(errors.first().await.contains("`web`"));
    }
}
