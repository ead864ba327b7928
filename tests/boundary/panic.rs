//! Plugins that panic: an error of one container with the location, a restart, and after several panics quarantine.

use std::fs;
use std::time::SystemTime;

use cofferdam_core::agent::Agent;
use cofferdam_core::error_chain::describe;
use cofferdam_core::events::{EventKind, PluginChange, Received};
use cofferdam_core::model::{Phase, Resources};
use serde_json::json;

use crate::fixture::{
    Fixture, assert_contains, assert_works, cleanup_errors, faulty, id, launch_error, long_running, plugin,
    short, wait_until,
};

const PLACE: &str = "fault/src/act.rs:";

/// A launch fails because the plugin panics in this method.
async fn fails_the_launch(method: &str, act: &str, parts: &[&str]) {
    let fixture = Fixture::new(method, act, json!({}));
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("steady")).await.unwrap();
    let text = launch_error(&agent, short("web")).await;
    assert_contains(
        &text,
        &[
            "the plugin chain failed for container `web`",
            &format!("`test/fault` panicked in `{method}`"),
            PLACE,
        ],
    );
    assert_contains(&text, &["it was restarted and has recovered its containers"]);
    assert_contains(&text, parts);

    // The new instance has recovered the running container, and has cleaned up the failed one.
    let journal = fixture.journal();
    let at = |wanted: &str| journal.iter().rposition(|line| line == wanted);
    let panicked = at(&format!("{method} web")).expect("it was called");
    assert!(at("create") > Some(panicked) && at("recover steady") > at("create"), "{journal:?}");
    assert!(at("cleanup web") > at("recover steady"), "{journal:?}");
    assert_eq!(faulty(&agent).health, "ok");
    assert_eq!(faulty(&agent).calls[method].panics, 1);
    // Subscribers learn of both.
    let (changes, phases) = history(&agent, "web");
    assert_eq!(changes, [PluginChange::Loaded, PluginChange::Panicked, PluginChange::Restarted]);
    assert_eq!(phases.first(), Some(&Some(Phase::Starting)));
    assert_eq!(phases[phases.len() - 3..], [Some(Phase::Destroying), Some(Phase::Ended), None], "{phases:?}");
    assert!(!phases.contains(&Some(Phase::Running)), "{phases:?}");
    assert_works(&agent).await;
    agent.destroy(&id("steady")).await.unwrap();
}

/// The changes of the faulty plugin, and the phases of a container; `None` when it was removed.
fn history(agent: &Agent, container: &str) -> (Vec<PluginChange>, Vec<Option<Phase>>) {
    let mut events = agent.events().subscribe(Some(SystemTime::UNIX_EPOCH));
    let (mut changes, mut phases) = (Vec::new(), Vec::new());
    while let Some(received) = events.try_next() {
        let Received::Event(event) = received else { panic!("{received:?}") };
        match &event.kind {
            EventKind::Plugin { plugin, change, .. } if **plugin == *"test/fault" => changes.push(*change),
            EventKind::PhaseChanged { container: of, phase, .. } if of.as_str() == container => {
                phases.push(Some(*phase));
            }
            EventKind::Removed { container: of } if of.as_str() == container => phases.push(None),
            _ => {}
        }
    }
    (changes, phases)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_prepare_fails_the_launch() {
    fails_the_launch("prepare", "panic", &["while PREPARING", "deliberate, for `web`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_watch_fails_the_launch() {
    fails_the_launch("watch", "panic", &["while ISOLATING", "deliberate, for `web`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_isolate_fails_the_launch() {
    fails_the_launch("isolate", "panic", &["while ISOLATING", "deliberate, for `web`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_whose_payload_panics_in_drop_fails_the_launch() {
    fails_the_launch("prepare", "panic_twice", &["panic payload is not a string"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_usage_or_status_is_reported_and_the_rest_is_returned() {
    let fault = json!({ "method": "status", "act": "panic", "container": "web" });
    let fixture = Fixture::new("usage", "panic", json!({})).with_fault(fault);
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    let usage = agent.usage(&id("web")).await.unwrap();
    assert_contains(&usage.failed["test/fault"], &["panicked in `usage`: deliberate, for `web`", PLACE]);
    let status = agent.status(&id("web")).await.unwrap();
    assert_contains(&status.failed["test/fault"], &["panicked in `status`: deliberate, for `web`", PLACE]);
    assert_eq!(status.status["greeting"], json!("hello there"));
    assert_works(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_update_leaves_the_resources_as_they_were() {
    let mut fixture = Fixture::new("update", "panic", json!({}));
    // The roll back calls it again, until it succeeds.
    let once = fixture.at("once").display().to_string();
    fixture.faulty().table["faults"][0]["once"] = once.into();
    let agent = fixture.world.start().await.unwrap();
    let mut request = long_running("web");
    request.resources = Resources::default().with("cpus", 1.0);
    agent.launch(request).await.unwrap();
    let error = agent.update(&id("web"), Resources::default().with("cpus", 2.0)).await.unwrap_err();
    assert_contains(
        &describe(&error),
        &["the plugin chain refused the update", "panicked in `update`: deliberate, for `web`", PLACE],
    );
    let kept = agent.inspect(&id("web")).unwrap().summary.resources;
    assert_eq!(kept, Resources::default().with("cpus", 1.0));
    assert_works(&agent).await;
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_limitation_ends_no_container() {
    let fixture = Fixture::new("limitation", "panic", json!({}));
    let agent = fixture.world.start().await.unwrap();
    agent.launch(short("web")).await.unwrap();
    let termination = agent.wait(&id("web")).await.unwrap();
    assert_eq!((termination.status, termination.reason), (Some(0), None));
    assert_eq!(faulty(&agent).calls["limitation"].panics, 1);
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_cleanup_keeps_the_container_visible_until_it_succeeds() {
    let mut fixture = Fixture::new("cleanup", "panic", json!({}));
    let repaired = fixture.at("repaired");
    fixture.faulty().table["faults"][0]["unless"] = repaired.display().to_string().into();
    let agent = fixture.world.start().await.unwrap();
    agent.launch(short("web")).await.unwrap();
    wait_until("three panics in cleanup", || {
        faulty(&agent).calls.get("cleanup").is_some_and(|c| c.panics >= 3)
    })
    .await;
    wait_until("the reason", || cleanup_errors(&agent, "web").contains("panicked in `cleanup`: deliberate"))
        .await;
    wait_until("the quarantine", || faulty(&agent).health == "quarantined").await;
    // The other plugins have cleaned up nevertheless.
    assert!(plugin(&agent, "test/fault").calls["cleanup"].calls >= 3);

    // Cleanup is called even in quarantine.
    fs::write(&repaired, "").unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    assert_eq!(cleanup_errors(&agent, "web"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_recover_puts_the_plugin_out_of_service() {
    let fixture = Fixture::new("recover", "panic", json!({}));
    let agent = fixture.world.start().await.unwrap();
    let view = faulty(&agent);
    assert_eq!(view.health, "out of service");
    assert_contains(
        &view.health_reason.unwrap(),
        &["it did not recover", "panicked in `recover`: deliberate", PLACE],
    );
    // It is required, so nothing is launched without it, and the error has the reason.
    let text = launch_error(&agent, short("web")).await;
    assert_contains(
        &text,
        &["`test/fault` is out of service, so `prepare` was not called", "it did not recover", PLACE],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_recover_after_a_panic_puts_the_plugin_out_of_service_too() {
    let mut fixture = Fixture::new("prepare", "panic", json!({}));
    // Not at the start of the agent, only at the restart of the plugin.
    let mark = fixture.at("mark").display().to_string();
    fixture = fixture.with_fault(json!({ "method": "recover", "act": "panic", "when": mark }));
    let agent = fixture.world.start().await.unwrap();
    fs::write(&mark, "").unwrap();
    let text = launch_error(&agent, short("web")).await;
    assert_contains(&text, &["panicked in `prepare`", PLACE, "out of service"]);
    assert!(!text.contains("has recovered its containers"), "it was not: {text}");
    let view = faulty(&agent);
    assert_eq!(view.health, "out of service");
    assert_contains(
        &view.health_reason.unwrap(),
        &["it did not recover after a panic", "panicked in `recover`"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_cannot_be_restarted_is_out_of_service_and_cleans_up_later() {
    let mut fixture = Fixture::new("prepare", "panic", json!({}));
    let broken = fixture.at("broken").display().to_string();
    fixture = fixture.with_fault(json!({ "method": "create", "act": "error", "when": broken }));
    let agent = fixture.world.start().await.unwrap();
    fs::write(&broken, "").unwrap();
    let (launching, named) = (agent.clone(), id("web"));
    let launch = tokio::spawn(async move { launch_error(&launching, short("web")).await });
    wait_until("the failed cleanup", || cleanup_errors(&agent, "web").contains("test/fault")).await;
    let view = faulty(&agent);
    assert_eq!(view.health, "out of service");
    assert_contains(
        &view.health_reason.unwrap(),
        &["it could not be restarted after a panic", "deliberate error"],
    );

    // Cleanup is done as soon as an instance can be created.
    fs::remove_file(&broken).unwrap();
    let text = launch.await.unwrap();
    assert_contains(&text, &["panicked in `prepare`", "could not be restarted"]);
    assert!(agent.wait(&named).await.is_none(), "nothing of it is left");
    assert_eq!(fixture.last_call().as_deref(), Some("cleanup web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_drop_has_no_effect() {
    let fixture =
        Fixture::new("prepare", "panic", json!({})).with_fault(json!({ "method": "drop", "act": "panic" }));
    let agent = fixture.world.start().await.unwrap();
    assert_contains(
        &launch_error(&agent, short("web")).await,
        &["panicked in `prepare`", "it was restarted"],
    );
    wait_until("the drop of the old instance", || fixture.journal().contains(&"drop".to_owned())).await;
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_panic_quarantines_the_plugin() {
    let fixture = Fixture::new("prepare", "panic", json!({}));
    let agent = fixture.world.start().await.unwrap();
    for _ in 0..2 {
        assert_contains(
            &launch_error(&agent, short("web")).await,
            &["panicked in `prepare`", "it was restarted"],
        );
        assert_works(&agent).await;
    }
    let third = launch_error(&agent, short("web")).await;
    assert_contains(&third, &["panicked in `prepare`", PLACE, "quarantine"]);
    assert!(!third.contains("has recovered its containers"), "it was not: {third}");

    let view = faulty(&agent);
    assert_eq!(view.health, "quarantined");
    assert_contains(
        &view.health_reason.unwrap(),
        &["it panicked 3 times, last: panicked in `prepare`: deliberate", PLACE],
    );
    assert_eq!(view.calls["prepare"].panics, 3);
    let text = launch_error(&agent, short("other")).await;
    assert_contains(
        &text,
        &["`test/fault` is quarantined, so `prepare` was not called: it panicked 3 times"],
    );
    // The other plugin is not affected.
    assert_eq!(plugin(&agent, "example/greeting").health, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_for_one_container_affects_no_other() {
    let fixture = Fixture::new("prepare", "panic", json!({}));
    let agent = fixture.world.start().await.unwrap();
    let launches: Vec<_> = (0..16)
        .map(|number| {
            let (agent, name) =
                (agent.clone(), if number == 8 { "web".into() } else { format!("c{number}") });
            tokio::spawn(async move { (name.clone(), agent.launch(short(&name)).await) })
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
    assert_eq!(faulty(&agent).calls["prepare"].panics, 1);
}
