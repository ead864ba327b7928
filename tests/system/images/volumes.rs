//! Volumes that are images: `volume/image`.

use std::fs;
use std::path::Path;
use std::process::Command as Process;
use std::thread;

use cofferdam::api::operator::encode_launch;
use cofferdam::api::operator::types::Bytes;
use cofferdam_core::model::{ContainerClass, Phase, Request, Volume, VolumeSource};
use cofferdam_core::provisioner::Backend;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::images::{Layer, Member, busybox};
use cofferdam_tests::registry::{AUTH, Registry};
use cofferdam_tests::world::{id, launch_error, run, with_agent};
use cofferdam_tests::{assert_contains, is_root, paths, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tar::EntryType;

use super::agent::{Stalling, exit_code, printed, refused};
use super::registry::{compressed, large};
use super::{Fixture, request};

fn volume(image: &str, target: &str, read_only: bool) -> Volume {
    let source = VolumeSource::Image { image: image.into(), force_pull: false, root: None };
    Volume { container_path: target.into(), read_only, source }
}

/// Two layers: the upper one removes a file, hides the content of a directory, and has the device of `/dev/zero`.
fn data() -> [Layer; 2] {
    let device =
        Member { kind: EntryType::Char, path: b"zero", mode: 0o666, device: (1, 5), ..Member::default() };
    [
        Layer::new().file("kept", b"kept\n").file("removed", b"").directory("d").file("d/below", b""),
        Layer::new().file(".wh.removed", b"").directory("d").file("d/.wh..wh..opq", b"").with(&device),
    ]
}

impl Fixture {
    /// With the images `web:1`, `data:1` of two layers, and `one:1` of one layer.
    fn with_images() -> Self {
        let fixture = Self::new();
        let mut image = busybox();
        for directory in ["proc", "sys", "dev", "mnt", "mnt/mesos", "mnt/mesos/sandbox", "one"] {
            image = image.directory(directory);
        }
        fixture.image("web:1", &[image], json!({}));
        fixture.image("data:1", &data(), json!({ "User": "nobody-has-this", "Cmd": ["none"] }));
        fixture.image("one:1", &[Layer::new().file("file", b"one\n")], json!({}));
        fixture
    }

    /// The containers of all agents that use something of the store, with their volumes.
    fn uses(&self) -> Vec<String> {
        let mut uses = Vec::new();
        for directory in self.images.entries("uses") {
            let volume =
                directory.split_once('.').map(|(_, number)| format!("+{number}")).unwrap_or_default();
            let users = self.images.entries(&format!("uses/{directory}"));
            uses.extend(users.into_iter().map(|id| format!("{id}{volume}")));
        }
        uses.sort();
        uses
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_volume_is_an_image_of_its_own_whose_changes_end_with_the_container() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let line = "cd /; ls -A data data/d; cat data/kept; echo new > data/kept; touch data/d/x; rm data/zero; \
                cat data/kept again/kept; ls -A again/d; (touch again/x) 2>&1; cat one/file; (touch one/x) 2>&1; \
                cat /again/zero 2>&1; cat /mnt/mesos/sandbox/lib/kept; touch /mnt/mesos/sandbox/lib/x; ls data/d";
    let expected = "data:\nd\nkept\nzero\n\ndata/d:\nkept\nnew\nkept\ntouch: again/x: Read-only file system\none\n\
                    touch: one/x: Read-only file system\ncat: can't open '/again/zero': Permission denied\nkept\nx\n";
    for backend in [Backend::Auto, Backend::Overlay, Backend::Copy] {
        let mut world = fixture.world();
        world.config.image_backend = backend;
        let agent = world.start().await.unwrap();
        for name in ["web", "web+1"] {
            let mut web = request(name, "web:1", line);
            web.volumes = vec![
                volume("data:1", "/data", false),
                volume("data:1", "/again", true),
                volume("one:1", "/one", true),
                volume("data:1", "lib", false),
            ];
            assert_eq!(run(&agent, web).await, expected, "{backend:?}");
            agent.remove(&id(name)).await.unwrap();
        }
        assert_eq!(fixture.uses(), Vec::<String>::new());
        assert_eq!(world.leftovers(), Vec::<String>::new(), "{backend:?}");
    }
    let lowest = fixture.images.layer("data:1", 0);
    assert_eq!((text(&lowest.join("kept")).as_str(), fs::read_dir(lowest).unwrap().count()), ("kept\n", 3));
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 4 layers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_backend_bind_volumes_are_read_only() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let mut world = fixture.world();
    world.config.image_backend = Backend::Bind;
    let agent = world.start().await.unwrap();
    let mut web = request("web", "web:1", "cat /one/file; (touch /one/x) 2>&1");
    web.volumes = vec![volume("one:1", "/one", true)];
    assert_eq!(run(&agent, web.clone()).await, "one\ntouch: /one/x: Read-only file system\n");
    web.id = id("other");
    web.volumes = vec![volume("one:1", "/one", false)];
    assert_contains(
        &launch_error(&agent, web.clone()).await,
        &["`volume/image`", "`one:1`", "`/one`", "`bind`"],
    );
    web.volumes = vec![volume("data:1", "/one", true)];
    assert_contains(
        &launch_error(&agent, web).await,
        &["`data:1`", "`/one`", "2 layers", "`overlay` or `copy`"],
    );
    agent.remove(&id("web")).await.unwrap();
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_independent_of_the_root_file_system() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let mut web = Request::shell(id("web"), "cat lib/kept; touch lib/x && ls -A lib | busybox wc -l");
    web.rootfs = Some(world.rootfs());
    web.volumes = vec![volume("data:1", "lib", false)];
    assert_eq!(run(&agent, web.clone()).await, "kept\n4\n");
    let mut host = Request::shell(id("host"), "cat lib/kept; (touch lib/x) 2>/dev/null || echo read-only");
    host.volumes = vec![volume("data:1", "lib", true)];
    assert_eq!(run(&agent, host).await, "kept\nread-only\n");
    let sandbox = agent.inspect(&id("host")).unwrap().sandbox;
    assert_eq!(fs::read_dir(sandbox.join("lib")).unwrap().count(), 0, "it is mounted in the container only");
    for name in ["web", "host"] {
        agent.remove(&id(name)).await.unwrap();
    }
    // Nothing of the host is created for a volume.
    web.rootfs = None;
    web.volumes = vec![volume("data:1", "/no-such-directory-of-the-host", true)];
    assert_contains(
        &launch_error(&agent, web).await,
        &["`/no-such-directory-of-the-host`", "does not exist"],
    );
    assert!(!Path::new("/no-such-directory-of-the-host").exists());
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_containers_have_volumes_of_their_own_and_debug_containers_none() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let mut pod = request("pod", "web:1", "echo pod > /data/kept; echo ready; sleep 1000");
    pod.volumes = vec![volume("data:1", "/data", false)];
    agent.launch(pod).await.unwrap();
    let mut nested = request("pod.web", "web:1", "cat /data/kept /one/file");
    nested.volumes = vec![volume("data:1", "/data", false), volume("one:1", "/one", true)];
    assert_eq!(run(&agent, nested).await, "kept\none\n");
    assert_eq!(fixture.uses(), ["pod", "pod+1"]);
    let mut debug = Request::shell(id("pod.debug"), "true");
    debug.class = ContainerClass::Debug;
    debug.volumes = vec![volume("data:1", "/data", true)];
    assert_contains(&launch_error(&agent, debug).await, &["`pod.debug`", "DEBUG", "leave the volume out"]);
    // What a volume needs stays in the store.
    let pruned = fixture.images.run(&["prune", "--all"]);
    assert_contains(&pruned, &["one:1\n", "in 1 layers"]);
    assert!(!pruned.contains("data:1"), "{pruned}");
    agent.destroy(&id("pod")).await.unwrap();
    agent.remove(&id("pod")).await.unwrap();
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 3 layers"]);
}

#[test]
fn a_volume_that_cannot_be_provided_fails_the_launch_and_leaves_nothing() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let mut world = fixture.world();
    let mut web = request("web", "web:1", "true");
    with_agent(&world, async |agent| {
        web.volumes = vec![volume("one:1", "/one", false), volume("none:1", "/none", true)];
        let error = launch_error(&agent, web.clone()).await;
        assert_contains(&error, &["`web`", "`none:1`", "volume `/none`", "cofferdam image import"]);
        web.volumes = vec![volume("one:1", "/one/../two", true)];
        assert_contains(&launch_error(&agent, web.clone()).await, &["`volume/image`", "`..`"]);
        assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
    });
    world.config.isolators.retain(|plugin| plugin.name != "volume/image");
    web.volumes = vec![volume("one:1", "/one", true)];
    let error = with_agent(&world, async |agent| launch_error(&agent, web).await);
    assert_contains(&error, &["`volumes.image`", "none of its plugins handles"]);
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_links_in_an_image_lead_nowhere_on_the_host() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let victim = fixture.path("victim");
    fs::create_dir_all(victim.join("below")).unwrap();
    let upwards = format!("../../../../../../../../..{}", victim.display());
    let links = busybox()
        .directory("proc")
        .directory("sys")
        .directory("dev")
        .symlink("absolute", victim.to_str().unwrap())
        .symlink("relative", &upwards);
    fixture.image("links:1", &[links], json!({}));
    let escape = [Layer::new().symlink("out", victim.to_str().unwrap()).symlink("up", &upwards)];
    fixture.image("escape:1", &escape, json!({}));
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let line = "for link in out up; do (ls /in/$link) 2>/dev/null && echo escaped; done; exit 0";
    let mut web = request("web", "links:1", line);
    web.volumes = vec![volume("escape:1", "/in", false)];
    assert_eq!(run(&agent, web.clone()).await, "", "a volume's links are those of the container");
    agent.remove(&id("web")).await.unwrap();
    for target in ["/absolute", "/relative", "/absolute/below", "/relative/new"] {
        web.volumes = vec![volume("data:1", target, false)];
        web.command.value = Some("exit 0".to_owned());
        // Within the root file system of the container, or not at all.
        if agent.launch(web.clone()).await.is_ok() {
            agent.wait(&id("web")).await.unwrap();
            agent.remove(&id("web")).await.unwrap();
        }
        let found: Vec<_> = fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, ["below"], "{target}");
        assert_eq!(fs::read_dir(victim.join("below")).unwrap().count(), 0, "{target}");
        assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()), "{target}");
    }
}

#[test]
fn a_container_outlives_a_chain_without_the_plugin() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let mut world = fixture.world();
    let mut web = request("web", "web:1", "sleep 1000");
    web.volumes = vec![volume("data:1", "/data", false), volume("one:1", "/one", true)];
    let pid = with_agent(&world, async |agent| {
        agent.launch(web.clone()).await.unwrap();
        agent.inspect(&id("web")).unwrap().summary.pid
    });
    let chain = world.config.isolators.clone();
    world.config.isolators.retain(|plugin| plugin.name != "volume/image");
    with_agent(&world, async |agent| {
        let found = agent.inspect(&id("web")).unwrap().summary;
        assert_eq!((found.phase, found.pid), (Phase::Running, pid), "{found:?}");
        web.id = id("other");
        assert_contains(&launch_error(&agent, web.clone()).await, &["`volumes.image`"]);
    });
    assert_eq!(fixture.uses(), ["web", "web+1", "web+2"]);
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 0 layers"]);
    world.config.isolators = chain;
    with_agent(&world, async |agent| {
        assert_eq!(agent.inspect(&id("web")).unwrap().summary.pid, pid);
        agent.destroy(&id("web")).await.unwrap();
        agent.remove(&id("web")).await.unwrap();
    });
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
}

#[test]
fn volumes_survive_the_agent_and_are_swept_after_a_crash() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(false);
    registry.image("web", "1", &[large()], "amd64");
    let (stalling, fixture) = (Stalling::new(&registry), Fixture::with_images());
    let world = fixture.pulling(&[stalling.server.address.to_string()]);
    let daemon = Daemon::start(&world);
    let line = "echo new > /data/kept; busybox mkfifo /go; read line < /go; cat /data/kept one/file";
    let mut web = request("web", "web:1", line);
    web.volumes = vec![volume("data:1", "/data", false), volume("one:1", "one", true)];
    daemon.launch(&web).unwrap();
    // Another one, whose launch does not end: one of its images is pulled.
    let mut other = request("other", "web:1", "true");
    other.volumes = vec![volume("one:1", "/one", true), volume(&stalling.name(), "/large", true)];
    thread::scope(|scope| {
        let launching = scope.spawn(|| daemon.launch(&other));
        stalling.wait_half();
        assert_eq!(fixture.uses(), ["other", "other+1", "web", "web+1", "web+2"]);
        kill(Pid::from_raw(daemon.pid()), Signal::SIGKILL).unwrap();
        assert!(launching.join().unwrap().unwrap_err().is_disconnected());
        stalling.wait_gone();
    });
    daemon.kill();
    let daemon = Daemon::start(&world);
    daemon.wait(&id("other")).unwrap();
    daemon.remove(&id("other")).unwrap();
    assert_eq!(fixture.uses(), ["web", "web+1", "web+2"]);
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 0 layers"]);
    assert_eq!(
        printed(
            &world,
            &[
                "exec",
                "web",
                "--",
                "sh",
                "-c",
                "while ! [ -p /go ]; do sleep 0.01; done; cat /data/kept; echo > /go"
            ]
        ),
        "new\n"
    );
    assert_eq!(exit_code(&daemon, "web"), 0);
    assert_eq!(printed(&world, &["logs", "web"]), "new\none\n");
    daemon.remove(&id("web")).unwrap();
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 4 layers"]);
    assert!(daemon.terminate().success());
}

#[test]
fn images_of_volumes_are_pulled_with_their_own_credentials() {
    if !is_root("containers of images") {
        return;
    }
    let registry = Registry::start(true);
    registry.image("data", "1", &[compressed(&Layer::new().file("file", b"pulled\n"))], "amd64");
    let (fixture, name) = (Fixture::with_images(), registry.name("data:1"));
    let mut world = fixture.pulling(&[registry.address.to_string()]);
    let login = fixture.path("config.json");
    fs::write(&login, "{}").unwrap();
    world.config.registry.credentials = Some(login);
    let daemon = Daemon::start(&world);
    let mut web = request("web", "web:1", "cat /a/file /b/file");
    web.volumes = vec![volume(&name, "/a", true), volume(&name, "/b", false)];
    let error = refused(daemon.launch(&web));
    assert_contains(&error, &[&name, "as its volume `/a`", "without credentials"]);
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));

    let mut launch = serde_json::to_value(encode_launch(&web)).unwrap();
    let config = json!({ "auths": { registry.address.to_string(): { "auth": AUTH } } }).to_string();
    for number in 0..2 {
        launch["container"]["volumes"][number]["image"]["docker"]["config"] =
            json!({ "type": "VALUE", "value": { "data": Bytes(config.clone().into_bytes()) } });
    }
    daemon.call(&json!({ "type": "LAUNCH_CONTAINER", "launch_container": launch })).unwrap();
    assert_eq!(exit_code(&daemon, "web"), 0);
    assert_eq!(printed(&world, &["logs", "web"]), "pulled\npulled\n");
    assert!(world.files_with(AUTH).is_empty());
    assert!(!printed(&world, &["inspect", "--json", "web"]).contains(AUTH));
    daemon.remove(&id("web")).unwrap();
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
    assert!(daemon.terminate().success());
}

#[test]
fn the_command_line_mounts_images_with_and_without_a_daemon() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::with_images();
    let world = fixture.world();
    let daemon = Daemon::start(&world);
    let mount = ["--mount", "type=image,src=one:1,dst=/one,readonly", "web:1", "cat", "/one/file"];
    assert_eq!(printed(&world, &[&["run", "--rm"][..], &mount].concat()), "one\n");
    let mut alone = Process::new(paths::program());
    alone.args(["run", "--image-store"]).arg(&fixture.images.store).args(mount);
    let output = alone.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "one\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!((fixture.uses(), world.leftovers()), (Vec::new(), Vec::new()));
    assert!(daemon.terminate().success());
}
