//! Plugins with invalid responses.

use serde_json::{Value as Json, json};

use crate::fixture::{
    Fixture, assert_contains, assert_works, greeting, id, launch_error, long_running, plain, plugin, raw,
    short,
};

/// A launch with `test/raw` fails with a message that contains all of `parts`.
async fn fails_the_launch(table: Json, parts: &[&str]) {
    let mut world = plain();
    world.config.isolators = vec![raw(table), greeting(json!({}))];
    let agent = world.start().await.unwrap();
    let text = launch_error(&agent, short("web")).await;
    assert_contains(&text, &["the plugin chain failed for container `web`", "test/raw"]);
    assert_contains(&text, parts);
    assert_eq!(plugin(&agent, "test/raw").health, "ok");
    world.config.isolators.remove(0);
    drop(agent);
    let (mut other, isolators) = (plain(), world.config.isolators.clone());
    other.config.isolators = isolators;
    assert_works(&other.start().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_json() {
    let parts = ["`test/raw`: invalid payload of `prepare`", "line 1"];
    fails_the_launch(json!({ "payload": { "prepare": "\u{1}garbage{{{" } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_another_shape() {
    let parts = ["`test/raw`: invalid payload of `prepare`", "invalid type"];
    fails_the_launch(json!({ "payload": { "prepare": r#"{"launch":{"environment":[1]}}"# } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_without_end() {
    let deep = "[".repeat(100_000);
    let parts = ["`test/raw`: invalid payload of `prepare`"];
    fails_the_launch(json!({ "payload": { "prepare": format!("{{\"state\":{deep}") } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_with_an_unknown_code() {
    let parts = ["`test/raw` failed in `isolate`: by hand"];
    fails_the_launch(json!({ "code": { "isolate": 4_000_000_000_u32 } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_are_not_open() {
    for number in [9999, -1, i32::MIN] {
        let parts = ["invalid payload of `watch`", &format!("descriptor {number} is not open")];
        fails_the_launch(json!({ "descriptors": { "watch": [number] } }), &parts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_input_and_output_as_descriptors() {
    let parts = ["invalid payload of `watch`", "descriptor 1 is the agent's own"];
    fails_the_launch(json!({ "descriptors": { "watch": [1] } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_or_a_namespace_that_this_agent_does_not_know() {
    for (act, what) in [("unknown_operation", "operation"), ("unknown_namespace", "namespace")] {
        let fixture = Fixture::new("prepare", act, json!({}));
        let agent = fixture.world.start().await.unwrap();
        let asks =
            format!("`test/fault` requests a `{what}` that this agent does not know; upgrade the agent");
        assert_contains(&launch_error(&agent, short("web")).await, &[&asks]);
        assert_works(&agent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_figure_that_is_not_a_number() {
    let fixture = Fixture::new("usage", "not_a_number", json!({}));
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let usage = agent.usage(&id("web")).await.unwrap();
    assert!(usage.failed.is_empty(), "{usage:?}");
    let names: Vec<_> = usage.statistics.keys().collect();
    assert_eq!(names, ["fault_count"], "NaN is left out");
    assert_works(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_comes_with_all_its_causes() {
    let fixture = Fixture::new("prepare", "error", json!({}));
    let agent = fixture.world.start().await.unwrap();
    let text = launch_error(&agent, short("web")).await;
    assert_contains(&text, &["`test/fault` failed in `prepare`: cannot prepare `web`", "deliberate error"]);
    assert!(!text.contains('\n'), "an error is one line: {text}");
    assert_works(&agent).await;
}
