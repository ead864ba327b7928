//! Profiles: rules by name of a system call, and the choice of those that apply to a container.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_plugin_api::model::Seccomp;
use cofferdam_plugin_api::prelude::*;

use crate::bpf::{self, Action, Condition, Decision, Table};
use crate::numbers::Architecture;

/// A profile, of which every name is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What happens to a system call without a rule.
    pub default: Action,
    /// The architectures whose system calls are accepted; those of others kill the process.
    pub architectures: BTreeSet<Architecture>,
    pub rules: Vec<Rule>,
    /// Flags of seccomp(2) without their prefix.
    pub flags: BTreeSet<String>,
}

/// What happens to some system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where the rule is, for errors: `syscalls[3]`.
    pub place: String,
    pub names: Vec<String>,
    pub action: Action,
    /// All of which have to hold.
    pub conditions: Vec<Condition>,
    /// Where the rule applies.
    pub includes: Filter,
    /// Where it does not.
    pub excludes: Filter,
}

/// A part of a rule that depends on the container and the host. Empty, it has no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Capabilities without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Whether this host's architecture is among those of the filter; `None` without any.
    pub architecture: Option<bool>,
    /// Major and minor version.
    pub min_kernel: Option<(u32, u32)>,
}

/// What the choice of rules depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circumstances {
    /// The bounding set of the container, without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Version of the kernel: major, minor.
    pub kernel: (u32, u32),
}

impl Rule {
    fn applies(&self, to: &Circumstances) -> bool {
        let Filter { capabilities, architecture, min_kernel } = &self.includes;
        let included = capabilities.is_subset(&to.capabilities)
            && architecture.unwrap_or(true)
            && min_kernel.is_none_or(|version| to.kernel >= version);
        let Filter { capabilities, architecture, min_kernel } = &self.excludes;
        let excluded = !capabilities.is_disjoint(&to.capabilities)
            || architecture.unwrap_or(false)
            || min_kernel.is_some_and(|version| to.kernel >= version);
        included && !excluded
    }
}

impl Profile {
    /// The filter for a container.
    ///
    /// # Errors
    /// If two rules contradict each other, or if the filter is too long for the kernel.
    pub fn compile(&self, to: &Circumstances) -> Result<Seccomp> {
        let mut table = Table::new();
        for &architecture in &self.architectures {
            table.insert(architecture, self.decisions(architecture, to)?);
        }
        let program = bpf::compile(&table, self.default);
        if program.len() > bpf::MAX_LENGTH {
            return Err(Error::new(format!(
                "the filter has {} instructions, of which the kernel accepts {}; use fewer conditions",
                program.len(),
                bpf::MAX_LENGTH
            )));
        }
        Ok(Seccomp { program, flags: self.flags.clone() })
    }

    fn decisions(&self, architecture: Architecture, to: &Circumstances) -> Result<BTreeMap<u32, Decision>> {
        /// Rules with conditions, and that without.
        #[derive(Default)]
        struct Found<'a> {
            conditional: Vec<&'a Rule>,
            unconditional: Option<&'a Rule>,
        }
        let mut found: BTreeMap<u32, Found<'_>> = BTreeMap::new();
        for rule in self.rules.iter().filter(|rule| rule.applies(to)) {
            for name in &rule.names {
                // A name that only other architectures have.
                let Some(number) = architecture.number(name) else { continue };
                let of_number = found.entry(number).or_default();
                if !rule.conditions.is_empty() {
                    of_number.conditional.push(rule);
                    continue;
                }
                match of_number.unconditional {
                    Some(first) if first.action != rule.action => {
                        return Err(Error::new(format!(
                            "`{}` and `{}` set different actions for `{name}`; remove one of them",
                            first.place, rule.place
                        )));
                    }
                    _ => of_number.unconditional = Some(rule),
                }
            }
        }
        let decide = |(number, found): (u32, Found<'_>)| {
            let rules = found.conditional.iter().map(|rule| (rule.conditions.clone(), rule.action)).collect();
            let otherwise = found.unconditional.map_or(self.default, |rule| rule.action);
            (number, Decision { rules, otherwise })
        };
        Ok(found.into_iter().map(decide).collect())
    }
}
