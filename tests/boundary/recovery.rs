//! An agent that finds running containers, and a plugin that is not what it was.

use std::fs;

use cofferdam_core::model::Resources;
use serde_json::json;

use crate::scene::{Scene, greeting, id, lasting, life, lives, plain, rude, says, stuck, until};

#[test]
fn a_plugin_that_is_missing_harms_no_container_and_cleans_up_when_it_is_back() {
    let mut scene = Scene::new("create", "log", json!({}));
    life(&scene.world, async |agent| agent.launch(lasting("web")).await.unwrap());

    let rude_entry = scene.world.config.isolators.remove(0);
    life(&scene.world, async |agent| {
        let inspection = agent.inspect(&id("web")).unwrap();
        let pid = inspection.summary.pid.unwrap();
        assert!(fs::metadata(format!("/proc/{pid}")).is_ok(), "it runs");
        let served = inspection.plugins.iter().find(|served| served.plugin == "rude/fault").unwrap();
        says(
            served.unavailable.as_deref().unwrap(),
            &["it is not in the chain any more", "continues without it"],
        );
        // The others serve it.
        assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("hello there"));
        lives(&agent).await;

        // It ends when it is told to, and stays visible: nobody can undo what the missing one did.
        let ending = agent.clone();
        tokio::spawn(async move { ending.destroy(&id("web")).await });
        until("the reason", || stuck(&agent, "web").contains("`rude/fault` is not in the chain")).await;
        says(&stuck(&agent, "web"), &["add it to the configuration and restart the agent"]);
        assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "its processes are gone");
    });

    scene.world.config.isolators.insert(0, rude_entry);
    life(&scene.world, async |agent| {
        agent.wait(&id("web")).await.unwrap();
        assert!(scene.journal().contains(&"cleanup web".to_owned()), "{:?}", scene.journal());
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(scene.world.leftovers(), Vec::<String>::new());
        lives(&agent).await;
    });
}

#[test]
fn a_plugin_that_was_missing_for_a_while_serves_again() {
    let mut world = plain();
    let entry = greeting(json!({ "greeting": "welcome" }));
    world.config.isolators = vec![entry.clone()];
    life(&world, async |agent| agent.launch(lasting("web")).await.unwrap());

    world.config.isolators.clear();
    life(&world, async |agent| {
        assert!(!agent.status(&id("web")).await.unwrap().status.contains_key("greeting"));
        // What is known of the container goes to the disk once more.
        agent.update(&id("web"), Resources::default().with("cpus", 1.0)).await.unwrap();
    });

    world.config.isolators = vec![entry];
    life(&world, async |agent| {
        assert_eq!(agent.inspect(&id("web")).unwrap().plugins.remove(0).unavailable, None);
        assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("welcome"));
        agent.destroy(&id("web")).await.unwrap();
    });
}

#[test]
fn a_plugin_that_fails_to_recover_harms_no_container() {
    for act in ["error", "panic"] {
        let mut scene = Scene::new("recover", act, json!({}));
        let healed = scene.at("healed");
        scene.rude().table["faults"][0]["unless"] = healed.display().to_string().into();
        fs::write(&healed, "").unwrap();
        let pid = life(&scene.world, async |agent| {
            agent.launch(lasting("web")).await.unwrap();
            agent.containers()[0].pid.unwrap()
        });
        fs::remove_file(&healed).unwrap();
        life(&scene.world, async |agent| {
            assert_eq!(rude(&agent).health, "out of service");
            let why = if act == "panic" { "deliberate, for `web`" } else { "cannot recover `web`" };
            says(&rude(&agent).health_reason.unwrap(), &["it did not recover", why]);
            assert!(fs::metadata(format!("/proc/{pid}")).is_ok(), "the container runs");
            let usage = agent.usage(&id("web")).await.unwrap();
            says(&usage.failed["rude/fault"], &["is out of service, so `usage` was not called"]);
            assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("hello there"));
            // It can be ended, and is cleaned up even by this one.
            agent.destroy(&id("web")).await.unwrap();
            assert_eq!(scene.last_call().as_deref(), Some("cleanup web"));
        });
    }
}

#[test]
fn a_plugin_that_is_new_to_the_chain_is_not_asked_about_older_containers() {
    let mut scene = Scene::new("create", "log", json!({}));
    let newcomer = scene.world.config.isolators.remove(0);
    life(&scene.world, async |agent| agent.launch(lasting("web")).await.unwrap());
    scene.world.config.isolators = vec![newcomer, greeting(json!({}))];
    life(&scene.world, async |agent| {
        assert!(!agent.usage(&id("web")).await.unwrap().owners.contains_key("rude_count"));
        agent.destroy(&id("web")).await.unwrap();
        lives(&agent).await;
        let about: Vec<String> = scene.journal().into_iter().filter(|line| line.ends_with(" web")).collect();
        assert_eq!(about, Vec::<String>::new());
    });
}
