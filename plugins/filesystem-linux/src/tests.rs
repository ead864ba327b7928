use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_plugin_api::testing::{self, PluginHarness};

use super::*;

fn harness(config: Json) -> PluginHarness<Filesystem> {
    PluginHarness::isolator(config).unwrap()
}

/// A container with a root file system of its own.
fn with_rootfs(harness: &PluginHarness<Filesystem>, id: &str) -> (Container, PathBuf) {
    let rootfs = harness.directory().join("image");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o751)).unwrap();
    let mut container = harness.container(id);
    container.rootfs = Some(rootfs.clone());
    (container, fs::canonicalize(rootfs).unwrap())
}

#[test]
fn without_a_root_file_system_only_a_mount_namespace_is_created() {
    let harness = harness(json!({}));
    let launch = harness.prepare("web").unwrap().launch;
    assert_eq!(launch.clone_namespaces, [Namespace::Mount].into());
    assert_eq!((launch.root, launch.operations, launch.sandbox_path), (None, Vec::new(), None));
}

#[test]
fn changes_are_written_to_a_layer_that_is_removed_by_cleanup() {
    let harness = harness(json!({}));
    let (container, rootfs) = with_rootfs(&harness, "web");
    let launch = harness.prepare_container(&container).unwrap().launch;
    let (upper, work) = (container.scratch.join("upper"), container.scratch.join("work"));
    let expected = Root::Overlay { lower: vec![rootfs.clone()], upper: upper.clone(), work: work.clone() };
    assert_eq!(launch.root, Some(expected));
    assert_eq!(launch.sandbox_path.as_deref(), Some("/mnt/mesos/sandbox"));

    let (of_upper, of_rootfs) = (fs::metadata(&upper).unwrap(), fs::metadata(&rootfs).unwrap());
    assert_eq!(of_upper.mode() & 0o7777, 0o751);
    assert_eq!((of_upper.uid(), of_upper.gid()), (of_rootfs.uid(), of_rootfs.gid()));
    assert_eq!(fs::metadata(&work).unwrap().mode() & 0o7777, 0o700);

    // As containers and the kernel leave them: inaccessible directories, and links to files outside of the layer.
    fs::create_dir_all(upper.join("a/b")).unwrap();
    symlink("/etc", upper.join("a/etc")).unwrap();
    symlink(&rootfs, work.join("image")).unwrap();
    fs::create_dir(work.join("work")).unwrap();
    fs::set_permissions(work.join("work"), fs::Permissions::from_mode(0o000)).unwrap();
    harness.cleanup("web").unwrap();
    assert!(!upper.exists() && !work.exists());
    assert!(container.scratch.is_dir(), "the scratch directory is the agent's");
    assert!(rootfs.join("bin").is_dir() && Path::new("/etc/passwd").exists());
    harness.cleanup("web").unwrap();
}

/// With a real mount: changes of a container do not reach the lower directory.
#[test]
fn the_kernel_mounts_the_layer_and_the_directory_is_not_modified() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return testing::skip("only root can mount");
    }
    let harness = harness(json!({}));
    let (container, rootfs) = with_rootfs(&harness, "web");
    fs::write(rootfs.join("bin/tool"), "old").unwrap();
    let launch = harness.prepare_container(&container).unwrap().launch;
    let Some(Root::Overlay { lower, upper, work }) = launch.root else { panic!("{:?}", launch.root) };
    let merged = harness.directory().join("merged");
    fs::create_dir(&merged).unwrap();
    let script = "mount -t overlay -o \"lowerdir=$0,upperdir=$1,workdir=$2\" web \"$3\" && cd \"$3\" && \
                  stat -c %a . && cat bin/tool && echo new > bin/tool && mkdir data && rm -r bin && ls";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .args([&lower[0], &upper, &work, &merged])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "751\nolddata\n", "{errors}");
    harness.cleanup("web").unwrap();
    assert_eq!(fs::read_to_string(rootfs.join("bin/tool")).unwrap(), "old");
    assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&container.scratch).unwrap().count(), 0);
}

#[test]
fn a_layer_that_was_replaced_by_a_link_or_file_is_removed_without_following_it() {
    let harness = harness(json!({}));
    let (container, rootfs) = with_rootfs(&harness, "web");
    harness.prepare_container(&container).unwrap();
    fs::remove_dir(container.scratch.join("upper")).unwrap();
    symlink(&rootfs, container.scratch.join("upper")).unwrap();
    fs::remove_dir(container.scratch.join("work")).unwrap();
    fs::write(container.scratch.join("work"), "").unwrap();
    harness.cleanup("web").unwrap();
    assert_eq!(fs::read_dir(&container.scratch).unwrap().count(), 0);
    assert!(rootfs.join("bin").is_dir());
}

#[test]
fn an_existing_layer_fails_the_launch() {
    let harness = harness(json!({}));
    let (container, _) = with_rootfs(&harness, "web");
    fs::create_dir(container.scratch.join("upper")).unwrap();
    let refused = harness.prepare_container(&container).unwrap_err();
    assert!(refused.message.contains("upper"), "{refused}");
    harness.cleanup("web").unwrap();
    harness.prepare_container(&container).unwrap();
}

#[test]
fn changes_can_be_written_to_the_directory_itself() {
    let harness = harness(json!({ "writes": "direct", "sandbox_directory": "/sandbox" }));
    let (container, rootfs) = with_rootfs(&harness, "web");
    let launch = harness.prepare_container(&container).unwrap().launch;
    assert_eq!(launch.root, Some(Root::Directory { path: rootfs }));
    assert_eq!(launch.sandbox_path.as_deref(), Some("/sandbox"));
    assert!(!container.scratch.join("upper").exists());
}

#[test]
fn operations_on_a_mount_come_after_it() {
    let harness = harness(json!({}));
    let (container, _) = with_rootfs(&harness, "web");
    let operations = harness.prepare_container(&container).unwrap().launch.operations;
    let place = |wanted: &str| {
        let found = operations.iter().position(|operation| match operation {
            Operation::Mount { target, .. } | Operation::Bind { target, .. } => target == Path::new(wanted),
            Operation::Device { path, .. }
            | Operation::Symlink { path, .. }
            | Operation::Mask { path }
            | Operation::ReadOnly { path } => path == Path::new(wanted),
            _ => false,
        });
        found.unwrap_or_else(|| panic!("no operation at `{wanted}`"))
    };
    for [earlier, later] in [
        ["/proc", "/proc/sys"],
        ["/proc", "/proc/kcore"],
        ["/sys", "/sys/fs/cgroup"],
        ["/sys", "/sys/firmware"],
        ["/dev", "/dev/pts"],
        ["/dev", "/dev/shm"],
        ["/dev", "/dev/null"],
        ["/dev/pts", "/dev/ptmx"],
        ["/dev/ptmx", "/mnt/mesos/sandbox"],
    ] {
        assert!(place(earlier) < place(later), "`{later}` comes before `{earlier}`");
    }
    let sandbox = Operation::Bind {
        source: container.sandbox.clone(),
        target: "/mnt/mesos/sandbox".into(),
        recursive: true,
        flags: ["nodev".to_owned(), "nosuid".to_owned()].into(),
    };
    assert!(operations.contains(&sandbox));
    let Operation::Mount { options, .. } = &operations[place("/dev/shm")] else { panic!("no mount") };
    assert_eq!(options, &["mode=1777", "size=67108864"]);
    let Operation::Mount { flags, .. } = &operations[place("/sys")] else { panic!("no mount at `/sys`") };
    assert!(flags.contains("ro"));
}

#[test]
fn paths_are_masked_unless_the_container_shares_the_pid_namespace_of_the_host() {
    let harness = harness(json!({}));
    let masks = |container: &Container| {
        let operations = harness.prepare_container(container).unwrap().launch.operations;
        harness.cleanup(container.id.as_str()).unwrap();
        operations.iter().filter(|operation| matches!(operation, Operation::Mask { .. })).count()
    };
    let (mut container, _) = with_rootfs(&harness, "web");
    assert_eq!(masks(&container), 11);
    container.linux.share_pid_namespace = true;
    assert_eq!(masks(&container), 0);
    let (mut nested, _) = with_rootfs(&harness, "web.probe");
    nested.linux.share_pid_namespace = true;
    assert_eq!(masks(&nested), 11, "it shares with its parent, not with the host");
}

#[test]
fn a_debug_container_enters_the_mount_namespace_of_its_parent() {
    let harness = harness(json!({}));
    let (mut container, _) = with_rootfs(&harness, "web.shell");
    container.class = ContainerClass::Debug;
    let refused = harness.prepare_container(&container).unwrap_err();
    assert!(refused.message.contains("debug container"), "{refused}");
    container.rootfs = None;
    let launch = harness.prepare_container(&container).unwrap().launch;
    assert_eq!(launch.enter_namespaces, [Namespace::Mount].into());
    assert!(launch.clone_namespaces.is_empty());
}

#[test]
fn the_error_for_an_unusable_root_file_system_names_it() {
    let harness = harness(json!({}));
    let file = harness.directory().join("file");
    fs::write(&file, "").unwrap();
    for rootfs in [Path::new("image"), Path::new("/no/such/directory"), &file] {
        let mut container = harness.container("web");
        container.rootfs = Some(rootfs.to_owned());
        let refused = harness.prepare_container(&container).unwrap_err();
        let named = format!("`{}`", rootfs.display());
        assert!(refused.message.contains(&named), "{refused}");
    }
    harness.cleanup("web").unwrap();
}

#[test]
fn cleanup_of_an_unknown_container_succeeds_twice() {
    let harness = harness(json!({}));
    harness.cleanup("unknown").unwrap();
    harness.cleanup("unknown").unwrap();
}

#[test]
fn invalid_configurations_are_rejected() {
    for (config, expected) in [
        (json!({ "writes": "nowhere" }), "unknown variant `nowhere`, expected `overlay` or `direct`"),
        (json!({ "sandbox_directory": "mnt" }), "`sandbox_directory` is `mnt`; it must be an absolute path"),
        (json!({ "sandbox_directory": "/" }), "other than `/`"),
        (json!({ "shm_size": "0" }), "`shm_size` is 0"),
        (json!({ "sandbox": "/mnt" }), "unknown field `sandbox`"),
    ] {
        let refused = PluginHarness::<Filesystem>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(expected), "{config} gave: {refused}");
    }
}
