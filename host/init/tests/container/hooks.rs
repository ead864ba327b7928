//! Hooks, and what else plugins request for a launch: kernel parameters, clocks, keyrings, files.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use cofferdam_init::plan::{Hook, Operation, Plan, Sysctl, TimeOffsets, User, flag, stage};
use cofferdam_init::report::Step;
use cofferdam_linux::namespace::{Namespace, Namespaces};

use crate::harness::{Answer, Fixture, Status, own, prints, privileged, run, write};

fn hook(stage: u8, script: &str) -> Hook {
    Hook {
        stage,
        program: "/bin/busybox".into(),
        arguments: ["sh", "-c", script].map(Into::into).to_vec(),
        environment: vec![("PATH".into(), "/bin".into())],
        timeout_millis: 60_000,
    }
}

#[test]
fn hooks_run_in_their_stages_and_in_order() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let outside = fixture.directory.path().display();
    let plan = Plan {
        hooks: vec![
            hook(stage::BEFORE_EXEC, "echo third $(id -u)"),
            hook(stage::AFTER_ROOT, &format!("test -e {outside} || echo second $(id -u)")),
            hook(stage::BEFORE_ROOT, &format!("test -e {outside} && echo first $(id -u)")),
            hook(stage::BEFORE_EXEC, "echo fourth"),
        ],
        user: Some(User { uid: 1234, gid: 1234, groups: Vec::new() }),
        ..fixture.script("echo task $(id -u)")
    };
    assert_eq!(prints(&plan), "first 0\nsecond 0\nthird 1234\nfourth\ntask 1234\n");
}

#[test]
fn a_hook_that_fails_or_does_not_end_fails_the_launch_and_is_named() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let failure = |hook: Hook| {
        let plan = Plan { hooks: vec![hook], ..fixture.script("echo not reached") };
        let end = run(own(), &plan);
        assert_eq!(end.output, "");
        assert!(matches!(end.status, Status::NotStarted), "{end:?}");
        match end.answer {
            Answer::Failed { step, errno, detail } => (step, errno, detail),
            other => panic!("{other:?}"),
        }
    };
    for stage in [stage::BEFORE_ROOT, stage::AFTER_ROOT, stage::BEFORE_EXEC] {
        let (step, _, program) = failure(hook(stage, "exit 3"));
        assert_eq!((step, program.as_str()), (Step::HookFailed, "/bin/busybox"), "stage {stage}");
        let hung = Hook { timeout_millis: 50, ..hook(stage, "sleep 1000 | sleep 1000") };
        let (step, errno, _) = failure(hung);
        assert_eq!((step, errno), (Step::Hook, libc_etimedout()), "stage {stage}");
        let missing = Hook { program: "/no/such/hook".into(), ..hook(stage, "") };
        let (step, errno, program) = failure(missing);
        assert_eq!((step, errno, program.as_str()), (Step::Hook, 2, "/no/such/hook"), "stage {stage}");
    }
}

fn libc_etimedout() -> i32 {
    rustix::io::Errno::TIMEDOUT.raw_os_error()
}

#[test]
fn kernel_parameters_are_those_of_the_containers_own_namespaces() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let other = if host.trim() == "1" { "0" } else { "1" };
    let plan = Plan {
        sysctls: vec![Sysctl { path: "/proc/sys/net/ipv4/ip_forward".into(), value: other.into() }],
        operations: vec![proc()],
        ..fixture.script("cat /proc/sys/net/ipv4/ip_forward")
    };
    let end = run(own().with(Namespace::Network), &plan);
    assert_eq!((end.answer, end.output.trim()), (Answer::Runs, other));
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), host);

    let missing = Sysctl { path: "/proc/sys/net/no/such".into(), value: "1".into() };
    let end = run(own(), &Plan { sysctls: vec![missing], ..fixture.script("true") });
    let detail = "/proc/sys/net/no/such".to_owned();
    assert_eq!(end.answer, Answer::Failed { step: Step::Sysctl, errno: 2, detail });
}

fn proc() -> Operation {
    Operation::Filesystem {
        kind: "proc".into(),
        target: "/proc".into(),
        attributes: Default::default(),
        options: Vec::new(),
    }
}

#[test]
fn the_clocks_of_a_time_namespace_are_offset() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let day = 86_400_000_000_000;
    let plan = Plan {
        time_offsets: Some(TimeOffsets { monotonic_nanos: 0, boottime_nanos: 1000 * day + 1 }),
        operations: vec![proc()],
        ..fixture.script("cat /proc/uptime")
    };
    let uptime: f64 = prints(&plan).split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1000.0 * 86_400.0, "{uptime}");
}

#[test]
fn a_task_with_a_session_keyring_of_its_own_does_not_share_the_agents() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let keys = |flags: u32| {
        let plan = fixture.script("cat /proc/keys");
        prints(&Plan { flags: plan.flags | flags, operations: vec![proc()], ..plan })
    };
    assert!(keys(flag::SESSION_KEYRING).contains("_ses"), "a new session keyring is called `_ses`");
}

fn write_file(path: &str, content: &str) -> Operation {
    Operation::WriteFile { path: path.into(), content: content.into(), mode: 0o640, uid: 12, gid: 34 }
}

#[test]
fn files_are_written_with_mode_and_owner_and_never_through_a_link() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let host = fixture.path("of-the-host");
    write(&host, "untouched");
    write(fixture.rootfs().join("etc/old"), "a longer content than the new one");
    symlink(&host, fixture.rootfs().join("etc/link")).unwrap();
    let operations = vec![write_file("/etc/new/dir/file", "hello"), write_file("/etc/old", "short")];
    let plan = Plan { operations, ..fixture.script("cat /etc/new/dir/file /etc/old") };
    assert_eq!(prints(&plan), "helloshort");
    let written = fs::metadata(fixture.rootfs().join("etc/old")).unwrap();
    assert_eq!((written.mode() & 0o7777, written.uid(), written.gid()), (0o640, 12, 34));

    let end = run(own(), &Plan { operations: vec![write_file("/etc/link", "x")], ..fixture.script("true") });
    assert!(matches!(end.answer, Answer::Failed { step: Step::WriteFile, .. }), "{:?}", end.answer);
    assert_eq!(fs::read_to_string(host).unwrap(), "untouched");
}

#[test]
fn without_a_root_of_its_own_a_container_creates_nothing_on_the_host() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new();
    let missing = fixture.path("missing");
    let flags = flag::MOUNT_NAMESPACE | flag::CREATE_NOTHING;
    let plan =
        |operation| Plan { operations: vec![operation], ..crate::harness::script_on_host("true", flags) };
    let bind = |target: &Path| Operation::Bind {
        source: fixture.rootfs(),
        target: target.to_owned(),
        attributes: Default::default(),
        recursive: false,
    };
    let directory = Operation::Directory { path: missing.clone(), mode: 0o755, uid: 0, gid: 0 };
    let device =
        Operation::Device { path: missing.clone(), mode: 0o020_666, major: 1, minor: 3, uid: 0, gid: 0 };
    let link = Operation::Symlink { path: missing.clone(), target: "/".into() };
    let file = write_file(&missing.display().to_string(), "x");
    for operation in [bind(&missing), directory, device, link, file] {
        let end = run(Namespaces::from_iter([Namespace::Mount]), &plan(operation.clone()));
        assert!(matches!(end.answer, Answer::Failed { .. }), "{operation:?}: {end:?}");
        assert!(!missing.exists(), "{operation:?} created something");
    }
    let there = fixture.path("there");
    fs::create_dir(&there).unwrap();
    let end = run(Namespaces::from_iter([Namespace::Mount]), &plan(bind(&there)));
    assert_eq!(end.answer, Answer::Runs);
    assert_eq!(fs::read_dir(there).unwrap().count(), 0, "the mount is the container's own");
}

#[test]
fn a_mount_can_be_moved_and_its_propagation_set() {
    if !privileged() {
        return;
    }
    const MS_SHARED: u64 = 1 << 20;
    let fixture = Fixture::new();
    let tmpfs = Operation::Filesystem {
        kind: "tmpfs".into(),
        target: "/first".into(),
        attributes: Default::default(),
        options: Vec::new(),
    };
    let moved = Operation::Move { source: "/first".into(), target: "/second".into() };
    let shared = Operation::Propagation { path: "/second".into(), propagation: MS_SHARED, recursive: false };
    let operations = vec![proc(), tmpfs, moved, shared];
    let plan = Plan { operations, ..fixture.script("cat /proc/self/mountinfo") };
    let mounts = prints(&plan);
    let second = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/second")).unwrap();
    assert!(second.contains(" shared:"), "{second}");
    assert!(!mounts.contains("/first"), "{mounts}");
}
