//! Valid plugins that are not the configured ones.

use std::fs;

use cofferdam_core::config::PluginConfig;
use cofferdam_tests::paths;
use cofferdam_tests::world::entry;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::fixture::{
    assert_contains, assert_works, assert_works_without_isolators, greeting, id, long_running, object, plain,
    plugin, start_error,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_logger_is_not_an_isolator() {
    let mut world = plain();
    let tagged = object("example/tagged-logger", "libtagged_logger.so", json!({ "prefix": "a-" }));
    world.config.isolators = vec![tagged];
    let parts = ["is logger `example/tagged-logger`", "expected isolator `example/tagged-logger`"];
    assert_contains(&start_error(&world).await, &parts);
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolator_is_not_a_logger() {
    let mut world = plain();
    world.config.logger = Some(greeting(json!({})));
    let parts = ["is isolator `example/greeting`", "expected logger `example/greeting`"];
    assert_contains(&start_error(&world).await, &parts);
    world.config.logger = None;
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_than_the_configured_one_is_refused() {
    let mut world = plain();
    world.config.isolators = vec![object("example/other", "libgreeting.so", json!({}))];
    assert_contains(
        &start_error(&world).await,
        &["is isolator `example/greeting`", "expected isolator `example/other`"],
    );
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_of_one_name_are_both_named() {
    let mut world = plain();
    let directory = world.directory().join("plugins");
    fs::create_dir(&directory).unwrap();
    for file in ["libgreeting.so", "libgreeting_2.so"] {
        fs::copy(paths::build().join(file), directory.join(file)).unwrap();
    }
    world.config.plugin_dir.clone_from(&directory);
    world.config.isolators = vec![entry("example/greeting", json!({}))];
    let text = start_error(&world).await;
    assert_contains(
        &text,
        &["there are several files with plugin `example/greeting`", "libgreeting.so`", "libgreeting_2.so`"],
    );
    assert_contains(&text, &["remove all but one, or set `path`"]);

    // The remedy works.
    world.config.isolators[0].path = Some("libgreeting_2.so".into());
    let agent = world.start().await.unwrap();
    assert_eq!(plugin(&agent, "example/greeting").version, "2.0.0");
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_plugin_is_an_error_with_the_searched_directory() {
    let mut world = plain();
    let directory = world.directory().join("plugins");
    fs::create_dir(&directory).unwrap();
    // Files of plugins that are not configured are ignored, whatever they contain.
    fs::write(directory.join("broken.so"), "\x7fELF").unwrap();
    world.config.plugin_dir.clone_from(&directory);
    world.config.isolators = vec![entry("example/greeting", json!({}))];
    let place = format!("there is no plugin `example/greeting` in `{}`", directory.display());
    assert_contains(&start_error(&world).await, &[&place, "put its `.so` there, or set its `path`"]);
    assert_works_without_isolators(&mut world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_hash_accepts_exactly_one_content() {
    let mut world = plain();
    let hash = Sha256::digest(fs::read(paths::build().join("libgreeting.so")).unwrap());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let pinned = |sha256: &str| PluginConfig { sha256: Some(sha256.into()), ..greeting(json!({})) };
    let other = "0".repeat(64);
    world.config.isolators = vec![pinned(&other)];
    let found = format!("has SHA-256 {hash}, expected {other}");
    assert_contains(&start_error(&world).await, &["libgreeting.so", &found]);

    world.config.isolators = vec![pinned(&hash.to_uppercase())];
    let agent = world.start().await.unwrap();
    assert_eq!(plugin(&agent, "example/greeting").sha256, hash);
    assert_works(&agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_of_one_plugin_work_side_by_side() {
    let (mut old, mut new) = (plain(), plain());
    old.config.isolators = vec![greeting(json!({ "greeting": "good day" }))];
    new.config.isolators =
        vec![object("example/greeting", "libgreeting_2.so", json!({ "greeting": "good day" }))];
    let (old, new) = (old.start().await.unwrap(), new.start().await.unwrap());
    let mut shown = Vec::new();
    for agent in [&old, &new] {
        agent.launch(long_running("web")).await.unwrap();
        shown.push(agent.status(&id("web")).await.unwrap().status["greeting"].clone());
        agent.destroy(&id("web")).await.unwrap();
    }
    assert_eq!(shown[0], json!("good day"));
    assert_eq!(shown[1]["words"], json!(["good", "day"]));
    assert_works(&old).await;
    assert_works(&new).await;
}
