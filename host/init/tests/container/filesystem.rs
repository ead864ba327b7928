//! Root file systems, mounts and operations.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use cofferdam_init::plan::{Attributes, MountOption, Operation, Plan, Root, WorkingDirectory, flag};
use cofferdam_init::report::Step;

use crate::harness::{Answer, Fixture, own, prints, privileged, run, write};

fn bind(source: impl Into<PathBuf>, target: &str, attributes: Attributes) -> Operation {
    Operation::Bind { source: source.into(), target: target.into(), attributes, recursive: false }
}

fn proc() -> Operation {
    let attributes = Attributes::NO_SUID.with(Attributes::NO_EXEC).with(Attributes::NO_DEV);
    Operation::Filesystem { kind: "proc".into(), target: "/proc".into(), attributes, options: Vec::new() }
}

fn with(plan: Plan, operations: impl Into<Vec<Operation>>) -> Plan {
    Plan { operations: operations.into(), ..plan }
}

#[test]
fn no_mount_of_the_host_remains() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mounts = prints(&with(fixture.script("cat /proc/self/mountinfo"), [proc()]));
    let targets: Vec<_> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(targets, ["/", "/proc"]);
}

#[test]
fn an_overlay_takes_changes_and_its_lower_layers_do_not_change() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    // In an option, a colon would end the path, and a path of this length would not fit.
    let deep = format!("a:b,c\\d/{}", "long".repeat(60));
    for layer in ["top", "middle"] {
        fs::create_dir_all(fixture.path(&deep).join(layer)).unwrap();
        write(fixture.path(&deep).join(layer).join("name"), layer);
        write(fixture.path(&deep).join(layer).join(layer), "");
    }
    fs::create_dir(fixture.path("up:per")).unwrap();
    fs::create_dir(fixture.path("work")).unwrap();
    let mut plan =
        fixture.script("cat /name; echo; ls /top /middle; echo new > /name; cat /name; rm -f /middle");
    plan.root = Root::Overlay {
        lowers: vec![fixture.path(&deep).join("top"), fixture.path(&deep).join("middle"), fixture.rootfs()],
        upper: Some(fixture.path("up:per")),
        work: Some(fixture.path("work")),
        volatile: true,
    };
    plan.environment = vec![("PATH".into(), "/bin".into())];
    std::os::unix::fs::symlink("busybox", fixture.rootfs().join("bin/rm")).unwrap();
    assert_eq!(prints(&plan), "top\n/middle\n/top\nnew\n");
    assert_eq!(fs::read_to_string(fixture.path(&deep).join("top/name")).unwrap(), "top");
    assert!(fixture.path(&deep).join("middle/middle").exists());
    assert_eq!(fs::read_to_string(fixture.path("up:per").join("name")).unwrap(), "new\n");
}

#[test]
fn an_overlay_of_more_layers_than_fit_into_an_option() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mut lowers: Vec<_> = (0..120).map(|number| fixture.path(&format!("layer-{number}"))).collect();
    for (number, lower) in lowers.iter().enumerate() {
        fs::create_dir(lower).unwrap();
        write(lower.join("top"), &number.to_string());
        write(lower.join(format!("only-{number}")), "");
    }
    lowers.push(fixture.rootfs());
    let root = Root::Overlay { lowers, upper: None, work: None, volatile: false };
    let plan = Plan { root, ..fixture.script("cat /top; echo; ls /only-0 /only-119; touch /x 2>&1") };
    let end = run(own(), &plan);
    assert_eq!(end.output, "0\n/only-0\n/only-119\ntouch: /x: Read-only file system\n");
}

#[test]
fn a_missing_layer_is_named() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let lowers = vec![fixture.path("none")];
    let plan = Plan {
        root: Root::Overlay { lowers, upper: None, work: None, volatile: false },
        ..fixture.script("")
    };
    let detail = fixture.path("none").display().to_string();
    assert_eq!(run(own(), &plan).answer, Answer::Failed { step: Step::Root, errno: 2, detail });
}

#[test]
fn the_kernels_message_about_an_option_is_reported() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let options = vec![MountOption { name: "unknown".into(), value: Some("1m".into()) }];
    let mount = Operation::Filesystem {
        kind: "tmpfs".into(),
        target: "/tmp".into(),
        attributes: Attributes::default(),
        options,
    };
    let end = run(own(), &with(fixture.script(""), [mount]));
    let Answer::Failed { step: Step::Filesystem, errno: 22, detail } = end.answer else { panic!("{end:?}") };
    assert_eq!(detail, "/tmp: tmpfs: Unknown parameter 'unknown'");
}

#[test]
fn a_file_system_gets_its_options_and_attributes() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let option = |name: &str, value: &str| MountOption { name: name.into(), value: Some(value.into()) };
    let mount = Operation::Filesystem {
        kind: "tmpfs".into(),
        target: "/made/on/the/way".into(),
        attributes: Attributes::NO_EXEC.with(Attributes::NO_SUID),
        options: vec![option("size", "64k"), option("mode", "1750")],
    };
    let line = prints(&with(
        fixture.script("cat /proc/self/mounts | while read a b c; do echo $b $c; done"),
        [mount, proc()],
    ));
    let mounted = line.lines().find(|line| line.starts_with("/made/on/the/way tmpfs")).unwrap();
    for word in ["nosuid", "noexec", "size=64k", "mode=1750"] {
        assert!(mounted.contains(word), "{mounted}");
    }
}

#[test]
fn binds_create_their_targets_and_have_their_attributes() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    write(fixture.path("file"), "content\n");
    fs::create_dir(fixture.path("directory")).unwrap();
    write(fixture.path("directory/inside"), "inside\n");
    let script =
        "cat /new/file /dir/inside; touch /dir/x 2>&1; touch /new/file 2>&1; echo more > /rw/y; cat /rw/y";
    let plan = with(
        fixture.script(script),
        [
            bind(fixture.path("file"), "/new/file", Attributes::READ_ONLY),
            bind(fixture.path("directory"), "/dir", Attributes::READ_ONLY),
            bind(fixture.path("directory"), "/rw", Attributes::default()),
        ],
    );
    assert_eq!(
        run(own(), &plan).output,
        "content\ninside\ntouch: /dir/x: Read-only file system\ntouch: /new/file: Read-only file system\nmore\n"
    );
    assert_eq!(fs::read_to_string(fixture.path("directory/y")).unwrap(), "more\n");
    assert!(fs::metadata(fixture.rootfs().join("new/file")).unwrap().is_file());
}

#[test]
fn devices_links_and_directories_are_created_once() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let operations = vec![
        Operation::Device { path: "/dev/null".into(), mode: 0o020_666, major: 1, minor: 3, uid: 0, gid: 0 },
        Operation::Symlink { path: "/dev/fd".into(), target: "/proc/self/fd".into() },
        Operation::Directory { path: "/var/run/app".into(), mode: 0o2711, uid: 12, gid: 34 },
    ];
    // Twice, because images contain devices, and roots are reused.
    for _ in 0..2 {
        prints(&with(fixture.script("echo x > /dev/null"), operations.clone()));
    }
    let null = fs::metadata(fixture.rootfs().join("dev/null")).unwrap();
    assert_eq!((null.rdev(), null.mode()), (0x103, 0o020_666));
    assert_eq!(fs::read_link(fixture.rootfs().join("dev/fd")).unwrap().to_str(), Some("/proc/self/fd"));
    let made = fs::metadata(fixture.rootfs().join("var/run/app")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.permissions().mode() & 0o7777), (12, 34, 0o2711));

    let link = |path: &str| Operation::Symlink { path: path.into(), target: "/other".into() };
    let other =
        Operation::Device { path: "/dev/null".into(), mode: 0o020_666, major: 1, minor: 5, uid: 0, gid: 0 };
    for (operation, step, path) in [
        (other, Step::Device, "/dev/null"),
        (link("/dev/fd"), Step::Symlink, "/dev/fd"),
        (link("/dev/null"), Step::Symlink, "/dev/null"),
    ] {
        let answer = run(own(), &with(fixture.script(""), [operation])).answer;
        assert_eq!(answer, Answer::Failed { step, errno: 17, detail: path.to_owned() });
    }
}

#[test]
fn masked_paths_are_empty_and_missing_ones_are_ignored() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    write(fixture.rootfs().join("etc/secret"), "secret\n");
    fs::create_dir(fixture.rootfs().join("private")).unwrap();
    write(fixture.rootfs().join("private/key"), "key\n");
    let script = "cat /etc/secret; ls -a /private; touch /private/x 2>&1; echo > /proc/uptime; test -c /proc/uptime && echo null";
    let mask = |path: &str| Operation::Mask { path: path.into() };
    let plan = with(
        fixture.script(script),
        [
            proc(),
            mask("/etc/secret"),
            mask("/private"),
            mask("/proc/uptime"),
            mask("/no/such/thing"),
            mask("/etc/secret/below"),
        ],
    );
    assert_eq!(run(own(), &plan).output, ".\n..\ntouch: /private/x: Read-only file system\nnull\n");
}

#[test]
fn read_only_paths_and_a_read_only_root() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let script = "touch /etc/x 2>&1; touch /tmp/x 2>&1; touch /y 2>&1; echo end";
    let lock = Operation::ReadOnly { path: "/etc".into() };
    let missing = Operation::ReadOnly { path: "/none".into() };
    let mut plan = with(fixture.script(script), [lock, missing]);
    assert_eq!(prints(&plan), "touch: /etc/x: Read-only file system\nend\n");
    plan.flags |= flag::READ_ONLY_ROOT;
    let output = prints(&plan);
    assert_eq!(output.lines().count(), 4, "{output}");
    assert!(output.contains("/y: Read-only"));
}

#[test]
fn without_a_rootfs_operations_are_private_to_the_mount_namespace() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    write(fixture.path("here"), "");
    let target = fixture.directory.path().to_str().unwrap();
    let hide = Operation::Mask { path: fixture.directory.path().into() };
    let plan = Plan { root: Root::Host, ..with(fixture.script(&format!("ls {target}")), [hide]) };
    assert_eq!(prints(&plan), "");
    assert!(fixture.path("here").exists());
}

#[test]
fn the_working_directory_is_created_and_owned_by_the_user() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let mut plan = fixture.script("busybox pwd");
    plan.working_directory = Some(WorkingDirectory { path: "/srv/app/data".into(), create: true });
    plan.user = Some(cofferdam_init::plan::User { uid: 1000, gid: 1001, groups: Vec::new() });
    assert_eq!(prints(&plan), "/srv/app/data\n");
    for (path, uid) in [("srv", 1000), ("srv/app/data", 1000), ("etc", 0)] {
        assert_eq!(fs::metadata(fixture.rootfs().join(path)).unwrap().uid(), uid, "{path}");
    }
    plan.working_directory = Some(WorkingDirectory { path: "/none".into(), create: false });
    let detail = "/none".to_owned();
    assert_eq!(run(own(), &plan).answer, Answer::Failed { step: Step::WorkingDirectory, errno: 2, detail });
}

#[test]
fn mounts_of_the_container_do_not_reach_the_host() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for private in [0, flag::PRIVATE_MOUNTS] {
        let mut plan =
            with(fixture.script("true"), [bind(fixture.path("rootfs/bin"), "/tmp", Attributes::default())]);
        plan.flags |= private;
        prints(&plan);
    }
    let of_ours = |table: &str| {
        table.lines().filter(|line| line.contains(fixture.directory.path().to_str().unwrap())).count()
    };
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!((of_ours(&before), of_ours(&after)), (0, 0));
}
