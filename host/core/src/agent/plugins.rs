//! The plugins of an agent, and what they know of it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_linux::capability::OwnSets;
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::resource_limit::own_hard_limits;
use cofferdam_plugin_model::{AgentInfo, AgentProcess, FEATURES, Kind, LINUX_LAUNCHER};

use super::error::StartError;
use crate::blocking::Job;
use crate::config::{AgentConfig, LauncherKind, PluginConfig};
use crate::containerizer::native::plugin_cgroups;
use crate::model::Resources;
use crate::parallel;
use crate::plugin::{LoadedPlugin, Plugin, PluginEnv, PluginIndex, Services, Store};

pub(super) struct LoadedPlugins {
    pub(super) isolators: Vec<Arc<Plugin>>,
    /// Those that the last one passes output on to, and that one.
    pub(super) loggers: Vec<Arc<Plugin>>,
    pub(super) hooks: Vec<Arc<Plugin>>,
}

impl LoadedPlugins {
    /// All of them, in this order.
    pub(super) fn all(&self) -> Vec<Arc<Plugin>> {
        self.isolators.iter().chain(&self.loggers).chain(&self.hooks).cloned().collect()
    }
}

/// Loads all plugins: libraries in parallel, then instances in chain order, hooks last.
pub(super) fn load(
    job: &Job,
    config: &AgentConfig,
    store: &Store,
    services: &Arc<Services>,
    env: &PluginEnv<'_>,
) -> Result<LoadedPlugins, StartError> {
    let loggers = || config.log_targets.iter().chain(&config.logger);
    let configured = config.isolators.iter().chain(loggers()).chain(&config.hooks);
    let index = PluginIndex::read(store, &config.plugin_dir, configured)?;
    let isolators = config.isolators.iter().map(|entry| (entry, Kind::Isolator));
    let loggers = loggers().map(|entry| (entry, Kind::Logger));
    let hooks = config.hooks.iter().map(|entry| (entry, Kind::Hook));
    let entries: Vec<(&PluginConfig, Kind)> = isolators.chain(loggers).chain(hooks).collect();
    let loaded = parallel::map(&entries, |&(entry, kind)| -> Result<LoadedPlugin, StartError> {
        let file = index.locate(entry)?;
        Ok(LoadedPlugin::load(entry, kind, &file, store, services)?)
    });
    let mut plugins = Vec::new();
    for loaded in loaded {
        let plugin = loaded?.create(job, env)?;
        tracing::info!(
            plugin = %plugin.name(),
            version = %plugin.manifest().version,
            file = %plugin.file().display(),
            "plugin loaded"
        );
        plugins.push(Arc::new(plugin));
    }
    store.save();
    let hooks = plugins.split_off(plugins.len() - config.hooks.len());
    let loggers = plugins.split_off(config.isolators.len());
    Ok(LoadedPlugins { isolators: plugins, loggers, hooks })
}

/// The description of this agent for plugins.
pub(super) fn agent_info(
    config: &AgentConfig,
    cgroup_root: PathBuf,
    cgroups: &Cgroups,
    companion_cgroup: Option<PathBuf>,
) -> Result<AgentInfo, StartError> {
    let host = rustix::system::sysinfo();
    #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
    let mem = host.totalram as f64 * f64::from(host.mem_unit) / (1 << 20) as f64;
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^53 CPUs")]
    let resources = Resources::default().with("cpus", cpus as f64).with("mem", mem.floor());
    let is_linux = config.launcher == LauncherKind::Linux;
    let features = FEATURES.iter().filter(|&&feature| is_linux || feature != LINUX_LAUNCHER);
    let sets = OwnSets::read()
        .map_err(|source| StartError::Kernel { what: "the capabilities of its own process", source })?;
    Ok(AgentInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features.map(ToString::to_string).collect(),
        launcher: config.launcher.name().to_owned(),
        cgroups: plugin_cgroups(cgroups, cgroup_root),
        resources,
        chain: config.isolators.iter().map(|plugin| plugin.name.clone()).collect(),
        companion_cgroup,
        process: AgentProcess {
            permitted_capabilities: sets.permitted,
            bounding_capabilities: sets.bounding,
            hard_limits: own_hard_limits(),
        },
    })
}
