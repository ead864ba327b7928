//! What images and containers can make the agent reach, and reach of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_tests::world::{World, id, object, remove};
use cofferdam_tests::{is_root, text, wait_for_text};
use serde_json::json;

use super::{assert_nothing_left, run_and_remove};

fn shell(world: &World, line: &str) -> Request {
    let mut request = Request::shell(id("web"), line);
    request.rootfs = Some(world.rootfs());
    request
}

/// All paths below a directory with their lengths and modes; symbolic links are not followed.
fn listing(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            found.push(format!("{} {} {:o}", entry.path().display(), metadata.len(), metadata.mode()));
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// As in CVE-2026-41579 and CVE-2019-19921.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_mount_points_are_links_changes_nothing_of_the_host() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let victim = world.directory().join("victim");
    for name in ["", "pts", "shm", "sys", "kernel", "mesos/sandbox", "fs/cgroup"] {
        fs::create_dir_all(victim.join(name)).unwrap();
    }
    fs::write(victim.join("null"), "not a device").unwrap();
    fs::write(victim.join("kcore"), "not masked").unwrap();
    let before = listing(&victim);
    let agent = world.start().await.unwrap();
    let rootfs = world.rootfs();
    let upwards = Path::new("../../../../../../../../..").join(victim.strip_prefix("/").unwrap());
    for target in [&victim, &upwards] {
        for name in ["dev", "proc", "sys", "mnt"] {
            let link = rootfs.join(name);
            symlink(target, &link).unwrap();
            let line = "[ -c /dev/null ] && [ -r /proc/self/status ] && pwd";
            // The link leads to a directory inside of the root, or the launch fails.
            match agent.launch(shell(&world, line)).await {
                Ok(_) => {
                    agent.wait(&id("web")).await.unwrap();
                    assert!(agent.remove(&id("web")).await.unwrap());
                }
                Err(error) => eprintln!("{name}: {}", cofferdam_core::error_chain::describe(&error)),
            }
            assert_eq!(listing(&victim), before, "{name} -> {}", target.display());
            fs::remove_file(&link).unwrap();
        }
    }
    assert_nothing_left(&world);
}

/// As in CVE-2019-14271: a library that the C library would load to look up users.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_image_is_loaded_to_look_up_its_users() {
    if !is_root("changing users") {
        return;
    }
    let world = World::shipped();
    let rootfs = world.rootfs();
    fs::write(rootfs.join("etc/nsswitch.conf"), "passwd: trap\ngroup: trap\n").unwrap();
    for directory in ["lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
        // A library that exists, so that it would be mapped.
        let library = cofferdam_tests::paths::build().join("libcofferdam_logger_sandbox.so");
        fs::copy(library, rootfs.join(directory).join("libnss_trap.so.2")).unwrap();
    }
    let agent = world.start().await.unwrap();
    let mut request = shell(&world, "id -u");
    request.command.user = Some("web".into());
    assert_eq!(run_and_remove(&agent, request).await, "1234\n");
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped: Vec<&str> = maps.lines().filter(|line| line.contains("libnss_trap")).collect();
    assert_eq!(mapped, Vec::<&str>::new());
    assert_nothing_left(&world);
}

/// As in CVE-2020-15257: an abstract socket is reachable from every container with the network of the host.
#[tokio::test(flavor = "multi_thread")]
async fn no_abstract_socket_of_agent_or_keeper_is_visible_to_a_container() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let sockets = || fs::read_to_string("/proc/net/unix").unwrap();
    let agent = world.start().await.unwrap();
    let seen = run_and_remove(&agent, shell(&world, "cat /proc/net/unix")).await;
    let here = world.directory().display().to_string();
    // The name of the keeper's, which it was bound by through a descriptor of its directory.
    assert!(sockets().lines().any(|line| line.ends_with("/socket")), "the keeper listens");
    for line in seen.lines().filter(|line| line.contains('@')) {
        assert!(!line.contains("cofferdam") && !line.contains(&here), "{line}");
    }
    // Those with a path are in directories of the agent alone.
    let path = agent_directory(&world);
    let found =
        run_and_remove(&agent, shell(&world, &format!("ls {} 2>&1 || echo hidden", path.display()))).await;
    assert!(found.contains("hidden"), "{found}");
    assert_nothing_left(&world);
}

fn agent_directory(world: &World) -> std::path::PathBuf {
    world.config.runtime_dir.join("keepers")
}

/// The process that sets up a debug container enters the mounts of its parent, with the privileges of the agent.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_to_what_a_parent_has_in_the_place_of_proc() {
    if !is_root("mount namespaces") {
        return;
    }
    let mut world = World::privileged();
    world.config.isolators.push(object("test/request", "libtest_request.so", json!({})));
    let agent = world.start().await.unwrap();
    let line = "busybox mkdir -p /false/self && echo kept > /false/self/oom_score_adj && busybox mount --bind /false /proc && \
                echo ready; sleep 1000";
    let mut parent = shell(&world, line);
    parent.id = id("pod");
    agent.launch(parent).await.unwrap();
    wait_for_text(&agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap(), "ready");
    let mut debug = Request::shell(id("pod.debug"), "cat /proc/self/oom_score_adj; echo read; sleep 1000");
    debug.class = ContainerClass::Debug;
    let launch = json!({ "launch": { "oom_score_adj": 123 } });
    debug.labels = [("request".to_owned(), launch.to_string())].into();
    let pid = agent.launch(debug).await.unwrap();
    let log = agent.inspect(&id("pod.debug")).unwrap().logs.stdout.unwrap();
    wait_for_text(&log, "read");
    assert_eq!(text(&log), "kept\nread\n");
    assert_eq!(text(&Path::new("/proc").join(pid.to_string()).join("oom_score_adj")), "123\n");
    remove(&world, &agent, &["pod"]).await;
}
