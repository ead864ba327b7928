//! Plugins that conflict, and optional plugins.

use cofferdam_plugin_model::{Method, Volume, VolumeSource};
use serde_json::json;

use crate::fixture::{
    Fixture, Pipe, assert_contains, assert_works, fault, faulty, greeting, id, launch_error, long_running,
    plain, short, with_agent,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_names_both_plugins() {
    let mut world = plain();
    let faulty = fault(json!({ "environment": { "GREETING": "go away" } }));
    world.config.isolators = vec![faulty, greeting(json!({ "greeting": "welcome" }))];
    let agent = world.start().await.unwrap();
    let text = launch_error(&agent, short("web")).await;
    let both =
        "`environment.GREETING` is set by both `test/fault` (go away) and `example/greeting` (welcome)";
    assert_contains(&text, &["the plugin chain failed for container `web`", both]);

    world.config.isolators[0].table = json!({ "environment": { "GREETING": "welcome" } });
    let mut other = plain();
    other.config.isolators.clone_from(&world.config.isolators);
    assert_works(&other.start().await.unwrap()).await;
}

/// The container runs without the failed plugin and reports it as unavailable.
async fn runs_without(fixture: Fixture, parts: &[&str], pipe: Option<Pipe>) {
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.expect("it runs without");
    let inspection = agent.inspect(&id("web")).unwrap();
    let served = inspection.plugins.iter().find(|served| served.plugin == "test/fault").unwrap();
    assert_contains(served.unavailable.as_deref().expect("it is reported"), parts);
    let others = inspection.plugins.iter().filter(|served| served.plugin != "test/fault");
    assert!(others.into_iter().all(|served| served.unavailable.is_none()));
    // Only cleanup is called for this container.
    let usage = agent.usage(&id("web")).await.unwrap();
    assert!(!usage.owners.contains_key("fault_count") && usage.failed.is_empty(), "{usage:?}");
    // A plugin that hangs cleans up after it has returned.
    drop(pipe);
    agent.destroy(&id("web")).await.unwrap();
    assert!(fixture.journal().contains(&"cleanup web".to_owned()), "{:?}", fixture.journal());
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_plugin_that_fails_is_excluded() {
    for method in ["prepare", "watch", "isolate"] {
        let parts = format!("`test/fault` failed in `{method}`: cannot {method} `web`");
        runs_without(Fixture::new(method, "error", json!({})).optional(), &[&parts], None).await;
    }
}

/// It is excluded from the container for good: only cleanup is called.
#[test]
fn an_optional_plugin_that_failed_is_excluded_by_the_next_agent_too() {
    let mut fixture = Fixture::new("prepare", "error", json!({})).optional();
    let reason = with_agent(&fixture.world, async |agent| {
        agent.launch(long_running("web")).await.expect("it runs without the plugin");
        agent.inspect(&id("web")).unwrap().plugins.remove(0).unavailable.expect("it is reported")
    });
    fixture.faulty().table["faults"] = json!([]);
    with_agent(&fixture.world, async |agent| {
        assert_eq!(faulty(&agent).health, "ok");
        let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
        assert_eq!(served.unavailable, Some(reason));
        let usage = agent.usage(&id("web")).await.unwrap();
        assert!(!usage.owners.contains_key("fault_count"), "{usage:?}");
        agent.destroy(&id("web")).await.unwrap();
        assert!(fixture.journal().contains(&"cleanup web".to_owned()), "{:?}", fixture.journal());
    });
}

#[test]
fn an_optional_plugin_that_failed_can_be_removed_from_the_chain() {
    let mut fixture = Fixture::new("prepare", "error", json!({})).optional();
    with_agent(&fixture.world, async |agent| {
        agent.launch(long_running("web")).await.expect("it runs without the plugin");
    });
    fixture.world.config.isolators.retain(|plugin| plugin.name != "test/fault");
    with_agent(&fixture.world, async |agent| {
        agent.destroy(&id("web")).await.unwrap();
        assert!(agent.remove(&id("web")).await.unwrap());
        assert_eq!(fixture.world.leftovers(), Vec::<String>::new());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_plugin_that_panics_is_excluded() {
    let parts = ["panicked in `prepare`", "fault/src/act.rs:"];
    runs_without(Fixture::new("prepare", "panic", json!({})).optional(), &parts, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_plugin_that_hangs_is_excluded() {
    for method in [Method::Prepare, Method::Watch, Method::Isolate] {
        let mut fixture =
            Fixture::new(method.name(), "hang", json!({})).optional().with_short_timeout(method);
        let pipe = Pipe::new(fixture.at("pipe"));
        fixture.faulty().table["faults"][0]["until"] = pipe.path().display().to_string().into();
        let parts = format!("did not return from `{method}` within 300ms");
        runs_without(fixture, &[&parts], Some(pipe)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_plugin_that_is_out_of_service_is_excluded() {
    let fixture = Fixture::new("recover", "error", json!({})).optional();
    let agent = fixture.world.start().await.unwrap();
    assert_eq!(faulty(&agent).health, "out of service");
    agent.launch(long_running("web")).await.expect("it runs without the plugin");
    let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
    assert_contains(&served.unavailable.unwrap(), &["is out of service", "cannot recover"]);
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_request_that_no_plugin_handles_fails_the_launch() {
    let world = plain();
    let agent = world.start().await.unwrap();
    let source = VolumeSource::Device { path: "/dev/null".into() };
    let mut request = short("web");
    request.volumes.push(Volume { container_path: "null".into(), read_only: false, source });
    let text = launch_error(&agent, request).await;
    assert_contains(&text, &["container `web` requests `volumes.device`, which none of its plugins handles"]);
    assert!(!agent.contains(&id("web")));
    assert_works(&agent).await;
}
