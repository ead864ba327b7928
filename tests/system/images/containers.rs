//! Containers whose root file system is assembled from an image.

use std::fs;
use std::process::Command as Process;

use cofferdam_core::model::Ended;
use cofferdam_core::provisioner::Backend;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::images::{Images, Layer, Member, busybox};
use cofferdam_tests::world::{World, id, launch_error, run};
use cofferdam_tests::{assert_contains, is_root, paths, text};
use serde_json::json;
use tar::EntryType;

use super::{Fixture, own, request};

/// Three layers: the second and the third remove, replace and hide what is below.
fn layers() -> [Layer; 3] {
    let lowest = busybox()
        .directory("data")
        .file("data/kept", b"kept\n")
        .file("data/removed", b"")
        .file("data/replaced", b"old\n")
        .directory("hidden")
        .file("hidden/below", b"")
        .directory("gone")
        .file("gone/file", b"")
        .directory("again")
        .file("again/old", b"");
    let middle = Layer::new()
        .directory("data")
        .file("data/.wh.removed", b"")
        .file("data/replaced", b"new\n")
        .directory("hidden")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/above", b"")
        .file(".wh.gone", b"");
    // A directory that is removed and is there again, in either order.
    let topmost = Layer::new().file(".wh.again", b"").directory("again").file("again/new", b"");
    [lowest, middle, topmost]
}

const VIEW: &str = "ls data hidden again; cat data/kept data/replaced; ls -d gone 2>/dev/null || echo no gone; \
                    echo written > /data/kept; cat /data/kept; pwd";

const SEEN: &str = "again:\nnew\n\ndata:\nkept\nreplaced\n\nhidden:\nabove\nkept\nnew\nno gone\nwritten\n";

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_seen_as_one_root_with_every_backend_and_are_not_changed() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &layers(), json!({}));
    for backend in [Backend::Auto, Backend::Overlay, Backend::Copy] {
        let mut world = fixture.world();
        world.config.image_backend = backend;
        let agent = world.start().await.unwrap();
        for _ in 0..2 {
            let mut web = request("web", "web:1", &format!("cd /; {VIEW}"));
            web.command.working_directory = Some("/".into());
            let output = run(&agent, web).await;
            assert_eq!(output, format!("{SEEN}/\n"), "{backend:?}");
            agent.remove(&id("web")).await.unwrap();
        }
        assert_eq!(world.leftovers(), Vec::<String>::new(), "{backend:?}");
    }
    let kept = fixture.images.layer("web:1", 0).join("data/kept");
    assert_eq!(text(&kept), "kept\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_layer_is_bound_read_only() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let mut image = busybox();
    for directory in ["proc", "sys", "dev", "mnt", "mnt/mesos", "mnt/mesos/sandbox"] {
        image = image.directory(directory);
    }
    fixture.image("web:1", &[image], json!({}));
    fixture.image("two:1", &[busybox(), Layer::new().file("x", b"")], json!({}));
    fixture.image("bare:1", &[busybox()], json!({}));
    let mut world = fixture.world();
    world.config.image_backend = Backend::Bind;
    let agent = world.start().await.unwrap();
    let line = "touch /x 2>&1; pwd; echo sandbox > file && cat file; ls /proc/self/status /dev/null";
    assert_eq!(
        run(&agent, request("web", "web:1", line)).await,
        "touch: /x: Read-only file system\n/mnt/mesos/sandbox\nsandbox\n/dev/null\n/proc/self/status\n"
    );
    agent.remove(&id("web")).await.unwrap();
    let error = launch_error(&agent, request("two", "two:1", "true")).await;
    assert_contains(&error, &["2 layers", "`bind`", "`overlay` or `copy`"]);
    // What has to be mounted on must be in the image.
    let error = launch_error(&agent, request("bare", "bare:1", "true")).await;
    assert_contains(&error, &["Read-only file system"]);
    let layer = fixture.images.layer("bare:1", 0);
    let names = fs::read_dir(layer).unwrap().count();
    assert_eq!(names, 2, "nothing was created in the layer");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_an_image_has_twice_is_mounted_once() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let twice = Layer::new().directory("d").file("d/x", b"twice\n").file(".wh.gone", b"");
    let between = Layer::new().file("d/x", b"between\n").file("d/y", b"y\n").file("gone", b"");
    let image = [busybox(), twice.clone(), between, twice];
    fixture.image("web:1", &image, json!({}));
    fixture.image("same:1", &[busybox(), busybox()], json!({}));
    for backend in [Backend::Overlay, Backend::Copy] {
        let mut world = fixture.world();
        world.config.image_backend = backend;
        let agent = world.start().await.unwrap();
        let line = "cat /d/x /d/y; ls /gone 2>/dev/null || echo gone";
        assert_eq!(run(&agent, request("web", "web:1", line)).await, "twice\ny\ngone\n", "{backend:?}");
        assert_eq!(run(&agent, request("same", "same:1", "echo ran")).await, "ran\n", "{backend:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_an_image_cannot_be_used_and_those_of_the_container_can() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    // That of `/dev/zero`, so that it works wherever it is not refused.
    let device =
        Member { kind: EntryType::Char, path: b"etc/zero", mode: 0o666, device: (1, 5), ..Member::default() };
    let mut image = busybox().with(&device);
    for directory in ["proc", "sys", "dev", "mnt", "mnt/mesos", "mnt/mesos/sandbox"] {
        image = image.directory(directory);
    }
    fixture.image("web:1", &[image], json!({}));
    for backend in [Backend::Overlay, Backend::Copy, Backend::Bind] {
        let mut world = fixture.world();
        world.config.image_backend = backend;
        let agent = world.start().await.unwrap();
        let line = "ls /etc/zero; cat /etc/zero 2>&1; echo x > /dev/null && cat /dev/null && echo usable";
        let expected = "/etc/zero\ncat: can't open '/etc/zero': Permission denied\nusable\n";
        assert_eq!(run(&agent, request("web", "web:1", line)).await, expected, "{backend:?}");
    }
}

/// As in CVE-2019-19921, CVE-2023-27561 and CVE-2026-41579, with images of the store.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_mount_points_are_links_is_refused_and_changes_nothing_of_the_host() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let victim = fixture.path("victim");
    for name in ["pts", "shm", "kernel", "mesos/sandbox", "fs/cgroup"] {
        fs::create_dir_all(victim.join(name)).unwrap();
    }
    for name in ["null", "kcore"] {
        fs::write(victim.join(name), "of the host").unwrap();
    }
    let listing = || {
        let output = Process::new("find").arg(&victim).args(["-printf", "%p %s %m %y\\n"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = listing();
    assert_contains(&before, &["kcore"]);
    let upwards = format!("../../../../../../../../..{}", victim.display());
    let mut images = Vec::new();
    for (kind, target) in [("absolute", victim.to_str().unwrap()), ("relative", &upwards), ("inside", "etc")]
    {
        for name in ["proc", "sys", "dev", "mnt"] {
            let image = format!("{kind}-{name}:1");
            fixture.image(&image, &[busybox(), Layer::new().symlink(name, target)], json!({}));
            images.push((image, name));
        }
    }
    for backend in [Backend::Overlay, Backend::Copy] {
        let mut world = fixture.world();
        world.config.image_backend = backend;
        let agent = world.start().await.unwrap();
        for (image, name) in &images {
            let line = "[ -c /dev/null ] && [ -r /proc/self/status ] && pwd";
            let request = request("web", image, line);
            if *name != "mnt" {
                let error = launch_error(&agent, request).await;
                assert_contains(&error, &[image, &format!("`/{name}` of the image is a symbolic link")]);
            // It leads to a directory inside of the root, or the launch fails.
            } else if agent.launch(request).await.is_ok() {
                agent.wait(&id("web")).await.unwrap();
                agent.remove(&id("web")).await.unwrap();
            }
            assert_eq!(listing(), before, "{image} {backend:?}");
        }
        assert_eq!(world.leftovers(), Vec::<String>::new(), "{backend:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_those_of_the_image() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    // The user is in a layer above the one with the program.
    let users = Layer::new().file("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:4321:1235::/:/bin/sh\n");
    fixture.image("web:1", &[busybox(), users], json!({ "User": "app" }));
    fixture.image("wrong:1", &[busybox()], json!({ "User": "nobody-has-this" }));
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    let line = "id -u; id -g; stat -c %u:%g /mnt/mesos/sandbox; echo x > file && echo writable";
    assert_eq!(run(&agent, request("web", "web:1", line)).await, "4321\n1235\n4321:1235\nwritable\n");
    let mut other = request("other", "web:1", "id -u; id -g");
    other.command.user = Some("app:0".into());
    assert_eq!(run(&agent, other).await, "4321\n0\n");
    // One of the lowest layer, which the upper one hides.
    let mut hidden = request("hidden", "web:1", "true");
    hidden.command.user = Some("web".into());
    assert_contains(&launch_error(&agent, hidden).await, &["`web`", "etc/passwd"]);
    let error = launch_error(&agent, request("wrong", "wrong:1", "true")).await;
    assert_contains(&error, &["`nobody-has-this`", "`docker/runtime`"]);
    let mut root = request("root", "wrong:1", "id -u");
    root.command.user = Some("0".into());
    assert_eq!(run(&agent, root).await, "0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_containers_have_images_of_their_own_and_debug_containers_that_of_their_parent() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("pod:1", &[busybox(), Layer::new().file("who", b"pod\n")], json!({}));
    fixture.image("web:1", &[busybox(), Layer::new().file("who", b"web\n")], json!({}));
    let world = fixture.world();
    let agent = world.start().await.unwrap();
    agent.launch(request("pod", "pod:1", "sleep 1000")).await.unwrap();
    assert_eq!(run(&agent, request("pod.web", "web:1", "cat /who")).await, "web\n");
    let mut probe = cofferdam_core::model::Request::shell(id("pod.probe"), "cat /who; id -u");
    probe.class = cofferdam_core::model::ContainerClass::Debug;
    probe.command.user = Some("web".into());
    assert_eq!(run(&agent, probe).await, "pod\n1234\n");
    agent.destroy(&id("pod")).await.unwrap();
    agent.remove(&id("pod")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 3 layers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_needs_plugins_that_handle_it() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    fixture.image("web:1", &[busybox()], json!({ "Cmd": ["true"] }));
    let mut world = fixture.world();
    world.config.isolators.retain(|plugin| plugin.name != "docker/runtime");
    let agent = world.start().await.unwrap();
    assert_contains(
        &launch_error(&agent, own("web", "web:1")).await,
        &["`image`", "none of its plugins handles"],
    );
    agent.shutdown().await;
    let mut world = fixture.world();
    world.config.isolators.retain(|plugin| plugin.name != "filesystem/linux");
    let agent = world.start().await.unwrap();
    assert_contains(&launch_error(&agent, own("web", "web:1")).await, &["filesystem/linux"]);
    assert_contains(&launch_error(&agent, own("none", "none:1")).await, &["`none:1`", "import"]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert_contains(&fixture.images.run(&["prune", "--all"]), &["in 1 layers"]);
}

#[test]
fn the_command_line_runs_images_with_and_without_a_daemon() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let config = json!({ "Cmd": ["sh", "-c", "echo $GREETING; exit 3"], "Env": ["GREETING=hello"] });
    fixture.image("web:1", &[busybox()], config);
    let Images { store } = &fixture.images;
    let run = |arguments: &[&str]| {
        let output = Process::new(paths::program()).args(arguments).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let store = store.to_str().unwrap();
    let alone = |more: &[&str]| run(&[&["run", "--image-store", store, "--image"], more].concat());
    assert_eq!(alone(&["web:1"]), (Some(3), "hello\n".into(), String::new()));
    assert_eq!(alone(&["web:1", "--", "echo", "other"]), (Some(0), "other\n".into(), String::new()));
    let (status, _, error) = alone(&["missing:1", "--pull", "never"]);
    assert_eq!(status, Some(125));
    assert_contains(&error, &["`missing:1`", "cofferdam image"]);

    let world = fixture.world();
    let daemon = Daemon::start(&world);
    let socket = world.socket();
    let socket = socket.to_str().unwrap();
    assert_eq!(
        run(&["--socket", socket, "run", "--image", "web:1"]),
        (Some(3), "hello\n".into(), String::new())
    );
    let (_, _, error) = run(&["--socket", socket, "run", "--image-store", store, "--image", "web:1"]);
    assert_contains(&error, &["--image-store", "daemon"]);
    daemon.launch(&own("web", "web:1")).unwrap();
    assert_eq!(daemon.wait(&id("web")).unwrap().exit_status, Some(3 << 8));
    // Nobody listens there.
    let failed = daemon.launch(&own("none", "127.0.0.1:1/none:1")).unwrap_err();
    assert_contains(&format!("{failed:?}"), &["cannot pull `127.0.0.1:1/none:1`"]);
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_layers_are_mounted() {
    if !is_root("containers of images") {
        return;
    }
    let fixture = Fixture::new();
    let more = (0..40).map(|number| {
        Layer::new().file(&format!("layers/{number}"), b"").file("top", number.to_string().as_bytes())
    });
    let layers: Vec<Layer> = std::iter::once(busybox()).chain(more).collect();
    fixture.image("web:1", &layers, json!({ "User": "web" }));
    let world: World = fixture.world();
    let agent = world.start().await.unwrap();
    let output =
        run(&agent, request("web", "web:1", "ls /layers | cat -n | busybox tail -n 1; cat /top; id -u"))
            .await;
    assert_contains(&output, &["40", "39"]);
    assert_contains(&output, &["1234"]);
    let termination = agent.wait(&id("web")).await.unwrap();
    assert_eq!(termination.ended(), Some(Ended::Exited(0)));
}
