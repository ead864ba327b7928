use std::os::unix::fs::{PermissionsExt, symlink};

use cofferdam_plugin_api::model::{LaunchInfo, Volume};
use cofferdam_plugin_api::testing::{PluginHarness, Refused};

use super::*;

fn volume(path: impl Into<PathBuf>, target: impl Into<PathBuf>, read_only: bool) -> Volume {
    let source = VolumeSource::HostPath { path: path.into(), propagation: None };
    Volume { container_path: target.into(), read_only, source }
}

/// The launch information, and where the descriptors lead to.
fn prepare(
    harness: &PluginHarness<Shared>,
    rootfs: bool,
    volumes: Vec<Volume>,
) -> Result<(LaunchInfo, Vec<PathBuf>), Refused> {
    let mut container = harness.container("web");
    container.rootfs = rootfs.then(|| "/image".into());
    container.volumes = volumes;
    let (reply, descriptors) = harness.prepare_with_descriptors(&container)?;
    let paths = descriptors.iter().map(|descriptor| fs::read_link(of_descriptor(descriptor)).unwrap());
    Ok((reply.launch, paths.collect()))
}

#[test]
fn a_directory_of_the_sandbox_replaces_one_of_the_host_with_its_permissions() {
    let harness = PluginHarness::<Shared>::isolator(json!({})).unwrap();
    let covered = harness.directory().join("covered");
    fs::create_dir(&covered).unwrap();
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o1777)).unwrap();
    let volumes = vec![volume("private/tmp", &covered, false), volume("/usr", "/srv", true)];
    let (launch, paths) = prepare(&harness, false, volumes).unwrap();
    let sandbox = fs::canonicalize(harness.container("web").sandbox).unwrap();
    assert_eq!(paths, [sandbox.join("private/tmp"), PathBuf::from("/usr")]);
    assert_eq!(fs::metadata(&paths[0]).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert_eq!(launch.clone_namespaces, [Namespace::Mount].into());
    let bind = |index, target: &Path, flags: &[&str]| Operation::BindDescriptor {
        index,
        target: target.to_owned(),
        recursive: true,
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
    };
    assert_eq!(launch.operations, [bind(0, &covered, &[]), bind(1, Path::new("/srv"), &["ro"])]);
    assert_eq!(prepare(&harness, true, Vec::new()).unwrap().0, LaunchInfo::default());
}

#[test]
fn other_requests_are_refused() {
    let harness = PluginHarness::<Shared>::isolator(json!({})).unwrap();
    let sandbox = harness.container("web").sandbox;
    symlink("/etc", sandbox.join("link")).unwrap();
    let twice = |first: &str, second: &str| vec![volume("a", first, false), volume("b", second, false)];
    for (rootfs, volumes, expected) in [
        (true, vec![volume("tmp", "/tmp", false)], "root file system of its own"),
        (false, vec![volume("tmp", "/no/such/directory", false)], "has to exist on the host"),
        (false, vec![volume("/no/such/directory", "/srv", false)], "No such file"),
        (false, vec![volume("tmp", "/etc/passwd", false)], "is not a directory"),
        (false, vec![volume("tmp", "tmp", false)], "expected an absolute path"),
        (false, vec![volume("tmp", "/", false)], "expected an absolute path"),
        (false, vec![volume("tmp", "/tmp/../etc", false)], "expected an absolute path"),
        (false, vec![volume("../tmp", "/srv", false)], "leads out of the directory"),
        (false, vec![volume("link", "/srv", false)], "symbolic link"),
        (false, vec![volume("tmp", &sandbox, false)], "it would hide"),
        (false, vec![volume("tmp", sandbox.parent().unwrap(), false)], "it would hide"),
        (false, twice("/usr/bin", "/usr"), "what is at `/usr/bin`"),
        (false, twice("/usr", "/usr/bin"), "what is at `/usr`"),
        (false, twice("/usr", "/usr"), "what is at `/usr`"),
    ] {
        let refused = prepare(&harness, rootfs, volumes.clone()).unwrap_err();
        assert!(refused.message.contains(expected), "{volumes:?} gave: {refused}");
    }
    // A name that only begins alike is another directory.
    assert!(prepare(&harness, false, twice("/usr/lib", "/usr/libexec")).is_ok());
}

#[test]
fn one_place_of_several_names_is_one_place() {
    let harness = PluginHarness::<Shared>::isolator(json!({})).unwrap();
    let covered = harness.directory().join("covered");
    fs::create_dir_all(covered.join("below")).unwrap();
    let link = harness.directory().join("link");
    symlink(&covered, &link).unwrap();
    let (launch, _) = prepare(&harness, false, vec![volume("a", &link, false)]).unwrap();
    assert!(
        matches!(&launch.operations[..], [Operation::BindDescriptor { target, .. }] if *target == covered)
    );
    let linked_sandbox = harness.directory().join("sandboxes");
    symlink(harness.container("web").sandbox, &linked_sandbox).unwrap();
    for targets in [vec![&covered, &link.join("below")], vec![&link, &covered], vec![&linked_sandbox]] {
        let volumes = targets.iter().map(|&target| volume("a", target, false)).collect();
        let error = prepare(&harness, false, volumes).unwrap_err().to_string();
        assert!(error.contains("it would hide, or be hidden by"), "{error}");
    }
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = PluginHarness::<Shared>::isolator(json!({})).unwrap();
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}
