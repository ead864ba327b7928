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
async fn bytes_that_are_not_json_fail_the_launch() {
    let parts = ["`test/raw`: invalid payload of `prepare`", "line 1"];
    fails_the_launch(json!({ "payload": { "prepare": "\u{1}garbage{{{" } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_another_shape_fails_the_launch() {
    let parts = ["`test/raw`: invalid payload of `prepare`", "invalid type"];
    fails_the_launch(json!({ "payload": { "prepare": r#"{"launch":{"environment":[1]}}"# } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_json_fails_the_launch() {
    let deep = "[".repeat(100_000);
    let parts = ["`test/raw`: invalid payload of `prepare`"];
    fails_the_launch(json!({ "payload": { "prepare": format!("{{\"state\":{deep}") } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_with_an_unknown_code_fails_the_launch() {
    let parts = ["`test/raw` failed in `isolate`: by hand"];
    fails_the_launch(json!({ "code": { "isolate": 4_000_000_000_u32 } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_are_not_open_fail_the_launch() {
    for number in [9999, -1, i32::MIN] {
        let parts = ["invalid payload of `watch`", &format!("descriptor {number} is not open")];
        fails_the_launch(json!({ "descriptors": { "watch": [number] } }), &parts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_streams_of_the_agent_as_descriptors_fail_the_launch() {
    let parts = ["invalid payload of `watch`", "descriptor 1 is the agent's own"];
    fails_the_launch(json!({ "descriptors": { "watch": [1] } }), &parts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_operation_or_namespace_fails_the_launch() {
    for (act, what) in [("unknown_operation", "operation"), ("unknown_namespace", "namespace")] {
        let fixture = Fixture::new("prepare", act, json!({}));
        let agent = fixture.world.start().await.unwrap();
        let expected =
            format!("`test/fault` requests a `{what}` that this agent does not know; upgrade the agent");
        assert_contains(&launch_error(&agent, short("web")).await, &[&expected]);
        assert_works(&agent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_is_not_a_number_is_omitted() {
    let fixture = Fixture::new("usage", "not_a_number", json!({}));
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let usage = agent.usage(&id("web")).await.unwrap();
    assert!(usage.failed.is_empty(), "{usage:?}");
    let names: Vec<_> = usage.statistics.keys().collect();
    assert_eq!(names, ["fault_count"], "NaN is omitted");
    assert_works(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_reported_with_all_its_causes() {
    let fixture = Fixture::new("prepare", "error", json!({}));
    let agent = fixture.world.start().await.unwrap();
    let text = launch_error(&agent, short("web")).await;
    assert_contains(&text, &["`test/fault` failed in `prepare`: cannot prepare `web`", "deliberate error"]);
    assert!(!text.contains('\n'), "an error is one line: {text}");
    assert_works(&agent).await;
}
