//! The values of a configuration file, with their positions.
//!
//! Values with the wrong type are omitted. They are reported by the schema, and resolution continues with the others,
//! so that all problems of a file are found in one run.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use cofferdam_plugin_model::{Method, units};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use cofferdam_core::config::FailPolicy;
use cofferdam_core::provisioner::Backend;

use super::Isolation;

/// A value and its position.
#[derive(Debug, Clone)]
pub(super) struct Setting<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// A list of texts, each with its position.
type Strings = Setting<Vec<Setting<String>>>;

/// A table of strings.
pub(super) type Texts = Vec<(String, Setting<String>)>;

/// The values of a configuration file.
#[derive(Debug, Default)]
pub(super) struct RawConfig<'d> {
    pub runtime_dir: Option<Setting<PathBuf>>,
    pub work_dir: Option<Setting<PathBuf>>,
    pub socket: Option<Setting<PathBuf>>,
    pub socket_mode: Option<Setting<String>>,
    pub socket_group: Option<Setting<String>>,
    pub plugin_dir: Option<Setting<PathBuf>>,
    pub containerizers: Option<Setting<Vec<Setting<String>>>>,
    pub launcher: Option<Setting<RawLauncher>>,
    pub cgroup_root: Option<Setting<PathBuf>>,
    pub cgroup_max_descendants: Option<Setting<u64>>,
    pub cgroup_max_depth: Option<Setting<u64>>,
    pub launch_timeout: Option<Setting<Duration>>,
    pub destroy_timeout: Option<Setting<Duration>>,
    pub log: Option<Setting<String>>,
    pub log_json: Option<Setting<bool>>,
    pub launcher_dir: Option<Setting<PathBuf>>,
    pub executor_registration_timeout: Option<Setting<Duration>>,
    pub executor_reregistration_timeout: Option<Setting<Duration>>,
    pub executor_shutdown_grace_period: Option<Setting<Duration>>,
    pub recovery_timeout: Option<Setting<Duration>>,
    pub switch_user: Option<Setting<bool>>,
    pub executor_environment_variables: Option<Setting<Texts>>,
    pub default_container_info: Option<Setting<String>>,
    pub max_completed_executors: Option<Setting<u64>>,
    pub scratch_memory: Option<Setting<u64>>,
    pub image_store: Option<Setting<PathBuf>>,
    pub local_images: Option<Strings>,
    pub image_backend: Option<Setting<Backend>>,
    pub image_providers: Option<Strings>,
    pub isolation: Option<Setting<Isolation>>,
    pub listen: Option<Setting<String>>,
    pub token_file: Option<Setting<PathBuf>>,
    pub max_body: Option<Setting<u64>>,
    pub idle_timeout: Option<Setting<Duration>>,
    pub image_gc: RawImageGc,
    pub fetch: RawFetch,
    pub registry: RawRegistry,
    pub docker: RawDocker,
    pub timeouts: Vec<(Method, Setting<Duration>)>,
    pub isolators: Vec<RawPlugin<'d>>,
    pub logger: Option<RawPlugin<'d>>,
    pub hooks: Vec<RawPlugin<'d>>,
    /// Loggers that the logger passes output on to.
    pub log_targets: Vec<RawPlugin<'d>>,
    /// Whether the file has the keys of the two above, with whatever values.
    pub has_isolators: bool,
    pub has_logger: bool,
}

/// The table `image_gc`.
#[derive(Debug, Default)]
pub(super) struct RawImageGc {
    pub headroom_percent: Option<Setting<u64>>,
    pub check_interval: Option<Setting<Duration>>,
    pub excluded_images: Option<Strings>,
}

/// The table `fetch`.
#[derive(Debug, Default)]
pub(super) struct RawFetch {
    pub max_size: Option<Setting<u64>>,
    pub max_files: Option<Setting<u64>>,
    pub max_ratio: Option<Setting<u64>>,
    pub max_redirects: Option<Setting<u64>>,
    pub hosts: Option<Setting<Vec<Setting<String>>>>,
    pub stall_timeout: Option<Setting<Duration>>,
    pub credentials: Option<Setting<PathBuf>>,
    pub cache_dir: Option<Setting<PathBuf>>,
    pub cache_size: Option<Setting<u64>>,
}

/// The table `registry`.
#[derive(Debug, Default)]
pub(super) struct RawRegistry {
    /// Registries, and those that are asked before them.
    pub mirrors: Vec<(Setting<String>, Strings)>,
    pub insecure: Option<Setting<Vec<Setting<String>>>>,
    pub redirect_hosts: Option<Setting<Vec<Setting<String>>>>,
    pub credentials: Option<Setting<PathBuf>>,
    pub stall_timeout: Option<Setting<Duration>>,
}

/// The table `docker`.
#[derive(Debug, Default)]
pub(super) struct RawDocker {
    pub socket: Option<Setting<PathBuf>>,
    pub sandbox_directory: Option<Setting<PathBuf>>,
    pub credentials: Option<Setting<PathBuf>>,
    pub mesos_image: Option<Setting<String>>,
    pub remove_delay: Option<Setting<Duration>>,
    pub kill_orphans: Option<Setting<bool>>,
    pub timeout: Option<Setting<Duration>>,
    pub launch_timeout: Option<Setting<Duration>>,
    pub pull_stall_timeout: Option<Setting<Duration>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawLauncher {
    Auto,
    Linux,
    Posix,
}

/// An isolator, the logger or a hook.
#[derive(Debug)]
pub(super) struct RawPlugin<'d> {
    pub name: Setting<String>,
    pub path: Option<Setting<PathBuf>>,
    pub sha256: Option<Setting<String>>,
    pub policy: FailPolicy,
    pub timeouts: Vec<(Method, Setting<Duration>)>,
    pub config: Option<(&'d DeTable<'d>, Range<usize>)>,
}

impl<'d> RawConfig<'d> {
    /// Reads all values that have the right type.
    pub(super) fn read(root: &'d DeTable<'d>) -> Self {
        let api = table(root, "api");
        Self {
            runtime_dir: path(root, "runtime_dir"),
            work_dir: path(root, "work_dir"),
            socket: path(root, "socket"),
            socket_mode: string(root, "socket_mode"),
            socket_group: string(root, "socket_group"),
            plugin_dir: path(root, "plugin_dir"),
            containerizers: strings(root, "containerizers"),
            launcher: parse(root, "launcher", |name| match name {
                "auto" => Some(RawLauncher::Auto),
                "linux" => Some(RawLauncher::Linux),
                "posix" => Some(RawLauncher::Posix),
                _ => None,
            }),
            cgroup_root: path(root, "cgroup_root"),
            cgroup_max_descendants: number(root, "cgroup_max_descendants"),
            cgroup_max_depth: number(root, "cgroup_max_depth"),
            launch_timeout: parse(root, "launch_timeout", units::duration),
            destroy_timeout: parse(root, "destroy_timeout", units::duration),
            log: string(root, "log"),
            log_json: boolean(root, "log_json"),
            launcher_dir: path(root, "launcher_dir"),
            executor_registration_timeout: parse(root, "executor_registration_timeout", units::duration),
            executor_reregistration_timeout: parse(root, "executor_reregistration_timeout", units::duration),
            executor_shutdown_grace_period: parse(root, "executor_shutdown_grace_period", units::duration),
            recovery_timeout: parse(root, "recovery_timeout", units::duration),
            switch_user: boolean(root, "switch_user"),
            executor_environment_variables: texts(root, "executor_environment_variables"),
            default_container_info: string(root, "default_container_info"),
            max_completed_executors: number(root, "max_completed_executors"),
            scratch_memory: parse(root, "scratch_memory", units::size),
            image_store: path(root, "image_store"),
            local_images: strings(root, "local_images"),
            image_backend: parse(root, "image_backend", |name| {
                Backend::ALL.into_iter().find(|backend| backend.name() == name)
            }),
            image_providers: strings(root, "image_providers"),
            isolation: parse(root, "isolation", |name| Isolation::from_str(name, false).ok()),
            listen: api.and_then(|api| string(api, "listen")),
            token_file: api.and_then(|api| path(api, "token_file")),
            max_body: api.and_then(|api| parse(api, "max_body", units::size)),
            idle_timeout: api.and_then(|api| parse(api, "idle_timeout", units::duration)),
            image_gc: table(root, "image_gc").map(RawImageGc::read).unwrap_or_default(),
            fetch: table(root, "fetch").map(RawFetch::read).unwrap_or_default(),
            registry: table(root, "registry").map(RawRegistry::read).unwrap_or_default(),
            docker: table(root, "docker").map(RawDocker::read).unwrap_or_default(),
            timeouts: timeouts(root),
            isolators: plugins(root, "isolator"),
            logger: table(root, "logger").and_then(RawPlugin::read),
            log_targets: table(root, "logger").map(|logger| plugins(logger, "to")).unwrap_or_default(),
            hooks: plugins(root, "hook"),
            has_isolators: root.contains_key("isolator"),
            has_logger: root.contains_key("logger"),
        }
    }
}

impl RawImageGc {
    fn read(gc: &DeTable<'_>) -> Self {
        Self {
            headroom_percent: number(gc, "headroom_percent"),
            check_interval: parse(gc, "check_interval", units::duration),
            excluded_images: strings(gc, "excluded_images"),
        }
    }
}

impl RawFetch {
    fn read(fetch: &DeTable<'_>) -> Self {
        Self {
            max_size: parse(fetch, "max_size", units::size),
            max_files: number(fetch, "max_files"),
            max_ratio: number(fetch, "max_ratio"),
            max_redirects: number(fetch, "max_redirects"),
            hosts: strings(fetch, "hosts"),
            stall_timeout: parse(fetch, "stall_timeout", units::duration),
            credentials: path(fetch, "credentials"),
            cache_dir: path(fetch, "cache_dir"),
            cache_size: parse(fetch, "cache_size", units::size),
        }
    }
}

impl RawRegistry {
    fn read(registry: &DeTable<'_>) -> Self {
        let mirrors = table(registry, "mirrors").into_iter().flat_map(|mirrors| {
            mirrors.keys().filter_map(|name| {
                let registry = Setting { value: name.get_ref().to_string(), span: name.span() };
                Some((registry, strings(mirrors, name.get_ref())?))
            })
        });
        Self {
            mirrors: mirrors.collect(),
            insecure: strings(registry, "insecure"),
            redirect_hosts: strings(registry, "redirect_hosts"),
            credentials: path(registry, "credentials"),
            stall_timeout: parse(registry, "stall_timeout", units::duration),
        }
    }
}

impl RawDocker {
    fn read(docker: &DeTable<'_>) -> Self {
        Self {
            socket: path(docker, "socket"),
            sandbox_directory: path(docker, "sandbox_directory"),
            credentials: path(docker, "credentials"),
            mesos_image: string(docker, "mesos_image"),
            remove_delay: parse(docker, "remove_delay", units::duration),
            kill_orphans: boolean(docker, "kill_orphans"),
            timeout: parse(docker, "timeout", units::duration),
            launch_timeout: parse(docker, "launch_timeout", units::duration),
            pull_stall_timeout: parse(docker, "pull_stall_timeout", units::duration),
        }
    }
}

impl<'d> RawPlugin<'d> {
    fn read(entry: &'d DeTable<'d>) -> Option<Self> {
        Some(Self {
            name: string(entry, "name")?,
            path: path(entry, "path"),
            sha256: string(entry, "sha256"),
            policy: match string(entry, "policy") {
                Some(policy) if policy.value == "optional" => FailPolicy::Optional,
                _ => FailPolicy::Required,
            },
            timeouts: timeouts(entry),
            config: entry
                .get("config")
                .and_then(|config| Some((config.get_ref().as_table()?, config.span()))),
        })
    }
}

/// An array of tables, one for each plugin.
fn plugins<'d>(root: &'d DeTable<'d>, key: &str) -> Vec<RawPlugin<'d>> {
    let entries = root.get(key).and_then(|array| array.get_ref().as_array());
    entries.into_iter().flatten().filter_map(|entry| RawPlugin::read(entry.get_ref().as_table()?)).collect()
}

fn table<'d>(parent: &'d DeTable<'d>, key: &str) -> Option<&'d DeTable<'d>> {
    parent.get(key)?.get_ref().as_table()
}

fn boolean(parent: &DeTable<'_>, key: &str) -> Option<Setting<bool>> {
    let value = parent.get(key)?;
    Some(Setting { value: value.get_ref().as_bool()?, span: value.span() })
}

/// An integer that is not negative.
fn number(parent: &DeTable<'_>, key: &str) -> Option<Setting<u64>> {
    let value = parent.get(key)?;
    let number = value.get_ref().as_integer()?;
    let number = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
    Some(Setting { value: number, span: value.span() })
}

fn strings(parent: &DeTable<'_>, key: &str) -> Option<Setting<Vec<Setting<String>>>> {
    let value = parent.get(key)?;
    let string = |item: &Spanned<DeValue<'_>>| {
        Some(Setting { value: item.get_ref().as_str()?.to_owned(), span: item.span() })
    };
    let strings = value.get_ref().as_array()?.iter().filter_map(string).collect();
    Some(Setting { value: strings, span: value.span() })
}

/// A table of strings.
fn texts(parent: &DeTable<'_>, key: &str) -> Option<Setting<Texts>> {
    let value = parent.get(key)?;
    let texts = value.get_ref().as_table()?.iter().filter_map(|(name, value)| {
        let text = value.get_ref().as_str()?.to_owned();
        Some((name.get_ref().to_string(), Setting { value: text, span: value.span() }))
    });
    Some(Setting { value: texts.collect(), span: value.span() })
}

fn string(parent: &DeTable<'_>, key: &str) -> Option<Setting<String>> {
    parse(parent, key, |text| Some(text.to_owned()))
}

fn path(parent: &DeTable<'_>, key: &str) -> Option<Setting<PathBuf>> {
    parse(parent, key, |text| (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text)))
}

fn parse<T>(parent: &DeTable<'_>, key: &str, parser: impl Fn(&str) -> Option<T>) -> Option<Setting<T>> {
    let value: &Spanned<DeValue<'_>> = parent.get(key)?;
    Some(Setting { value: parser(value.get_ref().as_str()?)?, span: value.span() })
}

fn timeouts(parent: &DeTable<'_>) -> Vec<(Method, Setting<Duration>)> {
    let Some(timeouts) = table(parent, "timeout") else { return Vec::new() };
    let methods = Method::ALL.into_iter();
    methods.filter_map(|method| Some((method, parse(timeouts, method.name(), units::duration)?))).collect()
}
