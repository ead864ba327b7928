//! A plugin that changes the thread it is called on: the call fails, the thread is not used again, and no container
//! inherits the change.

use std::fs;
use std::path::PathBuf;

use cofferdam_core::agent::Agent;
use cofferdam_core::model::Request;
use cofferdam_tests::is_root;
use serde_json::json;

use crate::fixture::{
    Fixture, assert_contains, assert_works, cleanup_errors, faulty, id, launch_error, long_running, short,
    wait_until,
};

/// The network namespace in which a container's command runs.
async fn network_of(agent: &Agent, name: &str, fixture: &Fixture) -> PathBuf {
    let out = fixture.at(name);
    let line = format!("readlink /proc/self/ns/net > {}", out.display());
    agent.launch(Request::shell(id(name), line)).await.expect("it launches");
    assert_eq!(agent.wait(&id(name)).await.unwrap().status, Some(0));
    fs::read_to_string(out).unwrap().trim_end().into()
}

async fn fails_the_launch(act: &str, what: &str) {
    for method in ["prepare", "watch", "isolate"] {
        let fixture = Fixture::new(method, act, json!({}));
        let agent = fixture.world.start().await.unwrap();
        let text = launch_error(&agent, short("web")).await;
        assert_contains(
            &text,
            &[&format!("`test/fault` changed its thread in `{method}`, which plugins must not"), what],
        );
        assert!(!agent.contains(&id("web")), "it is rolled back like other failed launches");
        assert!(fixture.journal().contains(&"cleanup web".to_owned()));
        let count = faulty(&agent).calls[method];
        assert_eq!((count.failures, count.timeouts), (1, 0));
        assert_eq!(faulty(&agent).health, "ok");
        assert_works(&agent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_signal_mask_fails_the_launch() {
    fails_the_launch("block_signals", "signal mask").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unshared_working_directory_fails_the_launch() {
    fails_the_launch("unshare_directories", "directories and umask").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_user_fails_the_launch() {
    if is_root("a plugin that becomes another user") {
        fails_the_launch("change_user", "user ids").await;
    }
}

/// An optional plugin does not end the launch, which continues on another thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_namespace_does_not_become_that_of_the_container() {
    if !is_root("a plugin that enters a network namespace") {
        return;
    }
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let fixture = Fixture::new("prepare", "unshare_network", json!({})).optional();
    let agent = fixture.world.start().await.unwrap();
    assert_eq!(network_of(&agent, "web", &fixture).await, host);
    let served = agent.inspect(&id("web")).unwrap().plugins.remove(0);
    assert_contains(
        &served.unavailable.unwrap(),
        &["`test/fault` changed its thread in `prepare`", "network namespace"],
    );
    assert_works(&agent).await;
}

/// After calls that only read, namespaces are compared after the reply is sent and before the next job of the thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_namespace_entered_in_usage_reaches_no_container() {
    if !is_root("a plugin that enters a network namespace") {
        return;
    }
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let fixture = Fixture::new("usage", "unshare_network", json!({}));
    let agent = fixture.world.start().await.unwrap();
    agent.launch(long_running("web")).await.unwrap();
    for round in 0..8 {
        agent.usage(&id("web")).await.unwrap();
        assert_eq!(network_of(&agent, &format!("other{round}"), &fixture).await, host);
    }
    agent.destroy(&id("web")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_is_retried_on_another_thread() {
    let mut fixture = Fixture::new("cleanup", "block_signals", json!({}));
    let repaired = fixture.at("repaired");
    fixture.faulty().table["faults"][0]["unless"] = repaired.display().to_string().into();
    let agent = fixture.world.start().await.unwrap();
    agent.launch(short("web")).await.unwrap();
    wait_until("the reason", || {
        cleanup_errors(&agent, "web").contains("`test/fault` changed its thread in `cleanup`")
    })
    .await;
    fs::write(&repaired, "").unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    assert_works(&agent).await;
}
