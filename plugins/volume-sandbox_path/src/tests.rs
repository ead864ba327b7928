use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use cofferdam_plugin_api::model::{AgentInfo, Container, FEATURES, Volume};
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

fn harness() -> PluginHarness<SandboxPaths> {
    PluginHarness::isolator(json!({})).unwrap()
}

fn volume(parent: bool, path: &str, target: &str) -> Volume {
    let source = VolumeSource::SandboxPath { parent, path: path.into() };
    Volume { container_path: target.into(), read_only: false, source }
}

fn container(harness: &PluginHarness<SandboxPaths>, id: &str, volume: Volume) -> Container {
    let mut container = harness.container(id);
    container.rootfs = Some("/image".into());
    container.sandbox_path = Some("/mnt/sandbox".into());
    container.volumes.push(volume);
    container
}

/// Where the first descriptor leads to, and the operations.
fn prepare(
    harness: &PluginHarness<SandboxPaths>,
    id: &str,
    volume: Volume,
) -> Result<(String, Vec<Operation>), Refused> {
    let container = container(harness, id, volume);
    let (reply, descriptors) = harness.prepare_with_descriptors(&container)?;
    let path = fs::read_link(format!("/proc/self/fd/{}", descriptors[0].as_raw_fd())).unwrap();
    Ok((path.display().to_string(), reply.launch.operations))
}

fn bind(target: &str, flags: &[&str]) -> Vec<Operation> {
    let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    vec![Operation::BindDescriptor { index: 0, target: target.into(), recursive: true, flags }]
}

/// A harness with a container `pod`, whose sandbox is returned.
fn with_pod() -> (PluginHarness<SandboxPaths>, std::path::PathBuf) {
    let harness = harness();
    harness.prepare("pod").unwrap();
    let sandbox = harness.container("pod").sandbox;
    (harness, fs::canonicalize(sandbox).unwrap())
}

#[test]
fn a_path_of_the_own_or_the_parents_sandbox_is_mounted() {
    let (harness, sandbox) = with_pod();
    let at = |name: &str| sandbox.join(name).display().to_string();
    let common = ["nodev", "nosuid"];
    let outcome = prepare(&harness, "pod", volume(false, "data/new", "/data")).unwrap();
    assert_eq!(outcome, (at("data/new"), bind("/data", &common)));
    assert!(sandbox.join("data/new").is_dir());
    fs::write(sandbox.join("file"), "").unwrap();
    let read_only = Volume { read_only: true, ..volume(true, "file", "/etc/file") };
    let outcome = prepare(&harness, "pod.web", read_only).unwrap();
    assert_eq!(outcome, (at("file"), bind("/etc/file", &["nodev", "nosuid", "ro"])));
    // A relative target is in the container's own sandbox.
    let outcome = prepare(&harness, "pod.web", volume(true, "shared", "data/of-pod")).unwrap();
    assert_eq!(outcome, (at("shared"), bind("/mnt/sandbox/data/of-pod", &common)));
    // The older form.
    let source = VolumeSource::HostPath { path: "old".into(), propagation: None };
    let old = Volume { container_path: "/data".into(), read_only: false, source };
    assert_eq!(prepare(&harness, "pod", old).unwrap(), (at("old"), bind("/data", &common)));
}

#[test]
fn no_path_leads_out_of_the_sandbox() {
    let (harness, sandbox) = with_pod();
    let outside = harness.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, sandbox.join("link")).unwrap();
    symlink("data", sandbox.join("inner")).unwrap();
    fs::create_dir(sandbox.join("data")).unwrap();
    let _socket = UnixListener::bind(sandbox.join("socket")).unwrap();
    for id in ["pod", "pod.web"] {
        for (path, expected) in [
            ("link", "symbolic link"),
            ("link/new", "symbolic link"),
            ("inner", "symbolic link"),
            ("../outside", "leads out of the directory"),
            ("data/../../outside", "leads out of the directory"),
            ("/etc", "expected a path relative to the sandbox"),
            ("", "expected a path relative to the sandbox"),
            ("socket", "not a regular file"),
        ] {
            let refused = prepare(&harness, id, volume(id != "pod", path, "/data")).unwrap_err();
            assert!(refused.message.contains(expected), "{path} gave: {refused}");
        }
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn other_requests_are_refused() {
    let (harness, _) = with_pod();
    let of_host = VolumeSource::HostPath { path: "/usr".into(), propagation: None };
    for (id, class, volume, expected) in [
        ("pod", ContainerClass::Default, volume(true, "data", "/data"), "has no parent"),
        ("pod", ContainerClass::Default, volume(false, "data", "data"), "request an absolute path"),
        ("pod.shell", ContainerClass::Debug, volume(true, "data", "/data"), "debug container"),
        (
            "pod",
            ContainerClass::Default,
            Volume { source: of_host, ..volume(false, "", "/data") },
            "add it to the chain",
        ),
    ] {
        let mut container = container(&harness, id, volume);
        container.class = class;
        let refused = harness.prepare_container(&container).unwrap_err();
        assert!(refused.message.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn absolute_paths_are_left_to_the_isolator_of_host_paths() {
    let agent = AgentInfo {
        features: FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
        chain: vec![OF_HOST.to_owned()],
        ..AgentInfo::default()
    };
    let harness = PluginHarness::<SandboxPaths>::isolator_in(agent, json!({})).unwrap();
    let source = VolumeSource::HostPath { path: "/usr".into(), propagation: None };
    let volume = Volume { container_path: "/data".into(), read_only: false, source };
    let container = container(&harness, "web", volume);
    assert_eq!(harness.prepare_container(&container).unwrap().launch.operations, []);
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = harness();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
