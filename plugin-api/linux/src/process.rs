//! Processes identified by pidfd, because a pid can be reused by another process at any time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::pidfd_info::{self, WaitStatus};
use crate::signal;

/// A process: a pidfd, its pid in the caller's namespace, and when it started.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    pid: i32,
    start_time: u64,
}

/// How a process ended, from waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Exited with this status.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
}

impl Process {
    /// Opens process `pid` if it is the one that started at `start_time`.
    ///
    /// `start_time` is a value of [`Process::start_time`] in the current boot.
    pub fn open(pid: i32, start_time: u64) -> Result<Self, ProcessError> {
        let process = Self::open_any(pid)?;
        if process.start_time != start_time {
            return Err(ProcessError::Recycled { pid, expected: start_time, found: process.start_time });
        }
        Ok(process)
    }

    /// Opens the process that currently has `pid`.
    pub fn open_any(pid: i32) -> Result<Self, ProcessError> {
        let gone = || ProcessError::Gone { pid };
        let raw = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(gone)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
            // The others, if the pid is that of a thread now; which of them depends on the kernel.
            Errno::SRCH | Errno::INVAL | Errno::NOENT => gone(),
            errno => ProcessError::Open { pid, source: errno.into() },
        })?;
        Self::from_pidfd(pid, pidfd)
    }

    /// A process from a pidfd and its pid. If it has been reaped already, its start time is 0, which is that of no
    /// process: [`Process::open`] will not find it.
    pub fn from_spawned(pid: i32, pidfd: OwnedFd) -> Self {
        let start_time = Stat::read(pid).map_or(0, |stat| stat.start_time);
        let mut process = Self { pidfd, pid, start_time };
        if process.signal(0).is_err() {
            process.start_time = 0;
        }
        process
    }

    /// Another handle of a process, from a duplicate of its pidfd.
    pub fn from_duplicate(pid: i32, start_time: u64, pidfd: OwnedFd) -> Self {
        Self { pidfd, pid, start_time }
    }

    /// A process from a pidfd and its pid.
    pub(crate) fn from_pidfd(pid: i32, pidfd: OwnedFd) -> Result<Self, ProcessError> {
        let start_time = Stat::read(pid)?.start_time;
        let process = Self { pidfd, pid, start_time };
        // The pid could have been reused before its start time was read. It was not if the process of the pidfd has
        // not been reaped yet.
        match process.signal(0) {
            Ok(()) => Ok(process),
            Err(_) => Err(ProcessError::Gone { pid }),
        }
    }

    /// Its pid in the caller's pid namespace, for display and for files in `/proc`.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its start time in clock ticks since boot. With the boot id and the pid, this identifies the process.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Another handle of the same process.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { pidfd: self.pidfd.try_clone()?, pid: self.pid, start_time: self.start_time })
    }

    /// Sends a signal by number: 1 to 64, or 0 to only check whether a signal could be sent.
    pub fn signal(&self, signal: i32) -> Result<(), ProcessError> {
        signal::send(self.as_fd(), signal).map_err(|source| match source.raw_os_error() {
            Some(libc::ESRCH) => ProcessError::Gone { pid: self.pid },
            Some(libc::EINVAL) => ProcessError::NoSuchSignal { signal },
            _ => ProcessError::Signal { pid: self.pid, signal, source },
        })
    }

    /// Sends SIGKILL. It is not an error if the process has already ended.
    pub fn kill(&self) -> Result<(), ProcessError> {
        match self.signal(libc::SIGKILL) {
            Ok(()) | Err(ProcessError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the process has ended, reaped or not.
    pub fn has_ended(&self) -> io::Result<bool> {
        self.wait(Some(Duration::ZERO))
    }

    /// Waits until the process has ended, at most `timeout` if given. Returns whether it has.
    ///
    /// Works for any process, not only for children. To wait without blocking a thread, poll the descriptor
    /// ([`AsFd`]) for reading.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.poll(PollFlags::IN, timeout)
    }

    fn poll(&self, events: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let timeout = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
            });
            match poll(&mut [PollFd::new(&self.pidfd, events)], timeout.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reaps a child that has ended. `None` if it is running, is not a child, or has been reaped.
    pub fn reap(&self) -> io::Result<Option<Ending>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) | Err(Errno::CHILD) => Ok(None),
            Ok(Some(status)) => Ok(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Some(Ending::Exited(code)),
                (None, Some(signal)) => Some(Ending::Killed(signal)),
                (None, None) => None,
            }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The wait status of a process that has ended, for others than its parent. `None` if the kernel does not tell.
    ///
    /// `/proc` tells it until the parent reaps the process, unless it is 0; since Linux 6.15, the pidfd does from then
    /// on, if this handle was opened before. Waits at most `timeout` for the parent.
    pub fn wait_status(&self, timeout: Duration) -> io::Result<Option<i32>> {
        if let WaitStatus::NotYet = pidfd_info::wait_status(self.as_fd())? {
            // Hung up when the process has been reaped.
            let timeout = if self.status_in_proc().is_some() { Duration::ZERO } else { timeout };
            self.poll(PollFlags::empty(), Some(timeout))?;
        }
        match pidfd_info::wait_status(self.as_fd())? {
            WaitStatus::Known(status) => Ok(Some(status)),
            WaitStatus::NotYet | WaitStatus::Unknown => Ok(self.status_in_proc()),
        }
    }

    /// The wait status of a process that has ended and was not reaped. `None` if it may be 0, as then it may also be that
    /// this process is not permitted to know it.
    fn status_in_proc(&self) -> Option<i32> {
        let stat = Stat::read(self.pid).ok().filter(|stat| stat.state == 'Z' && stat.wait_status != 0)?;
        // Otherwise the pid may be that of another process by now.
        self.signal(0).ok().map(|()| stat.wait_status)
    }

    /// Pids of the children of all its threads.
    ///
    /// Exact only while no child starts or ends: the caller stops the process or repeats the call.
    pub fn children(&self) -> io::Result<Vec<i32>> {
        children_of(self.pid)
    }
}

impl AsFd for Process {
    /// The pidfd, readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Pids of the children of all threads of process `pid`. Empty if there is no such process.
pub fn children_of(pid: i32) -> io::Result<Vec<i32>> {
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut children = Vec::new();
    for task in tasks {
        // The children of a thread that ends meanwhile move to another thread or to the subreaper.
        let path = match task {
            Err(error) if is_gone(&error) => continue,
            task => task?.path(),
        };
        match fs::read_to_string(path.join("children")) {
            Ok(text) => {
                children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()))
            }
            // The kernel was built without CONFIG_PROC_CHILDREN.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.join("stat").exists() => {
                return children_by_parent(pid);
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// As `children_of`, by scanning all processes.
fn children_by_parent(parent: i32) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match Stat::read(pid) {
            Ok(stat) if stat.parent == parent => children.push(pid),
            Ok(_) | Err(ProcessError::Gone { .. } | ProcessError::Unreadable { .. }) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(children)
}

/// Whether a file of a process cannot be read because it has been reaped (ENOENT), or is being reaped (ESRCH).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Some of the fields of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Name of the program, at most 15 bytes. The process can set it.
    pub name: String,
    /// One letter: `R`, `S`, `D`, `Z` for a zombie, …
    pub state: char,
    /// Pid of the parent, 0 if the parent is not in the caller's pid namespace.
    pub parent: i32,
    /// Process group id, 0 for threads of the kernel.
    pub group: i32,
    /// Session id.
    pub session: i32,
    /// Flags of the kernel, `PF_…` in its `sched.h`.
    pub flags: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// The wait status of a zombie; 0 if the caller may not know it.
    pub wait_status: i32,
}

impl Stat {
    /// Reads the record of process `pid`.
    pub fn read(pid: i32) -> Result<Self, ProcessError> {
        // The kernel generates the line for each read, so it is read at once; it is shorter than half of the buffer.
        let mut text = [0; 4096];
        let read = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut text));
        let length = read.map_err(|source| match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::NotFound, _) | (_, Some(libc::ESRCH)) => ProcessError::Gone { pid },
            _ => ProcessError::Open { pid, source },
        })?;
        Self::parse(&text[..length]).ok_or(ProcessError::Unreadable { pid })
    }

    /// Parses a record. The name is between the first and the *last* parenthesis, and may contain any byte.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let name = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        // proc_pid_stat(5) counts from 1; what follows the name is field 3.
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3);
        Some(Self {
            name,
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            group: field(5)?.parse().ok()?,
            session: field(6)?.parse().ok()?,
            flags: field(9)?.parse().ok()?,
            start_time: field(22)?.parse().ok()?,
            wait_status: field(52).and_then(|status| status.parse().ok()).unwrap_or(0),
        })
    }
}

/// Why an operation on a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process has ended and was reaped, or never existed.
    #[error("there is no process `{pid}`")]
    Gone {
        /// The pid.
        pid: i32,
    },
    /// The pid belongs to another process now.
    #[error("pid `{pid}` was reused: its process started at tick {found}, expected {expected}")]
    Recycled {
        /// The pid.
        pid: i32,
        /// Expected start time, in clock ticks since boot.
        expected: u64,
        /// Actual start time, in clock ticks since boot.
        found: u64,
    },
    /// The process cannot be opened.
    #[error("cannot open process `{pid}`")]
    Open {
        /// The pid.
        pid: i32,
        /// The error of the kernel.
        source: io::Error,
    },
    /// `/proc/PID/stat` is not as in proc_pid_stat(5).
    #[error("cannot parse `/proc/{pid}/stat`")]
    Unreadable {
        /// The pid.
        pid: i32,
    },
    /// The number is not a signal.
    #[error("`{signal}` is not a signal number; expected 0 to 64")]
    NoSuchSignal {
        /// The number.
        signal: i32,
    },
    /// The signal cannot be sent.
    #[error("cannot send signal `{signal}` to process `{pid}`")]
    Signal {
        /// The pid.
        pid: i32,
        /// The signal.
        signal: i32,
        /// The error of the kernel.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Ending, Process, ProcessError, Stat, children_by_parent, children_of};

    #[test]
    fn a_record_with_parentheses_in_the_name_is_parsed() {
        let text = b"42 (a) R 1 (b)) S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1 2 3\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.name, "a) R 1 (b)");
        assert_eq!((stat.state, stat.parent, stat.session, stat.start_time), ('S', 7, 9, 123_456));
        assert_eq!(Stat::parse(b"42 (a) S 7"), None);
        assert_eq!(Stat::parse(b") ("), None);
    }

    proptest! {
        #[test]
        fn any_record_is_parsed_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(stat) = Stat::parse(&text) {
                prop_assert!(text.contains(&b'(') && !stat.state.is_whitespace());
            }
        }
    }

    #[test]
    fn the_id_of_a_thread_is_that_of_no_process() {
        let outcome =
            std::thread::spawn(|| Process::open_any(rustix::thread::gettid().as_raw_nonzero().get()));
        assert!(matches!(outcome.join().unwrap(), Err(ProcessError::Gone { .. })));
    }

    #[test]
    fn a_wait_status_is_known_before_and_after_the_process_is_reaped() {
        let mut child = Command::new("sh").args(["-c", "exit 7"]).stdin(Stdio::null()).spawn().unwrap();
        let process = Process::open_any(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.wait(None).unwrap());
        assert_eq!(process.wait_status(Duration::ZERO).unwrap(), Some(7 << 8));
        child.wait().unwrap();
        match process.wait_status(Duration::ZERO).unwrap() {
            Some(status) => assert_eq!(status, 7 << 8),
            None => eprintln!("SKIPPED: this kernel does not tell how a process ended that was reaped"),
        }
    }

    #[test]
    fn a_wait_status_of_0_is_known_when_the_process_was_reaped() {
        let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let process = Process::open_any(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.wait(None).unwrap());
        assert_eq!(process.wait_status(Duration::ZERO).unwrap(), None);
        let other = process.try_clone().unwrap();
        let status = std::thread::spawn(move || other.wait_status(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        assert!(matches!(status.join().unwrap(), Some(0) | None));
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "the test reaps it through its pidfd")]
    fn a_child_is_found_signalled_awaited_and_reaped() {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(children_of(own).unwrap().contains(&pid));
        assert!(children_by_parent(own).unwrap().contains(&pid));

        let process = Process::open_any(pid).unwrap();
        assert!(!process.has_ended().unwrap());
        assert!(!process.wait(Some(Duration::from_millis(1))).unwrap());
        assert!(matches!(process.signal(65), Err(ProcessError::NoSuchSignal { signal: 65 })));
        process.signal(34).unwrap(); // A real-time signal kills like any other.
        assert!(process.wait(None).unwrap());
        assert_eq!(process.reap().unwrap(), Some(Ending::Killed(34)));
        assert_eq!(process.reap().unwrap(), None);
        assert!(matches!(process.signal(0), Err(ProcessError::Gone { .. })));
    }
}
