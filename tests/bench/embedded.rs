//! An agent embedded in this process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_core::model::{Command, ContainerId, Request, Resources};
use cofferdam_tests::world::World;
use serde_json::json;

use crate::Outcome;
use crate::chain::Chain;
use crate::environment::{Environment, Scratch};
use crate::floor;
use crate::launch::{Reference, Subject};

/// Rows of the table.
pub const EMPTY: &str = "cofferdam, empty chain";
pub const SHIPPED: &str = "cofferdam, shipped chain";
pub const FULL: &str = "cofferdam, full chain";
pub const PRIVILEGED: &str = "cofferdam, isolation mesos";
pub const MEMORY: &str = "cofferdam, shipped chain, scratch in memory";
pub const DIRECT: &str = "cofferdam, shipped chain, no overlay";

/// Where containers of the shipped chain write files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// To an overlay.
    Overlay,
    /// To the root file system itself, as with the bundles of other runtimes.
    Direct,
}

/// An agent in this process, and the kind of its containers.
pub struct Embedded<'a> {
    name: String,
    environment: &'a Environment,
    agent: Agent,
    // Dropped after the agent, which uses its directories.
    _world: World,
    shipped: bool,
    compared_to: Vec<Reference>,
    next: AtomicU64,
}

/// Limit of each container of the shipped chain, of other runtimes and of the floor.
pub const CPUS: f64 = 0.5;
/// In MiB.
pub const MEM: f64 = 64.0;

impl<'a> Embedded<'a> {
    /// With the shipped chain, and containers with a root file system and limits.
    pub fn shipped(environment: &'a Environment, writes: Writes) -> Outcome<Self> {
        let mut world = World::shipped();
        if writes == Writes::Overlay {
            let compared_to =
                vec![Reference::Row(floor::shipped(Scratch::WorkDirectory)), Reference::Runtimes];
            return Self::start(SHIPPED, environment, world, true, compared_to);
        }
        for plugin in world.config.isolators.iter_mut().filter(|plugin| plugin.name == "filesystem/linux") {
            plugin.table = json!({ "writes": "direct" });
        }
        Self::start(DIRECT, environment, world, true, vec![Reference::Runtimes])
    }

    /// As [`Embedded::shipped`] with an overlay, whose writable layer is in memory.
    pub fn in_memory(environment: &'a Environment) -> Outcome<Self> {
        let mut world = World::shipped();
        world.config.scratch_memory = Some(256 << 20);
        let compared_to = vec![Reference::Row(floor::shipped(Scratch::Memory)), Reference::Runtimes];
        Self::start(MEMORY, environment, world, true, compared_to)
    }

    /// As [`Embedded::shipped`] with an overlay, with the shorter chain that leaves root its privileges.
    pub fn privileged(environment: &'a Environment) -> Outcome<Self> {
        let compared_to = vec![Reference::Row(floor::shipped(Scratch::WorkDirectory)), Reference::Runtimes];
        Self::start(PRIVILEGED, environment, World::privileged(), true, compared_to)
    }

    /// As [`Embedded::shipped`] with an overlay, with every isolator that can be added.
    pub fn full(environment: &'a Environment) -> Outcome<Self> {
        let compared_to = vec![Reference::Row(SHIPPED), Reference::Runtimes];
        Self::start(FULL, environment, Chain::Full.world()?, true, compared_to)
    }

    /// Compared to the shipped chain, of which it has one isolator more or less.
    pub fn like_shipped(environment: &'a Environment, name: &str, world: World) -> Outcome<Self> {
        Self::start(name, environment, world, true, vec![Reference::Row(SHIPPED)])
    }

    /// Without plugins.
    pub fn empty(environment: &'a Environment) -> Outcome<Self> {
        Self::start(EMPTY, environment, World::new(), false, vec![Reference::Row(floor::EMPTY)])
    }

    fn start(
        name: &str,
        environment: &'a Environment,
        mut world: World,
        shipped: bool,
        compared_to: Vec<Reference>,
    ) -> Outcome<Self> {
        world.config.runtime_dir = environment.state().join(name.replace('/', "-"));
        let agent = environment.runtime.block_on(world.start())?;
        let name = name.to_owned();
        Ok(Self { name, environment, agent, _world: world, shipped, compared_to, next: AtomicU64::new(0) })
    }
}

/// The request for container `number`, which runs one of busybox's tools; with a root file system it also has limits.
pub fn request(rootfs: Option<PathBuf>, number: u64, arguments: &[&str]) -> Outcome<Request> {
    let id = ContainerId::parse(&format!("bench-{number}"))?;
    let mut request = Request::new(
        id,
        Command {
            shell: false,
            value: Some("/bin/busybox".into()),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ..Command::default()
        },
    );
    if rootfs.is_some() {
        request.rootfs = rootfs;
        request.resources = Resources::default().with("cpus", CPUS).with("mem", MEM);
    }
    Ok(request)
}

impl Subject for Embedded<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let request = request(self.shipped.then(|| self.environment.rootfs()), number, &["true"])?;
        let agent = self.agent.clone();
        // On the runtime, as requests of the API.
        let served = self.environment.runtime.spawn(async move {
            let id = request.id.clone();
            let started = Instant::now();
            agent.launch(request).await?;
            let ended = agent.wait(&id).await.and_then(|termination| termination.status);
            agent.remove(&id).await?;
            let took = started.elapsed();
            match ended {
                Some(0) => Ok(took),
                status => Err(format!("`{id}` ended with status {status:?}").into()),
            }
        });
        self.environment.runtime.block_on(served)?
    }

    fn compared_to(&self) -> Vec<Reference> {
        self.compared_to.clone()
    }
}

impl Drop for Embedded<'_> {
    fn drop(&mut self) {
        for id in self.environment.runtime.block_on(self.agent.destroy_all()) {
            eprintln!("bench: container `{id}` did not end");
        }
    }
}
