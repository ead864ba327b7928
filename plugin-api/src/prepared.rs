//! Replies of an isolator: what a launch is to include, and the state that the agent keeps.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_plugin_model as model;
use model::{
    Capabilities, CommandRewrite, IdMappings, LaunchHook, LaunchInfo, Namespace, Operation, Rlimit, Root,
    Seccomp, TimeOffsets,
};
use serde::Serialize;

use crate::Result;

/// Reply of [`Isolator::prepare`](crate::Isolator::prepare): what the launch is to include, and the plugin's state for
/// the container.
///
/// The agent merges the requests of all plugins in chain order. Maps and lists are united; if two plugins set a single
/// value differently, the launch fails and the error names both. Descriptors are closed when a `Prepared` is dropped
/// instead of returned.
#[derive(Debug, Default)]
pub struct Prepared {
    pub(crate) reply: model::PrepareReply,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Prepared {
    /// Requests nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The requests themselves. Indexes of descriptors in them come from the methods of this type.
    pub fn launch(&mut self) -> &mut LaunchInfo {
        &mut self.reply.launch
    }

    /// Has the agent keep `state` for this container. It is on disk before the container runs, and every later call
    /// gets it.
    ///
    /// # Errors
    /// If the state cannot be encoded as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.reply.state = Some(serde_json::to_value(state)?);
        Ok(self)
    }

    fn with<T>(mut self, change: impl FnOnce(&mut LaunchInfo) -> T) -> Self {
        let _previous = change(&mut self.reply.launch);
        self
    }

    fn add(&mut self, descriptor: OwnedFd) -> usize {
        self.descriptors.push(descriptor);
        self.descriptors.len() - 1
    }
}

/// The environment and the command.
impl Prepared {
    /// Sets an environment variable of the command. One that the command itself sets takes precedence.
    #[must_use]
    pub fn environment(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|launch| launch.environment.insert(name.into(), value.into()))
    }

    /// Sets an environment variable whose value is neither shown nor recorded. Feature `launch.secret_environment`.
    #[must_use]
    pub fn secret_environment(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|launch| launch.secret_environment.insert(name.into(), value.into()))
    }

    /// Puts a value before those of a `:`-separated variable such as `PATH`, whoever sets it. Feature
    /// `launch.environment_append`.
    #[must_use]
    pub fn prepend_environment(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|launch| launch.environment_prepend.entry(name.into()).or_default().push(value.into()))
    }

    /// Puts a value after those of a `:`-separated variable such as `PATH`, whoever sets it. Feature
    /// `launch.environment_append`.
    #[must_use]
    pub fn append_environment(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|launch| launch.environment_append.entry(name.into()).or_default().push(value.into()))
    }

    /// Replaces the command or its arguments.
    #[must_use]
    pub fn command(self, command: CommandRewrite) -> Self {
        self.with(|launch| launch.command = Some(command))
    }

    /// Sets the working directory, an absolute path of the container. That of the command itself takes precedence.
    #[must_use]
    pub fn working_directory(self, directory: impl Into<String>) -> Self {
        self.with(|launch| launch.working_directory = Some(directory.into()))
    }

    /// Sets the user to run the command as, unless the request has one: `USER` or `USER:GROUP`, each a name or a number.
    /// Feature `launch.user`.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> Self {
        self.with(|launch| launch.user = Some(user.into()))
    }

    /// Sets the number of the signal that asks the command to stop. Feature `launch.stop_signal`.
    #[must_use]
    pub fn stop_signal(self, signal: i32) -> Self {
        self.with(|launch| launch.stop_signal = Some(signal))
    }

    /// Adds a label that the launch plan shows. Feature `launch.labels`.
    #[must_use]
    pub fn label(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|launch| launch.labels.insert(name.into(), value.into()))
    }

    /// Runs a command during the launch, after those added earlier for the same stage. Feature `launch.hooks`.
    #[must_use]
    pub fn hook(self, hook: LaunchHook) -> Self {
        self.with(|launch| launch.hooks.push(hook))
    }
}

/// Namespaces and cgroups.
impl Prepared {
    /// Creates a namespace for the container.
    #[must_use]
    pub fn clone_namespace(self, namespace: Namespace) -> Self {
        self.with(|launch| launch.clone_namespaces.insert(namespace))
    }

    /// Enters a namespace of the parent container.
    #[must_use]
    pub fn enter_namespace(self, namespace: Namespace) -> Self {
        self.with(|launch| launch.enter_namespaces.insert(namespace))
    }

    /// Enters the namespace that a descriptor refers to (an open `/proc/<pid>/ns/net`, or a file that a namespace is
    /// mounted on). Feature `launch.enter_descriptor`.
    #[must_use]
    pub fn enter_by_descriptor(mut self, namespace: Namespace, descriptor: OwnedFd) -> Self {
        let index = self.add(descriptor);
        self.with(|launch| launch.enter_descriptors.insert(namespace, index))
    }

    /// Sets the id mappings of the container's own user namespace; requires `clone_namespace(Namespace::User)` by some
    /// plugin. Agents of this version support neither: the launch fails with an error that names the plugin.
    #[must_use]
    pub fn id_mappings(self, mappings: IdMappings) -> Self {
        self.with(|launch| launch.id_mappings = Some(mappings))
    }

    /// Sets the clock offsets of the container's own time namespace; requires `clone_namespace(Namespace::Time)` by
    /// some plugin. Feature `launch.time_offsets`.
    #[must_use]
    pub fn time_offsets(self, offsets: TimeOffsets) -> Self {
        self.with(|launch| launch.time_offsets = Some(offsets))
    }

    /// Starts the container's first process in this directory of a cgroup v1 hierarchy, which must exist. On v2 it always
    /// starts in the container's own cgroup.
    #[must_use]
    pub fn cgroup(self, directory: impl Into<PathBuf>) -> Self {
        self.with(|launch| launch.cgroups.push(directory.into()))
    }

    /// Sets a kernel parameter (`net.ipv4.ip_forward`) of a namespace of the container's own. Feature `launch.sysctls`.
    #[must_use]
    pub fn sysctl(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|launch| launch.sysctls.insert(name.into(), value.into()))
    }

    /// Sets the host name; requires a UTS namespace of the container's own. Feature `launch.hostname`.
    #[must_use]
    pub fn hostname(self, name: impl Into<String>) -> Self {
        self.with(|launch| launch.hostname = Some(name.into()))
    }
}

/// The filesystem.
impl Prepared {
    /// Sets the root filesystem.
    #[must_use]
    pub fn root(self, root: Root) -> Self {
        self.with(|launch| launch.root = Some(root))
    }

    /// Says at which path of the root filesystem the container sees its sandbox, which is then its working directory unless
    /// another is set. Feature `launch.sandbox_path`.
    #[must_use]
    pub fn sandbox_path(self, path: impl Into<String>) -> Self {
        self.with(|launch| launch.sandbox_path = Some(path.into()))
    }

    /// Adds a change to the container's view of the filesystem, after those added earlier.
    #[must_use]
    pub fn operation(self, operation: Operation) -> Self {
        self.with(|launch| launch.operations.push(operation))
    }

    /// Bind-mounts what a descriptor refers to (a file, a directory, or a detached mount of
    /// [`mount`](crate::mount)) at a path of the container, with mounts below it. `flags` are those of
    /// [`Operation::Bind`]: `ro`, `nosuid`, …. Feature `launch.bind_descriptor`.
    #[must_use]
    pub fn bind_descriptor<'a>(
        mut self,
        descriptor: OwnedFd,
        target: impl Into<PathBuf>,
        flags: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let index = self.add(descriptor);
        let flags = flags.into_iter().map(str::to_owned).collect();
        self.operation(Operation::BindDescriptor { index, target: target.into(), recursive: true, flags })
    }
}

/// Privileges and limits.
impl Prepared {
    /// Adds a supplementary group.
    #[must_use]
    pub fn supplementary_group(self, gid: u32) -> Self {
        self.with(|launch| launch.supplementary_groups.insert(gid))
    }

    /// Sets a resource limit by its name without `RLIMIT_`: `NOFILE`, `CORE`, ….
    #[must_use]
    pub fn rlimit(self, name: impl Into<String>, limit: Rlimit) -> Self {
        self.with(|launch| launch.rlimits.insert(name.into(), limit))
    }

    /// Sets the capability sets. Feature `launch.capabilities`.
    #[must_use]
    pub fn capabilities(self, capabilities: Capabilities) -> Self {
        self.with(|launch| launch.capabilities = capabilities)
    }

    /// Sets or clears `no_new_privs`.
    #[must_use]
    pub fn no_new_privileges(self, set: bool) -> Self {
        self.with(|launch| launch.no_new_privileges = Some(set))
    }

    /// Installs a seccomp filter directly before the command is executed. Feature `launch.seccomp`.
    #[must_use]
    pub fn seccomp(self, filter: Seccomp) -> Self {
        self.with(|launch| launch.seccomp = Some(filter))
    }

    /// Gives the command a session keyring of its own, or not. Feature `launch.session_keyring`.
    #[must_use]
    pub fn session_keyring(self, own: bool) -> Self {
        self.with(|launch| launch.session_keyring = Some(own))
    }

    /// Sets the adjustment for the OOM killer, from -1000 (never killed) to 1000.
    #[must_use]
    pub fn oom_score_adj(self, adjustment: i32) -> Self {
        self.with(|launch| launch.oom_score_adj = Some(adjustment))
    }
}

/// Reply of [`Isolator::isolate`](crate::Isolator::isolate) and [`Isolator::update`](crate::Isolator::update): the
/// plugin's state for the container, if it has changed.
#[derive(Debug, Default)]
pub struct Applied(pub(crate) model::StateReply);

impl Applied {
    /// The state is unchanged.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the agent keep `state` instead of the old one.
    ///
    /// # Errors
    /// If the state cannot be encoded as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.0.state = Some(serde_json::to_value(state)?);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs::File;

    use model::{BpfInstruction, HookStage, IdMapping, Owner};

    use super::*;

    fn everything() -> Prepared {
        Prepared::new()
            .environment("A", "1")
            .secret_environment("TOKEN", "s3cret")
            .prepend_environment("PATH", "/first")
            .append_environment("PATH", "/last")
            .command(CommandRewrite { value: Some("/bin/init".into()), ..CommandRewrite::default() })
            .working_directory("/srv")
            .sandbox_path("/sandbox")
            .user("web:www")
            .stop_signal(3)
            .root(Root::Directory { path: "/image".into() })
            .enter_namespace(Namespace::Pid)
            .enter_by_descriptor(Namespace::Network, File::open("/proc/self/ns/net").unwrap().into())
            .clone_namespace(Namespace::User)
            .id_mappings(IdMappings {
                uids: vec![IdMapping { container: 0, host: 1000, size: 1 }],
                ..IdMappings::default()
            })
            .time_offsets(TimeOffsets { monotonic_nanos: 1, boottime_nanos: 2 })
            .cgroup("/sys/fs/cgroup/memory/web")
            .operation(Operation::WriteFile {
                path: "/etc/hostname".into(),
                content: "web\n".into(),
                mode: 0o644,
                owner: Owner::default(),
            })
            .bind_descriptor(File::open("/").unwrap().into(), "/mnt", ["ro", "nosuid"])
            .sysctl("net.ipv4.ip_forward", "1")
            .hostname("web")
            .supplementary_group(27)
            .rlimit("NOFILE", Rlimit { soft: Some(1), hard: None })
            .capabilities(Capabilities {
                effective: Some(["NET_RAW".to_owned()].into()),
                ..Capabilities::default()
            })
            .no_new_privileges(true)
            .seccomp(Seccomp { program: vec![BpfInstruction(6, 0, 0, 0x7fff_0000)], flags: BTreeSet::new() })
            .session_keyring(true)
            .oom_score_adj(500)
            .label("tier", "front")
            .hook(LaunchHook {
                stage: HookStage::AfterRoot,
                program: "/bin/true".into(),
                arguments: Vec::new(),
                environment: BTreeMap::new(),
                timeout_millis: 0,
            })
    }

    #[test]
    fn every_field_of_the_launch_can_be_set() {
        let set = serde_json::to_value(everything().launch()).unwrap();
        // Destructured without `..`, so that a new field has to be added here and to `everything`.
        let LaunchInfo {
            environment,
            secret_environment,
            environment_prepend,
            environment_append,
            command,
            working_directory,
            sandbox_path,
            user,
            stop_signal,
            root,
            enter_namespaces,
            enter_descriptors,
            clone_namespaces,
            id_mappings,
            time_offsets,
            cgroups,
            operations,
            sysctls,
            hostname,
            supplementary_groups,
            rlimits,
            capabilities,
            no_new_privileges,
            seccomp,
            session_keyring,
            oom_score_adj,
            hooks,
            labels,
        } = serde_json::from_value(set).unwrap();
        assert!(command.is_some() && working_directory.is_some() && root.is_some() && seccomp.is_some());
        assert!(sandbox_path.is_some() && user.is_some() && stop_signal.is_some());
        assert!(id_mappings.is_some() && time_offsets.is_some() && hostname.is_some());
        assert!(no_new_privileges.is_some() && session_keyring.is_some() && oom_score_adj.is_some());
        assert!(!capabilities.is_empty());
        let sizes = [
            environment.len(),
            secret_environment.len(),
            environment_prepend.len(),
            environment_append.len(),
            enter_namespaces.len(),
            enter_descriptors.len(),
            clone_namespaces.len(),
            cgroups.len(),
            sysctls.len(),
            supplementary_groups.len(),
            rlimits.len(),
            hooks.len(),
            labels.len(),
        ];
        assert_eq!(sizes, [1; 13]);
        assert_eq!(operations.len(), 2);
    }

    #[test]
    fn descriptors_are_referred_to_by_their_index() {
        let mut prepared = everything();
        assert_eq!(prepared.descriptors.len(), 2);
        assert_eq!(prepared.launch().enter_descriptors[&Namespace::Network], 0);
        let bind = Operation::BindDescriptor {
            index: 1,
            target: "/mnt".into(),
            recursive: true,
            flags: ["nosuid".to_owned(), "ro".to_owned()].into(),
        };
        assert_eq!(prepared.launch().operations[1], bind);
    }
}
