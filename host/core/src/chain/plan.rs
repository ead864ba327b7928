//! The launch plan: the wishes of all plugins, merged, each with the name of who asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;

use cofferdam_plugin_model::{CommandRewrite, LaunchInfo, Namespace, Operation, Rlimit, Root};
use serde::{Deserialize, Serialize};

use crate::model::view::PlanEntry;

/// A value and the plugin that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    /// What was asked for.
    pub value: T,
    /// By whom.
    pub owner: String,
}

/// The merged wishes for one launch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchPlan {
    /// Variables by name.
    pub environment: BTreeMap<String, Owned<String>>,
    /// Another command.
    pub command: Option<Owned<CommandRewrite>>,
    /// Where the command starts.
    pub working_directory: Option<Owned<String>>,
    /// The root file system.
    pub root: Option<Owned<Root>>,
    /// Namespaces of the parent to enter, with the first who asked.
    pub enter_namespaces: BTreeMap<Namespace, String>,
    /// Namespaces to make anew, with the first who asked.
    pub clone_namespaces: BTreeMap<Namespace, String>,
    /// Cgroup v1 directories to be born in.
    pub cgroups: Vec<Owned<PathBuf>>,
    /// Changes to the file system, in order.
    pub operations: Vec<Owned<Operation>>,
    /// Extra groups, with the first who asked.
    pub supplementary_groups: BTreeMap<u32, String>,
    /// Resource limits by name.
    pub rlimits: BTreeMap<String, Owned<Rlimit>>,
    /// Capabilities to start with.
    pub effective_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Capabilities that can ever be had.
    pub bounding_capabilities: Option<Owned<BTreeSet<String>>>,
    /// Whether privileges can be gained.
    pub no_new_privileges: Option<Owned<bool>>,
    /// How eagerly the kernel picks it when memory runs out.
    pub oom_score_adj: Option<Owned<i32>>,
}

/// PreparedLaunch that cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two plugins want different things.
    #[error("`{field}` is claimed by both `{first}` ({first_value}) and `{second}` ({second_value})")]
    Claimed {
        /// Which field.
        field: String,
        /// Who came first.
        first: String,
        /// What they want.
        first_value: String,
        /// Who came later in the chain.
        second: String,
        /// What they want.
        second_value: String,
    },
    /// A plugin wants something that came after this agent.
    #[error("`{owner}` asks for a `{field}` that this agent does not know; upgrade the agent")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Who asked.
        owner: String,
    },
}

impl LaunchPlan {
    /// Adds the wishes of one plugin.
    ///
    /// # Errors
    /// [`Conflict`] when they contradict those of an earlier one.
    pub fn merge(&mut self, owner: &str, wishes: LaunchInfo) -> Result<(), Conflict> {
        check_known(owner, &wishes)?;
        merge_map("environment", &mut self.environment, owner, wishes.environment)?;
        merge_map("rlimits", &mut self.rlimits, owner, wishes.rlimits)?;
        merge_one("command", &mut self.command, owner, wishes.command)?;
        merge_one("working_directory", &mut self.working_directory, owner, wishes.working_directory)?;
        merge_one("root", &mut self.root, owner, wishes.root)?;
        merge_one(
            "effective_capabilities",
            &mut self.effective_capabilities,
            owner,
            wishes.effective_capabilities,
        )?;
        merge_one(
            "bounding_capabilities",
            &mut self.bounding_capabilities,
            owner,
            wishes.bounding_capabilities,
        )?;
        merge_one("no_new_privileges", &mut self.no_new_privileges, owner, wishes.no_new_privileges)?;
        merge_one("oom_score_adj", &mut self.oom_score_adj, owner, wishes.oom_score_adj)?;
        unite(&mut self.enter_namespaces, owner, wishes.enter_namespaces);
        unite(&mut self.clone_namespaces, owner, wishes.clone_namespaces);
        unite(&mut self.supplementary_groups, owner, wishes.supplementary_groups);
        for cgroup in wishes.cgroups {
            // Two controllers may share one hierarchy; its directory is joined once.
            if !self.cgroups.iter().any(|known| known.value == cgroup) {
                self.cgroups.push(Owned { value: cgroup, owner: owner.to_owned() });
            }
        }
        let operations = wishes.operations.into_iter();
        self.operations.extend(operations.map(|value| Owned { value, owner: owner.to_owned() }));
        Ok(())
    }

    /// The plan as a list for people.
    #[must_use]
    pub fn entries(&self) -> Vec<PlanEntry> {
        let mut entries = Vec::new();
        let mut add = |field: String, value: String, owner: &str| {
            entries.push(PlanEntry { field, value, owner: owner.to_owned() });
        };
        if let Some(root) = &self.root {
            add("root".into(), show(&root.value), &root.owner);
        }
        for (namespace, owner) in &self.enter_namespaces {
            add("enter_namespaces".into(), show(namespace), owner);
        }
        for (namespace, owner) in &self.clone_namespaces {
            add("clone_namespaces".into(), show(namespace), owner);
        }
        for cgroup in &self.cgroups {
            add("cgroups".into(), cgroup.value.display().to_string(), &cgroup.owner);
        }
        for operation in &self.operations {
            add("operations".into(), show(&operation.value), &operation.owner);
        }
        if let Some(command) = &self.command {
            add("command".into(), show(&command.value), &command.owner);
        }
        for (name, variable) in &self.environment {
            add(format!("environment.{name}"), variable.value.clone(), &variable.owner);
        }
        if let Some(directory) = &self.working_directory {
            add("working_directory".into(), directory.value.clone(), &directory.owner);
        }
        for (group, owner) in &self.supplementary_groups {
            add("supplementary_groups".into(), group.to_string(), owner);
        }
        for (name, limit) in &self.rlimits {
            add(format!("rlimits.{name}"), show(&limit.value), &limit.owner);
        }
        if let Some(set) = &self.effective_capabilities {
            add("effective_capabilities".into(), show(&set.value), &set.owner);
        }
        if let Some(set) = &self.bounding_capabilities {
            add("bounding_capabilities".into(), show(&set.value), &set.owner);
        }
        if let Some(off) = &self.no_new_privileges {
            add("no_new_privileges".into(), off.value.to_string(), &off.owner);
        }
        if let Some(score) = &self.oom_score_adj {
            add("oom_score_adj".into(), score.value.to_string(), &score.owner);
        }
        entries
    }
}

/// One line of JSON: the notation in which plugins and operators see these values elsewhere.
fn show(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        Err(error) => error.to_string(),
    }
}

fn check_known(owner: &str, wishes: &LaunchInfo) -> Result<(), Conflict> {
    let namespaces = wishes.enter_namespaces.iter().chain(&wishes.clone_namespaces);
    let field = if namespaces.into_iter().any(|&namespace| namespace == Namespace::Unknown) {
        "namespace"
    } else if wishes.root == Some(Root::Unknown) {
        "root"
    } else if wishes.operations.contains(&Operation::Unknown) {
        "operation"
    } else {
        return Ok(());
    };
    Err(Conflict::Unknown { field, owner: owner.to_owned() })
}

fn merge_one<T: PartialEq + Serialize>(
    field: &str,
    mine: &mut Option<Owned<T>>,
    owner: &str,
    wish: Option<T>,
) -> Result<(), Conflict> {
    let Some(value) = wish else { return Ok(()) };
    match mine {
        Some(first) if first.value != value => Err(claimed(field.to_owned(), first, owner, &value)),
        Some(_) => Ok(()),
        None => {
            *mine = Some(Owned { value, owner: owner.to_owned() });
            Ok(())
        }
    }
}

fn merge_map<T: PartialEq + Serialize>(
    field: &str,
    mine: &mut BTreeMap<String, Owned<T>>,
    owner: &str,
    wishes: BTreeMap<String, T>,
) -> Result<(), Conflict> {
    for (name, value) in wishes {
        match mine.get(&name) {
            Some(first) if first.value != value => {
                return Err(claimed(format!("{field}.{name}"), first, owner, &value));
            }
            Some(_) => {}
            None => {
                mine.insert(name, Owned { value, owner: owner.to_owned() });
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

fn unite<T: Ord>(mine: &mut BTreeMap<T, String>, owner: &str, wishes: BTreeSet<T>) {
    for wish in wishes {
        mine.entry(wish).or_insert_with(|| owner.to_owned());
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
    fn a_conflict_names_both_plugins_and_what_each_wants() {
        let mut plan = LaunchPlan::default();
        plan.merge("gpu/nvidia", variable("PATH", "/gpu")).unwrap();
        plan.merge("gpu/other", variable("PATH", "/gpu")).unwrap();
        let conflict = plan.merge("runtime/env", variable("PATH", "/bin")).unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "`environment.PATH` is claimed by both `gpu/nvidia` (/gpu) and `runtime/env` (/bin)"
        );
    }

    #[test]
    fn the_first_who_asked_for_a_namespace_owns_it() {
        let wish = LaunchInfo { clone_namespaces: [Namespace::Mount].into(), ..LaunchInfo::default() };
        let mut plan = LaunchPlan::default();
        plan.merge("filesystem/linux", wish.clone()).unwrap();
        plan.merge("namespaces/pid", wish).unwrap();
        assert_eq!(plan.clone_namespaces[&Namespace::Mount], "filesystem/linux");
    }

    #[test]
    fn what_this_agent_does_not_know_is_refused_by_name() {
        let wishes: LaunchInfo = serde_json::from_str(r#"{"operations":[{"type":"teleport"}]}"#).unwrap();
        let conflict = LaunchPlan::default().merge("future/plugin", wishes).unwrap_err();
        assert!(matches!(conflict, Conflict::Unknown { field: "operation", .. }));
    }

    fn wishes() -> impl Strategy<Value = LaunchInfo> {
        let variables = proptest::collection::btree_map("[A-C]", "[xy]", 0..3);
        let groups = proptest::collection::btree_set(0u32..4, 0..3);
        let directory = proptest::option::of("/[ab]");
        (variables, groups, directory).prop_map(|(environment, supplementary_groups, working_directory)| {
            LaunchInfo { environment, supplementary_groups, working_directory, ..LaunchInfo::default() }
        })
    }

    proptest! {
        /// Whoever is merged later can add to a plan, and can never change what is in it.
        #[test]
        fn merging_never_changes_what_is_there(first in wishes(), second in wishes()) {
            let mut plan = LaunchPlan::default();
            plan.merge("first", first).unwrap();
            let before = plan.clone();
            if plan.merge("second", second).is_ok() {
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

        /// Agreement is no conflict.
        #[test]
        fn a_wish_agrees_with_itself(wish in wishes()) {
            let mut plan = LaunchPlan::default();
            plan.merge("first", wish.clone()).unwrap();
            let before = plan.clone();
            plan.merge("second", wish).unwrap();
            prop_assert_eq!(plan, before);
        }
    }
}
