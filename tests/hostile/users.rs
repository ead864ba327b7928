//! Whom commands run as, if the request or the image is made to run them as root.

use std::fs;
use std::path::Path;

use cofferdam_core::model::{ContainerClass, Request, Resources};
use cofferdam_tests::world::{World, id, launch_error};
use cofferdam_tests::{is_root, text, wait_for_text};

use super::{assert_nothing_left, run_and_remove};

/// A container that prints its users and groups: real, effective, saved and of the file system.
fn container(world: &World, name: &str, user: Option<&str>) -> Request {
    let line = "while read -r line; do case $line in Uid:*|Gid:*|Groups:*) echo $line;; esac; done < /proc/self/status";
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request.command.user = user.map(str::to_owned);
    request
}

fn identity(uid: u32, gid: u32, groups: &str) -> String {
    let groups = format!("Groups: {groups}");
    format!("Uid: {uid} {uid} {uid} {uid}\nGid: {gid} {gid} {gid} {gid}\n{}\n", groups.trim_end())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_to_write_a_user_means_root_but_zero_and_names_of_root() {
    if !is_root("changing users") {
        return;
    }
    let world = World::shipped();
    let rootfs = world.rootfs();
    let passwd = "root:x:0:0\n+0:x:0:0\n00:x:0:0\n-1:x:0:0\n4294967295:x:0:0\nunset:x:4294967295:0\nnogroup:x:7:4294967295\n";
    fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
    fs::write(rootfs.join("etc/group"), "unset:x:4294967295:\nsigned:x:+0:\n").unwrap();
    let agent = world.start().await.unwrap();
    for user in [
        "4294967295",
        "4294967295:4294967295",
        "1:4294967295",
        "4294967296",
        "18446744073709551616",
        "-1",
        "+0",
        "+1",
        "00",
        "0x0",
        "1:+0",
        "unset",
        "nogroup",
        "1:unset",
        "1:signed",
        "1:",
        ":0",
    ] {
        let error = launch_error(&agent, container(&world, "web", Some(user))).await;
        let named = user.split(':').any(|part| !part.is_empty() && error.contains(part));
        assert!(named || error.contains(user), "{user}: {error}");
    }
    for (user, expected) in
        [("0", identity(0, 0, "")), ("4294967294", identity(4_294_967_294, 4_294_967_294, ""))]
    {
        assert_eq!(run_and_remove(&agent, container(&world, "web", Some(user))).await, expected, "{user}");
    }
    assert_nothing_left(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_nested_in_one_of_a_user_is_not_root() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    fs::write(world.rootfs().join("etc/passwd"), "root:x:0:0\nweb:x:1234:55\n").unwrap();
    fs::write(world.rootfs().join("etc/group"), "log:x:77:web\n").unwrap();
    let agent = world.start().await.unwrap();
    let mut pod = container(&world, "pod", Some("web"));
    pod.command.value = Some("sleep 1000".into());
    agent.launch(pod).await.unwrap();
    for user in [None, Some("")] {
        let nested = container(&world, "pod.web", user);
        assert_eq!(run_and_remove(&agent, nested).await, identity(1234, 55, "77"));
        let mut debug = container(&world, "pod.debug", user);
        (debug.class, debug.rootfs) = (ContainerClass::Debug, None);
        assert_eq!(run_and_remove(&agent, debug).await, identity(1234, 55, "77"));
    }
    // Names mean in a debug container what they mean in its parent.
    let mut debug = container(&world, "pod.debug", Some("web"));
    (debug.class, debug.rootfs) = (ContainerClass::Debug, None);
    assert_eq!(run_and_remove(&agent, debug).await, identity(1234, 55, "77"));
    agent.destroy(&id("pod")).await.unwrap();
    assert!(agent.remove(&id("pod")).await.unwrap());
    assert_nothing_left(&world);
}

/// Tries to change limits and to take the place of a nested container's cgroup, and creates one of its own.
fn in_cgroup(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "exec 2>/dev/null; for file in memory.limit_in_bytes memory.max memory.soft_limit_in_bytes memory.low cgroup.procs; do \
             if [ -e {directory}/$file ] && echo 999999999 > {directory}/$file; then echo wrote $file; fi; \
         done; \
         rmdir {directory} && echo removed; \
         mkdir {directory}/own {directory}/web.container && echo created || echo refused; sleep 1000"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_create_cgroups_on_v2_and_change_no_limit_of_its_container_or_of_nested_ones() {
    if !is_root("control groups") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let directory = world.cgroup_of_any_version("memory", &id("pod")).unwrap();
    // On v1 there would be no limit for their number.
    let may_create = world.cgroup("memory", &id("pod")).is_none();
    let mut pod = Request::shell(id("pod"), in_cgroup(&directory));
    pod.command.user = Some("1234".into());
    pod.resources = Resources::default().with("mem", 64.0);
    agent.launch(pod).await.unwrap();
    let out = agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap();
    wait_for_text(&out, "\n");
    assert_eq!(text(&out), if may_create { "created\n" } else { "refused\n" });
    assert_eq!(directory.join("own").is_dir(), may_create);

    let mut nested = container(&world, "pod.web", None);
    nested.linux.share_cgroups = false;
    nested.resources = Resources::default().with("mem", 32.0);
    if may_create {
        let error = launch_error(&agent, nested.clone()).await;
        assert!(error.contains("was created by user 1234, who could change its limits"), "{error}");
        // The cleanup has removed it.
    }
    agent.launch(nested).await.unwrap();
    agent.wait(&id("pod.web")).await.unwrap();
    agent.destroy(&id("pod")).await.unwrap();
    agent.remove(&id("pod")).await.unwrap();
    assert_nothing_left(&world);
}
