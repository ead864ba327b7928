//! Namespaces of a container, and what is set in them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use cofferdam_init::plan::{EnteredNamespace, Sysctl, TimeOffsets, flag};
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_plugin_model as model;

use super::Descriptors;
use crate::chain::{LaunchPlan, Owned};
use crate::containerizer::native::record::NativeRecord;
use crate::model::Record;

/// Namespaces of a new container.
pub(in crate::containerizer::native) struct ContainerNamespaces {
    pub(in crate::containerizer::native) clone: Namespaces,
    pub(in crate::containerizer::native) enter: Namespaces,
}

/// The namespaces that plugins request.
pub(in crate::containerizer::native) fn namespaces(plan: &LaunchPlan) -> ContainerNamespaces {
    let collect = |requested: &BTreeMap<model::Namespace, String>| {
        requested.keys().filter_map(|&kind| namespace(kind)).fold(Namespaces::EMPTY, Namespaces::with)
    };
    // The setup process creates the one for its command; those in the cgroup create the other.
    let clone = collect(&plan.clone_namespaces).without(Namespace::Cgroup).without(Namespace::Time);
    ContainerNamespaces { clone, enter: collect(&plan.enter_namespaces) }
}

fn namespace(kind: model::Namespace) -> Option<Namespace> {
    match kind {
        model::Namespace::Cgroup => Some(Namespace::Cgroup),
        model::Namespace::Ipc => Some(Namespace::Ipc),
        model::Namespace::Mount => Some(Namespace::Mount),
        model::Namespace::Network => Some(Namespace::Network),
        model::Namespace::Pid => Some(Namespace::Pid),
        model::Namespace::Time => Some(Namespace::Time),
        model::Namespace::User => Some(Namespace::User),
        model::Namespace::Uts => Some(Namespace::Uts),
        // Refused when the plan was merged.
        _ => None,
    }
}

/// Refuses combinations that make no sense.
pub(super) fn check(merged: &LaunchPlan) -> Result<(), String> {
    if let Some(owner) = merged.clone_namespaces.get(&model::Namespace::User) {
        return Err(format!("`{owner}` requests a user namespace, which this agent does not support"));
    }
    if let Some(Owned { owner, .. }) = &merged.id_mappings {
        return Err(format!("`{owner}` requests id mappings, which this agent does not support"));
    }
    if let (Some(entering), Some(creating)) = (
        merged.enter_namespaces.get(&model::Namespace::Pid),
        merged.clone_namespaces.get(&model::Namespace::Pid),
    ) {
        return Err(format!(
            "`{entering}` requests to enter the pid namespace of the parent, and `{creating}` a new one; a new one is \
             not below that of the parent"
        ));
    }
    let of_host = |hook: &&Owned<model::LaunchHook>| hook.value.stage == model::HookStage::BeforeRoot;
    if let (Some(entering), Some(Owned { value: hook, owner })) =
        (merged.enter_namespaces.get(&model::Namespace::Mount), merged.hooks.iter().find(of_host))
    {
        return Err(format!(
            "`{owner}` requests the hook `{}` of the host, and `{entering}` to enter the mount namespace of the parent, where \
             that path leads to what the parent has put there; request a later stage, or no hook for such containers",
            hook.program.display()
        ));
    }
    for (kind, Owned { owner, .. }) in &merged.enter_descriptors {
        if let Some(other) = merged.clone_namespaces.get(kind).or(merged.enter_namespaces.get(kind)) {
            let kind = name(*kind);
            return Err(format!(
                "`{owner}` requests to enter a {kind} namespace by descriptor, and `{other}` another one"
            ));
        }
    }
    Ok(())
}

/// The flag for a cgroup namespace. Without one of its own, or one that a plugin chooses, the container sees the cgroups of
/// the host where it mounts them, and can move to others.
pub(super) fn cgroup_flag(merged: &LaunchPlan, can_be_created: bool) -> u32 {
    use model::Namespace::Cgroup;
    let requested = merged.clone_namespaces.contains_key(&Cgroup);
    let chosen =
        merged.enter_namespaces.contains_key(&Cgroup) || merged.enter_descriptors.contains_key(&Cgroup);
    match () {
        () if requested => flag::CGROUP_NAMESPACE,
        () if chosen || !can_be_created => 0,
        () => flag::CGROUP_NAMESPACE,
    }
}

/// Whether the container has a namespace of that kind that it shares with neither the agent nor its parent.
fn owns(merged: &LaunchPlan, kind: model::Namespace) -> bool {
    merged.clone_namespaces.contains_key(&kind) || merged.enter_descriptors.contains_key(&kind)
}

fn name(kind: model::Namespace) -> &'static str {
    namespace(kind).map_or("unknown", Namespace::file)
}

/// The namespaces that the first process enters by descriptor.
pub(super) fn entered(
    merged: &LaunchPlan,
    descriptors: &mut Descriptors<'_>,
) -> Result<Vec<EnteredNamespace>, String> {
    let mut entered = Vec::new();
    for (&kind, Owned { value: index, owner }) in &merged.enter_descriptors {
        let can_be_entered = matches!(
            kind,
            model::Namespace::Cgroup
                | model::Namespace::Ipc
                | model::Namespace::Network
                | model::Namespace::Uts
        );
        let Some(namespace) = namespace(kind).filter(|_| can_be_entered) else {
            return Err(format!(
                "`{owner}` requests to enter a {} namespace by descriptor; only cgroup, ipc, net and uts \
                 namespaces can be entered that way",
                name(kind)
            ));
        };
        let copy = descriptors.get(*index)?.try_clone();
        let copy = copy.map_err(|error| format!("cannot copy a descriptor of `{owner}`: {error}"))?;
        let descriptor = descriptors.pass(copy)?;
        let kind = u32::try_from(namespace.bit()).map_err(|error| error.to_string())?;
        entered.push(EnteredNamespace { descriptor, kind });
    }
    Ok(entered)
}

pub(super) fn time_offsets(merged: &LaunchPlan) -> Result<Option<TimeOffsets>, String> {
    let own = merged.clone_namespaces.contains_key(&model::Namespace::Time);
    match &merged.time_offsets {
        Some(Owned { owner, .. }) if !own => {
            Err(format!("`{owner}` requests clock offsets without a time namespace; create one"))
        }
        Some(Owned { value, .. }) => Ok(Some(TimeOffsets {
            monotonic_nanos: value.monotonic_nanos,
            boottime_nanos: value.boottime_nanos,
        })),
        None => Ok(own.then(TimeOffsets::default)),
    }
}

/// The host name: that of a plugin, of the request, or the last value of the container's id.
pub(super) fn hostname(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
) -> Result<Option<OsString>, String> {
    let own = owns(merged, model::Namespace::Uts);
    match &merged.hostname {
        Some(Owned { owner, .. }) if !own => {
            Err(format!("`{owner}` requests a host name without a UTS namespace; create one"))
        }
        Some(Owned { value, .. }) => Ok(Some(value.into())),
        None => Ok(own.then(|| {
            let requested = record.request.linux.hostname.clone();
            requested.unwrap_or_else(|| record.id.value().to_owned()).into()
        })),
    }
}

/// The kernel parameters, each of which must belong to a namespace of the container's own.
pub(super) fn sysctls(merged: &LaunchPlan) -> Result<Vec<Sysctl>, String> {
    merged.sysctls.iter().map(|(name, owned)| sysctl(merged, name, owned)).collect()
}

fn sysctl(merged: &LaunchPlan, name: &str, owned: &Owned<String>) -> Result<Sysctl, String> {
    let Owned { value, owner } = owned;
    // As in sysctl(8), a name with slashes keeps its dots: `net/ipv4/conf/eth0.100/forwarding`.
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("`{owner}` requests the kernel parameter `{name}`, which is not a name"));
    }
    let kind = match relative.as_str() {
        name if name.starts_with("net/") => model::Namespace::Network,
        name if name.starts_with("fs/mqueue/") => model::Namespace::Ipc,
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => model::Namespace::Ipc,
        _ => {
            return Err(format!(
                "`{owner}` requests the kernel parameter `{name}`, which is that of the host; only those of \
                 network and IPC namespaces can be set"
            ));
        }
    };
    if !owns(merged, kind) {
        let kind = self::name(kind);
        return Err(format!(
            "`{owner}` requests the kernel parameter `{name}` without a {kind} namespace of the container's \
             own; create one"
        ));
    }
    Ok(Sysctl { path: Path::new("/proc/sys").join(relative), value: value.clone() })
}
