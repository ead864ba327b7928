//! Guests that answer nonsense.

use serde_json::{Value as Json, json};

use crate::scene::{Scene, brief, greeting, id, lasting, lives, plain, plugin, raw, refusal, says};

/// A launch with a guest that answers by hand fails with these words.
async fn fails_the_launch(table: Json, words: &[&str]) {
    let mut world = plain();
    world.config.isolators = vec![raw(table), greeting(json!({}))];
    let agent = world.start().await.unwrap();
    let text = refusal(&agent, brief("web")).await;
    says(&text, &["the plugin chain failed for container `web`", "rude/raw"]);
    says(&text, words);
    assert_eq!(plugin(&agent, "rude/raw").health, "ok");
    world.config.isolators.remove(0);
    drop(agent);
    let (mut other, isolators) = (plain(), world.config.isolators.clone());
    other.config.isolators = isolators;
    lives(&other.start().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_json() {
    let words = ["`rude/raw`: invalid payload of `prepare`", "line 1"];
    fails_the_launch(json!({ "payload": { "prepare": "\u{1}garbage{{{" } }), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_another_shape() {
    let words = ["`rude/raw`: invalid payload of `prepare`", "invalid type"];
    fails_the_launch(json!({ "payload": { "prepare": r#"{"launch":{"environment":[1]}}"# } }), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_without_end() {
    let deep = "[".repeat(100_000);
    let words = ["`rude/raw`: invalid payload of `prepare`"];
    fails_the_launch(json!({ "payload": { "prepare": format!("{{\"state\":{deep}") } }), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_with_a_code_that_nobody_knows() {
    let words = ["`rude/raw` failed in `isolate`: by hand"];
    fails_the_launch(json!({ "code": { "isolate": 4_000_000_000_u32 } }), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_are_not_open() {
    for number in [9999, -1, i32::MIN] {
        let words = ["invalid payload of `watch`", &format!("descriptor {number} is not open")];
        fails_the_launch(json!({ "descriptors": { "watch": [number] } }), &words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_input_and_output_as_descriptors() {
    let words = ["invalid payload of `watch`", "descriptor 1 is the agent's own"];
    fails_the_launch(json!({ "descriptors": { "watch": [1] } }), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_or_a_namespace_that_came_after_this_agent() {
    for (act, what) in [("unknown_operation", "operation"), ("unknown_namespace", "namespace")] {
        let scene = Scene::new("prepare", act, json!({}));
        let agent = scene.world.start().await.unwrap();
        let asks =
            format!("`rude/fault` requests a `{what}` that this agent does not know; upgrade the agent");
        says(&refusal(&agent, brief("web")).await, &[&asks]);
        lives(&agent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_figure_that_is_not_a_number() {
    let scene = Scene::new("usage", "not_a_number", json!({}));
    let agent = scene.world.start().await.unwrap();
    agent.launch(lasting("web")).await.unwrap();
    let usage = agent.usage(&id("web")).await.unwrap();
    assert!(usage.failed.is_empty(), "{usage:?}");
    let names: Vec<_> = usage.statistics.keys().collect();
    assert_eq!(names, ["rude_count"], "NaN is left out");
    lives(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_comes_with_all_its_causes() {
    let scene = Scene::new("prepare", "error", json!({}));
    let agent = scene.world.start().await.unwrap();
    let text = refusal(&agent, brief("web")).await;
    says(&text, &["`rude/fault` failed in `prepare`: cannot prepare `web`", "the rude one did it"]);
    assert!(!text.contains('\n'), "an error is one line: {text}");
    lives(&agent).await;
}
