//! Measures what containers have written to their sandboxes, and ends those that exceed their limit.
//!
//! ```text
//! calls ──▶ account.rs   what each container uses and may use ◀── scanner.rs   two threads of low priority
//! ```
//!
//! No call waits for a measurement. The state of a container has the paths of its volumes, if they are measured; everything is
//! measured again after a restart.

mod account;
mod scanner;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_plugin_api::config::TimeSpan;
use cofferdam_plugin_api::event;
use cofferdam_plugin_api::model::{ContainerDetails, VolumeSource};
use cofferdam_plugin_api::prelude::*;

use crate::account::Entry;
use crate::scanner::Scanner;

const REASON: &str = "REASON_CONTAINER_LIMITATION_DISK";

const MIB: f64 = 1024.0 * 1024.0;

/// How many volumes of a container are measured.
const MAX_VOLUMES: usize = 64;

struct Du {
    scanner: Scanner,
    enforces: bool,
    measures_volumes: bool,
}

/// What is kept of a container with volumes that are measured.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    #[serde(default)]
    volumes: Vec<PathBuf>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Time between two measurements of a container.
    container_disk_watch_interval: TimeSpan,
    /// Whether a container that uses more than its `disk` ends.
    enforce_container_disk_quota: bool,
    /// Whether volumes with a path of the host are measured too. They count for no limit.
    measure_volumes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            container_disk_watch_interval: TimeSpan(Duration::from_secs(15)),
            enforce_container_disk_quota: false,
            measure_volumes: false,
        }
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Du {
    const NAME: &'static str = "disk/du";
    const NESTING: bool = true;
    const CONFLICTS: &'static [&'static str] = &["disk/xfs"];
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let Config {
            container_disk_watch_interval: TimeSpan(interval),
            enforce_container_disk_quota: enforces,
            measure_volumes: measures_volumes,
        } = config;
        if interval.is_zero() {
            return Err(Error::new("`container_disk_watch_interval` is 0; expected a time such as \"15s\""));
        }
        Ok(Self { scanner: Scanner::new(interval, enforces), enforces, measures_volumes })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let mut recovery = Recovery::new();
        for Recovered { id, details, .. } in &request.containers {
            self.scanner.add(id.as_str(), entry(details))?;
            if details.state.is_null() || !self.measures_volumes {
                continue;
            }
            match State::deserialize(&details.state) {
                Ok(State { volumes }) => self.scanner.add_volumes(id.as_str(), volumes)?,
                Err(error) => {
                    recovery.refuse(id, format!("cannot read the plugin's own state: {error}"));
                }
            }
        }
        // Nested containers that have ended: what they have written is still there.
        let sandboxes: BTreeSet<&Path> =
            request.containers.iter().filter_map(|recovered| recovered.details.sandbox.parent()).collect();
        for directory in sandboxes {
            let entries =
                fs::read_dir(directory).context(format!("cannot list `{}`", directory.display()))?;
            for found in entries.flatten() {
                let name = found.file_name();
                let Some(id) = name.to_str().filter(|name| name.contains('.')) else { continue };
                self.scanner.add_ended(id, Entry::new(vec![found.path()], None));
            }
        }
        Ok(recovery)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let directories = vec![container.sandbox.clone(), container.scratch.clone()];
        self.scanner.add(container.id.as_str(), Entry::new(directories, limit(&container.resources)))?;
        let volumes = if self.measures_volumes { volumes(container) } else { Vec::new() };
        if volumes.is_empty() {
            return Ok(Prepared::new());
        }
        self.scanner.add_volumes(container.id.as_str(), volumes.clone())?;
        Prepared::new().state(&State { volumes })
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        if self.enforces { self.scanner.watch(container.id()) } else { Ok(None) }
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        if let Some(watched) = container.descriptor(0) {
            event::drain(watched)?;
        }
        Ok(self.scanner.exceeded(container.id()).map(|exceeded| Limitation {
            reason: REASON.to_owned(),
            message: exceeded.message,
            resources: [("disk".to_owned(), Value::Scalar(mebibytes(exceeded.used)))].into(),
            container: None,
        }))
    }

    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Applied> {
        self.scanner.set_limit(container.id(), limit(resources));
        Ok(Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let (used, limit, incomplete) = self.scanner.usage(container.id());
        let mut disks: Vec<Usage> = self.scanner.volumes(container.id()).into_iter().map(of_volume).collect();
        if used.is_none() && limit.is_none() && disks.is_empty() {
            return Ok(Usage::default());
        }
        // Null is omitted, as in Mesos, and the sandbox is the last one.
        disks.push(Usage::default().with("limit_bytes", limit).with("used_bytes", used));
        Ok(Usage::default()
            .with("disk_limit_bytes", limit)
            .with("disk_used_bytes", used)
            .with("disk_incomplete_measurements", Some(incomplete).filter(|&count| count > 0))
            .with("disk_statistics", json!(disks)))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.scanner.end(container.id());
        Ok(())
    }

    fn removed(&self, container: &ContainerRef) -> Result<()> {
        self.scanner.remove(container.id());
        Ok(())
    }
}

fn entry(details: &ContainerDetails) -> Entry {
    Entry::new(vec![details.sandbox.clone(), details.scratch.clone()], limit(&details.resources))
}

/// The directories and files of the host that are volumes of a container. What is relative is in the sandbox.
fn volumes(container: &NewContainer) -> Vec<PathBuf> {
    let sources = container.volumes.iter().map(|volume| &volume.source);
    let paths = sources.filter_map(|source| match source {
        VolumeSource::HostPath { path, .. } if path.is_absolute() => Some(path.clone()),
        _ => None,
    });
    let mut seen = BTreeSet::new();
    paths.filter(|path| seen.insert(path.clone())).take(MAX_VOLUMES).collect()
}

/// A disk of Mesos's `DiskStatistics` that is a directory.
fn of_volume((path, used): (PathBuf, Option<u64>)) -> Usage {
    let source = json!({ "type": "PATH", "path": { "root": path } });
    Usage::default().with("source", source).with("used_bytes", used)
}

/// The limit in bytes, if there is one.
fn limit(resources: &Resources) -> Option<u64> {
    resources.disk_limit_bytes().flatten()
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[cfg(test)]
mod tests;
