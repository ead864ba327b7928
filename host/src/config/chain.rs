//! The plugins of a configuration: finds their files and validates their settings and their order, without running
//! them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_plugin_model::{Kind, LINUX_LAUNCHER, LOG_TARGETS, Manifest, Method};
use serde_json::{Map, Value as Json};
use toml::de::DeTable;

use super::diagnostic::Diagnostic;
use super::environment::{AvailablePlugin, PluginIndex};
use super::path::normalize;
use super::raw::{RawPlugin, Setting};
use super::schema::{self, Owner};
use super::suggest::{list, nearest_names};
use cofferdam_core::config::{LauncherKind, PluginConfig};
use cofferdam_core::error_chain;

/// How many loggers a logger passes output on to.
const LOG_TARGET_COUNT: usize = 2;
/// The part of a request that plugins for images handle.
const IMAGE: &str = "image";

/// What is needed to resolve the plugins of a configuration.
pub(super) struct ChainResolver<'a> {
    pub index: &'a dyn PluginIndex,
    pub plugin_dir: &'a Path,
    /// Position of `plugin_dir` in the file.
    pub plugin_dir_span: Option<Range<usize>>,
    /// The launcher, which not every plugin can work with.
    pub launcher: LauncherKind,
    /// Position of the kind of images in `image_providers` that a plugin has to handle.
    pub image_provider: Option<Range<usize>>,
    /// Timeouts of plugins that do not set their own.
    pub timeouts: &'a BTreeMap<Method, Duration>,
    /// File and line of a position, for [`PluginConfig::origin`].
    pub origin: &'a dyn Fn(&Range<usize>) -> String,
}

/// A plugin of the configuration whose file was found.
struct Entry<'r> {
    raw: &'r RawPlugin<'r>,
    file: PathBuf,
    manifest: Manifest,
}

/// The plugins of a configuration, without those that have problems.
pub(super) struct Plugins {
    pub isolators: Vec<PluginConfig>,
    pub logger: Option<PluginConfig>,
    /// Those that the logger passes output on to.
    pub log_targets: Vec<PluginConfig>,
    pub hooks: Vec<PluginConfig>,
}

impl ChainResolver<'_> {
    /// The plugins, without those that have problems.
    pub(super) fn resolve(
        &self,
        isolators: &[RawPlugin<'_>],
        logger: Option<&RawPlugin<'_>>,
        log_targets: &[RawPlugin<'_>],
        hooks: &[RawPlugin<'_>],
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Plugins {
        let configured = isolators.iter().chain(log_targets).chain(logger).chain(hooks);
        let available = self.available(configured, diagnostics);
        let mut find = |raw, kind| self.find(raw, kind, available.as_deref(), diagnostics);
        let entries: Vec<Entry<'_>> = isolators.iter().filter_map(|raw| find(raw, Kind::Isolator)).collect();
        let targets: Vec<Entry<'_>> = log_targets.iter().filter_map(|raw| find(raw, Kind::Logger)).collect();
        let logger = logger.and_then(|raw| find(raw, Kind::Logger));
        let hook_entries: Vec<Entry<'_>> = hooks.iter().filter_map(|raw| find(raw, Kind::Hook)).collect();

        check_duplicates(Kind::Isolator, isolators, diagnostics);
        check_duplicates(Kind::Logger, log_targets, diagnostics);
        check_duplicates(Kind::Hook, hooks, diagnostics);
        if let Some(logger) = &logger {
            check_targets(logger, log_targets, &targets, diagnostics);
        }
        // Includes plugins with problems that are already reported, so that requirements on them are not.
        let configured: Vec<&str> = isolators.iter().map(|raw| raw.name.value.as_str()).collect();
        let (unique, unique_hooks) = (without_duplicates(&entries), without_duplicates(&hook_entries));
        let all: Vec<&Entry<'_>> = unique
            .iter()
            .copied()
            .chain(&targets)
            .chain(&logger)
            .chain(unique_hooks.iter().copied())
            .collect();
        check_names(&all, diagnostics);
        for entry in unique.iter().copied().chain(&targets).chain(&logger) {
            check_requirements(entry, &configured, diagnostics);
            check_conflicts(entry, &all, diagnostics);
            check_order(entry, &unique, diagnostics);
            check_launcher(entry, self.launcher, diagnostics);
        }
        // Their order is one of its own; what they require may be in the chain.
        let with_hooks: Vec<&str> =
            configured.iter().copied().chain(hooks.iter().map(|raw| raw.name.value.as_str())).collect();
        for entry in unique_hooks.iter().copied() {
            check_requirements(entry, &with_hooks, diagnostics);
            check_conflicts(entry, &all, diagnostics);
            check_order(entry, &unique_hooks, diagnostics);
            check_launcher(entry, self.launcher, diagnostics);
        }
        for entry in entries.iter().chain(&targets).chain(&logger).chain(&hook_entries) {
            check_settings(entry, diagnostics);
        }
        // One that was not found may be the one that handles them.
        if entries.len() == isolators.len() {
            self.check_images(&entries, diagnostics);
        }
        let configs = |entries: &[Entry<'_>]| entries.iter().map(|entry| self.config(entry)).collect();
        Plugins {
            isolators: configs(&entries),
            logger: logger.map(|entry| self.config(&entry)),
            log_targets: configs(&targets),
            hooks: configs(&hook_entries),
        }
    }

    /// Checks that images are handled if they are to be.
    fn check_images(&self, entries: &[Entry<'_>], diagnostics: &mut Vec<Diagnostic>) {
        let handles = |entry: &Entry<'_>| entry.manifest.handles.iter().any(|part| part == IMAGE);
        if let Some(span) = &self.image_provider
            && !entries.iter().any(handles)
        {
            let message = "no isolator runs containers as their images say, which `image_providers` needs";
            let diagnostic = Diagnostic::at(span.clone(), message.to_owned(), "images of this kind");
            diagnostics.push(diagnostic.help(
                "add `[[isolator]]` with `name = \"docker/runtime\"` as the first of the chain, or remove this",
            ));
        }
    }

    /// The plugins in the plugin directory. `None` if it does not exist but is needed, which is reported once.
    fn available<'r>(
        &self,
        mut plugins: impl Iterator<Item = &'r RawPlugin<'r>>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Option<Vec<AvailablePlugin>> {
        if plugins.all(|raw| raw.path.is_some()) {
            return Some(Vec::new());
        }
        if self.plugin_dir.is_dir() {
            return Some(self.index.in_directory(self.plugin_dir));
        }
        let message = format!("the plugin directory `{}` does not exist", self.plugin_dir.display());
        let diagnostic = match &self.plugin_dir_span {
            Some(span) => Diagnostic::at(span.clone(), message, "not a directory"),
            None => Diagnostic::global(message),
        };
        diagnostics
            .push(diagnostic.help("set `plugin_dir` or `--plugin-dir`, or set the `path` of each plugin"));
        None
    }

    fn find<'r>(
        &self,
        raw: &'r RawPlugin<'r>,
        kind: Kind,
        available: Option<&[AvailablePlugin]>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Option<Entry<'r>> {
        let found = match &raw.path {
            Some(path) => self.find_by_path(raw, path),
            None => self.find_by_name(raw, kind, available?),
        };
        let (file, manifest) = found.map_err(|diagnostic| diagnostics.push(diagnostic)).ok()?;
        diagnostics.extend(self.check_hash(raw, &file));
        if manifest.kind != kind {
            diagnostics.push(wrong_kind(raw, kind, manifest.kind));
            return None;
        }
        Some(Entry { raw, file, manifest })
    }

    fn find_by_path(
        &self,
        raw: &RawPlugin<'_>,
        path: &Setting<PathBuf>,
    ) -> Result<(PathBuf, Manifest), Diagnostic> {
        let file = normalize(&self.plugin_dir.join(&path.value));
        let name = &raw.name.value;
        match self.index.manifest(&file) {
            Ok(manifest) if manifest.name == *name => Ok((file, manifest)),
            Ok(manifest) => {
                let message = format!("`{}` is not plugin `{name}`", file.display());
                let label = format!("this file is plugin `{}`", manifest.name);
                let diagnostic = Diagnostic::at(path.span.clone(), message, label);
                Err(diagnostic.related(raw.name.span.clone(), "expected this plugin"))
            }
            Err(error) => {
                let message = format!("cannot use `{}` as plugin `{name}`", file.display());
                let reason = error_chain::describe(error.as_ref());
                let help = format!("relative paths are relative to `{}`", self.plugin_dir.display());
                Err(Diagnostic::at(path.span.clone(), message, reason).help(help))
            }
        }
    }

    fn find_by_name(
        &self,
        raw: &RawPlugin<'_>,
        kind: Kind,
        available: &[AvailablePlugin],
    ) -> Result<(PathBuf, Manifest), Diagnostic> {
        let name = &raw.name.value;
        let usable = || available.iter().filter_map(|(file, manifest)| Some((file, manifest.as_ref().ok()?)));
        let mut found = usable().filter(|(_, manifest)| manifest.name == *name);
        match (found.next(), found.next()) {
            (Some((file, manifest)), None) => Ok((file.clone(), manifest.clone())),
            (Some((one, _)), Some((other, _))) => {
                let message = format!("several files in `{}` are plugin `{name}`", self.plugin_dir.display());
                let label = format!("`{}` and `{}`", file_name(one), file_name(other));
                let help = format!("choose one by its path: `path = \"{}\"`", file_name(one));
                Err(Diagnostic::at(raw.name.span.clone(), message, label).help(help))
            }
            (None, _) => {
                let same_kind =
                    usable().map(|(_, manifest)| manifest).filter(|manifest| manifest.kind == kind);
                let mut known: Vec<&str> = same_kind.map(|manifest| manifest.name.as_str()).collect();
                known.sort_unstable();
                Err(self.not_found(raw, kind, &known, available))
            }
        }
    }

    fn not_found(
        &self,
        raw: &RawPlugin<'_>,
        kind: Kind,
        known: &[&str],
        available: &[AvailablePlugin],
    ) -> Diagnostic {
        let name = &raw.name.value;
        let directory = self.plugin_dir.display();
        let similar = nearest_names(name, known.iter().copied());
        let help = if !similar.is_empty() {
            format!("did you mean {}?", list(similar, "or"))
        } else if known.is_empty() {
            format!("the directory contains no {kind}; is `plugin_dir` correct?")
        } else {
            format!("the directory contains {}", list(known.iter().copied(), "and"))
        };
        let message = format!("there is no {kind} `{name}` in `{directory}`");
        let diagnostic = Diagnostic::at(raw.name.span.clone(), message, "not found").help(help);
        // One of these files may be the plugin.
        let unusable = available.iter().filter_map(|(file, entry)| Some((file, entry.as_ref().err()?)));
        unusable.fold(diagnostic, |diagnostic, (file, error)| {
            let reason = error_chain::describe(error.as_ref());
            diagnostic.help(format!("`{}` in that directory cannot be used: {reason}", file_name(file)))
        })
    }

    fn check_hash(&self, raw: &RawPlugin<'_>, file: &Path) -> Option<Diagnostic> {
        let expected = raw.sha256.as_ref()?;
        let at = |message, label| Diagnostic::at(expected.span.clone(), message, label);
        if expected.value.len() != 64 || !expected.value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("`sha256` of plugin `{}` is not a SHA-256", raw.name.value);
            return Some(at(message, "expected 64 hexadecimal digits".to_owned()));
        }
        match self.index.sha256(file) {
            Ok(hash) if hash.eq_ignore_ascii_case(&expected.value) => None,
            Ok(hash) => {
                let message = format!("`{}` does not have the hash in `sha256`", file.display());
                let diagnostic = at(message, format!("its hash is {hash}"));
                Some(diagnostic.help("find out why the file changed before you change the hash"))
            }
            Err(error) => {
                let message = format!("cannot read `{}`", file.display());
                Some(at(message, error_chain::describe(error.as_ref())))
            }
        }
    }

    fn config(&self, entry: &Entry<'_>) -> PluginConfig {
        let raw = entry.raw;
        let mut timeouts = self.timeouts.clone();
        timeouts.extend(raw.timeouts.iter().map(|(method, setting)| (*method, setting.value)));
        PluginConfig {
            name: raw.name.value.clone(),
            path: Some(entry.file.clone()),
            sha256: raw.sha256.as_ref().map(|hash| hash.value.to_ascii_lowercase()),
            policy: raw.policy,
            timeouts,
            table: match &raw.config {
                Some((table, _)) => schema::table_to_json(table),
                None => Json::Object(Map::new()),
            },
            origin: (self.origin)(&raw.name.span),
        }
    }
}

fn wrong_kind(raw: &RawPlugin<'_>, expected: Kind, actual: Kind) -> Diagnostic {
    let message = format!("plugin `{}` has the wrong kind", raw.name.value);
    let label = format!("expected kind `{expected}`, this plugin has kind `{actual}`");
    let help = match actual {
        Kind::Logger => "move it to the table `[logger]`",
        Kind::Isolator => "move it to an entry `[[isolator]]`",
        Kind::Hook => "move it to an entry `[[hook]]`",
        _ => "this kind may need a newer agent",
    };
    Diagnostic::at(raw.name.span.clone(), message, label).help(help)
}

/// The first entry of each name.
fn without_duplicates<'e, 'r>(entries: &'e [Entry<'r>]) -> Vec<&'e Entry<'r>> {
    let is_first = |(i, entry): &(usize, &Entry<'_>)| {
        entries[..*i].iter().all(|earlier| earlier.manifest.name != entry.manifest.name)
    };
    entries.iter().enumerate().filter(is_first).map(|(_, entry)| entry).collect()
}

/// Checks that exactly the loggers that pass output on have those that they pass it on to.
fn check_targets(
    logger: &Entry<'_>,
    raw: &[RawPlugin<'_>],
    targets: &[Entry<'_>],
    diagnostics: &mut Vec<Diagnostic>,
) {
    let passes_on = |entry: &Entry<'_>| entry.manifest.features.iter().any(|feature| feature == LOG_TARGETS);
    let name = &logger.manifest.name;
    let at = logger.raw.name.span.clone();
    if passes_on(logger) && raw.len() != LOG_TARGET_COUNT {
        let message =
            format!("logger `{name}` passes output on to {LOG_TARGET_COUNT} loggers, and has {}", raw.len());
        let diagnostic = Diagnostic::at(at, message, "has other loggers below it");
        diagnostics.push(
            diagnostic.help("name each in an entry `[[logger.to]]`, with a table `[logger.to.config]`"),
        );
    } else if !passes_on(logger) && !raw.is_empty() {
        let message = format!("logger `{name}` passes output on to no other loggers");
        let diagnostic = Diagnostic::at(raw[0].name.span.clone(), message, "would receive nothing");
        diagnostics.push(
            diagnostic
                .related(at, "this logger")
                .help("use the logger `tee`, and name both in `[[logger.to]]`"),
        );
    }
    for target in targets.iter().filter(|target| passes_on(target)) {
        let message = format!("logger `{}` cannot be one that output is passed on to", target.manifest.name);
        let diagnostic = Diagnostic::at(target.raw.name.span.clone(), message, "needs loggers of its own");
        diagnostics.push(diagnostic.help("name one that writes output itself"));
    }
}

fn check_duplicates(kind: Kind, plugins: &[RawPlugin<'_>], diagnostics: &mut Vec<Diagnostic>) {
    for (i, raw) in plugins.iter().enumerate() {
        let earlier = plugins[..i].iter().find(|earlier| earlier.name.value == raw.name.value);
        if let Some(earlier) = earlier {
            let message = format!("duplicate {kind} `{}`", raw.name.value);
            let diagnostic = Diagnostic::at(raw.name.span.clone(), message, "duplicate");
            diagnostics.push(
                diagnostic.related(earlier.name.span.clone(), "first entry").help("remove one of the two"),
            );
        }
    }
}

/// Checks that plugins of different kinds have different names, which is all that identifies a plugin in records, metrics and calls.
fn check_names(entries: &[&Entry<'_>], diagnostics: &mut Vec<Diagnostic>) {
    for (i, entry) in entries.iter().enumerate() {
        let Manifest { name, kind, .. } = &entry.manifest;
        let has_name =
            |earlier: &&&Entry<'_>| earlier.manifest.name == *name && earlier.manifest.kind != *kind;
        if let Some(earlier) = entries[..i].iter().find(has_name) {
            let message = format!("the {} and the {kind} `{name}` have the same name", earlier.manifest.kind);
            let diagnostic = Diagnostic::at(entry.raw.name.span.clone(), message, format!("this {kind}"));
            let label = format!("the {}", earlier.manifest.kind);
            diagnostics.push(
                diagnostic
                    .related(earlier.raw.name.span.clone(), label)
                    .help("the name of a plugin is that of no other; remove one of the two"),
            );
        }
    }
}

fn check_requirements(entry: &Entry<'_>, configured: &[&str], diagnostics: &mut Vec<Diagnostic>) {
    let name = &entry.manifest.name;
    for missing in entry.manifest.requires.iter().filter(|required| !configured.contains(&required.as_str()))
    {
        let (place, tables) = match entry.manifest.kind {
            Kind::Hook => ("configured", "`[[isolator]]` or `[[hook]]`"),
            _ => ("in the chain", "`[[isolator]]`"),
        };
        let message = format!("plugin `{name}` requires `{missing}`, which is not {place}");
        let help = format!("add an entry {tables} with `name = \"{missing}\"`");
        let label = format!("requires `{missing}`");
        diagnostics.push(Diagnostic::at(entry.raw.name.span.clone(), message, label).help(help));
    }
}

fn check_conflicts(entry: &Entry<'_>, chain: &[&Entry<'_>], diagnostics: &mut Vec<Diagnostic>) {
    let name = &entry.manifest.name;
    let others = chain.iter().filter(|other| other.manifest.name != *name);
    for other in others.filter(|other| entry.manifest.conflicts.contains(&other.manifest.name)) {
        let message = format!("plugin `{name}` conflicts with `{}`", other.manifest.name);
        let diagnostic = Diagnostic::at(entry.raw.name.span.clone(), message, "conflicts with the other");
        diagnostics
            .push(diagnostic.related(other.raw.name.span.clone(), "the other").help("remove one of the two"));
    }
}

/// Reports the violations of `after` and `before` of one plugin.
fn check_order(entry: &Entry<'_>, chain: &[&Entry<'_>], diagnostics: &mut Vec<Diagnostic>) {
    let name = &entry.manifest.name;
    let Some(position) = chain.iter().position(|other| other.manifest.name == *name) else { return };
    let (earlier, later) = (&chain[..position], &chain[position + 1..]);
    let too_early = later.iter().filter(|other| entry.manifest.after.contains(&other.manifest.name));
    let too_late = earlier.iter().filter(|other| entry.manifest.before.contains(&other.manifest.name));
    let violations = too_early
        .map(|other| (other, "after", "too early", "must come first", "down"))
        .chain(too_late.map(|other| (other, "before", "too late", "must come later", "up")));
    for (other, relation, label, other_label, direction) in violations {
        let message = format!("plugin `{name}` must come {relation} `{}`", other.manifest.name);
        let order = if entry.manifest.kind == Kind::Hook { "calls" } else { "the chain" };
        let help = format!("the order of the entries is the order of {order}; move this entry {direction}");
        let diagnostic = Diagnostic::at(entry.raw.name.span.clone(), message, label);
        diagnostics.push(diagnostic.related(other.raw.name.span.clone(), other_label).help(help));
    }
}

fn check_launcher(entry: &Entry<'_>, launcher: LauncherKind, diagnostics: &mut Vec<Diagnostic>) {
    let needs_linux = entry.manifest.features.iter().any(|feature| feature == LINUX_LAUNCHER);
    if needs_linux && launcher == LauncherKind::Posix {
        let message = format!("plugin `{}` needs the launcher `linux`", entry.manifest.name);
        let diagnostic = Diagnostic::at(entry.raw.name.span.clone(), message, "the launcher is `posix`");
        diagnostics.push(diagnostic.help(
            "run the agent as root, with `launcher = \"linux\"` or without `launcher`; or remove this entry",
        ));
    }
}

/// Validates timeouts, and the plugin's own settings against its schema.
fn check_settings(entry: &Entry<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let Entry { raw, manifest, .. } = entry;
    for (method, setting) in raw.timeouts.iter().filter(|(_, setting)| setting.value.is_zero()) {
        let message = format!("`timeout.{method}` of plugin `{}` is zero", manifest.name);
        diagnostics.push(Diagnostic::at(setting.span.clone(), message, "must be greater than zero"));
    }
    let owner = Owner::Plugin(&manifest.name);
    match &raw.config {
        Some((table, span)) => {
            diagnostics.extend(schema::check(table, span.clone(), &manifest.config, owner));
        }
        None => {
            let missing = schema::check(&DeTable::new(), raw.name.span.clone(), &manifest.config, owner);
            let help = format!("add it to a table `[{}.config]` below this entry", manifest.kind);
            diagnostics.extend(missing.into_iter().map(|diagnostic| diagnostic.help(help.clone())));
        }
    }
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
