//! `filesystem/shared`.

use std::fs;

use cofferdam_core::model::{Request, Volume, VolumeSource};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run, sandbox_logger, shipped, with_agent};

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
