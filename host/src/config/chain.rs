//! The plugins that were asked for: where they are, whether they get along, and whether they understand
//! what they are told. All without running any of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_plugin_model::{Kind, Manifest, Method};
use serde_json::{Map, Value as Json};

use super::diagnostic::{Finding, nearest, position, words};
use super::raw::{RawPlugin, Setting};
use super::resolve::tidy;
use super::schema::{self, Owner};
use super::surroundings::AvailablePlugin;
use cofferdam_core::config::PluginConfig;

use super::PluginIndex;

/// What is needed to make sense of the plugins in a file.
pub(super) struct Chain<'a> {
    pub index: &'a dyn PluginIndex,
    /// Where plugins are looked for by name.
    pub directory: &'a Path,
    /// Where that was written.
    pub directory_span: Option<Range<usize>>,
    /// What holds for every plugin.
    pub timeouts: &'a BTreeMap<Method, Duration>,
    pub origin: &'a dyn Fn(&Range<usize>) -> String,
}

/// A plugin that was asked for and found.
struct Link<'r> {
    raw: &'r RawPlugin<'r>,
    file: PathBuf,
    manifest: Manifest,
}

impl Chain<'_> {
    /// The isolators and the logger, as far as they make sense.
    pub(super) fn resolve(
        &self,
        isolators: &[RawPlugin<'_>],
        logger: Option<&RawPlugin<'_>>,
        findings: &mut Vec<Finding>,
    ) -> (Vec<PluginConfig>, Option<PluginConfig>) {
        let index = self.index(isolators.iter().chain(logger), findings);
        let mut find = |raw, kind| self.find(raw, kind, index.as_deref(), findings);
        let links: Vec<Link<'_>> = isolators.iter().filter_map(|raw| find(raw, Kind::Isolator)).collect();
        let logger = logger.and_then(|raw| find(raw, Kind::Logger));

        duplicates(isolators, findings);
        let asked: Vec<&str> = isolators.iter().map(|raw| raw.name.value.as_str()).collect();
        let firsts: Vec<&Link<'_>> = links
            .iter()
            .enumerate()
            .filter(|(i, link)| links[..*i].iter().all(|earlier| earlier.manifest.name != link.manifest.name))
            .map(|(_, link)| link)
            .collect();
        for link in firsts.iter().copied().chain(&logger) {
            company(link, &asked, &firsts, findings);
        }
        for link in links.iter().chain(&logger) {
            self.tables(link, findings);
        }
        let configs = links.iter().map(|link| self.config(link)).collect();
        (configs, logger.map(|link| self.config(&link)))
    }

    /// What the folder offers; `None` when there is no such folder, which is then reported once.
    fn index<'r>(
        &self,
        mut plugins: impl Iterator<Item = &'r RawPlugin<'r>>,
        findings: &mut Vec<Finding>,
    ) -> Option<Vec<AvailablePlugin>> {
        if plugins.all(|raw| raw.path.is_some()) {
            return Some(Vec::new());
        }
        if self.directory.is_dir() {
            return Some(self.index.in_directory(self.directory));
        }
        let message = format!("there is no folder `{}` to look for plugins in", self.directory.display());
        let advice = "set `plugin_dir`, or give `--plugin-dir`, or give each plugin a `path`";
        findings.push(match &self.directory_span {
            Some(span) => Finding::at(span.clone(), message, "no such folder").help(advice),
            None => Finding::elsewhere(message).help(advice),
        });
        None
    }

    fn find<'r>(
        &self,
        raw: &'r RawPlugin<'r>,
        kind: Kind,
        index: Option<&[AvailablePlugin]>,
        findings: &mut Vec<Finding>,
    ) -> Option<Link<'r>> {
        let (file, manifest) = match &raw.path {
            Some(path) => self.at(raw, path, findings)?,
            None => self.by_name(raw, kind, index?, findings)?,
        };
        self.check_hash(raw, &file, findings);
        if manifest.kind != kind {
            let message = format!("`{}` is a plugin of the wrong kind", raw.name.value);
            let label = format!("expected a plugin of kind {kind}; this one is: {}", manifest.kind);
            let advice = match manifest.kind {
                Kind::Logger => "move it to the table `[logger]`",
                Kind::Isolator => "move it to an entry `[[isolator]]`",
                _ => "a newer agent may know what it is for",
            };
            findings.push(Finding::at(raw.name.span.clone(), message, label).help(advice));
            return None;
        }
        Some(Link { raw, file, manifest })
    }

    fn at(
        &self,
        raw: &RawPlugin<'_>,
        path: &Setting<PathBuf>,
        findings: &mut Vec<Finding>,
    ) -> Option<(PathBuf, Manifest)> {
        let file = tidy(&self.directory.join(&path.value));
        let name = &raw.name.value;
        match self.index.at(&file) {
            Ok((manifest, _)) if manifest.name == *name => Some((file, manifest)),
            Ok((manifest, _)) => {
                let message = format!("`{}` is not the plugin `{name}`", file.display());
                let label = format!("this file holds `{}`", manifest.name);
                let finding = Finding::at(path.span.clone(), message, label);
                findings.push(finding.and(raw.name.span.clone(), "the name that was asked for"));
                None
            }
            Err(error) => {
                let message = format!("`{}` cannot be used for plugin `{name}`", file.display());
                let finding = Finding::at(path.span.clone(), message, chain_of(error.as_ref()));
                findings.push(finding.help(format!("relative paths begin at {}", self.directory.display())));
                None
            }
        }
    }

    fn by_name(
        &self,
        raw: &RawPlugin<'_>,
        kind: Kind,
        index: &[AvailablePlugin],
        findings: &mut Vec<Finding>,
    ) -> Option<(PathBuf, Manifest)> {
        let name = &raw.name.value;
        let good = || index.iter().filter_map(|(file, manifest)| Some((file, manifest.as_ref().ok()?)));
        let mut offers = good().filter(|(_, manifest)| manifest.name == *name);
        match (offers.next(), offers.next()) {
            (Some((file, manifest)), None) => Some((file.clone(), manifest.clone())),
            (Some((one, _)), Some((other, _))) => {
                let message = format!("plugin `{name}` is in {} twice", self.directory.display());
                let label = format!("found in `{}` and in `{}`", base(one), base(other));
                let advice = format!("say which is meant: `path = \"{}\"`", base(one));
                findings.push(Finding::at(raw.name.span.clone(), message, label).help(advice));
                None
            }
            (None, _) => {
                let message = format!("there is no plugin `{name}` in {}", self.directory.display());
                let label = format!("no file there is this {kind}");
                let mut known: Vec<&str> = good()
                    .filter(|(_, manifest)| manifest.kind == kind)
                    .map(|(_, manifest)| manifest.name.as_str())
                    .collect();
                known.sort_unstable();
                let mut finding = Finding::at(raw.name.span.clone(), message, label).help(
                    match nearest(name, known.iter().copied()) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None if known.is_empty() => {
                            format!("there is no {kind} at all; is `plugin_dir` right?")
                        }
                        None => format!("there are: {}", words(known, "and")),
                    },
                );
                // A file that cannot be used might be the one that was meant.
                for (file, error) in
                    index.iter().filter_map(|(file, entry)| Some((file, entry.as_ref().err()?)))
                {
                    finding = finding.help(format!(
                        "`{}` there cannot be used: {}",
                        base(file),
                        chain_of(error.as_ref())
                    ));
                }
                findings.push(finding);
                None
            }
        }
    }

    fn check_hash(&self, raw: &RawPlugin<'_>, file: &Path, findings: &mut Vec<Finding>) {
        let Some(pin) = &raw.sha256 else { return };
        if pin.value.len() != 64 || !pin.value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("`sha256` of plugin `{}` is not a SHA-256", raw.name.value);
            findings.push(Finding::at(pin.span.clone(), message, "expected 64 hexadecimal digits"));
            return;
        }
        match self.index.at(file) {
            Ok((_, hash)) if hash.eq_ignore_ascii_case(&pin.value) => {}
            Ok((_, hash)) => {
                let message = format!("`{}` is not the file that `sha256` pins", file.display());
                let finding = Finding::at(pin.span.clone(), message, format!("its hash is {hash}"));
                findings.push(finding.help("find out why it changed before you change the pin"));
            }
            Err(error) => {
                let message = format!("`{}` cannot be read", file.display());
                findings.push(Finding::at(pin.span.clone(), message, chain_of(error.as_ref())));
            }
        }
    }

    fn tables(&self, link: &Link<'_>, findings: &mut Vec<Finding>) {
        let Link { raw, manifest, .. } = link;
        for (method, setting) in raw.timeouts.iter().filter(|(_, setting)| setting.value.is_zero()) {
            let message = format!("`timeout.{method}` of plugin `{}` cannot be zero", manifest.name);
            findings.push(Finding::at(setting.span.clone(), message, "expected more than no time"));
        }
        let owner = Owner::Plugin(&manifest.name);
        match &raw.config {
            Some((table, span)) => {
                findings.extend(schema::check(table, span.clone(), &manifest.config, owner));
            }
            None => {
                let empty = toml::de::DeTable::new();
                let missing = schema::check(&empty, raw.name.span.clone(), &manifest.config, owner);
                let table = if manifest.kind == Kind::Logger { "logger.config" } else { "isolator.config" };
                let advice = format!("write it in a table `[{table}]` below this entry");
                findings.extend(missing.into_iter().map(|finding| finding.help(advice.clone())));
            }
        }
    }

    fn config(&self, link: &Link<'_>) -> PluginConfig {
        let raw = link.raw;
        let mut timeouts = self.timeouts.clone();
        timeouts.extend(raw.timeouts.iter().map(|(method, setting)| (*method, setting.value)));
        PluginConfig {
            name: raw.name.value.clone(),
            path: Some(link.file.clone()),
            sha256: raw.sha256.as_ref().map(|pin| pin.value.to_ascii_lowercase()),
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

fn duplicates(isolators: &[RawPlugin<'_>], findings: &mut Vec<Finding>) {
    for (i, raw) in isolators.iter().enumerate() {
        let earlier = isolators[..i].iter().find(|earlier| earlier.name.value == raw.name.value);
        if let Some(earlier) = earlier {
            let message = format!("isolator `{}` is in the chain twice", raw.name.value);
            let finding = Finding::at(raw.name.span.clone(), message, "again here");
            findings.push(finding.and(earlier.name.span.clone(), "first here").help("remove one of the two"));
        }
    }
}

/// Whether a plugin gets along with the others. A plugin that was asked for but has a fault of its own
/// counts as there: its fault is reported already.
fn company(link: &Link<'_>, asked: &[&str], links: &[&Link<'_>], findings: &mut Vec<Finding>) {
    let name = &link.manifest.name;
    let span = || link.raw.name.span.clone();
    for missing in link.manifest.requires.iter().filter(|needed| !asked.contains(&needed.as_str())) {
        let message = format!("plugin `{name}` needs `{missing}`, which is not in the chain");
        let advice = format!("add an entry `[[isolator]]` with `name = \"{missing}\"`");
        findings
            .push(Finding::at(span(), message, format!("works only together with `{missing}`")).help(advice));
    }
    let others = || links.iter().filter(|other| other.manifest.name != *name);
    for other in others().filter(|other| link.manifest.conflicts.contains(&other.manifest.name)) {
        let message = format!("plugin `{name}` does not get along with `{}`", other.manifest.name);
        let finding = Finding::at(span(), message, "must not be in one chain with the other");
        findings.push(finding.and(other.raw.name.span.clone(), "the other").help("remove one of the two"));
    }
    let own = links.iter().position(|other| other.manifest.name == *name);
    for other in own.map_or(&[][..], |own| &links[own + 1..]) {
        if link.manifest.after.contains(&other.manifest.name) {
            let message = format!("plugin `{name}` must come after `{}`", other.manifest.name);
            let finding = Finding::at(span(), message, "comes too early");
            let advice = "the order of the entries is the order of the chain; move this one down";
            findings.push(finding.and(other.raw.name.span.clone(), "must come before").help(advice));
        }
    }
}

/// File and line of a span, for errors that are found later.
pub(super) fn origin(file: Option<&Path>, text: &str, span: &Range<usize>) -> String {
    match file {
        Some(file) => format!("{}:{}", file.display(), position(text, span.start).0),
        None => "the command line".to_owned(),
    }
}

fn base(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// An error with its causes, in one line.
fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
