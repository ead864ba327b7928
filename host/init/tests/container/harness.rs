//! Shared by the tests: a root file system, and a container that is spawned, gets its plan, and is awaited.

use std::ffi::{CStr, OsString};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cofferdam_init::plan::{Plan, Root, flag};
use cofferdam_init::report::{RUNNING, Record, Status, Step};
use cofferdam_linux::image::Image;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::Process;
use cofferdam_linux::spawn::{Enter, Spawn, SpawnError};
use tempfile::TempDir;

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
            ..script_on_host(script, flag::MOUNT_NAMESPACE | flag::PID_NAMESPACE)
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

/// A container, from its spawn on.
pub struct Container {
    pub process: Process,
    pub control: UnixStream,
    output: File,
    status: File,
}

/// What a container reported after it got its plan.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Runs,
    Failed { step: Step, errno: i32, detail: String },
    None,
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

    pub fn spawn_with_output(clone: Namespaces, output: File) -> Self {
        Self::spawn_into(clone, None, &[], output).unwrap()
    }

    pub fn try_spawn(
        clone: Namespaces,
        enter: Option<Enter<'_>>,
        tasks: &[File],
    ) -> Result<Self, SpawnError> {
        Self::spawn_into(clone, enter, tasks, tempfile::tempfile().unwrap())
    }

    fn spawn_into(
        clone: Namespaces,
        enter: Option<Enter<'_>>,
        tasks: &[File],
        output: File,
    ) -> Result<Self, SpawnError> {
        let status = tempfile::tempfile().unwrap();
        let (control, theirs) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let arguments: [&CStr; 1] = [c"cofferdam-init"];
        let tasks: Vec<_> = tasks.iter().map(AsFd::as_fd).collect();
        let process = Spawn {
            image: image(),
            arguments: &arguments,
            descriptors: &[null.as_fd(), output.as_fd(), output.as_fd(), theirs.as_fd(), status.as_fd()],
            clone,
            enter,
            cgroup: None,
            tasks: &tasks,
        }
        .spawn()?;
        Ok(Self { process, control, output, status })
    }

    /// Closes the test's end of the output.
    pub fn close_output(&mut self) {
        self.output = tempfile::tempfile().unwrap();
    }

    /// Sends the plan and reads the answer to end of file.
    pub fn release(&mut self, plan: &Plan) -> Answer {
        self.send(&plan.encode().unwrap())
    }

    pub fn send(&mut self, message: &[u8]) -> Answer {
        self.control.write_all(message).unwrap();
        let mut answer = Vec::new();
        match self.control.read_to_end(&mut answer) {
            // Init ended without reading the whole plan.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => drop(other.unwrap()),
        }
        let (runs, rest) = match answer.split_first() {
            Some((&RUNNING, rest)) => (true, rest),
            _ => (false, &answer[..]),
        };
        match Record::parse(rest) {
            Some(Record { step, errno, detail }) => {
                Answer::Failed { step, errno, detail: String::from_utf8_lossy(detail).into_owned() }
            }
            None if runs => Answer::Runs,
            None => Answer::None,
        }
    }

    pub fn status(&mut self) -> Status {
        let mut text = Vec::new();
        self.status.rewind().unwrap();
        self.status.read_to_end(&mut text).unwrap();
        Status::parse(&text)
    }

    pub fn output(&mut self) -> String {
        let mut text = String::new();
        self.output.rewind().unwrap();
        self.output.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for init to end.
    pub fn end(mut self, answer: Answer) -> End {
        self.process.wait(None).unwrap();
        self.process.reap().unwrap();
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
        drop(self.process.wait(None).and_then(|_| self.process.reap()));
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
