//! On the real perf_event controller of this machine, with events that the kernel counts itself.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::model::LaunchInfo;
use cofferdam_plugin_api::perf::online_cpus;
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

/// Runs processes until its standard input ends.
const BUSY: &str = "(while :; do /bin/true; done) & echo ready; read end; kill $!";

fn config() -> Json {
    json!({
        "perf_events": ["task-clock", "page_faults", "cs", "major-faults"],
        "perf_interval": "20ms",
        "perf_duration": "10ms",
    })
}

fn harness() -> Option<CgroupHarness<PerfEvents>> {
    CgroupHarness::new(CONTROLLERS, config())
}

/// Samples of a container, until one is as expected.
fn wait(harness: &PluginHarness<PerfEvents>, id: &str, is_expected: impl Fn(&Json) -> bool) -> Json {
    loop {
        let usage = harness.usage(id).unwrap();
        match usage.0.get("perf") {
            Some(perf) if is_expected(perf) => return perf.clone(),
            _ => std::thread::yield_now(),
        }
    }
}

fn number(perf: &Json, name: &str) -> f64 {
    perf[name].as_f64().unwrap_or_else(|| panic!("no `{name}` in {perf}"))
}

fn is_busy(perf: &Json) -> bool {
    number(perf, "page_faults") > 0.0 && number(perf, "context_switches") > 0.0
}

/// Cleans up when the last process has ended.
fn clean_up(harness: &PluginHarness<PerfEvents>, id: &str) {
    while let Err(refused) = harness.cleanup(id) {
        assert!(refused.retryable, "{refused}");
        std::thread::yield_now();
    }
}

/// The threads that take samples, of this test and others.
fn samplers() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    tasks
        .filter(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == "perf samples")
        })
        .collect()
}

/// Number of descriptors of events that a thread has, or this process.
fn counters(of: &Path) -> usize {
    let descriptors = fs::read_dir(of.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("perf_event")).count()
}

#[test]
fn usage_has_what_a_container_and_those_in_it_have_caused_also_after_a_restart() {
    let Some(harness) = harness() else { return };
    let prepared = harness.prepare().unwrap();
    let directory = harness.cgroup().directory().to_owned();
    assert_eq!(prepared.launch.cgroups, if harness.is_v1() { vec![directory] } else { Vec::new() });
    assert_eq!(harness.usage("web").unwrap(), Usage::default());
    harness.watch("web").unwrap();
    // Nothing runs in it.
    let idle = wait(&harness, "web", |_| true);
    assert_eq!(number(&idle, "page_faults"), 0.0);
    assert_eq!(number(&idle, "task_clock"), 0.0);
    assert!(number(&idle, "timestamp") > 1e9 && number(&idle, "duration") >= 0.01, "{idle}");
    assert_eq!(idle.as_object().unwrap().len(), 6, "{idle}");

    let nested = harness.nested("web.nested");
    harness.prepare_container(&nested).unwrap();
    harness.watch("web.nested").unwrap();
    let shell = harness.spawn_in(&nested, BUSY);
    for id in ["web.nested", "web"] {
        let perf = wait(&harness, id, is_busy);
        // Milliseconds on any number of CPUs.
        let most = number(&perf, "duration") * 1e3 * 1e4;
        assert!(number(&perf, "task_clock") > 0.0 && number(&perf, "task_clock") < most, "{perf}");
    }
    // None of them is in the table of this process.
    assert_eq!(counters(Path::new("/proc/self")), 0);

    let next = harness.restart(config(), &["web", "web.nested"], &["orphan"]).unwrap();
    assert_eq!(next.usage("web").unwrap(), Usage::default());
    next.watch("web").unwrap();
    wait(&next, "web", is_busy);
    next.cleanup("orphan").unwrap();
    shell.end();
    for id in ["web.nested", "web"] {
        clean_up(&harness, id);
        clean_up(&next, id);
        assert_eq!(next.usage(id).unwrap(), Usage::default());
    }
    assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
}

#[test]
fn a_container_that_shares_cgroups_has_no_statistics_of_its_own() {
    let Some(harness) = harness() else { return };
    harness.prepare().unwrap();
    let sharing = harness.sharing("web.shared");
    assert_eq!(harness.prepare_container(&sharing).unwrap().launch, LaunchInfo::default());
    harness.watch("web").unwrap();
    harness.watch("web.shared").unwrap();
    wait(&harness, "web", |_| true);
    assert_eq!(harness.usage("web.shared").unwrap(), Usage::default());
    clean_up(&harness, "web.shared");
    clean_up(&harness, "web");
}

#[test]
fn no_counter_is_left_when_nobody_needs_one() {
    let Some(harness) = CgroupHarness::<PerfEvents>::new(
        CONTROLLERS,
        // A sample that does not end in this test.
        json!({ "perf_events": ["cpu-clock"], "perf_interval": "1h", "perf_duration": "1h" }),
    ) else {
        return;
    };
    harness.prepare().unwrap();
    // One for each CPU, as long as the sample takes.
    let cpus = online_cpus().unwrap().len();
    harness.watch("web").unwrap();
    let thread = loop {
        match samplers().into_iter().find(|thread| counters(thread) == cpus) {
            Some(thread) => break thread,
            None => std::thread::yield_now(),
        }
    };
    clean_up(&harness, "web");
    while counters(&thread) > 0 {
        std::thread::yield_now();
    }
    drop(harness);
    while thread.exists() {
        std::thread::yield_now();
    }
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "perf_events": ["laughs"] }), "`perf_events` has `laughs`"),
        (json!({ "perf_events": ["faults", "page-faults"] }), "has `page-faults` twice"),
        (json!({ "perf_duration": "2m" }), "longer than `perf_interval`"),
        (json!({ "perf_duration": "0s" }), "`perf_duration` is 0"),
        (json!({ "perf_event": [] }), "unknown field `perf_event`"),
    ] {
        let refused = PluginHarness::<PerfEvents>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn an_event_that_this_machine_does_not_have_is_named() {
    // No machine has all.
    let is_missing = |name: &&str| PerfEvent::find(name).is_some_and(|event| event.probe().is_err());
    let Some(name) = PerfEvent::names().find(is_missing) else { return };
    let refused = PluginHarness::<PerfEvents>::isolator(json!({ "perf_events": [name] })).err().unwrap();
    assert!(refused.message.contains(&format!("`perf_events` has `{name}`")), "{refused}");
    assert!(refused.message.contains("virtual machines") || refused.message.contains("PERFMON"), "{refused}");
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<PerfEvents>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn without_events_nothing_is_counted() {
    let Some(harness) = CgroupHarness::<PerfEvents>::new(CONTROLLERS, json!({})) else { return };
    harness.prepare().unwrap();
    assert!(harness.watch("web").unwrap().is_none());
    assert_eq!(harness.usage("web").unwrap(), Usage::default());
    clean_up(&harness, "web");
}
