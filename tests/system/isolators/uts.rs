//! `namespaces/uts`.

use std::fs;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, run};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world};

fn of_host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_the_requested_name_or_that_of_its_id() {
    if !is_root("UTS namespaces") {
        return;
    }
    let before = of_host();
    let fixture = Fixture::start(vec![isolator("namespaces/uts", json!({}))]).await;
    for user in ["root", "web"] {
        let mut request = fixture.request("web", user, "busybox hostname");
        assert_eq!(fixture.run(request.clone()).await, "web\n");
        request.linux.hostname = Some("web-1.example".into());
        assert_eq!(fixture.run(request.clone()).await, "web-1.example\n");
        request.linux.hostname = Some("not a name".into());
        let message = fixture.error(request).await;
        assert!(message.contains("`namespaces/uts`") && message.contains("`not a name`"), "{message}");
    }
    // One whose id is longer than a host name, and without a root file system.
    let long = "a".repeat(200);
    let output = fixture.run(fixture.request(&long, "root", "busybox hostname")).await;
    assert_eq!(output, format!("{}\n", &long[..64]));
    let mut request = fixture.request(&long, "root", "hostname changed; hostname");
    request.rootfs = None;
    assert_eq!(fixture.run(request).await, "changed\n");
    assert_eq!(of_host(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_shares_the_name_of_the_host_if_configured() {
    if !is_root("UTS namespaces") {
        return;
    }
    let config = json!({ "share_agent_uts_namespace": true });
    let fixture = Fixture::start(vec![isolator("namespaces/uts", config)]).await;
    let line = "busybox readlink /proc/self/ns/uts; busybox hostname";
    let own = fs::read_link("/proc/self/ns/uts").unwrap();
    let output = fixture.run(fixture.request("web", "web", line)).await;
    assert_eq!(output, format!("{}\n{}", own.display(), of_host()));
    let mut request = fixture.request("web", "web", "busybox hostname");
    request.linux.hostname = Some("own".into());
    assert_eq!(fixture.run(request).await, "own\n");
}

#[test]
fn nested_and_debug_containers_have_the_name_of_their_parent_also_with_a_later_agent() {
    if !is_root("UTS namespaces") {
        return;
    }
    across_restart(
        &world(vec![isolator("namespaces/uts", json!({}))]),
        async |fixture| {
            fixture.launch(fixture.request("pod", "root", "busybox hostname changed")).await;
        },
        async |fixture| {
            let line = "busybox hostname";
            assert_eq!(run(&fixture.agent, fixture.request("pod.nested", "web", line)).await, "changed\n");
            let mut own = fixture.request("pod.own", "web", line);
            own.linux.hostname = Some("inner".into());
            assert_eq!(run(&fixture.agent, own).await, "inner\n");
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            assert_eq!(run(&fixture.agent, debug).await, "changed\n");
            fixture.destroy("pod").await;
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_no_plugin_sets_is_refused() {
    if !is_root("the linux launcher") {
        return;
    }
    let fixture = Fixture::start(Vec::new()).await;
    let mut request = fixture.request("web", "web", "true");
    request.linux.hostname = Some("web".into());
    let message = fixture.error(request).await;
    assert!(message.contains("`hostname`, which none of its plugins handles"), "{message}");
}
