//! `volume/host_path`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_core::model::{ContainerClass, Request, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world_with};

/// With the directories `data` and `outside`, of which only the first one is allowed.
fn volumes() -> Arc<World> {
    world_with(|directory| {
        let data = directory.join("data");
        fs::create_dir_all(data.join("inner")).unwrap();
        fs::write(data.join("file"), "of the host\n").unwrap();
        fs::create_dir(directory.join("outside")).unwrap();
        let config = json!({ "allowed_paths": [data], "force_creation": [data] });
        vec![isolator("volume/host_path", config)]
    })
}

fn volume(path: impl Into<PathBuf>, target: &str, read_only: bool) -> Volume {
    let source = VolumeSource::HostPath { path: path.into(), propagation: None };
    Volume { container_path: target.into(), read_only, source }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    fn with_volumes(&self, name: &str, line: &str, volumes: Vec<Volume>) -> Request {
        Request { volumes, ..self.request(name, "root", line) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_what_it_requests_and_no_more() {
    if !is_root("mounts") {
        return;
    }
    let world = volumes();
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    let data = fixture.path("data");
    let volumes = || {
        vec![
            volume(&data, "/data", false),
            volume(data.join("file"), "relative/file", true),
            volume(data.join("new/directory"), "/srv/made", false),
        ]
    };
    let line = "cat /data/file relative/file; (echo x > relative/file) 2>/dev/null || echo read-only; \
                echo written > /data/new-file; touch /srv/made/x; ls /data";
    let output = fixture.run(fixture.with_volumes("web", line, volumes())).await;
    assert_eq!(output, "of the host\nof the host\nread-only\nfile\ninner\nnew\nnew-file\n");
    assert_eq!(fs::read_to_string(data.join("new-file")).unwrap(), "written\n");
    assert!(data.join("new/directory/x").exists());
    // Another user has its own permissions.
    let mut request = fixture.with_volumes("web", "(touch /data/x) 2>/dev/null || cat /data/file", volumes());
    request.command.user = Some("web".into());
    assert_eq!(fixture.run(request).await, "of the host\n");
    // Without a root file system.
    let mut request = fixture.with_volumes("web", "cat relative/file; ls data", Vec::new());
    request.rootfs = None;
    request.volumes = vec![volume(data.join("file"), "relative/file", true), volume(&data, "data", true)];
    assert_eq!(fixture.run(request).await, "of the host\nfile\ninner\nnew\nnew-file\n");

    symlink(fixture.path("outside"), data.join("link")).unwrap();
    for (path, expected) in [
        (fixture.path("outside"), "in none of the `allowed_paths`"),
        (data.join("link"), "in none of the `allowed_paths`"),
        (data.join("../outside"), "without `..`"),
        (fixture.path("missing"), "is in no directory of `force_creation`"),
    ] {
        let request = fixture.with_volumes("web", "true", vec![volume(path, "/data", false)]);
        let message = fixture.error(request).await;
        assert!(
            message.contains("`volume/host_path`") && message.contains(expected),
            "{expected}: {message}"
        );
    }
}

/// Also in what is mounted below, by root that may mount.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_volume_is_read_only_and_mounts_do_not_reach_the_host() {
    if !is_root("mounts") {
        return;
    }
    let world = volumes();
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    let data = fixture.path("data");
    mount("none", &data, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir(data.join("inner")).unwrap();
    mount("none", data.join("inner"), "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&data, MountPropagationFlags::SHARED | MountPropagationFlags::REC).unwrap();
    fs::create_dir(data.join("inner/deep")).unwrap();
    let line = "for at in /data /data/inner /data/inner/deep; do (touch $at/x) 2>/dev/null && echo written; done; \
                busybox mount -t tmpfs none /data/inner/deep && touch /data/inner/deep/x; \
                busybox mount -t tmpfs none /free/inner/deep && touch /free/inner/deep/x; ls /free/inner/deep";
    let request =
        fixture.with_volumes("web", line, vec![volume(&data, "/data", true), volume(&data, "/free", false)]);
    let output = run(&fixture.agent, request).await;
    let on_host = fs::read_dir(data.join("inner/deep")).unwrap().count();
    unmount(&data, UnmountFlags::DETACH).unwrap();
    assert_eq!((output.as_str(), on_host), ("x\n", 0));
    fixture.agent.remove(&id("web")).await.unwrap();
    fixture.assert_nothing_left("web");
}

/// A target of an image that is a link to the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_resolved_within_the_root() {
    if !is_root("mounts") {
        return;
    }
    let world = volumes();
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    let (rootfs, outside) = (fixture.world.rootfs(), fixture.path("outside"));
    symlink(&outside, rootfs.join("link")).unwrap();
    let inside = |path: &Path| rootfs.join(path.strip_prefix("/").unwrap());
    fs::create_dir_all(inside(&outside)).unwrap();
    let line = format!("cat {}/new/file", outside.display());
    let request = fixture.with_volumes("web", &line, vec![volume(fixture.path("data"), "/link/new", true)]);
    assert_eq!(fixture.run(request).await, "of the host\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn volumes_of_nested_and_debug_containers_also_with_a_later_agent() {
    if !is_root("mounts") {
        return;
    }
    across_restart(
        &volumes(),
        async |fixture| {
            let volumes = vec![volume(fixture.path("data"), "/data", true)];
            fixture.launch(fixture.with_volumes("pod", "true", volumes)).await;
        },
        async |fixture| {
            let line = "cat /data/file || echo none";
            let nested = fixture.with_volumes("pod.nested", line, Vec::new());
            assert_eq!(run(&fixture.agent, nested).await, "none\n");
            let own = vec![volume(fixture.path("data"), "/data", true)];
            let nested = fixture.with_volumes("pod.own", line, own.clone());
            assert_eq!(run(&fixture.agent, nested).await, "of the host\n");
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            assert_eq!(run(&fixture.agent, debug.clone()).await, "of the host\n");
            debug.id = id("pod.other");
            debug.volumes = own;
            let message = cofferdam_tests::world::launch_error(&fixture.agent, debug).await;
            assert!(message.contains("debug container"), "{message}");
            fixture.destroy("pod").await;
        },
    );
}
