//! From what was written to what was meant, with everything that is wrong reported at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use super::chain::{self, Chain};
use super::diagnostic::{Finding, Findings};
use super::raw::{Launcher, Raw, Setting};
use super::schema::{self, Owner};
use cofferdam_core::config::{AgentConfig, LauncherKind};

use super::{ApiLimits, Config, ConfigError, Environment, Overrides, PluginIndex, defaults};

/// The kernel's room for the path of a socket, without the byte that ends it.
const SOCKET_PATH: usize = 107;

/// Makes a configuration of the text of a file, or of nothing.
pub(super) fn resolve(
    file: Option<&Path>,
    text: &str,
    overrides: &Overrides,
    environment: &Environment,
    index: &dyn PluginIndex,
) -> Result<Config, ConfigError> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What follows from broken syntax would only be noise.
        let findings = errors.iter().map(syntax).collect();
        return Err(Findings::new(file, text, findings).into());
    }
    let findings = schema::check(tree.get_ref(), text.len()..text.len(), defaults::schema(), Owner::Agent);
    let raw = Raw::read(tree.get_ref());
    let standard = defaults::text(environment);
    let standard = DeTable::parse(&standard).expect("the defaults are TOML; a test holds them to that");
    let standard = Raw::read(standard.get_ref());

    let base = file
        .and_then(Path::parent)
        .map_or_else(|| environment.cwd.clone(), |directory| environment.cwd.join(directory));
    let mut resolver = Resolver { base, overrides, environment, index, findings };
    let config = resolver.config(file, text, &raw, &standard);
    if resolver.findings.is_empty() {
        Ok(config)
    } else {
        Err(Findings::new(file, text, resolver.findings).into())
    }
}

fn syntax(error: &toml::de::Error) -> Finding {
    let message = format!("this is not TOML: {}", error.message().lines().collect::<Vec<_>>().join(", "));
    match error.span() {
        Some(span) => Finding::at(span, message, ""),
        None => Finding::elsewhere(message),
    }
}

struct Resolver<'a> {
    /// Where relative paths of the file begin.
    base: PathBuf,
    overrides: &'a Overrides,
    environment: &'a Environment,
    index: &'a dyn PluginIndex,
    findings: Vec<Finding>,
}

impl Resolver<'_> {
    fn config(&mut self, file: Option<&Path>, text: &str, raw: &Raw<'_>, standard: &Raw<'_>) -> Config {
        let overrides = self.overrides;
        let runtime_dir = self.path(&overrides.runtime_dir, &raw.runtime_dir, &standard.runtime_dir);
        let work_dir = self.path(&overrides.work_dir, &raw.work_dir, &standard.work_dir);
        let plugin_dir = self.path(&overrides.plugin_dir, &raw.plugin_dir, &standard.plugin_dir);
        let socket = self.socket(raw, standard, &runtime_dir);
        let launcher = self.launcher(raw, standard);
        let cgroup_root = self.cgroup_root(raw, standard);
        let log = self.log(raw, standard);

        let mut timeouts = BTreeMap::new();
        for (method, setting) in standard.timeouts.iter().chain(&raw.timeouts) {
            self.above_zero(&format!("timeout.{method}"), setting);
            timeouts.insert(*method, setting.value);
        }
        let chain = Chain {
            index: self.index,
            directory: &plugin_dir,
            directory_span: raw.plugin_dir.as_ref().map(|setting| setting.span.clone()),
            timeouts: &timeouts,
            origin: &|span: &Range<usize>| chain::origin(file, text, span),
        };
        let (isolators, logger) = chain.resolve(&raw.isolators, raw.logger.as_ref(), &mut self.findings);

        Config {
            file: file.map(|file| self.environment.cwd.join(file)),
            agent: AgentConfig {
                runtime_dir,
                work_dir,
                plugin_store: None,
                plugin_dir,
                launcher,
                cgroup_root,
                isolators,
                logger,
                fetcher: None,
                container_nofile: None,
                destroy_timeout: self.duration(
                    "destroy_timeout",
                    &raw.destroy_timeout,
                    &standard.destroy_timeout,
                ),
            },
            socket,
            api: ApiLimits {
                body: self.body(raw, standard),
                idle: self.duration("api.idle_timeout", &raw.idle_timeout, &standard.idle_timeout),
            },
            log,
            log_json: *written(&raw.log_json, &standard.log_json),
        }
    }

    /// A path: of the command line, of the file, or the default.
    fn path(
        &self,
        flag: &Option<PathBuf>,
        raw: &Option<Setting<PathBuf>>,
        standard: &Option<Setting<PathBuf>>,
    ) -> PathBuf {
        match (flag, raw) {
            (Some(flag), _) => tidy(&self.environment.cwd.join(flag)),
            (None, Some(raw)) => tidy(&self.base.join(&raw.value)),
            (None, None) => written(raw, standard).clone(),
        }
    }

    fn socket(&mut self, raw: &Raw<'_>, standard: &Raw<'_>, runtime_dir: &Path) -> PathBuf {
        let socket = match (&self.overrides.socket, written(&raw.socket, &standard.socket)) {
            (Some(flag), _) => tidy(&self.environment.cwd.join(flag)),
            (None, text) => match text.strip_prefix("{runtime_dir}") {
                Ok(rest) => runtime_dir.join(rest),
                Err(_) => tidy(&self.base.join(text)),
            },
        };
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH {
            let message = format!(
                "the socket `{}` has a path of {length} bytes; the kernel allows {SOCKET_PATH}",
                socket.display()
            );
            let span =
                raw.socket.as_ref().filter(|_| self.overrides.socket.is_none()).map(|s| s.span.clone());
            self.report(span, message, "too long", "choose a shorter `socket`, or a shorter `runtime_dir`");
        }
        socket
    }

    fn launcher(&mut self, raw: &Raw<'_>, standard: &Raw<'_>) -> LauncherKind {
        match written(&raw.launcher, &standard.launcher) {
            Launcher::Posix => LauncherKind::Posix,
            Launcher::Auto if !self.environment.is_root() => LauncherKind::Posix,
            Launcher::Auto => LauncherKind::Linux,
            Launcher::Linux => {
                if !self.environment.is_root() {
                    let message =
                        format!("the launcher `linux` needs root, and this is user {}", self.environment.uid);
                    let span = raw.launcher.as_ref().map(|setting| setting.span.clone());
                    self.report(
                        span,
                        message,
                        "makes namespaces and control groups",
                        "write `launcher = \"posix\"`",
                    );
                }
                LauncherKind::Linux
            }
        }
    }

    fn cgroup_root(&mut self, raw: &Raw<'_>, standard: &Raw<'_>) -> PathBuf {
        if let Some(flag) = &self.overrides.cgroup_root {
            return flag.clone();
        }
        let root = written(&raw.cgroup_root, &standard.cgroup_root);
        if !root.components().all(|part| matches!(part, Component::Normal(_))) {
            self.report(
                raw.cgroup_root.as_ref().map(|setting| setting.span.clone()),
                format!("the control group `{}` is not below the root of its hierarchy", root.display()),
                "expected a relative path without `..`",
                "write it as in `cgroup_root = \"cofferdam\"`: it is relative to each mount point",
            );
        }
        root.clone()
    }

    fn log(&mut self, raw: &Raw<'_>, standard: &Raw<'_>) -> String {
        let log = self.overrides.log.as_ref().unwrap_or_else(|| written(&raw.log, &standard.log));
        if EnvFilter::try_new(log).is_err() {
            let span = raw.log.as_ref().filter(|_| self.overrides.log.is_none()).map(|s| s.span.clone());
            self.report(
                span,
                format!("`{log}` does not say what to log"),
                "expected levels such as \"info,cofferdam::chain=debug\"",
                "the levels are `error`, `warn`, `info`, `debug`, `trace` and `off`",
            );
        }
        log.clone()
    }

    fn duration(
        &mut self,
        key: &str,
        raw: &Option<Setting<Duration>>,
        standard: &Option<Setting<Duration>>,
    ) -> Duration {
        if let Some(setting) = raw {
            self.above_zero(key, setting);
        }
        *written(raw, standard)
    }

    fn above_zero(&mut self, key: &str, setting: &Setting<Duration>) {
        if setting.value.is_zero() {
            let message = format!("`{key}` cannot be zero");
            self.findings.push(Finding::at(setting.span.clone(), message, "expected more than no time"));
        }
    }

    fn body(&mut self, raw: &Raw<'_>, standard: &Raw<'_>) -> usize {
        /// A launch of some length must still fit.
        const LEAST: u64 = 1024;
        let body = *written(&raw.max_body, &standard.max_body);
        if let Some(setting) = raw.max_body.as_ref().filter(|_| body < LEAST) {
            let message = format!("`api.max_body` of {body} bytes leaves no room for a launch");
            self.findings.push(Finding::at(setting.span.clone(), message, "expected 1 KiB or more"));
        }
        usize::try_from(body).unwrap_or(usize::MAX)
    }

    fn report(&mut self, span: Option<Range<usize>>, message: String, label: &str, advice: &str) {
        let finding = match span {
            Some(span) => Finding::at(span, message, label),
            None => Finding::elsewhere(message),
        };
        self.findings.push(finding.help(advice));
    }
}

fn written<'s, T>(raw: &'s Option<Setting<T>>, standard: &'s Option<Setting<T>>) -> &'s T {
    let setting = raw.as_ref().or(standard.as_ref());
    &setting.expect("the defaults set every key; a test holds them to that").value
}

/// Without `.` and, where that cannot change its meaning, `..`: for people to read.
pub(super) fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // Behind a symbolic link, `..` is somewhere else than the text says.
            Component::ParentDir if !tidy.is_symlink() && tidy.file_name().is_some() => {
                tidy.pop();
            }
            other => tidy.push(other),
        }
    }
    tidy
}
