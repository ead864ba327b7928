//! Settings of this process that an agent needs and that the library leaves to the program that embeds it.

use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_core::config::{AgentConfig, LauncherKind};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::failure::Failure;
use crate::config::Environment;
use crate::image::PullProcess;

/// Changes the settings of this process, and adds those values to the configuration that depend on the process.
///
/// - Raises the limit of open descriptors to the hard limit, as every running container uses some. That of containers
///   does not depend on it.
/// - With the `linux` launcher, makes the process non-dumpable: nobody but root can trace it or read its memory.
pub(super) fn prepare(config: &mut AgentConfig, environment: &Environment) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .map_err(|source| Failure::system("cannot determine the path of this program", source))?;
    config.fetcher = Some(vec![program.clone(), PathBuf::from("fetch")]);
    // Only root can unpack images, as their files belong to several users.
    if environment.is_root() {
        let registry = config.registry.clone();
        let credentials = match &registry.credentials {
            Some(file) => vec![file.clone()],
            None => environment.credentials.clone(),
        };
        config.puller = Some(Arc::new(PullProcess::new(program, registry, credentials)));
    }
    raise_nofile();
    if config.launcher == LauncherKind::Linux {
        set_dumpable(false)
            .map_err(|errno| Failure::system("cannot make this process non-dumpable", errno.into()))?;
    }
    Ok(())
}

/// Sets the umask to 022, before anything is created: users of containers pass through directories of the agent, and read
/// files that it or a plugin creates for them.
pub(super) fn set_umask() {
    umask(Mode::from_bits_truncate(0o022));
}

/// Raises `RLIMIT_NOFILE` to the hard limit.
fn raise_nofile() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!("cannot raise the limit of open descriptors above {soft}: {error}");
    }
}
