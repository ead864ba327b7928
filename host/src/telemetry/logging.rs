//! The log of this process.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::colour::has_colour;

/// Begin of the names of modules whose messages a raised level adds.
const OWN_MODULES: &str = "cofferdam";

/// How much is logged, which can be raised for a while.
#[derive(Clone, Default)]
pub struct Verbosity(Option<Arc<Log>>);

struct Log {
    /// What is logged in addition to what is configured.
    added: reload::Handle<Targets, Registry>,
    raised: Mutex<Raised>,
}

/// The level that was set last.
#[derive(Default)]
struct Raised {
    /// 0 if it is what is configured.
    level: u32,
    /// How many levels were set before, so that each ends itself only.
    count: u64,
    /// What ends it.
    end: Option<AbortHandle>,
}

/// The log is not that of an agent, and cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("the log of this process cannot be changed while it runs")]
pub struct FixedLog;

/// Starts logging to standard error. `filter` is in the syntax of [`EnvFilter`].
pub fn start_logging(filter: &str, json: bool) -> Verbosity {
    let (added, handle) = reload::Layer::new(Targets::new());
    let format = tracing_subscriber::fmt::layer()
        .with_ansi(has_colour(&io::stderr()))
        .with_writer(io::stderr)
        // Standard error may be closed at any time, which must not fail a launch.
        .log_internal_errors(false);
    let format: Box<dyn Layer<Registry> + Send + Sync> = match json {
        true => format.json().boxed(),
        false => format.boxed(),
    };
    let format = format.with_filter(EnvFilter::new(filter).or(added));
    // Fails only if there is a subscriber already, which is then kept.
    match tracing_subscriber::registry().with(format).try_init() {
        Ok(()) => Verbosity(Some(Arc::new(Log { added: handle, raised: Mutex::default() }))),
        Err(_) => Verbosity(None),
    }
}

impl Verbosity {
    /// The level: 0 as configured, 1 with messages for debugging, 2 and more with all messages.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.0.as_ref().map_or(0, |log| log.raised.lock().level)
    }

    /// Sets the level for some time, after which it is 0 again. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`FixedLog`].
    pub fn set(&self, level: u32, duration: Duration) -> Result<(), FixedLog> {
        let log = self.0.as_ref().ok_or(FixedLog)?;
        let count = log.apply(level, None).ok_or(FixedLog)?;
        tracing::info!(level, ?duration, "the logging level was set");
        if level > 0 {
            let ended = Arc::clone(log);
            let end = tokio::spawn(async move {
                tokio::time::sleep(duration).await;
                // Another one that was set meanwhile stays.
                ended.apply(0, Some(count));
            });
            log.keep_end(count, end.abort_handle());
        }
        Ok(())
    }
}

impl Log {
    /// Changes the filter, unless another level was set since `after`. Returns how many were set so far.
    fn apply(&self, level: u32, after: Option<u64>) -> Option<u64> {
        let mut raised = self.raised.lock();
        if after.is_some_and(|after| after != raised.count) {
            return None;
        }
        self.added.reload(added(level)).ok()?;
        let count = raised.count + 1;
        let earlier = std::mem::replace(&mut *raised, Raised { level, count, end: None });
        if let (Some(end), None) = (earlier.end, after) {
            end.abort();
        }
        Some(count)
    }

    /// Keeps what ends a level, to cancel it when another one is set.
    fn keep_end(&self, count: u64, end: AbortHandle) {
        let mut raised = self.raised.lock();
        if raised.count == count {
            raised.end = Some(end);
        }
    }
}

impl fmt::Debug for Verbosity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verbosity").field(&self.level()).finish()
    }
}

/// What a level adds.
fn added(level: u32) -> Targets {
    let level = match level {
        0 => return Targets::new(),
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    Targets::new().with_target(OWN_MODULES, level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_level_adds_messages_of_the_agent() {
        let enabled = |level, target: &str, message| added(level).would_enable(target, &message);
        for target in ["cofferdam::api", "cofferdam_core::chain"] {
            assert!(!enabled(0, target, Level::ERROR));
            assert!(enabled(1, target, Level::DEBUG) && !enabled(1, target, Level::TRACE));
            assert!(enabled(2, target, Level::TRACE));
        }
        assert!(!enabled(9, "hyper::proto", Level::ERROR));
    }

    #[test]
    fn a_level_is_not_ended_by_the_time_of_an_earlier_one() {
        let (layer, handle) = reload::Layer::new(Targets::new());
        let log = Log { added: handle, raised: Mutex::default() };
        let first = log.apply(1, None).unwrap();
        let second = log.apply(2, None).unwrap();
        assert_eq!(log.apply(0, Some(first)), None);
        assert_eq!(log.raised.lock().level, 2);
        assert!(log.apply(0, Some(second)).is_some());
        assert_eq!(log.raised.lock().level, 0);
        drop(layer);
        assert_eq!(log.apply(1, None), None, "there is no log any more");
    }

    #[tokio::test]
    async fn a_level_ends_after_its_time() {
        let (_layer, handle) = reload::Layer::new(Targets::new());
        let log = Log { added: handle, raised: Mutex::default() };
        let verbosity = Verbosity(Some(Arc::new(log)));
        verbosity.set(1, Duration::from_millis(1)).unwrap();
        let ended = async {
            while verbosity.level() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
        assert!(Verbosity::default().set(1, Duration::ZERO).is_err());
    }
}
