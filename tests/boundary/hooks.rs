//! Hooks of containers of processes: their order, what they get, and what happens when they fail.

use std::fs;

use cofferdam_core::agent::Agent;
use cofferdam_core::config::{FailPolicy, PluginConfig};
use cofferdam_core::containerizer::LaunchError;
use cofferdam_core::error_chain::describe;
use cofferdam_core::model::{Phase, Request, Uri};
use cofferdam_plugin_model::Method;
use cofferdam_tests::world::World;
use serde_json::{Value as Json, json};

use crate::fixture::{
    Pipe, SHORT, assert_contains, id, launch_error, long_running, modified_copy, object, patch, plain,
    plugin, short, start_error, wait_until, with_agent,
};

const NAME: &str = "test/hook";

/// A world with a hook that records its calls. `extra` is merged into its table.
fn world(extra: Json) -> World {
    let mut world = plain();
    let entry = recorder(&world, extra);
    world.config.hooks.push(entry);
    world
}

fn recorder(world: &World, extra: Json) -> PluginConfig {
    let mut table = json!({ "journal": world.directory().join("journal"), "hook": "first" });
    if let (Some(table), Json::Object(extra)) = (table.as_object_mut(), extra) {
        table.extend(extra);
    }
    object(NAME, "libtest_hook.so", table)
}

/// The calls that were recorded, in order.
fn journal(world: &World) -> Vec<Json> {
    let journal = fs::read_to_string(world.directory().join("journal")).unwrap_or_default();
    journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn fault(method: Method, act: &str) -> Json {
    json!({ "faults": [{ "method": method.name(), "act": act }] })
}

/// A world whose hook hangs in a method until the pipe is dropped.
fn hanging(method: Method) -> (World, Pipe) {
    let mut world = plain();
    let pipe = Pipe::new(world.directory().join("pipe"));
    let faults = json!({ "faults": [{ "method": method.name(), "act": "hang", "until": pipe.path() }] });
    let entry = recorder(&world, faults);
    world.config.hooks.push(entry);
    (world, pipe)
}

fn failures(agent: &Agent) -> u64 {
    plugin(agent, NAME).calls[Method::PostFetch.name()].failures
}

/// A copy of the hook with another name or version of the same length.
fn other(world: &World, from: &str, to: &str, table: Json) -> PluginConfig {
    let path = modified_copy(world, "libtest_hook.so", |bytes| patch(bytes, from, to));
    let name = if from == NAME { to } else { NAME };
    PluginConfig { path: Some(path), table, ..PluginConfig::new(name) }
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_shown_what_was_fetched_in_order_before_the_command_runs() {
    let mut world = world(json!({}));
    let journal_file = world.directory().join("journal");
    let table = json!({ "journal": journal_file, "hook": "second" });
    let second = other(&world, NAME, "test/hoot", table);
    world.config.hooks.push(second);
    let agent = world.start().await.unwrap();
    let kinds: Vec<_> = agent.plugins().into_iter().map(|plugin| (plugin.kind, plugin.name)).collect();
    assert_eq!(kinds, [("hook".into(), NAME.into()), ("hook".into(), "test/hoot".into())]);

    let file = world.directory().join("file");
    fs::write(&file, "content").unwrap();
    let mut request = Request::shell(id("web"), format!("cp {} journal", journal_file.display()));
    request.labels.insert("tier".into(), "front".into());
    request.uris.push(Uri {
        value: file.display().to_string(),
        executable: false,
        extract: true,
        cache: false,
        output_file: None,
        sha256: None,
    });
    agent.launch(request).await.unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    let calls = journal(&world);
    let order: Vec<_> = calls.iter().map(|call| (&call["hook"], &call["method"])).collect();
    assert_eq!(order, [(&json!("first"), &json!("post_fetch")), (&json!("second"), &json!("post_fetch"))]);
    for call in &calls {
        assert_eq!(call["container"], "web");
        let uid = nix::unistd::getuid().as_raw();
        assert_eq!(
            (&call["request"]["files"], &call["request"]["labels"], &call["request"]["docker"]),
            (&json!(["file"]), &json!({ "tier": "front" }), &json!(false))
        );
        assert_eq!(call["request"]["uid"], uid);
    }
    // The command found what both have written.
    let copied = agent.inspect(&id("web")).unwrap().sandbox.join("journal");
    assert_eq!(fs::read(copied).unwrap(), fs::read(journal_file).unwrap());
    // Also without files to fetch.
    agent.launch(short("other")).await.unwrap();
    assert_eq!(journal(&world).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_hook_that_fails_fails_the_launch_and_nothing_is_left() {
    for (act, reason) in [
        ("error", "`test/hook` failed in `post_fetch`: deliberate error"),
        ("panic", "`test/hook` panicked in `post_fetch`: deliberate panic"),
    ] {
        let world = world(fault(Method::PostFetch, act));
        let agent = world.start().await.unwrap();
        let error = launch_error(&agent, short("web")).await;
        assert_contains(&error, &["a hook failed the launch of container `web` while FETCHING", reason]);
        assert!(!agent.contains(&id("web")));
        assert_eq!(failures(&agent), 1);
        assert_eq!(world.leftovers(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_panics_is_restarted_and_quarantined_in_the_end() {
    let world = world(fault(Method::PostFetch, "panic"));
    let agent = world.start().await.unwrap();
    for _ in 0..2 {
        assert_contains(&launch_error(&agent, short("web")).await, &["it was restarted"]);
    }
    assert_contains(&launch_error(&agent, short("web")).await, &["it panicked too often and is quarantined"]);
    assert_contains(&launch_error(&agent, short("web")).await, &["`test/hook` is quarantined"]);
    assert_eq!(journal(&world).len(), 3);
    assert_eq!(plugin(&agent, NAME).health, "quarantined");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_goes_on_without_an_optional_hook() {
    for act in ["error", "panic"] {
        let mut world = world(fault(Method::PostFetch, act));
        world.config.hooks[0].policy = FailPolicy::Optional;
        let agent = world.start().await.unwrap();
        agent.launch(short("web")).await.unwrap();
        assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
        assert_eq!(failures(&agent), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_hangs_fails_the_launch_when_its_time_is_over() {
    let (mut world, pipe) = hanging(Method::PostFetch);
    world.config.hooks[0].timeouts.insert(Method::PostFetch, SHORT);
    let agent = world.start().await.unwrap();
    let error = launch_error(&agent, short("web")).await;
    assert_contains(&error, &["`test/hook` did not return from `post_fetch` within 300ms"]);
    assert_eq!(plugin(&agent, NAME).calls["post_fetch"].timeouts, 1);
    // Nothing waits for it: it has nothing to clean up.
    assert!(!agent.contains(&id("web")));
    assert_contains(&launch_error(&agent, short("web")).await, &["has not returned"]);
    drop(pipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroy_does_not_wait_for_a_hook() {
    let (world, pipe) = hanging(Method::PostFetch);
    let agent = world.start().await.unwrap();
    let launching = tokio::spawn({
        let agent = agent.clone();
        async move { agent.launch(short("web")).await }
    });
    wait_until("the call", || !journal(&world).is_empty()).await;
    assert_eq!(agent.inspect(&id("web")).unwrap().summary.phase, Phase::Fetching);
    agent.destroy(&id("web")).await.unwrap();
    let error = launching.await.unwrap().unwrap_err();
    assert!(matches!(error, LaunchError::Cancelled { phase: Phase::Fetching, .. }), "{}", describe(&error));
    assert!(!agent.contains(&id("web")));
    drop(pipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_another_kind_is_no_hook() {
    let mut world = plain();
    world.config.hooks.push(object("example/greeting", "libgreeting.so", json!({})));
    assert_contains(
        &start_error(&world).await,
        &["is isolator `example/greeting`, expected hook `example/greeting`"],
    );
    world.config.hooks.clear();
    let entry = recorder(&world, json!({}));
    world.config.isolators.push(entry);
    assert_contains(&start_error(&world).await, &["is hook `test/hook`, expected isolator `test/hook`"]);
    world.config.isolators.clear();
    let missing = PluginConfig { path: Some("missing.so".into()), ..PluginConfig::new(NAME) };
    world.config.hooks.push(missing);
    assert_contains(&start_error(&world).await, &["missing.so"]);
}

#[test]
fn a_hook_is_replaced_added_and_removed_while_containers_run() {
    let mut world = world(json!({}));
    let before = with_agent(&world, async |agent| {
        agent.launch(long_running("web")).await.unwrap();
        assert_eq!(plugin(&agent, NAME).version, "0.1.0");
        agent.inspect(&id("web")).unwrap().summary.pid
    });
    let table = world.config.hooks[0].table.clone();
    world.config.hooks = vec![other(&world, "\"version\":\"0.1.0\"", "\"version\":\"0.2.0\"", table)];
    with_agent(&world, async |agent| {
        assert_eq!(plugin(&agent, NAME).version, "0.2.0");
        assert_eq!(agent.inspect(&id("web")).unwrap().summary.pid, before);
        agent.launch(short("other")).await.unwrap();
        assert_eq!(journal(&world).len(), 2);
    });
    world.config.hooks.clear();
    with_agent(&world, async |agent| {
        assert_eq!(agent.inspect(&id("web")).unwrap().summary.pid, before);
        agent.destroy(&id("web")).await.unwrap();
        for name in ["web", "other"] {
            agent.wait(&id(name)).await;
            assert!(agent.remove(&id(name)).await.unwrap());
        }
    });
    assert_eq!(journal(&world).len(), 2);
    assert_eq!(world.leftovers(), [""; 0]);
}
