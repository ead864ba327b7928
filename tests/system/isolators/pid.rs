//! `namespaces/pid`.

use std::fs;
use std::sync::Arc;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{id, launch_error, run};
use serde_json::json;

use super::{Fixture, across_restart, isolator, world};

/// The namespace, the number of the command in it, and whether the marker of the pod is seen: it has no other file system.
const SHOW: &str = "busybox readlink /proc/self/ns/pid; echo $$; \
                    busybox ps -o args | grep -c '^sleep 54321'; test -e /proc/1/stat && echo proc";

/// Without a root file system, so that the plugin mounts `/proc`.
fn on_host(name: &str, line: &str, shares: bool) -> Request {
    let mut request = Request::shell(id(name), line);
    request.linux.share_pid_namespace = shares;
    request
}

impl Fixture {
    fn sharing(&self, name: &str, line: &str, shares: bool) -> Request {
        let mut request = self.request(name, "root", line);
        request.linux.share_pid_namespace = shares;
        request
    }
}

/// Namespace, number of the command, number of processes of the pod that were seen.
fn shown(output: &str) -> (&str, u32, u32) {
    let lines: Vec<&str> = output.lines().collect();
    let [namespace, pid, seen, "proc"] = lines[..] else { panic!("{output}") };
    (namespace, pid.parse().unwrap(), seen.parse().unwrap())
}

fn of_agent() -> String {
    fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_a_namespace_of_its_own_unless_it_shares_that_of_the_agent() {
    if !is_root("pid namespaces") {
        return;
    }
    let fixture = Fixture::start(Vec::new()).await;
    let own = of_agent();
    for with_root in [true, false] {
        let request = |shares| match with_root {
            true => fixture.sharing("web", SHOW, shares),
            false => on_host("web", SHOW, shares),
        };
        let output = fixture.run(request(false)).await;
        let (namespace, pid, _) = shown(&output);
        // The first process is that of the agent, and the command its child.
        assert!(namespace != own && pid == 2, "with root: {with_root}: {output}");
        let output = fixture.run(request(true)).await;
        let (namespace, pid, _) = shown(&output);
        assert!(namespace == own && pid > 2, "with root: {with_root}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sharing_the_namespace_of_the_agent_can_be_forbidden_and_leaves_nothing() {
    if !is_root("pid namespaces") {
        return;
    }
    let mut world = Arc::into_inner(world(Vec::new())).unwrap();
    let table = json!({ "disallow_sharing_agent_pid_namespace": true });
    world.config.isolators[1] = isolator("namespaces/pid", table);
    let agent = world.start().await.unwrap();
    let fixture = Fixture { world: Arc::new(world), agent };
    let message = fixture.error(fixture.sharing("web", "true", true)).await;
    assert!(message.contains("`disallow_sharing_agent_pid_namespace` forbids"), "{message}");
    // Nested ones may share that of their parent.
    fixture.launch(fixture.sharing("pod", "true", false)).await;
    let output = run(&fixture.agent, fixture.sharing("pod.web", SHOW, true)).await;
    assert_ne!(shown(&output).0, of_agent(), "{output}");
    fixture.destroy("pod").await;
}

#[test]
fn nested_containers_have_their_own_or_share_that_of_their_parent_also_with_a_later_agent() {
    if !is_root("nested containers") {
        return;
    }
    across_restart(
        &world(Vec::new()),
        async |fixture| {
            fixture.launch(fixture.sharing("rooted", "sleep 54321 & true", false)).await;
            fixture.launch(on_host("plain", "sleep 54321 & true", false)).await;
        },
        async |fixture| {
            for pod in ["rooted", "plain"] {
                let pid = fixture.agent.inspect(&id(pod)).unwrap().summary.pid.unwrap();
                let of_pod = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
                let of_pod = of_pod.to_str().unwrap();
                let name = format!("{pod}.nested");
                for with_root in [true, false] {
                    let request = |shares| match with_root {
                        true => fixture.sharing(&name, SHOW, shares),
                        false => on_host(&name, SHOW, shares),
                    };
                    let when = format!("{pod}, nested with root: {with_root}");
                    let output = run(&fixture.agent, request(true)).await;
                    let (namespace, pid, seen) = shown(&output);
                    assert_eq!((namespace, seen), (of_pod, 1), "{when}: {output}");
                    assert!(pid > 2, "{when}: {output}");
                    assert!(fixture.agent.remove(&id(&name)).await.unwrap());
                    let output = run(&fixture.agent, request(false)).await;
                    let (namespace, pid, seen) = shown(&output);
                    assert!(namespace != of_pod && namespace != of_agent(), "{when}: {output}");
                    assert_eq!((pid, seen), (2, 0), "{when}: {output}");
                    assert!(fixture.agent.remove(&id(&name)).await.unwrap());
                }
                let mut debug = on_host(&format!("{pod}.debug"), SHOW, false);
                debug.class = ContainerClass::Debug;
                let output = run(&fixture.agent, debug).await;
                let (namespace, _, seen) = shown(&output);
                assert_eq!((namespace, seen), (of_pod, 1), "{pod}: {output}");
                fixture.agent.destroy(&id(pod)).await.unwrap();
                assert!(fixture.agent.remove(&id(pod)).await.unwrap());
            }
            fixture.assert_nothing_left("rooted and plain");
        },
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_container_cannot_share_a_namespace_that_its_parent_does_not_have() {
    if !is_root("nested containers") {
        return;
    }
    let fixture = Fixture::start(Vec::new()).await;
    let message = launch_error(&fixture.agent, fixture.sharing("missing.web", "true", true)).await;
    assert!(message.contains("no container `missing`"), "{message}");
    // A pod that shares that of the agent: so does what it shares.
    fixture.launch(fixture.sharing("pod", "true", true)).await;
    let output = run(&fixture.agent, fixture.sharing("pod.web", SHOW, true)).await;
    assert_eq!(shown(&output).0, of_agent(), "{output}");
    fixture.destroy("pod").await;
}
