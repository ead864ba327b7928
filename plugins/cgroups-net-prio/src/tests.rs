//! On the real net_prio controller of this machine.

use cofferdam_plugin_api::model::LaunchInfo;
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

fn harness(config: Json) -> Option<CgroupHarness<NetPrio>> {
    CgroupHarness::new(CONTROLLERS, config)
}

fn loopback(harness: &CgroupHarness<NetPrio>) -> String {
    let priorities = harness.cgroup().read(PRIORITIES).unwrap();
    priorities.lines().find_map(|line| line.strip_prefix("lo ")).unwrap().to_owned()
}

#[test]
fn a_container_has_the_priority_of_the_configuration_it_was_launched_with() {
    let Some(harness) = harness(json!({ "priorities": { "lo": 5 } })) else { return };
    let prepared = harness.prepare().unwrap();
    assert_eq!(prepared.launch.cgroups, [harness.cgroup().directory()]);
    assert_eq!(loopback(&harness), "5");
    let shell = harness.spawn("echo ready; read end");
    let next = harness.restart(json!({ "priorities": { "lo": 6 } }), &["web"], &["orphan"]).unwrap();
    assert_eq!(loopback(&harness), "5");
    next.cleanup("orphan").unwrap();
    let refused = next.cleanup("web").unwrap_err();
    assert!(refused.retryable, "{refused}");
    shell.end();
    while next.cleanup("web").is_err() {
        std::thread::yield_now();
    }
    assert!(!harness.cgroup().directory().exists());
    next.cleanup("web").unwrap();
}

#[test]
fn a_nested_container_with_its_own_cgroup_gets_the_priority_too() {
    let Some(harness) = harness(json!({ "priorities": { "lo": 5 } })) else { return };
    harness.prepare().unwrap();
    let nested = harness.nested("web.probe");
    let prepared = harness.prepare_container(&nested).unwrap();
    let directory = harness.cgroup().directory().join("probe");
    assert_eq!(prepared.launch.cgroups, std::slice::from_ref(&directory));
    let priorities = std::fs::read_to_string(directory.join(PRIORITIES)).unwrap();
    assert!(priorities.contains("lo 5"), "{priorities}");
    let sharing = harness.sharing("web.shared");
    assert_eq!(harness.prepare_container(&sharing).unwrap().launch, LaunchInfo::default());
    for id in ["web.shared", "web.probe", "web"] {
        harness.cleanup(id).unwrap();
    }
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    let Some(harness) = harness(json!({ "priorities": { "missing0": 5 } })) else { return };
    let refused = harness.prepare().unwrap_err();
    assert!(refused.message.contains("network interface `missing0`"), "{refused}");
    harness.cleanup("web").unwrap();
    assert!(!harness.cgroup().directory().exists());
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<NetPrio>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<NetPrio>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `net_prio`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "priorities": { "eth0": -1 } }), "invalid value"),
        (json!({ "priorities": { "eth0 1": 1 } }), "`eth0 1` of `priorities`"),
        (json!({ "priorities": { "": 1 } }), "`` of `priorities`"),
        (json!({ "priorities": { "a-name-that-is-too-long": 1 } }), "cannot be a network interface"),
        (json!({ "priority": 1 }), "unknown field `priority`"),
    ] {
        let refused = PluginHarness::<NetPrio>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
