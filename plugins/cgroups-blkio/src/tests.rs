//! On the real blkio controller of this machine.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cofferdam_plugin_api::model::LaunchInfo;
use cofferdam_plugin_api::testing::{CgroupHarness, PluginHarness};

use super::*;

/// The disk below a directory, if it is one.
fn disk(directory: &std::path::Path) -> Option<PathBuf> {
    let number = fs::metadata(directory).unwrap().dev();
    let (major, minor) = (number >> 8 & 0xfff, number & 0xff);
    let name = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let disk = PathBuf::from("/dev").join(name.file_name()?);
    let is_whole = !PathBuf::from(format!("/sys/dev/block/{major}:{minor}/partition")).exists();
    (is_whole && disk.exists()).then_some(disk)
}

#[test]
fn what_a_container_writes_is_counted_by_device() {
    let devices: Vec<PathBuf> = disk(&std::env::temp_dir()).into_iter().collect();
    let Some(harness) = CgroupHarness::<Blkio>::new(CONTROLLERS, json!({ "devices": devices })) else {
        return;
    };
    let prepared = harness.prepare().unwrap();
    let directory = harness.cgroup().directory().to_owned();
    assert_eq!(prepared.launch.cgroups, if harness.is_v1() { vec![directory] } else { Vec::new() });
    let before = harness.usage("web").unwrap();
    let throttling = |usage: &Usage| usage.0["blkio_statistics"]["throttling"].as_array().unwrap().clone();
    assert_eq!(throttling(&before)[0]["io_service_bytes"], json!([{ "op": "TOTAL", "value": 0 }]));
    if let [disk] = &*devices {
        let file = harness.directory().join("written");
        let write = format!("dd if=/dev/zero of='{}' bs=1M count=3 oflag=direct 2>/dev/null", file.display());
        let shell = harness.spawn(&format!("{write} && echo ready; read end"));
        let usage = throttling(&harness.usage("web").unwrap());
        let Device { major, minor } = Device::open(disk).unwrap();
        let device = json!({ "major_number": major, "minor_number": minor });
        let of_disk = usage.iter().find(|message| message["device"] == device).unwrap();
        let bytes = of_disk["io_service_bytes"].as_array().unwrap();
        let written = bytes.iter().find(|value| value["op"] == "WRITE").unwrap()["value"].as_u64().unwrap();
        assert!((3 << 20..6 << 20).contains(&written), "{usage:?}");
        shell.end();
    }
    while harness.cleanup("web").is_err() {
        std::thread::yield_now();
    }
    assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
    harness.cleanup("web").unwrap();
}

#[test]
fn a_running_container_is_still_measured_after_recovery_and_a_shared_cgroup_is_left_alone() {
    let Some(harness) = CgroupHarness::<Blkio>::new(CONTROLLERS, json!({ "psi": true })) else { return };
    harness.prepare().unwrap();
    let sharing = harness.sharing("web.shared");
    assert_eq!(harness.prepare_container(&sharing).unwrap().launch, LaunchInfo::default());
    assert_eq!(harness.usage("web.shared").unwrap(), Usage::default());
    let next = harness.restart(json!({}), &["web"], &["orphan"]).unwrap();
    assert!(next.usage("web").unwrap().0.contains_key("blkio_statistics"));
    for id in ["orphan", "web.shared", "web"] {
        next.cleanup(id).unwrap();
        next.cleanup(id).unwrap();
    }
    assert_eq!(harness.cgroup().directory().exists(), !harness.is_v1());
}

#[test]
fn a_host_without_the_controller_is_named() {
    let harness = PluginHarness::<Blkio>::isolator(json!({})).unwrap();
    let refused = harness.prepare("web").unwrap_err();
    assert!(refused.message.contains("no cgroup controller `blkio`"), "{refused}");
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "devices": ["/dev/null"] }), "`/dev/null` of `devices` is not a block device"),
        (json!({ "devices": ["/dev/none"] }), "cannot read `/dev/none` of `devices`"),
        (json!({ "weight": 1 }), "unknown field `weight`"),
    ] {
        let refused = PluginHarness::<Blkio>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
