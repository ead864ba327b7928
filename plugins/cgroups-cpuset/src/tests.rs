//! On the real cpuset controller of this machine, which has at least two CPUs.

use cofferdam_plugin_api::model::LaunchInfo;
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

/// Prints the CPUs that the kernel permits the process.
const SHOW: &str = "echo ready; grep Cpus_allowed_list /proc/self/status | tr -d '\\t'; read go; \
     grep Cpus_allowed_list /proc/self/status | tr -d '\\t'; read end";

fn harness(config: Json, resources: Resources) -> Option<CgroupHarness<Cpuset>> {
    Some(CgroupHarness::new(CONTROLLERS, config)?.with_resources(resources))
}

fn cpus(ranges: &[(u64, u64)]) -> Resources {
    let mut resources = Resources::default();
    resources.requests.insert("cpuset_cpus".into(), Value::Ranges(ranges.to_vec()));
    resources
}

fn clean_up(harness: &CgroupHarness<Cpuset>, id: &str) {
    while let Err(refused) = harness.cleanup(id) {
        assert!(refused.retryable, "{refused}");
        std::thread::yield_now();
    }
}

#[test]
fn a_container_runs_on_its_cpus_only() {
    for (config, resources) in [
        (json!({ "cpus": "1" }), Resources::default()),
        (json!({ "cpus": "0-1", "mems": "0" }), cpus(&[(1, 1)])),
        (json!({}), cpus(&[(1, 1)])),
    ] {
        let Some(harness) = harness(config.clone(), resources) else { return };
        let prepared = harness.prepare().unwrap();
        let directory = harness.cgroup().directory().to_owned();
        assert_eq!(prepared.launch.cgroups, if harness.is_v1() { vec![directory] } else { Vec::new() });
        let mut shell = harness.spawn(SHOW);
        assert_eq!(shell.line(), "Cpus_allowed_list:1", "{config}");
        assert_eq!(harness.usage("web").unwrap().number("cpuset_cpus_effective"), Some(1.0));
        // While it is running, by another instance.
        let next = harness.restart(json!({}), &["web"], &["orphan"]).unwrap();
        next.update("web", Resources::default().with("cpus", 1.0)).unwrap();
        assert_eq!(harness.cgroup().read("cpuset.cpus").unwrap(), "1");
        next.update("web", cpus(&[(0, 0)])).unwrap();
        shell.write("go");
        assert_eq!(shell.line(), "Cpus_allowed_list:0");
        shell.end();
        next.cleanup("orphan").unwrap();
        clean_up(&harness, "web");
        assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn an_update_that_is_rolled_back_restores_what_a_container_without_a_request_has() {
    for config in [json!({ "cpus": "0-1" }), json!({})] {
        let Some(harness) = harness(config, Resources::default()) else { return };
        harness.prepare().unwrap();
        let read = || harness.cgroup().read("cpuset.cpus").unwrap();
        let before = read();
        harness.update("web", cpus(&[(1, 1)])).unwrap();
        assert_eq!(read(), "1");
        harness.roll_back("web", Resources::default()).unwrap();
        assert_eq!(read(), before);

        // The second file is refused, so the first one is as it was.
        let mut both = cpus(&[(1, 1)]);
        both.requests.insert("cpuset_mems".into(), Value::Ranges(vec![(500, 500)]));
        harness.update("web", both).unwrap_err();
        assert_eq!(read(), before);
        clean_up(&harness, "web");
    }
}

#[test]
fn a_container_without_a_request_can_use_all_cpus() {
    let Some(harness) = harness(json!({}), Resources::default()) else { return };
    harness.prepare().unwrap();
    let cpus = harness.usage("web").unwrap().number("cpuset_cpus_effective").unwrap();
    assert!(cpus >= 2.0, "{cpus}");
    drop(harness.spawn("echo ready; read end"));
    clean_up(&harness, "web");
}

#[test]
fn what_is_not_permitted_or_does_not_exist_is_refused() {
    let Some(harness) = harness(json!({ "cpus": "0" }), cpus(&[(0, 1)])) else { return };
    let refused = harness.prepare().unwrap_err();
    assert!(refused.message.contains("requests 0-1 of `cpuset_cpus`, but `cpus` of"), "{refused}");
    harness.cleanup("web").unwrap();
    let harness = harness.with_resources(Resources::default().with("cpuset_cpus", 2.0));
    let refused = harness.prepare().unwrap_err();
    assert!(refused.message.contains("expected ranges of numbers"), "{refused}");
    let harness = harness.with_resources(Resources::default());
    harness.prepare().unwrap();
    harness.update("web", cpus(&[(1, 1)])).unwrap_err();
    assert_eq!(harness.cgroup().read("cpuset.cpus").unwrap(), "0");
    harness.cleanup("web").unwrap();
}

#[test]
fn a_nested_container_runs_on_cpus_of_its_parent_only() {
    let Some(harness) = harness(json!({}), cpus(&[(1, 1)])) else { return };
    harness.prepare().unwrap();
    // By an instance whose configuration the parent does not have.
    let next = harness.restart(json!({ "cpus": "0-1" }), &["web"], &[]).unwrap();
    let mut nested = harness.nested("web.probe");
    next.prepare_container(&nested).unwrap();
    let mut shell = harness.spawn_in(&nested, SHOW);
    assert_eq!(shell.line(), "Cpus_allowed_list:1");
    shell.end();
    clean_up(&harness, "web.probe");
    nested = harness.nested("web.greedy");
    nested.resources = cpus(&[(0, 1)]);
    match next.prepare_container(&nested) {
        Err(_) => assert!(harness.is_v1()),
        Ok(_) => {
            let mut shell = harness.spawn_in(&nested, SHOW);
            assert_eq!(shell.line(), "Cpus_allowed_list:1");
            shell.end();
        }
    }
    clean_up(&harness, "web.greedy");
    clean_up(&harness, "web");
}

#[test]
fn shared_cgroups_are_not_changed() {
    let Some(harness) = harness(json!({}), cpus(&[(1, 1)])) else { return };
    harness.prepare().unwrap();
    let mut debug = harness.sharing("web.probe");
    debug.resources = cpus(&[(0, 0)]);
    assert_eq!(harness.prepare_container(&debug).unwrap().launch, LaunchInfo::default());
    assert_eq!(harness.usage("web.probe").unwrap(), Usage::default());
    let refused = harness.update("web.probe", cpus(&[(0, 0)])).unwrap_err();
    assert!(refused.message.contains("`web.probe`") && refused.message.contains("parent"), "{refused}");
    harness.cleanup("web.probe").unwrap();
    assert_eq!(harness.cgroup().read("cpuset.cpus").unwrap(), "1");
    harness.cleanup("web").unwrap();
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Cpuset>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Cpuset>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `cpuset`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "cpus": "0-" }), "`cpus` is invalid"),
        (json!({ "mems": "x" }), "`x` is not a list of numbers and ranges"),
        (json!({ "cpus": 2 }), "invalid type"),
        (json!({ "cpu": "0" }), "unknown field `cpu`"),
    ] {
        let refused = PluginHarness::<Cpuset>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
