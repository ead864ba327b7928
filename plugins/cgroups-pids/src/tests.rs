//! On the real pids controller of this machine.

use cofferdam_plugin_api::model::{LaunchInfo, Limit};
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness, Shell};

use super::*;

/// Starts 20 processes, and prints `all` if it could, `done` in any case. They end with the shell's standard input.
const FORK: &str = "exec 3<&0; echo ready; \
     (i=0; while [ $i -lt 20 ]; do cat <&3 >/dev/null & i=$((i+1)); done; echo all) 2>/dev/null; echo done; read end";

fn harness(config: Json, resources: Resources) -> Option<CgroupHarness<Pids>> {
    Some(CgroupHarness::new(CONTROLLERS, config)?.with_resources(resources))
}

fn pids(pids: f64) -> Resources {
    Resources::default().with("pids", pids)
}

fn max(harness: &CgroupHarness<Pids>) -> String {
    harness.cgroup().read("pids.max").unwrap()
}

/// Cleans up when the last process has ended.
fn clean_up(harness: &CgroupHarness<Pids>, id: &str) {
    while let Err(refused) = harness.cleanup(id) {
        assert!(refused.retryable, "{refused}");
        std::thread::yield_now();
    }
}

/// Whether the script could start all of its processes.
fn forks(shell: &mut Shell) -> bool {
    match shell.line().as_str() {
        "all" => shell.line() == "done",
        "done" => false,
        other => panic!("unexpected line `{other}`"),
    }
}

#[test]
fn a_container_cannot_have_more_processes_than_its_limit() {
    for (resources, expected) in [(Resources::default(), 8), (pids(12.0), 12)] {
        let Some(harness) = harness(json!({ "default": 8 }), resources) else { return };
        let prepared = harness.prepare().unwrap();
        let directory = harness.cgroup().directory().to_owned();
        assert_eq!(prepared.launch.cgroups, if harness.is_v1() { vec![directory] } else { Vec::new() });
        assert_eq!(max(&harness), expected.to_string());
        let mut shell = harness.spawn(FORK);
        assert!(!forks(&mut shell), "it has started all processes");
        let usage = harness.usage("web").unwrap();
        let number = |name| usage.number(name).unwrap();
        // The subshell has ended; all others exist.
        assert_eq!(number("processes"), f64::from(expected - 1), "{usage:?}");
        assert_eq!(number("threads"), f64::from(expected - 1), "{usage:?}");
        assert_eq!(number("pids_limit"), f64::from(expected), "{usage:?}");
        assert!(number("pids_limit_events") >= 1.0, "{usage:?}");
        shell.end();
        clean_up(&harness, "web");
        assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn an_update_that_is_rolled_back_restores_the_limit_of_the_request_or_the_default() {
    let Some(harness) = harness(json!({ "default": 8 }), Resources::default()) else { return };
    harness.prepare().unwrap();
    harness.update("web", pids(4.0)).unwrap();
    assert_eq!(max(&harness), "4");
    harness.roll_back("web", Resources::default()).unwrap();
    assert_eq!(max(&harness), "8");
    harness.update("web", pids(5.0)).unwrap();
    harness.update("web", pids(6.0)).unwrap();
    harness.roll_back("web", pids(5.0)).unwrap();
    assert_eq!(max(&harness), "5");
    clean_up(&harness, "web");
}

#[test]
fn an_update_raises_lowers_and_lifts_the_limit() {
    let Some(harness) = harness(json!({}), pids(8.0)) else { return };
    harness.prepare().unwrap();
    for (resources, expected) in [
        (pids(4.0), "4"),
        (Resources::default().with("cpus", 1.0), "4"),
        (pids(100.0), "100"),
        (pids(4.0).with_limit("pids", Limit::Unlimited), "max"),
    ] {
        harness.update("web", resources.clone()).unwrap();
        assert_eq!(max(&harness), expected, "after {resources:?}");
    }
    assert_eq!(harness.usage("web").unwrap().number("pids_limit"), None);
    let refused = harness.update("web", pids(1.5)).unwrap_err();
    assert!(refused.message.contains("1.5 of `pids`"), "{refused}");
    harness.update("web", pids(8.0)).unwrap();
    let mut shell = harness.spawn(FORK);
    assert!(!forks(&mut shell));
    // Below what it has: nothing is killed.
    harness.update("web", pids(1.0)).unwrap();
    assert_eq!(harness.usage("web").unwrap().number("processes"), Some(7.0));
    assert!(shell.is_running());
    shell.end();
    clean_up(&harness, "web");
}

#[test]
fn a_running_container_is_still_limited_after_recovery_and_after_a_swap() {
    let Some(harness) = harness(json!({}), pids(8.0)) else { return };
    harness.prepare().unwrap();
    let mut shell = harness.spawn("echo ready; read end");
    let next = harness.restart(json!({ "default": 100 }), &["web"], &["orphan"]).unwrap();
    assert_eq!(max(&harness), "8");
    assert_eq!(next.usage("web").unwrap().number("processes"), Some(1.0));
    next.update("web", pids(9.0)).unwrap();
    assert_eq!(max(&harness), "9");
    next.cleanup("orphan").unwrap();
    assert!(shell.is_running());
    shell.end();
    while next.cleanup("web").is_err() {
        std::thread::yield_now();
    }
    assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
}

#[test]
fn a_nested_container_is_limited_by_its_own_limit_and_that_of_its_parent() {
    for (outer, inner) in [(8.0, 100.0), (100.0, 8.0)] {
        let Some(harness) = harness(json!({}), pids(outer)) else { return };
        harness.prepare().unwrap();
        let mut nested = harness.nested("web.probe");
        nested.resources = pids(inner);
        harness.prepare_container(&nested).unwrap();
        let mut shell = harness.spawn_in(&nested, FORK);
        assert!(!forks(&mut shell), "limits: {outer} and {inner}");
        assert_eq!(harness.usage("web.probe").unwrap().number("processes"), Some(7.0));
        assert_eq!(harness.usage("web").unwrap().number("processes"), Some(7.0), "with those below");
        assert!(harness.usage("web").unwrap().number("pids_limit_events").unwrap() >= 1.0);
        shell.end();
        clean_up(&harness, "web.probe");
        clean_up(&harness, "web");
    }
}

#[test]
fn shared_cgroups_are_not_changed() {
    let Some(harness) = harness(json!({}), pids(8.0)) else { return };
    harness.prepare().unwrap();
    let mut debug = harness.sharing("web.probe");
    debug.resources = pids(100.0);
    assert_eq!(harness.prepare_container(&debug).unwrap().launch, LaunchInfo::default());
    assert_eq!(harness.usage("web.probe").unwrap(), Usage::default());
    let refused = harness.update("web.probe", pids(100.0)).unwrap_err();
    assert!(refused.message.contains("`web.probe`") && refused.message.contains("parent"), "{refused}");
    harness.cleanup("web.probe").unwrap();
    assert_eq!(max(&harness), "8");
    harness.cleanup("web").unwrap();
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Pids>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Pids>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `pids`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "default": -1 }), "invalid value"),
        (json!({ "limit": 5 }), "unknown field `limit`"),
        (json!({ "default": 5_000_000 }), "`default` is 5000000, but the kernel has at most"),
        (json!({ "maximum": 10 }), "`default` is 2048, which is above `maximum`, 10"),
        (json!({ "default": 0, "maximum": 10 }), "`default` is 0, which is above"),
    ] {
        let refused = PluginHarness::<Pids>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
