//! Containers that evade the measurement of what they have written.

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{Reason, Resources};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id};
use serde_json::json;

use super::{assert_nothing_left, attacker, worlds};

/// With `disk/du`, which has to find directories again that were moved.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_moves_directories_all_the_time_ends_by_its_limit() {
    if !is_root("root file systems") {
        return;
    }
    for world in worlds() {
        move_directories(world).await;
    }
}

async fn move_directories(mut world: World) {
    let table = json!({ "container_disk_watch_interval": "50ms", "enforce_container_disk_quota": true });
    world.config.isolators.push(PluginConfig { table, ..PluginConfig::new("disk/du") });
    let agent = world.start().await.unwrap();
    let mut request = attacker(&world, "web", 0, &["churn", "24"]);
    request.resources = Resources::default().with("cpus", 2.0).with("disk", 16.0);
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id("web")).await.unwrap();
    let reason = Reason::Limitation("REASON_CONTAINER_LIMITATION_DISK".into());
    assert_eq!(termination.reason, Some(reason), "{termination:?}");
    assert!(agent.remove(&id("web")).await.unwrap());
    assert_nothing_left(&world);
}
