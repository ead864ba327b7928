//! The whole house on a real kernel.

use cofferdam::container::{ContainerId, Request, Resources};
use cofferdam_tests::{is_root, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_through_the_shipped_chain_and_leaves_nothing() {
    if !is_root("the shipped chain") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let id = ContainerId::parse("hello").unwrap();
    let mut request = Request::shell(id.clone(), "echo hello; id -u >&2; exit 7");
    request.rootfs = Some(world.rootfs());
    request.resources = Resources::default().with("cpus", 0.5).with("mem", 64.0);
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id).await.unwrap();
    assert_eq!(termination.status, Some(7 << 8), "{termination:?}");
    let logs = agent.inspect(&id).unwrap().logs;
    assert_eq!(std::fs::read_to_string(logs.stdout.unwrap()).unwrap(), "hello\n");
    assert_eq!(std::fs::read_to_string(logs.stderr.unwrap()).unwrap(), "0\n");
    assert!(agent.remove(&id).await.unwrap());
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
