//! Resolves the values of a file to a configuration: applies overrides and defaults, resolves paths and validates
//! values.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_plugin_model::{Manifest, Method};
use serde_json::Value as Json;
use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use super::chain::{ChainResolver, Plugins};
use super::diagnostic::{Diagnostic, Diagnostics, position};
use super::environment::{AvailablePlugin, Unusable};
use super::path::normalize;
use super::raw::{RawConfig, RawLauncher, Setting};
use super::schema::{self, Owner};
use super::{
    ApiLimits, Config, ConfigError, Environment, Isolation, Overrides, PluginIndex, SocketAccess, TcpConfig,
    defaults,
};
use crate::engine::EngineSocket;
use cofferdam_core::config::{
    AgentConfig, ContainerizerConfig, DEFAULT_KEEPER_TIMEOUT, DockerConfig, ExecutorConfig, FetchCacheConfig,
    FetchLimits, ImageGcConfig, LauncherKind, RegistryConfig,
};
use cofferdam_core::engine::Timeouts;
use cofferdam_core::provisioner::ImageName;

/// Maximum length of the path of a unix socket: `sun_path` without the final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Minimum of `api.max_body`, which is enough for a small launch.
const MIN_MAX_BODY: u64 = 1024;

/// The kind of images that is known, in `image_providers`.
const DOCKER_IMAGES: &str = "docker";
/// Mode of the socket if a group has access. Execute permission has no meaning for it.
const GROUP_MODE: u32 = 0o660;

/// Minimum of `scratch_memory`.
const MIN_SCRATCH: u64 = 1 << 20;

/// Resolves the text of a configuration file, or of a default configuration without a file.
pub(super) fn resolve(
    file: Option<&Path>,
    text: &str,
    overrides: &Overrides,
    environment: &Environment,
    index: &dyn PluginIndex,
) -> Result<Config, ConfigError> {
    resolve_with(file, text, overrides, environment, index, |resolver| resolver.config())
}

/// Resolves only the registries of the text of a configuration file. Nothing is looked up for it.
pub(super) fn resolve_registry(
    file: Option<&Path>,
    text: &str,
    environment: &Environment,
) -> Result<RegistryConfig, ConfigError> {
    resolve_with(file, text, &Overrides::default(), environment, &NoPlugins, |resolver| resolver.registry())
}

/// A source of plugins that has none.
struct NoPlugins;

impl PluginIndex for NoPlugins {
    fn in_directory(&self, _: &Path) -> Vec<AvailablePlugin> {
        Vec::new()
    }

    fn manifest(&self, _: &Path) -> Result<Manifest, Unusable> {
        Err("no plugins are looked up here".into())
    }

    fn sha256(&self, _: &Path) -> Result<String, Unusable> {
        Err("no plugins are looked up here".into())
    }
}

fn resolve_with<T>(
    file: Option<&Path>,
    text: &str,
    overrides: &Overrides,
    environment: &Environment,
    index: &dyn PluginIndex,
    resolve: impl FnOnce(&mut Resolver<'_>) -> T,
) -> Result<T, ConfigError> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // Other problems may only be consequences of these.
        let diagnostics = match yaml(text) {
            Some(diagnostic) => vec![diagnostic],
            None => errors.iter().map(|error| syntax_error(text, error)).collect(),
        };
        return Err(Diagnostics::new(file, text, diagnostics).into());
    }
    let diagnostics = schema::check(tree.get_ref(), text.len()..text.len(), defaults::schema(), Owner::Agent);
    let raw = RawConfig::read(tree.get_ref());
    let defaults = defaults::text(environment);
    let defaults = DeTable::parse(&defaults).expect("the defaults are valid TOML, as tested");
    let defaults = RawConfig::read(defaults.get_ref());

    let directory = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let base = environment.cwd.join(directory);
    let mut resolver = Resolver {
        file,
        text,
        base,
        raw: &raw,
        defaults: &defaults,
        overrides,
        environment,
        index,
        diagnostics,
    };
    let config = resolve(&mut resolver);
    if resolver.diagnostics.is_empty() {
        Ok(config)
    } else {
        Err(Diagnostics::new(file, text, resolver.diagnostics).into())
    }
}

/// The first line of a file that is not TOML but YAML, as it assigns its first value with a colon.
fn yaml(text: &str) -> Option<Diagnostic> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        if !content.is_empty() && !content.starts_with('#') {
            let is_key = |key: &str| {
                key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            };
            let is_mapping = content.split_once(':').is_some_and(|(key, value)| {
                !key.is_empty() && is_key(key) && (value.is_empty() || value.starts_with(' '))
            });
            let is_yaml = is_mapping || content == "---";
            let at = start + (line.len() - line.trim_start().len());
            return is_yaml.then(|| {
                let diagnostic =
                    Diagnostic::at(at..at + content.len(), "this is YAML; the configuration is TOML", "");
                diagnostic.help("write `key = \"value\"`, and `[table]` above the keys of a table")
            });
        }
        start += line.len();
    }
    None
}

fn syntax_error(text: &str, error: &toml::de::Error) -> Diagnostic {
    if let Some(unquoted) = unquoted(text, error) {
        return unquoted;
    }
    let message = format!("invalid TOML: {}", error.message().lines().collect::<Vec<_>>().join(", "));
    match error.span() {
        Some(span) => Diagnostic::at(span, message, ""),
        None => Diagnostic::global(message),
    }
}

/// A value without the quotes of a string.
fn unquoted(text: &str, error: &toml::de::Error) -> Option<Diagnostic> {
    let start = error.span()?.start;
    let value = text.get(start..)?.split(['\n', ',', ']', '}', '#']).next()?.trim_end();
    // The parser takes what begins as `inf`, `nan`, `true` or `false` does for one of these.
    let is_word = value.starts_with(|first: char| first.is_ascii_alphabetic())
        && ["invalid float", "invalid bool"].iter().any(|begin| error.message().starts_with(begin));
    if !is_word && !error.message().starts_with("string values must be quoted") {
        return None;
    }
    let span = start..start + value.len();
    let diagnostic = Diagnostic::at(span, format!("the string `{value}` is not in quotes"), "");
    Some(diagnostic.help(format!("write `{}`", toml::Value::from(value))))
}

/// A word of a log filter that stands for a level and is none. `tracing` takes it for the name of a module, which nothing has.
fn unknown_level(filter: &str) -> Option<&str> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let mut words = filter.split(',').map(str::trim);
    words.find(|word| {
        let is_level =
            LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level)) || word.parse::<u8>().is_ok();
        let is_module = word.contains(['=', '[', ':']) || word.starts_with("cofferdam");
        !word.is_empty() && !is_level && !is_module
    })
}

struct Resolver<'a> {
    file: Option<&'a Path>,
    text: &'a str,
    /// Base of relative paths in the file.
    base: PathBuf,
    raw: &'a RawConfig<'a>,
    defaults: &'a RawConfig<'a>,
    overrides: &'a Overrides,
    environment: &'a Environment,
    index: &'a dyn PluginIndex,
    diagnostics: Vec<Diagnostic>,
}

impl Resolver<'_> {
    fn config(&mut self) -> Config {
        let (raw, defaults, overrides) = (self.raw, self.defaults, self.overrides);
        let runtime_dir = self.path(&overrides.runtime_dir, &raw.runtime_dir, &defaults.runtime_dir);
        let work_dir = self.path(&overrides.work_dir, &raw.work_dir, &defaults.work_dir);
        let plugin_dir = self.path(&overrides.plugin_dir, &raw.plugin_dir, &defaults.plugin_dir);
        let socket = self.socket(&runtime_dir);
        let image_store =
            raw.image_store.as_ref().map(|setting| match setting.value.strip_prefix("{work_dir}") {
                Ok(rest) => normalize(&work_dir.join(rest)),
                Err(_) => normalize(&self.base.join(&setting.value)),
            });
        let local_images = raw.local_images.iter().flat_map(|setting| &setting.value);
        let local_images =
            local_images.map(|directory| normalize(&self.base.join(&directory.value))).collect();
        let fetch_cache = self.fetch_cache(&work_dir);
        let credentials = &self.raw.fetch.credentials;
        let fetch_credentials = credentials.is_some().then(|| self.path(&None, credentials, &None));
        let launcher = self.launcher();
        let containerizers = self.containerizers();
        let cgroup_root = self.cgroup_root();
        let log = self.log();
        let scratch_memory = self.scratch_memory(launcher);
        let timeouts = self.timeouts();
        let isolation = self.isolation(launcher);

        let image_providers = raw.image_providers.as_ref().map(|setting| &setting.value[..]);
        let images = image_providers.is_none_or(|kinds| kinds.iter().any(|kind| kind.value == DOCKER_IMAGES));
        let image_providers = image_providers.unwrap_or_default();

        let (file, text) = (self.file, self.text);
        // The predefined chain continues the file, so that one text has the positions of all plugins.
        let extended = extend(text, raw, isolation);
        let tree =
            DeTable::parse(&extended).expect("the file and the predefined chains are valid, as tested");
        let extended = RawConfig::read(tree.get_ref());
        let chain = ChainResolver {
            index: self.index,
            plugin_dir: &plugin_dir,
            plugin_dir_span: raw.plugin_dir.as_ref().map(|setting| setting.span.clone()),
            launcher,
            timeouts: &timeouts,
            image_provider: image_providers
                .iter()
                .find(|it| it.value == DOCKER_IMAGES)
                .map(|it| it.span.clone()),
            origin: &|span: &Range<usize>| match file {
                _ if span.start > text.len() => format!("isolation `{}`", isolation.name()),
                Some(file) => format!("{}:{}", file.display(), position(text, span.start).0),
                None => "the default configuration".to_owned(),
            },
        };
        let mut problems = Vec::new();
        let Plugins { isolators, logger, log_targets, hooks } = chain.resolve(
            &extended.isolators,
            extended.logger.as_ref(),
            &extended.log_targets,
            &extended.hooks,
            &mut problems,
        );
        self.diagnostics.extend(problems.into_iter().map(|problem| in_file(problem, text, isolation)));

        Config {
            file: file.map(|file| self.environment.cwd.join(file)),
            agent: AgentConfig {
                kill_containers_with_agent: false,
                scratch_memory,
                keeper_timeout: DEFAULT_KEEPER_TIMEOUT,
                runtime_dir,
                work_dir,
                plugin_store: None,
                image_store,
                local_images,
                image_backend: *value(&raw.image_backend, &defaults.image_backend),
                plugin_dir,
                containerizers,
                launcher,
                cgroup_root,
                cgroup_max_descendants: *value(&raw.cgroup_max_descendants, &defaults.cgroup_max_descendants),
                cgroup_max_depth: *value(&raw.cgroup_max_depth, &defaults.cgroup_max_depth),
                isolators,
                logger,
                hooks,
                log_targets,
                fetcher: None,
                fetch: self.fetch(),
                fetch_credentials,
                fetch_cache,
                registry: self.registry(),
                puller: None,
                images,
                image_gc: self.image_gc(),
                container_nofile: None,
                executors: self.executors(),
                launch_timeout: self.duration(
                    "launch_timeout",
                    &raw.launch_timeout,
                    &defaults.launch_timeout,
                ),
                destroy_timeout: self.duration(
                    "destroy_timeout",
                    &raw.destroy_timeout,
                    &defaults.destroy_timeout,
                ),
            },
            socket,
            socket_access: self.socket_access(),
            tcp: self.tcp(),
            api: ApiLimits {
                max_body: self.max_body(),
                idle_timeout: self.duration("api.idle_timeout", &raw.idle_timeout, &defaults.idle_timeout),
            },
            default_container_info: self.default_container_info(),
            log,
            log_json: *value(&raw.log_json, &defaults.log_json),
        }
    }

    fn path(
        &self,
        flag: &Option<PathBuf>,
        raw: &Option<Setting<PathBuf>>,
        default: &Option<Setting<PathBuf>>,
    ) -> PathBuf {
        match (flag, raw) {
            (Some(flag), _) => normalize(&self.environment.cwd.join(flag)),
            (None, Some(raw)) => normalize(&self.base.join(&raw.value)),
            (None, None) => value(raw, default).clone(),
        }
    }

    fn socket(&mut self, runtime_dir: &Path) -> PathBuf {
        let setting = value(&self.raw.socket, &self.defaults.socket);
        let socket = match (&self.overrides.socket, setting.strip_prefix("{runtime_dir}")) {
            (Some(flag), _) => normalize(&self.environment.cwd.join(flag)),
            (None, Ok(rest)) => runtime_dir.join(rest),
            (None, Err(_)) => normalize(&self.base.join(setting)),
        };
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let message = format!(
                "the path of the socket, `{}`, has {length} bytes; the maximum is {MAX_SOCKET_PATH}",
                socket.display()
            );
            let span = span(&self.raw.socket).filter(|_| self.overrides.socket.is_none());
            self.report(span, message, "too long", "choose a shorter `socket` or `runtime_dir`");
        }
        socket
    }

    fn socket_access(&mut self) -> SocketAccess {
        let raw = self.raw;
        let group = raw.socket_group.as_ref().and_then(|setting| {
            let group = group_id(&setting.value);
            if group.is_none() {
                self.report(
                    Some(setting.span.clone()),
                    format!("there is no group `{}`", setting.value.escape_debug()),
                    "expected the name or the number of a group",
                    "create it with `groupadd`, or name another one",
                );
            }
            group
        });
        let default = if raw.socket_group.is_some() { GROUP_MODE } else { SocketAccess::PRIVATE.mode };
        let Some(Setting { value, span }) = &raw.socket_mode else {
            return SocketAccess { mode: default, group };
        };
        let expected = "expected \"0600\", or \"0660\" with `socket_group`";
        match u32::from_str_radix(value, 8) {
            Ok(GROUP_MODE) if raw.socket_group.is_some() => {}
            Ok(0o600) => return SocketAccess { mode: 0o600, group: None },
            Ok(GROUP_MODE) => self.report(
                Some(span.clone()),
                format!(
                    "`socket_mode` `{}` gives access to a group, and `socket_group` names none",
                    value.escape_debug()
                ),
                expected,
                "whoever can use the API can become root; set `socket_group` to a group that you trust",
            ),
            Ok(mode) if mode & 0o007 != 0 => self.report(
                Some(span.clone()),
                format!("`socket_mode` `{}` gives access to everybody", value.escape_debug()),
                expected,
                "whoever can use the API can become root; set `socket_group` for a group that you trust",
            ),
            _ => self.report(
                Some(span.clone()),
                format!("invalid mode `{}` for `socket_mode`", value.escape_debug()),
                expected,
                None,
            ),
        }
        SocketAccess { mode: default, group }
    }

    /// The API over TCP, which needs an address that only processes of this host can reach, and a token.
    fn tcp(&mut self) -> Option<TcpConfig> {
        let raw = self.raw;
        let Some(Setting { value: listen, span }) = &raw.listen else {
            if raw.token_file.is_some() {
                let message = "`api.token_file` has no effect without `api.listen`".to_owned();
                let help =
                    "set `listen = \"127.0.0.1:5051\"`, or remove it; clients of the socket need no token";
                self.report(self::span(&raw.token_file), message, "is not used", help);
            }
            return None;
        };
        let span = Some(span.clone());
        let address = match listen.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Some(address),
            Ok(address) => {
                let message =
                    format!("other hosts can reach `{}`, the address in `api.listen`", address.ip());
                self.report(
                    span.clone(),
                    message,
                    "expected a loopback address, as in \"127.0.0.1:5051\"",
                    "without TLS, whoever is on the way could read the token and become root here; forward the port to other \
                     hosts, as with `ssh -L 5051:127.0.0.1:5051 HOST`",
                );
                None
            }
            Err(_) => {
                self.report(
                    span.clone(),
                    format!("invalid address `{}` for `api.listen`", listen.escape_debug()),
                    "expected an address and a port",
                    "as in `listen = \"127.0.0.1:5051\"` or `listen = \"[::1]:5051\"`",
                );
                None
            }
        };
        if raw.token_file.is_none() {
            self.report(
                span,
                "`api.listen` needs `api.token_file`".to_owned(),
                "every user of this host can connect",
                "create the file with `(umask 077; head -c 32 /dev/urandom | base64 > /etc/cofferdam/token)`, and set \
                 `token_file = \"/etc/cofferdam/token\"`",
            );
            return None;
        }
        Some(TcpConfig { address: address?, token_file: self.path(&None, &raw.token_file, &None) })
    }

    fn launcher(&mut self) -> LauncherKind {
        let is_root = self.environment.is_root();
        match value(&self.raw.launcher, &self.defaults.launcher) {
            RawLauncher::Posix => LauncherKind::Posix,
            RawLauncher::Auto if !is_root => LauncherKind::Posix,
            RawLauncher::Auto => LauncherKind::Linux,
            RawLauncher::Linux => {
                if !is_root {
                    let message = format!(
                        "the launcher `linux` requires root, but this is user {}",
                        self.environment.uid
                    );
                    let label = "uses namespaces and cgroups";
                    self.report(span(&self.raw.launcher), message, label, "set `launcher = \"posix\"`");
                }
                LauncherKind::Linux
            }
        }
    }

    fn containerizers(&mut self) -> Vec<ContainerizerConfig> {
        let names = value(&self.raw.containerizers, &self.defaults.containerizers);
        let mut containerizers: Vec<ContainerizerConfig> = Vec::new();
        for Setting { value: name, span } in names {
            let is_known = |known: &ContainerizerConfig| known.name() == *name;
            let containerizer = match name.as_str() {
                _ if containerizers.iter().any(is_known) => {
                    let message = format!("`{name}` is in `containerizers` twice");
                    self.report(Some(span.clone()), message, "the second one", "remove it");
                    continue;
                }
                "mesos" => ContainerizerConfig::Mesos,
                "docker" => ContainerizerConfig::Docker(self.docker()),
                _ => {
                    self.report(
                        Some(span.clone()),
                        format!("unknown containerizer `{}`", name.escape_debug()),
                        "expected \"mesos\" or \"docker\"",
                        "as in `containerizers = [\"docker\", \"mesos\"]`",
                    );
                    continue;
                }
            };
            containerizers.push(containerizer);
        }
        if names.is_empty() {
            let span = span(&self.raw.containerizers);
            let message = "`containerizers` is empty, so no container could be launched".to_owned();
            self.report(
                span,
                message,
                "expected at least one",
                "the default is `containerizers = [\"mesos\"]`",
            );
        }
        containerizers
    }

    fn docker(&mut self) -> DockerConfig {
        let (raw, defaults) = (&self.raw.docker, &self.defaults.docker);
        let sandbox_directory = value(&raw.sandbox_directory, &defaults.sandbox_directory).clone();
        let is_usable = sandbox_directory.is_absolute()
            && sandbox_directory.to_str().is_some_and(|path| !path.contains(':') && path != "/");
        if !is_usable {
            self.report(
                span(&raw.sandbox_directory),
                format!("invalid path `{}` for `docker.sandbox_directory`", sandbox_directory.display()),
                "expected an absolute path without `:`",
                "as in `sandbox_directory = \"/mnt/mesos/sandbox\"`",
            );
        }
        let socket = self.path(&None, &raw.socket, &defaults.socket);
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            let message = format!(
                "the path of the engine's socket, `{}`, has {} bytes; the maximum is {MAX_SOCKET_PATH}",
                socket.display(),
                socket.as_os_str().len()
            );
            self.report(span(&raw.socket), message, "too long", "use a shorter path, or a link");
        }
        let mut config = DockerConfig::new(Arc::new(EngineSocket::new(socket)));
        config.sandbox_directory = sandbox_directory;
        config.credentials = raw.credentials.is_some().then(|| self.path(&None, &raw.credentials, &None));
        config.mesos_image = raw.mesos_image.as_ref().map(|image| image.value.clone());
        if config.mesos_image.as_deref().is_some_and(str::is_empty) {
            self.report(
                span(&raw.mesos_image),
                "`docker.mesos_image` is empty".to_owned(),
                "expected the name of an image",
                "name the image of the container that the agent is in, or remove this if it is in none",
            );
        }
        config.remove_delay = *value(&raw.remove_delay, &defaults.remove_delay);
        config.kill_orphans = *value(&raw.kill_orphans, &defaults.kill_orphans);
        config.timeouts = Timeouts {
            call: self.duration("docker.timeout", &raw.timeout, &defaults.timeout),
            launch: self.duration("docker.launch_timeout", &raw.launch_timeout, &defaults.launch_timeout),
            pull_stall: self.duration(
                "docker.pull_stall_timeout",
                &raw.pull_stall_timeout,
                &defaults.pull_stall_timeout,
            ),
        };
        config
    }

    /// The predefined chain. Is also checked if the file has isolators of its own, and then `None`.
    fn isolation(&mut self, launcher: LauncherKind) -> Isolation {
        let flag = self.overrides.isolation;
        let chosen = flag.unwrap_or(*value(&self.raw.isolation, &self.defaults.isolation));
        let isolation = chosen.with(launcher);
        let name = isolation.name();
        let span = span(&self.raw.isolation).filter(|_| flag.is_none());
        if chosen != Isolation::Auto && self.raw.has_isolators {
            let message = format!("isolation `{name}` is chosen, but the file has `isolator`, its own chain");
            let isolator = self.raw.isolators.first().map(|isolator| isolator.name.span.clone());
            let diagnostic = match (span, isolator) {
                (Some(span), Some(isolator)) => {
                    Diagnostic::at(span, message, "a predefined chain").related(isolator, "an isolator")
                }
                (Some(span), None) => Diagnostic::at(span, message, "a predefined chain"),
                (None, Some(isolator)) => Diagnostic::at(isolator, message, "an isolator"),
                (None, None) => Diagnostic::global(message),
            };
            self.diagnostics.push(diagnostic.help(format!(
                "remove one of them; `cofferdam check --print-isolation {name}` prints the isolators to add to"
            )));
        } else if launcher == LauncherKind::Posix && matches!(isolation, Isolation::Docker | Isolation::Mesos)
        {
            let message = format!("isolation `{name}` needs the `linux` launcher");
            let help =
                "choose `auto`, `posix` or `none`; or run the agent as root, with `launcher = \"linux\"`";
            self.report(span, message, "uses namespaces and cgroups", help);
            return Isolation::None;
        }
        if self.raw.has_isolators { Isolation::None } else { isolation }
    }

    fn cgroup_root(&mut self) -> PathBuf {
        if let Some(flag) = &self.overrides.cgroup_root {
            return flag.clone();
        }
        let root = value(&self.raw.cgroup_root, &self.defaults.cgroup_root);
        if !root.components().all(|component| matches!(component, Component::Normal(_))) {
            self.report(
                span(&self.raw.cgroup_root),
                format!("invalid path `{}` for `cgroup_root`", root.display()),
                "expected a relative path without `..`",
                "the path is relative to the mount point of each hierarchy, as in `cgroup_root = \"cofferdam\"`",
            );
        }
        root.clone()
    }

    fn log(&mut self) -> String {
        let setting = value(&self.raw.log, &self.defaults.log);
        let log = self.overrides.log.as_ref().unwrap_or(setting);
        let problem = match EnvFilter::try_new(log) {
            Err(error) => Some(format!("invalid log filter `{log}`: {error}")),
            Ok(_) => {
                unknown_level(log).map(|word| format!("invalid log filter `{log}`: `{word}` is not a level"))
            }
        };
        if let Some(problem) = problem {
            self.report(
                span(&self.raw.log).filter(|_| self.overrides.log.is_none()),
                problem,
                "expected levels such as \"info,cofferdam_core::chain=debug\"",
                "the levels are `error`, `warn`, `info`, `debug`, `trace` and `off`",
            );
        }
        log.clone()
    }

    fn timeouts(&mut self) -> BTreeMap<Method, Duration> {
        for (method, setting) in &self.raw.timeouts {
            self.check_not_zero(&format!("timeout.{method}"), setting);
        }
        let settings = self.defaults.timeouts.iter().chain(&self.raw.timeouts);
        settings.map(|(method, setting)| (*method, setting.value)).collect()
    }

    fn duration(
        &mut self,
        key: &str,
        raw: &Option<Setting<Duration>>,
        default: &Option<Setting<Duration>>,
    ) -> Duration {
        if let Some(setting) = raw {
            self.check_not_zero(key, setting);
        }
        *value(raw, default)
    }

    fn check_not_zero(&mut self, key: &str, setting: &Setting<Duration>) {
        if setting.value.is_zero() {
            let message = format!("`{key}` is zero");
            self.report(Some(setting.span.clone()), message, "must be greater than zero", None);
        }
    }

    fn scratch_memory(&mut self, launcher: LauncherKind) -> Option<u64> {
        let size = *value(&self.raw.scratch_memory, &self.defaults.scratch_memory);
        if size == 0 {
            return None;
        }
        let span = span(&self.raw.scratch_memory);
        if launcher == LauncherKind::Posix {
            let message = "`scratch_memory` needs the `linux` launcher";
            self.report(
                span,
                message.into(),
                "a tmpfs can be mounted by root only",
                "remove it, or set it to \"0 B\"",
            );
        } else if size < MIN_SCRATCH {
            let message = format!("`scratch_memory` is too small for a container: {size} bytes");
            self.report(span, message, "must be \"0 B\" or at least 1 MiB", None);
        }
        Some(size)
    }

    /// Reports what is no host in a list of hosts.
    fn check_hosts(&mut self, key: &str, hosts: &[Setting<String>]) {
        for host in hosts.iter().filter(|host| !is_host(&host.value)) {
            self.report(
                Some(host.span.clone()),
                format!("invalid host `{}` in `{key}`", host.value.escape_debug()),
                "expected a name, `*.` and a name, or an address, without scheme, port and path",
                "as in `[\"example.com\", \"*.example.com\", \"10.0.0.1\"]`",
            );
        }
    }

    /// Reports what is no registry.
    fn check_registry(&mut self, key: &str, registry: &Setting<String>) {
        if !ImageName::is_registry(&registry.value) {
            self.report(
                Some(registry.span.clone()),
                format!("invalid registry `{}` in `{key}`", registry.value.escape_debug()),
                "expected a host with an optional port, without scheme and path",
                "as in `\"registry.example:5000\"`",
            );
        }
    }

    fn registry(&mut self) -> RegistryConfig {
        let (raw, defaults) = (&self.raw.registry, &self.defaults.registry);
        let insecure = value(&raw.insecure, &defaults.insecure);
        let redirect_hosts = value(&raw.redirect_hosts, &defaults.redirect_hosts);
        self.check_hosts("registry.redirect_hosts", redirect_hosts);
        insecure.iter().for_each(|registry| self.check_registry("registry.insecure", registry));
        for (registry, mirrors) in &raw.mirrors {
            self.check_registry("registry.mirrors", registry);
            mirrors.value.iter().for_each(|mirror| self.check_registry("registry.mirrors", mirror));
        }
        let values =
            |settings: &[Setting<String>]| settings.iter().map(|setting| setting.value.clone()).collect();
        let mirrors =
            raw.mirrors.iter().map(|(registry, mirrors)| (registry.value.clone(), values(&mirrors.value)));
        RegistryConfig {
            mirrors: mirrors.collect(),
            insecure: values(insecure),
            redirect_hosts: values(redirect_hosts),
            credentials: raw.credentials.is_some().then(|| self.path(&None, &raw.credentials, &None)),
            stall: self.duration("registry.stall_timeout", &raw.stall_timeout, &defaults.stall_timeout),
        }
    }

    fn image_gc(&mut self) -> ImageGcConfig {
        let (raw, defaults) = (&self.raw.image_gc, &self.defaults.image_gc);
        let mut excluded = Vec::new();
        for image in value(&raw.excluded_images, &defaults.excluded_images) {
            match image.value.parse::<ImageName>() {
                Ok(name) => excluded.push(name),
                Err(error) => self.report(
                    Some(image.span.clone()),
                    error.to_string(),
                    "in `image_gc.excluded_images`",
                    "as in `excluded_images = [\"busybox:1.36\"]`",
                ),
            }
        }
        ImageGcConfig {
            headroom_percent: *value(&raw.headroom_percent, &defaults.headroom_percent),
            check_interval: self.duration(
                "image_gc.check_interval",
                &raw.check_interval,
                &defaults.check_interval,
            ),
            excluded,
        }
    }

    fn fetch(&mut self) -> FetchLimits {
        let (raw, defaults) = (&self.raw.fetch, &self.defaults.fetch);
        let hosts = value(&raw.hosts, &defaults.hosts);
        self.check_hosts("fetch.hosts", hosts);
        FetchLimits {
            bytes: *value(&raw.max_size, &defaults.max_size),
            files: *value(&raw.max_files, &defaults.max_files),
            ratio: *value(&raw.max_ratio, &defaults.max_ratio),
            redirects: *value(&raw.max_redirects, &defaults.max_redirects),
            hosts: hosts.iter().map(|host| host.value.clone()).collect(),
            stall: self.duration("fetch.stall_timeout", &raw.stall_timeout, &defaults.stall_timeout),
        }
    }

    fn fetch_cache(&self, work_dir: &Path) -> Option<FetchCacheConfig> {
        let (raw, defaults) = (&self.raw.fetch, &self.defaults.fetch);
        let size = *value(&raw.cache_size, &defaults.cache_size);
        let directory = value(&raw.cache_dir, &defaults.cache_dir);
        let directory = match directory.strip_prefix("{work_dir}") {
            Ok(rest) => normalize(&work_dir.join(rest)),
            Err(_) => normalize(&self.base.join(directory)),
        };
        (size > 0).then_some(FetchCacheConfig { directory, size })
    }

    fn executors(&mut self) -> ExecutorConfig {
        let (raw, defaults) = (self.raw, self.defaults);
        let variables = value(&raw.executor_environment_variables, &defaults.executor_environment_variables);
        for (name, variable) in variables {
            if name.is_empty() || name.contains(['=', '\0']) || variable.value.contains('\0') {
                self.report(
                    Some(variable.span.clone()),
                    format!("invalid variable `{}` in `executor_environment_variables`", name.escape_debug()),
                    "a name must not be empty or contain `=`, and nothing may contain NUL",
                    "as in `executor_environment_variables = { LANG = \"C.UTF-8\" }`",
                );
            }
        }
        ExecutorConfig {
            endpoint: None,
            launcher_dir: Some(self.path(&None, &raw.launcher_dir, &defaults.launcher_dir)),
            registration_timeout: self.duration(
                "executor_registration_timeout",
                &raw.executor_registration_timeout,
                &defaults.executor_registration_timeout,
            ),
            reregistration_timeout: self.duration(
                "executor_reregistration_timeout",
                &raw.executor_reregistration_timeout,
                &defaults.executor_reregistration_timeout,
            ),
            shutdown_grace_period: self.duration(
                "executor_shutdown_grace_period",
                &raw.executor_shutdown_grace_period,
                &defaults.executor_shutdown_grace_period,
            ),
            recovery_timeout: self.duration(
                "recovery_timeout",
                &raw.recovery_timeout,
                &defaults.recovery_timeout,
            ),
            switch_user: *value(&raw.switch_user, &defaults.switch_user),
            environment_variables: variables
                .iter()
                .map(|(name, variable)| (name.clone(), variable.value.clone()))
                .collect(),
            max_completed_executors: usize::try_from(*value(
                &raw.max_completed_executors,
                &defaults.max_completed_executors,
            ))
            .unwrap_or(usize::MAX),
        }
    }

    fn default_container_info(&mut self) -> Option<Json> {
        let Setting { value, span } = self.raw.default_container_info.as_ref()?;
        match serde_json::from_str(value) {
            Ok(info @ Json::Object(_)) => return Some(info),
            Ok(_) => self.report(
                Some(span.clone()),
                "`default_container_info` is not an object".to_owned(),
                "expected a `ContainerInfo`",
                "as in `default_container_info = '{\"type\": \"MESOS\"}'`",
            ),
            Err(error) => self.report(
                Some(span.clone()),
                format!("`default_container_info` is not JSON: {error}"),
                "expected a `ContainerInfo`",
                "as in `default_container_info = '{\"type\": \"MESOS\"}'`",
            ),
        }
        None
    }

    fn max_body(&mut self) -> usize {
        let max_body = *value(&self.raw.max_body, &self.defaults.max_body);
        if max_body < MIN_MAX_BODY {
            let message = format!("`api.max_body` is too small for a launch: {max_body} bytes");
            self.report(span(&self.raw.max_body), message, "must be at least 1 KiB", None);
        }
        usize::try_from(max_body).unwrap_or(usize::MAX)
    }

    fn report<'h>(
        &mut self,
        span: Option<Range<usize>>,
        message: String,
        label: &str,
        help: impl Into<Option<&'h str>>,
    ) {
        let diagnostic = match span {
            Some(span) => Diagnostic::at(span, message, label),
            None => Diagnostic::global(message),
        };
        self.diagnostics.push(diagnostic.maybe_help(help.into().map(str::to_owned)));
    }
}

/// A group by its name or its number.
fn group_id(group: &str) -> Option<u32> {
    // An error means that the groups cannot be read, so that none is known.
    let found = nix::unistd::Group::from_name(group).ok().flatten();
    found.map(|group| group.gid.as_raw()).or_else(|| group.parse().ok().filter(|group| *group != u32::MAX))
}

/// Whether a text is an address, a host name, or `*.` and a host name.
fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text.parse::<IpAddr>().is_ok() || name.split('.').all(is_label)
}

fn value<'s, T>(raw: &'s Option<Setting<T>>, default: &'s Option<Setting<T>>) -> &'s T {
    let setting = raw.as_ref().or(default.as_ref());
    &setting.expect("the defaults are complete, as tested").value
}

fn span<T>(raw: &Option<Setting<T>>) -> Option<Range<usize>> {
    raw.as_ref().map(|setting| setting.span.clone())
}

/// The text of a file, followed by what it lacks of a predefined chain.
fn extend(text: &str, raw: &RawConfig<'_>, isolation: Isolation) -> String {
    let (isolators, logger) = isolation.parts();
    let logger = if raw.has_logger { "" } else { logger };
    format!("{text}\n{isolators}{logger}")
}

/// A problem of a plugin, whose position may be in the predefined chain after `text`.
fn in_file(problem: Diagnostic, text: &str, isolation: Isolation) -> Diagnostic {
    let is_in_file = |span: &Range<usize>| span.start <= text.len();
    let Diagnostic { message, span, label, related, help } = problem;
    if span.as_ref().is_none_or(is_in_file) {
        let related = related.filter(|(span, _)| is_in_file(span));
        return Diagnostic { message, span, label, related, help };
    }
    let name = isolation.name();
    let message = format!("{message}, which is part of isolation `{name}`");
    let choice = "choose another `isolation` (`auto` is the default), or list isolators of your own in a configuration file";
    Diagnostic { message, span: None, label: String::new(), related: None, help }.help(choice)
}
