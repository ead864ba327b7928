//! One keeper: its process, its directory, and the connection to it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_init::client::{self, Connection, Remaining, RequestError, Statuses};
use cofferdam_init::protocol::{Slot, State};
use cofferdam_linux::image::Image;
use cofferdam_linux::process::Process;
use cofferdam_linux::spawn;
use cofferdam_linux::tree;

use super::{KeeperCgroups, KeeperError};
use crate::error_chain;
use crate::short_path::at_short_path;

/// How long a keeper without containers may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one that was killed or has closed its connection may take to end.
const KILLED_TIMEOUT: Duration = Duration::from_secs(1);

const SOCKET: &str = "socket";
const STATUSES: &str = "statuses";

/// A keeper, or what is left of one.
#[derive(Debug)]
pub(super) struct Instance {
    name: String,
    directory: PathBuf,
    /// `None` if it has ended, or did not answer.
    connection: Option<Connection>,
    /// `None` if the file cannot be read.
    statuses: Option<Statuses>,
    process: Option<Process>,
    /// Whether it speaks a version of the protocol that this agent does not.
    is_foreign: bool,
    /// The slots whose status is needed.
    slots: HashSet<Slot>,
}

impl Instance {
    /// Starts a keeper in a new directory below `parent`, with the first free number from `next`, which becomes the one
    /// after it.
    pub(super) fn start(
        parent: &Path,
        build: &str,
        next: &mut u64,
        image: &Image,
        cgroups: &KeeperCgroups,
        kill_on_disconnect: bool,
        timeout: Duration,
    ) -> Result<Self, KeeperError> {
        let (name, directory) = create_directory(parent, build, next)
            .map_err(|source| KeeperError::File { path: parent.to_owned(), source })?;
        let start = || {
            let file_error = |file: &str| {
                let path = directory.join(file);
                move |source| KeeperError::File { path, source }
            };
            let listener = at_short_path(&directory, |path| client::listener(&path.join(SOCKET)))
                .map_err(file_error(SOCKET))?;
            let statuses = Statuses::create(&directory.join(STATUSES)).map_err(file_error(STATUSES))?;
            let null = File::options().read(true).write(true).open("/dev/null");
            let null = null.map_err(file_error("/dev/null"))?;
            let (connection, theirs) = Connection::pair(timeout).map_err(file_error(SOCKET))?;
            let null = null.as_fd();
            let tasks: Vec<_> = cgroups.v1.iter().map(AsFd::as_fd).collect();
            let process = spawn::Spawn {
                image,
                arguments: &[c"cofferdam-keeper"],
                descriptors: &[null, null, null, listener.as_fd(), statuses.as_fd(), theirs.as_fd()],
                cgroup: cgroups.v2.as_ref().map(AsFd::as_fd),
                tasks: &tasks,
            }
            .spawn()
            .map_err(KeeperError::Spawn)?;
            let hello = connection.hello(kill_on_disconnect);
            let request_error = |source| KeeperError::Request { keeper: name.clone(), source };
            hello.map_err(request_error).inspect_err(|_| {
                drop(process.kill());
                if process.wait(Some(KILLED_TIMEOUT)).unwrap_or(false) {
                    drop(process.reap());
                }
            })?;
            Ok((connection, statuses, process))
        };
        match start() {
            Ok((connection, statuses, process)) => Ok(Self {
                name,
                directory,
                connection: Some(connection),
                statuses: Some(statuses),
                process: Some(process),
                is_foreign: false,
                slots: HashSet::new(),
            }),
            Err(error) => {
                drop(tree::remove(&directory));
                Err(error)
            }
        }
    }

    /// Connects to a keeper of an earlier agent, if it is running.
    pub(super) fn open(parent: &Path, name: &str, timeout: Duration) -> Self {
        let directory = parent.join(name);
        let connect = || {
            let socket = |path: &Path| Connection::open(&path.join(SOCKET), timeout);
            let connection = at_short_path(&directory, socket).map_err(RequestError::Connection)?;
            // Only a keeper that was to end with its agent would be told otherwise, and it has ended.
            let pid = connection.hello(false)?;
            Ok((connection, pid))
        };
        let unusable = |error: &RequestError| {
            let error = error_chain::describe(error);
            tracing::warn!(keeper = name, "cannot use the keeper of an earlier agent: {error}");
        };
        let mut is_foreign = false;
        let (connection, process) = match connect() {
            Ok((connection, pid)) => (Some(connection), Process::open_any(pid).ok()),
            Err(RequestError::Connection(error)) if is_gone(&error) => (None, None),
            Err(error @ RequestError::Version { pid, .. }) => {
                unusable(&error);
                is_foreign = true;
                (None, Process::open_any(pid).ok())
            }
            Err(error) => {
                unusable(&error);
                (None, None)
            }
        };
        let statuses = Statuses::open(&directory.join(STATUSES)).inspect_err(|error| {
            tracing::warn!(keeper = name, "cannot read how its processes ended: {error}");
        });
        Self {
            name: name.to_owned(),
            directory,
            connection,
            statuses: statuses.ok(),
            process,
            is_foreign,
            slots: HashSet::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Another handle of its process.
    pub(super) fn process(&self) -> Option<Process> {
        self.process.as_ref()?.try_clone().ok()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether it records how its containers end, as far as is known.
    pub(super) fn serves(&self) -> bool {
        self.is_connected() || self.is_foreign && !self.has_ended()
    }

    /// Whether it has answered so far and has not ended.
    pub(super) fn is_running(&self) -> bool {
        // A setup process may still have the other end of the connection.
        self.connection.as_ref().is_some_and(Connection::is_open) && !self.has_ended()
    }

    /// Closes the connection to one that is not running.
    pub(super) fn set_aside(mut self) -> Self {
        self.connection = None;
        self
    }

    fn has_ended(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.has_ended().unwrap_or(true))
    }

    /// Makes a request. A connection that fails is closed, as a late answer would be taken for that of another request.
    pub(super) fn request<T>(
        &mut self,
        make: impl FnOnce(&Connection) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let connection = self.connection.as_ref();
        let connection =
            connection.ok_or_else(|| RequestError::Connection(io::ErrorKind::NotConnected.into()))?;
        let outcome = make(connection);
        if let Err(RequestError::Connection(error)) = &outcome {
            self.connection = None;
            // A keeper that is killed closes its socket before it has ended; whoever asks next is told that it has.
            if is_closed(error)
                && let Some(process) = &self.process
            {
                drop(process.wait(Some(KILLED_TIMEOUT)));
            }
        }
        outcome
    }

    /// State and wait status of a slot: from the keeper's file, if they are final, or from the keeper. From the keeper also
    /// what has not ended of a container whose command has.
    pub(super) fn state(&mut self, slot: Slot) -> Option<(State, i32, Remaining)> {
        let statuses = self.statuses.as_ref();
        let recorded = statuses.and_then(|statuses| statuses.read(slot).ok().flatten());
        let recorded = recorded.map(|entry| (entry.state, entry.status, Remaining::default()));
        match recorded {
            Some((State::Ended | State::NotStarted, ..)) => recorded,
            _ => self.request(|connection| connection.collect_with_remaining(slot)).ok().or(recorded),
        }
    }

    /// The status of a slot will be needed.
    pub(super) fn add(&mut self, slot: Slot) {
        self.slots.insert(slot);
    }

    /// The status of a slot is not needed any more.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.slots.remove(&slot);
        // A keeper that has ended keeps nothing.
        drop(self.request(|connection| connection.forget(slot)));
    }

    /// Forgets all slots but those `in_use`.
    pub(super) fn retain(&mut self, in_use: HashSet<Slot>) {
        if self.is_running() {
            let recorded = self.statuses.as_ref().and_then(|statuses| statuses.all().ok());
            for (slot, _) in recorded.unwrap_or_default() {
                if !in_use.contains(&slot) {
                    drop(self.request(|connection| connection.forget(slot)));
                }
            }
        }
        self.slots = in_use;
    }

    /// Whether a status is needed that it records, or it has not ended. If no status is needed, it is disconnected, and
    /// ends with its last process.
    pub(super) fn is_needed(&mut self) -> bool {
        let ended = self.has_ended();
        if self.slots.is_empty() || ended {
            self.connection = None;
        }
        !self.slots.is_empty() || !ended
    }

    /// Closes the connection. If it has no containers, the keeper ends; then its directory is removed.
    pub(super) fn disconnect(mut self) {
        let idle = matches!(self.request(|connection| connection.count()), Ok(0));
        self.connection = None;
        let Some(process) = self.process.as_ref().filter(|_| idle) else { return };
        if process.wait(Some(EXIT_TIMEOUT)).unwrap_or(false) {
            drop(process.reap());
            self.remove();
        }
    }

    /// Removes its directory.
    pub(super) fn remove(&self) {
        if let Err(error) = tree::remove(&self.directory) {
            tracing::warn!("cannot remove `{}`: {error}", self.directory.display());
        }
    }
}

/// Whether the other side has closed a connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether a socket has no listener any more, or was never created.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Creates a directory with a name that this agent has not used before, also if that one was removed.
fn create_directory(parent: &Path, build: &str, next: &mut u64) -> io::Result<(String, PathBuf)> {
    loop {
        let name = format!("{build}-{next}");
        *next += 1;
        let directory = parent.join(&name);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok((name, directory)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command};

    use rustix::net::{RecvFlags, SendFlags, accept, recv, send};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// A keeper as one of any version is known to others: by its messages and its file.
    struct Other {
        parent: tempfile::TempDir,
        process: Child,
        listener: OwnedFd,
        version: u32,
    }

    impl Other {
        fn new(version: u32) -> Self {
            let parent = tempfile::tempdir().unwrap();
            let directory = parent.path().join("0123-0");
            fs::create_dir(&directory).unwrap();
            let listener = client::listener(&directory.join(SOCKET)).unwrap();
            let mut file = b"cofferdam st\x01\0\0\0".to_vec();
            // Ended with status 5, and running.
            for word in [1_u32, 11, 0x500, 3, 4, 12, 0, 2] {
                file.extend(word.to_le_bytes());
            }
            fs::write(directory.join(STATUSES), file).unwrap();
            let process = Command::new("sleep").arg("1000").spawn().unwrap();
            Self { parent, process, listener, version }
        }

        /// Opens it, and answers all requests meanwhile and in `body`. Returns the kinds of the requests as well.
        fn serve<T: Send>(&self, body: impl FnOnce(&mut Instance) -> T + Send) -> (T, Vec<u32>) {
            std::thread::scope(|scope| {
                let client = scope.spawn(|| body(&mut Instance::open(self.parent.path(), "0123-0", TIMEOUT)));
                let connection = accept(&self.listener).unwrap();
                let mut kinds = Vec::new();
                let mut request = [0; 64];
                while let (48, _) = recv(&connection, &mut request, RecvFlags::empty()).unwrap() {
                    let word = |at: usize| u32::from_le_bytes(*request[4 * at..].first_chunk().unwrap());
                    kinds.push(word(0));
                    let words = match word(0) {
                        1 => [0, 0, 0, 0, 0, self.process.id(), self.version, 0],
                        // Exited with status 7; process 1 has not ended.
                        3 => [0, word(1), word(2), 5, 0x700, 13, 0, 0],
                        _ => [0; 8],
                    };
                    let reply: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
                    send(&connection, &reply, SendFlags::NOSIGNAL).unwrap();
                }
                (client.join().unwrap(), kinds)
            })
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            drop(self.process.kill());
            drop(self.process.wait());
        }
    }

    const NOTHING: Remaining = Remaining { reaper: None, setup: None };
    const ENDED: Slot = Slot { index: 0, generation: 1 };
    const RUNNING: Slot = Slot { index: 1, generation: 4 };

    #[test]
    fn an_earlier_version_serves_its_containers_until_they_end() {
        let other = Other::new(2);
        let (pid, kinds) = other.serve(|instance| {
            assert!(instance.is_running() && instance.serves());
            assert_eq!(instance.state(ENDED), Some((State::Ended, 0x500, NOTHING)), "from its file");
            let remaining = Remaining { reaper: Some(13), ..NOTHING };
            assert_eq!(instance.state(RUNNING), Some((State::Exited, 0x700, remaining)), "asked");
            instance.retain([RUNNING].into());
            assert!(instance.is_needed());
            instance.forget(RUNNING);
            instance.is_needed();
            assert!(!instance.is_connected(), "it may end");
            instance.pid()
        });
        assert_eq!(pid, i32::try_from(other.process.id()).ok());
        assert_eq!(kinds, [1, 3, 4, 4], "hello, collect, forget and forget");
    }

    #[test]
    fn a_later_version_is_not_asked_and_its_file_is_read_until_it_ends() {
        for version in [0, 1, cofferdam_init::protocol::VERSION + 1, u32::MAX] {
            let other = Other::new(version);
            let (pid, kinds) = other.serve(|instance| {
                assert!(!instance.is_running() && instance.serves(), "no new container is for it");
                assert_eq!(instance.state(ENDED), Some((State::Ended, 0x500, NOTHING)));
                assert_eq!(instance.state(RUNNING), Some((State::Running, 0, NOTHING)));
                instance.retain(HashSet::new());
                assert!(instance.is_needed(), "its processes are below it, and found by its pid");
                let process = instance.process().unwrap();
                process.kill().unwrap();
                assert!(process.wait(Some(TIMEOUT)).unwrap());
                assert!(!instance.serves() && !instance.is_needed());
                instance.pid()
            });
            assert_eq!(pid, i32::try_from(other.process.id()).ok(), "{version}");
            assert_eq!(kinds, [1], "{version}");
        }
    }
}
