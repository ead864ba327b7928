//! An isolator that records its calls for containers, and uses the agent's services as configured.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::{event, model};

/// `O_NONBLOCK` of open(2).
const NONBLOCK: i32 = 0o4000;

struct Observer {
    config: Config,
    host: Host,
    journal: File,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// File to record calls in, one JSON object a line, with at least `method` and `container`.
    journal: PathBuf,
    /// Pool in which `prepare` leases a number for every container. `status` lists the pool; `update` releases the
    /// container's number.
    pool: Option<String>,
    /// A limitation that one container reports of another one.
    limitation: Option<Reported>,
}

/// A limitation to report.
#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Reported {
    /// The container that is watched.
    watched: String,
    /// A named pipe: the limitation is reported when something is written to it.
    pipe: PathBuf,
    /// The container that must end.
    container: String,
    /// The reason.
    reason: String,
}

/// State for a container.
#[derive(Default, Serialize, Deserialize)]
struct State {
    /// The container.
    container: String,
    /// Its number in the pool.
    number: Option<u32>,
}

impl Observer {
    fn record(&self, method: &str, container: &str, mut seen: Json) -> Result<()> {
        seen["method"] = method.into();
        seen["container"] = container.into();
        // One write, so that lines of concurrent calls are not mixed.
        Ok((&self.journal).write_all(format!("{seen}\n").as_bytes())?)
    }

    /// Records a call at the end of a container.
    fn record_end(&self, method: &str, container: &ContainerRef) -> Result<()> {
        let sandbox = container.sandbox()?;
        let seen = json!({
            "sandbox": sandbox, "sandbox_exists": sandbox.exists(), "state": container.details()?.state,
        });
        self.record(method, container.id(), seen)
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Observer {
    const NAME: &'static str = "test/observer";
    const NESTING: bool = true;
    const HANDLES: &'static [&'static str] = &["rlimits"];
    type Config = Config;

    fn create(config: Config, host: Host) -> Result<Self> {
        let journal = OpenOptions::new().append(true).create(true).open(&config.journal)?;
        let observer = Self { config, host, journal };
        let (host, agent) = (&observer.host, observer.host.agent());
        let seen = json!({
            "name": host.name(), "file_exists": host.file().is_file(), "agent": agent,
            "directories": [host.runtime_directory(), host.work_directory()],
        });
        observer.record("create", "", seen)?;
        Ok(observer)
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let id = container.id.as_str();
        let seen = json!({ "rlimits": container.rlimits, "parent": container.parent });
        self.record("prepare", id, seen)?;
        let number = match &self.config.pool {
            Some(pool) => Some(self.host.leases().acquire(pool, 1..=2, container)?),
            None => None,
        };
        let mut prepared = Prepared::new();
        for (name, limit) in &container.rlimits {
            prepared = prepared.rlimit(name, *limit);
        }
        prepared.state(&State { container: id.to_owned(), number })
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        let reported = self.config.limitation.as_ref().filter(|reported| reported.watched == container.id());
        let Some(Reported { pipe, .. }) = reported else { return Ok(None) };
        // Opened for writing as well: without a writer, a pipe is always readable.
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(NONBLOCK).open(pipe)?;
        Ok(Some(pipe.into()))
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        let (Some(reported), Some(pipe)) = (&self.config.limitation, container.descriptor(0)) else {
            return Ok(None);
        };
        if !event::drain(pipe)? {
            return Ok(None);
        }
        Ok(Some(Limitation {
            reason: reported.reason.clone(),
            message: format!("reported by `{}`", container.id()),
            resources: [("disk".to_owned(), model::Value::Scalar(1.0))].into(),
            container: Some(ContainerId::parse(&reported.container)?),
        }))
    }

    fn update(&self, container: &ContainerRef, _: &Resources) -> Result<Applied> {
        let state: State = container.state()?;
        if let (Some(pool), Some(number)) = (&self.config.pool, state.number) {
            self.host.leases().release(pool, number)?;
        }
        Applied::new().state(&State { number: None, ..state })
    }

    fn status(&self, _: &ContainerRef) -> Result<Status> {
        let Some(pool) = &self.config.pool else { return Ok(Status::default()) };
        Ok(Status::default().with("leases", json!(self.host.leases().list(pool)?)))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.record_end("cleanup", container)
    }

    fn removed(&self, container: &ContainerRef) -> Result<()> {
        self.record_end("removed", container)
    }
}
