//! Measures the cost of `Spawn::spawn` and of the ways to join cgroups. Prints medians in microseconds.
//!
//! Needs root. `spawn_cost 150` waits 150 ms between spawns, as on an idle machine, where no other process shares the
//! kernel's grace periods; without an argument there is no pause.

#![allow(clippy::unwrap_used, reason = "a measurement that fails has no result")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_init::plan::{Attributes, Operation, Plan, Root, flag};
use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_linux::image::Image;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_linux::process::{Ending, Process};
use cofferdam_linux::spawn::{Enter, Spawn};
use tempfile::TempDir;

fn main() {
    let pause = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let benchmark = Benchmark::new(Duration::from_millis(pause));
    let four = Namespaces::from_iter([Namespace::Pid, Namespace::Mount, Namespace::Ipc, Namespace::Uts]);
    let none = Namespaces::EMPTY;

    println!("pause {pause} ms, {} MiB of agent memory", Benchmark::BALLAST >> 20);
    benchmark.report("clone3, no namespaces", |benchmark| benchmark.time_spawn(none, &[], None));
    benchmark.report("fork and exec by std (copies page tables)", Benchmark::forked);
    benchmark.report("posix_spawn by std", Benchmark::spawned);
    benchmark.report("clone3, 4 namespaces", |benchmark| benchmark.time_spawn(four, &[], None));
    if let Some(v2) = benchmark.v2() {
        benchmark.report("clone3, CLONE_INTO_CGROUP", |benchmark| benchmark.time_spawn(none, &[], Some(&v2)));
        benchmark.report("clone3, 4 namespaces, CLONE_INTO_CGROUP", |benchmark| {
            benchmark.time_spawn(four, &[], Some(&v2))
        });
        benchmark.report("clone3, then v2 cgroup.procs", |benchmark| benchmark.moved(&[&v2]));
        benchmark.remove(&[v2]);
    }
    for controllers in [&["freezer"][..], &["freezer", "cpu", "cpuacct", "memory", "pids", "devices"]] {
        let v1: Vec<Cgroup> = controllers.iter().filter_map(|name| benchmark.v1(name)).collect();
        let all: Vec<&Cgroup> = v1.iter().collect();
        let count = v1.len();
        benchmark.report(&format!("clone3, child writes 0 to {count} tasks"), |benchmark| {
            benchmark.time_spawn(none, &all, None)
        });
        benchmark.report(&format!("clone3, then {count} cgroup.procs"), |benchmark| benchmark.moved(&all));
        if let Some(v2) = benchmark.v2() {
            benchmark.report(&format!("clone3, CLONE_INTO_CGROUP and {count} tasks"), |benchmark| {
                benchmark.time_spawn(none, &all, Some(&v2))
            });
            benchmark.remove(&[v2]);
        }
        benchmark.remove(&v1);
    }
    benchmark.report("complete run of `busybox true` by posix_spawn", |_| {
        let start = Instant::now();
        assert!(Command::new("/bin/busybox").arg("true").status().unwrap().success());
        start.elapsed()
    });
    benchmark
        .report("complete run of `busybox true`, no namespaces", |benchmark| benchmark.time_run(none, None));
    let rootfs = Benchmark::rootfs();
    let root = rootfs.path();
    benchmark.report("complete run of `busybox true`, 4 namespaces, rootfs, /proc", |benchmark| {
        benchmark.time_run(four, Some(root))
    });
    let (parent, _control) = benchmark.spawn(four, None, &[], None);
    benchmark.report("clone3, 4 namespaces entered", |benchmark| {
        let enter = Enter { process: &parent, namespaces: four };
        benchmark.end(benchmark.timed(|| benchmark.spawn(none, Some(enter), &[], None)))
    });
}

struct Benchmark {
    image: Image,
    null: File,
    pause: Duration,
    _ballast: Vec<u8>,
}

/// A process, its control socket, and how long its creation took.
type Timed = ((Process, UnixStream), Duration);

impl Benchmark {
    const ITERATIONS: usize = 31;
    const BALLAST: usize = 64 << 20;

    fn new(pause: Duration) -> Self {
        let image = Image::seal("cofferdam-init", cofferdam_init::IMAGE).unwrap();
        // An agent uses memory, and a fork copies its page tables.
        let ballast = vec![1; Self::BALLAST];
        Self {
            image,
            null: File::options().read(true).write(true).open("/dev/null").unwrap(),
            pause,
            _ballast: ballast,
        }
    }

    fn report(&self, what: &str, mut iteration: impl FnMut(&Self) -> Duration) {
        let mut times: Vec<_> = (0..Self::ITERATIONS)
            .map(|_| {
                thread::sleep(self.pause);
                iteration(self).as_micros()
            })
            .collect();
        times.sort_unstable();
        let (median, worst) = (times[Self::ITERATIONS / 2], times[Self::ITERATIONS * 9 / 10]);
        println!("{median:>7} (p90 {worst:>6})  {what}");
    }

    fn spawn(
        &self,
        clone: Namespaces,
        enter: Option<Enter<'_>>,
        v1: &[&Cgroup],
        v2: Option<&Cgroup>,
    ) -> (Process, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let tasks: Vec<_> = v1.iter().map(|cgroup| cgroup.tasks().unwrap()).collect();
        let tasks: Vec<_> = tasks.iter().map(AsFd::as_fd).collect();
        let cgroup = v2.map(|cgroup| cgroup.directory().unwrap());
        let null = self.null.as_fd();
        let request = Spawn {
            image: &self.image,
            arguments: &[c"cofferdam-init"],
            descriptors: &[null, null, null, theirs.as_fd(), null],
            clone,
            enter,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            tasks: &tasks,
        };
        (request.spawn().unwrap(), ours)
    }

    fn timed(&self, spawn: impl FnOnce() -> (Process, UnixStream)) -> Timed {
        let start = Instant::now();
        let spawned = spawn();
        (spawned, start.elapsed())
    }

    fn end(&self, ((process, control), time): Timed) -> Duration {
        drop(control);
        process.wait(None).unwrap();
        process.reap().unwrap();
        time
    }

    fn time_spawn(&self, clone: Namespaces, v1: &[&Cgroup], v2: Option<&Cgroup>) -> Duration {
        self.end(self.timed(|| self.spawn(clone, None, v1, v2)))
    }

    /// Spawned first, then moved by the parent.
    fn moved(&self, cgroups: &[&Cgroup]) -> Duration {
        self.end(self.timed(|| {
            let spawned = self.spawn(Namespaces::EMPTY, None, &[], None);
            cgroups.iter().for_each(|cgroup| cgroup.adopt(spawned.0.pid()).unwrap());
            spawned
        }))
    }

    /// From before the spawn until the program has ended.
    fn time_run(&self, clone: Namespaces, root: Option<&Path>) -> Duration {
        let mut plan =
            Plan { program: "/bin/busybox".into(), arguments: vec!["true".into()], ..Plan::default() };
        if clone.contains(Namespace::Pid) {
            plan.flags |= flag::PID_NAMESPACE | flag::MOUNT_NAMESPACE;
        }
        if let Some(root) = root {
            plan.root = Root::Directory(root.to_owned());
            plan.operations.push(Operation::Filesystem {
                kind: "proc".into(),
                target: "/proc".into(),
                attributes: Attributes::default(),
                options: Vec::new(),
            });
        }
        let start = Instant::now();
        let (process, mut control) = self.spawn(clone, None, &[], None);
        control.write_all(&plan.encode().unwrap()).unwrap();
        process.wait(None).unwrap();
        let time = start.elapsed();
        assert_eq!(process.reap().unwrap(), Some(Ending::Exited(0)));
        time
    }

    fn rootfs() -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("bin")).unwrap();
        fs::copy("/bin/busybox", directory.path().join("bin/busybox")).unwrap();
        directory
    }

    fn forked(&self) -> Duration {
        let mut command = self.command();
        // With a change of identity std forks; otherwise it uses posix_spawn(3).
        command.gid(0);
        Self::run(command)
    }

    fn spawned(&self) -> Duration {
        Self::run(self.command())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.image.as_fd().as_raw_fd()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(mut command: Command) -> Duration {
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        let time = start.elapsed();
        child.wait().unwrap();
        time
    }

    fn relative() -> PathBuf {
        format!("spawn-cost-{}", std::process::id()).into()
    }

    fn v1(&self, controller: &str) -> Option<Cgroup> {
        let cgroup = Cgroups::detect().unwrap().cgroup(controller, Self::relative())?;
        (cgroup.version() == Version::V1).then(|| cgroup.create().unwrap())?;
        Some(cgroup)
    }

    fn v2(&self) -> Option<Cgroup> {
        let cgroup = Cgroups::detect().unwrap().unified(Self::relative())?;
        cgroup.create().unwrap();
        Some(cgroup)
    }

    fn remove(&self, cgroups: &[Cgroup]) {
        for cgroup in cgroups {
            cgroup.remove(Duration::from_secs(5)).unwrap();
            assert!(fs::metadata(cgroup.path()).is_err());
        }
    }
}
