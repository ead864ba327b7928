//! Our side: an embedded agent in a world of its own.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_core::model::{Command, ContainerId, Request, Resources};
use cofferdam_tests::world::World;
use serde_json::json;

use crate::Outcome;
use crate::launch::Subject;
use crate::scene::Scene;

/// Rows of the table.
pub const EMPTY: &str = "cofferdam, empty chain";
pub const SHIPPED: &str = "cofferdam, shipped chain";
pub const DIRECT: &str = "cofferdam, shipped chain, no overlay";

/// Where containers of the shipped chain write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Into a layer of their own.
    Overlay,
    /// Into the folder itself, as the bundles of peers are used.
    Direct,
}

/// An agent in this process, with what it is asked to launch.
pub struct Ours<'a> {
    name: &'static str,
    scene: &'a Scene,
    agent: Agent,
    // After the agent, because it lives there.
    _world: World,
    shipped: bool,
    next: AtomicU64,
}

/// What each shipped container may use; peers and the floor are given the same.
pub const CPUS: f64 = 0.5;
/// In MiB.
pub const MEM: f64 = 64.0;

impl<'a> Ours<'a> {
    /// With the shipped chain, and containers with a root file system and limits.
    pub fn shipped(scene: &'a Scene, writes: Writes) -> Outcome<Self> {
        let mut world = World::shipped();
        if writes == Writes::Overlay {
            return Self::start(SHIPPED, scene, world, true);
        }
        for plugin in world.config.isolators.iter_mut().filter(|plugin| plugin.name == "filesystem/linux") {
            plugin.table = json!({ "writes": "direct" });
        }
        Self::start(DIRECT, scene, world, true)
    }

    /// With no plugin at all.
    pub fn empty(scene: &'a Scene) -> Outcome<Self> {
        Self::start(EMPTY, scene, World::new(), false)
    }

    fn start(name: &'static str, scene: &'a Scene, mut world: World, shipped: bool) -> Outcome<Self> {
        world.config.runtime_dir = scene.state().join(name);
        let agent = scene.runtime.block_on(world.start())?;
        Ok(Self { name, scene, agent, _world: world, shipped, next: AtomicU64::new(0) })
    }
}

/// The container number `number` of an agent, which runs one of busybox's tools; with a root file system, it has
/// limits as well.
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

impl Subject for Ours<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn once(&self, _: usize) -> Outcome<Duration> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let request = request(self.shipped.then(|| self.scene.rootfs()), number, &["true"])?;
        let agent = self.agent.clone();
        // On the runtime, where requests of the API are served too.
        let served = self.scene.runtime.spawn(async move {
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
        self.scene.runtime.block_on(served)?
    }
}

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        for id in self.scene.runtime.block_on(self.agent.destroy_all()) {
            eprintln!("bench: container `{id}` did not end");
        }
    }
}
