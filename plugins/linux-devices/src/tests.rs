use cofferdam_plugin_api::model::Volume;
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

fn harness() -> PluginHarness<Devices> {
    PluginHarness::isolator(json!({ "allowed_devices": [
        { "path": "/dev/zero", "access": "r" },
        { "path": "/dev/full" },
        { "path": "/dev/random", "on_request": true },
    ] }))
    .unwrap()
}

fn device(path: &str, target: &str, read_only: bool) -> Volume {
    Volume { container_path: target.into(), read_only, source: VolumeSource::Device { path: path.into() } }
}

/// Path, major and minor number and mode of each node.
fn prepare(rootfs: bool, volumes: Vec<Volume>) -> Result<Vec<(String, u32, u32, u32)>, Refused> {
    let harness = harness();
    let mut container = harness.container("web");
    container.rootfs = rootfs.then(|| "/image".into());
    container.volumes = volumes;
    let operations = harness.prepare_container(&container)?.launch.operations;
    let show = |operation: &Operation| match operation {
        Operation::Device { path, kind: DeviceKind::Char, major, minor, mode, owner } => {
            assert_eq!(*owner, Owner::default());
            (path.display().to_string(), *major, *minor, *mode)
        }
        other => panic!("{other:?}"),
    };
    Ok(operations.iter().map(show).collect())
}

fn node(path: &str, minor: u32, mode: u32) -> (String, u32, u32, u32) {
    (path.to_owned(), 1, minor, mode)
}

#[test]
fn a_container_with_a_root_file_system_has_the_devices() {
    let always = [node("/dev/zero", 5, 0o444), node("/dev/full", 7, 0o666)];
    assert_eq!(prepare(true, Vec::new()).unwrap(), always);
    assert_eq!(prepare(false, Vec::new()).unwrap(), []);
    let requested =
        vec![device("/dev/random", "/dev/noise/one", true), device("/dev/full", "/dev/zero", false)];
    assert_eq!(
        prepare(true, requested).unwrap(),
        [node("/dev/noise/one", 8, 0o444), node("/dev/zero", 7, 0o666), node("/dev/full", 7, 0o666)]
    );
}

#[test]
fn other_requests_are_refused() {
    for (rootfs, volume, expected) in [
        (true, device("/dev/null", "/dev/null", false), "not among `allowed_devices`"),
        (true, device("/dev/../dev/zero", "/dev/zero", false), "not among `allowed_devices`"),
        (true, device("/dev/zero", "/etc/zero", false), "expected a path below `/dev`"),
        (true, device("/dev/zero", "/dev/../etc/zero", false), "expected a path below `/dev`"),
        (true, device("/dev/zero", "dev/zero", false), "expected a path below `/dev`"),
        (true, device("/dev/zero", "/dev", false), "expected a path below `/dev`"),
        (false, device("/dev/zero", "/dev/zero", false), "without a root file system"),
    ] {
        let refused = prepare(rootfs, vec![volume]).unwrap_err();
        assert!(refused.message.contains(expected), "{expected}: {refused}");
    }
    let twice = vec![device("/dev/zero", "/dev/x", false), device("/dev/full", "/dev/x", false)];
    assert!(prepare(true, twice).unwrap_err().message.contains("two devices at `/dev/x`"));
}

#[test]
fn invalid_configurations_are_rejected() {
    for (device, expected) in [
        (json!({ "path": "/dev/no-such-device" }), "`/dev/no-such-device`\nit cannot be found"),
        (json!({ "path": "/etc/passwd" }), "expected a path below `/dev`"),
        (json!({ "path": "/dev/pts" }), "neither a character nor a block device"),
        (json!({ "path": "/dev/zero", "access": "rwm" }), "expected `r`, `w` or `rw`"),
        (json!({ "path": "/dev/zero", "mode": "r" }), "unknown field `mode`"),
    ] {
        let config = json!({ "allowed_devices": [device] });
        let refused = PluginHarness::<Devices>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
    let twice = json!({ "allowed_devices": [{ "path": "/dev/zero" }, { "path": "/dev/zero" }] });
    assert!(PluginHarness::<Devices>::isolator(twice).err().unwrap().message.contains("twice"));
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = harness();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
