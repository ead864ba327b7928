//! On the real cpu controllers of this machine.

use cofferdam_plugin_api::model::{LaunchInfo, Limit};
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

fn harness(config: Json, resources: Resources) -> Option<CgroupHarness<Cpu>> {
    Some(CgroupHarness::new(CONTROLLERS, config)?.with_resources(resources))
}

fn cpus(cpus: f64) -> Resources {
    Resources::default().with("cpus", cpus)
}

#[test]
fn a_share_is_written_to_the_cgroup_that_the_container_is_created_in() {
    let Some(harness) = harness(json!({}), cpus(0.5)) else { return };
    let prepared = harness.prepare().unwrap();
    assert_eq!(harness.read("cpu.shares", "cpu.weight"), if harness.is_v1() { "512" } else { "50" });
    if harness.is_v1() {
        assert_eq!(harness.cgroup().read("cpu.cfs_quota_us").unwrap(), "50000");
        assert_eq!(harness.cgroup().read("cpu.cfs_period_us").unwrap(), "100000");
        let accounting = harness.cgroup_of(ACCOUNTING).unwrap();
        assert_eq!(prepared.launch.cgroups, [harness.cgroup().directory(), accounting.directory()]);
        assert!(accounting.directory().is_dir());
    } else {
        assert_eq!(harness.cgroup().read("cpu.max").unwrap(), "50000 100000");
        assert!(prepared.launch.cgroups.is_empty());
    }
    harness.cleanup("web").unwrap();
    assert_eq!(
        harness.cgroup().directory().exists(),
        !harness.is_v1(),
        "on v1 the plugin removes the directory"
    );
    harness.cleanup("web").unwrap();
}

#[test]
fn an_update_raises_lowers_and_lifts_the_limit() {
    let Some(harness) = harness(json!({ "cfs": false }), cpus(1.0)) else { return };
    harness.prepare().unwrap();
    let quota = || {
        let text = harness.read("cpu.cfs_quota_us", "cpu.max");
        text.split(' ').next().unwrap().parse::<i64>().ok().filter(|&quota| quota > 0)
    };
    assert_eq!(quota(), None, "without `cfs` a request is no limit");
    for (resources, expected, share) in [
        (cpus(0.25).with_limit("cpus", Limit::At(0.5)), Some(50_000), ["256", "25"]),
        (cpus(4.0).with_limit("cpus", Limit::At(8.0)), Some(800_000), ["4096", "400"]),
        (Resources::default().with("mem", 64.0), Some(800_000), ["4096", "400"]),
        (cpus(0.0), None, ["2", "1"]),
    ] {
        harness.update("web", resources.clone()).unwrap();
        assert_eq!(quota(), expected, "after {resources:?}");
        let cpus = expected.map(|quota| f64::from(u32::try_from(quota).unwrap()) / 100_000.0);
        let usage = harness.usage("web").unwrap();
        assert_eq!(usage.number("cpus_limit"), cpus, "after {resources:?}");
        let requested = resources.cpus().or(Some(4.0));
        assert_eq!(usage.number("cpus_soft_limit"), requested, "after {resources:?}");
        let expected = share[usize::from(!harness.is_v1())];
        assert_eq!(harness.read("cpu.shares", "cpu.weight"), expected, "after {resources:?}");
    }
    harness.cleanup("web").unwrap();
}

/// The kernel refuses larger values than these.
#[test]
fn any_number_of_cpus_is_accepted() {
    for many in [1e6, 1e9, 1e18, f64::MAX] {
        let Some(harness) = harness(json!({}), cpus(many)) else { return };
        harness.prepare().unwrap();
        assert_eq!(
            harness.read("cpu.shares", "cpu.weight"),
            if harness.is_v1() { "262144" } else { "10000" }
        );
        harness.update("web", cpus(0.5)).unwrap();
        harness.update("web", cpus(many).with_limit("cpus", Limit::At(many))).unwrap();
        assert!(harness.usage("web").unwrap().number("cpus_limit").is_some_and(|limit| limit >= 1e6));
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn an_update_that_is_rolled_back_restores_the_share_or_that_of_the_kernel() {
    let Some(harness) = harness(json!({}), Resources::default()) else { return };
    harness.prepare().unwrap();
    let read = || (harness.read("cpu.cfs_quota_us", "cpu.max"), harness.read("cpu.shares", "cpu.weight"));
    let before = read();
    harness.update("web", cpus(0.5)).unwrap();
    assert_ne!(read(), before);
    harness.roll_back("web", Resources::default()).unwrap();
    assert_eq!(read(), before);
    harness.update("web", cpus(0.5)).unwrap();
    let before = read();
    harness.update("web", cpus(2.0)).unwrap();
    harness.roll_back("web", cpus(0.5)).unwrap();
    assert_eq!(read(), before);
    harness.cleanup("web").unwrap();
}

/// On v2 the lower one of both holds.
#[test]
fn a_limit_that_the_parent_does_not_have_is_explained_on_v1() {
    let Some(harness) = harness(json!({}), cpus(0.5)) else { return };
    harness.prepare().unwrap();
    let mut nested = harness.nested("web.probe");
    nested.resources = cpus(2.0);
    if !harness.is_v1() {
        harness.prepare_container(&nested).unwrap();
    } else {
        let parent = harness.cgroup().directory().display().to_string();
        let refused = harness.prepare_container(&nested).unwrap_err().message;
        for part in ["cannot limit the container to 2.00 CPUs", &*parent, "has 0.50", "request at most that"]
        {
            assert!(refused.contains(part), "{part} in {refused}");
        }
        nested.resources = cpus(0.25);
        harness.prepare_container(&nested).unwrap();
        let before = harness.read("cpu.shares", "cpu.weight");
        let refused = harness.update("web", cpus(0.125)).unwrap_err().message;
        assert!(refused.contains("to 0.12 CPUs") && refused.contains("lower that first"), "{refused}");
        assert_eq!(harness.read("cpu.shares", "cpu.weight"), before);
    }
    harness.cleanup("web.probe").unwrap();
    harness.cleanup("web").unwrap();
}

#[test]
fn a_container_is_throttled_at_its_limit_and_its_time_is_counted() {
    let Some(harness) = harness(json!({ "count_processes": true }), cpus(0.2)) else { return };
    harness.prepare().unwrap();
    let mut shell = harness.spawn("echo ready; while :; do :; done");
    // Until it has used CPU time and been throttled.
    let usage = loop {
        let usage = harness.usage("web").unwrap();
        if usage.number("cpus_user_time_secs").unwrap() + usage.number("cpus_system_time_secs").unwrap()
            >= 0.1
            && usage.number("cpus_nr_throttled").unwrap() >= 3.0
        {
            break usage;
        }
        assert!(shell.is_running(), "the shell ended: {usage:?}");
        std::thread::yield_now();
    };
    assert!(usage.number("cpus_throttled_time_secs").unwrap() > 0.0, "{usage:?}");
    assert!(
        usage.number("cpus_nr_periods").unwrap() >= usage.number("cpus_nr_throttled").unwrap(),
        "{usage:?}"
    );
    assert_eq!((usage.number("processes").unwrap(), usage.number("threads").unwrap()), (1.0, 1.0));
    drop(shell);
    harness.cleanup("web").unwrap();
}

#[test]
fn a_cgroup_in_use_is_reported_and_removed_later() {
    let Some(harness) = harness(json!({}), cpus(1.0)) else { return };
    harness.prepare().unwrap();
    let shell = harness.spawn("echo ready; read end");
    if harness.is_v1() {
        let refused = harness.cleanup("web").unwrap_err();
        assert!(refused.retryable, "{refused}");
        assert!(refused.message.contains(&harness.cgroup().directory().display().to_string()), "{refused}");
    }
    shell.end();
    harness.cleanup("web").unwrap();
}

#[test]
fn shared_cgroups_are_not_changed() {
    let Some(harness) = harness(json!({}), cpus(1.0)) else { return };
    harness.prepare().unwrap();
    let mut debug = harness.sharing("web.probe");
    debug.resources = cpus(0.1);
    assert_eq!(harness.prepare_container(&debug).unwrap().launch, LaunchInfo::default());
    assert_eq!(harness.usage("web.probe").unwrap(), Usage::default());
    let refused = harness.update("web.probe", cpus(0.1)).unwrap_err();
    assert!(refused.message.contains("`web.probe`") && refused.message.contains("parent"), "{refused}");
    harness.cleanup("web.probe").unwrap();
    assert_eq!(harness.read("cpu.shares", "cpu.weight"), if harness.is_v1() { "1024" } else { "100" });
    harness.cleanup("web").unwrap();
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Cpu>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `cpu`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in
        [(json!({ "cfs": 1 }), "invalid type"), (json!({ "cfs_quota": true }), "unknown field `cfs_quota`")]
    {
        let refused = PluginHarness::<Cpu>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
