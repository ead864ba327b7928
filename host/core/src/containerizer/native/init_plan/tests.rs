//! What is refused, and what is combined, before a first process exists.

use cofferdam_plugin_model::{
    BpfInstruction, CommandRewrite, HookStage, LaunchHook, LaunchInfo, Namespace, Operation, Owner, Seccomp,
    TimeOffsets,
};

use super::*;
use crate::containerizer::native::record::NativeRecord;
use crate::model::{Command, ContainerId, Request};

fn record(command: Command) -> Record<NativeRecord> {
    let request = Request::new(ContainerId::parse("pod.web").unwrap(), command);
    Record::new("mesos", request, "boot".into(), NativeRecord::default())
}

fn merged(launch: LaunchInfo) -> LaunchPlan {
    let mut plan = LaunchPlan::default();
    plan.merge("test/plugin", launch, 0, 0).unwrap();
    plan
}

fn try_build(launch: LaunchInfo) -> Result<Plan, String> {
    let record = record(Command { value: Some("true".into()), ..Command::default() });
    let merged = merged(launch);
    let input = Input {
        record: &record,
        merged: &merged,
        inspected: &[],
        descriptors: &[],
        secrets: &BTreeMap::new(),
        terminal: None,
        cgroup_namespaces: true,
        nofile: None,
    };
    build(input).map(|built| built.plan)
}

fn refused(launch: LaunchInfo) -> String {
    try_build(launch).expect_err("it was built")
}

fn variable(plan: &Plan, name: &str) -> String {
    let found = plan.environment.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default()
}

#[test]
fn values_are_put_before_and_after_a_variable_whoever_sets_it() {
    let plan = try_build(LaunchInfo {
        environment_prepend: [("PATH".to_owned(), vec!["/first".to_owned()])].into(),
        environment_append: [
            ("PATH".to_owned(), vec!["/last".to_owned()]),
            ("LD_LIBRARY_PATH".to_owned(), vec!["/lib64".to_owned()]),
        ]
        .into(),
        ..LaunchInfo::default()
    })
    .unwrap();
    let path = variable(&plan, "PATH");
    assert!(path.starts_with("/first:/usr/local/sbin:") && path.ends_with(":/bin:/last"), "{path}");
    assert_eq!(variable(&plan, "LD_LIBRARY_PATH"), "/lib64");
}

#[test]
fn kernel_parameters_of_the_host_are_refused_by_name() {
    let launch = |name: &str, namespaces: &[Namespace]| LaunchInfo {
        sysctls: [(name.to_owned(), "1".to_owned())].into(),
        clone_namespaces: namespaces.iter().copied().collect(),
        ..LaunchInfo::default()
    };
    for host in ["kernel.core_pattern", "vm.swappiness", "kernel.hostname", "net"] {
        assert!(refused(launch(host, &[Namespace::Network])).contains("which is that of the host"), "{host}");
    }
    for odd in ["", "net/../kernel/core_pattern", "/net/x", "net/./x"] {
        let reason = refused(launch(odd, &[Namespace::Network]));
        assert!(reason.contains("is not a name"), "{odd}: {reason}");
    }
    assert!(refused(launch("net.ipv4.ip_forward", &[])).contains("without a net namespace"));
    let plan = try_build(launch("net/ipv4/conf/eth0.1/forwarding", &[Namespace::Network])).unwrap();
    assert_eq!(plan.sysctls[0].path, PathBuf::from("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
}

#[test]
fn what_needs_a_namespace_of_its_own_is_refused_without_one() {
    let hostname = LaunchInfo { hostname: Some("h".into()), ..LaunchInfo::default() };
    assert!(refused(hostname).contains("without a UTS namespace"));
    let offsets = LaunchInfo { time_offsets: Some(TimeOffsets::default()), ..LaunchInfo::default() };
    assert!(refused(offsets).contains("without a time namespace"));
    let mask = LaunchInfo {
        operations: vec![Operation::Mask { path: "/proc/keys".into() }],
        ..LaunchInfo::default()
    };
    assert_eq!(
        refused(mask),
        "`test/plugin` requests `mask`, which needs a mount namespace of the container's own; create one"
    );
    let user = LaunchInfo { clone_namespaces: [Namespace::User].into(), ..LaunchInfo::default() };
    assert!(refused(user).contains("user namespace, which this agent does not support"));
}

/// A container with the same mounts could put a program of its own there.
#[test]
fn no_program_of_the_host_is_executed_in_the_mount_namespace_of_a_parent() {
    let launch = |stage| LaunchInfo {
        enter_namespaces: [Namespace::Mount].into(),
        hooks: vec![LaunchHook {
            stage,
            program: "/usr/bin/hook".into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            timeout_millis: 0,
        }],
        ..LaunchInfo::default()
    };
    let reason = refused(launch(HookStage::BeforeRoot));
    assert!(reason.contains("`/usr/bin/hook` of the host") && reason.contains("mount namespace"), "{reason}");
    try_build(launch(HookStage::AfterRoot)).unwrap();
}

#[test]
fn without_a_root_filesystem_nothing_is_created_on_the_host() {
    for operation in [
        Operation::Mkdir { path: "/x".into(), mode: 0o755, owner: Owner::default() },
        Operation::Symlink { path: "/x".into(), target: "/y".into() },
        Operation::WriteFile { path: "/x".into(), content: "c".into(), mode: 0o644, owner: Owner::default() },
    ] {
        let launch = LaunchInfo {
            operations: vec![operation],
            clone_namespaces: [Namespace::Mount].into(),
            ..LaunchInfo::default()
        };
        let reason = refused(launch);
        assert!(reason.contains("at `/x`, which would change the host"), "{reason}");
    }
}

#[test]
fn a_path_of_the_container_has_no_parent_component_after_a_name() {
    let launch = |path: &str| LaunchInfo {
        operations: vec![Operation::Mask { path: path.into() }],
        clone_namespaces: [Namespace::Mount].into(),
        ..LaunchInfo::default()
    };
    assert_eq!(
        refused(launch("/proc/../keys")),
        "`test/plugin` requests `mask` with `/proc/../keys`, in which `..` follows a name; write the path without it"
    );
    assert_eq!(refused(launch("keys")), "`test/plugin` requests `mask` with `keys`, which is not absolute");
    for path in ["/../proc/keys", "/proc/./..keys"] {
        assert!(try_build(launch(path)).is_ok(), "{path}");
    }
    let mut bind = launch("/");
    bind.operations = vec![Operation::Bind {
        source: "/a/../b".into(),
        target: "/b".into(),
        recursive: false,
        flags: [].into(),
    }];
    assert!(try_build(bind).is_ok(), "its source is a path of the host");
}

#[test]
fn a_command_rewrite_may_choose_the_shell() {
    let rewrite = |shell, value: &str| LaunchInfo {
        command: Some(CommandRewrite { shell, value: Some(value.into()), arguments: None }),
        ..LaunchInfo::default()
    };
    let plan = try_build(rewrite(Some(true), "echo $HOME")).unwrap();
    assert_eq!((plan.program, plan.arguments.len()), ("sh".into(), 3));
    let plan = try_build(rewrite(Some(false), "/bin/other")).unwrap();
    assert_eq!((plan.program, plan.arguments), ("/bin/other".into(), vec!["/bin/other".into()]));
    // The request has a shell line.
    let plan = try_build(rewrite(None, "echo other")).unwrap();
    assert_eq!(plan.arguments, ["sh", "-c", "echo other"]);
}

#[test]
fn capability_sets_have_safe_defaults_and_must_contain_each_other() {
    let launch = |effective: &[&str], bounding: Option<&[&str]>| {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let mut launch = LaunchInfo::default();
        launch.capabilities.effective = Some(set(effective));
        launch.capabilities.bounding = bounding.map(set);
        launch
    };
    let sets = try_build(launch(&["NET_RAW"], None)).unwrap().capabilities.unwrap();
    assert_eq!((sets.bounding, sets.effective, sets.permitted), (1 << 13, 1 << 13, 1 << 13));
    assert_eq!((sets.inheritable, sets.ambient), (0, 0), "root keeps its capabilities without these");
    let reason = refused(launch(&["NET_RAW", "SYS_ADMIN"], Some(&["NET_RAW"])));
    assert_eq!(reason, "its permitted capabilities exceed its bounding ones");
    assert!(refused(launch(&["FLY"], None)).contains("`test/plugin` requests the unknown capability `FLY`"));
}

#[test]
fn a_seccomp_filter_is_encoded_as_the_kernel_reads_it() {
    let launch = |length, flags: &[&str]| LaunchInfo {
        seccomp: Some(Seccomp {
            program: vec![BpfInstruction(0x06, 1, 2, 0x7fff_0000); length],
            flags: flags.iter().map(ToString::to_string).collect(),
        }),
        ..LaunchInfo::default()
    };
    let plan = try_build(launch(1, &["LOG"])).unwrap();
    assert_eq!(plan.seccomp, [6, 0, 1, 2, 0, 0, 0xff, 0x7f]);
    assert_eq!(plan.seccomp_flags, 2);
    assert!(refused(launch(0, &[])).contains("filter of 0 instructions"));
    assert!(refused(launch(4097, &[])).contains("expected 1 to 4096"));
    assert!(refused(launch(1, &["MAGIC"])).contains("unknown seccomp flag `MAGIC`"));
}
