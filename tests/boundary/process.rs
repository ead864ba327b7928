//! What a guest does to the agent's process must not reach containers, nor end them.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use cofferdam_core::model::Request;
use serde_json::json;

use crate::scene::{Scene, alone, id, lasting, life, lives, rude, until};

/// What a container's command prints.
async fn output(scene: &Scene, line: &str) -> String {
    let agent = scene.world.start().await.unwrap();
    let out = scene.at("out");
    let request = Request::shell(id("web"), format!("{{ {line}; }} > {} 2>&1", out.display()));
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id("web")).await.unwrap();
    let printed = fs::read_to_string(out).unwrap();
    assert_eq!(termination.status, Some(0), "{printed}");
    lives(&agent).await;
    printed
}

#[test]
fn a_descriptor_that_a_plugin_leaks_does_not_reach_the_container() {
    if !alone("process::a_descriptor_that_a_plugin_leaks_does_not_reach_the_container") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let scene = Scene::new("prepare", "leak_descriptor", json!({}));
        let printed = output(&scene, "ls -l /proc/self/fd").await;
        let leaked = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut leaked = leaked.filter_map(|entry| fs::read_link(entry.path()).ok());
        assert!(leaked.any(|path| path.ends_with("full")), "the agent has it: {printed}");
        assert!(!printed.contains("/dev/full"), "{printed}");
    });
}

#[test]
fn what_a_plugin_changes_of_the_process_does_not_reach_the_container() {
    if !alone("process::what_a_plugin_changes_of_the_process_does_not_reach_the_container") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let scene = Scene::new("prepare", "change_process", json!({}));
        let printed = output(&scene, "pwd; umask; grep -E '^Sig(Blk|Ign)' /proc/self/status").await;
        assert_eq!(std::env::current_dir().unwrap().to_string_lossy(), "/proc", "the plugin did it");
        assert!(!printed.contains("/proc\n"), "{printed}");
        assert!(printed.contains("0022\n"), "{printed}");
        assert!(printed.contains("SigBlk:\t0000000000000000"), "{printed}");
        assert!(printed.contains("SigIgn:\t0000000000000000"), "{printed}");
    });
}

/// In-process means that a plugin can end the agent. It cannot end a container: the next agent has it.
#[test]
fn a_plugin_that_aborts_ends_the_agent_and_no_container() {
    const DIES: &str = "COFFERDAM_TEST_DIES_IN";
    const NAME: &str = "process::a_plugin_that_aborts_ends_the_agent_and_no_container";
    if let Some(directory) = std::env::var_os(DIES) {
        let mut scene = Scene::new("usage", "abort", json!({}));
        scene.world.config.runtime_dir = std::path::Path::new(&directory).join("run");
        scene.world.config.work_dir = std::path::Path::new(&directory).join("work");
        return tokio::runtime::Runtime::new().unwrap().block_on(async {
            let agent = scene.world.start().await.unwrap();
            agent.launch(lasting("web")).await.unwrap();
            agent.usage(&id("web")).await;
            unreachable!("a plugin that aborts takes the agent along");
        });
    }
    let scene = Scene::new("create", "log", json!({}));
    let died = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(DIES, scene.world.directory())
        // What it leaves behind goes with this test's own.
        .env("TMPDIR", scene.world.directory())
        .output()
        .unwrap();
    assert_eq!(died.status.signal(), Some(6), "{}", String::from_utf8_lossy(&died.stderr));

    life(&scene.world, async |agent| {
        let found = agent.containers();
        assert_eq!(found.len(), 1);
        assert!(found[0].pid.is_some_and(|pid| fs::metadata(format!("/proc/{pid}")).is_ok()), "{found:?}");
        until("its plugin to serve it", || rude(&agent).health == "ok").await;
        assert_eq!(agent.usage(&id("web")).await.unwrap().statistics["rude_count"], 1.0);
        agent.destroy(&id("web")).await.unwrap();
        lives(&agent).await;
    });
}
