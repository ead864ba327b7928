//! Nested containers, and containers of an agent that was restarted.

use std::fs;

use cofferdam_core::model::{ContainerClass, NetworkRequest, Request};
use cofferdam_tests::world::{id, run, with_agent};
use serde_json::json;

use super::lab::{SERVE, get, lab_without_agent, named, shell};
use crate::isolators::{Fixture, world};
use std::sync::Arc;

#[test]
fn nested_containers_share_the_networks_of_their_parent_or_have_their_own_also_with_a_later_agent() {
    lab_without_agent(|lab| {
        lab.bridge("net", 88, json!({ "dns": { "nameservers": ["10.88.0.1"] } }));
        let world = world(lab.isolators(json!({})));
        let fixture = |agent| Fixture { world: Arc::clone(&world), agent };
        with_agent(&world, async |agent| {
            let fixture = fixture(agent);
            fixture.launch(fixture.networked("pod", &[named("net")], SERVE)).await;
            fixture.launch(fixture.networked("host", &[], "true")).await;
        });
        with_agent(&world, async |agent| {
            let fixture = fixture(agent);
            assert_eq!(shell(&get("10.88.0.2", 80, "hostname")), "pod\n");
            let line = format!(
                "{}; busybox readlink /proc/self/ns/net; cat /etc/hosts | busybox tail -n 1; cat /etc/resolv.conf; \
                 busybox hostname",
                get("127.0.0.1", 80, "hostname")
            );
            let pid = fixture.agent.inspect(&id("pod")).unwrap().summary.pid.unwrap();
            let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            let namespace = namespace.display();
            let shared = format!("pod\n{namespace}\n10.88.0.2\tpod\nnameserver 10.88.0.1\npod\n");
            for name in ["pod.web", "pod.bare"] {
                let mut request = fixture.networked(name, &[], &line);
                if name == "pod.bare" {
                    request.rootfs = None;
                }
                fixture.launch(Request { command: keep().command, ..request.clone() }).await;
                assert_eq!(fixture.address(name).await, "10.88.0.2", "{name}");
                fixture.agent.destroy(&id(name)).await.unwrap();
                fixture.agent.remove(&id(name)).await.unwrap();
                assert_eq!(run(&fixture.agent, request).await, shared, "{name}");
            }
            let mut debug =
                Request::shell(id("pod.debug"), "busybox readlink /proc/self/ns/net; busybox hostname");
            debug.class = ContainerClass::Debug;
            assert_eq!(run(&fixture.agent, debug).await, format!("{namespace}\npod\n"));
            // Two levels down.
            fixture.launch(fixture.networked("pod.inner", &[], "true")).await;
            let line = "busybox readlink /proc/self/ns/net";
            let request = fixture.networked("pod.inner.deep", &[], line);
            assert_eq!(run(&fixture.agent, request).await, format!("{namespace}\n"));
            // One of its own, and that of the host.
            let line = format!(
                "{}; busybox hostname; cat /etc/hosts | busybox tail -n 1",
                get("10.88.0.2", 80, "hostname")
            );
            let request = fixture.networked("pod.own", &[named("net")], &line);
            assert_eq!(run(&fixture.agent, request).await, "pod\nown\n10.88.0.3\town\n");
            let own = format!("{}\n", fs::read_link("/proc/thread-self/ns/net").unwrap().display());
            let line = "busybox readlink /proc/self/ns/net";
            for (name, networks) in [("pod.host", vec![NetworkRequest::default()]), ("host.web", vec![])] {
                assert_eq!(
                    run(&fixture.agent, fixture.networked(name, &networks, line)).await,
                    own,
                    "{name}"
                );
            }
            fixture.agent.destroy(&id("host")).await.unwrap();
            fixture.agent.remove(&id("host")).await.unwrap();
            fixture.destroy("pod").await;
            assert!(fixture.kept().is_empty());
        });
    });
}

fn keep() -> Request {
    Request::shell(id("x"), "true")
}

/// The namespace of a container that has ended must not be kept by others, which have copies of the host's mounts.
#[test]
fn no_other_container_keeps_the_namespace_of_one_that_has_ended() {
    lab_without_agent(|lab| {
        lab.bridge("net", 88, json!({}));
        let world = world(lab.isolators(json!({})));
        with_agent(&world, async |agent| {
            let fixture = Fixture { world: Arc::clone(&world), agent };
            fixture.launch(fixture.networked("first", &[named("net")], "true")).await;
            let mut request = fixture.networked("bare", &[], "true");
            request.rootfs = None;
            fixture.launch(request).await;
            let pid = fixture.agent.inspect(&id("bare")).unwrap().summary.pid.unwrap();
            let mounts = || fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            assert!(mounts().contains("/first/ns "), "it has a copy: {}", mounts());
            fixture.agent.destroy(&id("first")).await.unwrap();
            assert!(!mounts().contains("/first/ns "), "{}", mounts());
            fixture.agent.remove(&id("first")).await.unwrap();
            fixture.destroy("bare").await;
        });
    });
}

#[test]
fn a_running_container_keeps_its_network_when_the_mount_of_its_namespace_was_lost() {
    lab_without_agent(|lab| {
        lab.recorded("net", 88);
        let world = world(lab.isolators(json!({})));
        let fixture = |agent| Fixture { world: Arc::clone(&world), agent };
        with_agent(&world, async |agent| {
            let fixture = fixture(agent);
            fixture.launch(fixture.networked("pod", &[named("net")], "true")).await;
        });
        let directory = super::lab::kept(&world).remove(0);
        shell(&format!("umount {}/ns", directory.display()));
        with_agent(&world, async |agent| {
            let fixture = fixture(agent);
            let request = fixture.networked("pod.web", &[], "busybox ip -o -4 addr show eth0");
            let output = run(&fixture.agent, request).await;
            assert!(output.contains(" 10.88.0.2/24 "), "{output}");
            fixture.destroy("pod").await;
        });
        assert_eq!(lab.log(), ["ADD pod eth0 netns", "DEL pod eth0 netns"]);
    });
}

#[test]
fn a_parent_that_has_moved_to_another_namespace_takes_no_nested_container_along() {
    lab_without_agent(|lab| {
        lab.bridge("net", 88, json!({}));
        let world = world(lab.isolators(json!({})));
        with_agent(&world, async |agent| {
            let fixture = Fixture { world: Arc::clone(&world), agent };
            let line = "exec busybox unshare --net sh -c 'echo launched; exec sleep 1000'";
            fixture.launch(fixture.networked("pod", &[named("net")], line)).await;
            let request = fixture.networked("pod.web", &[], "busybox ip -o -4 addr show eth0");
            let output = run(&fixture.agent, request).await;
            assert!(output.contains(" 10.88.0.2/24 "), "{output}");
            fixture.destroy("pod").await;
        });
    });
}
