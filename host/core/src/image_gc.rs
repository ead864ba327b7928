//! The task that keeps space available on the file system of the image store.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::blocking::BlockingPool;
use crate::config::ImageGcConfig;
use crate::error_chain::describe;
use crate::provisioner::{FreedSpace, FreeingEnd, SpacePolicy, Store};

/// A removal that takes this long is reported.
const STALL_WARNING: Duration = Duration::from_secs(60);

/// Pause after an attempt during which somebody else used the store.
const BUSY_RETRY: Duration = Duration::from_secs(10);

/// The task, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ImageGc(JoinHandle<()>);

impl ImageGc {
    /// Starts the task. Must be called in a tokio runtime.
    pub(crate) fn start(store: Store, config: &ImageGcConfig, pool: BlockingPool) -> Self {
        let policy =
            SpacePolicy { headroom_percent: config.headroom_percent, excluded: config.excluded.clone() };
        Self(tokio::spawn(run(store, Arc::new(policy), config.check_interval, pool)))
    }
}

impl Drop for ImageGc {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(store: Store, policy: Arc<SpacePolicy>, interval: Duration, pool: BlockingPool) {
    let mut last = None;
    loop {
        let (store, policy) = (store.clone(), Arc::clone(&policy));
        let freed = pool.run(STALL_WARNING, move |_| store.free_space(&policy)).await;
        let end = match freed {
            Ok(Ok(FreedSpace { pruned, end })) => {
                if pruned.layers > 0 || !pruned.names.is_empty() {
                    tracing::info!(
                        images = pruned.names.join(", "),
                        layers = pruned.layers,
                        bytes = pruned.bytes,
                        "removed images, as the file system of the image store is nearly full"
                    );
                }
                Some(end)
            }
            Ok(Err(error)) => {
                tracing::warn!("cannot free space in the image store: {}", describe(&error));
                None
            }
            Err(abandoned) => {
                tracing::error!("cannot free space in the image store: {abandoned}");
                None
            }
        };
        if end == Some(FreeingEnd::NothingLeft) && last != end {
            tracing::warn!(
                "the file system of the image store is nearly full, and there is no image that could be removed: containers \
                 use the others, or they are excluded"
            );
        }
        last = end;
        let pause = if end == Some(FreeingEnd::Busy) { interval.min(BUSY_RETRY) } else { interval };
        tokio::time::sleep(pause).await;
    }
}
