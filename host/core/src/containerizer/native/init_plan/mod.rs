//! From the merged launch plan of a container to the plan of its first process.

mod credentials;
mod environment;
mod filesystem;
mod namespaces;
mod owner;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_init::plan::{self, Plan, flag};
use cofferdam_linux::cgroup::Cgroups;
use cofferdam_plugin_model::{self as model, Tty};

use super::record::NativeRecord;
use crate::chain::{LaunchPlan, Owned};
use crate::model::view::PlanEntry;
use crate::model::{ContainerClass, Record};

pub(super) use namespaces::namespaces;
pub(super) use owner::owner;

/// Timeout of a hook that sets none, in milliseconds.
const HOOK_TIMEOUT_MILLIS: u64 = 30_000;

/// What the plan of the first process is built from.
pub(super) struct Input<'a> {
    pub(super) record: &'a Record<NativeRecord>,
    pub(super) merged: &'a LaunchPlan,
    /// The container that a debug container inspects, and, if that is a debug container as well, those that it inspects.
    pub(super) inspected: &'a [Arc<Record<NativeRecord>>],
    /// Descriptors of the plugins' replies, which the merged plan refers to.
    pub(super) descriptors: &'a [OwnedFd],
    /// Values of secret environment variables.
    pub(super) secrets: &'a BTreeMap<String, String>,
    /// The socket of the switchboard, if the container has a terminal.
    pub(super) terminal: Option<OwnedFd>,
    /// Whether the launcher can create cgroup namespaces.
    pub(super) cgroup_namespaces: bool,
    /// `RLIMIT_NOFILE` if no plugin sets it.
    pub(super) nofile: Option<(u64, u64)>,
}

/// The plan of the first process, and the descriptors that it refers to.
pub(super) struct InitPlan {
    pub(super) plan: Plan,
    /// Passed to the first process after the usual ones, in this order.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Builds the plan of the first process. The error names the entry that cannot be carried out, and its plugin.
pub(super) fn build(mut input: Input<'_>) -> Result<InitPlan, String> {
    let terminal = input.terminal.take();
    let Input { record, merged, .. } = input;
    namespaces::check(merged)?;
    let mut descriptors = Descriptors { replies: input.descriptors, passed: Vec::new() };
    let mut flags = 0;
    flags |= namespaces::cgroup_flag(merged, input.cgroup_namespaces);
    if is_set(&merged.no_new_privileges) {
        flags |= flag::NO_NEW_PRIVILEGES;
    }
    // A session keyring is passed on to all processes: without its own, the container has that of the agent.
    if merged.session_keyring.as_ref().is_none_or(|keyring| keyring.value) {
        flags |= flag::SESSION_KEYRING;
    }
    if merged.root.is_none() {
        flags |= flag::CREATE_NOTHING;
    }
    // Who made the image may have put devices of the host into it. Those that are meant to be there are mounted.
    if record.part.image_root.is_some() {
        flags |= flag::ROOT_WITHOUT_DEVICES;
    }
    if record.request.linux.read_only_root {
        flags |= flag::READ_ONLY_ROOT;
    }
    if !record.request.linux.without_init {
        flags |= flag::REAPER;
    }
    let (program, arguments) = command(record, merged)?;
    let (seccomp, seccomp_flags) = credentials::seccomp(merged)?;
    let plan = Plan {
        flags,
        entered: namespaces::entered(merged, &mut descriptors)?,
        time_offsets: namespaces::time_offsets(merged)?,
        sysctls: namespaces::sysctls(merged)?,
        hooks: merged.hooks.iter().map(hook).collect::<Result<_, _>>()?,
        hostname: namespaces::hostname(record, merged)?,
        root: filesystem::root(merged)?,
        operations: filesystem::operations(record, merged, &mut descriptors)?,
        oom_score_adj: merged.oom_score_adj.as_ref().map(|score| score.value),
        working_directory: environment::working_directory(record, merged, input.inspected),
        terminal: terminal.map(|socket| pass_terminal(record, socket, &mut descriptors)).transpose()?,
        limits: credentials::limits(merged, input.nofile)?,
        user: credentials::user(record, merged),
        capabilities: credentials::capabilities(record, merged)?,
        seccomp,
        seccomp_flags,
        umask: 0o022,
        program,
        arguments,
        environment: environment::environment(&input),
    };
    Ok(InitPlan { plan, descriptors: descriptors.passed })
}

/// The terminal of a container, whose other side is sent over `socket`.
fn pass_terminal(
    record: &Record<NativeRecord>,
    socket: OwnedFd,
    descriptors: &mut Descriptors<'_>,
) -> Result<plan::Terminal, String> {
    let Tty { rows, columns } = record.request.tty.unwrap_or_default();
    Ok(plan::Terminal { descriptor: descriptors.pass(socket)?, rows, columns })
}

/// Whether a container's parent is the container that it inspects.
pub(super) fn inspects_parent(record: &Record<NativeRecord>) -> bool {
    record.request.class == ContainerClass::Debug
}

fn is_set(value: &Option<Owned<bool>>) -> bool {
    value.as_ref().is_some_and(|owned| owned.value)
}

/// Descriptors of the plugins' replies, and those of them that are passed to the first process.
struct Descriptors<'a> {
    replies: &'a [OwnedFd],
    passed: Vec<OwnedFd>,
}

impl Descriptors<'_> {
    /// The descriptor at an index, which was checked when the plan was merged.
    fn get(&self, index: usize) -> Result<&OwnedFd, String> {
        self.replies.get(index).ok_or_else(|| format!("there is no descriptor {index}"))
    }

    /// Passes a descriptor to the first process. Returns its number there.
    fn pass(&mut self, descriptor: OwnedFd) -> Result<u32, String> {
        const MAX: usize = 48;
        if self.passed.len() == MAX {
            return Err(format!("the plugins pass more than {MAX} descriptors to the container"));
        }
        self.passed.push(descriptor);
        u32::try_from(plan::DESCRIPTORS + self.passed.len() - 1).map_err(|error| error.to_string())
    }
}

/// The merged plan for display: what plugins request, and what the request and the agent add.
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
    if !record.groups.is_empty() {
        let groups: Vec<String> = record.groups.iter().map(u32::to_string).collect();
        add("groups", groups.join(", "), if command.user.is_some() { "request" } else { "agent" });
    }
    if let Some(stdout) = &record.logs.stdout {
        add("stdout", stdout.display().to_string(), "logger");
    }
    if let Some(stderr) = &record.logs.stderr {
        add("stderr", stderr.display().to_string(), "logger");
    }
    entries
}

/// The cgroups of a container, as plugins see them.
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

/// Program and arguments of the command. What a plugin rewrites replaces that part of the request; if it rewrites
/// the program and not the arguments, those of the request are kept.
fn command(record: &Record<NativeRecord>, merged: &LaunchPlan) -> Result<(OsString, Vec<OsString>), String> {
    let command = &record.request.command;
    let rewrite = merged.command.as_ref().map(|owned| &owned.value);
    let value = rewrite.and_then(|rewrite| rewrite.value.as_ref()).or(command.value.as_ref());
    let arguments = rewrite.and_then(|rewrite| rewrite.arguments.as_ref()).unwrap_or(&command.arguments);
    if rewrite.and_then(|rewrite| rewrite.shell).unwrap_or(command.shell) {
        let line = value.ok_or("it has a shell command without a line")?;
        return Ok(("sh".into(), vec!["sh".into(), "-c".into(), line.into()]));
    }
    let program = value.or(arguments.first()).ok_or("it has a command without a program")?;
    let arguments = if arguments.is_empty() {
        vec![program.into()]
    } else {
        arguments.iter().map(OsString::from).collect()
    };
    Ok((program.into(), arguments))
}

fn hook(owned: &Owned<model::LaunchHook>) -> Result<plan::Hook, String> {
    let Owned { value: hook, owner } = owned;
    if !hook.program.is_absolute() {
        return Err(format!(
            "`{owner}` requests the hook `{}`, which is not absolute",
            hook.program.display()
        ));
    }
    let stage = match hook.stage {
        model::HookStage::BeforeRoot => plan::stage::BEFORE_ROOT,
        model::HookStage::AfterRoot => plan::stage::AFTER_ROOT,
        model::HookStage::BeforeExec => plan::stage::BEFORE_EXEC,
        _ => return Err(format!("`{owner}` requests a hook at an unknown stage")),
    };
    let arguments = match hook.arguments.as_slice() {
        [] => vec![hook.program.clone().into_os_string()],
        arguments => arguments.iter().map(OsString::from).collect(),
    };
    let environment = hook.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let timeout_millis = if hook.timeout_millis == 0 { HOOK_TIMEOUT_MILLIS } else { hook.timeout_millis };
    Ok(plan::Hook { stage, program: hook.program.clone(), arguments, environment, timeout_millis })
}

#[cfg(test)]
mod tests;
