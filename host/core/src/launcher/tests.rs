//! Launchers on the real kernel. Without root, tests that need it print that they are skipped; with `CI` set they fail.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use cofferdam_init::plan::Plan;
use cofferdam_init::report::Step;
use cofferdam_linux::cgroup::{Cgroup, CgroupError, Cgroups, Version};
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::{Process, Stat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    CgroupLimits, CgroupSetupError, CreateError, DestroyError, Destroyed, Enter, Launcher, Linux,
    PendingInit, Posix, SpawnRequest, StartError, Stdio, Timeouts,
};
use crate::blocking::WorkPool;
use crate::keeper::{KeeperCgroups, KeeperError, KeeperSlot, Keepers, ProcessEnd};
use cofferdam_plugin_model::ContainerId;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const TIMEOUT: Duration = Duration::from_secs(20);

const TIMEOUTS: Timeouts = Timeouts { launch: TIMEOUT, destroy: TIMEOUT };

const LIMITS: CgroupLimits = CgroupLimits { descendants: 100, depth: 40 };

/// A launcher and its cgroup, which is removed on drop.
struct TestLauncher {
    launcher: Box<dyn Launcher>,
    cgroups: Cgroups,
    top: Option<Cgroup>,
    _runtime_dir: TempDir,
}

impl TestLauncher {
    fn new(launcher: impl Launcher + 'static, cgroups: Cgroups, runtime_dir: TempDir) -> Self {
        let relative = launcher.cgroup(&id("x"));
        let top = relative.and_then(|path| {
            let path = path.parent()?;
            cgroups.unified(path).or_else(|| cgroups.cgroup("freezer", path))
        });
        Self { launcher: Box::new(launcher), cgroups, top, _runtime_dir: runtime_dir }
    }

    /// The container's cgroup.
    fn own(&self, id: &str) -> Cgroup {
        let relative = self.cgroup(id).unwrap();
        self.cgroups.unified(&relative).or_else(|| self.cgroups.cgroup("freezer", &relative)).unwrap()
    }
}

/// The launcher's methods, with ids as strings.
impl TestLauncher {
    fn name(&self) -> &'static str {
        self.launcher.name()
    }

    fn cgroup(&self, id: &str) -> Option<PathBuf> {
        self.launcher.cgroup(&self::id(id))
    }

    fn create_cgroup(&self, id: &str, controllers: &[&str]) -> Result<(), CgroupSetupError> {
        self.launcher.create_cgroup(&self::id(id), controllers)
    }

    fn create(&self, request: SpawnRequest<'_>) -> Result<PendingInit, CreateError> {
        self.launcher.create(request)
    }

    fn pids(&self, id: &str, first: Option<&Process>) -> Result<Vec<i32>, DestroyError> {
        self.launcher.pids(&self::id(id), first)
    }

    fn destroy(&self, id: &str, first: Option<&Process>) -> Result<(), DestroyError> {
        self.launcher.destroy(Destroyed { id: &self::id(id), first, is_setup: false, shares_host_pids: true })
    }

    fn cleanup(&self, id: &str) -> Result<(), DestroyError> {
        self.launcher.cleanup(&self::id(id))
    }

    fn end(&self, slot: &KeeperSlot, process: &Process) -> ProcessEnd {
        self.launcher.keepers().collect(slot, Some(process))
    }

    fn recover(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.launcher.recover().unwrap().iter().map(ToString::to_string).collect();
        ids.sort();
        ids
    }
}

fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

impl Drop for TestLauncher {
    fn drop(&mut self) {
        self.launcher.shutdown();
        let Some(top) = &self.top else { return };
        if std::thread::panicking() {
            drop(top.kill_all(TIMEOUT));
        }
        drop(top.remove(TIMEOUT));
        // Fails if another test has a cgroup in it.
        drop(top.path().parent().map(std::fs::remove_dir));
    }
}

/// The launchers that work on this machine: without root only one.
fn launchers() -> Vec<TestLauncher> {
    let mut all = vec![posix_launcher()];
    all.extend(linux_launchers());
    all
}

fn open_keepers(
    runtime_dir: &Path,
    cgroups: KeeperCgroups,
    kill_on_disconnect: bool,
) -> Result<Arc<Keepers>, KeeperError> {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    let work = WorkPool::on_demand(NonZeroUsize::MIN);
    Keepers::open(runtime_dir, cgroups, kill_on_disconnect, TIMEOUT, RUNTIME.handle().clone(), work)
}

fn posix_launcher() -> TestLauncher {
    posix_launcher_with(true)
}

fn posix_launcher_with(kill_on_disconnect: bool) -> TestLauncher {
    let runtime_dir = tempfile::tempdir().unwrap();
    let keepers = open_keepers(runtime_dir.path(), KeeperCgroups::default(), kill_on_disconnect).unwrap();
    TestLauncher::new(Posix::new(keepers, TIMEOUTS), Cgroups::default(), runtime_dir)
}

/// A launcher that tracks with v2 and one that tracks with the v1 freezer, each if the hierarchy is mounted.
fn linux_launchers() -> Vec<TestLauncher> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root; with CI set it must not be skipped");
        eprintln!("\n*** SKIPPED: the linux launcher needs root and was NOT tested ***\n");
        return Vec::new();
    }
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let detected = Cgroups::detect().unwrap();
    let without_v2 = Cgroups { unified: None, ..detected.clone() };
    let mut found = Vec::new();
    for cgroups in [detected, without_v2] {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let instance = format!("unit-{}-{number}", std::process::id());
        let root = Path::new("cofferdam-test");
        let runtime_dir = tempfile::tempdir().unwrap();
        let keepers = |cgroups| open_keepers(runtime_dir.path(), cgroups, true);
        match Linux::new(cgroups.clone(), root, &instance, keepers, TIMEOUTS, LIMITS) {
            Ok(launcher) => found.push(TestLauncher::new(launcher, cgroups, runtime_dir)),
            Err(error) => eprintln!("\n*** SKIPPED for one cgroup hierarchy: {error} ***\n"),
        }
    }
    assert!(!found.is_empty());
    found
}

fn script(script: &str) -> Plan {
    Plan {
        program: "/bin/busybox".into(),
        arguments: ["sh", "-c", script].map(OsString::from).to_vec(),
        environment: vec![("PATH".into(), "/bin:/usr/bin".into())],
        ..Plan::default()
    }
}

/// A container's files.
struct Files {
    null: File,
    output: File,
}

impl Files {
    fn new() -> Self {
        let null = File::open("/dev/null").unwrap();
        Self { null, output: tempfile::tempfile().unwrap() }
    }

    fn request(&self, id: &str) -> SpawnRequest<'_> {
        let stdio =
            Stdio { stdin: self.null.as_fd(), stdout: self.output.as_fd(), stderr: self.output.as_fd() };
        // A request borrows its id; leaking it is acceptable in a test.
        let id = Box::leak(Box::new(self::id(id)));
        SpawnRequest {
            id,
            stdio,
            clone: Namespaces::EMPTY,
            enter: None,
            cgroups: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    fn output(&mut self) -> String {
        let mut text = String::new();
        self.output.rewind().unwrap();
        self.output.read_to_string(&mut text).unwrap();
        text
    }
}

/// Starts a script with a pipe as its output, and waits until it has printed `count` lines.
fn start(
    launcher: &TestLauncher,
    files: &mut Files,
    id: &str,
    text: &str,
    count: usize,
) -> (Process, Vec<String>) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    files.output = writer.into();
    launcher.create_cgroup(id, &[]).unwrap();
    let process = launcher.create(files.request(id)).unwrap().start(script(text)).unwrap();
    files.output = tempfile::tempfile().unwrap();
    let lines = BufReader::new(File::from(reader)).lines().take(count).map(Result::unwrap).collect();
    (process, lines)
}

/// Whether a process with this pid has not ended.
fn is_running(pid: i32) -> bool {
    Stat::read(pid).is_ok_and(|stat| stat.state != 'Z')
}

#[test]
fn a_script_runs_to_its_end() {
    for launcher in launchers() {
        let mut files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        launcher.create_cgroup("pod", &[]).unwrap();
        let mut pending = launcher.create(files.request("pod")).unwrap();
        pending.wait_until_ready().unwrap();
        let setup = pending.process().pid();
        match &launcher.top {
            // It is in no cgroup of the container.
            Some(top) if top.version() == Version::V2 => {
                assert_eq!(launcher.pids("pod", Some(pending.process())).unwrap(), [0; 0]);
                assert!(top.child("keeper").procs().unwrap().contains(&setup));
            }
            _ => assert_eq!(launcher.pids("pod", Some(pending.process())).unwrap(), [setup]),
        }
        let slot = pending.slot().clone();
        let process = pending.start(script("echo hello; exit 3")).unwrap();
        assert!(process.wait(Some(TIMEOUT)).unwrap());
        assert_eq!(files.output(), "hello\n");
        assert_eq!(launcher.end(&slot, &process), ProcessEnd::Ended(3 << 8));
        for _ in 0..2 {
            launcher.destroy("pod", Some(&process)).unwrap();
            launcher.cleanup("pod").unwrap();
        }
        assert_eq!(launcher.recover(), [""; 0]);
    }
}

#[test]
fn a_keeper_is_in_a_cgroup_of_its_own() {
    for launcher in linux_launchers() {
        let keeper = launcher.top.as_ref().unwrap().child("keeper");
        assert_eq!(keeper.procs().unwrap(), launcher.launcher.keepers().pids());
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_an_error_and_leaves_no_process() {
    for launcher in launchers() {
        let files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        let pending = launcher.create(files.request("pod")).unwrap();
        let (slot, process) = (pending.slot().clone(), pending.process().try_clone().unwrap());
        let plan = Plan { program: "/etc/passwd".into(), ..Plan::default() };
        let Err(StartError::Failed { step, detail, source }) = pending.start(plan) else {
            panic!("it started")
        };
        assert_eq!((step, detail.as_str()), (Step::Exec, "/etc/passwd"));
        assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
        launcher.destroy("pod", Some(&process)).unwrap();
        assert_eq!(launcher.end(&slot, &process), ProcessEnd::NotStarted);
        launcher.cleanup("pod").unwrap();
    }
}

#[test]
fn an_abandoned_container_runs_nothing() {
    for launcher in launchers() {
        let files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        let pending = launcher.create(files.request("pod")).unwrap();
        let slot = pending.slot().clone();
        let process = pending.abandon();
        assert!(process.wait(Some(TIMEOUT)).unwrap());
        assert_eq!(launcher.end(&slot, &process), ProcessEnd::NotStarted);
        launcher.cleanup("pod").unwrap();
    }
}

/// As an agent leaves it that is killed while it ends the container.
#[test]
fn a_setup_process_that_was_stopped_ends_with_its_agent() {
    let launcher = posix_launcher_with(false);
    let files = Files::new();
    let pending = launcher.create(files.request("pod")).unwrap();
    let process = pending.process().try_clone().unwrap();
    process.signal(19).unwrap();
    while Stat::read(process.pid()).unwrap().state != 'T' {
        std::thread::yield_now();
    }
    drop(pending);
    launcher.launcher.shutdown();
    assert!(process.wait(Some(TIMEOUT)).unwrap());
}

#[test]
fn destroy_ends_a_waiting_start() {
    for launcher in launchers() {
        let files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        let pending = launcher.create(files.request("pod")).unwrap();
        let process = pending.process().try_clone().unwrap();
        process.signal(19).unwrap(); // Stopped, it never reads its plan.
        std::thread::scope(|scope| {
            let start = scope.spawn(|| pending.start(script("echo oops")));
            launcher.destroy("pod", Some(&process)).unwrap();
            assert!(matches!(start.join().unwrap(), Err(StartError::Died)));
        });
        launcher.cleanup("pod").unwrap();
    }
}

/// The first process may be killed before, during or after the fork of its task, which must not stay behind.
#[test]
fn destroy_can_interrupt_a_start_at_any_moment() {
    for launcher in launchers() {
        for moment in 0..200 {
            let mut files = Files::new();
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            files.output = writer.into();
            launcher.create_cgroup("pod", &[]).unwrap();
            let pending = launcher.create(files.request("pod")).unwrap();
            drop(files);
            let process = pending.process().try_clone().unwrap();
            std::thread::scope(|scope| {
                let start = scope.spawn(|| pending.start(script("sleep 1000")).map(drop));
                (0..moment * 100).for_each(|_| std::hint::spin_loop());
                launcher.destroy("pod", Some(&process)).unwrap();
                drop(start.join().unwrap());
            });
            // Hangs up when no process has the write end open.
            let mut ends = [PollFd::new(&reader, PollFlags::IN)];
            let hung_up = poll(&mut ends, Some(&Timespec::default())).unwrap();
            let events = ends[0].revents();
            assert!(hung_up == 1 && events.contains(PollFlags::HUP), "{} at {moment}", launcher.name());
            launcher.cleanup("pod").unwrap();
        }
    }
}

#[test]
fn destroy_finds_daemonised_processes() {
    for launcher in launchers() {
        let mut files = Files::new();
        // Double-forked, in its own session, without any open file of the container.
        let text = "( setsid sh -c 'exec </dev/null 2>/dev/null; echo $$; exec sleep 1000 >/dev/null' & ) ; sleep 1000";
        let (process, lines) = start(&launcher, &mut files, "pod", text, 1);
        let daemon: i32 = lines[0].parse().unwrap();
        assert!(is_running(daemon));
        assert!(launcher.pids("pod", Some(&process)).unwrap().contains(&daemon));
        launcher.destroy("pod", Some(&process)).unwrap();
        assert!(!is_running(daemon), "{}", launcher.name());
        assert!(process.has_ended().unwrap());
        launcher.cleanup("pod").unwrap();
    }
}

#[test]
fn processes_that_remain_after_the_task_are_destroyed() {
    for launcher in launchers() {
        let mut files = Files::new();
        let text = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
        let (process, lines) = start(&launcher, &mut files, "pod", text, 1);
        let daemon: i32 = lines[0].parse().unwrap();
        assert!(process.wait(Some(TIMEOUT)).unwrap());
        launcher.destroy("pod", Some(&process)).unwrap();
        assert!(!is_running(daemon), "{}", launcher.name());
        launcher.cleanup("pod").unwrap();
    }
}

/// A command of the posix launcher can stop its first process if both have the same user.
#[test]
fn destroy_does_not_wait_for_a_first_process_that_was_stopped() {
    let launcher = posix_launcher();
    let mut files = Files::new();
    // Not before the start has been reported by the process that will be stopped.
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let text = format!("until test -e {}; do sleep 0.01; done; kill -STOP $PPID; sleep 1000", go.display());
    let (process, _) = start(&launcher, &mut files, "pod", &text, 0);
    File::create(go).unwrap();
    while Stat::read(process.pid()).unwrap().state != 'T' {
        std::thread::yield_now();
    }
    launcher.destroy("pod", Some(&process)).unwrap();
    assert!(process.has_ended().unwrap());
    launcher.cleanup("pod").unwrap();
}

/// Each of these processes forks its successor and exits, so a list of pids is outdated before they can be killed.
#[test]
fn destroy_kills_processes_that_keep_forking() {
    for launcher in launchers() {
        let mut files = Files::new();
        let hop = r#"export S='sh -c "$S" & exit 0'; for i in 1 2 3 4 5 6 7 8; do sh -c "$S"; done; echo go; sleep 1000"#;
        let (process, lines) = start(&launcher, &mut files, "pod", hop, 1);
        assert_eq!(lines, ["go"]);
        launcher.destroy("pod", Some(&process)).unwrap();
        assert!(process.has_ended().unwrap());
        let left = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let environment = std::fs::read(entry.ok()?.path().join("environ")).ok()?;
            environment.windows(14).any(|bytes| bytes == b"S=sh -c \"$S\" &").then_some(())
        });
        assert_eq!(left.count(), 0, "{}", launcher.name());
        launcher.cleanup("pod").unwrap();
    }
}

#[test]
fn destroy_and_cleanup_of_an_unknown_container_succeed() {
    for launcher in launchers() {
        launcher.destroy("never.seen", None).unwrap();
        launcher.cleanup("never.seen").unwrap();
    }
}

#[test]
fn recover_finds_the_cgroups_of_its_own_instance_only() {
    for launcher in linux_launchers() {
        for id in ["pod", "pod.web", "tasks", "pod.web.deep"] {
            launcher.create_cgroup(id, &[]).unwrap();
        }
        launcher.top.as_ref().unwrap().child("stray").create().unwrap();
        assert_eq!(launcher.recover(), ["pod", "pod.web", "pod.web.deep", "tasks"]);
        for other in linux_launchers() {
            assert_eq!(other.recover(), [""; 0]);
        }
        launcher.cleanup("pod").unwrap();
        assert_eq!(launcher.recover(), ["tasks"]);
    }
}

/// Its processes may be permitted to create some. Each takes memory of the kernel.
#[test]
fn the_cgroups_below_that_of_a_container_are_limited_on_v2() {
    for launcher in linux_launchers() {
        launcher.create_cgroup("pod", &[]).unwrap();
        let own = launcher.own("pod");
        if own.version() == Version::V2 {
            let last = (0..LIMITS.descendants).map(|index| own.child(format!("b{index}")));
            last.clone().for_each(|below| below.create().unwrap());
            let error = own.child("more").create().unwrap_err();
            assert!(matches!(error, CgroupError::Full { .. }), "{error}");
            let error = launcher.create_cgroup("pod.web", &[]).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("`cgroup.max.descendants`"), "{source}");
            last.for_each(|below| below.remove(TIMEOUT).unwrap());
            own.child("d/".repeat(LIMITS.depth as usize)).create().unwrap();
            assert!(own.child("d/".repeat(LIMITS.depth as usize + 1)).create().is_err());
        }
        launcher.cleanup("pod").unwrap();
    }
}

#[test]
fn a_container_is_destroyed_without_its_first_process() {
    for launcher in linux_launchers() {
        let mut files = Files::new();
        let (process, _) = start(&launcher, &mut files, "pod", "echo up; sleep 1000", 1);
        launcher.destroy("pod", None).unwrap();
        assert!(process.has_ended().unwrap());
        launcher.cleanup("pod").unwrap();
    }
}

fn wait_for_pids(launcher: &TestLauncher, id: &str, expected: &[i32]) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let pids = launcher.pids(id, None).unwrap();
        if pids == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{pids:?}, not {expected:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_nested_container_is_destroyed_alone_or_with_its_parent() {
    for launcher in linux_launchers() {
        let own = Namespaces::from_iter([Namespace::Pid, Namespace::Mount]);
        let mut started = Vec::new();
        let files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        let pending = launcher.create(SpawnRequest { clone: own, ..files.request("pod") }).unwrap();
        let parent = pending.start(script("sleep 1000")).unwrap();
        for id in ["pod.a", "pod.b"] {
            launcher.create_cgroup(id, &[]).unwrap();
            let enter = Enter { process: &parent, namespaces: own };
            let pending = launcher.create(SpawnRequest { enter: Some(enter), ..files.request(id) }).unwrap();
            started.push(pending.start(script("sleep 1000")).unwrap());
        }
        // Until it has ended, a setup process is there as well.
        wait_for_pids(&launcher, "pod", &[parent.pid()]);
        wait_for_pids(&launcher, "pod.a", &[started[0].pid()]);

        launcher.destroy("pod.a", Some(&started[0])).unwrap();
        assert!(started[0].has_ended().unwrap());
        assert!(!started[1].has_ended().unwrap());
        launcher.cleanup("pod.a").unwrap();
        launcher.destroy("pod", Some(&parent)).unwrap();
        assert!(started[1].wait(Some(TIMEOUT)).unwrap());
        launcher.cleanup("pod").unwrap();
        for process in started.iter().chain([&parent]) {
            assert!(process.wait(Some(TIMEOUT)).unwrap());
        }
    }
}

/// A v2 cgroup with controllers enabled for its children must not contain processes. Here the parent already runs when
/// the first nested container needs controllers.
#[test]
fn the_processes_of_a_running_parent_move_into_the_leaf() {
    for launcher in linux_launchers() {
        let Some(controller) = launcher.cgroups.unified.as_ref().and_then(|v2| v2.controllers.first()) else {
            continue;
        };
        let files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        let parent = launcher.create(files.request("pod")).unwrap().start(script("sleep 1000")).unwrap();
        // A v1 controller needs no move, and an unknown one is an error.
        let legacy = launcher.cgroups.legacy.iter().flat_map(|hierarchy| &hierarchy.controllers);
        let legacy = legacy.filter(|controller| !controller.starts_with("name=")).take(1);
        let controllers: Vec<&str> = legacy.chain([controller]).map(String::as_str).collect();
        let error =
            launcher.create_cgroup("pod.web", &[&controllers[..], &["no-such"]].concat()).unwrap_err();
        assert!(matches!(error, CgroupSetupError::NoController { .. }), "{error}");
        launcher.create_cgroup("pod.web", &controllers).unwrap();
        let available = launcher.own("pod.web").read("cgroup.controllers").unwrap();
        assert_eq!(available, *controller);
        assert_eq!(launcher.pids("pod", None).unwrap(), [parent.pid()], "it is in the leaf");
        let nested = launcher.create(files.request("pod.web")).unwrap().start(script("sleep 1000")).unwrap();
        assert_eq!(launcher.recover(), ["pod", "pod.web"]);
        launcher.destroy("pod", Some(&parent)).unwrap();
        assert!(nested.wait(Some(TIMEOUT)).unwrap());
        launcher.cleanup("pod").unwrap();
    }
}

#[test]
fn a_container_is_created_in_the_requested_v1_cgroups() {
    for launcher in linux_launchers() {
        let relative = launcher.cgroup("pod").unwrap();
        let pids = launcher.cgroups.cgroup("pids", &relative);
        let Some(pids) = pids.filter(|pids| pids.version() == Version::V1) else { continue };
        pids.create().unwrap();
        let mut files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        let request = SpawnRequest { cgroups: vec![pids.path().to_owned()], ..files.request("pod") };
        let pending = launcher.create(request).unwrap();
        assert!(pids.procs().unwrap().is_empty(), "the setup is not limited by them");
        let process = pending.start(script("cat /proc/self/cgroup")).unwrap();
        assert!(process.wait(Some(TIMEOUT)).unwrap());
        let line = format!("pids:/{}", relative.display());
        assert!(files.output().contains(&line), "{}", files.output());
        launcher.destroy("pod", Some(&process)).unwrap();
        launcher.cleanup("pod").unwrap();
        for level in pids.path().ancestors().take(3) {
            drop(std::fs::remove_dir(level));
        }
    }
}

#[test]
fn a_missing_cgroup_is_named() {
    for launcher in linux_launchers() {
        let files = Files::new();
        launcher.create_cgroup("pod", &[]).unwrap();
        // In no hierarchy of v2.
        let request = SpawnRequest { cgroups: vec!["/no/such/cgroup".into()], ..files.request("pod") };
        let error = launcher.create(request).map(PendingInit::abandon).unwrap_err();
        let CreateError::Cgroup { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains("/no/such/cgroup/tasks"), "{source}");
        launcher.cleanup("pod").unwrap();
    }
}

#[test]
fn the_posix_launcher_refuses_what_it_does_not_support() {
    let posix = posix_launcher();
    let files = Files::new();
    let clone = Namespaces::EMPTY.with(Namespace::Pid);
    let request = SpawnRequest { clone, ..files.request("pod") };
    let error = posix.create(request).map(PendingInit::abandon).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the `posix` launcher cannot give container `pod` its own namespaces (pid); use the `linux` launcher"
    );
    let request = SpawnRequest { cgroups: vec!["/x".into()], ..files.request("pod") };
    assert!(matches!(posix.create(request), Err(CreateError::Unsupported { .. })));
}
