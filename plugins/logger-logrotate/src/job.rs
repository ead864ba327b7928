//! What a companion is to do: the plugin's state for a container.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, Resolve};
use cofferdam_plugin_api::log_companion;
use cofferdam_plugin_api::prelude::*;

use crate::options::Options;

/// The plugin's state for a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Directory of its files.
    pub(crate) sandbox: PathBuf,
    /// What its companion does.
    pub(crate) job: Job,
}

/// What a companion is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// User and group that the files belong to; those of the agent if `None`.
    pub(crate) owner: Option<(u32, u32)>,
    /// How the output is rotated.
    pub(crate) options: Options,
}

impl log_companion::Job for State {
    const LOST_WITHOUT_ERROR: &'static str = "the container was in the way of a rotation";

    fn owner(&self) -> Option<(u32, u32)> {
        self.job.owner
    }

    /// The sandbox, and `/dev/null`.
    fn descriptors(&self, _: &Path) -> Result<Vec<OwnedFd>> {
        let null = File::options().write(true).open("/dev/null").context("cannot open `/dev/null`")?;
        Ok(vec![open_sandbox(&self.sandbox)?, null.into()])
    }
}

/// Opens the sandbox of a container, which may be in the sandbox of another one.
pub(crate) fn open_sandbox(path: &Path) -> Result<OwnedFd> {
    let open = || {
        let below = path.strip_prefix("/").unwrap_or(path);
        foreign::find(foreign::directory(Path::new("/"))?, below, Resolve::WithoutLinks)
    };
    open().context(format!("cannot open the sandbox `{}`", path.display()))
}
