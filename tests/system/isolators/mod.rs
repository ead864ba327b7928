//! The isolators that are not in the default chain, each by what processes in real containers see.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

mod capabilities;
mod cgroup;
pub(crate) mod cni;
mod devices;
mod disk_du;
mod disk_xfs;
mod docker_volume;
mod environment_secret;
mod filesystem_shared;
mod ipc;
mod mesos_flags;
mod nnp;
mod perf_event;
mod pid;
mod rlimits;
mod seccomp;
mod together;
mod uts;
mod volume_host_path;
mod volume_sandbox_path;
mod volume_secret;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cofferdam_core::agent::Agent;
use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::Request;
use cofferdam_tests::program::compiled;
use cofferdam_tests::wait_for_text;
use cofferdam_tests::world::{World, id, launch_error, run, sandbox_logger, shipped, with_agent};
use serde_json::Value as Json;

/// The capabilities that Docker gives to its containers.
const FOURTEEN: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// An isolator that we ship, with its table.
fn isolator(name: &str, table: Json) -> PluginConfig {
    PluginConfig { table, ..shipped(name) }
}

/// With `filesystem/linux`, `namespaces/pid` and further isolators, and the probe in the root file system.
fn world(isolators: Vec<PluginConfig>) -> Arc<World> {
    world_with(|_| isolators)
}

/// Like [`world`]; the isolators may depend on the world's directory.
fn world_with(isolators: impl FnOnce(&Path) -> Vec<PluginConfig>) -> Arc<World> {
    let mut world = World::new();
    let isolators = isolators(world.directory());
    world.config.isolators =
        [vec![shipped("filesystem/linux"), shipped("namespaces/pid")], isolators].concat();
    world.config.logger = Some(sandbox_logger());
    world.share_plugin_store();
    fs::copy(compiled("probe", include_str!("probe.c")), world.rootfs().join("bin/probe")).unwrap();
    Arc::new(world)
}

/// Calls `before` with an agent, and `after` with the next one, which takes over the containers.
fn across_restart(world: &Arc<World>, before: impl AsyncFnOnce(&Fixture), after: impl AsyncFnOnce(&Fixture)) {
    with_agent(world, async |agent| before(&Fixture { world: Arc::clone(world), agent }).await);
    with_agent(world, async |agent| after(&Fixture { world: Arc::clone(world), agent }).await);
}

/// An agent, and its world.
struct Fixture {
    world: Arc<World>,
    agent: Agent,
}

impl Fixture {
    async fn start(isolators: Vec<PluginConfig>) -> Self {
        let world = world(isolators);
        let agent = world.start().await.unwrap();
        Self { world, agent }
    }

    /// A container with a root file system that runs a shell line as a user.
    fn request(&self, name: &str, user: &str, line: &str) -> Request {
        let mut request = Request::shell(id(name), line);
        request.rootfs = Some(self.world.rootfs());
        request.command.user = Some(user.into());
        request
    }

    /// Runs a container, removes it, and checks that nothing of it is left. Returns its standard output.
    async fn run(&self, request: Request) -> String {
        let id = request.id.clone();
        let output = run(&self.agent, request).await;
        assert!(self.agent.remove(&id).await.unwrap());
        self.assert_nothing_left(&output);
        output
    }

    /// The message of a launch that fails, after checking that nothing of the container is left.
    async fn error(&self, request: Request) -> String {
        let message = launch_error(&self.agent, request).await;
        self.assert_nothing_left(&message);
        message
    }

    /// Launches a container that runs a line and then waits.
    async fn launch(&self, mut request: Request) {
        let id = request.id.clone();
        let line = request.command.value.take().unwrap();
        request.command.value = Some(format!("{line}; echo launched; sleep 1000"));
        self.agent.launch(request).await.unwrap_or_else(|error| panic!("{}", describe(&error)));
        wait_for_text(&self.agent.inspect(&id).unwrap().logs.stdout.unwrap(), "launched");
    }

    /// Destroys and removes a container and those nested in it, and checks that nothing is left.
    async fn destroy(&self, name: &str) {
        self.agent.destroy(&id(name)).await.unwrap();
        assert!(self.agent.remove(&id(name)).await.unwrap());
        self.assert_nothing_left(name);
    }

    fn assert_nothing_left(&self, when: &str) {
        assert_eq!(self.world.leftovers(), Vec::<String>::new(), "{when}");
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    cofferdam_core::error_chain::describe(error)
}

/// The value of a line `name: value` or `name<tab>value`.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no `{name}` in {text}")).trim_start_matches(':').trim()
}
