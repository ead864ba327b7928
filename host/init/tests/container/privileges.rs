//! User, groups, capabilities and limits of the task.

use cofferdam_init::plan::{Capabilities, Limit, Plan, User, flag};
use cofferdam_init::report::Step;
use cofferdam_linux::namespace::Namespaces;

use crate::harness::{Answer, Status, privileged, run, script_on_host};

const CHOWN: u64 = 1 << 0;
const KILL: u64 = 1 << 5;
const NET_BIND: u64 = 1 << 10;

fn status_lines(plan: Plan, pattern: &str) -> Vec<String> {
    let script = format!("grep -E '^({pattern}):' /proc/self/status");
    let plan = Plan { arguments: ["sh", "-c", &script].map(Into::into).to_vec(), ..plan };
    let end = run(Namespaces::EMPTY, &plan);
    assert_eq!((&end.answer, end.status), (&Answer::Runs, Status::Ended(0)), "{end:?}");
    end.output.lines().map(|line| line.replace('\t', " ").trim_end().to_owned()).collect()
}

fn user() -> Option<User> {
    Some(User { uid: 1234, gid: 2345, groups: vec![10, 20] })
}

#[test]
fn a_user_has_exactly_its_groups_and_no_capability() {
    if !privileged() {
        return;
    }
    let plan = Plan { user: user(), ..script_on_host("", 0) };
    let lines = status_lines(plan, "Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb");
    let none = "0000000000000000";
    let expected = [
        "Uid: 1234 1234 1234 1234".into(),
        "Gid: 2345 2345 2345 2345".into(),
        "Groups: 10 20".into(),
        format!("CapInh: {none}"),
        format!("CapPrm: {none}"),
        format!("CapEff: {none}"),
        format!("CapAmb: {none}"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn root_can_be_confined_to_some_capabilities() {
    if !privileged() {
        return;
    }
    let set = CHOWN | KILL | NET_BIND;
    let capabilities =
        Capabilities { bounding: set, effective: set, permitted: set, inheritable: 0, ambient: 0 };
    let plan = Plan { capabilities: Some(capabilities), ..script_on_host("", 0) };
    let some = "0000000000000421";
    assert_eq!(
        status_lines(plan, "CapInh|CapPrm|CapEff|CapBnd|CapAmb"),
        [
            "CapInh: 0000000000000000".to_owned(),
            format!("CapPrm: {some}"),
            format!("CapEff: {some}"),
            format!("CapBnd: {some}"),
            "CapAmb: 0000000000000000".to_owned()
        ]
    );
}

#[test]
fn a_user_keeps_ambient_capabilities_over_the_exec() {
    if !privileged() {
        return;
    }
    let set = NET_BIND;
    let capabilities =
        Capabilities { bounding: set, effective: set, permitted: set, inheritable: set, ambient: set };
    let plan = Plan { capabilities: Some(capabilities), user: user(), ..script_on_host("", 0) };
    let lines = status_lines(plan, "CapInh|CapPrm|CapEff|CapBnd|CapAmb");
    assert!(lines.iter().all(|line| line.ends_with(" 0000000000000400")), "{lines:?}");
}

#[test]
fn no_new_privileges_is_set_if_requested() {
    for (flags, expected) in [(0, "NoNewPrivs: 0"), (flag::NO_NEW_PRIVILEGES, "NoNewPrivs: 1")] {
        assert_eq!(status_lines(script_on_host("", flags), "NoNewPrivs"), [expected]);
    }
}

#[test]
fn a_filter_is_loaded_last() {
    // ld [nr]; jeq getpriority(140) ? errno EPERM : allow. Nothing that exec needs.
    let instructions: [(u16, u8, u8, u32); 4] =
        [(0x20, 0, 0, 0), (0x15, 0, 1, 140), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
    let seccomp = instructions
        .iter()
        .flat_map(|(code, jt, jf, k)| [&code.to_le_bytes()[..], &[*jt, *jf], &k.to_le_bytes()].concat())
        .collect();
    let plan = Plan { seccomp, ..script_on_host("", flag::NO_NEW_PRIVILEGES) };
    assert_eq!(status_lines(plan, "Seccomp|Seccomp_filters"), ["Seccomp: 2", "Seccomp_filters: 1"]);
}

#[test]
fn limits_apply_to_the_task_and_not_to_init() {
    const FILE_SIZE: u32 = 1;
    const DESCRIPTORS: u32 = 7;
    let mut plan = script_on_host("ulimit -n; ulimit -f; exit 9", 0);
    plan.limits = vec![
        Limit { resource: DESCRIPTORS, soft: 99, hard: 100 },
        // With this limit init could not write the status file.
        Limit { resource: FILE_SIZE, soft: 1024, hard: 1024 },
    ];
    let end = run(Namespaces::EMPTY, &plan);
    assert_eq!(end.output, "99\n2\n");
    plan.limits[1] = Limit { resource: FILE_SIZE, soft: 0, hard: 0 };
    plan.arguments[2] = "exit 9".into();
    assert_eq!(run(Namespaces::EMPTY, &plan).status, Status::Ended(9 << 8));

    plan.limits = vec![Limit { resource: 999, soft: 1, hard: 1 }];
    let end = run(Namespaces::EMPTY, &plan);
    assert_eq!(end.answer, Answer::Failed { step: Step::Limit, errno: 22, detail: String::new() });
}

#[test]
fn the_oom_score_is_inherited() {
    let mut plan = script_on_host("cat /proc/self/oom_score_adj", 0);
    plan.oom_score_adj = Some(321);
    assert_eq!(run(Namespaces::EMPTY, &plan).output, "321\n");
}

#[test]
fn programs_are_found_by_path_as_execvp_does() {
    let fixture = crate::harness::Fixture::new();
    let locked = fixture.path("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::write(locked.join("greet"), "#!/bin/sh\necho no\n").unwrap();
    let open = fixture.path("open");
    std::fs::create_dir(&open).unwrap();
    let script = open.join("greet");
    std::fs::write(&script, "#!/bin/sh\necho hi $1\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();

    let mut path = std::ffi::OsString::from("/no/such:");
    path.push(&locked);
    let mut plan = Plan {
        program: "greet".into(),
        arguments: vec!["greet".into(), "you".into()],
        environment: vec![("PATH".into(), path.clone())],
        ..script_on_host("", 0)
    };
    // Found, and may not be executed.
    let denied = |errno| Answer::Failed { step: Step::Exec, errno, detail: "greet".into() };
    assert_eq!(run(Namespaces::EMPTY, &plan).answer, denied(13));
    path.push(":");
    path.push(&open);
    plan.environment = vec![("PATH".into(), path)];
    assert_eq!(run(Namespaces::EMPTY, &plan).output, "hi you\n");

    std::fs::write(&script, "#!/no/such/shell\n").unwrap();
    assert_eq!(
        run(Namespaces::EMPTY, &plan).answer,
        denied(13),
        "the interpreter is missing, and the other file may not be executed"
    );
    std::fs::write(&script, "neither text nor program").unwrap();
    assert_eq!(run(Namespaces::EMPTY, &plan).answer, denied(8));
}

/// Root in a container, without capabilities, must neither trace init nor write its status file. The task itself is
/// dumpable again.
#[test]
fn init_is_not_accessible_to_the_task_and_the_task_is_dumpable() {
    if !privileged() {
        return;
    }
    let set = 0;
    let none = Capabilities { bounding: set, effective: set, permitted: set, inheritable: set, ambient: set };
    let script = "( echo 0 > /proc/$PPID/fd/4 ) 2>/dev/null || echo closed; cat /proc/self/environ >/dev/null && echo open";
    let plan = Plan { capabilities: Some(none), ..script_on_host(script, 0) };
    assert_eq!(run(Namespaces::EMPTY, &plan).output, "closed\nopen\n");
    let plan = Plan { user: user(), ..script_on_host(script, 0) };
    assert_eq!(run(Namespaces::EMPTY, &plan).output, "closed\nopen\n");
}
