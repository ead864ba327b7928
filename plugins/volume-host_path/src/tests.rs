use std::os::unix::fs::symlink;

use cofferdam_plugin_api::model::{AgentInfo, FEATURES, Volume};
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

fn volume(path: impl Into<PathBuf>, target: &str) -> Volume {
    let source = VolumeSource::HostPath { path: path.into(), propagation: None };
    Volume { container_path: target.into(), read_only: false, source }
}

/// Number of descriptors, and the operations.
fn prepare(
    harness: &PluginHarness<HostPaths>,
    rootfs: bool,
    volume: Volume,
) -> Result<(usize, Vec<Operation>), Refused> {
    let mut container = harness.container("web");
    container.rootfs = rootfs.then(|| "/image".into());
    container.sandbox_path = rootfs.then(|| "/mnt/sandbox".into());
    container.volumes.push(volume);
    let (reply, descriptors) = harness.prepare_with_descriptors(&container)?;
    Ok((descriptors.len(), reply.launch.operations))
}

fn bind(target: impl Into<PathBuf>, flags: &[&str]) -> Operation {
    let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    Operation::BindDescriptor { index: 0, target: target.into(), recursive: true, flags }
}

#[test]
fn a_path_is_mounted_by_descriptor_at_its_target() {
    let harness = PluginHarness::<HostPaths>::isolator(json!({})).unwrap();
    let directory = harness.directory().to_owned();
    for (target, expected) in [("/data", "/data"), ("data/one", "/mnt/sandbox/data/one")] {
        assert_eq!(
            prepare(&harness, true, volume(&directory, target)).unwrap(),
            (1, vec![bind(expected, &[])])
        );
    }
    let read_only = Volume { read_only: true, ..volume("/etc/passwd", "/data") };
    let private =
        Operation::Propagation { path: "/data".into(), propagation: Propagation::Private, recursive: true };
    let expected = vec![bind("/data", &["ro"]), private.clone()];
    assert_eq!(prepare(&harness, true, read_only).unwrap(), (1, expected), "later mounts would be writable");
    // Without a root file system, the mount point is created in the sandbox.
    let sandbox = harness.container("web").sandbox;
    for (source, target) in [(directory.as_path(), "data/one"), (Path::new("/etc/passwd"), "data/file")] {
        let outcome = prepare(&harness, false, volume(source, target)).unwrap();
        assert_eq!(outcome, (1, vec![bind(sandbox.join(target), &[])]));
    }
    assert!(sandbox.join("data/one").is_dir() && sandbox.join("data/file").is_file());
    assert_eq!(prepare(&harness, false, volume(&directory, "/usr")).unwrap(), (1, vec![bind("/usr", &[])]));
    let source = VolumeSource::HostPath { path: "/usr".into(), propagation: Some("private".into()) };
    let outcome = prepare(&harness, true, Volume { source, ..volume("/usr", "/data") }).unwrap();
    assert_eq!(outcome, (1, vec![bind("/data", &[]), private]));
}

#[test]
fn only_what_is_allowed_is_created_and_mounted_also_by_links() {
    let base = PluginHarness::<HostPaths>::isolator(json!({})).unwrap();
    let (inside, outside) = (base.directory().join("inside"), base.directory().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, inside.join("link")).unwrap();
    symlink(&inside, outside.join("link")).unwrap();
    fs::create_dir(base.directory().join("inside-too")).unwrap();
    let config = json!({ "allowed_paths": [inside], "force_creation": [inside, outside] });
    let harness = PluginHarness::<HostPaths>::isolator(config).unwrap();
    let of = |path: PathBuf| prepare(&harness, true, volume(path, "/data"));
    assert!(of(inside.clone()).is_ok());
    assert!(of(inside.join("new/directory")).is_ok());
    assert!(inside.join("new/directory").is_dir());
    assert!(of(outside.join("link/new")).is_ok(), "it leads to what is allowed");
    for (path, expected) in [
        (outside.clone(), "in none of the `allowed_paths`"),
        (inside.join("link"), "in none of the `allowed_paths`"),
        (base.directory().join("inside-too"), "in none of the `allowed_paths`"),
        (inside.join("link/missing"), "symbolic link"),
        (inside.join("../outside"), "without `..`"),
        (outside.join("missing"), "in none of the `allowed_paths`"),
        (base.directory().join("missing"), "is in no directory of `force_creation`"),
    ] {
        let refused = of(path.clone()).unwrap_err();
        assert!(refused.message.contains(expected), "{} gave: {refused}", path.display());
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn other_requests_are_refused() {
    let harness = PluginHarness::<HostPaths>::isolator(json!({})).unwrap();
    let shared = VolumeSource::HostPath { path: "/usr".into(), propagation: Some("shared".into()) };
    let slave = VolumeSource::HostPath { path: "/usr".into(), propagation: Some("slave".into()) };
    let slave = Volume { source: slave, read_only: true, ..volume("/usr", "/data") };
    for (rootfs, volume, expected) in [
        (true, slave, "request one of both"),
        (true, volume("usr", "/data"), "expected an absolute path"),
        (true, volume("/proc/self/cwd", "/data"), "symbolic link"),
        (true, volume("/usr", "/data/../etc"), "contains `..`"),
        (true, volume("/usr", "../../etc"), "contains `..`"),
        (true, volume("/usr", "/"), "not the path of a file"),
        (true, volume("/usr", "."), "not the path of a file"),
        (true, volume("/usr", ""), "not the path of a file"),
        (false, volume("/usr", "/no/such/directory"), "does not exist on the host"),
        (true, Volume { source: shared, ..volume("/usr", "/data") }, "not supported"),
    ] {
        let refused = prepare(&harness, rootfs, volume.clone()).unwrap_err();
        assert!(refused.message.contains(expected), "{volume:?} gave: {refused}");
    }
    let mut container = harness.container("pod.shell");
    container.class = ContainerClass::Debug;
    container.volumes.push(volume("/usr", "/data"));
    assert!(harness.prepare_container(&container).unwrap_err().message.contains("debug container"));
}

#[test]
fn a_mount_point_in_a_sandbox_is_created_through_no_link() {
    let harness = PluginHarness::<HostPaths>::isolator(json!({})).unwrap();
    let outside = harness.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    let sandbox = harness.container("web").sandbox;
    symlink(&outside, sandbox.join("link")).unwrap();
    let refused = prepare(&harness, false, volume("/usr", "link/new")).unwrap_err();
    assert!(refused.message.contains("`link/new`"), "{refused}");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn relative_paths_are_left_to_the_isolator_of_sandbox_paths() {
    let agent = AgentInfo {
        features: FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
        chain: vec![OF_SANDBOX.to_owned()],
        ..AgentInfo::default()
    };
    let harness = PluginHarness::<HostPaths>::isolator_in(agent, json!({})).unwrap();
    assert_eq!(prepare(&harness, true, volume("data", "/data")).unwrap(), (0, Vec::new()));
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "allowed_paths": ["data"] }), "`allowed_paths` has `data`; expected an absolute path"),
        (json!({ "force_creation": ["/no/such/directory"] }), "`force_creation` has `/no/such/directory`"),
        (json!({ "paths": [] }), "unknown field `paths`"),
    ] {
        let refused = PluginHarness::<HostPaths>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<HostPaths>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
