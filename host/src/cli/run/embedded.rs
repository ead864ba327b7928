//! An agent for the life of one command, in directories of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::agent::Agent;
use crate::cli::Outcome;
use crate::cli::agent::start_logging;
use crate::cli::catalogue::Files;
use crate::cli::report::Failure;
use crate::config::{Config, Overrides, Surroundings};
use crate::container::Request;

use super::door::Door;
use super::{NOT_RUN, attach};

/// The directory of sandboxes, inside the runtime directory's namesake among the things that may be large.
const SANDBOXES: &str = "work";

/// The directories of one embedded agent, and what it is.
pub(super) struct Embedded {
    config: Config,
    runtime: TempDir,
    work: TempDir,
}

impl Embedded {
    /// Makes the directories and the configuration.
    pub(super) fn new(
        file: Option<PathBuf>,
        plugin_dir: Option<PathBuf>,
        log: String,
    ) -> Result<Self, Failure> {
        let around = Surroundings::look();
        let runtime = make_directory(&beside(&around.run))?;
        let work = make_directory(&beside(&around.state))?;
        let overrides = Overrides {
            runtime_dir: Some(runtime.path().to_owned()),
            work_dir: Some(work.path().join(SANDBOXES)),
            plugin_dir,
            log: Some(log),
            ..Overrides::default()
        };
        let config = match file {
            Some(file) => Config::load(&file, &overrides, &around, &Files)?,
            None => Config::embedded(&overrides, &around, &Files)?,
        };
        start_logging(&config);
        Ok(Self { config, runtime, work })
    }

    /// Runs the command and leaves nothing of it but its directories.
    pub(super) async fn run(&self, request: Request) -> Outcome {
        let agent = Agent::start(self.config.clone())
            .await
            .map_err(|error| Failure::of(error).with_status(NOT_RUN))?;
        let outcome = attach::run(&Door::Own(agent.clone()), request).await;
        let left = agent.end_all().await;
        agent.shutdown().await;
        if !left.is_empty() {
            let ids: Vec<&str> = left.iter().map(|id| id.as_str()).collect();
            return Err(Failure::told(format!(
                "could not end {}; its processes may still be there",
                ids.join(", ")
            )));
        }
        outcome
    }

    /// Removes the directories.
    pub(super) fn remove(self) -> Result<(), Failure> {
        for directory in [self.runtime, self.work] {
            let path = directory.path().to_owned();
            let failed = |source| Failure::system(format!("cannot remove `{}`", path.display()), source);
            directory.close().map_err(failed)?;
        }
        Ok(())
    }
}

/// `/run/cofferdam` belongs to the daemon; ours are in `/run/cofferdam-run`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-run");
    path.with_file_name(name)
}

/// A directory with a name of its own. Others may pass through: a container may run as another user.
fn make_directory(parent: &Path) -> Result<TempDir, Failure> {
    let failed =
        |source| Failure::system(format!("cannot make a directory in `{}`", parent.display()), source);
    fs::create_dir_all(parent).map_err(failed)?;
    tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir_in(parent).map_err(failed)
}
