//! What a plugin can request for a launch, from the plugin's file to the container: every field of `LaunchInfo`.
//!
//! `test/request` requests what a label of the container says.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

mod command;
mod credentials;
mod filesystem;
mod hooks;
mod namespaces;
mod refused;

use std::path::Path;

use cofferdam_core::agent::Agent;
use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::Request;
use cofferdam_tests::world::{World, id, launch_error, object, run, sandbox_logger, shipped};
use serde_json::{Value as Json, json};

/// A world with a chain and the `sandbox` logger.
fn world(chain: Vec<PluginConfig>) -> World {
    let mut world = World::new();
    world.config.isolators = chain;
    world.config.logger = Some(sandbox_logger());
    world.share_plugin_store();
    world
}

/// The isolator that requests what its table or a label of the container says.
fn request(table: Json) -> PluginConfig {
    object("test/request", "libtest_request.so", table)
}

/// An agent whose chain contains `test/request`.
struct Fixture {
    world: World,
    agent: Agent,
}

impl Fixture {
    /// With `filesystem/linux`.
    async fn start() -> Self {
        Self::start_with(vec![shipped("filesystem/linux")], Vec::new()).await
    }

    /// With other isolators before and after `test/request`.
    async fn start_with(before: Vec<PluginConfig>, after: Vec<PluginConfig>) -> Self {
        let world = world([before, vec![request(json!({}))], after].concat());
        let agent = world.start().await.unwrap();
        Self { world, agent }
    }

    /// A container with a root filesystem that runs a shell line. `table` is that of `test/request` for it.
    fn request(&self, table: &Json, line: &str) -> Request {
        let mut request = Request::shell(id("web"), line);
        request.rootfs = Some(self.world.rootfs());
        request.labels = [("request".to_owned(), table.to_string())].into();
        request
    }

    /// Like [`Fixture::request`], for an agent without `filesystem/linux`: `test/request` requests the root filesystem,
    /// with `/proc`, and what `extra` adds.
    fn request_with_root(&self, extra: &Json, line: &str) -> Request {
        let mut launch = json!({
            "root": { "type": "directory", "path": self.world.rootfs() },
            "clone_namespaces": ["mount", "pid"],
            "operations": [{ "type": "mount", "fstype": "proc", "target": "/proc" }],
        });
        launch.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.request(&json!({ "launch": launch }), line)
    }

    /// Runs a container, removes it, and checks that nothing of it is left. Returns its standard output.
    async fn run(&self, request: Request) -> String {
        let id = request.id.clone();
        let output = run(&self.agent, request).await;
        assert!(self.agent.remove(&id).await.unwrap());
        self.assert_nothing_left(&output);
        output
    }

    /// The output of a shell line in a container for which `launch` is requested.
    async fn output(&self, launch: Json, line: &str) -> String {
        self.run(self.request(&json!({ "launch": launch }), line)).await
    }

    /// The message of a launch that fails, after checking that nothing of the container is left.
    async fn error(&self, launch: Json) -> String {
        let request = self.request(&json!({ "launch": launch }), "echo not reached");
        let message = launch_error(&self.agent, request).await;
        self.assert_nothing_left(&message);
        message
    }

    fn assert_nothing_left(&self, when: &str) {
        assert_eq!(self.world.leftovers(), Vec::<String>::new(), "{when}");
    }
}

/// The value of a line `name: value` or `name<tab>value`.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no `{name}` in {text}")).trim_start_matches(':').trim()
}

/// What a namespace of this process is called: `net:[4026531840]`.
fn own_namespace(file: &str) -> String {
    namespace(Path::new("/proc/self/ns").join(file))
}

/// What a namespace is called.
fn namespace(path: impl AsRef<Path>) -> String {
    std::fs::read_link(path).unwrap().display().to_string()
}
