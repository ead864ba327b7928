//! Shared by the tests: a root file system, and a container that is spawned, gets its plan, and is awaited.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cofferdam_init::client::{self, Connection, Control, Outcome, RequestError, Spawned, Statuses};
use cofferdam_init::plan::{Plan, Root, flag};
use cofferdam_init::protocol::{self, Slot, State};
use cofferdam_init::report::{Record, Step};
use cofferdam_linux::image::Image;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;
use cofferdam_linux::spawn::Spawn;
use tempfile::TempDir;

/// Limit for whatever does not depend on the container.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Whether tests that need root can run; prints a message if not.
pub fn privileged() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "this test needs root; with CI set it must not be skipped");
    eprintln!("\n*** SKIPPED: this test needs root and was NOT run ***\n");
    false
}

pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| Image::seal("cofferdam-init", cofferdam_init::IMAGE).unwrap())
}

/// New mount and pid namespaces, as nearly every container has.
pub fn own() -> Namespaces {
    Namespaces::from_iter([Namespace::Mount, Namespace::Pid])
}

/// A temporary directory with a root file system.
pub struct Fixture {
    pub directory: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        let rootfs = fixture.rootfs();
        for name in ["bin", "dev", "proc", "tmp", "etc"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "true", "false", "cat", "echo", "ls", "sleep", "kill", "id", "ps", "test", "touch", "mount",
        ] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fixture
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// A plan that runs a shell script in the rootfs.
    pub fn script(&self, script: &str) -> Plan {
        Plan {
            root: Root::Directory(self.rootfs()),
            ..script_on_host(script, flag::MOUNT_NAMESPACE | flag::REAPER)
        }
    }
}

/// A plan that runs a shell script in the host's file system.
pub fn script_on_host(script: &str, flags: u32) -> Plan {
    Plan {
        flags,
        umask: 0o22,
        program: "/bin/busybox".into(),
        arguments: ["sh", "-c", script].map(OsString::from).to_vec(),
        environment: vec![("PATH".into(), "/bin:/usr/bin".into())],
        ..Plan::default()
    }
}

/// A keeper of its own for each test, which ends with it.
pub struct Keeper {
    pub process: Process,
    pub connection: Connection,
    pub statuses: Statuses,
    pub directory: TempDir,
}

impl Keeper {
    pub fn start() -> Self {
        Self::start_with(true)
    }

    /// A keeper that outlives its connection, or does not.
    pub fn start_with(kill_on_disconnect: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = client::listener(&directory.path().join("socket")).unwrap();
        let statuses = Statuses::create(&directory.path().join("statuses")).unwrap();
        let (connection, theirs) = Connection::pair(TIMEOUT).unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let null = null.as_fd();
        let process = Spawn {
            image: image(),
            arguments: &[c"cofferdam-keeper"],
            descriptors: &[null, null, null, listener.as_fd(), statuses.as_fd(), theirs.as_fd()],
            cgroup: None,
            tasks: &[],
        }
        .spawn()
        .unwrap();
        connection.hello(kill_on_disconnect).unwrap();
        Self { process, connection, statuses, directory }
    }

    /// Closes the connection, as when the agent ends.
    pub fn disconnect(&self) {
        rustix::net::shutdown(&self.connection, rustix::net::Shutdown::Both).unwrap();
    }

    /// Another connection, once the first is closed.
    pub fn connect(&self) -> Connection {
        Connection::open(&self.directory.path().join("socket"), TIMEOUT).unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait(None).and_then(|_| self.process.reap()));
    }
}

/// Namespaces of another process to join.
#[derive(Clone, Copy)]
pub struct Enter<'a> {
    pub process: &'a Process,
    pub namespaces: Namespaces,
}

/// A container, from its spawn on.
pub struct Container {
    pub keeper: Arc<Keeper>,
    pub slot: Slot,
    /// The setup process, and then the container's first process.
    pub process: Process,
    pub control: Control,
    output: File,
}

/// What a container reported after it got its plan.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Runs,
    Failed { step: Step, errno: i32, detail: String },
    None,
}

/// What the keeper recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ended(i32),
    NotStarted,
}

/// How a container ended.
#[derive(Debug)]
pub struct End {
    pub answer: Answer,
    pub output: String,
    pub status: Status,
}

impl Container {
    pub fn spawn(clone: Namespaces, enter: Option<Enter<'_>>) -> Self {
        Self::try_spawn(clone, enter, &[]).unwrap()
    }

    pub fn spawn_with(keeper: Arc<Keeper>, clone: Namespaces, output: File) -> Self {
        Self::spawn_into(keeper, clone, None, &[], output).unwrap()
    }

    pub fn try_spawn(
        clone: Namespaces,
        enter: Option<Enter<'_>>,
        tasks: &[File],
    ) -> Result<Self, RequestError> {
        Self::spawn_into(Arc::new(Keeper::start()), clone, enter, tasks, tempfile::tempfile().unwrap())
    }

    /// Without namespaces, the setup process stays as the parent of the command, as with the posix launcher.
    fn spawn_into(
        keeper: Arc<Keeper>,
        clone: Namespaces,
        enter: Option<Enter<'_>>,
        tasks: &[File],
        output: File,
    ) -> Result<Self, RequestError> {
        let (control, theirs) = Control::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let mut descriptors = vec![null.as_fd(), output.as_fd(), output.as_fd(), theirs.as_fd()];
        descriptors.extend(enter.map(|enter| enter.process.as_fd()));
        descriptors.extend(tasks.iter().map(AsFd::as_fd));
        let spawn = protocol::Spawn {
            create: clone.bits(),
            enter: enter.map_or(0, |enter| enter.namespaces.bits()),
            early_tasks: u32::try_from(tasks.len()).unwrap(),
            stays: clone.is_empty() && enter.is_none(),
            ..protocol::Spawn::default()
        };
        let Spawned { slot, pid, pidfd } = keeper.connection.spawn(spawn, &descriptors)?;
        let process = Process::from_spawned(pid, pidfd);
        Ok(Self { keeper, slot, process, control, output })
    }

    /// Closes the test's end of the output.
    pub fn close_output(&mut self) {
        self.output = tempfile::tempfile().unwrap();
    }

    /// Sends the plan and waits for the answer.
    pub fn release(&mut self, plan: &Plan) -> Answer {
        self.send(&plan.encode().unwrap())
    }

    pub fn send(&mut self, message: &[u8]) -> Answer {
        let deadline = Instant::now() + TIMEOUT;
        self.control.send_plan(message, deadline).unwrap();
        self.answer(deadline)
    }

    fn answer(&mut self, deadline: Instant) -> Answer {
        match self.control.outcome(deadline).unwrap() {
            Outcome::Started { pid, pidfd } => {
                self.process = Process::from_spawned(pid, pidfd);
                Answer::Runs
            }
            Outcome::Failed(record) => {
                let Record { step, errno, detail } = Record::parse(&record).unwrap();
                Answer::Failed { step, errno, detail: String::from_utf8_lossy(detail).into_owned() }
            }
            Outcome::Ended => Answer::None,
            Outcome::TimedOut => panic!("no answer"),
        }
    }

    /// What the keeper recorded of a container that has ended.
    pub fn status(&self) -> Status {
        let status = |answer| match answer {
            (State::Ended | State::Exited, status) => Status::Ended(status),
            (State::NotStarted, _) => Status::NotStarted,
            other => panic!("{other:?}"),
        };
        let answer = status(self.keeper.connection.collect(self.slot).unwrap());
        let recorded = self.keeper.statuses.read(self.slot).unwrap().unwrap();
        assert_eq!(status((recorded.state, recorded.status)), answer);
        answer
    }

    pub fn output(&mut self) -> String {
        let mut text = String::new();
        self.output.rewind().unwrap();
        self.output.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for the first process to end.
    pub fn end(mut self, answer: Answer) -> End {
        self.process.wait(None).unwrap();
        End { answer, output: self.output(), status: self.status() }
    }
}

/// A test that fails leaves no process behind.
impl Drop for Container {
    fn drop(&mut self) {
        let below = self.process.children().unwrap_or_default();
        for process in below.into_iter().filter_map(|pid| Process::open_any(pid).ok()) {
            drop(process.kill());
        }
        drop(self.process.kill());
    }
}

/// Runs a plan in new namespaces to its end.
pub fn run(clone: Namespaces, plan: &Plan) -> End {
    let mut container = Container::spawn(clone, None);
    let answer = container.release(plan);
    container.end(answer)
}

/// Runs a plan in new mount and pid namespaces, expects exit status 0, and returns its output.
pub fn prints(plan: &Plan) -> String {
    let end = run(own(), plan);
    assert_eq!(end.answer, Answer::Runs, "{end:?}");
    assert_eq!(end.status, Status::Ended(0), "{end:?}");
    end.output
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub fn write(path: impl AsRef<Path>, content: &str) {
    fs::write(path, content).unwrap();
}
