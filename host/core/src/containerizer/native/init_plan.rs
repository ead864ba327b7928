//! From what was asked for to what the first process is told.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cofferdam_init::plan::{
    Attributes, Capabilities, Limit, MountOption, Operation, Plan, Root, User, WorkingDirectory, flag,
};
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_linux::namespace::{Namespace, Namespaces};
use cofferdam_plugin_model as model;

use super::record::NativeRecord;
use crate::chain::{LaunchPlan, Owned};
use crate::model::ContainerClass;
use crate::model::Record;
use crate::model::view::PlanEntry;

/// Where programs are looked for if nothing else is said.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The namespaces of a container to be.
pub(super) struct ContainerNamespaces {
    pub(super) clone: Namespaces,
    pub(super) enter: Namespaces,
}

/// The namespaces that the plugins asked for. Of a pid namespace, a nested container can have both: it
/// enters its parent's and makes one below it. What is made anew need not be entered first otherwise.
pub(super) fn namespaces(plan: &LaunchPlan) -> ContainerNamespaces {
    let collect = |merged: &BTreeMap<model::Namespace, String>| {
        merged.keys().filter_map(|&entry| namespace(entry)).fold(Namespaces::EMPTY, Namespaces::with)
    };
    // Made by the first process itself, once it is in its control group.
    let clone = collect(&plan.clone_namespaces).without(Namespace::Cgroup);
    ContainerNamespaces { clone, enter: collect(&plan.enter_namespaces) }
}

fn namespace(entry: model::Namespace) -> Option<Namespace> {
    match entry {
        model::Namespace::Cgroup => Some(Namespace::Cgroup),
        model::Namespace::Ipc => Some(Namespace::Ipc),
        model::Namespace::Mount => Some(Namespace::Mount),
        model::Namespace::Network => Some(Namespace::Network),
        model::Namespace::Pid => Some(Namespace::Pid),
        model::Namespace::Uts => Some(Namespace::Uts),
        // Refused when the plan was merged.
        _ => None,
    }
}

/// What the first process is told. The error says which entry cannot be fulfilled, and whose it is.
pub(super) fn build(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
    parent: Option<&Record<NativeRecord>>,
    nofile: Option<(u64, u64)>,
) -> Result<Plan, String> {
    let request = &record.request;
    let debug = request.class == ContainerClass::Debug;
    let has_root = merged.root.is_some();
    let mut flags = 0;
    if merged.clone_namespaces.contains_key(&model::Namespace::Cgroup) {
        flags |= flag::CGROUP_NAMESPACE;
    }
    if merged.no_new_privileges.as_ref().is_some_and(|off| off.value) {
        flags |= flag::NO_NEW_PRIVILEGES;
    }
    let (program, arguments) = command(record, merged)?;
    let own_uts = merged.clone_namespaces.contains_key(&model::Namespace::Uts);
    Ok(Plan {
        flags,
        hostname: own_uts.then(|| {
            let named = request.linux.hostname.clone();
            named.unwrap_or_else(|| record.id.value().to_owned()).into()
        }),
        root: merged.root.as_ref().map_or(Ok(Root::Host), root)?,
        operations: merged.operations.iter().map(operation).collect::<Result<_, _>>()?,
        oom_score_adj: merged.oom_score_adj.as_ref().map(|score| score.value),
        working_directory: working_directory(record, merged, parent.filter(|_| debug)),
        limits: limits(merged, nofile)?,
        user: user(record, merged),
        capabilities: capabilities(merged)?,
        seccomp: Vec::new(),
        umask: 0o022,
        program,
        arguments,
        environment: environment(record, merged, parent.filter(|_| debug), has_root),
    })
}

/// The merged plan for people: the plugins' merged, and what the request and the agent add.
pub(super) fn entries(record: &Record<NativeRecord>) -> Vec<PlanEntry> {
    let command = &record.request.command;
    let mut entries = record.part.plan.entries();
    if command.working_directory.is_some() {
        entries.retain(|entry| entry.field != "working_directory");
    }
    let mut add = |field: &str, value: String, owner: &str| {
        entries.push(PlanEntry { field: field.to_owned(), value, owner: owner.to_owned() });
    };
    if let Some(directory) = &command.working_directory {
        add("working_directory", directory.display().to_string(), "request");
    }
    for (name, value) in &command.environment {
        add(&format!("environment.{name}"), value.clone(), "request");
    }
    add(
        "user",
        format!("{}:{}", record.uid, record.gid),
        if command.user.is_some() { "request" } else { "agent" },
    );
    if let Some(stdout) = &record.logs.stdout {
        add("stdout", stdout.display().to_string(), "logger");
    }
    if let Some(stderr) = &record.logs.stderr {
        add("stderr", stderr.display().to_string(), "logger");
    }
    entries
}

/// What plugins are told of the host's control groups.
pub(crate) fn cgroups(found: &Cgroups, path: PathBuf) -> model::Cgroups {
    let mut v1 = BTreeMap::new();
    for hierarchy in &found.legacy {
        for controller in &hierarchy.controllers {
            v1.insert(controller.clone(), hierarchy.mount.clone());
        }
    }
    model::Cgroups {
        v1,
        v2: found.unified.as_ref().map(|unified| unified.mount.clone()),
        v2_controllers: found.unified.as_ref().map(|u| u.controllers.clone()).unwrap_or_default(),
        path,
    }
}

fn command(record: &Record<NativeRecord>, merged: &LaunchPlan) -> Result<(OsString, Vec<OsString>), String> {
    let command = &record.request.command;
    let rewrite = merged.command.as_ref().map(|owned| &owned.value);
    let value = rewrite.and_then(|rewrite| rewrite.value.as_ref()).or(command.value.as_ref());
    let arguments = rewrite.and_then(|rewrite| rewrite.arguments.as_ref()).unwrap_or(&command.arguments);
    if command.shell && rewrite.is_none() {
        let line = value.ok_or("a shell command without a line")?;
        return Ok(("sh".into(), vec!["sh".into(), "-c".into(), line.into()]));
    }
    let program = value.or(arguments.first()).ok_or("a command without a program")?;
    let arguments = if arguments.is_empty() {
        vec![program.into()]
    } else {
        arguments.iter().map(OsString::from).collect()
    };
    Ok((program.into(), arguments))
}

/// Later wins: the agent, then a debug container's parent, then plugins, then the command's own.
fn environment(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
    parent: Option<&Record<NativeRecord>>,
    has_root: bool,
) -> Vec<(OsString, OsString)> {
    let mut variables: BTreeMap<&str, String> = BTreeMap::new();
    variables.insert("PATH", DEFAULT_PATH.to_owned());
    if let Some(parent) = parent {
        let inherited = parent.part.plan.environment.iter().map(|(name, variable)| (name, &variable.value));
        for (name, value) in inherited.chain(&parent.request.command.environment) {
            variables.insert(name, value.clone());
        }
    } else {
        let inside = merged.working_directory.as_ref().filter(|_| has_root);
        let sandbox = inside.map_or_else(|| record.sandbox.display().to_string(), |d| d.value.clone());
        variables.insert("MESOS_SANDBOX", sandbox);
    }
    for (name, variable) in &merged.environment {
        variables.insert(name, variable.value.clone());
    }
    for (name, value) in &record.request.command.environment {
        variables.insert(name, value.clone());
    }
    variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// The command's own wins; then a debug container's parent, then plugins.
fn working_directory(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
    parent: Option<&Record<NativeRecord>>,
) -> Option<WorkingDirectory> {
    if let Some(path) = record.request.command.working_directory.clone() {
        // On the host nothing is made that nobody would remove.
        return Some(WorkingDirectory { path, create: merged.root.is_some() });
    }
    if let Some(parent) = parent {
        return working_directory(parent, &parent.part.plan, None)
            .map(|place| WorkingDirectory { create: false, ..place });
    }
    let entry = merged.working_directory.as_ref().map(|directory| PathBuf::from(&directory.value));
    match (merged.root.is_some(), entry) {
        (true, entry) => entry.map(|path| WorkingDirectory { path, create: true }),
        // Without a root file system of its own, its sandbox is all that is a container's own.
        (false, _) => Some(WorkingDirectory { path: record.sandbox.clone(), create: false }),
    }
}

fn user(record: &Record<NativeRecord>, merged: &LaunchPlan) -> Option<User> {
    let us = nix::unistd::geteuid();
    if !us.is_root() {
        return None;
    }
    let groups = merged.supplementary_groups.keys().copied().collect();
    Some(User { uid: record.uid, gid: record.gid, groups })
}

fn root(entry: &Owned<model::Root>) -> Result<Root, String> {
    match &entry.value {
        model::Root::Directory { path } => Ok(Root::Directory(path.clone())),
        model::Root::Overlay { lower, upper, work } => Ok(Root::Overlay {
            lowers: lower.clone(),
            upper: Some(upper.clone()),
            work: Some(work.clone()),
            // What a container writes into its root ends with it.
            volatile: true,
        }),
        _ => Err(format!("`{}` requests an unknown kind of root", entry.owner)),
    }
}

fn operation(entry: &Owned<model::Operation>) -> Result<Operation, String> {
    use model::Operation as Requested;
    let owner = &entry.owner;
    let absolute = |path: &Path| {
        if path.is_absolute() {
            Ok(path.to_owned())
        } else {
            Err(format!("`{owner}` requests `{}`, which is not absolute", path.display()))
        }
    };
    Ok(match &entry.value {
        Requested::Bind { source, target, recursive, flags } => Operation::Bind {
            source: absolute(source)?,
            target: absolute(target)?,
            attributes: attributes(owner, flags)?,
            recursive: *recursive,
        },
        Requested::Mount { fstype, target, flags, options } => Operation::Filesystem {
            kind: fstype.into(),
            target: absolute(target)?,
            attributes: attributes(owner, flags)?,
            options: options.iter().map(|option| mount_option(option)).collect(),
        },
        Requested::Device { path, kind, major, minor, mode, .. } => Operation::Device {
            path: absolute(path)?,
            mode: device_type(owner, *kind)? | (mode & 0o7777),
            major: *major,
            minor: *minor,
        },
        Requested::Symlink { path, target } => {
            Operation::Symlink { path: absolute(path)?, target: target.clone() }
        }
        Requested::Mkdir { path, mode, owner } => Operation::Directory {
            path: absolute(path)?,
            mode: mode & 0o7777,
            uid: owner.uid,
            gid: owner.gid,
        },
        Requested::Mask { path } => Operation::Mask { path: absolute(path)? },
        Requested::ReadOnly { path } => Operation::ReadOnly { path: absolute(path)? },
        _ => return Err(format!("`{owner}` requests an unknown operation")),
    })
}

fn device_type(owner: &str, kind: model::DeviceKind) -> Result<u32, String> {
    match kind {
        model::DeviceKind::Char => Ok(libc::S_IFCHR),
        model::DeviceKind::Block => Ok(libc::S_IFBLK),
        model::DeviceKind::Fifo => Ok(libc::S_IFIFO),
        _ => Err(format!("`{owner}` requests an unknown kind of device")),
    }
}

fn mount_option(option: &str) -> MountOption {
    match option.split_once('=') {
        Some((name, value)) => MountOption { name: name.into(), value: Some(value.into()) },
        None => MountOption { name: option.into(), value: None },
    }
}

fn attributes<'a>(owner: &str, flags: impl IntoIterator<Item = &'a String>) -> Result<Attributes, String> {
    flags.into_iter().try_fold(Attributes::default(), |attributes, flag| {
        Ok(attributes.with(match flag.as_str() {
            "ro" => Attributes::READ_ONLY,
            "rw" => Attributes::default(),
            "nosuid" => Attributes::NO_SUID,
            "nodev" => Attributes::NO_DEV,
            "noexec" => Attributes::NO_EXEC,
            "noatime" => Attributes::NO_ATIME,
            "strictatime" => Attributes::STRICT_ATIME,
            "nosymfollow" => Attributes::NO_SYMFOLLOW,
            other => return Err(format!("`{owner}` requests the unknown mount flag `{other}`")),
        }))
    })
}

/// What the plugins asked for; and for descriptors, what the agent was allowed before it allowed itself more.
fn limits(merged: &LaunchPlan, nofile: Option<(u64, u64)>) -> Result<Vec<Limit>, String> {
    let mut limits = merged.rlimits.iter().map(limit).collect::<Result<Vec<_>, _>>()?;
    if let Some((soft, hard)) = nofile.filter(|_| !merged.rlimits.contains_key("NOFILE")) {
        limits.push(Limit { resource: libc::RLIMIT_NOFILE, soft, hard });
    }
    Ok(limits)
}

fn limit((name, entry): (&String, &Owned<model::Rlimit>)) -> Result<Limit, String> {
    let owner = &entry.owner;
    let resource = match name.as_str() {
        "CPU" => libc::RLIMIT_CPU,
        "FSIZE" => libc::RLIMIT_FSIZE,
        "DATA" => libc::RLIMIT_DATA,
        "STACK" => libc::RLIMIT_STACK,
        "CORE" => libc::RLIMIT_CORE,
        "RSS" => libc::RLIMIT_RSS,
        "NPROC" => libc::RLIMIT_NPROC,
        "NOFILE" => libc::RLIMIT_NOFILE,
        "MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "AS" => libc::RLIMIT_AS,
        "LOCKS" => libc::RLIMIT_LOCKS,
        "SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "NICE" => libc::RLIMIT_NICE,
        "RTPRIO" => libc::RLIMIT_RTPRIO,
        "RTTIME" => libc::RLIMIT_RTTIME,
        other => return Err(format!("`{owner}` requests the unknown resource limit `{other}`")),
    };
    let soft = entry.value.soft.unwrap_or(u64::MAX);
    let hard = entry.value.hard.unwrap_or(u64::MAX);
    if soft > hard {
        return Err(format!(
            "`{owner}` requests a soft limit of {soft} above the hard one of {hard} for {name}"
        ));
    }
    Ok(Limit { resource, soft, hard })
}

fn capabilities(merged: &LaunchPlan) -> Result<Option<Capabilities>, String> {
    let set = |entry: &Option<Owned<std::collections::BTreeSet<String>>>| {
        entry
            .as_ref()
            .map(|entry| {
                entry.value.iter().try_fold(0u64, |set, name| {
                    let bit = cofferdam_linux::capability::number(name).ok_or_else(|| {
                        format!("`{}` requests the unknown capability `{name}`", entry.owner)
                    })?;
                    Ok::<u64, String>(set | 1 << bit)
                })
            })
            .transpose()
    };
    let effective = set(&merged.effective_capabilities)?;
    let bounding = set(&merged.bounding_capabilities)?;
    if effective.is_none() && bounding.is_none() {
        return Ok(None);
    }
    let bounding = bounding.or(effective).unwrap_or_default();
    let effective = effective.unwrap_or(bounding);
    if effective & !bounding != 0 {
        return Err("the capabilities to start with go beyond those that can ever be had".into());
    }
    Ok(Some(Capabilities {
        bounding,
        effective,
        permitted: effective,
        inheritable: effective,
        ambient: effective,
    }))
}
