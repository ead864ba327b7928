//! The launch plan: the launch information of all plugins, merged, with the plugin that requested each entry.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cofferdam_plugin_model::{
    Capabilities, CommandRewrite, DeviceKind, HookStage, IdMappings, LaunchHook, LaunchInfo, Namespace,
    Operation, Propagation, Rlimit, Root, Seccomp, TimeOffsets,
};
use serde::{Deserialize, Serialize};

use crate::model::view::PlanEntry;

/// A value and the plugin that requested it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    /// The value.
    pub value: T,
    /// The plugin.
    pub owner: String,
}

/// The merged launch information. Indices of descriptors refer to
/// [`PreparedLaunch::descriptors`](super::PreparedLaunch::descriptors).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchPlan {
    /// Environment variables by name.
    pub environment: BTreeMap<String, Owned<String>>,
    /// Names of environment variables with secret values, which are not part of the plan.
    pub secret_environment: BTreeMap<String, String>,
    /// Values before those of a `:`-separated variable.
    pub environment_prepend: BTreeMap<String, Vec<Owned<String>>>,
    /// Values after those of a `:`-separated variable.
    pub environment_append: BTreeMap<String, Vec<Owned<String>>>,
    /// Replacement of the command.
    pub command: Option<Owned<CommandRewrite>>,
    /// Working directory of the command.
    pub working_directory: Option<Owned<String>>,
    /// Path at which the container sees its sandbox.
    pub sandbox_path: Option<Owned<String>>,
    /// User of the command.
    pub user: Option<Owned<String>>,
    /// Signal that asks the command to stop.
    pub stop_signal: Option<Owned<i32>>,
    /// Root filesystem.
    pub root: Option<Owned<Root>>,
    /// Namespaces of the parent to enter, with the first plugin that requested it.
    pub enter_namespaces: BTreeMap<Namespace, String>,
    /// Namespaces to enter by descriptor.
    pub enter_descriptors: BTreeMap<Namespace, Owned<usize>>,
    /// Namespaces to create, with the first plugin that requested it.
    pub clone_namespaces: BTreeMap<Namespace, String>,
    /// Id mappings of the user namespace.
    pub id_mappings: Option<Owned<IdMappings>>,
    /// Clock offsets of the time namespace.
    pub time_offsets: Option<Owned<TimeOffsets>>,
    /// Cgroup v1 directories of the first process.
    pub cgroups: Vec<Owned<PathBuf>>,
    /// Changes to the filesystem, in order.
    pub operations: Vec<Owned<Operation>>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, Owned<String>>,
    /// Host name.
    pub hostname: Option<Owned<String>>,
    /// Supplementary groups, with the first plugin that requested it.
    pub supplementary_groups: BTreeMap<u32, String>,
    /// Resource limits by name.
    pub rlimits: BTreeMap<String, Owned<Rlimit>>,
    /// Effective capabilities.
    pub effective_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Permitted capabilities.
    pub permitted_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Inheritable capabilities.
    pub inheritable_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Bounding capabilities.
    pub bounding_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Ambient capabilities.
    pub ambient_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Whether `no_new_privs` is set.
    pub no_new_privileges: Option<Owned<bool>>,
    /// Seccomp filter.
    pub seccomp: Option<Owned<Seccomp>>,
    /// Whether the command gets a session keyring of its own.
    pub session_keyring: Option<Owned<bool>>,
    /// Badness adjustment for the OOM killer.
    pub oom_score_adj: Option<Owned<i32>>,
    /// Commands to run during the launch, in order.
    pub hooks: Vec<Owned<LaunchHook>>,
    /// Labels by name.
    pub labels: BTreeMap<String, Owned<String>>,
}

/// Launch information that cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two plugins request different values.
    #[error("`{field}` is set by both `{first}` ({first_value}) and `{second}` ({second_value})")]
    Claimed {
        /// The field.
        field: String,
        /// The plugin that is earlier in the chain.
        first: String,
        /// Its value.
        first_value: String,
        /// The plugin that is later in the chain.
        second: String,
        /// Its value.
        second_value: String,
    },
    /// A plugin requests something that this agent does not know.
    #[error("`{owner}` requests a `{field}` that this agent does not know; upgrade the agent")]
    Unknown {
        /// The field.
        field: &'static str,
        /// The plugin.
        owner: String,
    },
    /// A plugin refers to a descriptor that its reply does not contain.
    #[error("`{owner}` refers to descriptor {index} of its reply, which contains {count}")]
    Descriptor {
        /// The plugin.
        owner: String,
        /// The index.
        index: usize,
        /// Number of descriptors in the reply.
        count: usize,
    },
}

/// Merges the single values of a plugin that have the same name in the plan.
macro_rules! merge_values {
    ($plan:ident, $owner:ident, $launch:ident: $($field:ident),+) => {
        $(merge_value(stringify!($field), &mut $plan.$field, $owner, $launch.$field)?;)+
    };
}

impl LaunchPlan {
    /// Adds the launch information of one plugin. Its descriptors are `count` many and are put at `first` and after.
    ///
    /// Secret values are left out: only the names are part of the plan.
    ///
    /// # Errors
    /// [`Conflict`] when it contradicts that of an earlier plugin, or cannot be understood.
    pub fn merge(
        &mut self,
        owner: &str,
        mut launch: LaunchInfo,
        first: usize,
        count: usize,
    ) -> Result<(), Conflict> {
        check_known(owner, &launch)?;
        let place = |index: usize| match index < count {
            true => Ok(first + index),
            false => Err(Conflict::Descriptor { owner: owner.to_owned(), index, count }),
        };
        for operation in &mut launch.operations {
            if let Operation::BindDescriptor { index, .. } = operation {
                *index = place(*index)?;
            }
        }
        for index in launch.enter_descriptors.values_mut() {
            *index = place(*index)?;
        }
        merge_values!(self, owner, launch: command, working_directory, sandbox_path, user, stop_signal, root, id_mappings, time_offsets,
            hostname, no_new_privileges, seccomp, session_keyring, oom_score_adj);
        let Capabilities { effective, permitted, inheritable, bounding, ambient } = launch.capabilities;
        merge_value("effective_capabilities", &mut self.effective_capabilities, owner, effective)?;
        merge_value("permitted_capabilities", &mut self.permitted_capabilities, owner, permitted)?;
        merge_value("inheritable_capabilities", &mut self.inheritable_capabilities, owner, inheritable)?;
        merge_value("bounding_capabilities", &mut self.bounding_capabilities, owner, bounding)?;
        merge_value("ambient_capabilities", &mut self.ambient_capabilities, owner, ambient)?;
        self.merge_environment(owner, launch.environment, launch.secret_environment.into_keys())?;
        extend(&mut self.environment_prepend, owner, launch.environment_prepend);
        extend(&mut self.environment_append, owner, launch.environment_append);
        merge_map("rlimits", &mut self.rlimits, owner, launch.rlimits)?;
        merge_map("sysctls", &mut self.sysctls, owner, launch.sysctls)?;
        merge_map("labels", &mut self.labels, owner, launch.labels)?;
        merge_map("enter_descriptors", &mut self.enter_descriptors, owner, launch.enter_descriptors)?;
        unite(&mut self.enter_namespaces, owner, launch.enter_namespaces);
        unite(&mut self.clone_namespaces, owner, launch.clone_namespaces);
        unite(&mut self.supplementary_groups, owner, launch.supplementary_groups);
        for cgroup in launch.cgroups {
            // Two controllers may be mounted in one hierarchy; its directory is joined once.
            if !self.cgroups.iter().any(|known| known.value == cgroup) {
                self.cgroups.push(owned(owner)(cgroup));
            }
        }
        self.operations.extend(launch.operations.into_iter().map(owned(owner)));
        self.hooks.extend(launch.hooks.into_iter().map(owned(owner)));
        Ok(())
    }

    /// Adds environment variables. A secret variable conflicts with any other of its name, as their values cannot be
    /// compared without showing them.
    pub(super) fn merge_environment(
        &mut self,
        owner: &str,
        environment: BTreeMap<String, String>,
        secrets: impl Iterator<Item = String>,
    ) -> Result<(), Conflict> {
        let claimed = |name: &str, first: &str, first_value: &str, second_value: &str| Conflict::Claimed {
            field: format!("environment.{name}"),
            first: first.to_owned(),
            first_value: first_value.to_owned(),
            second: owner.to_owned(),
            second_value: second_value.to_owned(),
        };
        for (name, value) in &environment {
            if let Some(first) = self.secret_environment.get(name) {
                return Err(claimed(name, first, SECRET, value));
            }
        }
        merge_map("environment", &mut self.environment, owner, environment)?;
        for name in secrets {
            if let Some(first) = self.environment.get(&name) {
                return Err(claimed(&name, &first.owner, &first.value, SECRET));
            }
            if let Some(first) = self.secret_environment.get(&name) {
                return Err(claimed(&name, first, SECRET, SECRET));
            }
            self.secret_environment.insert(name, owner.to_owned());
        }
        Ok(())
    }

    /// The bounding set of capabilities that follows from what plugins request.
    #[must_use]
    pub fn bounding_set(&self) -> Option<&BTreeSet<String>> {
        let sets = [&self.bounding_capabilities, &self.permitted_capabilities, &self.effective_capabilities];
        sets.into_iter().flatten().map(|owned| &owned.value).next()
    }

    /// Path at which the container sees its sandbox, if it has a root file system in which a plugin mounts it. Plugins that
    /// do not say so make it the working directory.
    #[must_use]
    pub fn sandbox_in_root(&self) -> Option<&str> {
        let path = self.sandbox_path.as_ref().or(self.working_directory.as_ref());
        self.root.as_ref().and(path).map(|owned| owned.value.as_str())
    }

    /// What later plugins get to know of the plan.
    pub(super) fn planned(&self) -> Planned {
        Planned {
            bounding_capabilities: self.bounding_set().cloned(),
            sandbox_path: self.sandbox_in_root().map(PathBuf::from),
            user: None,
        }
    }

    /// The plan as a list for display.
    #[must_use]
    pub fn entries(&self) -> Vec<PlanEntry> {
        let mut entries = Entries::default();
        entries.value("root", &self.root);
        entries.set("enter_namespaces", &self.enter_namespaces);
        entries.map("enter_descriptors", &self.enter_descriptors);
        entries.set("clone_namespaces", &self.clone_namespaces);
        entries.value("id_mappings", &self.id_mappings);
        entries.value("time_offsets", &self.time_offsets);
        entries.list("cgroups", &self.cgroups);
        entries.list("operations", &self.operations);
        entries.map("sysctls", &self.sysctls);
        entries.value("hostname", &self.hostname);
        entries.value("command", &self.command);
        entries.map("environment", &self.environment);
        for (name, owner) in &self.secret_environment {
            entries.add(format!("environment.{name}"), SECRET.into(), owner);
        }
        for (name, values) in &self.environment_prepend {
            entries.list(&format!("environment_prepend.{name}"), values);
        }
        for (name, values) in &self.environment_append {
            entries.list(&format!("environment_append.{name}"), values);
        }
        entries.value("working_directory", &self.working_directory);
        entries.value("sandbox_path", &self.sandbox_path);
        entries.value("user", &self.user);
        entries.value("stop_signal", &self.stop_signal);
        entries.set("supplementary_groups", &self.supplementary_groups);
        entries.map("rlimits", &self.rlimits);
        entries.value("effective_capabilities", &self.effective_capabilities);
        entries.value("permitted_capabilities", &self.permitted_capabilities);
        entries.value("inheritable_capabilities", &self.inheritable_capabilities);
        entries.value("bounding_capabilities", &self.bounding_capabilities);
        entries.value("ambient_capabilities", &self.ambient_capabilities);
        entries.value("no_new_privileges", &self.no_new_privileges);
        if let Some(Owned { value, owner }) = &self.seccomp {
            entries.add("seccomp".into(), format!("{} instructions", value.program.len()), owner);
        }
        entries.value("session_keyring", &self.session_keyring);
        entries.value("oom_score_adj", &self.oom_score_adj);
        entries.list("hooks", &self.hooks);
        entries.map("labels", &self.labels);
        entries.0
    }
}

/// A part of a plan that later plugins depend on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) bounding_capabilities: Option<BTreeSet<String>>,
    pub(super) sandbox_path: Option<PathBuf>,
    /// The user and group of the command, if a plugin sets them.
    pub(super) user: Option<(u32, u32)>,
}

/// Displayed instead of a secret value.
const SECRET: &str = "<secret>";

#[derive(Default)]
struct Entries(Vec<PlanEntry>);

impl Entries {
    fn add(&mut self, field: String, value: String, owner: &str) {
        self.0.push(PlanEntry { field, value, owner: owner.to_owned() });
    }

    fn value<T: Serialize>(&mut self, field: &str, value: &Option<Owned<T>>) {
        self.list(field, value.as_slice());
    }

    fn list<T: Serialize>(&mut self, field: &str, values: &[Owned<T>]) {
        for Owned { value, owner } in values {
            self.add(field.to_owned(), show(value), owner);
        }
    }

    fn map<K: Serialize, T: Serialize>(&mut self, field: &str, values: &BTreeMap<K, Owned<T>>) {
        for (name, Owned { value, owner }) in values {
            self.add(format!("{field}.{}", show(name)), show(value), owner);
        }
    }

    fn set<T: Serialize>(&mut self, field: &str, values: &BTreeMap<T, String>) {
        for (value, owner) in values {
            self.add(field.to_owned(), show(value), owner);
        }
    }
}

/// One line of JSON, the notation in which plugins and operators see these values elsewhere; strings without quotes.
fn show(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Refuses variants of enums that this agent does not know. Unknown keys are refused when the reply is decoded.
fn check_known(owner: &str, launch: &LaunchInfo) -> Result<(), Conflict> {
    let unknown_operation = |operation: &Operation| {
        matches!(
            operation,
            Operation::Unknown
                | Operation::Device { kind: DeviceKind::Unknown, .. }
                | Operation::Propagation { propagation: Propagation::Unknown, .. }
        )
    };
    let mut namespaces =
        launch.enter_namespaces.iter().chain(&launch.clone_namespaces).chain(launch.enter_descriptors.keys());
    let field = if namespaces.any(|&namespace| namespace == Namespace::Unknown) {
        "namespace"
    } else if launch.root == Some(Root::Unknown) {
        "root"
    } else if launch.operations.iter().any(unknown_operation) {
        "operation"
    } else if launch.hooks.iter().any(|hook| hook.stage == HookStage::Unknown) {
        "hook stage"
    } else {
        return Ok(());
    };
    Err(Conflict::Unknown { field, owner: owner.to_owned() })
}

fn owned<T>(owner: &str) -> impl Fn(T) -> Owned<T> {
    move |value| Owned { value, owner: owner.to_owned() }
}

fn merge_value<T: PartialEq + Serialize>(
    field: &str,
    merged: &mut Option<Owned<T>>,
    owner: &str,
    value: Option<T>,
) -> Result<(), Conflict> {
    let Some(value) = value else { return Ok(()) };
    match merged {
        Some(first) if first.value != value => Err(claimed(field.to_owned(), first, owner, &value)),
        Some(_) => Ok(()),
        None => {
            *merged = Some(owned(owner)(value));
            Ok(())
        }
    }
}

fn merge_map<K: Ord + Serialize, T: PartialEq + Serialize>(
    field: &str,
    merged: &mut BTreeMap<K, Owned<T>>,
    owner: &str,
    values: BTreeMap<K, T>,
) -> Result<(), Conflict> {
    for (name, value) in values {
        match merged.get(&name) {
            Some(first) if first.value != value => {
                return Err(claimed(format!("{field}.{}", show(&name)), first, owner, &value));
            }
            Some(_) => {}
            None => {
                merged.insert(name, owned(owner)(value));
            }
        }
    }
    Ok(())
}

fn claimed<T: Serialize>(field: String, first: &Owned<T>, second: &str, value: &T) -> Conflict {
    Conflict::Claimed {
        field,
        first: first.owner.clone(),
        first_value: show(&first.value),
        second: second.to_owned(),
        second_value: show(value),
    }
}

fn unite<T: Ord>(merged: &mut BTreeMap<T, String>, owner: &str, values: BTreeSet<T>) {
    for value in values {
        merged.entry(value).or_insert_with(|| owner.to_owned());
    }
}

fn extend(
    merged: &mut BTreeMap<String, Vec<Owned<String>>>,
    owner: &str,
    values: BTreeMap<String, Vec<String>>,
) {
    for (name, values) in values {
        merged.entry(name).or_default().extend(values.into_iter().map(owned(owner)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variable(name: &str, value: &str) -> LaunchInfo {
        LaunchInfo { environment: [(name.to_owned(), value.to_owned())].into(), ..LaunchInfo::default() }
    }

    #[test]
    fn a_conflict_names_both_plugins_and_their_values() {
        let mut plan = LaunchPlan::default();
        plan.merge("gpu/nvidia", variable("PATH", "/gpu"), 0, 0).unwrap();
        plan.merge("gpu/other", variable("PATH", "/gpu"), 0, 0).unwrap();
        let conflict = plan.merge("runtime/env", variable("PATH", "/bin"), 0, 0).unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "`environment.PATH` is set by both `gpu/nvidia` (/gpu) and `runtime/env` (/bin)"
        );
    }

    #[test]
    fn the_first_plugin_that_requests_a_namespace_owns_it() {
        let launch = LaunchInfo { clone_namespaces: [Namespace::Mount].into(), ..LaunchInfo::default() };
        let mut plan = LaunchPlan::default();
        plan.merge("filesystem/linux", launch.clone(), 0, 0).unwrap();
        plan.merge("namespaces/pid", launch, 0, 0).unwrap();
        assert_eq!(plan.clone_namespaces[&Namespace::Mount], "filesystem/linux");
    }

    #[test]
    fn unknown_variants_are_refused_by_name() {
        let launch: LaunchInfo = serde_json::from_str(r#"{"operations":[{"type":"teleport"}]}"#).unwrap();
        let conflict = LaunchPlan::default().merge("future/plugin", launch, 0, 0).unwrap_err();
        assert!(matches!(conflict, Conflict::Unknown { field: "operation", .. }));
    }

    #[test]
    fn a_secret_is_neither_shown_nor_compared() {
        let secret = || LaunchInfo {
            secret_environment: [("TOKEN".to_owned(), "hunter2".to_owned())].into(),
            ..LaunchInfo::default()
        };
        let mut plan = LaunchPlan::default();
        plan.merge("secrets/a", secret(), 0, 0).unwrap();
        assert_eq!(plan.entries()[0].value, "<secret>");
        for second in [secret(), variable("TOKEN", "hunter2")] {
            let conflict = plan.clone().merge("secrets/b", second, 0, 0).unwrap_err().to_string();
            assert!(
                conflict.starts_with("`environment.TOKEN` is set by both `secrets/a` (<secret>)"),
                "{conflict}"
            );
        }
        assert!(!serde_json::to_string(&plan).unwrap().contains("hunter2"));
    }

    #[test]
    fn descriptors_are_renumbered_and_missing_ones_refused() {
        let launch =
            || LaunchInfo { enter_descriptors: [(Namespace::Network, 1)].into(), ..LaunchInfo::default() };
        let mut plan = LaunchPlan::default();
        plan.merge("network/cni", launch(), 5, 2).unwrap();
        assert_eq!(plan.enter_descriptors[&Namespace::Network].value, 6);
        let conflict = LaunchPlan::default().merge("network/cni", launch(), 0, 1).unwrap_err();
        assert!(matches!(conflict, Conflict::Descriptor { index: 1, count: 1, .. }));
    }

    #[test]
    fn values_before_and_after_a_variable_keep_the_order_of_the_chain() {
        let launch = |value: &str| LaunchInfo {
            environment_prepend: [("PATH".to_owned(), vec![value.to_owned()])].into(),
            ..LaunchInfo::default()
        };
        let mut plan = LaunchPlan::default();
        plan.merge("a/a", launch("/a"), 0, 0).unwrap();
        plan.merge("b/b", launch("/b"), 0, 0).unwrap();
        let values: Vec<_> = plan.environment_prepend["PATH"].iter().map(|entry| &entry.value).collect();
        assert_eq!(values, ["/a", "/b"]);
    }

    fn launch_infos() -> impl Strategy<Value = LaunchInfo> {
        let variables = proptest::collection::btree_map("[A-C]", "[xy]", 0..3);
        let groups = proptest::collection::btree_set(0u32..4, 0..3);
        let directory = proptest::option::of("/[ab]");
        (variables, groups, directory).prop_map(|(environment, supplementary_groups, working_directory)| {
            LaunchInfo { environment, supplementary_groups, working_directory, ..LaunchInfo::default() }
        })
    }

    proptest! {
        /// A later plugin can add to a plan and never changes what is in it.
        #[test]
        fn merging_never_changes_what_is_there(first in launch_infos(), second in launch_infos()) {
            let mut plan = LaunchPlan::default();
            plan.merge("first", first, 0, 0).unwrap();
            let before = plan.clone();
            if plan.merge("second", second, 0, 0).is_ok() {
                for (name, variable) in &before.environment {
                    prop_assert_eq!(&plan.environment[name], variable);
                }
                for (group, owner) in &before.supplementary_groups {
                    prop_assert_eq!(&plan.supplementary_groups[group], owner);
                }
                if before.working_directory.is_some() {
                    prop_assert_eq!(plan.working_directory, before.working_directory);
                }
            }
        }

        /// Two plugins may request the same.
        #[test]
        fn equal_values_are_no_conflict(launch in launch_infos()) {
            let mut plan = LaunchPlan::default();
            plan.merge("first", launch.clone(), 0, 0).unwrap();
            let before = plan.clone();
            plan.merge("second", launch, 0, 0).unwrap();
            prop_assert_eq!(plan, before);
        }
    }
}
