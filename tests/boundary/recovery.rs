//! An agent that recovers running containers with a changed chain.

use std::fs;

use cofferdam_core::model::Resources;
use serde_json::json;

use crate::fixture::{
    Fixture, assert_contains, assert_works, cleanup_errors, faulty, greeting, id, long_running, plain,
    wait_until, with_agent,
};

#[test]
fn a_missing_plugin_affects_no_container_and_cleans_up_when_it_is_back() {
    let mut fixture = Fixture::new("create", "log", json!({}));
    with_agent(&fixture.world, async |agent| agent.launch(long_running("web")).await.unwrap());

    let entry = fixture.world.config.isolators.remove(0);
    with_agent(&fixture.world, async |agent| {
        let inspection = agent.inspect(&id("web")).unwrap();
        let pid = inspection.summary.pid.unwrap();
        assert!(fs::metadata(format!("/proc/{pid}")).is_ok(), "it runs");
        let served = inspection.plugins.iter().find(|served| served.plugin == "test/fault").unwrap();
        assert_contains(
            served.unavailable.as_deref().unwrap(),
            &["it is not in the chain any more", "continues without it"],
        );
        // The other plugins still work.
        assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("hello there"));
        assert_works(&agent).await;

        // It can be ended, and stays visible: the missing plugin cannot clean up.
        let ending = agent.clone();
        tokio::spawn(async move { ending.destroy(&id("web")).await });
        wait_until("the reason", || {
            cleanup_errors(&agent, "web").contains("`test/fault` is not in the chain")
        })
        .await;
        assert_contains(
            &cleanup_errors(&agent, "web"),
            &["add it to the configuration and restart the agent"],
        );
        assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "its processes are gone");
    });

    fixture.world.config.isolators.insert(0, entry);
    with_agent(&fixture.world, async |agent| {
        agent.wait(&id("web")).await.unwrap();
        assert!(fixture.journal().contains(&"cleanup web".to_owned()), "{:?}", fixture.journal());
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(fixture.world.leftovers(), Vec::<String>::new());
        assert_works(&agent).await;
    });
}

#[test]
fn a_plugin_that_was_missing_is_used_again_when_it_is_back() {
    let mut world = plain();
    let entry = greeting(json!({ "greeting": "welcome" }));
    world.config.isolators = vec![entry.clone()];
    with_agent(&world, async |agent| agent.launch(long_running("web")).await.unwrap());

    world.config.isolators.clear();
    with_agent(&world, async |agent| {
        assert!(!agent.status(&id("web")).await.unwrap().status.contains_key("greeting"));
        // Writes the record.
        agent.update(&id("web"), Resources::default().with("cpus", 1.0)).await.unwrap();
    });

    world.config.isolators = vec![entry];
    with_agent(&world, async |agent| {
        assert_eq!(agent.inspect(&id("web")).unwrap().plugins.remove(0).unavailable, None);
        assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("welcome"));
        agent.destroy(&id("web")).await.unwrap();
    });
}

#[test]
fn a_plugin_that_fails_to_recover_affects_no_container() {
    for act in ["error", "panic"] {
        let mut fixture = Fixture::new("recover", act, json!({}));
        let repaired = fixture.at("repaired");
        fixture.faulty().table["faults"][0]["unless"] = repaired.display().to_string().into();
        fs::write(&repaired, "").unwrap();
        let pid = with_agent(&fixture.world, async |agent| {
            agent.launch(long_running("web")).await.unwrap();
            agent.containers()[0].pid.unwrap()
        });
        fs::remove_file(&repaired).unwrap();
        with_agent(&fixture.world, async |agent| {
            assert_eq!(faulty(&agent).health, "out of service");
            let why = if act == "panic" { "deliberate, for `web`" } else { "cannot recover `web`" };
            assert_contains(&faulty(&agent).health_reason.unwrap(), &["it did not recover", why]);
            assert!(fs::metadata(format!("/proc/{pid}")).is_ok(), "the container runs");
            let usage = agent.usage(&id("web")).await.unwrap();
            assert_contains(&usage.failed["test/fault"], &["is out of service, so `usage` was not called"]);
            assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("hello there"));
            // It can be ended, and the plugin is still called to clean up.
            agent.destroy(&id("web")).await.unwrap();
            assert_eq!(fixture.last_call().as_deref(), Some("cleanup web"));
        });
    }
}

#[test]
fn a_plugin_that_is_new_in_the_chain_is_not_called_for_older_containers() {
    let mut fixture = Fixture::new("create", "log", json!({}));
    let newcomer = fixture.world.config.isolators.remove(0);
    with_agent(&fixture.world, async |agent| agent.launch(long_running("web")).await.unwrap());
    fixture.world.config.isolators = vec![newcomer, greeting(json!({}))];
    with_agent(&fixture.world, async |agent| {
        assert!(!agent.usage(&id("web")).await.unwrap().owners.contains_key("fault_count"));
        agent.destroy(&id("web")).await.unwrap();
        assert_works(&agent).await;
        let about: Vec<String> =
            fixture.journal().into_iter().filter(|line| line.ends_with(" web")).collect();
        assert_eq!(about, Vec::<String>::new());
    });
}
