//! The encoder and the decoder against each other.

use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::read::{self, List, Malformed, Read, header};
use super::write::{
    Attributes, Capabilities, EncodeError, EnteredNamespace, Hook, Limit, MountOption, Operation, Plan, Root,
    Sysctl, Terminal, TimeOffsets, User, WorkingDirectory,
};
use super::{HEADER, MAGIC, VERSION, flag, stage};

fn text() -> impl Strategy<Value = OsString> {
    vec(1_u8.., 0..40).prop_map(OsString::from_vec)
}

fn path() -> impl Strategy<Value = PathBuf> {
    text().prop_map(PathBuf::from)
}

fn name() -> impl Strategy<Value = OsString> {
    vec(prop_oneof![1_u8..b'=', b'>'..], 1..20).prop_map(OsString::from_vec)
}

fn root() -> impl Strategy<Value = Root> {
    let overlay = (vec(path(), 0..5), of(path()), of(path()), any::<bool>());
    prop_oneof![
        Just(Root::Host),
        path().prop_map(Root::Directory),
        path().prop_map(Root::ReadOnly),
        overlay.prop_map(|(lowers, upper, work, volatile)| Root::Overlay { lowers, upper, work, volatile }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let attributes = || any::<u64>().prop_map(Attributes);
    let option = (text(), of(text())).prop_map(|(name, value)| MountOption { name, value });
    prop_oneof![
        (path(), path(), attributes(), any::<bool>()).prop_map(|(source, target, attributes, recursive)| {
            Operation::Bind { source, target, attributes, recursive }
        }),
        (text(), path(), attributes(), vec(option, 0..4)).prop_map(|(kind, target, attributes, options)| {
            Operation::Filesystem { kind, target, attributes, options }
        }),
        (path(), any::<[u32; 5]>()).prop_map(|(path, [mode, major, minor, uid, gid])| {
            Operation::Device { path, mode, major, minor, uid, gid }
        }),
        (any::<u32>(), path(), attributes(), any::<bool>()).prop_map(
            |(descriptor, target, attributes, recursive)| {
                Operation::BindDescriptor { descriptor, target, attributes, recursive }
            }
        ),
        (path(), path()).prop_map(|(source, target)| Operation::Move { source, target }),
        (path(), vec(any::<u8>(), 0..64), any::<[u32; 3]>()).prop_map(|(path, content, [mode, uid, gid])| {
            Operation::WriteFile { path, content, mode, uid, gid }
        }),
        (path(), any::<u64>(), any::<bool>()).prop_map(|(path, propagation, recursive)| {
            Operation::Propagation { path, propagation, recursive }
        }),
        (path(), path()).prop_map(|(path, target)| Operation::Symlink { path, target }),
        (path(), any::<(u32, u32, u32)>()).prop_map(|(path, (mode, uid, gid))| Operation::Directory {
            path,
            mode,
            uid,
            gid
        }),
        path().prop_map(|path| Operation::Mask { path }),
        path().prop_map(|path| Operation::ReadOnly { path }),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let first = (0..=flag::ALL, of(text()), root(), vec(operation(), 0..8), any::<Option<i32>>());
    let working_directory =
        (path(), any::<bool>()).prop_map(|(path, create)| WorkingDirectory { path, create });
    let limit = any::<(u32, u64, u64)>().prop_map(|(resource, soft, hard)| Limit { resource, soft, hard });
    let user = (any::<u32>(), any::<u32>(), vec(any::<u32>(), 0..6)).prop_map(|(uid, gid, groups)| User {
        uid,
        gid,
        groups,
    });
    let sets = any::<[u64; 5]>().prop_map(|[bounding, effective, permitted, inheritable, ambient]| {
        Capabilities { bounding, effective, permitted, inheritable, ambient }
    });
    let second = (of(working_directory), vec(limit, 0..4), of(user), of(sets), vec(any::<u8>(), 0..64));
    let entered = any::<(u32, u32)>().prop_map(|(descriptor, kind)| EnteredNamespace { descriptor, kind });
    let offsets = any::<(i64, i64)>()
        .prop_map(|(monotonic_nanos, boottime_nanos)| TimeOffsets { monotonic_nanos, boottime_nanos });
    let sysctl = (path(), "[a-z0-9]*").prop_map(|(path, value)| Sysctl { path, value });
    let hook = (0..=stage::BEFORE_EXEC, path(), vec(text(), 0..4), vec((name(), text()), 0..4), any::<u64>())
        .prop_map(|(stage, program, arguments, environment, timeout_millis)| Hook {
            stage,
            program,
            arguments,
            environment,
            timeout_millis,
        });
    let terminal = any::<(u32, u16, u16)>().prop_map(|(descriptor, rows, columns)| Terminal {
        descriptor,
        rows,
        columns,
    });
    let fourth =
        (vec(entered, 0..4), of(offsets), vec(sysctl, 0..4), vec(hook, 0..4), any::<u32>(), of(terminal));
    let third = (any::<u32>(), text(), vec(text(), 0..6), vec((name(), text()), 0..6));
    (first, second, third, fourth).prop_map(|(first, second, third, fourth)| {
        let (flags, hostname, root, operations, oom_score_adj) = first;
        let (working_directory, limits, user, capabilities, seccomp) = second;
        let (umask, program, arguments, environment) = third;
        let (entered, time_offsets, sysctls, hooks, seccomp_flags, terminal) = fourth;
        Plan {
            flags,
            entered,
            time_offsets,
            sysctls,
            hooks,
            hostname,
            root,
            operations,
            oom_score_adj,
            working_directory,
            terminal,
            limits,
            user,
            capabilities,
            seccomp,
            seccomp_flags,
            umask,
            program,
            arguments,
            environment,
        }
    })
}

fn owned(text: &CStr) -> OsString {
    OsStr::from_bytes(text.to_bytes()).to_owned()
}

fn all<'a, T: Read<'a>, U>(list: List<'a, T>, own: impl Fn(T) -> U) -> Vec<U> {
    assert_eq!(list.iter().count(), list.len());
    list.iter().map(own).collect()
}

/// The decoded plan as the encoder's type.
fn decoded(plan: read::Plan<'_>) -> Plan {
    let path = |text: &CStr| PathBuf::from(owned(text));
    let root = match plan.root {
        read::Root::Host => Root::Host,
        read::Root::Directory(directory) => Root::Directory(path(directory)),
        read::Root::ReadOnly(directory) => Root::ReadOnly(path(directory)),
        read::Root::Overlay { lowers, upper, work, volatile } => Root::Overlay {
            lowers: all(lowers, path),
            upper: upper.map(path),
            work: work.map(path),
            volatile,
        },
    };
    let operation = |operation: read::Operation<'_>| match operation {
        read::Operation::Bind { source, target, attributes, recursive } => Operation::Bind {
            source: path(source),
            target: path(target),
            attributes: Attributes(attributes),
            recursive,
        },
        read::Operation::Filesystem { kind, target, attributes, options } => Operation::Filesystem {
            kind: owned(kind),
            target: path(target),
            attributes: Attributes(attributes),
            options: all(options, |option| MountOption {
                name: owned(option.name),
                value: option.value.map(owned),
            }),
        },
        read::Operation::Device { path: place, mode, major, minor, uid, gid } => {
            Operation::Device { path: path(place), mode, major, minor, uid, gid }
        }
        read::Operation::Symlink { path: place, target } => {
            Operation::Symlink { path: path(place), target: path(target) }
        }
        read::Operation::Directory { path: place, mode, uid, gid } => {
            Operation::Directory { path: path(place), mode, uid, gid }
        }
        read::Operation::Mask { path: place } => Operation::Mask { path: path(place) },
        read::Operation::ReadOnly { path: place } => Operation::ReadOnly { path: path(place) },
        read::Operation::BindDescriptor { descriptor, target, attributes, recursive } => {
            let (target, attributes) = (path(target), Attributes(attributes));
            Operation::BindDescriptor { descriptor, target, attributes, recursive }
        }
        read::Operation::Move { source, target } => {
            Operation::Move { source: path(source), target: path(target) }
        }
        read::Operation::WriteFile { path: place, content, mode, uid, gid } => {
            Operation::WriteFile { path: path(place), content: content.to_vec(), mode, uid, gid }
        }
        read::Operation::Propagation { path: place, propagation, recursive } => {
            Operation::Propagation { path: path(place), propagation, recursive }
        }
    };
    let variable = |entry: &CStr| {
        let entry = entry.to_bytes();
        let equals = entry.iter().position(|byte| *byte == b'=').unwrap();
        let own = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        (own(&entry[..equals]), own(&entry[equals + 1..]))
    };
    Plan {
        flags: plan.flags,
        entered: all(plan.entered, |entered| EnteredNamespace {
            descriptor: entered.descriptor,
            kind: entered.kind,
        }),
        time_offsets: plan.time_offsets.map(|offsets| TimeOffsets {
            monotonic_nanos: offsets.monotonic_nanos,
            boottime_nanos: offsets.boottime_nanos,
        }),
        sysctls: all(plan.sysctls, |sysctl| Sysctl {
            path: path(sysctl.path),
            value: sysctl.value.to_str().unwrap().to_owned(),
        }),
        hooks: all(plan.hooks, |hook| Hook {
            stage: hook.stage,
            program: path(hook.program),
            arguments: all(hook.arguments, owned),
            environment: all(hook.environment, variable),
            timeout_millis: hook.timeout_millis,
        }),
        hostname: plan.hostname.map(owned),
        root,
        operations: all(plan.operations, operation),
        oom_score_adj: plan.oom_score_adj,
        working_directory: plan.working_directory.map(|working_directory| WorkingDirectory {
            path: path(working_directory.path),
            create: working_directory.create,
        }),
        terminal: plan.terminal.map(|terminal| Terminal {
            descriptor: terminal.descriptor,
            rows: terminal.rows,
            columns: terminal.columns,
        }),
        limits: all(plan.limits, |limit| Limit {
            resource: limit.resource,
            soft: limit.soft,
            hard: limit.hard,
        }),
        user: plan.user.map(|user| User {
            uid: user.uid,
            gid: user.gid,
            groups: all(user.groups, |group| group),
        }),
        capabilities: plan.capabilities.map(|sets| Capabilities {
            bounding: sets.bounding,
            effective: sets.effective,
            permitted: sets.permitted,
            inheritable: sets.inheritable,
            ambient: sets.ambient,
        }),
        seccomp: plan.seccomp.to_vec(),
        seccomp_flags: plan.seccomp_flags,
        umask: plan.umask,
        program: owned(plan.program),
        arguments: all(plan.arguments, owned),
        environment: all(plan.environment, variable),
    }
}

proptest! {
    #[test]
    fn a_decoded_plan_equals_the_encoded_one(plan in plan()) {
        let message = plan.encode().unwrap();
        prop_assert_eq!(decoded(read::Plan::parse(&message).unwrap()), plan);
    }

    #[test]
    fn a_truncated_plan_is_refused(plan in plan(), cut in any::<prop::sample::Index>()) {
        let message = plan.encode().unwrap();
        let mut part = message[..cut.index(message.len())].to_vec();
        prop_assert!(read::Plan::parse(&part).is_err());
        // Also if its header states the truncated length.
        if part.len() >= HEADER {
            let length = (part.len() as u32).to_le_bytes();
            part[HEADER - 4..HEADER].copy_from_slice(&length);
            prop_assert!(read::Plan::parse(&part).is_err());
        }
    }

}

/// Encoded plans, always the same.
fn samples() -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut message = || plan().new_tree(&mut runner).unwrap().current().encode().unwrap();
    (0..32).map(|_| message()).collect()
}

#[test]
fn any_message_is_a_plan_or_refused() {
    cofferdam_fuzz::fuzz_bytes(&samples(), &[], |message| {
        if let Ok(plan) = read::Plan::parse(message) {
            let head = message.first_chunk().expect("a header");
            assert_eq!(header(head), Ok(message.len()), "an invalid header was accepted");
            check_lists(&plan);
        }
    });
}

#[test]
fn any_plan_is_decoded_or_refused() {
    let bodies: Vec<_> = samples().iter().map(|message| message[HEADER..].to_vec()).collect();
    cofferdam_fuzz::fuzz_bytes(&bodies, &[], |body| {
        let mut message = MAGIC.to_vec();
        message.extend(VERSION.to_le_bytes());
        message.extend(((HEADER + body.len()) as u32).to_le_bytes());
        message.extend(body);
        if let Ok(plan) = read::Plan::parse(&message) {
            check_lists(&plan);
        }
    });
}

/// Reads each list to its end.
fn check_lists(plan: &read::Plan<'_>) {
    assert_eq!(plan.operations.iter().count(), plan.operations.len());
    assert_eq!(plan.hooks.iter().count(), plan.hooks.len());
    assert_eq!(plan.arguments.iter().count(), plan.arguments.len());
    assert_eq!(plan.environment.iter().count(), plan.environment.len());
}

#[test]
fn invalid_headers_are_refused_with_the_reason() {
    let message = Plan::default().encode().unwrap();
    let changed = |at: usize, byte: u8| {
        let mut head: [u8; HEADER] = *message.first_chunk().unwrap();
        head[at] = byte;
        header(&head)
    };
    assert_eq!(changed(0, b'c'), Err(Malformed::Magic));
    assert_eq!(changed(8, 1), Err(Malformed::Version(1)));
    assert_eq!(changed(15, 0x7f), Err(Malformed::Length));
    assert_eq!(changed(0, b'C'), Ok(message.len()));
}

#[test]
fn trailing_bytes_are_refused() {
    let mut message = Plan::default().encode().unwrap();
    message.push(0);
    message[12] += 1;
    assert_eq!(read::Plan::parse(&message).unwrap_err(), Malformed::Trailing);
}

#[test]
fn values_that_the_kernel_would_misread_are_not_encoded() {
    let nul = Plan { program: "a\0b".into(), ..Plan::default() };
    assert_eq!(nul.encode(), Err(EncodeError::Nul { what: "program", value: "a\0b".into() }));
    for name in ["", "A=B"] {
        let plan = Plan { environment: vec![(name.into(), "x".into())], ..Plan::default() };
        assert_eq!(plan.encode(), Err(EncodeError::VariableName { name: name.into() }));
    }
    let huge = Plan { arguments: vec!["x".repeat(9 << 20).into()], ..Plan::default() };
    assert!(matches!(huge.encode(), Err(EncodeError::TooLong { .. })));
    let flags = Plan { flags: 1 << 30, ..Plan::default() };
    assert_eq!(flags.encode(), Err(EncodeError::Flags { flags: 1 << 30 }));
}
