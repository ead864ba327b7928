//! What an isolator is to its author.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_plugin_model as model;
use model::{
    Container, ContainerId, Limitation, Namespace, Operation, Recovered, Resources, Root, Status, Usage,
    Version,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ContainerRef, Host, PluginConfig, Result, ResultExt};

/// One way of isolating containers.
///
/// ```text
///  create ─▶ recover ─▶ ┬─ prepare ─▶ watch ─▶ isolate ─▶ (the command runs) ─▶ cleanup
///                       │              └▶ limitation, update, usage, status, any number of times
///                       └─ … for every container
/// ```
///
/// - **Threads.** Any thread of the agent calls, never one that others wait for. Calls for different
///   containers overlap; calls for one container follow each other.
/// - **Deadlines.** Each call has one, set by the operator. What answers too late has failed; the call is
///   abandoned, and `cleanup` still comes.
/// - **Panics** become errors. The instance is then made anew and told of its containers by `recover`.
/// - **Failing** `prepare`, `isolate` or `watch` fails the launch, and `cleanup` follows.
/// - Methods that are not in the `impl` block are never called, and cost nothing.
///
/// Write the block under `#[cofferdam_plugin_api::isolator]`, which exports it.
pub trait Isolator: Send + Sync + Sized + 'static {
    /// `area/name`: what operators write into their chain.
    const NAME: &'static str;

    /// Whether it takes part in nested containers.
    const NESTING: bool = false;

    /// Whether it takes part in containers that an operator launched by themselves.
    const STANDALONE: bool = true;

    /// Plugins that must be in the chain as well.
    const REQUIRES: &'static [&'static str] = &[];

    /// Plugins that must not be in the chain as well.
    const CONFLICTS: &'static [&'static str] = &[];

    /// Plugins that, if in the chain, must come earlier.
    const AFTER: &'static [&'static str] = &[];

    /// Its table in the configuration file; `()` for none.
    type Config: PluginConfig + DeserializeOwned;

    /// Makes it. Called once when the agent starts, and again after a panic.
    ///
    /// # Errors
    /// Keep the agent from starting.
    fn create(config: Self::Config, host: Host) -> Result<Self>;

    /// Learns what is there already; called once after `create`, before any launch.
    ///
    /// `containers` run and were prepared by this plugin, perhaps in another version: one that keeps states
    /// in another shape than the last one answers with [`Recovery::upgrade`]. `orphans` will be cleaned up by
    /// the ordinary way, sooner or later. They may still run, because the agent has yet to end them or they were
    /// launched without the plugin: touch nothing of them. What else it finds of its own on the host belongs to
    /// nobody and is its to remove.
    /// **Must succeed on containers it has never seen**, and touch nothing of one it refuses.
    ///
    /// # Errors
    /// Keep the plugin out of service, and name it to the operator; no container is harmed.
    fn recover(&self, containers: Vec<Recovered>, orphans: Vec<ContainerId>) -> Result<Recovery> {
        let _ = (containers, orphans);
        Ok(Recovery::new())
    }

    /// Gets ready for a container that does not exist yet, and says what it wishes for its launch.
    ///
    /// # Errors
    /// Fail the launch. What was done must be left so that `cleanup` can undo it.
    fn prepare(&self, container: &Container) -> Result<Prepared> {
        let _ = container;
        Ok(Prepared::new())
    }

    /// Gets hold of the container's first process, which exists in its namespaces and control groups and
    /// waits. `container.descriptor(0)` is its pidfd.
    ///
    /// # Errors
    /// Fail the launch.
    fn isolate(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }

    /// Says what to wait for: a descriptor that becomes readable when the container may have gone over a
    /// limit. Called before `isolate`, and after `recover` for every container that runs and that it serves.
    ///
    /// # Errors
    /// Fail the launch; after `recover`, they are reported.
    fn watch(&self, container: &ContainerRef) -> Result<Option<OwnedFd>> {
        let _ = container;
        Ok(None)
    }

    /// Says which limit was reached, or none. Called when the descriptor of `watch` became readable (it is
    /// `container.descriptor(0)`; read it empty), and once more when the container has ended by itself.
    /// A limit that was reached ends the container.
    ///
    /// # Errors
    /// Are reported; the container goes on.
    fn limitation(&self, container: &ContainerRef) -> Result<Option<Limitation>> {
        let _ = container;
        Ok(None)
    }

    /// Changes what the container may use from now on. `Some` state replaces what the agent keeps.
    ///
    /// # Errors
    /// Fail the update; the others in the chain are then told to go back.
    fn update(&self, container: &ContainerRef, resources: &Resources) -> Result<Option<serde_json::Value>> {
        let _ = (container, resources);
        Ok(None)
    }

    /// Says what the container uses.
    ///
    /// # Errors
    /// Leave its figures out, and are named in the answer.
    fn usage(&self, container: &ContainerRef) -> Result<Usage> {
        let _ = container;
        Ok(Usage::default())
    }

    /// Says how the container is.
    ///
    /// # Errors
    /// Leave its fields out, and are named in the answer.
    fn status(&self, container: &ContainerRef) -> Result<Status> {
        let _ = container;
        Ok(Status::default())
    }

    /// Undoes what `prepare` and all later calls did. Every process of the container is gone.
    ///
    /// **Must succeed on a container it has never seen, and when called again.**
    ///
    /// # Errors
    /// Keep the container visible as being destroyed; the call is repeated until it succeeds.
    fn cleanup(&self, container: &ContainerRef) -> Result<()> {
        let _ = container;
        Ok(())
    }
}

/// What an isolator wishes for a launch, and what the agent is to keep for it.
#[derive(Debug, Default)]
pub struct Prepared(pub(crate) model::PrepareReply);

impl Prepared {
    /// No wishes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The wishes themselves, for those without a method here.
    pub fn launch(&mut self) -> &mut model::LaunchInfo {
        &mut self.0.launch
    }

    /// Sets a variable of the container's environment.
    #[must_use]
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.launch.environment.insert(name.into(), value.into());
        self
    }

    /// Makes a namespace anew.
    #[must_use]
    pub fn clone_namespace(mut self, namespace: Namespace) -> Self {
        self.0.launch.clone_namespaces.insert(namespace);
        self
    }

    /// Enters a namespace of the parent container.
    #[must_use]
    pub fn enter_namespace(mut self, namespace: Namespace) -> Self {
        self.0.launch.enter_namespaces.insert(namespace);
        self
    }

    /// Sets the root file system.
    #[must_use]
    pub fn root(mut self, root: Root) -> Self {
        self.0.launch.root = Some(root);
        self
    }

    /// Adds a change to the file system that the container sees.
    #[must_use]
    pub fn operation(mut self, operation: Operation) -> Self {
        self.0.launch.operations.push(operation);
        self
    }

    /// Has the container's first process born in this cgroup v1 directory.
    #[must_use]
    pub fn born_in(mut self, cgroup: impl Into<PathBuf>) -> Self {
        self.0.launch.cgroups.push(cgroup.into());
        self
    }

    /// Has the agent keep a state for this container: given back with every later call and in `recover`,
    /// and on disk before the container runs.
    ///
    /// # Errors
    /// When the state cannot be written as JSON.
    pub fn state(mut self, state: &impl Serialize) -> Result<Self> {
        self.0.state = Some(serde_json::to_value(state)?);
        Ok(self)
    }
}

/// What a plugin makes of the containers it found when it started. One that is not mentioned is accepted.
#[derive(Debug, Default)]
pub struct Recovery(pub(crate) BTreeMap<ContainerId, model::Verdict>);

impl Recovery {
    /// Accepts every container as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the states that another version of the plugin wrote; `own` is the version of this one,
    /// `env!("CARGO_PKG_VERSION")`.
    ///
    /// - Of an older series, a state is read as `Old`, and `migrate` makes the new one; it is told who wrote
    ///   the old one. What cannot be read, or `migrate` fails on, is refused with the reason.
    /// - Of a newer series, it is refused: the operator is told which version can read it.
    /// - Of the same series, it is left alone, as is a container without a state.
    ///
    /// A series are the versions that semver calls compatible: of one major number or, before 1.0, of one
    /// minor number. Within it, states have to stay readable both ways.
    ///
    /// # Errors
    /// When `own` is not a version.
    pub fn upgrade<Old: DeserializeOwned, New: Serialize>(
        containers: &[Recovered],
        own: &str,
        mut migrate: impl FnMut(Old, &Version) -> Result<New>,
    ) -> Result<Self> {
        let own = Version::parse(own).context(format!("`{own}` is not a version"))?;
        let mut recovery = Self::new();
        for Recovered { id, details, written_by, .. } in containers {
            let Some(writer) = written_by else { continue };
            match series(writer).cmp(&series(&own)) {
                Ordering::Equal => {}
                Ordering::Greater => recovery.refuse(
                    id,
                    format!(
                        "version {writer} of the plugin wrote its state, which version {own} cannot read: \
                         use {writer} or a later version"
                    ),
                ),
                Ordering::Less => {
                    let migrated = Old::deserialize(&details.state)
                        .context(format!("cannot read the state that version {writer} of the plugin wrote"))
                        .and_then(|old| migrate(old, writer))
                        .and_then(|new| recovery.migrate(id, &new));
                    if let Err(error) = migrated {
                        recovery.refuse(id, error.causes().join(": "));
                    }
                }
            }
        }
        Ok(recovery)
    }

    /// Serves this container, with a new state in place of the old one.
    ///
    /// # Errors
    /// When the state cannot be written as JSON.
    pub fn migrate(&mut self, container: &ContainerId, state: &impl Serialize) -> Result<()> {
        let state = serde_json::to_value(state)?;
        self.0.insert(container.clone(), model::Verdict::Migrated { state });
        Ok(())
    }

    /// Does not serve this container, and has changed nothing of it. It goes on unharmed, and the
    /// operator is told the reason.
    pub fn refuse(&mut self, container: &ContainerId, reason: impl Into<String>) {
        self.0.insert(container.clone(), model::Verdict::Refused { reason: reason.into() });
    }
}

/// What versions must have in common to read each other's states.
fn series(version: &Version) -> (u64, u64) {
    (version.major, if version.major == 0 { version.minor } else { 0 })
}

#[cfg(test)]
mod tests {
    use model::{ContainerDetails, Verdict};
    use serde::Deserialize;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::Error;
    use crate::testing::PluginHarness;

    /// An isolator whose configuration is its own version.
    struct Counter(String);

    #[derive(Deserialize)]
    struct Old {
        count: i32,
    }

    impl Isolator for Counter {
        const NAME: &'static str = "test/counter";
        type Config = String;

        fn create(version: String, _: Host) -> Result<Self> {
            Ok(Self(version))
        }

        fn recover(&self, containers: Vec<Recovered>, _: Vec<ContainerId>) -> Result<Recovery> {
            Recovery::upgrade(&containers, &self.0, |Old { count }, writer| {
                let count = u32::try_from(count).map_err(|_| Error::new("nobody counts down"))?;
                Ok(json!({ "counted": count, "by": writer }))
            })
        }
    }

    /// What version `own` makes of a state.
    fn verdict(own: &str, writer: Option<&str>, state: Json) -> Option<Verdict> {
        let bench = PluginHarness::<Counter>::isolator(json!(own)).unwrap();
        let container = Recovered {
            id: "web".parse().unwrap(),
            details: ContainerDetails { state, ..ContainerDetails::default() },
            written_by: writer.map(|version| Version::parse(version).unwrap()),
        };
        bench.recover(vec![container], Vec::new()).unwrap().verdicts.remove("web")
    }

    fn refused(own: &str, writer: &str, state: Json) -> String {
        match verdict(own, Some(writer), state) {
            Some(Verdict::Refused { reason }) => reason,
            other => panic!("{own} said of what {writer} wrote: {other:?}"),
        }
    }

    #[test]
    fn what_an_older_series_wrote_is_migrated() {
        for (own, writer) in [("2.0.0", "1.4.2"), ("3.1.0", "1.0.0"), ("0.3.0", "0.2.9"), ("1.0.0", "0.9.0")]
        {
            let Some(Verdict::Migrated { state }) = verdict(own, Some(writer), json!({ "count": 7 })) else {
                panic!("{own} did not migrate what {writer} wrote")
            };
            assert_eq!(state, json!({ "counted": 7, "by": writer }));
        }
    }

    #[test]
    fn what_a_newer_series_wrote_is_refused_and_both_versions_are_named() {
        for (own, writer) in [("2.9.9", "3.1.0"), ("0.2.9", "0.3.0"), ("0.9.0", "1.0.0")] {
            let reason = format!(
                "version {writer} of the plugin wrote its state, which version {own} cannot read: use {writer} \
                 or a later version"
            );
            assert_eq!(refused(own, writer, json!({ "count": 7 })), reason);
        }
    }

    #[test]
    fn what_cannot_be_read_or_migrated_is_refused_with_the_reason() {
        let damaged = refused("2.0.0", "1.4.2", json!({ "cuont": 7 }));
        let reason = "cannot read the state that version 1.4.2 of the plugin wrote: missing field `count`";
        assert_eq!(damaged, reason);
        assert_eq!(refused("2.0.0", "1.4.2", json!({ "count": -1 })), "nobody counts down");
    }

    #[test]
    fn the_same_series_and_containers_without_a_state_are_left_alone() {
        for (own, writer) in [("2.0.0", "2.0.0"), ("2.0.0", "2.7.1"), ("2.7.1", "2.0.0"), ("0.3.0", "0.3.4")]
        {
            assert!(verdict(own, Some(writer), json!({ "counted": 7 })).is_none(), "{own} after {writer}");
        }
        assert!(verdict("2.0.0", None, Json::Null).is_none());
    }

    #[test]
    fn a_version_that_is_none_is_named() {
        let bench = PluginHarness::<Counter>::isolator(json!("two")).unwrap();
        let error = bench.recover(Vec::new(), Vec::new()).unwrap_err();
        assert!(error.message.starts_with("`two` is not a version"), "{error}");
    }
}
