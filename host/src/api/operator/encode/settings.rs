//! The agent's settings and version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::operator::types as wire;
use crate::config::{Config, TcpConfig};
use cofferdam_core::config::{ContainerizerConfig, PluginConfig};
use cofferdam_core::provisioner::ImageName;

/// Settings by name, formatted as in a configuration file. As in Mesos, `isolation` is the chain, and `hooks` are the hooks.
pub(crate) fn flags(config: &Config) -> BTreeMap<String, String> {
    let path = |path: &Path| path.display().to_string();
    let default_store = || config.agent.work_dir.join("images");
    let image_store = config.agent.image_store.clone().unwrap_or_else(default_store);
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    let mut flags = BTreeMap::from([
        ("runtime_dir", path(&config.agent.runtime_dir)),
        ("work_dir", path(&config.agent.work_dir)),
        ("socket", path(&config.socket)),
        ("socket_mode", format!("{:04o}", config.socket_access.mode)),
        ("plugin_dir", path(&config.agent.plugin_dir)),
        ("containerizers", containerizers(&config.agent.containerizers)),
        ("launcher", config.agent.launcher.name().to_owned()),
        ("cgroup_root", path(&config.agent.cgroup_root)),
        ("cgroup_max_descendants", config.agent.cgroup_max_descendants.to_string()),
        ("cgroup_max_depth", config.agent.cgroup_max_depth.to_string()),
        ("launch_timeout", duration(config.agent.launch_timeout)),
        ("destroy_timeout", duration(config.agent.destroy_timeout)),
        ("executor_registration_timeout", duration(config.agent.executors.registration_timeout)),
        ("executor_reregistration_timeout", duration(config.agent.executors.reregistration_timeout)),
        ("executor_shutdown_grace_period", duration(config.agent.executors.shutdown_grace_period)),
        ("recovery_timeout", duration(config.agent.executors.recovery_timeout)),
        ("switch_user", config.agent.executors.switch_user.to_string()),
        ("max_completed_executors", config.agent.executors.max_completed_executors.to_string()),
        ("log", config.log.clone()),
        ("log_json", config.log_json.to_string()),
        ("image_store", path(&image_store)),
        ("local_images", paths(&config.agent.local_images)),
        ("image_backend", config.agent.image_backend.name().to_owned()),
        ("image_gc.headroom_percent", config.agent.image_gc.headroom_percent.to_string()),
        ("image_gc.check_interval", duration(config.agent.image_gc.check_interval)),
        ("image_gc.excluded_images", images(&config.agent.image_gc.excluded)),
        ("image_providers", if config.agent.images { "docker" } else { "" }.to_owned()),
        ("scratch_memory", format!("{} B", config.agent.scratch_memory.unwrap_or(0))),
        ("api.max_body", format!("{} B", config.api.max_body)),
        ("api.idle_timeout", duration(config.api.idle_timeout)),
        ("fetch.max_size", format!("{} B", config.agent.fetch.bytes)),
        ("fetch.max_files", config.agent.fetch.files.to_string()),
        ("fetch.max_ratio", config.agent.fetch.ratio.to_string()),
        ("fetch.max_redirects", config.agent.fetch.redirects.to_string()),
        ("fetch.hosts", config.agent.fetch.hosts.join(",")),
        ("fetch.stall_timeout", duration(config.agent.fetch.stall)),
        (
            "fetch.cache_size",
            format!("{} B", config.agent.fetch_cache.as_ref().map_or(0, |cache| cache.size)),
        ),
        ("registry.insecure", config.agent.registry.insecure.join(",")),
        ("registry.redirect_hosts", config.agent.registry.redirect_hosts.join(",")),
        ("registry.stall_timeout", duration(config.agent.registry.stall)),
        ("registry.mirrors", mirrors(&config.agent.registry.mirrors)),
        ("isolation", names(&config.agent.isolators)),
    ]);
    let cache = config.agent.fetch_cache.as_ref();
    flags.extend(cache.map(|cache| ("fetch.cache_dir", path(&cache.directory))));
    let credentials = config.agent.fetch_credentials.as_deref();
    flags.extend(credentials.map(|file| ("fetch.credentials", path(file))));
    let credentials = config.agent.registry.credentials.as_deref();
    flags.extend(credentials.map(|file| ("registry.credentials", path(file))));
    flags.extend(
        config.agent.executors.launcher_dir.as_deref().map(|directory| ("launcher_dir", path(directory))),
    );
    flags.extend(
        config.default_container_info.as_ref().map(|info| ("default_container_info", info.to_string())),
    );
    let variables = &config.agent.executors.environment_variables;
    if !variables.is_empty() {
        // Their values may be secrets.
        let names: Vec<&str> = variables.keys().map(String::as_str).collect();
        flags.insert("executor_environment_variables", names.join(","));
    }
    flags.extend(config.socket_access.group.map(|group| ("socket_group", group.to_string())));
    if let Some(TcpConfig { address, token_file }) = &config.tcp {
        // With the port that the kernel has chosen if none was configured.
        let address = config.agent.executors.endpoint.unwrap_or(*address);
        flags.extend([("api.listen", address.to_string()), ("api.token_file", path(token_file))]);
    }
    flags.extend(config.file.as_deref().map(|file| ("config", path(file))));
    flags.extend(config.agent.logger.as_ref().map(|logger| ("logger", logger.name.clone())));
    if !config.agent.log_targets.is_empty() {
        flags.insert("logger.to", names(&config.agent.log_targets));
    }
    if !config.agent.hooks.is_empty() {
        flags.insert("hooks", names(&config.agent.hooks));
    }
    let docker = config.agent.containerizers.iter().find_map(|containerizer| match containerizer {
        ContainerizerConfig::Docker(docker) => Some(docker),
        ContainerizerConfig::Mesos => None,
    });
    if let Some(docker) = docker {
        flags.extend([
            ("docker.socket", path(docker.engine.socket())),
            ("docker.sandbox_directory", path(&docker.sandbox_directory)),
            ("docker.remove_delay", duration(docker.remove_delay)),
            ("docker.kill_orphans", docker.kill_orphans.to_string()),
            ("docker.timeout", duration(docker.timeouts.call)),
            ("docker.launch_timeout", duration(docker.timeouts.launch)),
            ("docker.pull_stall_timeout", duration(docker.timeouts.pull_stall)),
        ]);
        flags.extend(docker.credentials.as_deref().map(|file| ("docker.credentials", path(file))));
        flags.extend(docker.mesos_image.clone().map(|image| ("docker.mesos_image", image)));
    }
    flags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn containerizers(containerizers: &[ContainerizerConfig]) -> String {
    containerizers.iter().map(ContainerizerConfig::name).collect::<Vec<_>>().join(",")
}

fn names(plugins: &[PluginConfig]) -> String {
    plugins.iter().map(|plugin| plugin.name.as_str()).collect::<Vec<_>>().join(",")
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",")
}

fn images(images: &[ImageName]) -> String {
    images.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn mirrors(mirrors: &BTreeMap<String, Vec<String>>) -> String {
    let mirrors = mirrors.iter().map(|(registry, mirrors)| format!("{registry}={}", mirrors.join("|")));
    mirrors.collect::<Vec<_>>().join(",")
}

/// The version of this agent.
pub(in crate::api::operator) fn version() -> wire::VersionInfo {
    wire::VersionInfo { version: env!("CARGO_PKG_VERSION").to_owned(), ..wire::VersionInfo::default() }
}
