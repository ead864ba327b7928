//! Operations below a mount of the plan, while another container changes the root meanwhile, or what is mounted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use cofferdam_init::plan::{Attributes, Operation, Plan};
use cofferdam_init::report::Step;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::exchange::Exchange;
use crate::harness::{Answer, Container, Fixture, Status, own, prints, privileged, run, write};

fn filesystem(kind: &str, target: &str) -> Operation {
    Operation::Filesystem {
        kind: kind.into(),
        target: target.into(),
        attributes: Attributes::default(),
        options: Vec::new(),
    }
}

fn mask(path: &str) -> Operation {
    Operation::Mask { path: path.into() }
}

fn read_only(path: &str) -> Operation {
    Operation::ReadOnly { path: path.into() }
}

fn bind(source: PathBuf, target: &str) -> Operation {
    Operation::Bind { source, target: target.into(), attributes: Attributes::default(), recursive: false }
}

fn moved(source: &str, target: &str) -> Operation {
    Operation::Move { source: source.into(), target: target.into() }
}

fn with(plan: Plan, operations: impl Into<Vec<Operation>>) -> Plan {
    Plan { operations: operations.into(), ..plan }
}

/// A fixture with a directory `volume` beside the root, with a directory and files.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("volume/sub")).unwrap();
    for name in ["volume/secret", "volume/sub/secret", "volume/sub/open", "file"] {
        write(fixture.path(name), "content\n");
    }
    fixture
}

#[track_caller]
fn assert_refused(plan: &Plan, step: Step, errno: i32, detail: &str) {
    let expected = Answer::Failed { step, errno, detail: detail.to_owned() };
    assert_eq!(run(own(), plan).answer, expected);
}

const LAUNCHES: usize = 100;

#[test]
fn masked_and_read_only_paths_cannot_be_raced_by_a_container_with_the_same_root() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.rootfs().join("decoy/sys")).unwrap();
    write(fixture.rootfs().join("decoy/keys"), "");
    // The mounted `proc` has either name.
    let script = "until cd /proc && test -e self; do :; done; \
        test -c keys || echo unmasked; { true >> sys/vm/swappiness; } 2> /tmp/error && echo writable; true";
    let operations = [filesystem("proc", "/proc"), mask("/proc/keys"), read_only("/proc/sys")];
    let plan = with(fixture.script(script), operations);
    let exchange = Exchange::start(&fixture.rootfs(), ["proc", "decoy"]);
    let outputs: Vec<_> = (0..LAUNCHES).map(|_| prints(&plan)).collect();
    drop(exchange);
    let count = |word: &str| outputs.iter().filter(|output| output.contains(word)).count();
    assert_eq!((count("unmasked"), count("writable")), (0, 0), "of {LAUNCHES} launches");
}

/// A copy can only be found by its path. A launch for which it is not there fails.
#[test]
fn masks_below_a_read_only_copy_cannot_be_raced() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    for name in ["x/proc", "x/decoy"] {
        fs::create_dir_all(fixture.rootfs().join(name)).unwrap();
    }
    write(fixture.rootfs().join("x/decoy/keys"), "");
    let script = "until cd /x/proc && test -e self; do :; done; test -c keys || echo unmasked";
    let operations = [filesystem("proc", "/x/proc"), read_only("/x"), mask("/x/proc/keys")];
    let plan = with(fixture.script(script), operations);
    assert_eq!(prints(&plan), "");
    let _exchange = Exchange::start(&fixture.rootfs().join("x"), ["proc", "decoy"]);
    for _ in 0..LAUNCHES {
        let end = run(own(), &plan);
        match &end.answer {
            Answer::Runs => assert_eq!((end.output.as_str(), end.status), ("", Status::Ended(0))),
            Answer::Failed { step: Step::ReadOnly, errno: 116, .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn masks_and_read_only_paths_below_a_bind_mount() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let script = "cat /data/secret /data/sub/secret; cat /data/sub/open; touch /data/sub/x 2>&1; touch /data/x && echo written";
    let operations = [
        bind(fixture.path("volume"), "/data"),
        mask("//data/./secret"),
        read_only("/data/sub/"),
        mask("/data/sub/secret"),
        mask("/data/none"),
        mask("/data/secret/below"),
        read_only("/data/none"),
    ];
    let output = prints(&with(fixture.script(script), operations));
    assert_eq!(output, "content\ntouch: /data/sub/x: Read-only file system\nwritten\n");
    assert_eq!(fs::read_to_string(fixture.path("volume/secret")).unwrap(), "content\n");
}

#[test]
fn what_is_mounted_and_created_below_a_mount_of_the_plan_is_in_it() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let owned = |path: &str| Operation::Directory { path: path.into(), mode: 0o755, uid: 0, gid: 0 };
    let file = |path: &str, content: &str| Operation::WriteFile {
        path: path.into(),
        content: content.into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    let null = || Operation::Device {
        path: "/made/dev/null".into(),
        mode: 0o020_666,
        major: 1,
        minor: 3,
        uid: 0,
        gid: 0,
    };
    let script = "cat /made/deep/volume/secret /made/deep/file /made/note /made/link; ls /made/dir; echo x > /made/dev/null";
    let operations = [
        filesystem("tmpfs", "/made"),
        bind(fixture.path("volume"), "/made/deep/volume"),
        bind(fixture.path("file"), "/made/deep/file"),
        // Replaces the content of the file that is mounted there.
        file("/made/deep/file", "written\n"),
        file("/made/note", "note\n"),
        Operation::Symlink { path: "/made/link".into(), target: "/made/note".into() },
        owned("/made/dir/inner"),
        null(),
        bind("/dev/null".into(), "/made/dev/null"),
        // The same device exists already, as a mount.
        null(),
    ];
    let output = prints(&with(fixture.script(script), operations));
    assert_eq!(output, "content\nwritten\nnote\nnote\ninner\n");
    assert_eq!(fs::read_to_string(fixture.path("file")).unwrap(), "written\n");
    // Nothing but the mount point is in the root.
    assert_eq!(fs::read_dir(fixture.rootfs().join("made")).unwrap().count(), 0);
}

#[test]
fn files_that_are_mounted_can_be_masked_and_made_read_only() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let script = "cat /etc/masked; { true >> /etc/locked; } 2> /dev/error || echo refused; cat /etc/locked";
    let operations = [
        bind(fixture.path("file"), "/etc/masked"),
        bind(fixture.path("file"), "/etc/locked"),
        mask("/etc/masked"),
        read_only("/etc/locked"),
        mask("/etc/masked/below"),
    ];
    assert_eq!(prints(&with(fixture.script(script), operations)), "refused\ncontent\n");
}

#[test]
fn operations_apply_to_the_mount_that_covers_earlier_ones() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let upper = fixture.path("upper");
    fs::create_dir_all(upper.join("inner")).unwrap();
    write(upper.join("inner/secret"), "upper\n");
    write(upper.join("inner/shown"), "shown\n");
    let operations = [
        bind(fixture.path("volume"), "/data/inner"),
        bind(upper, "/data"),
        mask("/data/inner/secret"),
        filesystem("tmpfs", "/twice"),
        bind(fixture.path("volume"), "/twice"),
        mask("/twice/secret"),
        read_only("/twice"),
        mask("/twice/sub/secret"),
    ];
    let script = "cat /data/inner/secret /data/inner/shown /twice/secret /twice/sub/secret /twice/sub/open; touch /twice/x 2>&1";
    let end = run(own(), &with(fixture.script(script), operations));
    assert_eq!(end.output, "shown\ncontent\ntouch: /twice/x: Read-only file system\n");
}

#[test]
fn a_mount_that_is_moved_keeps_what_is_mounted_below() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let operations = [
        filesystem("tmpfs", "/first"),
        bind(fixture.path("volume"), "/first/volume"),
        moved("/first", "/second"),
        mask("/second/volume/secret"),
        bind(fixture.path("volume"), "/second/more"),
        mask("/second/more/secret"),
        filesystem("tmpfs", "/first"),
        bind(fixture.path("file"), "/first/file"),
    ];
    let script = "cd /second; cat volume/secret more/secret volume/sub/open; ls /first";
    assert_eq!(prints(&with(fixture.script(script), operations)), "content\nfile\n");
}

/// Its mounts are copied only where the read-only directory leads to them without a link.
#[test]
fn a_read_only_directory_may_have_mounts_through_links() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let rootfs = fixture.rootfs();
    fs::create_dir_all(rootfs.join("run")).unwrap();
    write(rootfs.join("run/resolv.conf"), "");
    symlink("/run/resolv.conf", rootfs.join("etc/resolv.conf")).unwrap();
    let operations = [
        bind(fixture.path("file"), "/etc/resolv.conf"),
        bind(fixture.path("volume"), "/etc/volume"),
        read_only("/etc"),
        mask("/etc/volume/secret"),
    ];
    let script = "cat /etc/resolv.conf /etc/volume/secret /etc/volume/sub/open; touch /etc/volume/x 2>&1";
    let end = run(own(), &with(fixture.script(script), operations));
    assert_eq!(end.output, "content\ncontent\ntouch: /etc/volume/x: Read-only file system\n");
}

#[test]
fn a_mask_that_cannot_be_applied_fails_the_launch() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    symlink("loop", fixture.rootfs().join("loop")).unwrap();
    symlink("/etc", fixture.path("volume/outside")).unwrap();
    symlink("../etc", fixture.path("volume/above")).unwrap();
    let volume = || bind(fixture.path("volume"), "/data");
    let plan = |operations: Vec<Operation>| with(fixture.script("true"), operations);
    assert_refused(&plan(vec![mask("/loop")]), Step::Mask, 40, "/loop");
    // Out of a mount, no link is followed.
    assert_refused(&plan(vec![volume(), mask("/data/outside")]), Step::Mask, 18, "/data/outside");
    assert_refused(&plan(vec![volume(), mask("/data/above/x")]), Step::Mask, 18, "/data/above/x");
    assert_refused(&plan(vec![volume(), read_only("/data/outside")]), Step::ReadOnly, 18, "/data/outside");
    // A mount over the root would be invisible.
    assert_refused(&plan(vec![mask("/")]), Step::Mask, 22, "/");
    assert_refused(&plan(vec![read_only("//.")]), Step::ReadOnly, 22, "//.");
    assert_refused(&plan(vec![filesystem("tmpfs", "/")]), Step::Filesystem, 22, "/");
}

/// To which directory it leads depends on links, which another container may change.
#[test]
fn the_parent_of_a_name_is_refused() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    for (operation, step, detail) in [
        (mask("/proc/../proc/keys"), Step::Mask, "/proc/../proc/keys"),
        (read_only("/tmp/.."), Step::ReadOnly, "/tmp/.."),
        (bind(fixture.path("file"), "/../etc/../file"), Step::Bind, "/../etc/../file"),
        (filesystem("tmpfs", "/tmp/../x"), Step::Filesystem, "/tmp/../x"),
        (moved("/tmp/../tmp", "/x"), Step::Move, "/tmp/../tmp"),
        (moved("/tmp", "/x/../y"), Step::Move, "/x/../y"),
    ] {
        assert_refused(&with(fixture.script("true"), [operation]), step, 22, detail);
    }
    let source = fixture.path("volume/../file");
    let operations = [bind(source, "/../etc/..file"), mask("/../etc/..file")];
    assert_eq!(prints(&with(fixture.script("cat /etc/..file; test -c /etc/..file"), operations)), "");
}

#[test]
fn a_plan_may_have_more_mounts_than_the_soft_limit_of_descriptors() {
    if !privileged() {
        return;
    }
    let fixture = fixture();
    let targets = (0..300).map(|number| format!("/mounts/{number}"));
    let operations: Vec<_> = targets.map(|target| bind(fixture.path("volume"), &target)).collect();
    let plan = with(
        fixture.script("cat /mounts/299/secret; ulimit -n; ls /mounts/*/secret | busybox wc -l"),
        operations,
    );
    let mut container = Container::spawn(own(), None);
    let limit = Rlimit { current: Some(64), maximum: Some(1024) };
    prlimit(Pid::from_raw(container.process.pid()), Resource::Nofile, limit).unwrap();
    let answer = container.release(&plan);
    let end = container.end(answer);
    assert_eq!((end.answer, end.output.as_str()), (Answer::Runs, "content\n64\n300\n"));
}
