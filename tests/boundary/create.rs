//! Plugins whose instance cannot be created.

use std::time::Duration;

use cofferdam_plugin_model::Method;
use serde_json::{Value as Json, json};

use crate::fixture::{
    Fixture, Pipe, assert_contains, assert_works_without_isolators, greeting, object, plain, start_error,
};

async fn refused(table: Json, parts: &[&str]) {
    let mut world = plain();
    world.config.isolators = vec![greeting(table)];
    let text = start_error(&world).await;
    assert_contains(&text, &["cannot create isolator `example/greeting` 1.0.0"]);
    assert_contains(&text, parts);
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_named() {
    refused(json!({ "greetings": "hi" }), &["unknown field `greetings`, expected `greeting`"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_the_wrong_type_is_named() {
    refused(json!({ "greeting": 3 }), &["invalid type: integer `3`, expected a string"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key_is_named() {
    let mut world = plain();
    world.config.logger = Some(object("example/tagged-logger", "libtagged_logger.so", json!({})));
    let text = start_error(&world).await;
    assert_contains(&text, &["cannot create logger `example/tagged-logger` 1.0.0", "missing field `prefix`"]);
    world.config.logger = None;
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_plugin_refuses_is_an_error_with_its_message() {
    let mut world = plain();
    world.config.logger =
        Some(object("example/tagged-logger", "libtagged_logger.so", json!({ "prefix": "../" })));
    assert_contains(&start_error(&world).await, &["`prefix` is `../`; it must not contain a slash"]);
    world.config.logger = None;
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_in_create_is_an_error_with_its_causes() {
    let mut fixture = Fixture::new("create", "error", json!({}));
    let text = start_error(&fixture.world).await;
    assert_contains(
        &text,
        &["cannot create isolator `test/fault` 0.1.0", "cannot create", "deliberate error"],
    );
    assert_works_without_isolators(&mut fixture.world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_create_is_an_error_with_its_location() {
    for act in ["panic", "panic_twice"] {
        let mut fixture = Fixture::new("create", act, json!({}));
        let text = start_error(&fixture.world).await;
        assert_contains(
            &text,
            &["cannot create isolator `test/fault` 0.1.0", "panicked in `create`", "fault/src/act.rs:"],
        );
        assert_works_without_isolators(&mut fixture.world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_in_create_does_not_block_the_agent() {
    let mut fixture = Fixture::new("create", "hang", json!({})).with_short_timeout(Method::Create);
    let pipe = Pipe::new(fixture.at("pipe"));
    fixture.faulty().table["faults"][0]["until"] = pipe.path().display().to_string().into();
    let text = tokio::time::timeout(Duration::from_secs(20), start_error(&fixture.world)).await;
    assert_contains(
        &text.expect("the start returns"),
        &["`test/fault` did not return from `create` within 300ms"],
    );
    drop(pipe);
    // The abandoned thread unlocks the directories when it returns.
    drop(lock(&fixture));
    assert_works_without_isolators(&mut fixture.world).await;
}

/// Waits until no agent has locked the runtime directory.
fn lock(fixture: &Fixture) -> nix::fcntl::Flock<std::fs::File> {
    let lock = std::fs::File::open(fixture.world.config.runtime_dir.join("agent.lock")).unwrap();
    nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap()
}
