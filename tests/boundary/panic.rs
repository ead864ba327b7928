//! Guests that panic: one container's error with a place, a new instance, and in the end quarantine.

use std::fs;

use cofferdam_core::error_chain::describe;
use cofferdam_core::model::Resources;
use serde_json::json;

use crate::scene::{Scene, brief, id, lasting, lives, plugin, refusal, rude, says, stuck, until};

const PLACE: &str = "fault/src/act.rs:";

/// A launch that fails because the guest panics in this method.
async fn fails_the_launch(method: &str, act: &str, words: &[&str]) {
    let scene = Scene::new(method, act, json!({}));
    let agent = scene.world.start().await.unwrap();
    agent.launch(lasting("steady")).await.unwrap();
    let text = refusal(&agent, brief("web")).await;
    says(
        &text,
        &[
            "the plugin chain failed for container `web`",
            &format!("`rude/fault` panicked in `{method}`"),
            PLACE,
        ],
    );
    says(&text, &["it was restarted and has recovered its containers"]);
    says(&text, words);

    // The new instance was told of the container that runs, and cleaned up after the one that does not.
    let journal = scene.journal();
    let at = |wanted: &str| journal.iter().rposition(|line| line == wanted);
    let panicked = at(&format!("{method} web")).expect("it was called");
    assert!(at("create") > Some(panicked) && at("recover steady") > at("create"), "{journal:?}");
    assert!(at("cleanup web") > at("recover steady"), "{journal:?}");
    assert_eq!(rude(&agent).health, "ok");
    assert_eq!(rude(&agent).calls[method].panics, 1);
    lives(&agent).await;
    agent.destroy(&id("steady")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_prepare() {
    fails_the_launch("prepare", "panic", &["while PREPARING", "deliberate, for `web`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_watch() {
    fails_the_launch("watch", "panic", &["while ISOLATING", "deliberate, for `web`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_isolate() {
    fails_the_launch("isolate", "panic", &["while ISOLATING", "deliberate, for `web`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_whose_payload_panics_when_it_is_dropped() {
    fails_the_launch("prepare", "panic_twice", &["something that is not a text"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_usage_or_status_is_named_and_the_rest_is_served() {
    let fault = json!({ "method": "status", "act": "panic", "container": "web" });
    let scene = Scene::new("usage", "panic", json!({})).also(fault);
    let agent = scene.world.start().await.unwrap();
    agent.launch(lasting("web")).await.unwrap();
    let usage = agent.usage(&id("web")).await.unwrap();
    says(&usage.failed["rude/fault"], &["panicked in `usage`: deliberate, for `web`", PLACE]);
    let status = agent.status(&id("web")).await.unwrap();
    says(&status.failed["rude/fault"], &["panicked in `status`: deliberate, for `web`", PLACE]);
    assert_eq!(status.status["greeting"], json!("hello there"));
    lives(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_update_leaves_the_resources_as_they_were() {
    let scene = Scene::new("update", "panic", json!({}));
    let agent = scene.world.start().await.unwrap();
    let mut request = lasting("web");
    request.resources = Resources::default().with("cpus", 1.0);
    agent.launch(request).await.unwrap();
    let error = agent.update(&id("web"), Resources::default().with("cpus", 2.0)).await.unwrap_err();
    says(
        &describe(&error),
        &["the plugin chain refused the update", "panicked in `update`: deliberate, for `web`", PLACE],
    );
    let kept = agent.inspect(&id("web")).unwrap().summary.resources;
    assert_eq!(kept, Resources::default().with("cpus", 1.0));
    lives(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_limitation_takes_no_container_along() {
    let scene = Scene::new("limitation", "panic", json!({}));
    let agent = scene.world.start().await.unwrap();
    agent.launch(brief("web")).await.unwrap();
    let termination = agent.wait(&id("web")).await.unwrap();
    assert_eq!((termination.status, termination.reason), (Some(0), None));
    assert_eq!(rude(&agent).calls["limitation"].panics, 1);
    lives(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_cleanup_keeps_the_container_visible_until_it_succeeds() {
    let mut scene = Scene::new("cleanup", "panic", json!({}));
    let healed = scene.at("healed");
    scene.rude().table["faults"][0]["unless"] = healed.display().to_string().into();
    let agent = scene.world.start().await.unwrap();
    agent.launch(brief("web")).await.unwrap();
    until("three panics in cleanup", || rude(&agent).calls.get("cleanup").is_some_and(|c| c.panics >= 3))
        .await;
    until("the reason", || stuck(&agent, "web").contains("panicked in `cleanup`: deliberate")).await;
    assert_eq!(rude(&agent).health, "quarantined");
    // The others have cleaned up all the same.
    assert!(plugin(&agent, "rude/fault").calls["cleanup"].calls >= 3);

    // Cleanup is let through, quarantine or not.
    fs::write(&healed, "").unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    assert_eq!(stuck(&agent, "web"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_recover_puts_the_plugin_out_of_service() {
    let scene = Scene::new("recover", "panic", json!({}));
    let agent = scene.world.start().await.unwrap();
    let view = rude(&agent);
    assert_eq!(view.health, "out of service");
    says(&view.health_reason.unwrap(), &["it did not recover", "panicked in `recover`: deliberate", PLACE]);
    // It is required, so nothing is launched without it, and the reason is told.
    let text = refusal(&agent, brief("web")).await;
    says(
        &text,
        &["`rude/fault` is out of service, so `prepare` was not called", "it did not recover", PLACE],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_recover_after_a_panic_puts_the_plugin_out_of_service_too() {
    let mut scene = Scene::new("prepare", "panic", json!({}));
    // Not at the start, only once the journal tells that `web` was to be prepared.
    let mark = scene.at("mark").display().to_string();
    scene = scene.also(json!({ "method": "recover", "act": "panic", "when": mark }));
    let agent = scene.world.start().await.unwrap();
    fs::write(&mark, "").unwrap();
    let text = refusal(&agent, brief("web")).await;
    says(&text, &["panicked in `prepare`", PLACE, "out of service"]);
    assert!(!text.contains("told of its containers"), "it was not: {text}");
    let view = rude(&agent);
    assert_eq!(view.health, "out of service");
    says(&view.health_reason.unwrap(), &["it did not recover after a panic", "panicked in `recover`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_cannot_be_made_anew_is_out_of_service_and_cleans_up_when_it_can() {
    let mut scene = Scene::new("prepare", "panic", json!({}));
    let broken = scene.at("broken").display().to_string();
    scene = scene.also(json!({ "method": "create", "act": "error", "when": broken }));
    let agent = scene.world.start().await.unwrap();
    fs::write(&broken, "").unwrap();
    let (launching, named) = (agent.clone(), id("web"));
    let launch = tokio::spawn(async move { refusal(&launching, brief("web")).await });
    until("a container that is stuck", || stuck(&agent, "web").contains("rude/fault")).await;
    let view = rude(&agent);
    assert_eq!(view.health, "out of service");
    says(&view.health_reason.unwrap(), &["it could not be restarted after a panic", "the rude one did it"]);

    // Whatever was prepared is undone as soon as there is an instance that can do it.
    fs::remove_file(&broken).unwrap();
    let text = launch.await.unwrap();
    says(&text, &["panicked in `prepare`", "could not be restarted"]);
    assert!(agent.wait(&named).await.is_none(), "it left no trace");
    assert_eq!(scene.last_call().as_deref(), Some("cleanup web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_drop_costs_nothing() {
    let scene = Scene::new("prepare", "panic", json!({})).also(json!({ "method": "drop", "act": "panic" }));
    let agent = scene.world.start().await.unwrap();
    says(&refusal(&agent, brief("web")).await, &["panicked in `prepare`", "it was restarted"]);
    until("the old instance's end", || scene.journal().contains(&"drop".to_owned())).await;
    lives(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_panic_is_the_last() {
    let scene = Scene::new("prepare", "panic", json!({}));
    let agent = scene.world.start().await.unwrap();
    for _ in 0..2 {
        says(&refusal(&agent, brief("web")).await, &["panicked in `prepare`", "it was restarted"]);
        lives(&agent).await;
    }
    let third = refusal(&agent, brief("web")).await;
    says(&third, &["panicked in `prepare`", PLACE, "quarantine"]);
    assert!(!third.contains("told of its containers"), "it was not: {third}");

    let view = rude(&agent);
    assert_eq!(view.health, "quarantined");
    says(
        &view.health_reason.unwrap(),
        &["it panicked 3 times, last: panicked in `prepare`: deliberate", PLACE],
    );
    assert_eq!(view.calls["prepare"].panics, 3);
    let text = refusal(&agent, brief("other")).await;
    says(&text, &["`rude/fault` is quarantined, so `prepare` was not called: it panicked 3 times"]);
    // The neighbour serves on.
    assert_eq!(plugin(&agent, "example/greeting").health, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_for_one_container_fails_no_other_one() {
    let scene = Scene::new("prepare", "panic", json!({}));
    let agent = scene.world.start().await.unwrap();
    let launches: Vec<_> = (0..16)
        .map(|number| {
            let (agent, name) =
                (agent.clone(), if number == 8 { "web".into() } else { format!("c{number}") });
            tokio::spawn(async move { (name.clone(), agent.launch(brief(&name)).await) })
        })
        .collect();
    for launch in launches {
        let (name, outcome) = launch.await.unwrap();
        match outcome {
            Ok(_) => {
                assert_ne!(name, "web");
                assert_eq!(agent.wait(&id(&name)).await.unwrap().status, Some(0));
            }
            Err(error) => assert_eq!(name, "web", "{}", describe(&error)),
        }
    }
    assert_eq!(rude(&agent).calls["prepare"].panics, 1);
}
