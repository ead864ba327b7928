//! Pulls by an agent, for containers that need an image which the store does not have; and what the agent removes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use cofferdam::api::operator::encode_launch;
use cofferdam::api::operator::types::Bytes;
use cofferdam_core::model::{Ended, Request};
use cofferdam_core::provisioner::Digest;
use cofferdam_tests::daemon::{CallError, Daemon, TIMEOUT};
use cofferdam_tests::images::{Layer, busybox};
use cofferdam_tests::mounts::Memory;
use cofferdam_tests::registry::{AUTH, Registry, Server, write_login};
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::watch;
use cofferdam_tests::world::{World, id};
use cofferdam_tests::{assert_contains, is_root, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value as Json, json};

use super::registry::{Gate, compressed, large};
use super::{Fixture, own, request};

impl Fixture {
    /// A world whose agents use this store, and pull from these registries without TLS.
    pub(super) fn pulling(&self, registries: &[String]) -> World {
        let mut world = self.world();
        world.config.registry.insecure = registries.to_vec();
        world
    }
}

/// Runs the command line against an agent.
fn client(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(paths::program());
    command.arg("--socket").arg(world.socket()).args(arguments).stdin(Stdio::null());
    command
}

fn run(world: &World, arguments: &[&str]) -> Output {
    client(world, arguments).output().unwrap()
}

pub(super) fn printed(world: &World, arguments: &[&str]) -> String {
    let output = run(world, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The events of a container until now, as JSON.
fn events(world: &World, container: &str) -> Vec<Json> {
    let filter = format!("container={container}");
    let lines = printed(world, &["events", "--since", "1h", "--until", "0s", "--json", "--filter", &filter]);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Events as they happen.
struct Following(Child, BufReader<std::process::ChildStdout>);

impl Following {
    fn new(world: &World) -> Self {
        let mut child =
            client(world, &["events", "--since", "1h", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self(child, output)
    }

    /// Waits for an event of a container.
    fn wait(&mut self, kind: &str, container: &str) -> Json {
        loop {
            let mut line = String::new();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "no `{kind}` of `{container}`");
            let event: Json = serde_json::from_str(&line).unwrap();
            if event["type"] == kind && event["container"]["container_id"]["value"] == container {
                return event;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A registry that sends half of the blob of [`large`], and nothing more.
pub(crate) struct Stalling {
    pub(super) server: Server,
    /// Receives when half of the blob was sent.
    half: mpsc::Receiver<()>,
    /// Receives when the client has gone.
    gone: mpsc::Receiver<()>,
}

impl Stalling {
    pub(crate) fn new(registry: &Registry) -> Self {
        let address = registry.address;
        let ((sent, half), (left, gone)) = (mpsc::channel(), mpsc::channel());
        let (sent, left) = (Mutex::new(sent), Mutex::new(left));
        let path = format!("/blobs/{}", Digest::of(&large().1));
        let server = Server::start(move |request, stream| {
            let response = request.forward(address);
            if !request.path.ends_with(&path) {
                drop(stream.write_all(&response));
                return;
            }
            drop(stream.write_all(&response[..response.len() / 2]));
            let _ = sent.lock().unwrap().send(());
            // Returns when the client is gone, which sends nothing more.
            drop(stream.read(&mut [0]));
            let _ = left.lock().unwrap().send(());
        });
        Self { server, half, gone }
    }

    pub(crate) fn name(&self) -> String {
        format!("{}/web:1", self.server.address)
    }

    pub(crate) fn wait_half(&self) {
        self.half.recv_timeout(TIMEOUT).expect("half of the blob is requested");
    }

    /// Whether half of the blob was sent since it was waited for last.
    pub(crate) fn has_sent_half(&self) -> bool {
        self.half.try_recv().is_ok()
    }

    pub(crate) fn wait_gone(&self) {
        self.gone.recv_timeout(TIMEOUT).expect("the connection ends");
    }

    fn requests_of_blobs(&self) -> usize {
        self.server.seen().iter().filter(|request| request.path.contains("/blobs/")).count()
    }
}

pub(super) fn refused(outcome: Result<(), CallError>) -> String {
    match outcome {
        Err(CallError::Status(_, text)) => text,
        other => panic!("{other:?}"),
    }
}

pub(super) fn exit_code(daemon: &Daemon, name: &str) -> i32 {
    let status = daemon.wait(&id(name)).unwrap().exit_status.expect("an exit status");
    match Ended::from_raw(status) {
        Ended::Exited(code) => code,
        ended => panic!("{ended}"),
    }
}

#[test]
fn an_agent_pulls_what_a_container_needs_and_asks_again_only_if_told_to() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(true);
    let motd = |text: &[u8]| [compressed(&busybox()), compressed(&Layer::new().file("motd", text))];
    registry.image("web", "1", &motd(b"old\n"), "amd64");
    let (fixture, name) = (Fixture::new(), registry.name("web:1"));
    let mut world = fixture.pulling(&[registry.address.to_string()]);
    let login = fixture.path("config.json");
    fs::write(&login, "{}").unwrap();
    world.config.registry.credentials = Some(login.clone());
    let daemon = Daemon::start(&world);
    let shows = |text: &str| format!("[ \"$(cat /motd)\" = {text} ]");

    // The agent has no credentials, and the failure leaves nothing.
    let error = refused(daemon.launch(&request("web", &name, "true")));
    assert_contains(&error, &[&name, "without credentials", "docker login"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
    assert_eq!(world.leftovers(), Vec::<String>::new());
    // Those of the request are used, and appear nowhere.
    let mut with_login = request("web", &name, &shows("old"));
    with_login.image_credentials =
        Some(json!({ "auths": { registry.address.to_string(): { "auth": AUTH } } }).to_string());
    launch_with_credentials(&daemon, &with_login);
    assert_eq!(exit_code(&daemon, "web"), 0);
    assert_eq!(world.files_with(AUTH), Vec::<PathBuf>::new());
    assert!(!printed(&world, &["inspect", "--json", "web"]).contains(AUTH));
    daemon.remove(&id("web")).unwrap();

    // It is in the store now, and the registry is not asked for what is there.
    write_login(&login, &registry.address.to_string());
    registry.image("web", "1", &motd(b"new\n"), "amd64");
    daemon.launch(&request("again", &name, &shows("old"))).unwrap();
    assert_eq!(exit_code(&daemon, "again"), 0);
    assert!(!events(&world, "again").iter().any(|event| event["type"] == "CONTAINER_IMAGE_PULL"));
    let mut newest = request("newest", &name, &shows("new"));
    newest.force_pull_image = true;
    daemon.launch(&newest).unwrap();
    assert_eq!(exit_code(&daemon, "newest"), 0);
    let seen = events(&world, "newest");
    let pulls: Vec<&Json> = seen.iter().filter(|event| event["type"] == "CONTAINER_IMAGE_PULL").collect();
    assert!(
        !pulls.is_empty() && pulls.iter().all(|event| event["container"]["pull"]["layers"] == 2),
        "{seen:?}"
    );
    let states: Vec<&str> = seen.iter().filter_map(|event| event["container"]["state"].as_str()).collect();
    assert_eq!(states[..3], ["STARTING", "PROVISIONING", "PREPARING"], "{states:?}");

    // What the registry does not have is an error of the request, with the name of both.
    let error = refused(daemon.launch(&request("none", &registry.name("web:2"), "true")));
    assert_contains(&error, &[&registry.name("web:2"), "the registry has no tag `2`"]);
    drop(registry);
    newest.id = id("gone");
    assert_contains(&refused(daemon.launch(&newest)), &[&name, "cannot pull"]);
    daemon.launch(&request("offline", &name, &shows("new"))).unwrap();
    assert_eq!(exit_code(&daemon, "offline"), 0);
    for name in ["again", "newest", "offline"] {
        daemon.remove(&id(name)).unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Launches a container with credentials for its image, which the command line does not have.
fn launch_with_credentials(daemon: &Daemon, request: &Request) {
    let mut launch = serde_json::to_value(encode_launch(request)).unwrap();
    let config = request.image_credentials.clone().unwrap();
    launch["container"]["mesos"]["image"]["docker"]["config"] =
        json!({ "type": "VALUE", "value": { "data": Bytes(config.into_bytes()) } });
    daemon.call(&json!({ "type": "LAUNCH_CONTAINER", "launch_container": launch })).unwrap();
}

#[test]
fn containers_share_a_pull_which_ends_at_once_with_the_last_of_them() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[large()], "amd64");
    let (stalling, fixture) = (Stalling::new(&registry), Fixture::new());
    let world = fixture.pulling(&[stalling.server.address.to_string()]);
    let daemon = Daemon::start(&world);
    let (mut following, image) = (Following::new(&world), stalling.name());
    thread::scope(|scope| {
        let [one, other] = ["one", "other"].map(|name| scope.spawn(|| daemon.launch(&own(name, &image))));
        stalling.wait_half();
        for name in ["one", "other"] {
            let event = following.wait("CONTAINER_IMAGE_PULL", name);
            assert_eq!(event["container"]["pull"]["layers"], 1, "{event}");
        }
        // The configuration, and the layer once.
        assert_eq!(stalling.requests_of_blobs(), 2);
        let inspected = daemon.inspect(&id("one")).unwrap();
        assert_eq!(inspected.state, "PROVISIONING");
        let pull = inspected.pull.unwrap();
        assert_eq!((pull.layers, pull.pulled_layers), (1, 0));
        assert!(pull.received <= pull.bytes && pull.bytes > 1 << 20, "{pull:?}");
        assert_contains(&printed(&world, &["ps"]), &["PROVISIONING (pulling "]);
        assert_contains(&printed(&world, &["inspect", "one"]), &["0 of 1 layers in the store"]);

        daemon.signal(&id("one"), Signal::SIGKILL).unwrap();
        assert_contains(&refused(one.join().unwrap()), &["`one` was stopped while PROVISIONING"]);
        assert_eq!(daemon.inspect(&id("other")).unwrap().state, "PROVISIONING");
        assert!(stalling.gone.try_recv().is_err(), "the other one still needs it");
        daemon.signal(&id("other"), Signal::SIGKILL).unwrap();
        assert_contains(&refused(other.join().unwrap()), &["`other` was stopped while PROVISIONING"]);
        stalling.wait_gone();
    });
    let staging = fixture.images.store.join("staging");
    assert!(watch::until(&staging, TIMEOUT, || fixture.images.entries("staging").is_empty()));
    assert_eq!(fixture.images.entries("references"), Vec::<String>::new());
    assert_eq!(fixture.images.entries("downloads").len(), 1, "the next pull continues it");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn the_image_of_tasks_without_a_container_is_pulled() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    let motd = Layer::new().file("motd", b"of an image\n");
    registry.image("task", "1", &[compressed(&busybox()), compressed(&motd)], "amd64");
    let fixture = Fixture::new();
    let mut world = fixture.pulling(&[registry.address.to_string()]);
    world.config.executors.launcher_dir = Some(paths::build());
    let image = json!({ "type": "DOCKER", "docker": { "name": registry.name("task:1") } });
    world.default_container_info = Some(json!({ "type": "MESOS", "mesos": { "image": image } }));
    let daemon = Daemon::start(&world);
    let task = run(&world, &["task", "run", "--name", "task", "--shell", "grep -q image /motd && exit 7"]);
    assert_eq!(task.status.code(), Some(7), "{}", String::from_utf8_lossy(&task.stdout));
    let _ = daemon.terminate();
}

#[test]
fn a_pull_does_not_outlive_its_agent() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[compressed(&busybox()), large()], "amd64");
    let (stalling, fixture) = (Stalling::new(&registry), Fixture::new());
    let world = fixture.pulling(&[stalling.server.address.to_string(), registry.address.to_string()]);
    let (daemon, image) = (Daemon::start(&world), stalling.name());
    thread::scope(|scope| {
        let launching = scope.spawn(|| daemon.launch(&own("web", &image)));
        stalling.wait_half();
        let _ = kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL);
        assert!(launching.join().unwrap().unwrap_err().is_disconnected());
        stalling.wait_gone();
    });
    daemon.kill();
    fixture.images.wait_unused();
    let daemon = Daemon::start(&world);
    // What the pull has left is removed without another one.
    let staging = fixture.images.store.join("staging");
    assert!(watch::until(&staging, TIMEOUT, || fixture.images.entries("staging").is_empty()));
    daemon.wait(&id("web")).unwrap();
    daemon.remove(&id("web")).unwrap();
    // From the registry itself.
    daemon.launch(&request("web", &registry.name("web:1"), "[ $(cat /end) = end ]")).unwrap();
    assert_eq!(exit_code(&daemon, "web"), 0);
    assert_eq!(fixture.images.entries("staging"), Vec::<String>::new());
    daemon.remove(&id("web")).unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn an_agent_that_starts_leaves_the_pull_of_another_one_alone() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[large()], "amd64");
    let (stalling, fixture) = (Stalling::new(&registry), Fixture::new());
    fixture.image("other:1", &[busybox()], json!({}));
    let mut pull = fixture.pull_command(&["--insecure", &stalling.name()]);
    let mut pull = pull.env("NO_PROXY", "*").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    stalling.wait_half();
    let staging = fixture.images.store.join("staging");
    assert!(watch::until(&staging, TIMEOUT, || fixture.images.entries("staging").len() == 1));
    let staged = fixture.images.entries("staging");
    let world = fixture.world();
    let daemon = Daemon::start(&world);
    daemon.launch(&request("web", "other:1", "true")).unwrap();
    assert_eq!(exit_code(&daemon, "web"), 0);
    assert_eq!(fixture.images.entries("staging"), staged);
    pull.kill().unwrap();
    pull.wait().unwrap();
    stalling.wait_gone();
    // Once nobody pulls any more.
    assert!(watch::until(&staging, TIMEOUT, || fixture.images.entries("staging").is_empty()));
    daemon.remove(&id("web")).unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert!(daemon.terminate().success());
}

#[test]
fn the_commands_for_images_use_the_store_of_a_daemon_that_is_chosen() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[compressed(&busybox())], "amd64");
    let fixture = Fixture::new();
    let world = fixture.world();
    let daemon = Daemon::start(&world);
    let root = fixture.path("root");
    fs::create_dir(&root).unwrap();
    printed(&world, &["image", "import", "--name", "root:1", root.to_str().unwrap()]);
    let mut pull = client(&world, &["image", "pull", "--insecure", &registry.name("web:1")]);
    let pulled = pull.env("NO_PROXY", "*").output().unwrap();
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let [chosen, own] = [printed(&world, &["image", "ls"]), fixture.images.run(&["ls"])];
    assert_eq!(chosen, own);
    assert_contains(&own, &["root:1", "web:1"]);
    let shown: Json =
        serde_json::from_str(&printed(&world, &["image", "inspect", "--json", "root:1"])).unwrap();
    assert_eq!(shown, fixture.images.inspect("root:1"));
    assert_contains(&printed(&world, &["image", "rm", "root:1"]), &["root:1"]);
    assert!(!fixture.images.run(&["ls"]).contains("root:1"));
    // A directory that is given is stronger.
    let other = fixture.path("other");
    let none = printed(&world, &["image", "--image-store", other.to_str().unwrap(), "ls"]);
    assert!(!none.contains("web:1"), "{none}");
    assert!(daemon.terminate().success());
    let failed = run(&world, &["image", "ls"]);
    assert!(!failed.status.success(), "the daemon is not there");
}

#[test]
fn a_signal_ends_a_pull_and_what_was_received_is_used_by_the_next_one() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[compressed(&busybox()), large()], "amd64");
    let (stalling, fixture) = (Stalling::new(&registry), Fixture::new());
    let insecure = [stalling.server.address.to_string(), registry.address.to_string()];
    let world = fixture.pulling(&insecure);
    let daemon = Daemon::start(&world);
    let name = stalling.name();
    let config = fixture.path("agent.toml");
    fs::write(&config, format!("[registry]\ninsecure = {insecure:?}\n")).unwrap();
    let mut alone = Command::new(paths::program());
    alone.args(["run", "--config", config.to_str().unwrap(), "--image-store"]).arg(&fixture.images.store);
    alone.arg(&name);
    let commands = [
        (fixture.pull_command(&["--insecure", &name]), Signal::SIGINT, 130),
        (alone, Signal::SIGTERM, 143),
        (client(&world, &["run", "--name", "web", &name]), Signal::SIGINT, 130),
        (client(&world, &["run", "-d", "--name", "web", &name]), Signal::SIGTERM, 143),
    ];
    for (mut command, signal, status) in commands {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env("NO_PROXY", "*");
        let mut child = command.spawn().unwrap();
        stalling.wait_half();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{command:?}");
        stalling.wait_gone();
        // Of its own, so that the next one is stalled as well.
        fs::remove_dir_all(fixture.images.store.join("downloads")).unwrap();
    }
    assert_eq!(daemon.inspect(&id("web")).map(|web| web.state), None);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    // Nothing of it is needed to go on.
    let name = registry.name("web:1");
    assert_eq!(printed(&world, &["run", "--rm", &name, "cat", "/end"]), "end");
}

#[test]
fn a_launch_that_pulls_has_a_bar_on_a_terminal() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    let layers = [compressed(&busybox()), large()];
    registry.image("web", "1", &layers, "amd64");
    let gate = Gate::new(&registry, vec![Digest::of(&layers[1].1).to_string()]);
    let fixture = Fixture::new();
    let world = fixture.pulling(&[gate.server.address.to_string()]);
    let daemon = Daemon::start(&world);
    let name = format!("{}/web:1", gate.server.address);
    let mut terminal = Terminal::of_command(&client(&world, &["run", "--rm", &name, "echo", "hello"]));
    gate.half.recv_timeout(TIMEOUT).expect("half of the layer is requested");
    terminal.wait_for("pulling, ");
    terminal.wait_for(" of 2 layers: ");
    gate.release.send(()).unwrap();
    // It is removed, so that the output is not beside it.
    terminal.wait_for("hello\r\n");
    assert!(terminal.wait().unwrap().success());
    assert!(daemon.terminate().success());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn images_are_removed_when_their_file_system_is_nearly_full() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let disk = Memory::mount(&fixture.images.store, "size=32m,mode=0700");
    let file = |size: usize, fill: u8| Layer::new().file("data", &vec![fill; size << 20]);
    fixture.image("used:1", &[busybox(), file(3, 1)], json!({}));
    fixture.image("kept:1", &[busybox(), file(3, 2)], json!({}));
    for (name, fill) in [("old:1", 3), ("older:1", 4), ("new:1", 5)] {
        fixture.image(name, &[busybox(), file(4, fill)], json!({}));
    }
    let mut world = fixture.world();
    let daemon = Daemon::start(&world);
    for name in ["old", "new"] {
        daemon.launch(&request(name, &format!("{name}:1"), "true")).unwrap();
        daemon.wait(&id(name)).unwrap();
    }
    daemon.launch(&request("used", "used:1", "sleep 1000")).unwrap();
    let _ = daemon.terminate();
    let names = || {
        let mut names: Vec<String> = fixture
            .images
            .run(&["ls"])
            .lines()
            .skip(1)
            .map(|line| line.split(' ').next().unwrap().into())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["kept:1", "new:1", "old:1", "older:1", "used:1"]);
    let references = fixture.images.store.join("references");
    let is_left =
        |expected: &[&str]| watch::until(&references, Duration::from_secs(60), || names() == expected);

    // 2 MiB more than there are: `older:1`, which no container has used, has 4.
    let found = rustix::fs::statvfs(&fixture.images.store).unwrap();
    let wanted = found.f_bavail * found.f_frsize + (2 << 20);
    world.config.image_gc.headroom_percent = (wanted * 100).div_ceil(found.f_blocks * found.f_frsize);
    world.config.image_gc.check_interval = Duration::from_millis(100);
    world.config.image_gc.excluded = vec!["kept:1".parse().unwrap()];
    let daemon = Daemon::start(&world);
    assert!(is_left(&["kept:1", "new:1", "old:1", "used:1"]), "{:?}", names());
    let _ = daemon.terminate();
    // More than there can be: what containers use, and what is excluded, stays.
    world.config.image_gc.headroom_percent = 99;
    let daemon = Daemon::start(&world);
    assert!(is_left(&["kept:1", "used:1"]), "{:?}", names());
    daemon.destroy(&id("used")).unwrap();
    assert!(is_left(&["kept:1"]), "{:?}", names());

    // On request, also without a shortage.
    let _ = daemon.terminate();
    world.config.image_gc.headroom_percent = 0;
    let daemon = Daemon::start(&world);
    fixture.image("one:1", &[busybox(), file(1, 6)], json!({}));
    fixture.image("two:1", &[busybox(), file(1, 7)], json!({}));
    daemon.launch(&request("two", "two:1", "sleep 1000")).unwrap();
    let none = printed(&world, &["image", "prune"]);
    assert_contains(&none, &["freed 0 B in 0 layers"]);
    let pruned = printed(&world, &["image", "prune", "--all", "--keep", "one:1"]);
    assert_contains(&pruned, &["freed 0 B in 0 layers"]);
    let pruned = printed(&world, &["image", "prune", "--all"]);
    assert_contains(&pruned, &["one:1\n", "in 1 layers"]);
    assert_eq!(names(), ["kept:1", "two:1"]);
    daemon.destroy(&id("two")).unwrap();
    for name in ["old", "new", "used", "two"] {
        daemon.remove(&id(name)).unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
    drop((daemon, disk));
}
