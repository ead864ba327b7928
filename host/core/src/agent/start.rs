//! The start of an agent, until containers can be launched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_plugin_model::Method;
use tokio::runtime::Handle;

use super::build::{Parts, build};
use super::error::StartError;
use super::host::Host;
use super::{Agent, Inner};
use crate::blocking::{BlockingPool, MaxThreads};
use crate::chain::Chain;
use crate::config::AgentConfig;
use crate::containerizer::Containerizer;
use crate::descriptor_limit::Shares;
use crate::events::Events;
use crate::executor::Executors;
use crate::image_gc::ImageGc;
use crate::ledger::Ledger;
use crate::plugin::Store;
use crate::stats::LaunchCounters;

impl Agent {
    /// Reads the ledger, loads the plugins and recovers the containers of an earlier agent. Containers can be
    /// launched once this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: AgentConfig) -> Result<Self, StartError> {
        Self::start_with(config, None).await
    }

    /// As [`Self::start`], with a store that is open already: whoever has checked the configuration by it has also
    /// inspected the plugin files. [`AgentConfig::plugin_store`] is not used then.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with(config: AgentConfig, store: Option<Arc<Store>>) -> Result<Self, StartError> {
        let Shares { threads: jobs, removals, .. } = Shares::current();
        let pool = BlockingPool::new(MaxThreads { jobs, removals });
        let pool = pool.map_err(|source| StartError::Threads { source })?;
        let loggers = config.log_targets.iter().chain(&config.logger);
        let plugins = config.isolators.iter().chain(loggers).chain(&config.hooks);
        let min_timeout = plugins.map(|plugin| plugin.timeout(Method::Create)).min();
        let min_timeout = min_timeout.unwrap_or(config.destroy_timeout);
        let events = Events::default();
        let Parts {
            ledger,
            host,
            chain,
            containerizer,
            executors,
            plugins,
            calls,
            interrupted,
            fatal,
            fetcher,
            images,
            plugin_store,
        } = {
            let events = events.clone();
            let (config, pool2, runtime) = (config.clone(), pool.clone(), Handle::current());
            pool.run(min_timeout, move |job| build(job, &config, store, pool2, runtime, &events)).await??
        };
        if let Err(error) = recover(&host, min_timeout, ledger, &*containerizer, &chain, &executors).await {
            host.release().await;
            return Err(error);
        }
        let launches = LaunchCounters::default();
        let gc = &config.image_gc;
        let image_gc =
            (gc.headroom_percent > 0).then(|| ImageGc::start(images.clone(), gc, host.pool.clone()));
        Ok(Self(Arc::new(Inner {
            config,
            host,
            containerizer,
            executors,
            plugins,
            launches,
            calls,
            interrupted,
            fatal,
            events,
            fetcher,
            images,
            _image_gc: image_gc,
            _plugin_store: plugin_store,
        })))
    }
}

/// Recovers the containers of an earlier agent, then their executors.
async fn recover(
    host: &Host,
    timeout: Duration,
    ledger: Arc<Ledger>,
    containerizer: &dyn Containerizer,
    chain: &Chain,
    executors: &Executors,
) -> Result<(), StartError> {
    let started = Instant::now();
    let entries = host.pool.run(timeout, move |_| ledger.entries()).await??;
    let recorded = Arc::new(entries.iter().map(|entry| entry.id.clone()).collect());
    let recovery = containerizer.recover(entries, recorded).await?;
    // Before anything is done to any container, and of all containerizers at once.
    chain.recover().await;
    let recovered = recovery.resume().await;
    tracing::info!(
        running = recovered.running,
        ended = recovered.ended,
        destroyed = recovered.destroyed,
        micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        "containers recovered"
    );
    executors.recover().await.map_err(|source| StartError::Executors { source })
}
