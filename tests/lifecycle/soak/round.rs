//! One sequence of operations and faults, from a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_core::config::LauncherKind;
use cofferdam_core::model::{ContainerId, Request, Resources};
use cofferdam_linux::process::{Process, Stat};
use cofferdam_plugin_model::Command;
use cofferdam_tests::daemon::{Daemon, TIMEOUT};
use cofferdam_tests::disk::{Full, Resource};
use cofferdam_tests::mounts::Memory;
use cofferdam_tests::world::{World, object};
use fastrand::Rng;
use serde_json::json;

use super::super::{id, request};
use super::model::{Model, Presence, Program};
use super::operation::{Circumstances, NESTED_CPUS, Operation};
use super::tables;

/// Containers that are not nested.
const FAMILIES: [&str; 4] = ["p", "q", "r", "s"];

/// Operations that are shown when something is wrong.
const SHOWN: usize = 100;

/// The plugin that is exchanged between agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    First,
    Second,
    Missing,
}

/// What was done. The last of it is printed when a test panics.
struct Journal {
    seed: u64,
    lines: VecDeque<String>,
    steps: usize,
}

impl Journal {
    fn add(&mut self, what: impl Display) {
        if self.lines.len() == SHOWN {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:5} {what}", self.steps));
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if thread::panicking() {
            let lines: Vec<_> = self.lines.iter().map(String::as_str).collect();
            eprintln!("COFFERDAM_SOAK_SEED={}; the last operations:\n{}", self.seed, lines.join("\n"));
        }
    }
}

/// An agent with its containers.
pub struct Round {
    journal: Journal,
    version: Version,
    model: Model,
    keeper: Option<Process>,
    filled: Option<Full>,
    files: BTreeSet<PathBuf>,
    mounts: usize,
    /// `None` while it is being replaced. Ends before the directories are unmounted and removed.
    daemon: Option<Daemon>,
    disks: Vec<Memory>,
    world: World,
}

impl Round {
    pub fn new(launcher: LauncherKind, seed: u64) -> Self {
        let mounts = tables::mounts();
        let mut world = match launcher {
            LauncherKind::Linux => World::shipped(),
            LauncherKind::Posix => World::posix(),
        };
        world.config.plugin_store = None;
        world.config.isolators.insert(1, plugin(Version::Second).unwrap());
        let disks = vec![
            Memory::mount(&world.config.runtime_dir, "size=4m,nr_inodes=600"),
            Memory::mount(&world.config.work_dir, "size=1g,nr_inodes=2000"),
        ];
        let mut round = Self {
            journal: Journal { seed, lines: VecDeque::new(), steps: 0 },
            version: Version::Second,
            model: Model::default(),
            keeper: None,
            filled: None,
            files: BTreeSet::new(),
            mounts,
            daemon: None,
            disks,
            world,
        };
        // Each version has created its files.
        for version in [Version::First, Version::Missing, Version::Second] {
            round.start(version);
            let web = round.request(id("web"), Program::Sleeps);
            round.daemon().launch(&web).unwrap();
            round.daemon().destroy(&web.id).unwrap();
            round.daemon().remove(&web.id).unwrap();
            assert!(round.daemon.take().unwrap().terminate().success());
        }
        round.files = tables::files(&round.world);
        round.start(Version::Second);
        round
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn start(&mut self, version: Version) {
        self.version = version;
        let isolators = &mut self.world.config.isolators;
        isolators.retain(|plugin| plugin.name != NAME);
        isolators.extend(plugin(version));
        self.daemon = Some(Daemon::start(&self.world));
    }

    fn request(&self, id: ContainerId, program: Program) -> Request {
        let mut request = request(&self.world, &id.to_string(), &program.line());
        if id.is_nested() {
            // With v1, the quota of a cgroup must not be below that of one in it.
            request.resources = Resources::default().with("cpus", NESTED_CPUS).with("mem", 64.0);
        }
        if program == Program::Missing {
            let arguments = vec![program.line()];
            let value = Some(program.line());
            request.command = Command { shell: false, value, arguments, ..Command::default() };
        }
        let mark = self.world.directory().display().to_string();
        request.command.environment.insert(tables::MARK.into(), mark);
        request
    }

    #[track_caller]
    fn fail(&self, what: impl Display) -> ! {
        let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        let skipped = log.lines().count().saturating_sub(400);
        let log: Vec<_> = log.lines().skip(skipped).collect();
        panic!("{what}\n{}", log.join("\n"));
    }

    /// Performs operations for a while, and checks what is left.
    pub fn run(mut self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.journal.steps += 1;
            let step = u64::try_from(self.journal.steps).unwrap();
            // What happens in one step does not change what is done in the next ones.
            let mut rng = Rng::with_seed(self.journal.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step);
            match rng.u8(..40) {
                0..29 => self.call(&mut rng),
                29..33 => self.restart(&mut rng),
                33..36 => self.fill_or_free(&mut rng),
                36 => self.kill_keeper(),
                _ => self.kill_process(&mut rng),
            }
            self.check();
        }
        eprintln!("seed {}: {} steps", self.journal.seed, self.journal.steps);
        self.finish();
    }

    /// Makes calls at the same time, each for another family, and perhaps kills agent or keeper meanwhile, or stops the keeper
    /// for a part of the time or until all are answered.
    fn call(&mut self, rng: &mut Rng) {
        let mut families = FAMILIES;
        rng.shuffle(&mut families);
        let now = Circumstances {
            agent_is_killed: rng.u8(..8) == 0,
            keeper_is_killed: rng.u8(..24) == 0,
            keeper_is_stopped: rng.u8(..24) == 0,
            disk_is_full: self.filled.is_some(),
            has_plugin: self.version != Version::Missing,
        };
        let count = rng.usize(1..=FAMILIES.len());
        let operations: Vec<_> = families[..count]
            .iter()
            .map(|family| {
                let request = |id, program| self.request(id, program);
                Operation::random(rng, &self.model, &id(family), now.has_plugin, request)
            })
            .collect();
        for operation in &operations {
            self.journal.add(operation);
        }
        let delays = (rng.u32(..4000), rng.u32(..4000));
        // The agent waits long for a keeper that is not continued meanwhile.
        let is_continued = rng.u8(..4) > 0;
        let stopped = self.keeper.as_ref().filter(|_| now.keeper_is_stopped);
        let daemon = self.daemon();
        let answers: Vec<_> = thread::scope(|scope| {
            let calls: Vec<_> =
                operations.iter().map(|operation| scope.spawn(|| operation.perform(daemon))).collect();
            if let Some(keeper) = stopped {
                (0..delays.1).for_each(|_| thread::yield_now());
                // Fails if it has ended.
                drop(keeper.signal(libc::SIGSTOP));
            }
            if now.keeper_is_killed
                && let Some(keeper) = &self.keeper
            {
                (0..delays.0).for_each(|_| thread::yield_now());
                // Fails if it has ended.
                drop(keeper.kill());
            }
            if now.agent_is_killed {
                (0..delays.1).for_each(|_| thread::yield_now());
                daemon.process().kill().unwrap();
            }
            if let Some(keeper) = stopped.filter(|_| is_continued) {
                (0..delays.0).for_each(|_| thread::yield_now());
                drop(keeper.signal(libc::SIGCONT));
            }
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        if let Some(keeper) = stopped {
            drop(keeper.signal(libc::SIGCONT));
            // The agent may have replaced it.
            self.model.lost_keeper();
        }
        for (operation, answer) in operations.into_iter().zip(answers) {
            if let Err(error) = &answer {
                self.journal.add(format_args!("  {operation}: {error:?}"));
            }
            if let Err(wrong) = operation.conclude(answer, now, &mut self.model) {
                self.fail(wrong);
            }
        }
        if now.keeper_is_stopped {
            self.journal
                .add(format_args!("  meanwhile the keeper was stopped; continued at once: {is_continued}"));
            self.model.lost_keeper();
        }
        if now.keeper_is_killed {
            self.journal.add("  meanwhile the keeper was killed");
            self.model.lost_keeper();
        }
        if now.agent_is_killed {
            self.journal.add("  meanwhile the agent was killed");
            self.daemon.take().unwrap().wait_ended();
            self.start(self.version);
        }
    }

    /// Ends the agent in one of two ways, does something without it, and starts the next one.
    fn restart(&mut self, rng: &mut Rng) {
        let daemon = self.daemon.take().unwrap();
        if rng.bool() {
            self.journal.add("the agent is killed");
            daemon.kill();
        } else {
            self.journal.add("the agent is stopped");
            assert!(daemon.terminate().success());
        }
        match rng.u8(..8) {
            0 => self.kill_keeper(),
            1..4 => self.kill_process(rng),
            _ => {}
        }
        // The copy of a new plugin file needs space.
        let mut version = self.version;
        if self.filled.is_none() && rng.u8(..3) == 0 {
            version = [Version::First, Version::Second, Version::Missing][rng.usize(..3)];
        }
        self.journal.add(format_args!("an agent is started: {version:?}"));
        self.start(version);
    }

    fn fill_or_free(&mut self, rng: &mut Rng) {
        let kind = rng.u8(..4);
        if self.filled.take().is_some() {
            self.journal.add("there is space again");
            return;
        }
        let config = &self.world.config;
        let (directory, resource) = match kind {
            0 => (&config.runtime_dir, Resource::Blocks),
            1 => (&config.runtime_dir, Resource::Inodes),
            2 => (&config.work_dir, Resource::Inodes),
            _ => (&config.work_dir, Resource::Blocks),
        };
        // The work directory is large, as the copies of plugins are there.
        self.filled = Some(if kind == 3 { Full::shrink(directory) } else { Full::make(directory, resource) });
        self.journal.add(format_args!("{resource:?} of {} are used up", directory.display()));
    }

    fn kill_keeper(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        self.journal.add("the keeper is killed");
        // Fails if it has ended.
        drop(keeper.kill());
        assert!(keeper.wait(Some(TIMEOUT)).unwrap());
        self.model.lost_keeper();
    }

    /// Kills the command of a container.
    fn kill_process(&mut self, rng: &mut Rng) {
        let known: Vec<_> = self
            .model
            .0
            .iter()
            .filter(|(_, container)| container.ended.is_none())
            .filter_map(|(id, container)| Some((id.clone(), container.pid?)))
            .collect();
        let Some((id, pid)) = known.get(rng.usize(..known.len().max(1))) else { return };
        let Some(mut process) = tables::open(&self.world, *pid) else { return };
        if self.world.config.launcher == LauncherKind::Posix {
            // The first process keeps track of all others, so only the agent may kill it.
            let commands = process.children().unwrap_or_default();
            let Some(command) = commands.iter().find_map(|pid| tables::open(&self.world, *pid)) else {
                return;
            };
            process = command;
        }
        self.journal.add(format_args!("the command of {id} is killed"));
        self.model.killed(id);
        // Fails if it has ended.
        drop(process.kill());
        assert!(process.wait(Some(TIMEOUT)).unwrap());
    }

    /// Compares what the agent answers with the model.
    fn check(&mut self) {
        let keeper = self.daemon().health().keepers.and_then(|keepers| keepers.pid);
        let keeper = keeper.and_then(|pid| Process::open_any(pid).ok());
        self.keeper =
            keeper.filter(|it| Stat::read(it.pid()).is_ok_and(|stat| stat.name == "cofferdam-keep"));
        let listed: BTreeMap<ContainerId, _> = self
            .daemon()
            .list()
            .into_iter()
            .map(|listed| (from_wire(&listed.container_id), listed.state.unwrap()))
            .collect();
        if let Some(unknown) = listed.keys().find(|id| !self.model.0.contains_key(*id)) {
            self.fail(format_args!("`{unknown}` is there: {}", listed[unknown]));
        }
        let expected: Vec<_> = self.model.0.keys().cloned().collect();
        for id in expected {
            // Removed with the one that it was nested in.
            let Some(container) = self.model.0.get(&id) else { continue };
            let Some(state) = listed.get(&id) else {
                if container.presence == Presence::Certain {
                    self.fail(format_args!("`{id}` is missing: {container:?}"));
                }
                for id in self.model.within(&id) {
                    if self.model.0[&id].presence == Presence::Certain {
                        self.fail(format_args!("`{id}` is missing: {:?}", self.model.0[&id]));
                    }
                    self.model.0.remove(&id);
                }
                continue;
            };
            self.check_container(&id, state);
        }
    }

    fn check_container(&mut self, id: &ContainerId, state: &str) {
        let inspected = self.daemon().inspect(id).unwrap_or_else(|| self.fail(format_args!("no `{id}`")));
        let may_end = self.model.may_end(id);
        let container = self.model.0.get_mut(id).unwrap();
        let mut wrong = None;
        match (state, &container.ended) {
            ("RUNNING", None) => {
                container.presence = Presence::Certain;
                if inspected.state == "RUNNING" {
                    let pid = container.pid.or(inspected.pid);
                    if pid != inspected.pid || pid.is_none() {
                        wrong =
                            Some(format!("`{id}` has another process: {:?}, {container:?}", inspected.pid));
                    }
                    container.pid = pid;
                    let cpus = inspected.resources.iter().find(|resource| resource.name == "cpus");
                    let cpus = cpus.and_then(|cpus| Some(cpus.scalar.as_ref()?.value)).unwrap_or(0.0);
                    if !container.cpus.contains(&cpus) {
                        wrong = Some(format!("`{id}` has {cpus} CPUs: {container:?}"));
                    }
                    container.cpus = vec![cpus];
                    let is_alive = pid.is_some_and(|pid| tables::open(&self.world, pid).is_some());
                    if !is_alive && !may_end {
                        wrong = Some(format!("`{id}` is not running: {container:?}"));
                    }
                }
            }
            ("ENDED", _) => {
                if container.presence == Presence::RemovalInterrupted {
                    container.presence = Presence::Certain;
                }
                match self.daemon.as_ref().unwrap().wait(id) {
                    Ok(termination) => wrong = self.model.ended(id, &termination).err(),
                    Err(error) => wrong = Some(format!("`{id}`: {error:?}")),
                }
            }
            (_, None) if may_end => {}
            _ => wrong = Some(format!("`{id}` is {state}: {container:?}")),
        }
        if let Some(wrong) = wrong {
            self.fail(wrong);
        }
    }

    /// Ends all containers, and checks that nothing of them is left.
    fn finish(mut self) {
        self.filled = None;
        if self.version == Version::Missing {
            self.daemon.take().unwrap().kill();
            self.start(Version::Second);
            self.check();
        }
        for family in FAMILIES.map(id) {
            if !self.model.0.contains_key(&family) {
                continue;
            }
            if self.model.is_live(&family) {
                self.journal.add(format_args!("{family} is destroyed"));
                let operation = Operation::Destroy(family.clone());
                let answer = operation.perform(self.daemon());
                let now = Circumstances {
                    agent_is_killed: false,
                    keeper_is_killed: false,
                    keeper_is_stopped: false,
                    disk_is_full: false,
                    has_plugin: true,
                };
                if let Err(wrong) = operation.conclude(answer, now, &mut self.model) {
                    self.fail(wrong);
                }
            }
            self.check();
            for id in self.model.within(&family) {
                // A missed cleanup is performed in a while.
                while self.daemon().inspect(&id).is_some_and(|it| !it.cleanup_errors.is_empty()) {
                    thread::yield_now();
                }
            }
            self.daemon().remove(&family).unwrap_or_else(|error| self.fail(format_args!("{error:?}")));
            for id in self.model.within(&family) {
                self.model.0.remove(&id);
            }
        }
        if !self.daemon().list().is_empty() {
            self.fail("containers are left");
        }
        let daemon = self.daemon.take().unwrap();
        let log = daemon.log();
        assert!(!log.contains("panicked"), "{log}");
        self.check_descriptors(&daemon);
        assert!(daemon.terminate().success());
        let deadline = Instant::now() + TIMEOUT;
        // Its keeper ends after it.
        while !tables::processes(&self.world).is_empty() && Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(tables::processes(&self.world), Vec::<String>::new(), "{log}");
        let files = tables::files(&self.world);
        let new: Vec<_> = files.difference(&self.files).collect();
        assert!(new.is_empty(), "files are left: {new:?}");
        // Not the mounts of this test.
        let left: Vec<_> =
            self.world.leftovers().into_iter().filter(|left| !left.starts_with("mount: ")).collect();
        assert_eq!(left, Vec::<String>::new());
        self.disks.clear();
        assert_eq!(tables::mounts(), self.mounts);
    }
}

/// An agent has done this much before its descriptors are counted.
const WARM_UP: usize = 3;

impl Round {
    /// Launches and ends containers, by which the number of the agent's descriptors must not grow.
    fn check_descriptors(&self, daemon: &Daemon) {
        let mut counts = Vec::new();
        for _ in 0..2 * WARM_UP {
            let requests = FAMILIES.map(|name| self.request(id(name), Program::Forks));
            thread::scope(|scope| {
                for request in &requests {
                    scope.spawn(move || {
                        daemon.launch(request).unwrap();
                        daemon.destroy(&request.id).unwrap();
                        daemon.remove(&request.id).unwrap();
                    });
                }
            });
            counts.push(daemon.descriptors().len());
        }
        assert!(counts[WARM_UP..].iter().max() <= counts[..WARM_UP].iter().max(), "descriptors: {counts:?}");
    }
}

/// Name of the plugin that is exchanged.
const NAME: &str = "example/greeting";

fn plugin(version: Version) -> Option<cofferdam_core::config::PluginConfig> {
    match version {
        Version::First => Some(object(NAME, "libgreeting.so", json!({}))),
        Version::Second => Some(object(NAME, "libgreeting_2.so", json!({}))),
        Version::Missing => None,
    }
}

fn from_wire(wire: &cofferdam::api::operator::types::ContainerId) -> ContainerId {
    let value = &wire.value;
    match &wire.parent {
        Some(parent) => id(&format!("{}.{value}", from_wire(parent))),
        None => id(value),
    }
}
