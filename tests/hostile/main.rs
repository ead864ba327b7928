//! Containers that attack the launches of other containers, how their own ends are recorded, and the removal of what they leave.
//!
//! `attacker.c` is the program of a hostile parent. The processes of its nested containers are visible to it if they
//! share its pid namespace, from their first moment. It tries to stop, kill, trace and read them, and to reach through
//! them what belongs to the agent or to another container.

#![expect(clippy::unwrap_used, reason = "a panic shows where a test failed")]

mod cgroups;
mod disk;
mod evade;
mod full_disk;
mod http;
mod inheritance;
mod interference;
mod output;
mod program;
mod reach;
mod requests;
mod status;
mod trees;
mod users;
mod visibility;
mod volumes;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use cofferdam_core::agent::Agent;
use cofferdam_core::model::{Command, ContainerClass, Request, Resources};
use cofferdam_tests::daemon::TIMEOUT;
use cofferdam_tests::program::compiled;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{text, wait_for_text, watch};

/// Path of the attacker in its container.
const ATTACKER: &str = "/bin/attacker";

/// How a nested container relates to the pid namespace of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has its own.
    Own,
    /// It shares its parent's.
    Shared,
    /// It also shares the mounts of its parent.
    Debug,
}

/// A world in whose root file system the attacker is. Root in its containers has the privileges of the host's root.
fn world() -> World {
    with_attacker(World::privileged())
}

/// [`world`], and [`shipped`].
fn worlds() -> [World; 2] {
    [world(), shipped()]
}

/// Likewise, with the chain that agents have unless they are told another one.
fn shipped() -> World {
    with_attacker(World::shipped())
}

/// Whether root in its containers has the privileges of the host's root.
fn is_privileged(world: &World) -> bool {
    !world.config.isolators.iter().any(|isolator| isolator.name == "linux/capabilities")
}

fn with_attacker(world: World) -> World {
    let program = compiled("attacker", include_str!("attacker.c"));
    fs::copy(program, world.rootfs().join("bin/attacker")).unwrap();
    world
}

/// A container that runs the attacker.
fn attacker(world: &World, name: &str, uid: u32, arguments: &[&str]) -> Request {
    let arguments = std::iter::once(ATTACKER).chain(arguments.iter().copied());
    let command = Command {
        shell: false,
        value: Some(ATTACKER.into()),
        arguments: arguments.map(str::to_owned).collect(),
        user: Some(uid.to_string()),
        ..Command::default()
    };
    let mut request = Request::new(id(name), command);
    request.rootfs = Some(world.rootfs());
    // A large share of the CPU, so that it misses few processes.
    request.resources = Resources::default().with("cpus", 2.0);
    request
}

/// A nested container of a kind.
fn of_kind(mut request: Request, kind: Kind) -> Request {
    request.linux.share_pid_namespace = kind == Kind::Shared;
    if kind == Kind::Debug {
        request.class = ContainerClass::Debug;
        request.rootfs = None;
    }
    request
}

/// A line of the attacker's report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    pid: i32,
    what: String,
}

impl Line {
    fn parse(line: &str) -> Self {
        let (pid, what) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
        Self { pid: pid.parse().unwrap(), what: what.to_owned() }
    }
}

fn lines(report: &str) -> Vec<Line> {
    report.lines().filter(|line| *line != "ready").map(Line::parse).collect()
}

/// A container `pod` that runs the attacker.
struct Attack<'a> {
    agent: &'a Agent,
    world: &'a World,
    log: PathBuf,
    /// Its pid on the host.
    pid: i32,
}

impl<'a> Attack<'a> {
    async fn start(agent: &'a Agent, world: &'a World, uid: u32, arguments: &[&str]) -> Self {
        let pid = agent.launch(attacker(world, "pod", uid, arguments)).await.unwrap();
        let log = agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap();
        wait_for_text(&log, "ready");
        Self { agent, world, log, pid }
    }

    fn report(&self) -> Vec<Line> {
        lines(&text(&self.log))
    }

    /// For how many processes the attacker has reported something.
    fn count(&self, what: &str) -> usize {
        self.report().iter().filter(|line| line.what == what).count()
    }

    /// Waits until the attacker has reported something for `count` processes.
    fn await_lines(&self, what: &str, count: usize) -> Vec<Line> {
        let found = |report: &str| report.lines().filter(|line| line.ends_with(what)).count();
        lines(&watch::content(&self.log, TIMEOUT, |report| found(report) >= count))
    }

    /// The pids of running processes that the attacker can see, beside those of its own container.
    fn visible(&self) -> BTreeSet<i32> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(&self.pid.to_string()).unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
        let here = names.filter(|name| namespace(name).is_some_and(|found| found == own));
        let pids = here.filter_map(|name| {
            let status = fs::read_to_string(format!("/proc/{name}/status")).ok()?;
            // A tracer keeps a process that has ended.
            let has_ended = status.lines().any(|line| line.starts_with("State:\tZ"));
            let status = (!has_ended).then_some(status)?;
            status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?
                .split_whitespace()
                .last()?
                .parse()
                .ok()
        });
        // Process 1, and the attacker.
        pids.filter(|pid| *pid > 2).collect()
    }

    /// Destroys the parent and checks that nothing of it and its nested containers is left. Returns the report.
    async fn end(self) -> Vec<Line> {
        let report = self.report();
        self.agent.destroy(&id("pod")).await.unwrap();
        assert!(self.agent.remove(&id("pod")).await.unwrap());
        assert_nothing_left(self.world);
        report
    }
}

/// A keeper forgets processes when it has reaped them, which the agent does not wait for if they have been traced.
#[track_caller]
fn assert_nothing_left(world: &World) {
    for keeper in fs::read_dir(world.config.runtime_dir.join("keepers")).unwrap().flatten() {
        watch::until(&keeper.path(), TIMEOUT, || world.leftovers().is_empty());
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Runs a container that ends, and removes it. Returns its output.
async fn run_and_remove(agent: &Agent, request: Request) -> String {
    let id = request.id.clone();
    let output = cofferdam_tests::world::run(agent, request).await;
    assert!(agent.remove(&id).await.unwrap());
    output
}
