//! A plugin file that changes under a running agent.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use cofferdam_core::config::PluginConfig;
use cofferdam_tests::paths;
use cofferdam_tests::world::World;
use serde_json::json;

use crate::scene::{greeting, id, lasting, life, lives, plain, plugin};

/// A world whose greeting is a file of its own.
fn world() -> (World, PathBuf) {
    let mut world = plain();
    let file = world.directory().join("plugin.so");
    fs::copy(paths::build().join("libgreeting.so"), &file).unwrap();
    world.config.isolators = vec![PluginConfig { path: Some(file.clone()), ..greeting(json!({})) }];
    (world, file)
}

#[test]
fn overwriting_the_file_in_place_harms_nobody() {
    let (world, file) = world();
    life(&world, async |agent| {
        agent.launch(lasting("web")).await.unwrap();
        let len = usize::try_from(fs::metadata(&file).unwrap().len()).unwrap();
        OpenOptions::new().write(true).open(&file).unwrap().write_all(&vec![0xcc; len]).unwrap();
        lives(&agent).await;
        OpenOptions::new().write(true).truncate(true).open(&file).unwrap();
        lives(&agent).await;
        assert_eq!(agent.status(&id("web")).await.unwrap().status["greeting"], json!("hello there"));
        agent.destroy(&id("web")).await.unwrap();
    });
}

#[test]
fn renaming_another_version_over_it_takes_effect_at_the_next_start_and_not_before() {
    let (world, file) = world();
    let replace = |by: &str| {
        let new = file.with_extension("new");
        fs::copy(paths::build().join(by), &new).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    life(&world, async |agent| {
        replace("libgreeting_2.so");
        lives(&agent).await;
        assert_eq!(plugin(&agent, "example/greeting").version, "1.0.0");
    });
    // In the same process, where the loader would answer the old code for the old path.
    life(&world, async |agent| {
        assert_eq!(plugin(&agent, "example/greeting").version, "2.0.0");
        agent.launch(lasting("web")).await.unwrap();
        let status = agent.status(&id("web")).await.unwrap();
        assert_eq!(status.status["greeting"]["since_version"], json!("2.0.0"));
        agent.destroy(&id("web")).await.unwrap();
        lives(&agent).await;
    });
    replace("libgreeting.so");
    life(&world, async |agent| {
        assert_eq!(plugin(&agent, "example/greeting").version, "1.0.0");
        lives(&agent).await;
    });
}
