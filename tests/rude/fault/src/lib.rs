//! An isolator that misbehaves as its table says, in the method and for the container it says.

mod act;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use act::{Act, Fault};
use cofferdam_plugin_api::prelude::*;

struct Rude {
    config: Config,
    /// Open for as long as it lives, which may be longer than the folder it is in.
    journal: Option<File>,
}

#[derive(Deserialize, PluginConfig)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What goes wrong, and where.
    #[serde(default)]
    faults: Vec<Fault>,
    /// Where every call is noted, one line each: the method and the container.
    journal: Option<PathBuf>,
    /// Variables that it wishes for every container.
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

impl Rude {
    /// Notes the call, and does what the table says happens in it.
    fn arrive(&self, method: &str, container: &str) -> Result<Option<Act>> {
        if let Some(mut journal) = self.journal.as_ref() {
            // One write, so that lines of calls that overlap stay whole.
            journal.write_all(format!("{method} {container}\n").as_bytes())?;
        }
        let fault = self.config.faults.iter().find(|fault| fault.strikes(method, container));
        fault.map(|fault| fault.strike(method, container)).transpose()
    }
}

#[cofferdam_plugin_api::isolator]
impl Isolator for Rude {
    const NAME: &'static str = "rude/fault";
    type Config = Config;

    fn create(config: Config, _: Host) -> Result<Self> {
        let open = |path| OpenOptions::new().append(true).create(true).open(path);
        let journal = config.journal.as_ref().map(open).transpose()?;
        // One that fails to be made is dropped like any other.
        let rude = Self { config, journal };
        rude.arrive("create", "")?;
        Ok(rude)
    }

    fn recover(&self, containers: Vec<Recovered>, _: Vec<ContainerId>) -> Result<Recovery> {
        let ids: Vec<&str> = containers.iter().map(|container| container.id.as_str()).collect();
        self.arrive("recover", &ids.join(","))?;
        Ok(Recovery::new())
    }

    fn prepare(&self, container: &Container) -> Result<Prepared> {
        let mut prepared = Prepared::new();
        for (name, value) in &self.config.environment {
            prepared = prepared.environment(name, value);
        }
        match self.arrive("prepare", container.id.as_str())? {
            Some(Act::UnknownOperation) => prepared.launch().operations.push(Operation::Unknown),
            Some(Act::UnknownNamespace) => prepared = prepared.clone_namespace(Namespace::Unknown),
            _ => {}
        }
        Ok(prepared)
    }

    fn isolate(&self, container: &ContainerRef) -> Result<()> {
        self.arrive("isolate", container.id()).map(drop)
    }

    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        self.arrive("watch", container.id()).map(|_| None)
    }

    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        self.arrive("limitation", container.id()).map(|_| None)
    }

    fn update(&self, container: &ContainerRef, _: &Resources) -> Result<Option<Json>> {
        self.arrive("update", container.id()).map(|_| None)
    }

    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let usage = Usage::default().with("rude_count", 1.0);
        match self.arrive("usage", container.id())? {
            Some(Act::NotANumber) => Ok(usage.with("rude_secs", f64::NAN)),
            _ => Ok(usage),
        }
    }

    fn status(&self, container: &ContainerRef) -> Result<Status> {
        self.arrive("status", container.id())?;
        Ok(Status::default().with("rude", true.into()))
    }

    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        self.arrive("cleanup", container.id()).map(drop)
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        // Nobody is left to tell.
        drop(self.arrive("drop", ""));
    }
}
