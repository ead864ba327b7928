//! The plugin that requested what the first process could not do.

use std::collections::BTreeSet;
use std::path::Path;

use cofferdam_init::report::Step;
use cofferdam_plugin_model::{Namespace, Operation};

use crate::chain::{LaunchPlan, Owned};

/// The plugin that requested what failed at `step`. `detail` is the path or name that the first process reported.
///
/// `None` if no plugin requested it, or if several may have.
pub(in crate::containerizer::native) fn owner<'a>(
    plan: &'a LaunchPlan,
    step: Step,
    detail: &str,
) -> Option<&'a str> {
    match step {
        Step::Hostname => of(&plan.hostname),
        Step::CgroupNamespace => plan.clone_namespaces.get(&Namespace::Cgroup).map(String::as_str),
        Step::TimeNamespace => {
            of(&plan.time_offsets).or(plan.clone_namespaces.get(&Namespace::Time).map(String::as_str))
        }
        Step::EnterNamespace => {
            let by_descriptor = plan.enter_descriptors.values().map(|owned| owned.owner.as_str());
            only(by_descriptor.chain(plan.enter_namespaces.values().map(String::as_str)))
        }
        Step::Root => of(&plan.root),
        Step::Sysctl => {
            // As in sysctl(8), dots and slashes separate the parts of a name.
            let parts = |name: &str| name.replace('/', ".");
            let detail = parts(detail.strip_prefix("/proc/sys/").unwrap_or(detail));
            plan.sysctls.iter().find(|(name, _)| parts(name) == detail).map(|(_, owned)| &*owned.owner)
        }
        Step::Bind
        | Step::Filesystem
        | Step::Device
        | Step::Symlink
        | Step::Directory
        | Step::Mask
        | Step::ReadOnly
        | Step::Move
        | Step::WriteFile
        | Step::Propagation => {
            let failed = |operation: &Operation| {
                let (kind, names) = describe(operation);
                kind == Some(step) && names.contains(&Some(Path::new(detail)))
            };
            only(plan.operations.iter().filter(|owned| failed(&owned.value)).map(|owned| &*owned.owner))
        }
        Step::OomScore => of(&plan.oom_score_adj),
        Step::WorkingDirectory => {
            plan.working_directory.as_ref().filter(|owned| owned.value == detail).map(|owned| &*owned.owner)
        }
        Step::Limit => only(plan.rlimits.values().map(|owned| &*owned.owner)),
        Step::Keyring => of(&plan.session_keyring),
        Step::Capabilities => {
            let sets = [
                &plan.effective_capabilities,
                &plan.permitted_capabilities,
                &plan.inheritable_capabilities,
                &plan.bounding_capabilities,
                &plan.ambient_capabilities,
            ];
            only(sets.into_iter().filter_map(|set| of(set)))
        }
        Step::NoNewPrivileges => of(&plan.no_new_privileges),
        Step::Seccomp => of(&plan.seccomp),
        Step::Hook | Step::HookFailed => {
            let hooks = plan.hooks.iter().filter(|owned| owned.value.program == Path::new(detail));
            only(hooks.map(|owned| &*owned.owner))
        }
        Step::JoinCgroup => only(plan.cgroups.iter().map(|owned| &*owned.owner)),
        Step::Namespaces => only(plan.clone_namespaces.values().map(String::as_str)),
        Step::Exec => of(&plan.command),
        Step::Plan
        | Step::Session
        | Step::Pivot
        | Step::Fork
        | Step::Register
        | Step::Terminal
        | Step::User
        | Step::Descriptors => None,
    }
}

/// The step at which an operation is carried out, and what the first process may report of it.
fn describe(operation: &Operation) -> (Option<Step>, [Option<&Path>; 2]) {
    match operation {
        Operation::Bind { source, target, .. } => (Some(Step::Bind), [Some(source), Some(target)]),
        Operation::BindDescriptor { target, .. } => (Some(Step::Bind), [Some(target), None]),
        Operation::Mount { fstype, target, .. } => {
            (Some(Step::Filesystem), [Some(Path::new(fstype)), Some(target)])
        }
        Operation::Move { source, target } => (Some(Step::Move), [Some(source), Some(target)]),
        Operation::Device { path, .. } => (Some(Step::Device), [Some(path), None]),
        Operation::Symlink { path, .. } => (Some(Step::Symlink), [Some(path), None]),
        Operation::Mkdir { path, .. } => (Some(Step::Directory), [Some(path), None]),
        Operation::WriteFile { path, .. } => (Some(Step::WriteFile), [Some(path), None]),
        Operation::Mask { path } => (Some(Step::Mask), [Some(path), None]),
        Operation::ReadOnly { path } => (Some(Step::ReadOnly), [Some(path), None]),
        Operation::Propagation { path, .. } => (Some(Step::Propagation), [Some(path), None]),
        _ => (None, [None, None]),
    }
}

fn of<T>(value: &Option<Owned<T>>) -> Option<&str> {
    value.as_ref().map(|owned| &*owned.owner)
}

/// The owner, if all have the same.
fn only<'a>(owners: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let owners: BTreeSet<&str> = owners.collect();
    owners.first().copied().filter(|_| owners.len() == 1)
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_model::{Capabilities, LaunchInfo, Rlimit};

    use super::*;

    fn plan() -> LaunchPlan {
        let limits = |name: &str| [(name.to_owned(), Rlimit::default())].into();
        let first = LaunchInfo {
            hostname: Some("web".into()),
            sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
            rlimits: limits("NOFILE"),
            capabilities: Capabilities { ambient: Some(BTreeSet::new()), ..Capabilities::default() },
            operations: vec![Operation::Mask { path: "/proc/kcore".into() }],
            ..LaunchInfo::default()
        };
        let second = LaunchInfo {
            rlimits: limits("CORE"),
            operations: vec![
                Operation::ReadOnly { path: "/proc/kcore".into() },
                Operation::Move { source: "/a".into(), target: "/b".into() },
            ],
            ..LaunchInfo::default()
        };
        let mut plan = LaunchPlan::default();
        plan.merge("test/first", first, 0, 0).unwrap();
        plan.merge("test/second", second, 0, 0).unwrap();
        plan
    }

    #[test]
    fn the_owner_of_what_failed_is_found_by_step_and_detail() {
        let plan = plan();
        for (step, detail, expected) in [
            (Step::Hostname, "web", Some("test/first")),
            (Step::Sysctl, "/proc/sys/net/ipv4/ip_forward", Some("test/first")),
            (Step::Capabilities, "", Some("test/first")),
            (Step::Mask, "/proc/kcore", Some("test/first")),
            (Step::ReadOnly, "/proc/kcore", Some("test/second")),
            (Step::Move, "/b", Some("test/second")),
        ] {
            assert_eq!(owner(&plan, step, detail), expected, "{step:?} {detail}");
        }
    }

    #[test]
    fn nobody_is_named_if_it_is_not_certain() {
        let plan = plan();
        for (step, detail) in [
            (Step::Limit, ""),
            (Step::Mask, "/proc/other"),
            (Step::Exec, "/bin/true"),
            (Step::Propagation, ""),
            (Step::User, ""),
        ] {
            assert_eq!(owner(&plan, step, detail), None, "{step:?} {detail}");
        }
    }
}
