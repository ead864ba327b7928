//! The unix socket of the API: made so that nobody else ever gets in, and nobody who answers is displaced.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use rustix::fs::Mode;

/// The API's socket, listening. Its file goes away with it, unless somebody has replaced it.
#[derive(Debug)]
pub struct Listener {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An agent answers there.
    #[error("another agent answers at `{path}`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("`{path}` is in the way: it is not a socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("cannot {what} `{path}`")]
    System {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
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
    /// The credentials of the peer cannot be read.
    #[error("cannot read the credentials of the client")]
    Unknown(#[from] io::Error),
}

impl Listener {
    /// Listens at `path`. A socket that nobody answers at any more is replaced. Needs a tokio runtime.
    ///
    /// # Errors
    /// When somebody answers there, when something else is there, or when the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        make_way(path)?;

        // Made under another name and renamed, so that it is never seen half made.
        let temporary = path.with_file_name(format!(".s{}", std::process::id()));
        let failed = |what, source| BindError::System { what, path: temporary.clone(), source };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", error)),
            _ => {}
        }
        let std = listening(&temporary).map_err(|source| failed("listen at", source))?;
        let finish = || -> Result<_, BindError> {
            let metadata = fs::symlink_metadata(&temporary).map_err(|error| failed("look at", error))?;
            std.set_nonblocking(true).map_err(|error| failed("listen at", error))?;
            let listener =
                tokio::net::UnixListener::from_std(std).map_err(|error| failed("listen at", error))?;
            let rename = |source| BindError::System { what: "make", path: path.to_owned(), source };
            fs::rename(&temporary, path).map_err(rename)?;
            Ok(Self { listener, path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) })
        };
        finish().inspect_err(|_| {
            // Best effort: the error that led here says more than this one could.
            drop(fs::remove_file(&temporary));
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

/// Checks that the peer is root or the agent's user, in addition to the file's mode, which can be changed.
pub(super) fn check_peer(stream: &tokio::net::UnixStream) -> Result<(), PeerError> {
    let (uid, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if uid == 0 || uid == own { Ok(()) } else { Err(PeerError::Uid { uid, own }) }
}

fn make_way(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::System { what: "look at", path: path.to_owned(), source }),
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
        Err(source) => Err(BindError::System { what: "connect to", path: path.to_owned(), source }),
    }
}

fn listening(path: &Path) -> io::Result<UnixListener> {
    let kind = (SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
    let socket = socket(AddressFamily::Unix, kind.0, kind.1, None)?;
    // The file that bind(2) makes takes its mode from the socket, so there is no moment in which it has
    // another one.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_its_owner_may_connect_and_it_leaves_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);

        let client = tokio::net::UnixStream::connect(&path).await.unwrap();
        let server = listener.accept().await.unwrap();
        assert!(check_peer(&server).is_ok());
        drop((client, listener));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_agent_that_answers_is_not_displaced_and_a_dead_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::InUse { .. })));

        // What a killed agent leaves behind: the file, and nobody.
        let moved = directory.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        drop(first);
        fs::rename(&moved, &path).unwrap();
        let second = Listener::bind(&path).unwrap();
        assert_eq!(second.path(), path);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = directory.path().join("none/agent.sock");
        assert!(matches!(Listener::bind(&nowhere), Err(BindError::System { .. })));
    }
}
