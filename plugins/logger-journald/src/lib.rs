//! Sends a container's output to the systemd journal, by its native protocol.
//!
//! ```text
//! agent ── plugin ── prepare, cleanup ── LogCompanions ── starts, watches ──▶ companion
//!                                                                            │  ▲
//! container ══ pipe ══ splice ══▶ spool (a file of the plugin) ══ read ══════┘  │ datagrams
//!                                                                               ▼
//!                                                                 /run/systemd/journal/socket
//! ```
//!
//! The companion is a process per container that outlives the agent and the plugin. What it has taken from a pipe and the
//! journal has not received yet is in a file, not in its memory, so nothing is lost when it is killed at any moment.

mod config;
mod field;
mod job;
mod journal;
mod line;
#[cfg(test)]
mod tests;
mod writer;

use cofferdam_plugin_api::log_companion::{LogCompanions, STREAMS};
use cofferdam_plugin_api::model::ContainerClass;
use cofferdam_plugin_api::prelude::*;

use self::config::Config;
use self::job::Job;
use self::journal::Journal;

cofferdam_plugin_api::companion!(writer::run);

struct Journald {
    config: Config,
    companions: LogCompanions<Job>,
}

#[cofferdam_plugin_api::logger]
impl Logger for Journald {
    const NAME: &'static str = "journald";
    const FEATURES: &'static [&'static str] = &["agent.companions", "service.state"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        config.check()?;
        Ok(Self { config, companions: LogCompanions::new(host)? })
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        self.companions.recover(request, env!("CARGO_PKG_VERSION"))
    }

    fn prepare(&self, container: &NewContainer) -> Result<Streams> {
        // Short, and ends with the agent: another process is for what runs on.
        if container.class == ContainerClass::Debug {
            if !container.sandbox.is_absolute() {
                return Err(Error::new(format!(
                    "the sandbox of container `{}` is `{}`, which is not an absolute path",
                    container.id,
                    container.sandbox.display()
                )));
            }
            let [stdout, stderr] = STREAMS.map(|name| Output::Path(container.sandbox.join(name)));
            return Ok(Streams::new(stdout, stderr));
        }
        let job = self.config.job(container)?;
        if let Err(error) = Journal::check(&job.socket) {
            warn!(
                %error,
                socket = %job.socket.display(),
                "the journal accepts no entries now; output is kept until it does, as far as `max_buffer_size` allows"
            );
        }
        let pipes = self.companions.start(container.as_ref(), job.clone())?;
        let [stdout, stderr] = pipes.map(Output::Descriptor);
        Streams::new(stdout, stderr).state(&job)
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.companions.clean_up(container)
    }
}
