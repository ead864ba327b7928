//! `filesystem/shared`.

use std::fs;

use cofferdam_core::model::{Request, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, launch_error, run, sandbox_logger, shipped, with_agent};

fn world() -> World {
    let mut world = World::new();
    world.config.isolators = vec![shipped("filesystem/shared")];
    world.config.logger = Some(sandbox_logger());
    world.share_plugin_store();
    world
}

fn request(user: &str, line: &str, volumes: Vec<Volume>) -> Request {
    let mut request = Request { volumes, ..Request::shell(id("web"), line) };
    request.command.user = Some(user.into());
    request
}

fn volume(path: &str, target: &str, read_only: bool) -> Volume {
    let source = VolumeSource::HostPath { path: path.into(), propagation: None };
    Volume { container_path: target.into(), read_only, source }
}

#[test]
fn a_container_has_a_private_directory_with_the_permissions_of_the_hosts() {
    if !is_root("mounts") {
        return;
    }
    let world = world();
    let volumes = || vec![volume("private", "/var/tmp", false), volume("/usr", "/srv", true)];
    let line = "ls /var/tmp | wc -l; echo x > /var/tmp/cofferdam-x; stat -c '%a %u' /var/tmp; ls /srv/bin/env; \
                (touch /srv/cofferdam-x) 2>/dev/null || echo read-only; echo ready; sleep 1000";
    with_agent(&world, async |agent| {
        for user in ["0", "1234"] {
            let line = line.replace("; echo ready; sleep 1000", "");
            let output = run(&agent, request(user, &line, volumes())).await;
            assert_eq!(output, "0\n1777 0\n/srv/bin/env\nread-only\n", "{user}");
            let sandbox = agent.inspect(&id("web")).unwrap().sandbox;
            assert_eq!(fs::read_to_string(sandbox.join("private/cofferdam-x")).unwrap(), "x\n");
            agent.remove(&id("web")).await.unwrap();
        }
        agent.launch(request("0", line, volumes())).await.unwrap();
        cofferdam_tests::wait_for_text(&agent.inspect(&id("web")).unwrap().logs.stdout.unwrap(), "ready");
    });
    // The next agent takes it over, and nothing is left in the end.
    with_agent(&world, async |agent| {
        agent.destroy(&id("web")).await.unwrap();
        assert!(agent.remove(&id("web")).await.unwrap());
    });
    assert_eq!(world.leftovers(), Vec::<String>::new());
    assert!(!fs::exists("/var/tmp/cofferdam-x").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_is_refused_before_the_launch_and_leaves_nothing() {
    if !is_root("mounts") {
        return;
    }
    let mut world = world();
    world.config.isolators.insert(0, shipped("filesystem/linux"));
    let agent = world.start().await.unwrap();
    let of_root = Request { rootfs: Some(world.rootfs()), ..request("0", "true", Vec::new()) };
    for (base, volumes, complaint) in [
        (&of_root, vec![volume("private", "/tmp", false)], "has a root file system of its own"),
        (
            &request("0", "true", Vec::new()),
            vec![volume("a", "/var", false), volume("b", "/var/tmp", false)],
            "would hide, or be hidden by, what is at `/var`",
        ),
        (&request("0", "true", Vec::new()), vec![volume("a", "/no/such/place", false)], "has to exist"),
        (&request("0", "true", Vec::new()), vec![volume("../a", "/var/tmp", false)], "cannot be mounted"),
    ] {
        let message = launch_error(&agent, Request { volumes, ..base.clone() }).await;
        assert!(message.contains("`filesystem/shared`") && message.contains(complaint), "{message}");
        assert_eq!(world.leftovers(), Vec::<String>::new(), "{complaint}");
    }

    // Nobody mounts volumes in nested containers.
    agent.launch(request("0", "sleep 1000", Vec::new())).await.unwrap();
    let volumes = vec![volume("private", "/var/tmp", false)];
    let nested = Request { id: id("web.nested"), ..request("0", "true", volumes) };
    let message = launch_error(&agent, nested).await;
    assert!(message.contains("volumes.host_path") || message.contains("volume"), "{message}");
    agent.destroy(&id("web")).await.unwrap();
    assert!(agent.remove(&id("web")).await.unwrap());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_gets_no_volume_and_the_launch_is_refused() {
    let mut world = World::posix();
    world.config.isolators.push(shipped("filesystem/shared"));
    let agent = world.start().await.unwrap();
    let volumes = vec![volume("private", "/var/tmp", false)];
    let mut request = Request { volumes, ..Request::shell(id("web"), "true") };
    request.command.user = None;
    let message = launch_error(&agent, request).await;
    assert!(message.contains("`posix` launcher"), "{message}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
