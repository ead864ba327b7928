//! Passes a container's output on to two other loggers, of which each may fail by itself.
//!
//! ```text
//! agent ── plugin ── prepare, cleanup ── LogCompanions ── starts, watches ──▶ companion ──▶ pipe or file of one logger
//!                                                                            │  ▲   └────▶ pipe or file of the other
//! container ══ pipe ══ splice ══▶ spool (a file of the plugin) ══ read ══════┘  │
//!                                     two positions in it ──────────────────────┘
//! ```
//!
//! The agent calls the two loggers before this one, and tells it where they want the output. They know nothing of it.

mod job;
mod target;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_plugin_api::config::{Size, TimeSpan};
use cofferdam_plugin_api::log_companion::LogCompanions;
use cofferdam_plugin_api::model::{self, ContainerClass};
use cofferdam_plugin_api::prelude::*;
use rustix::process::geteuid;

use self::job::{Job, Place, TARGETS, Target};

cofferdam_plugin_api::companion!(writer::run);

/// Bounds of what is kept of a stream.
const MIN_BUFFER: u64 = 64 << 10;
const MAX_BUFFER: u64 = 1 << 30;

/// The longest time that a logger may read nothing, in seconds.
const MAX_STALL: u64 = 3600;

struct Tee {
    config: Config,
    companions: LogCompanions<Job>,
    /// The pipes of the loggers, by container. Kept open, so that their readers do not see the end of the container when the
    /// companion is killed.
    pipes: Mutex<HashMap<String, Vec<OwnedFd>>>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// How much of a stream is kept for a logger that does not read it.
    max_buffer_size: Size,
    /// How long a logger may read nothing before the other one goes on without it.
    stall_timeout: TimeSpan,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_buffer_size: Size(1 << 20), stall_timeout: TimeSpan(std::time::Duration::from_secs(10)) }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        let Size(size) = self.max_buffer_size;
        if !(MIN_BUFFER..=MAX_BUFFER).contains(&size) {
            return Err(Error::new(format!("`max_buffer_size` is {size} bytes; expected 64 KiB to 1 GiB")));
        }
        let TimeSpan(stall) = self.stall_timeout;
        if stall.is_zero() || stall.as_secs() > MAX_STALL {
            return Err(Error::new(format!(
                "`stall_timeout` is {stall:?}; expected more than 0 and at most 1h"
            )));
        }
        Ok(())
    }
}

#[cofferdam_plugin_api::logger]
impl Logger for Tee {
    const NAME: &'static str = "tee";
    const FEATURES: &'static [&'static str] = &["agent.companions", "container.log_targets", "service.state"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        config.check()?;
        Ok(Self { config, companions: LogCompanions::new(host)?, pipes: Mutex::default() })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        for container in &request.containers {
            if let Ok(job) = Job::deserialize(&container.details.state) {
                self.keep_pipes(container.id.as_str(), &job);
            }
        }
        self.companions.recover(request, env!("CARGO_PKG_VERSION"))
    }

    fn prepare(&self, container: &NewContainer) -> Result<Streams> {
        let mut targets = container.log_targets.clone().into_iter();
        let (Some(first), second, None) = (targets.next(), targets.next(), targets.next()) else {
            return Err(Error::new(format!(
                "container `{}` has {} loggers to pass its output on to; expected {TARGETS}",
                container.id,
                container.log_targets.len()
            )));
        };
        // One that may be left out has failed.
        let nowhere = || model::LogTarget { logger: "none".to_owned(), stdout: None, stderr: None };
        let second = second.unwrap_or_else(nowhere);
        // Short, and ends with the agent: another process is for what runs on.
        if container.class == ContainerClass::Debug {
            let file = |places: [Option<model::LogPlace>; TARGETS]| {
                let mut files = places.into_iter().flatten().filter(|place| !place.pipe);
                files.next().map_or(Output::Null, |place| Output::Path(place.path))
            };
            return Ok(Streams::new(
                file([first.stdout, second.stdout]),
                file([first.stderr, second.stderr]),
            ));
        }
        let owner = geteuid().is_root().then_some((container.uid, container.gid));
        let target = |target: model::LogTarget| {
            let place = |place: Option<model::LogPlace>| {
                Place::create(place, owner)
                    .context(format!("cannot open the output of logger `{}`", target.logger))
            };
            let streams = [place(target.stdout.clone())?, place(target.stderr.clone())?];
            Ok::<_, Error>(Target { logger: target.logger.clone(), streams })
        };
        let TimeSpan(stall) = self.config.stall_timeout;
        let job = Job {
            owner,
            max_buffer: self.config.max_buffer_size.0,
            stall_millis: u64::try_from(stall.as_millis()).unwrap_or(u64::MAX),
            targets: [target(first)?, target(second)?],
        };
        self.keep_pipes(container.as_ref(), &job);
        let pipes = self.companions.start(container.as_ref(), job.clone())?;
        let [stdout, stderr] = pipes.map(Output::Descriptor);
        Streams::new(stdout, stderr).state(&job)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let finished = self.companions.clean_up(container);
        // Their readers see the end now.
        self.pipes().remove(container.id());
        finished
    }
}

impl Tee {
    fn pipes(&self) -> MutexGuard<'_, HashMap<String, Vec<OwnedFd>>> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_pipes(&self, id: &str, job: &Job) {
        let places = job.targets.iter().flat_map(|target| &target.streams);
        let pipes = places.filter(|place| place.is_pipe()).filter_map(|place| place.open().ok());
        self.pipes().insert(id.to_owned(), pipes.collect());
    }
}
