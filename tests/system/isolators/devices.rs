//! `linux/devices`.

use std::fs;
use std::os::unix::fs::symlink;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{ContainerClass, Request, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run, sandbox_logger};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world};

fn devices() -> Vec<PluginConfig> {
    let config = json!({ "allowed_devices": [
        { "path": "/dev/kmsg", "access": "r" },
        { "path": "/dev/loop-control", "on_request": true },
    ] });
    vec![isolator("linux/devices", config)]
}

fn exist() -> bool {
    let exist = ["/dev/kmsg", "/dev/loop-control"].iter().all(|path| fs::exists(path).unwrap());
    if !exist {
        eprintln!("SKIPPED: this machine has no /dev/kmsg or /dev/loop-control");
    }
    is_root("device nodes") && exist
}

const SHOW: &str = "for d in /dev/kmsg /dev/loop-control /dev/control/one; do \
                    test -e $d && busybox stat -c '%n %F %t:%T %a %u' $d; done";
const KMSG: &str = "/dev/kmsg character special file 1:b 444 0\n";

fn volume(target: &str) -> Volume {
    let source = VolumeSource::Device { path: "/dev/loop-control".into() };
    Volume { container_path: target.into(), read_only: false, source }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_to_a_standard_device_can_be_restricted() {
    if !is_root("device nodes") {
        return;
    }
    let config = json!({ "allowed_devices": [{ "path": "/dev/zero", "access": "r" }] });
    let fixture = Fixture::start(vec![isolator("linux/devices", config)]).await;
    let line = "busybox stat -c '%t:%T %a %u' /dev/zero; (echo x > /dev/zero) 2>/dev/null || echo refused";
    assert_eq!(fixture.run(fixture.request("web", "web", line)).await, "1:5 444 0\nrefused\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_the_configured_and_the_requested_devices() {
    if !exist() {
        return;
    }
    let fixture = Fixture::start(devices()).await;
    assert_eq!(fixture.run(fixture.request("web", "root", SHOW)).await, KMSG);
    let mut request = fixture.request("web", "web", SHOW);
    request.volumes.push(volume("/dev/control/one"));
    let expected = format!("{KMSG}/dev/control/one character special file a:ed 666 0\n");
    assert_eq!(fixture.run(request).await, expected);
    // The permissions hold for users other than root.
    let line = "(echo x > /dev/kmsg) 2>/dev/null || echo refused";
    assert_eq!(fixture.run(fixture.request("web", "web", line)).await, "refused\n");
    let mut other = fixture.request("web", "root", "true");
    let source = VolumeSource::Device { path: "/dev/mem".into() };
    other.volumes.push(Volume { source, ..volume("/dev/mem") });
    let message = fixture.error(other).await;
    assert!(message.contains("`/dev/mem`, which is not among `allowed_devices`"), "{message}");
    let mut bare = fixture.request("web", "root", "true");
    bare.rootfs = None;
    bare.volumes.push(volume("/dev/loop-control"));
    assert!(fixture.error(bare).await.contains("without a root file system"));
}

/// An image whose `/dev` is a link to a directory of the host, in both modes of the root file system.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_created_in_the_container_only() {
    if !exist() {
        return;
    }
    for writes in ["overlay", "direct"] {
        let mut world = World::new();
        let outside = world.directory().join("outside");
        fs::create_dir(&outside).unwrap();
        let rootfs = world.rootfs();
        symlink(&outside, rootfs.join("dev")).unwrap();
        let found = rootfs.join(outside.strip_prefix("/").unwrap());
        fs::create_dir_all(&found).unwrap();
        let filesystem = isolator("filesystem/linux", json!({ "writes": writes }));
        world.config.isolators = [vec![filesystem], devices()].concat();
        world.config.logger = Some(sandbox_logger());
        world.share_plugin_store();
        let agent = world.start().await.unwrap();
        let mut request = Request::shell(id("web"), SHOW);
        request.rootfs = Some(rootfs);
        assert_eq!(run(&agent, request).await, KMSG, "{writes}");
        for directory in [&outside, &found] {
            assert!(!directory.join("kmsg").exists(), "{writes}: {}", directory.display());
        }
        agent.remove(&id("web")).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn nested_and_debug_containers_have_devices_also_with_a_later_agent() {
    if !exist() {
        return;
    }
    across_restart(
        &world(devices()),
        async |fixture| {
            let mut pod = fixture.request("pod", "root", "true");
            pod.volumes.push(volume("/dev/control/one"));
            fixture.launch(pod).await;
        },
        async |fixture| {
            assert_eq!(run(&fixture.agent, fixture.request("pod.nested", "web", SHOW)).await, KMSG);
            let mut debug = Request::shell(id("pod.debug"), SHOW);
            debug.class = ContainerClass::Debug;
            assert!(run(&fixture.agent, debug).await.contains("/dev/control/one"));
            fixture.destroy("pod").await;
        },
    );
}
