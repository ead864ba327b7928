//! What was written in a configuration file, as far as it has the right shape.
//!
//! What has not is simply absent here: the schema reports it, and the rest is still looked at, so that an
//! operator sees everything that is wrong at once.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_plugin_model::{Method, units};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use cofferdam_core::config::FailPolicy;

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Setting<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// A configuration file.
#[derive(Debug, Default)]
pub(super) struct Raw<'d> {
    pub runtime_dir: Option<Setting<PathBuf>>,
    pub work_dir: Option<Setting<PathBuf>>,
    pub socket: Option<Setting<PathBuf>>,
    pub plugin_dir: Option<Setting<PathBuf>>,
    pub launcher: Option<Setting<Launcher>>,
    pub cgroup_root: Option<Setting<PathBuf>>,
    pub destroy_timeout: Option<Setting<Duration>>,
    pub log: Option<Setting<String>>,
    pub log_json: Option<Setting<bool>>,
    pub max_body: Option<Setting<u64>>,
    pub idle_timeout: Option<Setting<Duration>>,
    pub timeouts: Vec<(Method, Setting<Duration>)>,
    pub isolators: Vec<RawPlugin<'d>>,
    pub logger: Option<RawPlugin<'d>>,
}

/// Who is to make and end processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launcher {
    Auto,
    Linux,
    Posix,
}

/// A plugin, in or beside the chain.
#[derive(Debug)]
pub(super) struct RawPlugin<'d> {
    pub name: Setting<String>,
    pub path: Option<Setting<PathBuf>>,
    pub sha256: Option<Setting<String>>,
    pub policy: FailPolicy,
    pub timeouts: Vec<(Method, Setting<Duration>)>,
    pub config: Option<(&'d DeTable<'d>, Range<usize>)>,
}

impl<'d> Raw<'d> {
    /// Reads what has the right shape.
    pub(super) fn read(root: &'d DeTable<'d>) -> Self {
        let api = table(root, "api");
        let nested = |key, read: fn(&str) -> Option<Duration>| api.and_then(|api| parsed(api, key, read));
        Self {
            runtime_dir: path(root, "runtime_dir"),
            work_dir: path(root, "work_dir"),
            socket: path(root, "socket"),
            plugin_dir: path(root, "plugin_dir"),
            launcher: parsed(root, "launcher", |word| match word {
                "auto" => Some(Launcher::Auto),
                "linux" => Some(Launcher::Linux),
                "posix" => Some(Launcher::Posix),
                _ => None,
            }),
            cgroup_root: path(root, "cgroup_root"),
            destroy_timeout: parsed(root, "destroy_timeout", units::duration),
            log: text(root, "log"),
            log_json: root
                .get("log_json")
                .and_then(|value| Some(Setting { value: value.get_ref().as_bool()?, span: value.span() })),
            max_body: api.and_then(|api| parsed(api, "max_body", units::size)),
            idle_timeout: nested("idle_timeout", units::duration),
            timeouts: timeouts(root),
            isolators: root
                .get("isolator")
                .and_then(|list| list.get_ref().as_array())
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.get_ref().as_table().and_then(RawPlugin::read))
                .collect(),
            logger: table(root, "logger").and_then(RawPlugin::read),
        }
    }
}

impl<'d> RawPlugin<'d> {
    fn read(entry: &'d DeTable<'d>) -> Option<Self> {
        Some(Self {
            name: text(entry, "name")?,
            path: path(entry, "path"),
            sha256: text(entry, "sha256"),
            policy: match text(entry, "policy") {
                Some(word) if word.value == "optional" => FailPolicy::Optional,
                _ => FailPolicy::Required,
            },
            timeouts: timeouts(entry),
            config: entry
                .get("config")
                .and_then(|config| Some((config.get_ref().as_table()?, config.span()))),
        })
    }
}

fn table<'d>(parent: &'d DeTable<'d>, key: &str) -> Option<&'d DeTable<'d>> {
    parent.get(key)?.get_ref().as_table()
}

fn text(parent: &DeTable<'_>, key: &str) -> Option<Setting<String>> {
    parsed(parent, key, |text| Some(text.to_owned()))
}

fn path(parent: &DeTable<'_>, key: &str) -> Option<Setting<PathBuf>> {
    parsed(parent, key, |text| (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text)))
}

fn parsed<T>(parent: &DeTable<'_>, key: &str, read: impl Fn(&str) -> Option<T>) -> Option<Setting<T>> {
    let value: &Spanned<DeValue<'_>> = parent.get(key)?;
    Some(Setting { value: read(value.get_ref().as_str()?)?, span: value.span() })
}

fn timeouts(parent: &DeTable<'_>) -> Vec<(Method, Setting<Duration>)> {
    let Some(timeouts) = table(parent, "timeout") else { return Vec::new() };
    let known = Method::ALL.into_iter();
    known.filter_map(|method| Some((method, parsed(timeouts, method.name(), units::duration)?))).collect()
}
