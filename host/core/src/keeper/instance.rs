//! One keeper: its process, its directory, and the connection to it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_init::client::{self, Connection, RequestError, Statuses};
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
        let (connection, process) = match connect() {
            Ok((connection, pid)) => (Some(connection), Process::open_any(pid).ok()),
            Err(RequestError::Connection(error)) if is_gone(&error) => (None, None),
            Err(error) => {
                let error = error_chain::describe(&error);
                tracing::warn!(keeper = name, "cannot use the keeper of an earlier agent: {error}");
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
    /// process 1 of the pid namespace of a container whose command has ended, if it has not ended itself.
    pub(super) fn state(&mut self, slot: Slot) -> Option<(State, i32, Option<i32>)> {
        let statuses = self.statuses.as_ref();
        let recorded = statuses.and_then(|statuses| statuses.read(slot).ok().flatten());
        let recorded = recorded.map(|entry| (entry.state, entry.status, None));
        match recorded {
            Some((State::Ended | State::NotStarted, ..)) => recorded,
            _ => self.request(|connection| connection.collect_with_reaper(slot)).ok().or(recorded),
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
