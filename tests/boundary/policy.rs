//! Guests that disagree, and guests that containers can do without.

use cofferdam_plugin_model::Method;
use serde_json::json;

use crate::scene::{
    Rope, Scene, brief, fault, greeting, id, lasting, life, lives, plain, refusal, rude, says,
};

#[tokio::test(flavor = "multi_thread")]
async fn two_that_claim_one_field_are_both_named() {
    let mut world = plain();
    let rude = fault(json!({ "environment": { "GREETING": "go away" } }));
    world.config.isolators = vec![rude, greeting(json!({ "greeting": "welcome" }))];
    let agent = world.start().await.unwrap();
    let text = refusal(&agent, brief("web")).await;
    let both =
        "`environment.GREETING` is set by both `rude/fault` (go away) and `example/greeting` (welcome)";
    says(&text, &["the plugin chain failed for container `web`", both]);

    world.config.isolators[0].table = json!({ "environment": { "GREETING": "welcome" } });
    let mut other = plain();
    other.config.isolators.clone_from(&world.config.isolators);
    lives(&other.start().await.unwrap()).await;
}

/// The container runs without the guest, whatever is wrong with it, and says so.
async fn does_without(scene: Scene, words: &[&str]) {
    let agent = scene.world.start().await.unwrap();
    agent.launch(lasting("web")).await.expect("it runs without");
    let inspection = agent.inspect(&id("web")).unwrap();
    let served = inspection.plugins.iter().find(|served| served.plugin == "rude/fault").unwrap();
    says(served.unavailable.as_deref().expect("the container says so"), words);
    let others = inspection.plugins.iter().filter(|served| served.plugin != "rude/fault");
    assert!(others.into_iter().all(|served| served.unavailable.is_none()));
    // Nothing is asked of it for this container any more, but to clean up.
    let usage = agent.usage(&id("web")).await.unwrap();
    assert!(!usage.owners.contains_key("rude_count") && usage.failed.is_empty(), "{usage:?}");
    agent.destroy(&id("web")).await.unwrap();
    assert!(scene.journal().contains(&"cleanup web".to_owned()), "{:?}", scene.journal());
    lives(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_one_that_fails() {
    for method in ["prepare", "watch", "isolate"] {
        let words = format!("`rude/fault` failed in `{method}`: cannot {method} `web`");
        does_without(Scene::new(method, "error", json!({})).optional(), &[&words]).await;
    }
}

/// It was never there for the container: it is told to leave what it may have done, and is not asked about it.
#[test]
fn an_optional_one_that_failed_is_left_out_by_the_next_agent_too() {
    let mut scene = Scene::new("prepare", "error", json!({})).optional();
    let reason = life(&scene.world, async |agent| {
        agent.launch(lasting("web")).await.expect("it runs without");
        agent.inspect(&id("web")).unwrap().plugins.remove(0).unavailable.expect("it says so")
    });
    scene.rude().table["faults"] = json!([]);
    life(&scene.world, async |agent| {
        assert_eq!(rude(&agent).health, "ok");
        let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
        assert_eq!(served.unavailable, Some(reason));
        let usage = agent.usage(&id("web")).await.unwrap();
        assert!(!usage.owners.contains_key("rude_count"), "{usage:?}");
        agent.destroy(&id("web")).await.unwrap();
        assert!(scene.journal().contains(&"cleanup web".to_owned()), "{:?}", scene.journal());
    });
}

#[test]
fn an_optional_one_that_failed_can_be_taken_out() {
    let mut scene = Scene::new("prepare", "error", json!({})).optional();
    life(&scene.world, async |agent| agent.launch(lasting("web")).await.expect("it runs without"));
    scene.world.config.isolators.retain(|plugin| plugin.name != "rude/fault");
    life(&scene.world, async |agent| {
        agent.destroy(&id("web")).await.unwrap();
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(scene.world.leftovers(), Vec::<String>::new());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_one_that_panics() {
    let words = ["panicked in `prepare`", "fault/src/act.rs:"];
    does_without(Scene::new("prepare", "panic", json!({})).optional(), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_one_that_hangs() {
    for method in [Method::Prepare, Method::Watch, Method::Isolate] {
        let mut scene = Scene::new(method.name(), "hang", json!({})).optional().hurried(method);
        let rope = Rope::new(scene.at("rope"));
        scene.rude().table["faults"][0]["until"] = rope.path().display().to_string().into();
        let words = format!("did not return from `{method}` within 300ms");
        does_without(scene, &[&words]).await;
        drop(rope);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_one_that_is_out_of_service() {
    let scene = Scene::new("recover", "error", json!({})).optional();
    let agent = scene.world.start().await.unwrap();
    assert_eq!(rude(&agent).health, "out of service");
    agent.launch(lasting("web")).await.expect("it runs without");
    let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
    says(&served.unavailable.unwrap(), &["is out of service", "cannot recover"]);
    agent.destroy(&id("web")).await.unwrap();
}
