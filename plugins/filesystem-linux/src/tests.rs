use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_plugin_api::testing::{self, PluginHarness};

use super::*;

fn bench(config: Json) -> PluginHarness<Filesystem> {
    PluginHarness::isolator(config).unwrap()
}

/// A container with a root file system of its own.
fn with_rootfs(bench: &PluginHarness<Filesystem>, id: &str) -> (Container, PathBuf) {
    let rootfs = bench.directory().join("image");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o751)).unwrap();
    let mut container = bench.container(id);
    container.rootfs = Some(rootfs.clone());
    (container, fs::canonicalize(rootfs).unwrap())
}

#[test]
fn without_a_root_file_system_there_are_only_mounts_of_its_own() {
    let bench = bench(json!({}));
    let launch = bench.prepare("web").unwrap().launch;
    assert_eq!(launch.clone_namespaces, [Namespace::Mount].into());
    assert_eq!((launch.root, launch.operations, launch.working_directory), (None, Vec::new(), None));
}

#[test]
fn changes_are_written_to_a_layer_that_is_removed_by_cleanup() {
    let bench = bench(json!({}));
    let (container, rootfs) = with_rootfs(&bench, "web");
    let launch = bench.prepare_container(&container).unwrap().launch;
    let (upper, work) = (container.scratch.join("upper"), container.scratch.join("work"));
    let expected = Root::Overlay { lower: vec![rootfs.clone()], upper: upper.clone(), work: work.clone() };
    assert_eq!(launch.root, Some(expected));
    assert_eq!(launch.working_directory.as_deref(), Some("/mnt/mesos/sandbox"));

    let (of_upper, of_rootfs) = (fs::metadata(&upper).unwrap(), fs::metadata(&rootfs).unwrap());
    assert_eq!(of_upper.mode() & 0o7777, 0o751);
    assert_eq!((of_upper.uid(), of_upper.gid()), (of_rootfs.uid(), of_rootfs.gid()));
    assert_eq!(fs::metadata(&work).unwrap().mode() & 0o7777, 0o700);

    // What containers and the kernel leave there: closed directories, links to where they must not lead.
    fs::create_dir_all(upper.join("a/b")).unwrap();
    symlink("/etc", upper.join("a/etc")).unwrap();
    symlink(&rootfs, work.join("image")).unwrap();
    fs::create_dir(work.join("work")).unwrap();
    fs::set_permissions(work.join("work"), fs::Permissions::from_mode(0o000)).unwrap();
    bench.cleanup("web").unwrap();
    assert!(!upper.exists() && !work.exists());
    assert!(container.scratch.is_dir(), "the scratch directory is the agent's");
    assert!(rootfs.join("bin").is_dir() && Path::new("/etc/passwd").exists());
    bench.cleanup("web").unwrap();
}

/// With a real mount: changes of a container do not reach the lower directory.
#[test]
fn the_kernel_mounts_the_layer_and_the_directory_is_not_modified() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return testing::skip("only root can mount");
    }
    let bench = bench(json!({}));
    let (container, rootfs) = with_rootfs(&bench, "web");
    fs::write(rootfs.join("bin/tool"), "old").unwrap();
    let launch = bench.prepare_container(&container).unwrap().launch;
    let Some(Root::Overlay { lower, upper, work }) = launch.root else { panic!("{:?}", launch.root) };
    let merged = bench.directory().join("merged");
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
    bench.cleanup("web").unwrap();
    assert_eq!(fs::read_to_string(rootfs.join("bin/tool")).unwrap(), "old");
    assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&container.scratch).unwrap().count(), 0);
}

#[test]
fn a_layer_that_became_something_else_is_removed_and_not_followed() {
    let bench = bench(json!({}));
    let (container, rootfs) = with_rootfs(&bench, "web");
    bench.prepare_container(&container).unwrap();
    fs::remove_dir(container.scratch.join("upper")).unwrap();
    symlink(&rootfs, container.scratch.join("upper")).unwrap();
    fs::remove_dir(container.scratch.join("work")).unwrap();
    fs::write(container.scratch.join("work"), "").unwrap();
    bench.cleanup("web").unwrap();
    assert_eq!(fs::read_dir(&container.scratch).unwrap().count(), 0);
    assert!(rootfs.join("bin").is_dir());
}

#[test]
fn a_layer_that_is_there_already_is_not_shown_to_the_container() {
    let bench = bench(json!({}));
    let (container, _) = with_rootfs(&bench, "web");
    fs::create_dir(container.scratch.join("upper")).unwrap();
    let refused = bench.prepare_container(&container).unwrap_err();
    assert!(refused.message.contains("upper"), "{refused}");
    bench.cleanup("web").unwrap();
    bench.prepare_container(&container).unwrap();
}

#[test]
fn changes_can_be_written_to_the_directory_itself() {
    let bench = bench(json!({ "writes": "direct", "sandbox_directory": "/sandbox" }));
    let (container, rootfs) = with_rootfs(&bench, "web");
    let launch = bench.prepare_container(&container).unwrap().launch;
    assert_eq!(launch.root, Some(Root::Directory { path: rootfs }));
    assert_eq!(launch.working_directory.as_deref(), Some("/sandbox"));
    assert!(!container.scratch.join("upper").exists());
}

#[test]
fn the_view_is_made_in_the_order_in_which_its_parts_lie_on_each_other() {
    let bench = bench(json!({}));
    let (container, _) = with_rootfs(&bench, "web");
    let operations = bench.prepare_container(&container).unwrap().launch.operations;
    let place = |wanted: &str| {
        let found = operations.iter().position(|operation| match operation {
            Operation::Mount { target, .. } | Operation::Bind { target, .. } => target == Path::new(wanted),
            Operation::Device { path, .. }
            | Operation::Symlink { path, .. }
            | Operation::Mask { path }
            | Operation::ReadOnly { path } => path == Path::new(wanted),
            _ => false,
        });
        found.unwrap_or_else(|| panic!("nothing is made at `{wanted}`"))
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
        flags: [].into(),
    };
    assert!(operations.contains(&sandbox));
    let Operation::Mount { flags, .. } = &operations[place("/sys")] else { panic!("no mount at `/sys`") };
    assert!(flags.contains("ro"));
}

#[test]
fn what_tells_of_the_host_is_hidden_unless_the_container_works_on_the_host() {
    let bench = bench(json!({}));
    let masks = |container: &Container| {
        let operations = bench.prepare_container(container).unwrap().launch.operations;
        bench.cleanup(container.id.as_str()).unwrap();
        operations.iter().filter(|operation| matches!(operation, Operation::Mask { .. })).count()
    };
    let (mut container, _) = with_rootfs(&bench, "web");
    assert_eq!(masks(&container), 11);
    container.linux.share_pid_namespace = true;
    assert_eq!(masks(&container), 0);
    let (mut nested, _) = with_rootfs(&bench, "web.probe");
    nested.linux.share_pid_namespace = true;
    assert_eq!(masks(&nested), 11, "it shares with its parent, not with the host");
}

#[test]
fn a_debug_container_sees_what_its_parent_sees() {
    let bench = bench(json!({}));
    let (mut container, _) = with_rootfs(&bench, "web.shell");
    container.class = ContainerClass::Debug;
    let refused = bench.prepare_container(&container).unwrap_err();
    assert!(refused.message.contains("debug container"), "{refused}");
    container.rootfs = None;
    let launch = bench.prepare_container(&container).unwrap().launch;
    assert_eq!(launch.enter_namespaces, [Namespace::Mount].into());
    assert!(launch.clone_namespaces.is_empty());
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let bench = bench(json!({}));
    let file = bench.directory().join("file");
    fs::write(&file, "").unwrap();
    for rootfs in [Path::new("image"), Path::new("/no/such/directory"), &file] {
        let mut container = bench.container("web");
        container.rootfs = Some(rootfs.to_owned());
        let refused = bench.prepare_container(&container).unwrap_err();
        let named = format!("`{}`", rootfs.display());
        assert!(refused.message.contains(&named), "{refused}");
    }
    bench.cleanup("web").unwrap();
}

#[test]
fn cleaning_up_what_was_never_seen_succeeds_twice() {
    let bench = bench(json!({}));
    bench.cleanup("unknown").unwrap();
    bench.cleanup("unknown").unwrap();
}

#[test]
fn bad_configurations_are_refused() {
    for (config, complaint) in [
        (json!({ "writes": "nowhere" }), "unknown variant `nowhere`, expected `overlay` or `direct`"),
        (json!({ "sandbox_directory": "mnt" }), "`sandbox_directory` is `mnt`; it must be an absolute path"),
        (json!({ "sandbox_directory": "/" }), "other than `/`"),
        (json!({ "sandbox": "/mnt" }), "unknown field `sandbox`"),
    ] {
        let refused = PluginHarness::<Filesystem>::isolator(config.clone()).err().unwrap();
        assert!(refused.message.contains(complaint), "{config} gave: {refused}");
    }
}
