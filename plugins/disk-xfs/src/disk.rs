//! The file system on which containers write.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::foreign::{self, OpenError};
use cofferdam_plugin_api::prelude::*;
use cofferdam_plugin_api::quota::{self, Kind, Quota};

/// A directory of it that is open.
pub struct Disk {
    directory: File,
    path: PathBuf,
    device: u64,
}

impl Disk {
    /// Opens the file system of a path, of which the last components may be missing, and checks that its projects have
    /// quotas.
    pub fn open(path: &Path, enforces: bool) -> Result<Self> {
        let existing = path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let doing = || format!("cannot open `{}`", existing.display());
        let directory = File::open(existing).context(doing())?;
        let device = directory.metadata().context(doing())?.dev();
        let disk = Self { directory, path: existing.to_owned(), device };
        disk.check(enforces)?;
        Ok(disk)
    }

    fn check(&self, enforces: bool) -> Result<()> {
        let path = self.path.display();
        let option = match quota::kind(&self.directory).context(format!("cannot inspect `{path}`"))? {
            Kind::Xfs => "`pquota`",
            Kind::Ext => "`prjquota` (after `tune2fs -O project,quota -Q prjquota`)",
            Kind::Other(magic) => {
                return Err(Error::new(format!(
                    "the work directory is on a file system (at `{path}`, magic number {magic:#x}) that is neither XFS nor \
                     ext4; move it to one, or use `disk/du`"
                )));
            }
        };
        let missing = || {
            format!(
                "the file system of the work directory (at `{path}`) has no quotas for projects; mount it with the option \
                 {option}, on a kernel of at least Linux 5.14 with quotas, or use `disk/du`"
            )
        };
        let quotas = quota::quotas(&self.directory).context(missing())?;
        if !quotas.are_counted {
            return Err(Error::new(missing()));
        }
        if enforces && !quotas.are_enforced {
            quota::enforce(&self.directory).context(format!(
                "the file system of the work directory (at `{path}`) enforces no quotas of projects, and that cannot be \
                 turned on; mount it with the option {option}"
            ))?;
        }
        Ok(())
    }

    pub fn read(&self, project: u32) -> Result<Quota> {
        let doing = format!("cannot read the quota of project {project} at `{}`", self.path.display());
        quota::read(&self.directory, project).context(doing)
    }

    /// Sets both limits in bytes; 0 for none.
    pub fn set_limits(&self, project: u32, soft: u64, hard: u64) -> Result<()> {
        let doing = format!("cannot set the quota of project {project} at `{}`", self.path.display());
        quota::set_limits(&self.directory, project, soft, hard).context(doing)
    }

    /// Gives a directory of the agent to a project, if it exists and is on this file system.
    pub fn label(&self, directory: &Path, project: u32) -> Result<()> {
        let doing = || format!("cannot give `{}` to project {project}", directory.display());
        if let Some(found) = self.find(directory).context(doing())? {
            quota::set_project_of_tree(found, project).context(doing())?;
        }
        Ok(())
    }

    /// The project of a directory of the agent; `None` if it is missing or on another file system.
    pub fn project(&self, directory: &Path) -> Result<Option<u32>> {
        let doing = || format!("cannot read the project of `{}`", directory.display());
        let Some(found) = self.find(directory).context(doing())? else { return Ok(None) };

        quota::project_of_directory(found).context(doing()).map(Some)
    }

    fn find(&self, directory: &Path) -> Result<Option<OwnedFd>, OpenError> {
        let found = match foreign::find_in_own(directory) {
            Err(error) if error.is_missing() => return Ok(None),
            other => File::from(other?),
        };
        let metadata = found.metadata().map_err(OpenError::System)?;
        Ok((metadata.is_dir() && metadata.dev() == self.device).then(|| found.into()))
    }
}
