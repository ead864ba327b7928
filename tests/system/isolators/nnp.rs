//! `linux/nnp`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run};
use serde_json::json;

use super::{Fixture, across_restart, isolator, value, world};

/// Puts a copy of the probe with the set-user-id bit into the root file system.
fn add_raised(world: &World) {
    let bin = world.rootfs().join("bin");
    fs::copy(bin.join("probe"), bin.join("raised")).unwrap();
    fs::set_permissions(bin.join("raised"), fs::Permissions::from_mode(0o4755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_user_id_program_gives_no_privileges() {
    if !is_root("set-user-id programs") {
        return;
    }
    let line = "raised status Uid NoNewPrivs";
    let without = Fixture::start(Vec::new()).await;
    add_raised(&without.world);
    let status = without.run(without.request("web", "web", line)).await;
    assert_eq!((value(&status, "Uid"), value(&status, "NoNewPrivs")), ("1234\t0\t0\t0", "0"));

    let fixture = Fixture::start(vec![isolator("linux/nnp", json!({}))]).await;
    add_raised(&fixture.world);
    let status = fixture.run(fixture.request("web", "web", line)).await;
    assert_eq!((value(&status, "Uid"), value(&status, "NoNewPrivs")), ("1234\t1234\t1234\t1234", "1"));
    let status = fixture.run(fixture.request("web", "root", line)).await;
    assert_eq!(value(&status, "NoNewPrivs"), "1");
}

#[test]
fn nested_and_debug_containers_have_it_also_with_a_later_agent() {
    if !is_root("nested containers") {
        return;
    }
    let world = world(vec![isolator("linux/nnp", json!({}))]);
    add_raised(&world);
    across_restart(
        &world,
        async |fixture| fixture.launch(fixture.request("pod", "web", "true")).await,
        async |fixture| {
            let line = "raised status Uid";
            let nested = fixture.request("pod.nested", "web", line);
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            for request in [nested, debug] {
                assert_eq!(value(&run(&fixture.agent, request).await, "Uid"), "1234\t1234\t1234\t1234");
            }
            fixture.destroy("pod").await;
        },
    );
}
