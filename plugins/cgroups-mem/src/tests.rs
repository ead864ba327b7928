//! On the real memory controller of this machine.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;

use cofferdam_plugin_api::model::{LaunchInfo, Limit};
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness, wait_until_readable};

use super::*;

const MIB: u64 = 1 << 20;

fn harness(config: Json, resources: Resources) -> Option<CgroupHarness<Mem>> {
    Some(CgroupHarness::new(CONTROLLERS, config)?.with_resources(resources))
}

/// A limit of the container in bytes; `None` for none.
fn limit(harness: &CgroupHarness<Mem>, v1: &str, v2: &str) -> Option<u64> {
    // On v1 no limit is the largest multiple of the page size.
    harness.read(v1, v2).parse().ok().filter(|&limit: &u64| limit < 1 << 60)
}

fn hard(harness: &CgroupHarness<Mem>) -> Option<u64> {
    limit(harness, "memory.limit_in_bytes", "memory.max")
}

fn mem(mib: f64) -> Resources {
    Resources::default().with("mem", mib)
}

#[test]
fn limits_are_written_to_the_cgroup_that_the_container_is_created_in() {
    let resources = mem(64.0).with_limit("mem", Limit::At(128.0));
    let Some(harness) = harness(json!({}), resources) else { return };
    let prepared = harness.prepare().unwrap();
    assert_eq!(hard(&harness), Some(128 * MIB));
    assert_eq!(limit(&harness, "memory.soft_limit_in_bytes", "memory.low"), Some(64 * MIB));
    let cgroups = if harness.is_v1() { vec![harness.cgroup().directory().to_owned()] } else { Vec::new() };
    assert_eq!(prepared.launch.cgroups, cgroups);
    assert!(prepared.launch.oom_score_adj.is_some(), "it may use more than requested");
    assert_eq!(prepared.state, None);
    harness.cleanup("web").unwrap();
    assert_eq!(
        harness.cgroup().directory().exists(),
        !harness.is_v1(),
        "on v1 the plugin removes the directory"
    );
    harness.cleanup("web").unwrap();
}

#[test]
fn limits_are_raised_to_the_minimum_and_only_set_if_requested() {
    let Some(harness) = harness(json!({ "minimum": "48 MiB" }), mem(1.0)) else { return };
    harness.prepare().unwrap();
    assert_eq!(hard(&harness), Some(48 * MIB));

    let Some(harness) = self::harness(json!({}), Resources::default()) else { return };
    let prepared = harness.prepare().unwrap();
    assert_eq!(hard(&harness), None);
    assert_eq!(prepared.launch.oom_score_adj, None);
    harness.cleanup("web").unwrap();
}

#[test]
fn an_update_raises_and_lowers_the_limit() {
    let Some(harness) = harness(json!({}), mem(64.0)) else { return };
    harness.prepare().unwrap();
    for (resources, expected) in [
        (mem(256.0), Some(256 * MIB)),
        (mem(40.0), Some(40 * MIB)),
        (mem(40.0).with_limit("mem", Limit::Unlimited), None),
        (Resources::default().with("cpus", 2.0), None),
        (mem(96.0), Some(96 * MIB)),
    ] {
        harness.update("web", resources.clone()).unwrap();
        assert_eq!(hard(&harness), expected, "after {resources:?}");
    }
    harness.cleanup("web").unwrap();
}

/// The kernel has no more than that many pages, which is no limit.
#[test]
fn any_amount_of_memory_is_accepted() {
    for many in [1e13, 1e18, f64::MAX] {
        let Some(harness) = harness(json!({}), mem(many)) else { return };
        harness.prepare().unwrap();
        assert_eq!(hard(&harness), None);
        harness.update("web", mem(64.0)).unwrap();
        assert_eq!(hard(&harness), Some(64 * MIB));
        harness.update("web", mem(many).with_limit("mem", Limit::At(many))).unwrap();
        assert_eq!(hard(&harness), None);
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn the_swap_limit_follows_the_memory_limit() {
    let Some(harness) = harness(json!({ "limit_swap": true }), mem(64.0)) else { return };
    if let Err(refused) = harness.prepare() {
        assert!(refused.message.contains("swapaccount=1"), "{refused}");
        return;
    }
    for mib in [64.0, 256.0, 40.0] {
        harness.update("web", mem(mib)).unwrap();
        if harness.is_v1() {
            let swap: u64 = harness.cgroup().read_as("memory.memsw.limit_in_bytes").unwrap();
            assert_eq!(Some(swap), hard(&harness));
        } else if harness.cgroup().has("memory.swap.max") {
            assert_eq!(harness.cgroup().read("memory.swap.max").unwrap(), "0");
        }
    }
    harness.cleanup("web").unwrap();
}

#[test]
fn an_old_swap_limit_does_not_prevent_an_update() {
    let Some(harness) = harness(json!({}), mem(64.0)) else { return };
    harness.prepare().unwrap();
    if harness.cgroup().write("memory.memsw.limit_in_bytes", 64 * MIB).is_ok() {
        harness.update("web", mem(128.0)).unwrap();
        assert_eq!(hard(&harness), Some(128 * MIB));
    }
    harness.cleanup("web").unwrap();
}

#[test]
fn a_limit_below_what_cannot_be_reclaimed_is_refused_and_kills_nothing() {
    let Some(harness) = harness(json!({}), mem(256.0)) else { return };
    harness.prepare().unwrap();
    // While its input goes on, `tail` holds the line of 110 MB that it has read so far.
    let shell = harness.spawn(
        "exec 3>&1; (head -c 110000000 /dev/zero; echo ready >&3; read end) | tail -n 1 >/dev/null; exit 7",
    );

    let usage = harness.usage("web").unwrap();
    for figure in ["mem_rss_bytes", "mem_anon_bytes", "mem_total_bytes"] {
        assert!(
            usage.number(figure).unwrap() > 1e8 && usage.number(figure).unwrap() < 256.0 * 1048576.0,
            "{figure} in {usage:?}"
        );
    }
    assert!(usage.0.contains_key("mem_cache_bytes") && usage.0.contains_key("mem_mapped_file_bytes"));

    let refused = harness.update("web", mem(40.0)).unwrap_err();
    assert!(refused.message.contains("cannot lower the memory limit to 40.0 MiB"), "{refused}");
    assert!(refused.retryable);
    assert_eq!(hard(&harness), Some(256 * MIB), "the old limit is still in force");
    assert_eq!(limit(&harness, "memory.soft_limit_in_bytes", "memory.low"), Some(256 * MIB));
    harness.update("web", mem(192.0)).unwrap();
    assert_eq!(hard(&harness), Some(192 * MIB));
    assert_eq!(harness.limitation("web", None).unwrap(), None);

    // In use, it cannot be removed yet.
    if harness.is_v1() {
        let refused = harness.cleanup("web").unwrap_err();
        assert!(refused.retryable, "{refused}");
        assert!(refused.message.contains(&harness.cgroup().directory().display().to_string()), "{refused}");
    }
    assert_eq!(shell.end().code(), Some(7), "it was not killed");
    harness.cleanup("web").unwrap();
}

#[test]
fn usage_has_limits_and_every_statistic_of_the_kernel() {
    let resources = mem(64.0).with_limit("mem", Limit::At(128.0));
    let Some(harness) = harness(json!({}), resources) else { return };
    harness.prepare().unwrap();
    let usage = harness.usage("web").unwrap();
    assert_eq!(usage.number("mem_limit_bytes"), Some(128.0 * MIB as f64));
    assert_eq!(usage.number("mem_soft_limit_bytes"), Some(64.0 * MIB as f64));
    let names = ["total", "cache", "file", "rss", "anon", "mapped_file", "unevictable", "kmem_usage"];
    for name in names {
        assert!(usage.number(&format!("mem_{name}_bytes")).is_some(), "{name} in {usage:?}");
    }
    if harness.is_v1() {
        let swap = harness.cgroup().has("memory.memsw.usage_in_bytes");
        assert_eq!(usage.number("mem_total_memsw_bytes").is_some(), swap, "{usage:?}");
        assert!(usage.number("mem_kmem_tcp_usage_bytes").is_some(), "{usage:?}");
    } else {
        assert_eq!(usage.number("mem_oom_kill_events"), None, "they are read with `pressure`: {usage:?}");
    }
    harness.update("web", mem(64.0).with_limit("mem", Limit::Unlimited)).unwrap();
    assert_eq!(harness.usage("web").unwrap().number("mem_limit_bytes"), None);
    harness.cleanup("web").unwrap();
}

#[test]
fn an_update_that_is_rolled_back_restores_the_limit_or_that_there_is_none() {
    let Some(harness) = harness(json!({ "limit_swap": has_swap() }), Resources::default()) else { return };
    harness.prepare().unwrap();
    let read = || {
        let soft = harness.read("memory.soft_limit_in_bytes", "memory.low");
        (harness.read("memory.limit_in_bytes", "memory.max"), soft)
    };
    let before = read();
    harness.update("web", mem(64.0)).unwrap();
    assert_eq!(hard(&harness), Some(64 * MIB));
    harness.roll_back("web", Resources::default()).unwrap();
    assert_eq!(read(), before);
    harness.update("web", mem(64.0)).unwrap();
    harness.update("web", mem(96.0)).unwrap();
    harness.roll_back("web", mem(64.0)).unwrap();
    assert_eq!(hard(&harness), Some(64 * MIB));
    harness.cleanup("web").unwrap();
}

#[test]
fn pressure_is_counted_and_again_from_zero_by_the_next_instance() {
    let Some(harness) = harness(json!({ "pressure": true }), mem(40.0)) else { return };
    harness.prepare().unwrap();
    if !harness.is_v1() || !harness.cgroup().has("memory.pressure_level") {
        return;
    }
    // Its page cache does not fit.
    let file = harness.directory().join("cache");
    let script = format!(
        "echo ready; while read line; do head -c 80000000 /dev/zero > '{}'; echo written; done",
        file.display()
    );
    let mut shell = harness.spawn(&script);
    let next = harness.restart(json!({ "pressure": true }), &["web"], &[]).unwrap();
    for instance in [&*harness, &next] {
        instance.watch("web").unwrap();
        let low = || instance.usage("web").unwrap().number("mem_low_pressure_counter");
        while low().is_none() {
            std::thread::yield_now();
        }
        while low() == Some(0.0) {
            shell.write("more");
            assert_eq!(shell.line(), "written");
        }
        let usage = instance.usage("web").unwrap();
        assert!(usage.number("mem_medium_pressure_counter").is_some(), "{usage:?}");
        assert!(usage.number("mem_critical_pressure_counter").is_some(), "{usage:?}");
    }
    shell.end();
    while next.cleanup("web").is_err() {
        std::thread::yield_now();
    }
    while next.usage("web").is_ok_and(|usage| usage.number("mem_low_pressure_counter").is_some()) {
        std::thread::yield_now();
    }
}

#[test]
fn each_reaching_of_a_limit_is_counted_on_v2() {
    let config = json!({ "pressure": true, "limit_swap": has_swap() });
    let Some(harness) = harness(config, mem(40.0)) else { return };
    if harness.is_v1() {
        return; // There it has pressure levels.
    }
    harness.prepare().unwrap();
    let events = || {
        let usage = harness.usage("web").unwrap();
        ["low", "high", "max", "oom", "oom_kill"]
            .map(|name| usage.number(&format!("mem_{name}_events")).unwrap())
    };
    assert_eq!(events(), [0.0; 5]);
    let shell = harness.spawn("echo ready; exec tail /dev/zero");
    assert_eq!(shell.end().signal(), Some(9));
    let [_, high, max, oom, oom_kill] = events();
    assert_eq!((high, oom_kill), (0.0, 1.0), "there is no limit that only slows down, and one process");
    assert!(max >= 1.0 && oom >= 1.0, "{max} and {oom}");
    harness.cleanup("web").unwrap();
}

#[test]
fn a_user_of_a_container_owns_its_cgroup_on_v2_and_no_limit() {
    use std::os::unix::fs::MetadataExt;
    let Some(harness) = harness(json!({}), mem(64.0)) else { return };
    let mut container = harness.container("web");
    (container.uid, container.gid) = (1234, 5678);
    container.cgroups = harness.cgroups().clone();
    container.resources = mem(64.0);
    harness.prepare_container(&container).unwrap();
    let directory = harness.cgroup().directory();
    let owner = |path: &std::path::Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    };
    // There is no limit for the cgroups that it would create on v1.
    assert_eq!(owner(directory), if harness.is_v1() { (0, 0) } else { (1234, 5678) });
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(owner(&entry.path()), (0, 0), "{}", entry.path().display());
    }
    harness.cleanup("web").unwrap();
}

#[test]
fn exceeding_the_limit_is_reported_while_the_container_is_running() {
    let Some(harness) = harness(json!({ "limit_swap": has_swap() }), mem(40.0)) else { return };
    harness.prepare().unwrap();
    let watching = harness.watch("web").unwrap().unwrap();
    assert_eq!(harness.limitation("web", Some(watching.as_fd())).unwrap(), None);

    // Its first process survives the one that takes too much.
    let mut shell = harness.spawn("echo ready; tail /dev/zero; read end");
    let limitation = loop {
        wait_until_readable(watching.as_fd());
        if let Some(limitation) = harness.limitation("web", Some(watching.as_fd())).unwrap() {
            break limitation;
        }
    };
    assert!(shell.is_running(), "its first process is not killed");
    assert_eq!(limitation.reason, "REASON_CONTAINER_LIMITATION_MEMORY");
    assert!(limitation.message.starts_with("memory limit of 40.0 MiB exceeded: up to "), "{limitation:?}");
    let Value::Scalar(peak) = limitation.resources["mem"] else { panic!("{limitation:?}") };
    assert!((20.0..=41.0).contains(&peak), "{limitation:?}");
    let statistics = limitation.message.split_once("; now: ").unwrap().1;
    assert!(statistics.contains(if harness.is_v1() { "rss " } else { "anon " }), "{limitation:?}");
    shell.end();
    harness.cleanup("web").unwrap();
}

#[test]
fn a_limit_that_killed_an_unwatched_container_is_reported() {
    let Some(harness) = harness(json!({ "limit_swap": has_swap() }), mem(40.0)) else { return };
    harness.prepare().unwrap();
    let shell = harness.spawn("echo ready; exec tail /dev/zero");
    assert_eq!(shell.end().signal(), Some(9));
    let limitation = harness.limitation("web", None).unwrap().unwrap();
    assert_eq!(limitation.reason, "REASON_CONTAINER_LIMITATION_MEMORY");
    harness.cleanup("web").unwrap();
}

#[test]
fn only_the_container_whose_limit_was_reached_has_a_limitation() {
    for (outer, inner) in [(200.0, 40.0), (40.0, 200.0)] {
        let limit_swap = json!({ "limit_swap": has_swap() });
        let Some(harness) = harness(limit_swap, mem(outer)) else { return };
        harness.prepare().unwrap();
        let mut nested = harness.nested("web.probe");
        nested.resources = mem(inner);
        harness.prepare_container(&nested).unwrap();
        let shell = harness.spawn_in(&nested, "echo ready; exec tail /dev/zero");
        assert_eq!(shell.end().signal(), Some(9));
        let of_outer = harness.limitation("web", None).unwrap().is_some();
        let of_inner = harness.limitation("web.probe", None).unwrap().is_some();
        assert_eq!((of_outer, of_inner), (outer < inner, inner < outer), "limits: {outer} and {inner} MiB");

        harness.cleanup("web.probe").unwrap();
        harness.cleanup("web").unwrap();
    }
}

#[test]
fn a_kill_for_another_reason_is_no_limitation() {
    let Some(harness) = harness(json!({}), mem(64.0)) else { return };
    harness.prepare().unwrap();
    let watching = harness.watch("web").unwrap().unwrap();
    let shell = harness.spawn("echo ready; kill -9 $$");
    assert_eq!(shell.end().signal(), Some(9));
    assert_eq!(harness.limitation("web", None).unwrap(), None);
    // The removal of the cgroup is an event as well, and no limitation.
    harness.cleanup("web").unwrap();
    if harness.is_v1() {
        wait_until_readable(watching.as_fd());
    }
    assert_eq!(harness.limitation("web", Some(watching.as_fd())).unwrap(), None);
}

#[test]
fn cgroups_below_that_of_the_container_are_removed_with_it() {
    let Some(harness) = harness(json!({}), mem(64.0)) else { return };
    if !harness.is_v1() {
        return; // The agent removes them.
    }
    harness.prepare().unwrap();
    fs::create_dir_all(harness.cgroup().directory().join("a/b")).unwrap();
    fs::create_dir(harness.cgroup().directory().join("c")).unwrap();
    harness.cleanup("web").unwrap();
    assert!(!harness.cgroup().directory().exists());
}

#[test]
fn shared_cgroups_are_not_changed() {
    let Some(harness) = harness(json!({}), mem(64.0)) else { return };
    harness.prepare().unwrap();
    let mut nested = harness.sharing("web.probe");
    nested.resources = mem(512.0);
    assert_eq!(harness.prepare_container(&nested).unwrap().launch, LaunchInfo::default());
    assert!(harness.watch("web.probe").unwrap().is_none());
    assert_eq!(harness.usage("web.probe").unwrap(), Usage::default());
    assert_eq!(harness.limitation("web.probe", None).unwrap(), None);
    let refused = harness.update("web.probe", mem(512.0)).unwrap_err();
    assert!(refused.message.contains("`web.probe`") && refused.message.contains("parent"), "{refused}");
    harness.cleanup("web.probe").unwrap();
    assert_eq!(hard(&harness), Some(64 * MIB), "the parent's limit was touched");
    harness.cleanup("web").unwrap();
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Mem>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
    assert!(harness.recover(Vec::new(), Vec::new()).unwrap().verdicts.is_empty());
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Mem>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `memory`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "minimum": "32 parsecs" }), "`32 parsecs` is not a size"),
        (json!({ "limit_swap": "yes" }), "invalid type"),
        (json!({ "limits": 1 }), "unknown field `limits`"),
    ] {
        let refused = PluginHarness::<Mem>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}

/// With swap and a limit without it, it takes long until a process is killed.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}
