//! `exec`: when nothing is executed.

use std::fs;

use cofferdam_tests::daemon::{CallError, Daemon};
use cofferdam_tests::world::{World, id, object};
use cofferdam_tests::{assert_contains, is_root};
use serde_json::json;

use crate::terminals::Site;

#[test]
fn nothing_is_executed_in_a_container_that_is_ending() {
    if !is_root("a root file system") {
        return;
    }
    let mut world = World::shipped();
    let stays = world.directory().join("stays");
    fs::write(&stays, "").unwrap();
    // Its cleanup fails until the file is gone.
    let faults =
        json!({ "faults": [{ "method": "cleanup", "container": "web", "act": "error", "when": stays }] });
    world.config.isolators.push(object("test/fault", "libtest_fault.so", faults));
    let daemon = Daemon::start(&world);
    let site = Site::with(world, daemon);
    let launch = ["run", "-d", "-i", "--name", "web", "--rootfs", &site.rootfs, "--", "sleep", "1000000"];
    assert!(site.piped(&launch, b"").status.success());
    assert_eq!(site.piped(&["exec", "web", "echo", "up"], b"").stdout, b"up\n");
    assert!(site.piped(&["kill", "web"], b"").status.success());
    while site.daemon().inspect(&id("web")).unwrap().state != "DESTROYING" {
        std::thread::yield_now();
    }
    for command in [&["exec", "web", "true"][..], &["exec", "-i", "web", "cat"], &["attach", "web"]] {
        let refused = site.piped(command, b"");
        let error = String::from_utf8_lossy(&refused.stderr);
        let status = if command[0] == "exec" { 125 } else { 1 };
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(status), 0), "{error}");
        assert_contains(&error, &["container `web` is ending"]);
    }
    let mut terminal = site.at_terminal(&["exec", "-it", "web", "sh"]);
    terminal.wait_for("container `web` is ending");
    assert_eq!(terminal.wait().unwrap().code(), Some(125));
    assert!(!terminal.is_raw());
    // As clients of Mesos see it.
    let session = json!({
        "type": "LAUNCH_NESTED_CONTAINER_SESSION",
        "launch_nested_container_session": {
            "container_id": { "value": "session", "parent": { "value": "web" } },
            "command": { "value": "true" },
        },
    });
    let Err(CallError::Status(400, error)) = site.daemon().call(&session) else { panic!("it is launched") };
    assert_contains(&error, &["`web` is DESTROYING, not RUNNING"]);

    fs::remove_file(&stays).unwrap();
    assert_eq!(site.daemon().wait(&id("web")).unwrap().exit_status, Some(9));
    assert!(site.piped(&["rm", "web"], b"").status.success());
    site.finish();
}
