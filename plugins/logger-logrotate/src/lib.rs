//! Writes a container's output to files in its sandbox that are rotated by size, and compressed if configured.
//!
//! ```text
//! agent ── plugin ── prepare, cleanup ── LogCompanions ── starts, watches ──▶ companion (writer)
//!                                                                               ▲        │ splice
//! container ══════════════════════════════ pipes ═══════════════════════════════╝        ▼
//!                                                                      stdout, stdout.1.gz, stdout.times
//! ```
//!
//! The companion is a process per container that outlives the agent and the plugin. Bytes move from the pipe to the file
//! within the kernel, so that none are lost or written twice when it is killed at any moment.

mod job;
mod options;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;

use cofferdam_plugin_api::foreign;
use cofferdam_plugin_api::log_companion::{LogCompanions, STREAMS};
use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;
use rustix::process::geteuid;

use self::job::{Job, State, open_sandbox};
use self::options::Config;

cofferdam_plugin_api::companion!(writer::run);

struct Logrotate {
    config: Config,
    companions: LogCompanions<State>,
}

#[cofferdam_plugin_api::logger]
impl Logger for Logrotate {
    const NAME: &'static str = "logrotate";
    const FEATURES: &'static [&'static str] =
        &["agent.companions", "logger.files", "logger.times", "service.state"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        config.check()?;
        Ok(Self { config, companions: LogCompanions::new(host)? })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        self.companions.recover(request, env!("CARGO_PKG_VERSION"))
    }

    fn prepare(&self, container: &NewContainer) -> Result<Streams> {
        let sandbox = &container.sandbox;
        if !sandbox.is_absolute() {
            return Err(Error::new(format!(
                "the sandbox of container `{}` is `{}`, which is not an absolute path",
                container.id,
                sandbox.display()
            )));
        }
        let [stdout, stderr] = STREAMS.map(|name| sandbox.join(name));
        // Short, and ends with the agent: rotation and another process are for what runs on.
        if container.class == ContainerClass::Debug {
            return Ok(Streams::new(Output::Path(stdout), Output::Path(stderr)));
        }
        let options = self.config.options(&container.command.environment)?;
        let times = options.times;
        let owner = geteuid().is_root().then_some((container.uid, container.gid));
        let directory = open_sandbox(sandbox)?;
        for name in STREAMS {
            foreign::create_file(&directory, Path::new(name), owner)
                .context(format!("cannot create `{}`", sandbox.join(name).display()))?;
        }
        let state = State { sandbox: sandbox.clone(), job: Job { owner, options } };
        let pipes = self.companions.start(container.as_ref(), state.clone())?;
        let [out, err] = pipes.map(Output::Descriptor);
        let streams = Streams::new(out, err).files(stdout, stderr).state(&state)?;
        Ok(if times { streams.times() } else { streams })
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.companions.clean_up(container)
    }
}
