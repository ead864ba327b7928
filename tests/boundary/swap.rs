//! A plugin is replaced by another version while containers are running.

use std::fs;

use cofferdam_core::model::Phase;
use cofferdam_tests::world::World;
use serde_json::json;

use crate::fixture::{
    assert_contains, assert_works, greeting, id, long_running, object, plain, plugin, with_agent,
};

const NAME: &str = "example/greeting";

fn world() -> World {
    let mut world = plain();
    world.config.isolators = vec![greeting(json!({ "greeting": "good  morning" }))];
    world
}

/// The same directories, with version 2 in the chain.
fn upgrade(world: &mut World) {
    world.config.isolators = vec![object(NAME, "libgreeting_2.so", json!({ "greeting": "good night" }))];
}

fn downgrade(world: &mut World) {
    world.config.isolators = vec![greeting(json!({}))];
}

/// The running container's pid, which shows that it is the same process.
fn pid(agent: &cofferdam_core::agent::Agent) -> i32 {
    let found = agent.containers();
    assert_eq!((found.len(), found[0].phase), (1, Phase::Running), "{found:?}");
    let pid = found[0].pid.unwrap();
    assert!(fs::metadata(format!("/proc/{pid}")).is_ok(), "it runs");
    pid
}

#[test]
fn a_newer_version_migrates_the_states_of_an_older_one() {
    let mut world = world();
    let before = with_agent(&world, async |agent| {
        agent.launch(long_running("web")).await.unwrap();
        let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
        assert_eq!(served.version.as_deref(), Some("1.0.0"));
        assert_eq!(served.state, json!({ "text": "good  morning" }));
        pid(&agent)
    });
    upgrade(&mut world);
    let kept = json!({ "words": ["good", "morning"], "since_version": "1.0.0" });
    with_agent(&world, async |agent| {
        assert_eq!(pid(&agent), before);
        let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
        assert_eq!(served.version.as_deref(), Some("2.0.0"), "the version that wrote the state is recorded");
        assert_eq!((&served.state, served.unavailable), (&kept, None));
        let status = agent.status(&id("web")).await.unwrap();
        assert_eq!(status.status["greeting"], kept);
        assert_works(&agent).await;
    });
    // It is on disk: after another restart there is nothing to migrate.
    with_agent(&world, async |agent| {
        assert_eq!(pid(&agent), before);
        assert_eq!(agent.inspect(&id("web")).unwrap().plugins[0].state, kept);
        agent.destroy(&id("web")).await.unwrap();
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn an_older_version_without_recover_affects_no_container() {
    let mut world = world();
    upgrade(&mut world);
    let before = with_agent(&world, async |agent| {
        agent.launch(long_running("web")).await.unwrap();
        pid(&agent)
    });
    downgrade(&mut world);
    with_agent(&world, async |agent| {
        // Version 1 has no `recover`, so the next call fails.
        assert_eq!(pid(&agent), before);
        let status = agent.status(&id("web")).await.unwrap();
        assert_contains(
            &status.failed[NAME],
            &["cannot read the plugin's own state", "missing field `text`"],
        );
        assert_works(&agent).await;
        assert_eq!(pid(&agent), before);
    });
    upgrade(&mut world);
    with_agent(&world, async |agent| {
        let status = agent.status(&id("web")).await.unwrap();
        assert_eq!(status.status["greeting"]["words"], json!(["good", "night"]), "the state was kept");
        agent.destroy(&id("web")).await.unwrap();
    });
}

#[test]
fn a_state_of_a_newer_version_is_refused_with_a_reason() {
    let mut world = world();
    upgrade(&mut world);
    let before = with_agent(&world, async |agent| {
        agent.launch(long_running("web")).await.unwrap();
        pid(&agent)
    });
    // As version 3 would have written it.
    let record = world.config.runtime_dir.join("containers/web/record");
    rewrite(&record, r#""version":"2.0.0""#, r#""version":"3.1.0""#);
    with_agent(&world, async |agent| {
        assert_eq!(pid(&agent), before, "the container is not affected");
        let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
        let parts =
            ["version 3.1.0", "wrote its state, which version 2.0.0 cannot read", "use 3.1.0 or a later"];
        assert_contains(served.unavailable.as_deref().unwrap(), &parts);
        assert_eq!(served.version.as_deref(), Some("3.1.0"), "the state is still that of its writer");
        assert_eq!(plugin(&agent, NAME).health, "ok", "it is used for other containers");
        assert!(!agent.status(&id("web")).await.unwrap().status.contains_key("greeting"));
        assert_works(&agent).await;
        agent.destroy(&id("web")).await.unwrap();
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}

/// Changes a record and its checksum.
fn rewrite(record: &std::path::Path, from: &str, to: &str) {
    let old = fs::read_to_string(record).unwrap();
    let (head, body) = old.split_once('\n').unwrap();
    assert!(body.contains(from), "{body}");
    let new = body.replacen(from, to, 1);
    let sum = |text: &str| format!("{:08x}", crc32fast::hash(text.as_bytes()));
    assert!(head.contains(&sum(body)), "{head}");
    fs::write(record, format!("{}\n{new}", head.replace(&sum(body), &sum(&new)))).unwrap();
}
