//! What the tests of the boundary share: a world with a rude guest in it, and the questions they all ask.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_core::config::{FailPolicy, LauncherKind, PluginConfig};
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::view::PluginView;
use cofferdam_core::model::{ContainerId, Request};
use cofferdam_plugin_model::Method;
use cofferdam_tests::paths;
use cofferdam_tests::world::{World, entry};
use nix::sys::stat::Mode;
use serde_json::{Value as Json, json};

/// How long a rude method may take. Everything else has the default.
pub const SHORT: Duration = Duration::from_millis(300);

/// A world for plain processes, which any user can have.
pub fn plain() -> World {
    let mut world = World::new();
    world.config.launcher = LauncherKind::Posix;
    world
}

/// An isolator of this build, by its file.
pub fn object(name: &str, file: &str, table: Json) -> PluginConfig {
    let path = paths::build().join(file);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace` first", path.display());
    PluginConfig { path: Some(path), ..entry(name, table) }
}

/// The isolator that misbehaves as its table says.
pub fn fault(table: Json) -> PluginConfig {
    object("rude/fault", "librude_fault.so", table)
}

/// The isolator that speaks the ABI by hand.
pub fn raw(table: Json) -> PluginConfig {
    object("rude/raw", "librude_raw.so", table)
}

/// The well-behaved isolator.
pub fn greeting(table: Json) -> PluginConfig {
    object("example/greeting", "libgreeting.so", table)
}

/// A plain world with one rude guest, who is rude to `web` only, and a well-behaved one after it.
pub struct Scene {
    pub world: World,
}

impl Scene {
    /// A guest with one fault. `extra` is merged into the fault's own table.
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

    /// The rude guest's entry.
    pub fn rude(&mut self) -> &mut PluginConfig {
        &mut self.world.config.isolators[0]
    }

    /// Adds another fault.
    pub fn also(mut self, fault: Json) -> Self {
        if let Some(faults) = self.rude().table["faults"].as_array_mut() {
            faults.push(fault);
        }
        self
    }

    /// With a short deadline for one method.
    pub fn hurried(mut self, method: Method) -> Self {
        self.rude().timeouts.insert(method, SHORT);
        self
    }

    /// With a guest that containers can do without.
    pub fn optional(mut self) -> Self {
        self.rude().policy = FailPolicy::Optional;
        self
    }

    /// A path in the world.
    pub fn at(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// The last call that the rude guest noted. Old instances are dropped whenever a thread gets to it.
    pub fn last_call(&self) -> Option<String> {
        self.journal().into_iter().rfind(|line| line != "drop")
    }

    /// The calls that the rude guest noted, in order.
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
pub fn brief(name: &str) -> Request {
    Request::shell(id(name), "true")
}

/// A container that stays until it is ended.
pub fn lasting(name: &str) -> Request {
    Request::shell(id(name), "exec sleep 1000000")
}

/// The words with which a launch fails.
pub async fn refusal(agent: &Agent, request: Request) -> String {
    describe(&agent.launch(request).await.expect_err("the launch must fail"))
}

/// The words with which an agent does not start.
pub async fn no_start(world: &World) -> String {
    let started = world.start().await;
    describe(&started.err().expect("the agent must not start"))
}

/// Launches a container, and takes its end and its clean removal as proof that the agent lives.
pub async fn lives(agent: &Agent) {
    let request = Request::shell(id("other"), "exit 7");
    agent.launch(request).await.expect("another container launches");
    let termination = agent.wait(&id("other")).await.expect("it is known");
    assert_eq!(termination.status, Some(7 << 8), "{termination:?}");
    assert!(agent.remove(&id("other")).await.expect("it can be removed"));
}

/// Starts the agent without its isolators, as an operator would after reading the error, and uses it.
pub async fn lives_without(world: &mut World) {
    world.config.isolators.clear();
    let agent = world.start().await.expect("the agent starts without the rude plugin");
    lives(&agent).await;
}

pub fn plugin(agent: &Agent, name: &str) -> PluginView {
    agent.plugins().into_iter().find(|plugin| plugin.name == name).expect("a plugin of that name")
}

/// The rude guest as the agent shows it.
pub fn rude(agent: &Agent) -> PluginView {
    plugin(agent, "rude/fault")
}

/// What keeps a container from being cleaned up.
pub fn stuck(agent: &Agent, name: &str) -> String {
    let found = agent.containers().into_iter().find(|container| container.id == id(name));
    found.map(|container| container.cleanup_errors.join("; ")).unwrap_or_default()
}

/// Waits for something that the agent shows and announces to nobody.
pub async fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited a minute for: {what}");
        tokio::task::yield_now().await;
    }
}

/// `text` must contain all of `parts`.
#[track_caller]
pub fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

/// A named pipe in which a guest hangs until it is let go.
pub struct Rope(PathBuf);

impl Rope {
    pub fn new(path: PathBuf) -> Self {
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a named pipe");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Rope {
    /// Lets everybody go who hangs in it: opened both ways, a pipe blocks nobody, and closed it has an end.
    fn drop(&mut self) {
        drop(OpenOptions::new().read(true).write(true).open(&self.0));
    }
}

/// A copy of a plugin file of this build, changed.
pub fn tampered(world: &World, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(paths::build().join(file)).expect("`cargo build --workspace` made it");
    change(&mut bytes);
    let path = world.directory().join(file);
    fs::write(&path, bytes).expect("a file");
    path
}

/// Replaces every occurrence of a text by another of the same length.
#[track_caller]
pub fn patch(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut found = 0;
    for start in 0..=bytes.len() - from.len() {
        if bytes[start..].starts_with(from.as_bytes()) {
            bytes[start..start + from.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "`{from}` is not in the file");
}

/// Has the system's compiler make a file in the world.
pub fn compile<S: AsRef<OsStr>>(world: &World, source: &str, flags: &[S]) -> PathBuf {
    let path = world.directory().join("made-by-cc.so");
    let text = world.directory().join("source.c");
    fs::write(&text, source).expect("a file");
    let made = Command::new("cc").args(flags).arg("-o").arg(&path).arg(&text).output();
    let made = made.expect("the system's C compiler `cc`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

/// C source of a note that says: a plugin.
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

/// Whether this process was made for one test alone; makes one and waits for its success if not.
///
/// What a rude guest does to its process, it would otherwise do to all tests.
pub fn alone(test: &str) -> bool {
    const MARK: &str = "COFFERDAM_TEST_ALONE";
    if std::env::var_os(MARK).is_some_and(|marked| marked == test) {
        return true;
    }
    let run = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .output()
        .expect("this program runs");
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{told}{}", String::from_utf8_lossy(&run.stderr));
    assert!(told.contains("1 passed"), "there is no test `{test}`: {told}");
    false
}

/// The life of one agent in this world, from its start to its death; then another can follow.
pub fn life<T>(world: &World, story: impl AsyncFnOnce(Agent) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let told = runtime.block_on(async {
        let agent = world.start().await.expect("the agent starts");
        story(agent).await
    });
    drop(runtime);
    // A thread in hand may hold on to the agent for a moment longer; its lock tells when it is gone.
    let lock = File::open(world.config.runtime_dir.join("agent.lock")).expect("the agent's lock");
    drop(nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).expect("the agent is gone"));
    told
}
