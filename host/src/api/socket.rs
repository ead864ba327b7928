//! The unix sockets of the API, each owned by one agent at a time: one accessible to root and the agent's user only, and one
//! for executors in containers.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
};
use rustix::fs::{AtFlags, CWD, Gid, Mode};

use super::peer;
use super::stream::{Acceptor, Stream};
use crate::config::SocketAccess;

/// The listening socket. Its file stays: the next agent replaces it, for which there is space then even on a full disk.
#[derive(Debug)]
pub struct Listener {
    listener: Acceptor,
    path: PathBuf,
    inode: (u64, u64),
    access: Access,
}

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Root and the agent's user.
    Private,
    /// A group as well, that of the file.
    Group { mode: u32, group: u32 },
    /// Everybody who reaches it. Whoever connects has to present a token.
    Containers,
}

impl Access {
    /// The mode of the file. Until it has its group, it is private.
    fn mode(self) -> Mode {
        match self {
            Self::Private => Mode::RUSR | Mode::WUSR,
            Self::Group { mode, .. } => Mode::from_raw_mode(mode),
            Self::Containers => Mode::from_raw_mode(0o666),
        }
    }

    fn group(self) -> Option<Gid> {
        match self {
            Self::Group { group, .. } => Some(Gid::from_raw(group)),
            Self::Private | Self::Containers => None,
        }
    }
}

/// Why the socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process accepts connections on it.
    #[error("another agent is listening on `{path}`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The file of the socket was replaced by another one.
    #[error("`{path}` was replaced by another file; remove that, and the agent listens there again")]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// The file exists and is not a socket.
    #[error("`{path}` exists and is not a socket; remove it or set another `socket`")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} `{path}`")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a peer may not use the API.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It is another user.
    #[error("user {uid} may not use the API of this agent; only root and user {own} may")]
    Uid {
        /// The peer's user id.
        uid: u32,
        /// The agent's user id.
        own: u32,
    },
    /// It is another user, who is not in the group.
    #[error(
        "user {uid} may not use the API of this agent; only root, user {own} and members of group {group} may"
    )]
    Group {
        /// The peer's user id.
        uid: u32,
        /// The agent's user id.
        own: u32,
        /// The group of the socket.
        group: u32,
    },
    /// Its user is unknown.
    #[error("cannot determine the user of the peer")]
    Unknown(#[from] io::Error),
}

impl Listener {
    /// Listens on `path`. Replaces the socket of a process that has died. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, BindError> {
        let access = match access {
            SocketAccess { mode, group: Some(group) } if mode & 0o020 != 0 => Access::Group { mode, group },
            _ => Access::Private,
        };
        Self::bind_for(path, access)
    }

    /// Listens on `path` for processes in containers, which see its directory read-only. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_for_containers(path: &Path) -> Result<Self, BindError> {
        Self::bind_for(path, Access::Containers)
    }

    fn bind_for(path: &Path, access: Access) -> Result<Self, BindError> {
        check_unused(path)?;

        // Created under a temporary name and renamed, so that clients never see a socket that does not listen.
        let temporary = path.with_file_name(format!(".s{}", std::process::id()));
        let failed = |action, source| BindError::System { action, path: temporary.clone(), source };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", error)),
            _ => {}
        }
        let std = match listen_on(&temporary, access) {
            // There is space for one if the old one is removed first. Clients may find none for a moment.
            Err(error) if is_full(&error) => {
                drop(fs::remove_file(path));
                listen_on(&temporary, access).map_err(|source| failed("listen on", source))?
            }
            listening => listening.map_err(|source| failed("listen on", source))?,
        };
        let finish = || -> Result<_, BindError> {
            if let Some(group) = access.group() {
                rustix::fs::chownat(CWD, &temporary, None, Some(group), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| failed("set the group of", error.into()))?;
            }
            if access != Access::Private {
                // The umask has been applied.
                fs::set_permissions(&temporary, fs::Permissions::from_mode(access.mode().as_raw_mode()))
                    .map_err(|error| failed("set the mode of", error))?;
            }
            let metadata = fs::symlink_metadata(&temporary).map_err(|error| failed("inspect", error))?;
            let listener = Acceptor::new(std).map_err(|error| failed("listen on", error))?;
            let rename = |source| BindError::System { action: "create", path: path.to_owned(), source };
            fs::rename(&temporary, path).map_err(rename)?;
            Ok(Self { listener, path: path.to_owned(), inode: (metadata.dev(), metadata.ino()), access })
        };
        finish().inspect_err(|_| {
            // Best effort: the first error is more informative.
            drop(fs::remove_file(&temporary));
        })
    }

    /// Path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens again if the file of the socket was removed. Returns whether it was.
    ///
    /// # Errors
    /// [`BindError`], also when there is another file in its place.
    pub(super) fn restore(&mut self) -> Result<bool, BindError> {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.inode => Ok(false),
            Ok(_) => Err(BindError::Replaced { path: self.path.clone() }),
            Err(_) => {
                *self = Self::bind_for(&self.path, self.access)?;
                Ok(true)
            }
        }
    }

    /// Checks that the peer is root, the agent's user, or in the group of the socket. The file mode enforces the same, but may
    /// have been changed.
    pub(super) fn check_peer(&self, stream: &Stream) -> Result<(), PeerError> {
        if self.access == Access::Containers {
            return Ok(());
        }
        let peer = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?;
        let (uid, own) = (peer.uid(), rustix::process::geteuid().as_raw());
        if uid == 0 || uid == own {
            return Ok(());
        }
        let Some(group) = self.access.group().map(Gid::as_raw) else {
            return Err(PeerError::Uid { uid, own });
        };
        if peer.gid() == group || peer::supplementary_groups(stream)?.contains(&group) {
            return Ok(());
        }
        Err(PeerError::Group { uid, own, group })
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        self.listener.accept().await
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Checks that nothing exists at `path`, or a socket on which no process listens.
fn check_unused(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::System { action: "inspect", path: path.to_owned(), source }),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(source) => Err(BindError::System { action: "connect to", path: path.to_owned(), source }),
    }
}

fn listen_on(path: &Path, access: Access) -> io::Result<UnixListener> {
    let kind = (SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
    let socket = socket(AddressFamily::Unix, kind.0, kind.1, None)?;
    // bind(2) creates the file with the mode of the socket, so it never has another mode.
    let mode = match access {
        Access::Containers => access.mode(),
        Access::Private | Access::Group { .. } => Access::Private.mode(),
    };
    rustix::fs::fchmod(&socket, mode)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_its_file_stays_for_the_next_agent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = Listener::bind(&path, SocketAccess::PRIVATE).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);

        let client = tokio::net::UnixStream::connect(&path).await.unwrap();
        let server = listener.accept().await.unwrap();
        assert!(listener.check_peer(&server).is_ok());
        drop((client, listener));
        let refused = tokio::net::UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn only_the_socket_of_a_dead_agent_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = Listener::bind(&path, SocketAccess::PRIVATE).unwrap();
        assert!(matches!(Listener::bind(&path, SocketAccess::PRIVATE), Err(BindError::InUse { .. })));
        drop(first);
        let second = Listener::bind(&path, SocketAccess::PRIVATE).unwrap();
        assert_eq!(second.path(), path);
    }

    #[tokio::test]
    async fn a_removed_socket_is_restored_and_a_replaced_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/agent.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let mut listener = Listener::bind(&path, SocketAccess::PRIVATE).unwrap();
        assert!(!listener.restore().unwrap());
        fs::remove_file(&path).unwrap();
        assert!(listener.restore().unwrap());
        let _client = tokio::net::UnixStream::connect(&path).await.unwrap();
        listener.accept().await.unwrap();

        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(matches!(listener.restore(), Err(BindError::System { .. })));
        fs::create_dir(path.parent().unwrap()).unwrap();
        assert!(listener.restore().unwrap());
        fs::remove_file(&path).unwrap();
        let other = Listener::bind(&path, SocketAccess::PRIVATE).unwrap();
        assert!(matches!(listener.restore(), Err(BindError::Replaced { .. })));
        drop(listener);
        assert!(path.exists(), "the socket of another agent");
        drop(other);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, SocketAccess::PRIVATE), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = directory.path().join("none/agent.sock");
        assert!(matches!(Listener::bind(&nowhere, SocketAccess::PRIVATE), Err(BindError::System { .. })));
    }

    #[tokio::test]
    async fn a_group_may_have_access() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        // A group of its own is one that every user may give a file to.
        let group = rustix::process::getegid().as_raw();
        let access = SocketAccess { mode: 0o660, group: Some(group) };
        let mut listener = Listener::bind(&path, access).unwrap();
        for _ in 0..2 {
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, group));
            // Also when it is restored.
            fs::remove_file(&path).unwrap();
            assert!(listener.restore().unwrap());
        }
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }
}
