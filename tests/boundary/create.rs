//! Plugins that do not want to be made.

use std::time::Duration;

use cofferdam_plugin_model::Method;
use serde_json::{Value as Json, json};

use crate::scene::{Rope, Scene, greeting, lives_without, no_start, object, plain, says};

async fn refused(table: Json, words: &[&str]) {
    let mut world = plain();
    world.config.isolators = vec![greeting(table)];
    let text = no_start(&world).await;
    says(&text, &["cannot create isolator `example/greeting` 1.0.0"]);
    says(&text, words);
    lives_without(&mut world).await;
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
    let text = no_start(&world).await;
    says(&text, &["cannot create logger `example/tagged-logger` 1.0.0", "missing field `prefix`"]);
    world.config.logger = None;
    lives_without(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_plugin_does_not_like_is_refused_in_its_words() {
    let mut world = plain();
    world.config.logger =
        Some(object("example/tagged-logger", "libtagged_logger.so", json!({ "prefix": "../" })));
    says(&no_start(&world).await, &["`prefix` is `../`; it must not contain a slash"]);
    world.config.logger = None;
    lives_without(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_fails_to_be_made_says_why() {
    let mut scene = Scene::new("create", "error", json!({}));
    let text = no_start(&scene.world).await;
    says(&text, &["cannot create isolator `rude/fault` 0.1.0", "cannot create", "the rude one did it"]);
    lives_without(&mut scene.world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_panics_while_being_made_says_where() {
    for act in ["panic", "panic_twice"] {
        let mut scene = Scene::new("create", act, json!({}));
        let text = no_start(&scene.world).await;
        says(
            &text,
            &["cannot create isolator `rude/fault` 0.1.0", "panicked in `create`", "fault/src/act.rs:"],
        );
        lives_without(&mut scene.world).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_while_being_made_does_not_hang_the_agent() {
    let mut scene = Scene::new("create", "hang", json!({})).hurried(Method::Create);
    let rope = Rope::new(scene.at("rope"));
    scene.rude().table["faults"][0]["until"] = rope.path().display().to_string().into();
    let text = tokio::time::timeout(Duration::from_secs(20), no_start(&scene.world)).await;
    says(&text.expect("the start ends"), &["`rude/fault` did not return from `create` within 300ms"]);
    drop(rope);
    // The abandoned thread lets go of the directories when it comes back.
    drop(lock(&scene));
    lives_without(&mut scene.world).await;
}

/// Waits until no agent has the runtime directory.
fn lock(scene: &Scene) -> nix::fcntl::Flock<std::fs::File> {
    let lock = std::fs::File::open(scene.world.config.runtime_dir.join("agent.lock")).unwrap();
    nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap()
}
