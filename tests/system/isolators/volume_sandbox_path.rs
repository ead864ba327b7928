//! `volume/sandbox_path`.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cofferdam_core::model::{ContainerClass, Request, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, launch_error, run};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world};

fn volume(parent: bool, path: &str, target: &str, read_only: bool) -> Volume {
    let source = VolumeSource::SandboxPath { parent, path: path.into() };
    Volume { container_path: target.into(), read_only, source }
}

impl Fixture {
    fn with_volume(&self, name: &str, line: &str, volume: Volume) -> Request {
        Request { volumes: vec![volume], ..self.request(name, "web", line) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_volume_is_in_the_sandbox() {
    if !is_root("mounts") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("volume/sandbox_path", json!({}))]).await;
    let line = "echo kept > /var/data/file; cat kept/data/file; busybox stat -c '%u %a' /var/data";
    let request = fixture.with_volume("web", line, volume(false, "kept/data", "/var/data", false));
    assert_eq!(run(&fixture.agent, request).await, "kept\n1234 755\n");
    let sandbox = fixture.agent.inspect(&id("web")).unwrap().sandbox;
    assert_eq!(fs::read_to_string(sandbox.join("kept/data/file")).unwrap(), "kept\n");
    assert_eq!(fs::metadata(sandbox.join("kept")).unwrap().uid(), 1234);
    fixture.agent.remove(&id("web")).await.unwrap();
    let line = "(touch /var/data/x) 2>/dev/null || echo read-only; touch kept/x && ls /var/data";
    let request = fixture.with_volume("web", line, volume(false, "kept", "/var/data", true));
    assert_eq!(fixture.run(request).await, "read-only\nx\n");
    let message = fixture.error(fixture.with_volume("web", "true", volume(true, "x", "/x", false))).await;
    assert!(message.contains("`volume/sandbox_path`") && message.contains("has no parent"), "{message}");
}

#[test]
fn nested_containers_share_a_directory_of_their_parent_also_with_a_later_agent() {
    if !is_root("mounts") {
        return;
    }
    across_restart(
        &world(vec![isolator("volume/sandbox_path", json!({}))]),
        async |fixture| {
            let line = "busybox mkdir shared; echo of the pod > shared/file";
            fixture.launch(fixture.request("pod", "web", line)).await;
        },
        async |fixture| {
            let line = "cat /shared/file; echo of nested > /shared/nested";
            let request = fixture.with_volume("pod.a", line, volume(true, "shared", "/shared", false));
            assert_eq!(run(&fixture.agent, request).await, "of the pod\n");
            let line = "cat data/shared/nested; (touch data/shared/x) 2>/dev/null || echo read-only";
            let request = fixture.with_volume("pod.b", line, volume(true, "shared", "data/shared", true));
            assert_eq!(run(&fixture.agent, request).await, "of nested\nread-only\n");
            // Without a root file system.
            let mut request =
                fixture.with_volume("pod.c", "cat data/nested", volume(true, "shared", "data", true));
            request.rootfs = None;
            request.command.user = Some("0".into());
            assert_eq!(run(&fixture.agent, request).await, "of nested\n");
            let mut debug = Request::shell(id("pod.debug"), "cat shared/nested");
            debug.class = ContainerClass::Debug;
            assert_eq!(run(&fixture.agent, debug).await, "of nested\n");
            fixture.destroy("pod").await;
        },
    );
}

/// A parent puts links, a FIFO and a set-user-id program into its sandbox.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_parent_puts_into_its_sandbox_leads_nowhere() {
    if !is_root("mounts") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("volume/sandbox_path", json!({}))]).await;
    let line = "busybox ln -s /etc link; busybox ln -s ../../.. up; busybox mkfifo fifo; busybox mkdir programs; \
                busybox cp /bin/probe programs/raised; busybox chmod 4755 programs/raised; busybox mknod null c 1 3";
    fixture.launch(fixture.request("pod", "root", line)).await;
    for path in ["link", "link/passwd", "up", "up/run", "fifo", "null", "../.."] {
        let request = fixture.with_volume("pod.web", "true", volume(true, path, "/x", false));
        let message = launch_error(&fixture.agent, request).await;
        assert!(
            message.contains("`volume/sandbox_path`") && message.contains(&format!("`{path}`")),
            "{message}"
        );
    }
    let line = "/x/raised status Uid";
    let request = fixture.with_volume("pod.web", line, volume(true, "programs", "/x", false));
    assert_eq!(run(&fixture.agent, request).await, "Uid:\t1234\t1234\t1234\t1234\n");
    fixture.destroy("pod").await;
}
