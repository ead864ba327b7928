//! An isolator that misbehaves as configured, in one method and for one container.

mod act;
mod signals;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use act::{Act, Fault};
use cofferdam_plugin_api::prelude::*;

struct Faulty {
    config: Config,
    /// Kept open, because the instance may outlive the directory.
    journal: Option<File>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The faults.
    #[serde(default)]
    faults: Vec<Fault>,
    /// File to record every call in, one line each: the method and the container.
    journal: Option<PathBuf>,
    /// Environment variables to request for every container.
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

impl Faulty {
    /// Records the call, and applies the fault that is configured for it.
    fn handle(&self, method: &str, container: &str) -> Result<Option<Act>> {
        if let Some(mut journal) = self.journal.as_ref() {
            // One write, so that lines of concurrent calls are not mixed.
            journal.write_all(format!("{method} {container}\n").as_bytes())?;
        }
        let fault = self.config.faults.iter().find(|fault| fault.applies(method, container));
        fault.map(|fault| fault.apply(method, container)).transpose()
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Faulty {
    const NAME: &'static str = "test/fault";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        let journal = config.journal.as_ref().map(open).transpose()?;
        // Dropped like any other instance if `create` fails.
        let plugin = Self { config, journal };
        plugin.handle("create", "")?;
        Ok(plugin)
    }

    fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
        let ids: Vec<&str> = request.containers.iter().map(|container| container.id.as_str()).collect();
        self.handle("recover", &ids.join(","))?;
        Ok(Recovery::new())
    }

    fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for (name, value) in &self.config.environment {
            prepared = prepared.environment(name, value);
        }
        match self.handle("prepare", container.id.as_str())? {
            Some(Act::UnknownOperation) => prepared.launch().operations.push(Operation::Unknown),
            Some(Act::UnknownNamespace) => prepared = prepared.clone_namespace(Namespace::Unknown),
            _ => {}
        }
        Ok(prepared)
    }

    fn isolate(&self, container: &ContainerRef) -> Result<Applied> {
        self.handle("isolate", container.id()).map(|_| Applied::new())
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        self.handle("watch", container.id()).map(|_| None)
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        self.handle("limitation", container.id()).map(|_| None)
    }

    fn update(&self, container: &ContainerRef, _: &Resources) -> Result<Applied> {
        self.handle("update", container.id()).map(|_| Applied::new())
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let usage = Usage::default().with("fault_count", 1.0);
        match self.handle("usage", container.id())? {
            Some(Act::NotANumber) => Ok(usage.with("fault_secs", f64::NAN)),
            _ => Ok(usage),
        }
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        self.handle("status", container.id())?;
        Ok(Status::default().with("fault", true.into()))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.handle("cleanup", container.id()).map(drop)
    }

    fn removed(&self, container: &ContainerRef) -> Result<()> {
        self.handle("removed", container.id()).map(drop)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // The error cannot be returned.
        drop(self.handle("drop", ""));
    }
}
