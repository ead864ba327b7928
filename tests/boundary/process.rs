//! What a plugin does to the agent's process must not affect containers.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use serde_json::json;

use crate::fixture::{
    Fixture, assert_works, faulty, id, in_own_process, long_running, wait_until, with_agent,
};

/// The output of a container's command.
async fn output(fixture: &Fixture, line: &str) -> String {
    let agent = fixture.world.start().await.unwrap();
    let out = fixture.at("out");
    let request = Request::shell(id("web"), format!("{{ {line}; }} > {} 2>&1", out.display()));
    agent.launch(request).await.unwrap();
    let termination = agent.wait(&id("web")).await.unwrap();
    let printed = fs::read_to_string(out).unwrap();
    assert_eq!(termination.status, Some(0), "{printed}");
    assert_works(&agent).await;
    printed
}

#[test]
fn a_descriptor_that_a_plugin_leaks_does_not_reach_the_container() {
    if !in_own_process("process::a_descriptor_that_a_plugin_leaks_does_not_reach_the_container") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::new("prepare", "leak_descriptor", json!({}));
        let printed = output(&fixture, "ls -l /proc/self/fd").await;
        let leaked = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let mut leaked = leaked.filter_map(|entry| fs::read_link(entry.path()).ok());
        assert!(leaked.any(|path| path.ends_with("full")), "the plugin did not leak it: {printed}");
        assert!(!printed.contains("/dev/full"), "{printed}");
    });
}

#[test]
fn process_attributes_that_a_plugin_changes_do_not_reach_the_container() {
    if !in_own_process("process::process_attributes_that_a_plugin_changes_do_not_reach_the_container") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let fixture = Fixture::new("prepare", "change_process", json!({}));
        let printed = output(&fixture, "pwd; umask").await;
        assert_eq!(std::env::current_dir().unwrap().to_string_lossy(), "/proc", "the plugin did it");
        assert!(!printed.contains("/proc\n"), "{printed}");
        assert!(printed.contains("0022\n"), "{printed}");
    });
}

#[test]
fn a_plugin_that_ignores_signals_does_not_keep_the_agent_from_stopping() {
    let fixture = Fixture::new("prepare", "ignore_signals", json!({}));
    let daemon = Daemon::start(&fixture.world);
    daemon.launch(&long_running("web")).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    assert_eq!(ignored >> 14 & 1, 1, "the plugin did it: {status}");
    let mut daemon = daemon;
    daemon.process().signal(15).unwrap();
    assert_eq!(daemon.wait_ended().code(), Some(0), "{}", daemon.log());
    // Its containers run on, with default dispositions.
    let mut fixture = fixture;
    fixture.faulty().table = json!({});
    with_agent(&fixture.world, async |agent| {
        let pid = agent.containers()[0].pid.unwrap();
        for child in cofferdam_linux::process::children_of(pid).unwrap() {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
            assert!(status.contains("SigIgn:\t0000000000000000"), "{status}");
            assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
        }
        agent.destroy(&id("web")).await.unwrap();
    });
}

/// A plugin in the agent's process can end the agent, but not a container, which the next agent recovers.
#[test]
fn a_plugin_that_aborts_ends_the_agent_and_no_container() {
    const DIES: &str = "COFFERDAM_TEST_DIES_IN";
    const NAME: &str = "process::a_plugin_that_aborts_ends_the_agent_and_no_container";
    if let Some(directory) = std::env::var_os(DIES) {
        let mut fixture = Fixture::new("usage", "abort", json!({}));
        fixture.world.config.runtime_dir = std::path::Path::new(&directory).join("run");
        fixture.world.config.work_dir = std::path::Path::new(&directory).join("work");
        return tokio::runtime::Runtime::new().unwrap().block_on(async {
            let agent = fixture.world.start().await.unwrap();
            agent.launch(long_running("web")).await.unwrap();
            agent.usage(&id("web")).await;
            unreachable!("the plugin did not abort");
        });
    }
    let fixture = Fixture::new("create", "log", json!({}));
    let died = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(DIES, fixture.world.directory())
        // So that its files are removed with those of this test.
        .env("TMPDIR", fixture.world.directory())
        .output()
        .unwrap();
    assert_eq!(died.status.signal(), Some(6), "{}", String::from_utf8_lossy(&died.stderr));

    with_agent(&fixture.world, async |agent| {
        let found = agent.containers();
        let interrupted = faulty(&agent).interrupted_calls;
        let interrupted: Vec<_> = interrupted.iter().map(|call| (&*call.method, &*call.container)).collect();
        assert_eq!(interrupted, [("usage", "web")], "the call that ended the agent is named");
        assert_eq!(found.len(), 1);
        assert!(found[0].pid.is_some_and(|pid| fs::metadata(format!("/proc/{pid}")).is_ok()), "{found:?}");
        wait_until("the plugin to be in service", || faulty(&agent).health == "ok").await;
        assert_eq!(agent.usage(&id("web")).await.unwrap().statistics["fault_count"], 1.0);
        agent.destroy(&id("web")).await.unwrap();
        assert_works(&agent).await;
    });
}
