//! The path below which an agent has its cgroups, which must not change while one of its processes runs: each is found,
//! and killed, by its cgroup.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups};

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
/// The file that keeps the root in the runtime directory cannot be read or written.
pub fn effective_cgroup_root(
    runtime_dir: &Path,
    cgroups: &Cgroups,
    configured: &Path,
    instance: &str,
) -> io::Result<PathBuf> {
    let file = runtime_dir.join(FILE);
    let configured = configured.strip_prefix("/").unwrap_or(configured);
    match read(&file)? {
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
    let new = file.with_extension("new");
    fs::write(&new, configured.as_os_str().as_bytes())?;
    fs::rename(&new, &file)?;
    Ok(configured.to_owned())
}

fn read(file: &Path) -> io::Result<Option<PathBuf>> {
    let mut path = Vec::new();
    match File::open(file) {
        Ok(file) => file.take(libc::PATH_MAX as u64).read_to_end(&mut path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // One that was written in part has never been used.
    Ok(Some(PathBuf::from(OsString::from_vec(path))).filter(|path| !path.as_os_str().is_empty()))
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
