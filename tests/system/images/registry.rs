//! Pulls from a real registry.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use cofferdam_core::provisioner::Digest;
use cofferdam_tests::images::{Layer, busybox, gzip};
use cofferdam_tests::injector::{Fault, Injector};
use cofferdam_tests::mounts::{Memory, in_own_namespace};
use cofferdam_tests::registry::{AUTH, Registry, Server, write_login};
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::watch;
use cofferdam_tests::world::{id, run};
use cofferdam_tests::{assert_contains, is_root, paths};
use serde_json::json;

use super::{Fixture, request};

/// More steps than a pull of a small image has.
const MAX_STEPS: usize = 3000;

/// Types of an index and of a manifest in it.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An archive and its compressed blob.
pub(super) fn compressed(layer: &Layer) -> (Vec<u8>, Vec<u8>) {
    (layer.bytes(), gzip(&layer.bytes()))
}

/// An archive that gzip cannot make much smaller.
pub(crate) fn large() -> (Vec<u8>, Vec<u8>) {
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(1 << 20)
    .collect();
    compressed(&Layer::new().file("noise", &noise).file("end", b"end"))
}

impl Fixture {
    /// `cofferdam image pull` of this store, with nothing of the user of the tests.
    pub(super) fn pull_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.images.command(&["pull"]);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command
            .args(arguments)
            .env("HOME", self.path("home"))
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("NO_PROXY", "*")
            .env("PATH", path);
        command
    }

    pub(super) fn pull(&self, arguments: &[&str]) -> Output {
        self.pull_command(arguments).output().unwrap()
    }

    /// Pulls an image, and returns standard error.
    #[track_caller]
    pub(super) fn pulled(&self, arguments: &[&str]) -> String {
        let output = self.pull(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {error}");
        error
    }

    /// Pulls an image that is refused, and returns the reason. Nothing of it stays.
    #[track_caller]
    pub(super) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.pull(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}: {error}");
        error
    }
}

#[test]
fn images_are_pulled_with_credentials_of_a_file_or_of_a_helper() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(true);
    let own = Layer::new().file("motd", b"hello\n");
    registry.image("team/web", "1", &[compressed(&busybox()), compressed(&own)], "amd64");
    let fixture = Fixture::new();
    let name = registry.name("team/web:1");
    let arguments = ["--insecure", name.as_str()];
    for directory in ["docker", "home", "bin"] {
        fs::create_dir(fixture.path(directory)).unwrap();
    }
    assert_contains(&fixture.refused(&arguments), &["without credentials", "docker login", "UNAUTHORIZED"]);
    assert_contains(&fixture.refused(&[&name]), &["cannot agree on TLS", "`insecure` of `[registry]`"]);

    let config = fixture.path("docker/config.json");
    let server = registry.address.to_string();
    let wrong = json!({ "auths": { &server: { "username": "user", "password": "hunter2" } } });
    fs::write(&config, wrong.to_string()).unwrap();
    let error = fixture.refused(&arguments);
    assert_contains(&error, &["with the credentials for it"]);
    assert!(!error.contains("hunter2"), "{error}");
    // Those of another registry are not sent.
    write_login(&config, "127.0.0.1:1");
    assert_contains(&fixture.refused(&arguments), &["without credentials"]);

    write_login(&config, &server);
    assert_contains(&fixture.pulled(&arguments), &["downloading", "files"]);
    assert_eq!(fs::read_to_string(fixture.images.layer(&name, 1).join("motd")).unwrap(), "hello\n");
    assert_eq!(fixture.images.entries("downloads"), Vec::<String>::new());
    // Nothing to do.
    let again = fixture.pulled(&arguments);
    assert!(!again.contains("downloading") && again.matches("present").count() == 2, "{again}");

    // The old file.
    fixture.images.run(&["prune", "--all"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
    let old = json!({ format!("http://{server}/v1/"): { "auth": AUTH, "email": "a@b" } });
    fs::write(fixture.path("home/.dockercfg"), old.to_string()).unwrap();
    let mut command = fixture.pull_command(&arguments);
    assert!(command.env_remove("DOCKER_CONFIG").output().unwrap().status.success());

    // Helpers.
    fixture.images.run(&["prune", "--all"]);
    let helper = fixture.path("bin/docker-credential-test");
    let write_helper = |script: &str| {
        fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    };
    fs::write(&config, json!({ "credHelpers": { &server: "test" } }).to_string()).unwrap();
    for (script, reason) in [
        ("echo hunter2; exit 1", "`docker-credential-test` has failed with exit status: 1"),
        ("echo hunter2", "prints no JSON"),
        ("exec head -c 100000 /dev/zero", "prints more than 65536 bytes"),
        ("echo credentials not found in native keychain; exit 1", "without credentials"),
    ] {
        write_helper(script);
        let error = fixture.refused(&arguments);
        assert_contains(&error, &[reason]);
        assert!(!error.contains("hunter2"), "{error}");
    }
    fs::remove_file(&helper).unwrap();
    assert_contains(
        &fixture.refused(&arguments),
        &["cannot run the credential helper `docker-credential-test`"],
    );
    write_helper(&format!(
        r#"[ "$1" = get ] && [ "$(cat)" = {server} ] && echo '{{"Username": "user", "Secret": "secret"}}'"#
    ));
    fixture.pulled(&arguments);
    for name in ["../x", "a b"] {
        fs::write(&config, json!({ "credsStore": name }).to_string()).unwrap();
        fixture.images.run(&["prune", "--all"]);
        assert_contains(&fixture.refused(&arguments), &["has a name with other characters"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_run_from_an_image_that_was_pulled() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    let removed = Layer::new().file("etc/.wh.group", b"").file("motd", b"hello\n");
    registry.image("web", "1", &[compressed(&busybox()), compressed(&removed)], "amd64");
    let fixture = Fixture::new();
    let name = registry.name("web:1");
    fixture.pulled(&["--insecure", &name]);
    drop(registry);
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let output = run(&agent, request("web", &name, "cat /motd; ls /etc")).await;
    assert_eq!(output, "hello\npasswd\n");
    agent.remove(&id("web")).await.unwrap();
}

#[test]
fn run_pulls_an_image_that_is_missing() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(true);
    let motd = |text: &[u8]| [compressed(&busybox()), compressed(&Layer::new().file("motd", text))];
    registry.image("web", "1", &motd(b"old\n"), "amd64");
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("docker")).unwrap();
    write_login(&fixture.path("docker/config.json"), &registry.address.to_string());
    let config = fixture.path("agent.toml");
    fs::write(&config, format!("[registry]\ninsecure = [\"{}\"]\n", registry.address)).unwrap();
    let name = registry.name("web:1");
    let run = |pull: &[&str]| {
        let mut command = Command::new(paths::program());
        let store = fixture.images.store.to_str().unwrap();
        command.args(["run", "--config", config.to_str().unwrap(), "--image-store", store]).args(pull);
        command.args(["--image", &name, "--", "cat", "/motd"]).stdin(Stdio::null());
        command.env("HOME", fixture.path("home")).env("DOCKER_CONFIG", fixture.path("docker"));
        let output = command.env("NO_PROXY", "*").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, _, error) = run(&["--pull", "never"]);
    assert_eq!(status, Some(125), "{error}");
    assert_contains(&error, &["there is no image", "cofferdam image pull"]);
    let (status, output, error) = run(&[]);
    assert_eq!((status, output.as_str()), (Some(0), "old\n"), "{error}");
    assert_contains(&error, &["downloading"]);
    registry.image("web", "1", &motd(b"new\n"), "amd64");
    assert_eq!(run(&[]).1, "old\n");
    let (_, output, log) = run(&["--pull", "always", "--log", "trace"]);
    assert_eq!(output, "new\n");
    assert_contains(&log, &["INFO"]);
    assert!(!log.contains(AUTH) && !log.to_lowercase().contains("authorization"), "{log}");
    // One for another platform cannot be run.
    let (native, other) = match cfg!(target_arch = "aarch64") {
        true => ("arm64", "amd64"),
        false => ("amd64", "arm64"),
    };
    registry.image("web", "1", &motd(b"other\n"), other);
    fixture.pulled(&["--insecure", "--platform", &format!("linux/{other}"), &name]);
    registry.image("web", "1", &motd(b"new\n"), native);
    assert_eq!(run(&[]).1, "new\n");
    drop(registry);
    let (status, _, error) = run(&["--pull", "always"]);
    assert_eq!(status, Some(125), "{error}");
    assert_contains(&error, &["cannot pull"]);
    assert_eq!(run(&[]).1, "new\n", "without a registry");
}

#[test]
fn the_image_of_an_index_is_the_one_for_the_platform_and_is_found_by_the_digest_of_the_index() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    let manifests = ["arm64", "amd64"].map(|architecture| {
        let layer = compressed(&Layer::new().file("architecture", architecture.as_bytes()));
        let mut manifest = registry.image("web", architecture, &[layer], architecture);
        manifest["platform"] = json!({ "architecture": architecture, "os": "linux" });
        manifest
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let index = registry.manifest("web", "1", INDEX, &index);
    let digest = index["digest"].as_str().unwrap().to_owned();
    let fixture = Fixture::new();
    let tagged = registry.name("web:1");
    let pinned = registry.name(&format!("web@{digest}"));
    let architecture =
        |name: &str| fs::read_to_string(fixture.images.layer(name, 0).join("architecture")).unwrap();
    let native = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    fixture.pulled(&["--insecure", &tagged]);
    assert_eq!(architecture(&tagged), native);
    let other = if native == "arm64" { "amd64" } else { "arm64" };
    fixture.pulled(&["--insecure", "--platform", &format!("linux/{other}"), &tagged]);
    assert_eq!(architecture(&tagged), other);
    let error = fixture.refused(&["--insecure", "--platform", "linux/riscv64", &tagged]);
    assert_contains(&error, &["no image for linux/riscv64", "linux/arm64, linux/amd64"]);
    let error = fixture.refused(&["--insecure", "--platform", "linux/riscv64", &registry.name("web:amd64")]);
    assert_contains(&error, &["no image for linux/riscv64", "linux/amd64"]);

    fixture.pulled(&["--insecure", &pinned]);
    assert_eq!(architecture(&pinned), native);
    let wrong = registry.name(&format!("web@{}", Digest::of(b"other")));
    assert_contains(&fixture.refused(&["--insecure", &wrong]), &["the registry has no manifest `sha256:"]);
    drop(registry);
    // Nobody has to be asked for a digest.
    assert_contains(&fixture.pulled(&[&pinned]), &["present"]);
    assert_eq!(fixture.images.inspect(&pinned)["names"], json!([pinned]));
}

/// A registry that sends half of each blob whose beginning is requested, and then does `then`.
fn halving(registry: &Registry, then: impl Fn() + Send + Sync + 'static) -> Server {
    let address = registry.address;
    Server::start(move |request, stream| {
        let response = request.forward(address);
        let is_half =
            request.path.contains("/blobs/") && request.header("range").is_none() && response.len() > 100_000;
        let end = if is_half { response.len() / 2 } else { response.len() };
        drop(stream.write_all(&response[..end]));
        if is_half {
            then();
        }
    })
}

#[test]
fn a_connection_that_breaks_is_resumed() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[large()], "amd64");
    let server = halving(&registry, || {});
    let fixture = Fixture::new();
    let name = format!("{}/web:1", server.address);
    let log = fixture.pulled(&["--insecure", &name]);
    assert_contains(&log, &["next attempt in", "continuing after"]);
    assert_eq!(fs::read_to_string(fixture.images.layer(&name, 0).join("end")).unwrap(), "end");
    let ranges = server.seen().into_iter().filter_map(|request| request.header("range"));
    assert_eq!(ranges.count(), 1);
}

#[test]
fn a_server_without_ranges_sends_the_whole_again() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    let (_, blob) = large();
    registry.image("web", "1", &[large()], "amd64");
    let address = registry.address;
    for (status, range) in
        [("416 Range Not Satisfiable", ""), ("206 Partial Content", "Content-Range: bytes 7-8/9\r\n")]
    {
        let server = Server::start(move |request, stream| match request.header("range") {
            Some(_) => cofferdam_tests::registry::respond(stream, status, range, b"xx"),
            None => drop(stream.write_all(&request.forward(address))),
        });
        let fixture = Fixture::new();
        let name = format!("{}/web:1", server.address);
        // As a pull that was killed leaves it.
        fixture.image("other:1", &[Layer::new().file("other", b"")], json!({}));
        let downloads = fixture.images.store.join("downloads");
        fs::write(downloads.join(Digest::of(&blob).hex()), &blob[..1000]).unwrap();
        fixture.pulled(&["--insecure", &name]);
        assert_eq!(fs::read_to_string(fixture.images.layer(&name, 0).join("end")).unwrap(), "end");
        assert!(server.seen().iter().any(|request| request.header("range").is_some()));
    }
}

#[test]
fn a_full_disk_ends_a_pull_and_nothing_of_it_stays() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[large()], "amd64");
    let mut fixture = Fixture::new();
    fixture.images.store = fixture.path("disk/store");
    let config = fixture.path("agent.toml");
    // The same again as a mirror.
    let address = registry.address;
    let text = format!(
        "[registry]\ninsecure = [\"{address}\"]\n[registry.mirrors]\n\"{address}\" = [\"{address}\"]\n"
    );
    fs::write(&config, text).unwrap();
    let arguments = ["--config", config.to_str().unwrap(), &registry.name("web:1")];
    in_own_namespace(|| {
        // Space for the blob, and for less than that.
        for size in ["size=1536k", "size=512k"] {
            let _memory = Memory::mount(&fixture.path("disk"), size);
            let error = fixture.refused(&arguments);
            assert_contains(&error, &["No space left on device"]);
            assert!(!error.contains("next registry") && !error.contains("next attempt"), "{error}");
            for name in fixture.images.entries("downloads") {
                let partial = fixture.images.store.join("downloads").join(name);
                assert_eq!(fs::metadata(partial).unwrap().len(), 0, "{size}");
            }
            assert_eq!(fixture.images.entries("staging"), Vec::<String>::new());
        }
    });
}

#[test]
fn a_pull_that_is_killed_is_continued_by_the_next_one() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    let (_, blob) = large();
    registry.image("web", "1", &[large()], "amd64");
    let (sender, half) = mpsc::channel();
    let (_keep, forever) = mpsc::channel::<()>();
    let (sender, forever) = (Mutex::new(sender), Mutex::new(forever));
    let server = halving(&registry, move || {
        let _ = sender.lock().unwrap().send(());
        // Until the test has ended.
        let _ = forever.lock().unwrap().recv();
    });
    let fixture = Fixture::new();
    let name = format!("{}/web:1", server.address);
    let mut command = fixture.pull_command(&["--insecure", &name]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    half.recv().unwrap();
    let digest = Digest::of(&blob).hex();
    let partial = fixture.images.store.join("downloads").join(&digest);
    let has_begun = || fs::metadata(&partial).is_ok_and(|partial| partial.len() > 0);
    assert!(watch::until(partial.parent().unwrap(), Duration::from_secs(60), has_begun));
    child.kill().unwrap();
    child.wait().unwrap();
    let received = fs::metadata(&partial).unwrap().len();
    let log = fixture.pulled(&["--insecure", &name]);
    assert_contains(&log, &["continuing after"]);
    let last = server.seen().into_iter().rev().find_map(|request| request.header("range"));
    assert_eq!(last, Some(format!("bytes={received}-")));
    assert_eq!(fs::read_to_string(fixture.images.layer(&name, 0).join("end")).unwrap(), "end");

    // What was damaged on disk is discarded.
    fixture.images.run(&["prune", "--all"]);
    fs::write(&partial, vec![0; 1000]).unwrap();
    let name = registry.name("web:1");
    fixture.pulled(&["--insecure", &name]);
    assert_eq!(fs::read_to_string(fixture.images.layer(&name, 0).join("end")).unwrap(), "end");
    fs::write(&partial, vec![0; 1000]).unwrap();
    fixture.images.run(&["prune", "--all"]);
    assert_eq!(fixture.images.leftovers(), Vec::<String>::new());
}

#[test]
fn a_pull_that_is_killed_anywhere_leaves_a_store_that_works() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    let layers = [Layer::new().directory("d").file("d/one", b"1"), Layer::new().file("d/two", b"2")];
    registry.image("web", "1", &layers.each_ref().map(compressed), "amd64");
    let fixture = Fixture::new();
    fixture.image("kept:1", &[Layer::new().file("kept", b"")], json!({}));
    let name = registry.name("web:1");
    let mut hits = 0;
    for step in 1..MAX_STEPS {
        let mut command = fixture.pull_command(&["--insecure", &name]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (mut child, injector) = Injector::spawn(command).unwrap();
        injector.arm(Fault::Kill, &[step]);
        let status = child.wait().unwrap();
        let hit = injector.disarm().hit.first().map(ToString::to_string);
        if hit.is_none() {
            assert!(status.success());
            break;
        }
        hits += 1;
        let listed = fixture.images.run(&["ls", "-q"]);
        listed.lines().for_each(|id| drop(fixture.images.inspect(id)));
        // The next pull completes it and removes what is left.
        fixture.pulled(&["--insecure", &name]);
        for directory in ["staging", "downloads"] {
            assert_eq!(fixture.images.entries(directory), Vec::<String>::new(), "after {hit:?}");
        }
        let two = fixture.images.layer(&name, 1).join("d/two");
        assert_eq!(fs::read_to_string(two).unwrap(), "2", "after {hit:?}");
        fixture.images.run(&["rm", &name]);
        assert_eq!(fixture.images.entries("layers/sha256").len(), 1, "after {hit:?}");
    }
    assert!(hits > 10, "only {hits} steps");
}

#[test]
fn concurrent_pulls_of_one_image_download_it_once() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    let (_, blob) = large();
    registry.image("web", "1", &[large()], "amd64");
    let (address, layer) = (registry.address, format!("/v2/web/blobs/{}", Digest::of(&blob)));
    let (requested, first) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (requested, released) = (Mutex::new(requested), Mutex::new(released));
    let downloads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&downloads);
    let server = Server::start(move |request, stream| {
        if request.path == layer {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = requested.lock().unwrap().send(());
            let _ = released.lock().unwrap().recv();
        }
        drop(stream.write_all(&request.forward(address)));
    });
    let fixture = Fixture::new();
    let name = format!("{}/web:1", server.address);
    let spawn = || {
        let mut command = fixture.pull_command(&["--insecure", &name]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut one = spawn();
    first.recv().unwrap();
    let wait = || {
        let mut child = spawn();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        assert_contains(&line, &["another command is pulling it"]);
        (child, log)
    };
    let (mut two, mut log) = wait();
    let (mut cancelled, _) = wait();
    cancelled.kill().unwrap();
    cancelled.wait().unwrap();
    release.send(()).unwrap();
    for child in [&mut one, &mut two] {
        assert!(child.wait().unwrap().success());
    }
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_contains(&rest, &["present"]);
    assert_eq!(downloads.load(Ordering::SeqCst), 1);
    fixture.images.inspect(&name);
}

/// Sends half of each blob of a layer, and the rest when the test says so.
pub(super) struct Gate {
    pub(super) server: Server,
    /// Receives when half of a blob was sent, its digest.
    pub(super) half: mpsc::Receiver<String>,
    pub(super) release: mpsc::Sender<()>,
}

impl Gate {
    pub(super) fn new(registry: &Registry, layers: Vec<String>) -> Self {
        let address = registry.address;
        let ((sent, half), (release, released)) = (mpsc::channel(), mpsc::channel());
        let (sent, released) = (Mutex::new(sent), Mutex::new(released));
        let server = Server::start(move |request, stream| {
            let response = request.forward(address);
            let layer = layers.iter().find(|layer| request.path.ends_with(layer.as_str()));
            let (first, rest) = response.split_at(if layer.is_some() { response.len() / 2 } else { 0 });
            drop(stream.write_all(first));
            if let Some(layer) = layer {
                let _ = sent.lock().unwrap().send(layer.clone());
                let _ = released.lock().unwrap().recv();
            }
            drop(stream.write_all(rest));
        });
        Self { server, half, release }
    }
}

#[test]
fn each_layer_has_a_bar_on_a_terminal_while_it_is_received() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    let noise: Vec<u8> = large().0.iter().rev().copied().collect();
    let layers = [large(), compressed(&Layer::new().file("other", &noise))];
    registry.image("web", "1", &layers, "amd64");
    let digests = layers.iter().map(|(_, blob)| Digest::of(blob).to_string()).collect();
    let gate = Gate::new(&registry, digests);
    let fixture = Fixture::new();
    let name = format!("{}/web:1", gate.server.address);
    let mut terminal = Terminal::of_command(&fixture.pull_command(&["--insecure", &name]));
    // One after the other, or at the same time.
    for _ in &layers {
        let digest = gate.half.recv().unwrap();
        let (archive, _) = layers.iter().find(|(_, blob)| Digest::of(blob).to_string() == digest).unwrap();
        // Its name is that of its content.
        let bar = format!("layer {}: ", Digest::of(archive).short());
        terminal.wait_for(&bar);
        terminal.wait_for("░");
        terminal.wait_for(" of 1.0");
        gate.release.send(()).unwrap();
    }
    terminal.wait_for(" files, ");
    terminal.wait_for(" files, ");
    assert!(terminal.wait().unwrap().success());
    // In a pipe, there are lines.
    fixture.images.run(&["prune", "--all"]);
    let name = registry.name("web:1");
    let log = fixture.pulled(&["--insecure", &name]);
    assert!(!log.contains('\u{1b}') && log.matches(": downloading 1.").count() == 2, "{log}");
}

#[test]
fn mirrors_are_asked_first_and_fail_without_harm() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[large()], "amd64");
    // Has the manifest, but not the layer.
    let address = registry.address;
    let mirror = Server::start(move |request, stream| match request.path.contains("/blobs/") {
        true => cofferdam_tests::registry::respond(stream, "404 Not Found", "", b"{}"),
        false => drop(stream.write_all(&request.forward(address))),
    });
    let fixture = Fixture::new();
    let config = fixture.path("agent.toml");
    let text = format!(
        "[registry]\ninsecure = [\"{address}\", \"{}\"]\n[registry.mirrors]\n\"{address}\" = [\"{}\"]\n",
        mirror.address, mirror.address
    );
    fs::write(&config, text).unwrap();
    let name = registry.name("web:1");
    let log = fixture.pulled(&["--config", config.to_str().unwrap(), &name]);
    assert_contains(&log, &[&mirror.address.to_string(), "asking the next registry"]);
    assert_eq!(fs::read_to_string(fixture.images.layer(&name, 0).join("end")).unwrap(), "end");
    assert!(!mirror.seen().is_empty());
    // A mirror alone is enough.
    let has_failed = Arc::new(AtomicBool::new(false));
    let mirror = {
        let has_failed = Arc::clone(&has_failed);
        Server::start(move |request, stream| match has_failed.swap(true, Ordering::SeqCst) {
            true => drop(stream.write_all(&request.forward(address))),
            false => {
                cofferdam_tests::registry::respond(
                    stream,
                    "503 Service Unavailable",
                    "Retry-After: 0\r\n",
                    b"",
                );
            }
        })
    };
    let text = format!(
        "[registry]\ninsecure = [\"{0}\"]\n[registry.mirrors]\n\"registry.example\" = [\"{0}\"]\n",
        mirror.address
    );
    fs::write(&config, text).unwrap();
    let log = fixture.pulled(&["--config", config.to_str().unwrap(), "registry.example/web:1"]);
    assert_contains(&log, &["503 Service Unavailable", "next attempt in 0ns"]);
    fs::write(&config, "[registry]\ninsecure = [\"http://x\"]\n").unwrap();
    let error = fixture.refused(&["--config", config.to_str().unwrap(), &name]);
    assert_contains(&error, &["invalid registry `http://x`", "agent.toml:2"]);
}
