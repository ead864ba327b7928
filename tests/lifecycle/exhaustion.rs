//! An agent that runs out of what the kernel limits.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam::api::operator::types::Reason;
use cofferdam_core::model::{Request, Resources};
use cofferdam_linux::cgroup::{Cgroup, Cgroups, Version};
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::world::World;
use cofferdam_tests::{assert_contains, is_root, virtual_machine, wait_for_text};
use nix::sys::signal::Signal;

use super::restarts::stdout;
use super::{COUNTING, assert_keeps_counting, assert_nothing_left, id, request};

/// A cgroup around an agent, which limits the number of its processes and threads and of all that it starts.
struct Pids(PathBuf);

impl Pids {
    /// `others` are processes of the agent.
    fn around(daemon: &Daemon, others: &[i32]) -> Option<Self> {
        let machine = Cgroups::detect().unwrap();
        let (hierarchy, _) = machine.hierarchy("pids")?;
        let path = hierarchy.mount.join(format!("cofferdam-test-pids-{}", daemon.pid()));
        fs::create_dir(&path).unwrap();
        let pids = Self(path);
        for pid in others.iter().chain([&daemon.pid()]) {
            pids.set("cgroup.procs", &pid.to_string());
        }
        Some(pids)
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }

    /// Allows so many more than there are.
    fn allow(&self, more: usize) {
        let current: usize = fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap();
        self.set("pids.max", &(current + more).to_string());
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        drop(Cgroup::at(self.0.clone(), Version::V1).remove(TIMEOUT));
    }
}

/// Containers count as well.
#[test]
fn an_agent_that_can_create_no_processes_refuses_launches_and_ends_containers() {
    if !is_root("a cgroup around the agent") {
        return;
    }
    // A launch creates the setup process and the command, and process 1 of a pid namespace. Containers of these have no limit
    // of their own.
    for (world, created) in [(World::privileged(), 3), (World::posix(), 2)] {
        refuses_launches_and_ends_containers(&world, created);
    }
}

fn refuses_launches_and_ends_containers(world: &World, created: usize) {
    let daemon = Daemon::start(world);
    let [web, other] = ["web", "other"].map(|name| request(world, name, COUNTING));
    // It starts no processes, which it could not in the cgroup.
    let new = request(world, "new", "exec sleep 1000");
    daemon.launch(&web).unwrap();
    daemon.launch(&other).unwrap();
    let Some(pids) = Pids::around(&daemon, &[daemon.keeper().pid()]) else {
        eprintln!("SKIPPED: this machine has no `pids` controller");
        return;
    };
    for more in 0..created {
        pids.allow(more);
        let Err(CallError::Status(500, message)) = daemon.launch(&new) else { panic!("{more}: launched") };
        assert_contains(&message, &["`new`", "no more processes or threads", "`pids.max`"]);
        assert!(daemon.inspect(&new.id).is_none(), "{more}");
    }
    pids.allow(0);
    assert_keeps_counting(&stdout(&daemon, &web.id));
    assert_eq!(daemon.list().len(), 2);
    assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9));
    daemon.remove(&web.id).unwrap();
    daemon.signal(&other.id, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait(&other.id).unwrap().exit_status, Some(15));
    daemon.remove(&other.id).unwrap();

    pids.set("pids.max", "max");
    daemon.launch(&new).unwrap();
    pids.allow(0);
    assert_eq!(daemon.destroy(&new.id).unwrap().exit_status, Some(9));
    daemon.remove(&new.id).unwrap();
    assert!(daemon.terminate().success());
    assert_nothing_left(world, &"in the end");
}

/// It has only the threads that it started with.
#[test]
fn an_agent_that_never_could_create_a_thread_ends_containers_of_the_one_before() {
    if !is_root("a cgroup around the agent") {
        return;
    }
    for world in [World::privileged(), World::posix()] {
        ends_containers_of_the_one_before(&world);
    }
}

fn ends_containers_of_the_one_before(world: &World) {
    let daemon = Daemon::start(world);
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        daemon.launch(&request(world, name, "exec sleep 1000")).unwrap();
    }
    daemon.kill();
    let daemon = Daemon::start(world);
    let Some(pids) = Pids::around(&daemon, &[]) else {
        eprintln!("SKIPPED: this machine has no `pids` controller");
        return;
    };
    pids.allow(0);
    assert_eq!(daemon.list().len(), names.len());
    std::thread::scope(|scope| {
        for name in names {
            let daemon = &daemon;
            scope.spawn(move || {
                assert_eq!(daemon.destroy(&id(name)).unwrap().exit_status, Some(9), "{name}");
                daemon.remove(&id(name)).unwrap();
            });
        }
    });
    assert!(daemon.list().is_empty());
    assert!(daemon.terminate().success());
    assert_nothing_left(world, &"in the end");
}

/// How many descriptors the processes of a user may have watched by epoll(7).
const MAX_WATCHES: &str = "/proc/sys/fs/epoll/max_user_watches";

/// No user may have more descriptors watched than now, until this is dropped.
struct NoWatches(String);

impl NoWatches {
    fn set() -> Self {
        let before = fs::read_to_string(MAX_WATCHES).unwrap();
        fs::write(MAX_WATCHES, "0").unwrap();
        Self(before)
    }
}

impl Drop for NoWatches {
    fn drop(&mut self) {
        drop(fs::write(MAX_WATCHES, &self.0));
    }
}

/// A container that exceeds its memory when there is a line in the pipe `go` of its sandbox, and does not end by itself.
fn exceeding(world: &World, name: &str) -> Request {
    let line = "busybox mkfifo go && echo ready && read line < go; busybox tail /dev/zero; while :; do sleep 1000; done";
    let mut request = request(world, name, line);
    request.resources = Resources::default().with("cpus", 0.5).with("mem", 32.0);
    request
}

/// Root in a container can have as many descriptors watched as the agent, if it is the same user: then nothing is left for the
/// agent, as for every other process of root. So only in a virtual machine.
#[test]
fn an_agent_whose_descriptors_the_kernel_does_not_watch_launches_and_ends_containers() {
    if !virtual_machine::is_inside() {
        eprintln!("SKIPPED: it takes all watches of root; the tests of the virtual machines have it");
        return;
    }
    let world = World::shipped();
    let daemon = Daemon::start(&world);
    let web = request(&world, "web", COUNTING);
    let before = exceeding(&world, "before");
    for request in [&web, &before] {
        daemon.launch(request).unwrap();
    }
    wait_for_text(&stdout(&daemon, &before.id), "ready");
    daemon.kill();
    // What an agent finds at its start is kept beside its own descriptors at once.
    let daemon = Daemon::start(&world);
    let pidfds = || {
        let descriptors = daemon.descriptors();
        descriptors.iter().filter(|link| link.to_string_lossy().contains("pidfd")).count()
    };
    let kept = pidfds();

    let none = NoWatches::set();
    let during = exceeding(&world, "during");
    daemon.launch(&during).unwrap();
    wait_for_text(&stdout(&daemon, &during.id), "ready");
    // So is that of a container which has been running for a while.
    while pidfds() > kept {
        std::thread::yield_now();
    }
    for container in [&before.id, &during.id] {
        let sandbox = daemon.inspect(container).unwrap().sandbox;
        fs::write(Path::new(&sandbox).join("go"), "\n").unwrap();
        let termination = daemon.wait(container).unwrap();
        assert_eq!(termination.reason, Some(Reason::ReasonContainerLimitationMemory), "{container}");
        daemon.remove(container).unwrap();
    }
    let mut other = request(&world, "other", "exit 7");
    daemon.launch(&other).unwrap();
    assert_eq!(daemon.wait(&other.id).unwrap().exit_status, Some(7 << 8));
    daemon.remove(&other.id).unwrap();
    assert_keeps_counting(&stdout(&daemon, &web.id));
    assert_eq!(daemon.list().len(), 1);
    assert_eq!(daemon.destroy(&web.id).unwrap().exit_status, Some(9));
    daemon.remove(&web.id).unwrap();
    assert_contains(&daemon.log(), &["fs.epoll.max_user_watches"]);
    other.command.value = Some("exec sleep 1000".into());
    daemon.launch(&other).unwrap();

    drop(none);
    assert_eq!(daemon.destroy(&other.id).unwrap().exit_status, Some(9));
    daemon.remove(&other.id).unwrap();
    daemon.launch(&web).unwrap();
    assert_keeps_counting(&stdout(&daemon, &web.id));
    let _none = NoWatches::set();
    daemon.destroy(&web.id).unwrap();
    daemon.remove(&web.id).unwrap();
    assert!(daemon.terminate().success());
    assert_nothing_left(&world, &"in the end");
}
