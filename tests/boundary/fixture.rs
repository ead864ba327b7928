//! Shared by the tests of the boundary: a world with a faulty plugin, and common assertions.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_core::config::{FailPolicy, LauncherKind, PluginConfig};
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::view::PluginView;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_plugin_model::Method;
use cofferdam_tests::world::World;
use serde_json::{Value as Json, json};

pub use cofferdam_tests::assert_contains;
pub use cofferdam_tests::pipe::Pipe;
pub use cofferdam_tests::plugin_file::{modified_copy, patch};
pub use cofferdam_tests::world::{launch_error, object, with_agent};

/// Timeout of a faulty method. All others have the default.
pub const SHORT: Duration = Duration::from_millis(300);

/// A world with the posix launcher, for any user.
pub fn plain() -> World {
    let mut world = World::new();
    world.config.launcher = LauncherKind::Posix;
    world
}

/// The isolator that misbehaves as configured.
pub fn fault(table: Json) -> PluginConfig {
    object("test/fault", "libtest_fault.so", table)
}

/// The isolator that uses the ABI without the SDK.
pub fn raw(table: Json) -> PluginConfig {
    object("test/raw", "libtest_raw.so", table)
}

/// The well-behaved isolator.
pub fn greeting(table: Json) -> PluginConfig {
    object("example/greeting", "libgreeting.so", table)
}

/// A plain world with one faulty plugin, which misbehaves for `web` only, and a well-behaved one after it.
pub struct Fixture {
    pub world: World,
}

impl Fixture {
    /// With one fault. `extra` is merged into the fault's own table.
    pub fn new(method: &str, act: &str, extra: Json) -> Self {
        let mut world = plain();
        let mut one = json!({ "method": method, "act": act });
        if !matches!(method, "create" | "recover" | "drop") {
            one["container"] = "web".into();
        }
        merge(&mut one, extra);
        let journal = world.directory().join("journal");
        world.config.isolators.push(fault(json!({ "faults": [one], "journal": journal })));
        world.config.isolators.push(greeting(json!({})));
        Self { world }
    }

    /// The entry of the faulty plugin.
    pub fn faulty(&mut self) -> &mut PluginConfig {
        &mut self.world.config.isolators[0]
    }

    /// Adds another fault.
    pub fn with_fault(mut self, fault: Json) -> Self {
        if let Some(faults) = self.faulty().table["faults"].as_array_mut() {
            faults.push(fault);
        }
        self
    }

    /// With a short timeout for one method.
    pub fn with_short_timeout(mut self, method: Method) -> Self {
        self.faulty().timeouts.insert(method, SHORT);
        self
    }

    /// With a faulty plugin that is optional.
    pub fn optional(mut self) -> Self {
        self.faulty().policy = FailPolicy::Optional;
        self
    }

    /// A path in the world.
    pub fn at(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// The last recorded call of the faulty plugin, except `drop`: old instances are dropped at any time.
    pub fn last_call(&self) -> Option<String> {
        self.journal().into_iter().rfind(|line| line != "drop")
    }

    /// The recorded calls of the faulty plugin, in order.
    pub fn journal(&self) -> Vec<String> {
        let journal = fs::read_to_string(self.at("journal")).unwrap_or_default();
        journal.lines().map(|line| line.trim_end().to_owned()).collect()
    }
}

fn merge(into: &mut Json, from: Json) {
    if let (Some(into), Json::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

pub fn id(text: &str) -> ContainerId {
    ContainerId::parse(text).unwrap()
}

/// A container that ends at once.
pub fn short(name: &str) -> Request {
    Request::shell(id(name), "true")
}

/// A container that runs until it is ended.
pub fn long_running(name: &str) -> Request {
    Request::shell(id(name), "exec sleep 1000000")
}

/// The message of an agent that does not start.
pub async fn start_error(world: &World) -> String {
    let started = world.start().await;
    describe(&started.err().expect("the agent must not start"))
}

/// Launches a container, waits for its end and removes it.
pub async fn assert_works(agent: &Agent) {
    let request = Request::shell(id("other"), "exit 7");
    agent.launch(request).await.expect("another container launches");
    let termination = agent.wait(&id("other")).await.expect("it is known");
    assert_eq!(termination.status, Some(7 << 8), "{termination:?}");
    assert!(agent.remove(&id("other")).await.expect("it can be removed"));
}

/// Starts the agent without its isolators, as an operator would after the error, and checks that it works.
pub async fn assert_works_without_isolators(world: &mut World) {
    world.config.isolators.clear();
    let agent = world.start().await.expect("the agent starts without the faulty plugin");
    assert_works(&agent).await;
}

pub fn plugin(agent: &Agent, name: &str) -> PluginView {
    agent.plugins().into_iter().find(|plugin| plugin.name == name).expect("a plugin of that name")
}

/// The faulty plugin as the agent reports it.
pub fn faulty(agent: &Agent) -> PluginView {
    plugin(agent, "test/fault")
}

/// What prevents the cleanup of a container.
pub fn cleanup_errors(agent: &Agent, name: &str) -> String {
    let found = agent.containers().into_iter().find(|container| container.id == id(name));
    found.map(|container| container.cleanup_errors.join("; ")).unwrap_or_default()
}

/// Waits for a state of the agent without notification.
pub async fn wait_until(what: &str, mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute for: {what}");
        tokio::task::yield_now().await;
    }
}

/// Compiles a file with the system's C compiler.
pub fn compile<S: AsRef<OsStr>>(world: &World, source: &str, flags: &[S]) -> PathBuf {
    let path = world.directory().join("compiled.so");
    let text = world.directory().join("source.c");
    fs::write(&text, source).expect("a file");
    let compiled = Command::new("cc").args(flags).arg("-o").arg(&path).arg(&text).output();
    let compiled = compiled.expect("the system's C compiler `cc`");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    path
}

/// C source of a valid manifest note.
pub fn note() -> String {
    let manifest = json!({
        "kind": "isolator", "name": "example/greeting", "version": "1.0.0", "api": "1.0.0",
        "abi": "abi_stable-0.11", "encoding": "json", "panic": "unwind", "methods": ["prepare"],
    })
    .to_string();
    let len = manifest.len();
    format!(
        "__attribute__((used, section(\".note.cofferdam.plugin\"), aligned(4))) static const struct {{\n\
         unsigned namesz, descsz, type; char name[12]; char desc[{padded}];\n\
         }} note = {{ 10, {len}, 1, \"Cofferdam\", {manifest:?} }};\n",
        padded = len.next_multiple_of(4),
    )
}

/// Whether this process runs only this test. If not, runs the test in a new process and waits for its success.
///
/// For plugins that change their process, which would affect other tests.
pub fn in_own_process(test: &str) -> bool {
    const MARK: &str = "COFFERDAM_TEST_ALONE";
    if std::env::var_os(MARK).is_some_and(|marked| marked == test) {
        return true;
    }
    let run = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .output()
        .expect("this program runs");
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{output}{}", String::from_utf8_lossy(&run.stderr));
    assert!(output.contains("1 passed"), "there is no test `{test}`: {output}");
    false
}
