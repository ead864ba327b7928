//! The path below which an agent has its cgroups, which must not change while one of its processes runs: each is found,
//! and killed, by its cgroup.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups};

use crate::regular_file;

/// In the runtime directory: the root of the agents that used it.
const FILE: &str = "cgroup_root";

/// How long cgroups that contain no process may stay busy.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The root to use, relative to the mount points: the configured one, unless processes of an earlier agent are still
/// below another. Cgroups that it has left there are removed otherwise.
///
/// `instance` is the name of the agent's cgroup.
///
/// # Errors
/// The file that keeps the root in the runtime directory cannot be read or written. Something else in its place is not
/// used, and stays.
pub fn effective_cgroup_root(
    runtime_dir: &Path,
    cgroups: &Cgroups,
    configured: &Path,
    instance: &str,
) -> io::Result<PathBuf> {
    let file = runtime_dir.join(FILE);
    let configured = configured.strip_prefix("/").unwrap_or(configured);
    let earlier = match read(&file) {
        // It stays as it is.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::error!(
                "ignored `{}`, which has the `cgroup_root` of earlier agents: {error}; containers that they have left \
                 elsewhere than below `{}` are not found before the file is put back",
                file.display(),
                configured.display()
            );
            return Ok(configured.to_owned());
        }
        earlier => earlier?,
    };
    match earlier {
        Some(earlier) if earlier == configured => return Ok(earlier),
        Some(earlier) => {
            let of_agent = earlier.join(instance);
            if is_in_use(cgroups, &of_agent) {
                tracing::warn!(
                    "`cgroup_root` stays `{}` until an agent starts while no process of it is below: containers of an \
                     earlier agent, or its keeper, are in `{}`; then it will be `{}`",
                    earlier.display(),
                    of_agent.display(),
                    configured.display()
                );
                return Ok(earlier);
            }
            remove(cgroups, &of_agent);
        }
        None => {}
    }
    regular_file::replace(&file, configured.as_os_str().as_bytes())?;
    Ok(configured.to_owned())
}

fn read(file: &Path) -> io::Result<Option<PathBuf>> {
    let Some(content) = regular_file::read(file, libc::PATH_MAX as u64)? else { return Ok(None) };
    let path = PathBuf::from(OsString::from_vec(content));
    let is_name = |component| matches!(component, Component::Normal(_));
    if path.as_os_str().as_bytes().contains(&0) || !path.components().all(is_name) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it has no relative path without `.` and `..`",
        ));
    }
    // One that was written in part has never been used.
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

/// The cgroups of an agent in all hierarchies.
fn all(cgroups: &Cgroups, of_agent: &Path) -> impl Iterator<Item = Cgroup> {
    let legacy = cgroups.legacy.iter().flat_map(|hierarchy| hierarchy.controllers.first());
    let legacy = legacy.filter_map(move |controller| cgroups.cgroup(controller, of_agent));
    legacy.chain(cgroups.unified(of_agent))
}

/// Whether any process is in one of the cgroups. If that cannot be told, one may be.
fn is_in_use(cgroups: &Cgroups, of_agent: &Path) -> bool {
    all(cgroups, of_agent).any(|cgroup| match cgroup.all_procs() {
        Ok(pids) => !pids.is_empty(),
        Err(error) => !CgroupError::is_missing(&error),
    })
}

fn remove(cgroups: &Cgroups, of_agent: &Path) {
    for cgroup in all(cgroups, of_agent) {
        if let Err(error) = cgroup.remove(REMOVAL_TIMEOUT) {
            tracing::warn!("cannot remove the cgroups of an earlier `cgroup_root`: {error}");
        }
    }
}
