//! Nested containers.

use cofferdam_core::model::{ContainerClass, Ended, Reason, Request};
use cofferdam_tests::world::{World, id, remove};
use cofferdam_tests::{is_root, text, wait_for_text};

#[tokio::test(flavor = "multi_thread")]
async fn a_child_ends_without_its_parent() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut parent = Request::shell(id("pod"), "sleep 1000");
    parent.rootfs = Some(world.rootfs());
    agent.launch(parent).await.unwrap();

    let mut child = Request::shell(id("pod.web"), "echo $$; exit 4");
    child.rootfs = Some(world.rootfs());
    agent.launch(child).await.unwrap();
    let termination = agent.wait(&id("pod.web")).await.unwrap();
    assert_eq!(termination.ended(), Some(Ended::Exited(4)));
    assert_eq!(agent.wait(&id("pod.web")).await.unwrap(), termination, "kept while the parent is running");
    assert!(agent.remove(&id("pod")).await.is_err(), "a running container cannot be removed");
    assert!(agent.remove(&id("pod.web")).await.unwrap());
    assert!(agent.wait(&id("pod.web")).await.is_none());

    agent.destroy(&id("pod")).await.unwrap();
    agent.remove(&id("pod")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn children_end_with_their_parent() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut parent = Request::shell(id("pod"), "sleep 1000");
    parent.rootfs = Some(world.rootfs());
    agent.launch(parent).await.unwrap();
    for child in ["pod.a", "pod.b", "pod.a.deep"] {
        let mut request = Request::shell(id(child), "sleep 1000");
        request.rootfs = Some(world.rootfs());
        agent.launch(request).await.unwrap();
    }
    agent.destroy(&id("pod")).await.unwrap();
    for child in ["pod.a", "pod.b", "pod.a.deep"] {
        let termination = agent.wait(&id(child)).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::ParentEnded), "{child}: {termination:?}");
    }
    agent.remove(&id("pod")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_enters_its_parent() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut parent = Request::shell(id("pod"), "echo secret > /inside; echo up; sleep 1000");
    parent.rootfs = Some(world.rootfs());
    parent.command.environment = [("COLOUR".into(), "red".into())].into();
    agent.launch(parent).await.unwrap();
    wait_for_text(&agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap(), "up");

    let mut probe =
        Request::shell(id("pod.probe"), "cat /inside; echo $COLOUR; pwd; ls /proc | grep -c '^1$'");
    probe.class = ContainerClass::Debug;
    agent.launch(probe).await.unwrap();
    agent.wait(&id("pod.probe")).await.unwrap();
    let out = text(&agent.inspect(&id("pod.probe")).unwrap().logs.stdout.unwrap());
    assert_eq!(out, "secret\nred\n/mnt/mesos/sandbox\n1\n");
    agent.destroy(&id("pod")).await.unwrap();
    remove(&world, &agent, &["pod"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_must_be_running() {
    if !is_root("the linux launcher") {
        return;
    }
    let world = World::new();
    let agent = world.start().await.unwrap();
    let orphan = Request::shell(id("pod.web"), "true");
    let message = agent.launch(orphan.clone()).await.unwrap_err().to_string();
    assert!(message.contains("`pod.web`") && message.contains("no container `pod`"), "{message}");
    agent.launch(Request::shell(id("pod"), "true")).await.unwrap();
    agent.wait(&id("pod")).await.unwrap();
    let message = agent.launch(orphan).await.unwrap_err().to_string();
    assert!(message.contains("ENDED"), "{message}");
    remove(&world, &agent, &["pod"]).await;
}

/// The kernel kills them when process 1 of the namespace ends, before the agent can.
#[tokio::test(flavor = "multi_thread")]
async fn children_in_the_pid_namespace_of_their_parent_end_because_it_ended() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    for _ in 0..5 {
        let mut parent =
            Request::shell(id("pod"), "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done");
        parent.rootfs = Some(world.rootfs());
        agent.launch(parent).await.unwrap();
        wait_for_text(&agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap(), "up");
        let mut child = Request::shell(id("pod.web"), "sleep 1000");
        child.rootfs = Some(world.rootfs());
        child.linux.share_pid_namespace = true;
        agent.launch(child).await.unwrap();
        assert!(agent.kill(&id("pod"), nix::libc::SIGTERM).await.unwrap());
        assert_eq!(agent.wait(&id("pod")).await.unwrap().ended(), Some(Ended::Exited(3)));
        let termination = agent.wait(&id("pod.web")).await.unwrap();
        assert_eq!(termination.reason, Some(Reason::ParentEnded), "{termination:?}");
        assert!(termination.message.is_some_and(|message| message.contains("`pod`")));
        agent.remove(&id("pod")).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_ids_are_launched_and_removed() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let deep = ["p"; 32].join(".");
    for (parent, child) in [("p".repeat(242), "c".repeat(12)), (deep, "c".repeat(192))] {
        let mut names: Vec<String> = Vec::new();
        for value in parent.split('.') {
            names.push(names.last().map_or(value.to_owned(), |outer| format!("{outer}.{value}")));
        }
        // The last level has the rest of the length.
        if names.len() == 1 {
            names.push(format!("{parent}.{child}"));
        } else {
            names.pop();
            let outer = names.last().unwrap().clone();
            names.push(format!("{outer}.{}", "c".repeat(254 - outer.len())));
        }
        assert_eq!(names.last().unwrap().len(), 255);
        for name in &names {
            let mut request = Request::shell(id(name), "sleep 1000");
            request.rootfs = Some(world.rootfs());
            if let Err(error) = agent.launch(request).await {
                panic!("{}", cofferdam_core::error_chain::describe(&error));
            }
        }
        agent.destroy(&id(&names[0])).await.unwrap();
        agent.remove(&id(&names[0])).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
