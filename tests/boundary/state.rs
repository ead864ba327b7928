//! Container details in requests, states in replies, and the limits of both.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::path::Path;

use cofferdam_core::agent::Agent;
use cofferdam_core::error_chain::describe;
use serde_json::{Value as Json, json};

use crate::fixture::{assert_contains, assert_works, id, launch_error, long_running, plain, raw, short};

/// The request of a method's last call, as the plugin recorded it.
fn request(journal: &Path, method: &str) -> Json {
    let journal = fs::read_to_string(journal).unwrap();
    let line = journal.lines().rfind(|line| line.split(' ').next() == Some(method));
    let line = line.unwrap_or_else(|| panic!("`{method}` was not called: {journal}"));
    serde_json::from_str(line.split_once(' ').unwrap().1).unwrap()
}

async fn start_with(table: Json) -> (cofferdam_tests::world::World, Agent) {
    let mut world = plain();
    world.config.isolators.push(raw(table));
    let agent = world.start().await.unwrap();
    (world, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn later_calls_get_the_newest_state_and_the_details_of_the_container() {
    let mut world = plain();
    let journal = world.directory().join("requests");
    let replies = json!({ "prepare": r#"{"state":{"step":1}}"#, "isolate": r#"{"state":{"step":2}}"# });
    world.config.isolators.push(raw(json!({ "journal": journal, "payload": replies })));
    let agent = world.start().await.unwrap();
    let mut web = short("web");
    web.labels.insert("tier".into(), "front".into());
    agent.launch(web).await.unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().status, Some(0));
    assert_eq!(request(&journal, "isolate")["state"], json!({ "step": 1 }));
    let cleanup = request(&journal, "cleanup");
    assert_eq!(cleanup["state"], json!({ "step": 2 }));
    assert_eq!(cleanup["labels"], json!({ "tier": "front" }));
    assert_eq!(cleanup["termination"]["status"], json!(0));
    assert_eq!(cleanup["shares_cgroups"], json!(false));
    assert_eq!(cleanup["uid"], json!(nix::unistd::getuid().as_raw()));
    let kept = agent.inspect(&id("web")).unwrap().plugins.remove(0).state;
    assert_eq!(kept, json!({ "step": 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_gets_the_state_in_an_error() {
    let mut world = plain();
    let journal = world.directory().join("requests");
    let replies = json!({ "prepare": r#"{"state":{"created":"half"}}"# });
    world.config.isolators.push(raw(json!({
        "journal": journal, "payload": replies, "code": { "prepare": 1 }
    })));
    let agent = world.start().await.unwrap();
    assert_contains(&launch_error(&agent, short("web")).await, &["`test/raw` failed in `prepare`: by hand"]);
    assert_eq!(request(&journal, "cleanup")["state"], json!({ "created": "half" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_too_large_fails_the_launch() {
    let state = "x".repeat(1 << 20);
    let reply = json!({ "prepare": json!({ "state": state }).to_string() });
    let (_world, agent) = start_with(json!({ "payload": reply })).await;
    let text = launch_error(&agent, short("web")).await;
    assert_contains(
        &text,
        &["state of plugin `test/raw` for container `web` has 1048578 bytes", "limit is 1048576"],
    );
    assert!(!agent.contains(&id("web")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_too_large_fails_its_call() {
    let reply = json!({ "status": json!({ "text": "x".repeat(4 << 20) }).to_string() });
    let (_world, agent) = start_with(json!({ "payload": reply })).await;
    agent.launch(long_running("web")).await.unwrap();
    let failed = agent.status(&id("web")).await.unwrap().failed;
    assert_contains(&failed["test/raw"], &["`status`", "a payload of 4194315 bytes; the limit is 4194304"]);
    agent.destroy(&id("web")).await.unwrap();
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_cannot_be_polled_fails_the_launch() {
    let number = File::open(std::env::current_exe().unwrap()).unwrap().into_raw_fd();
    let (_world, agent) = start_with(json!({ "descriptors": { "watch": [number] } })).await;
    let error = agent.launch(short("web")).await.unwrap_err();
    assert_contains(&describe(&error), &["`test/raw`", "`watch`", "its descriptor cannot be polled"]);
    assert!(!agent.contains(&id("web")));
}
