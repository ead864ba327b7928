//! `namespaces/ipc`.

use std::fs;

use cofferdam_core::model::{ContainerClass, IpcMode, Request};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, run};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world};

/// Creates a System V shared memory segment, and looks it up.
const CREATE: &str = "probe call 29 0x1234 4096 0x380";
const FIND: &str = "probe call 29 0x1234 4096 0";
const NOT_FOUND: &str = "2\n";

fn own_namespace() -> String {
    format!("{}\n", fs::read_link("/proc/self/ns/ipc").unwrap().display())
}

impl Fixture {
    fn with_mode(&self, name: &str, user: &str, mode: Option<IpcMode>, line: &str) -> Request {
        let mut request = self.request(name, user, line);
        request.linux.ipc_mode = mode;
        request
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_ipc_objects_and_shared_memory_of_its_own() {
    if !is_root("IPC namespaces") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("namespaces/ipc", json!({}))]).await;
    for mode in [None, Some(IpcMode::Private)] {
        let other = format!("{CREATE}; echo x > /dev/shm/x");
        fixture.launch(fixture.with_mode("other", "web", mode, &other)).await;
        let line = format!("{FIND}; ls /dev/shm; {CREATE}; {FIND}; echo own > /dev/shm/x; cat /dev/shm/x");
        let output = run(&fixture.agent, fixture.with_mode("web", "web", mode, &line)).await;
        assert_eq!(output, format!("{NOT_FOUND}ok\nok\nown\n"), "{mode:?}");
        fixture.agent.remove(&id("web")).await.unwrap();
        fixture.destroy("other").await;
    }
    assert!(!fs::exists("/dev/shm/x").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_memory_has_the_requested_or_configured_size() {
    if !is_root("mounts") {
        return;
    }
    let config = json!({ "default_container_shm_size": "2 MiB" });
    let fixture = Fixture::start(vec![isolator("namespaces/ipc", config)]).await;
    let line = "busybox df -k /dev/shm | busybox tail -n 1 | busybox awk '{ print $2 }'; \
                dd if=/dev/zero of=/dev/shm/x bs=64k count=100 2>/dev/null; busybox stat -c %s /dev/shm/x; \
                busybox stat -c %a /dev/shm; grep ' /dev/shm ' /proc/mounts | busybox tail -n 1 | grep -c nosuid,nodev";
    let mut sized = fixture.with_mode("web", "web", Some(IpcMode::Private), line);
    sized.linux.shm_size = Some(1 << 20);
    assert_eq!(fixture.run(sized).await, "1024\n1048576\n1777\n1\n");
    for mode in [None, Some(IpcMode::Private)] {
        let output = fixture.run(fixture.with_mode("web", "root", mode, line)).await;
        assert_eq!(output, "2048\n2097152\n1777\n1\n", "{mode:?}");
    }
    // Without a root file system too, without an effect on the host's.
    let line = "echo x > /dev/shm/cofferdam-x; ls /dev/shm";
    let mut request = fixture.with_mode("web", "root", Some(IpcMode::Private), line);
    request.rootfs = None;
    assert_eq!(fixture.run(request).await, "cofferdam-x\n");
    assert!(!fs::exists("/dev/shm/cofferdam-x").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_top_level_container_shares_with_the_host_unless_that_is_forbidden() {
    if !is_root("IPC namespaces") {
        return;
    }
    let line = "busybox readlink /proc/self/ns/ipc";
    let fixture = Fixture::start(vec![isolator("namespaces/ipc", json!({}))]).await;
    let request = |fixture: &Fixture, rootfs: bool| {
        let mut request = fixture.with_mode("web", "root", Some(IpcMode::ShareParent), line);
        if !rootfs {
            request.rootfs = None;
            request.command.value = Some("readlink /proc/self/ns/ipc".into());
        }
        request
    };
    for rootfs in [true, false] {
        assert_eq!(fixture.run(request(&fixture, rootfs)).await, own_namespace(), "{rootfs}");
    }
    let forbidden = json!({ "disallow_sharing_agent_ipc_namespace": true });
    let fixture = Fixture::start(vec![isolator("namespaces/ipc", forbidden)]).await;
    let message = fixture.error(request(&fixture, true)).await;
    assert!(message.contains("`disallow_sharing_agent_ipc_namespace` forbids"), "{message}");
}

#[test]
fn nested_and_debug_containers_share_with_their_parent_also_with_a_later_agent() {
    if !is_root("IPC namespaces") {
        return;
    }
    across_restart(
        &world(vec![isolator("namespaces/ipc", json!({}))]),
        async |fixture| {
            let line = format!("{CREATE}; echo of the pod > /dev/shm/x");
            fixture.launch(fixture.with_mode("pod", "web", None, &line)).await;
            fixture.launch(fixture.with_mode("private", "web", Some(IpcMode::Private), &line)).await;
        },
        async |fixture| {
            let line = format!("{FIND}; cat /dev/shm/x || echo none");
            let share = Some(IpcMode::ShareParent);
            for parent in ["pod", "private"] {
                for (name, mode, expected) in [
                    ("default", None, "ok\nnone\n"),
                    ("share", share, "ok\nof the pod\n"),
                    ("own", Some(IpcMode::Private), "2\nnone\n"),
                ] {
                    let name = format!("{parent}.{name}");
                    let request = fixture.with_mode(&name, "web", mode, &line);
                    assert_eq!(run(&fixture.agent, request).await, expected, "{name}");
                }
                let mut debug = Request::shell(id(&format!("{parent}.debug")), &*line);
                debug.class = ContainerClass::Debug;
                assert_eq!(run(&fixture.agent, debug).await, "ok\nof the pod\n");
            }
            // Down two levels, and without a root file system.
            fixture.launch(fixture.with_mode("pod.inner", "web", share, "true")).await;
            let request = fixture.with_mode("pod.inner.deep", "web", share, &line);
            assert_eq!(run(&fixture.agent, request).await, "ok\nof the pod\n");
            let mut request = fixture.with_mode("pod.bare", "root", share, "cat /dev/shm/x");
            request.rootfs = None;
            assert_eq!(run(&fixture.agent, request).await, "of the pod\n");
            fixture.agent.destroy(&id("private")).await.unwrap();
            fixture.agent.remove(&id("private")).await.unwrap();
            fixture.destroy("pod").await;
        },
    );
}

/// Root in the parent replaces what is shared, by another file system and by a link.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_parent_has_put_in_its_place_is_not_shared() {
    if !is_root("IPC namespaces") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("namespaces/ipc", json!({}))]).await;
    for attack in [
        "busybox mount -t tmpfs none /dev/shm",
        "busybox mount --bind /etc /dev/shm",
        "busybox umount -l /dev/shm; busybox umount -l /dev/shm; busybox rmdir /dev/shm; busybox ln -s /etc /dev/shm",
        "busybox mount -t tmpfs none /dev; busybox ln -s /proc/1/root/etc /dev/shm",
    ] {
        fixture.launch(fixture.with_mode("pod", "root", None, attack)).await;
        let request = fixture.with_mode("pod.web", "root", Some(IpcMode::ShareParent), "ls /dev/shm");
        let error = fixture.agent.launch(request).await.unwrap_err();
        let message = super::describe(&error);
        assert!(
            message.contains("`namespaces/ipc`") && message.contains("`/dev/shm`"),
            "{attack}: {message}"
        );
        fixture.destroy("pod").await;
    }
}
