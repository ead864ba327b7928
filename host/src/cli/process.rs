//! Preparation of this process for running an agent, which the library leaves to its embedder.

use std::path::PathBuf;

use cofferdam_core::config::{AgentConfig, LauncherKind};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::failure::Failure;

/// Prepares this process, and completes the configuration with what belongs to it.
///
/// - Raises the limit of open descriptors to the hard limit, as every running container takes some. Containers
///   start with the limit that was in force before.
/// - With the `linux` launcher, makes the process non-dumpable: a child on its way into a container shares this
///   process's memory until it executes, and nobody in the container may read it.
pub(super) fn prepare(config: &mut AgentConfig) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|source| Failure::system("cannot determine the path of this program", source))?;
    config.fetcher = Some(vec![program, PathBuf::from("fetch")]);
    config.container_nofile = raise_nofile();
    if config.launcher == LauncherKind::Linux {
        set_dumpable(false)
            .map_err(|errno| Failure::system("cannot make this process non-dumpable", errno.into()))?;
    }
    Ok(())
}

/// Raises `RLIMIT_NOFILE` to the hard limit. Returns the limits (soft, hard) before, if they were changed.
fn raise_nofile() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!("cannot raise the limit of open descriptors above {soft}: {error}");
        return None;
    }
    Some((soft, hard))
}
