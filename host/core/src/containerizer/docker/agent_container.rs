//! Checks of an agent that is itself in a container of the engine.
//!
//! Its containers outlive it only if their streams do, which the keeper passes on: that must not be in a cgroup of the agent's
//! container, all of whose processes are killed with the first one. And the engine mounts directories of the host, so those of
//! the agent have to be the same there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_linux::foreign;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::launcher::SetUpError;

/// Why the containers of an agent that is in a container would not outlive it, or not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentContainerError {
    /// The engine has another directory there.
    #[error(
        "`{}` is not the directory that the engine has there, so that it could not mount it into containers; start the agent's container with `--volume {}:{}`",
        path.display(), path.display(), path.display()
    )]
    OtherDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The engine's process is not visible.
    #[error(
        "the process of the engine is not visible, nor would those of its containers be; start the agent's container with `--pid host`"
    )]
    PidNamespace,
    /// The directories of the engine cannot be seen.
    #[error(
        "cannot see the directories of the engine (process {pid}); start the agent's container with `--cap-add SYS_PTRACE`"
    )]
    Engine {
        /// The process of the engine.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// A directory of the agent cannot be opened.
    #[error("cannot open `{}`", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cgroups of a process cannot be read.
    #[error("cannot read `{}`", path.display())]
    Cgroups {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cgroups of the host are not there, or not writable.
    #[error(
        "the cgroups of the host cannot be used; start the agent's container with `--cgroupns host` and `--volume /sys/fs/cgroup:/sys/fs/cgroup`"
    )]
    Launcher(#[source] SetUpError),
    /// The keeper would be killed with the agent's container.
    #[error(
        "the keeper is in cgroups of the agent's container, with which it would be killed ({hierarchy}); start that container with `--cgroupns host` and `--volume /sys/fs/cgroup:/sys/fs/cgroup`"
    )]
    SameCgroup {
        /// The hierarchy.
        hierarchy: String,
    },
    /// The agent is in no cgroup, or does not see in which.
    #[error(
        "the agent is in the root of every cgroup hierarchy, as in a cgroup namespace of its own: it cannot leave its container; start that with `--cgroupns host`, or remove `docker.mesos_image` if there is none"
    )]
    NoCgroup,
}

/// Checks that the keeper is not killed with the agent's container.
pub(crate) fn check_keeper(keeper: i32) -> Result<(), AgentContainerError> {
    let own = cgroups("self")?;
    let of_keeper = cgroups(&keeper.to_string())?;
    let mut below_root = own.iter().filter(|(_, path)| *path != "/").peekable();
    if below_root.peek().is_none() {
        return Err(AgentContainerError::NoCgroup);
    }
    let is_within = |(hierarchy, path): &(&String, &String)| {
        of_keeper.get(*hierarchy).is_some_and(|keeper| Path::new(keeper).starts_with(path))
    };
    match below_root.find(is_within) {
        Some((hierarchy, _)) => Err(AgentContainerError::SameCgroup { hierarchy: name(hierarchy) }),
        None => Ok(()),
    }
}

/// The cgroup of a process in each hierarchy, by the controllers of that.
fn cgroups(pid: &str) -> Result<BTreeMap<String, String>, AgentContainerError> {
    let path = Path::new("/proc").join(pid).join("cgroup");
    let text = fs::read_to_string(&path).map_err(|source| AgentContainerError::Cgroups { path, source })?;
    Ok(parse(&text))
}

fn parse(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn name(controllers: &str) -> String {
    if controllers.is_empty() { "cgroup v2".to_owned() } else { format!("cgroup v1 `{controllers}`") }
}

/// Checks that the engine has the same directories. An engine that does not answer is not waited for, and nothing is checked.
pub(crate) fn check_directories(socket: &Path, directories: &[&Path]) -> Result<(), AgentContainerError> {
    let pid = match listener(socket) {
        Ok(pid) => pid.ok_or(AgentContainerError::PidNamespace)?,
        Err(errno) => {
            let (socket, error) = (socket.display(), io::Error::from(errno));
            tracing::warn!(
                "not checked whether the engine at `{socket}` has the agent's directories: {error}"
            );
            return Ok(());
        }
    };
    let engine = |errno: Errno| AgentContainerError::Engine { pid, source: errno.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{pid}/root"), flags, Mode::empty()).map_err(engine)?;
    for path in directories {
        let failed = |source: Errno| AgentContainerError::Directory {
            path: (*path).to_owned(),
            source: source.into(),
        };
        let own = open(*path, flags, Mode::empty()).and_then(|own| identity(&own)).map_err(failed)?;
        // Links lead to where they do for the engine.
        let there = foreign::open_resolved(&root, path, flags, ResolveFlags::IN_ROOT);
        let is_same = match there.and_then(|there| identity(&there)) {
            Ok(there) => there == own,
            Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(errno) => return Err(engine(errno)),
        };
        if !is_same {
            return Err(AgentContainerError::OtherDirectory { path: (*path).to_owned() });
        }
    }
    Ok(())
}

/// The process that listens on a socket. `None` if it is not in this pid namespace.
fn listener(socket: &Path) -> rustix::io::Result<Option<i32>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&connection, &SocketAddrUnix::new(socket)?)?;
    // That of rustix has no place for 0, which is a process of another namespace.
    let peer =
        getsockopt(&connection, PeerCredentials).map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    let pid = peer.pid();
    Ok((pid > 0).then_some(pid))
}

fn identity(directory: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    let found = fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn directories_are_compared_with_those_of_the_process_that_listens() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        // There is none yet: nothing can be said.
        check_directories(&socket, &[Path::new("/no/such/directory")]).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        check_directories(&socket, &[directory.path(), Path::new("/")]).unwrap();
        let missing = check_directories(&socket, &[Path::new("/no/such/directory")]).unwrap_err();
        assert!(matches!(missing, AgentContainerError::Directory { .. }));
    }

    #[test]
    fn the_cgroups_of_a_process_are_found_by_their_controllers() {
        let found = parse("12:cpu,cpuacct:/docker/0f\n1:name=systemd:/docker/0f\n0::/a:b\n");
        assert_eq!(found["cpu,cpuacct"], "/docker/0f");
        assert_eq!(found["name=systemd"], "/docker/0f");
        assert_eq!(found[""], "/a:b");
        assert_eq!((name(""), name("cpu")), ("cgroup v2".to_owned(), "cgroup v1 `cpu`".to_owned()));
    }

    #[test]
    fn a_keeper_in_the_cgroups_of_the_agent_is_refused() {
        let own = i32::try_from(std::process::id()).unwrap();
        // Which of both depends on where the tests are.
        let error = check_keeper(own).unwrap_err();
        assert!(matches!(error, AgentContainerError::SameCgroup { .. } | AgentContainerError::NoCgroup));
    }
}
