//! Environment and working directory of the command.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_init::plan::WorkingDirectory;

use super::Input;
use crate::chain::{LaunchPlan, Owned};
use crate::containerizer::native::record::NativeRecord;
use crate::model::Record;

/// `PATH` of a command for which nobody sets one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment. Later sources take precedence: the agent, the containers that a debug container inspects, plugins,
/// the command itself; then what plugins put before and after a value. Secret variables are those of the container itself:
/// nothing keeps the values of others.
pub(super) fn environment(input: &Input<'_>) -> Vec<(OsString, OsString)> {
    let Input { record, merged, inspected, secrets, .. } = input;
    let mut variables: BTreeMap<&str, String> = BTreeMap::new();
    variables.insert("PATH", DEFAULT_PATH.to_owned());
    // A debug container sees the sandbox of the container that it inspects. Its own is on the host.
    let (seen, plan) = match inspected.last() {
        Some(seen) => (&**seen, &*seen.part.plan),
        None => (*record, *merged),
    };
    let inside = plan.sandbox_in_root().map(str::to_owned);
    let sandbox = inside.unwrap_or_else(|| seen.sandbox.display().to_string());
    if seen.request.is_executor() {
        variables.insert("MESOS_DIRECTORY", sandbox.clone());
    }
    variables.insert("MESOS_SANDBOX", sandbox);
    for inspected in inspected.iter().rev() {
        let inherited =
            inspected.part.plan.environment.iter().map(|(name, variable)| (name, &variable.value));
        for (name, value) in inherited.chain(&inspected.request.command.environment) {
            variables.insert(name, value.clone());
        }
    }
    let plugins = merged.environment.iter().map(|(name, variable)| (name, &variable.value));
    for (name, value) in plugins.chain(secrets.iter()).chain(&record.request.command.environment) {
        variables.insert(name, value.clone());
    }
    let plans = || inspected.iter().rev().map(|inspected| &*inspected.part.plan).chain([*merged]);
    for (name, values) in additions(plans().map(|plan| &plan.environment_prepend)) {
        let value = variables.remove(name);
        variables.insert(name, join(&values, value, &[]));
    }
    for (name, values) in additions(plans().map(|plan| &plan.environment_append)) {
        let value = variables.remove(name);
        variables.insert(name, join(&[], value, &values));
    }
    variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// What plugins add to variables of several containers, in this order. What a plugin adds for each of them is there once.
fn additions<'a>(
    all: impl Iterator<Item = &'a BTreeMap<String, Vec<Owned<String>>>>,
) -> BTreeMap<&'a str, Vec<&'a Owned<String>>> {
    let mut additions: BTreeMap<&str, Vec<&Owned<String>>> = BTreeMap::new();
    for (name, values) in all.flatten() {
        let known = additions.entry(name).or_default();
        for value in values {
            if !known.contains(&value) {
                known.push(value);
            }
        }
    }
    additions
}

/// Joins values with colons, in this order.
fn join(before: &[&Owned<String>], value: Option<String>, after: &[&Owned<String>]) -> String {
    let values =
        |owned: &'_ [&Owned<String>]| owned.iter().map(|owned| owned.value.clone()).collect::<Vec<_>>();
    let value = value.filter(|value| !value.is_empty());
    values(before).into_iter().chain(value).chain(values(after)).collect::<Vec<_>>().join(":")
}

/// The working directory: that of the command, of the containers that a debug container inspects, or of plugins.
pub(super) fn working_directory(
    record: &Record<NativeRecord>,
    merged: &LaunchPlan,
    inspected: &[Arc<Record<NativeRecord>>],
) -> Option<WorkingDirectory> {
    if let Some(path) = record.request.command.working_directory.clone() {
        // Nothing is created on the host, as nothing would remove it.
        return Some(WorkingDirectory { path, create: merged.root.is_some() });
    }
    if let Some((nearest, others)) = inspected.split_first() {
        return working_directory(nearest, &nearest.part.plan, others)
            .map(|directory| WorkingDirectory { create: false, ..directory });
    }
    let requested = merged.working_directory.as_ref().or(merged.sandbox_path.as_ref());
    let requested = requested.map(|directory| PathBuf::from(&directory.value));
    match (merged.root.is_some(), requested) {
        (true, requested) => requested.map(|path| WorkingDirectory { path, create: true }),
        // Without a root filesystem of its own, the sandbox is all that belongs to the container.
        (false, _) => Some(WorkingDirectory { path: record.sandbox.clone(), create: false }),
    }
}
