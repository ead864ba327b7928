//! Real directories, measured by real threads.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use cofferdam_plugin_api::model::{Limit, Volume};
use cofferdam_plugin_api::testing::PluginHarness;

use super::*;

fn harness(enforces: bool) -> PluginHarness<Du> {
    PluginHarness::isolator(config(enforces)).unwrap()
}

fn config(enforces: bool) -> Json {
    json!({ "container_disk_watch_interval": "10ms", "enforce_container_disk_quota": enforces })
}

/// Prepares a container with a limit in MiB, if it is not 0.
fn prepare(harness: &PluginHarness<Du>, id: &str, limit: f64) {
    let mut container = harness.container(id);
    if limit > 0.0 {
        container.resources = Resources::default().with("disk", limit);
    }
    let prepared = harness.prepare_container(&container).unwrap();
    assert_eq!(prepared.state, None);
}

fn write(harness: &PluginHarness<Du>, directory: &str, id: &str, mebibytes: usize) {
    let directory = harness.directory().join(directory).join(id).join("a/b");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), vec![1; mebibytes << 20]).unwrap();
}

/// Waits until a container was measured and uses so much.
fn wait_for(harness: &PluginHarness<Du>, id: &str, is_expected: impl Fn(u64) -> bool) -> Usage {
    loop {
        let usage = harness.usage(id).unwrap();
        let used = usage.0.get("disk_used_bytes").map(|used| used.as_u64().unwrap());
        if used.is_some_and(&is_expected) {
            return usage;
        }
        std::thread::yield_now();
    }
}

fn du(directories: &[&Path]) -> u64 {
    let output = Command::new("du").args(["-s", "-B1"]).args(directories).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Waits for a limitation.
fn limitation(harness: &PluginHarness<Du>, id: &str, watched: &OwnedFd) -> Limitation {
    loop {
        if let Some(limitation) = harness.limitation(id, Some(watched.as_fd())).unwrap() {
            return limitation;
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_a_container_has_written_is_measured_without_being_enforced() {
    let harness = harness(false);
    prepare(&harness, "web", 1.0);
    write(&harness, "sandbox", "web", 3);
    write(&harness, "scratch", "web", 2);
    let usage = wait_for(&harness, "web", |used| used > 5 << 20);
    let [sandbox, scratch] = ["sandbox/web", "scratch/web"].map(|path| harness.directory().join(path));
    let used = du(&[&sandbox, &scratch]);
    let statistics = json!([{ "limit_bytes": 1 << 20, "used_bytes": used }]);
    let expected = Usage::default()
        .with("disk_limit_bytes", 1 << 20)
        .with("disk_used_bytes", used)
        .with("disk_statistics", statistics);
    assert_eq!(usage, expected);
    assert!(harness.watch("web").unwrap().is_none());
    assert_eq!(harness.limitation("web", None).unwrap(), None);
    // It is measured again.
    fs::remove_dir_all(scratch.join("a")).unwrap();
    wait_for(&harness, "web", |used| used < 4 << 20);
    harness.cleanup("web").unwrap();
    assert_eq!(harness.usage("web").unwrap(), Usage::default());
}

#[test]
fn a_container_over_its_limit_is_reported_with_its_usage() {
    let harness = harness(true);
    prepare(&harness, "web", 4.0);
    let watched = harness.watch("web").unwrap().unwrap();
    write(&harness, "sandbox", "web", 3);
    wait_for(&harness, "web", |used| used > 3 << 20);
    assert_eq!(harness.limitation("web", Some(watched.as_fd())).unwrap(), None);
    write(&harness, "scratch", "web", 3);
    let limitation = limitation(&harness, "web", &watched);
    assert_eq!(limitation.reason, "REASON_CONTAINER_LIMITATION_DISK");
    assert!(limitation.message.starts_with("disk limit of 4.0 MiB exceeded: "), "{limitation:?}");
    let Value::Scalar(used) = limitation.resources["disk"] else { panic!("{limitation:?}") };
    // A measurement may have found a part of what was being written.
    assert!((4.0..6.5).contains(&used), "{used}");
    harness.cleanup("web").unwrap();
}

#[test]
fn a_limit_can_be_changed_both_ways() {
    let harness = harness(true);
    prepare(&harness, "web", 8.0);
    let watched = harness.watch("web").unwrap().unwrap();
    write(&harness, "sandbox", "web", 3);
    wait_for(&harness, "web", |used| used > 3 << 20);
    harness.update("web", Resources::default().with("disk", 2.0)).unwrap();
    limitation(&harness, "web", &watched);
    harness.update("web", Resources::default().with("disk", 16.0)).unwrap();
    assert_eq!(harness.limitation("web", Some(watched.as_fd())).unwrap(), None);
    let unlimited = Resources::default().with("disk", 2.0).with_limit("disk", Limit::Unlimited);
    harness.update("web", unlimited).unwrap();
    wait_for(&harness, "web", |used| used > 3 << 20);
    assert_eq!(harness.limitation("web", Some(watched.as_fd())).unwrap(), None);
    assert!(!harness.usage("web").unwrap().0.contains_key("disk_limit_bytes"));
    harness.cleanup("web").unwrap();
}

#[test]
fn nested_containers_count_until_they_are_removed_also_for_a_later_instance() {
    let harness = harness(true);
    prepare(&harness, "pod", 8.0);
    prepare(&harness, "pod.a", 0.0);
    prepare(&harness, "pod.b", 0.0);
    for id in ["pod.a", "pod.b"] {
        write(&harness, "sandbox", id, 3);
        wait_for(&harness, id, |used| used > 3 << 20);
    }
    wait_for(&harness, "pod", |used| used > 6 << 20);
    harness.cleanup("pod.a").unwrap();
    wait_for(&harness, "pod", |used| used > 6 << 20);

    let next = harness.restart(config(true), &["pod", "pod.b"], &["pod.a"]).unwrap();
    let watched = next.watch("pod").unwrap().unwrap();
    wait_for(&next, "pod", |used| used > 6 << 20);
    assert_eq!(next.limitation("pod", Some(watched.as_fd())).unwrap(), None);
    write(&next, "sandbox", "pod.b", 7);
    assert!(limitation(&next, "pod", &watched).message.contains("8.0 MiB exceeded"));
    assert_eq!(next.limitation("pod.b", None).unwrap(), None, "it has no limit of its own");

    next.removed("pod.a").unwrap();
    wait_for(&next, "pod", |used| (7 << 20..8 << 20).contains(&used));
    next.cleanup("pod.b").unwrap();
    next.cleanup("pod").unwrap();
    assert_eq!(next.usage("pod.b").unwrap(), Usage::default());
}

#[test]
fn a_missing_sandbox_is_no_error_and_a_replaced_one_is_not_followed() {
    let harness = harness(false);
    let outside = harness.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), vec![1; 3 << 20]).unwrap();
    for id in ["missing", "replaced"] {
        prepare(&harness, id, 0.0);
        fs::remove_dir(harness.directory().join("sandbox").join(id)).unwrap();
    }
    std::os::unix::fs::symlink(&outside, harness.directory().join("sandbox/replaced")).unwrap();
    for id in ["missing", "replaced"] {
        wait_for(&harness, id, |used| used < 1 << 20);
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = harness(true);
    for _ in 0..2 {
        harness.cleanup("unknown").unwrap();
        harness.removed("unknown").unwrap();
    }
    harness.update("unknown", Resources::default().with("disk", 1.0)).unwrap();
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "container_disk_watch_interval": "0s" }), "`container_disk_watch_interval` is 0"),
        (json!({ "interval": "1s" }), "unknown field `interval`"),
        (json!({ "container_disk_watch_interval": 15 }), "invalid type"),
    ] {
        let refused = PluginHarness::<Du>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}

#[test]
fn volumes_are_measured_by_themselves_if_configured_also_by_a_later_instance() {
    let mut table = config(true);
    table["measure_volumes"] = json!(true);
    let harness = PluginHarness::<Du>::isolator(table.clone()).unwrap();
    let [data, file] = ["data", "file"].map(|name| harness.directory().join(name));
    write(&harness, "data", "x", 3);
    fs::write(&file, vec![1; 2 << 20]).unwrap();
    let mut container = harness.container("web");
    container.resources = Resources::default().with("disk", 1.0);
    container.volumes = [data.as_path(), &file, &data, Path::new("inner")]
        .map(|path| Volume {
            container_path: "/data".into(),
            read_only: false,
            source: VolumeSource::HostPath { path: path.into(), propagation: None },
        })
        .into();
    let prepared = harness.prepare_container(&container).unwrap();
    assert_eq!(prepared.state, Some(json!({ "volumes": [data, file] })));
    let disks = |harness: &PluginHarness<Du>, data_bytes: u64| loop {
        let disks = harness.usage("web").unwrap().0.remove("disk_statistics").unwrap();
        let used = |index: usize| disks[index]["used_bytes"].as_u64();
        if let (Some(first), Some(second), Some(_)) = (used(0), used(1), used(2))
            && first >= data_bytes
        {
            assert!((2 << 20..3 << 20).contains(&second), "{disks}");
            break disks;
        }
        std::thread::yield_now();
    };
    let found = disks(&harness, 3 << 20);
    assert_eq!(found.as_array().unwrap().len(), 3, "{found}");
    assert_eq!(found[0]["source"], json!({ "type": "PATH", "path": { "root": data } }));
    assert_eq!(found[2]["limit_bytes"], 1 << 20, "{found}");
    let watched = harness.watch("web").unwrap().unwrap();
    assert_eq!(harness.limitation("web", Some(watched.as_fd())).unwrap(), None, "they count for no limit");

    let next = harness.restart(table, &["web"], &[]).unwrap();
    write(&next, "data", "y", 2);
    disks(&next, 5 << 20);
    next.cleanup("web").unwrap();
    assert_eq!(next.usage("web").unwrap(), Usage::default());
    // Of an instance that does not measure them.
    let plain = next.restart(config(true), &["web"], &[]).unwrap();
    wait_for(&plain, "web", |_| true);
    assert_eq!(plain.usage("web").unwrap().0["disk_statistics"].as_array().unwrap().len(), 1);
    plain.cleanup("web").unwrap();
}
