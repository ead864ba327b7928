//! Recovery: what a new instance is told, and what it replies.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use cofferdam_plugin_model as model;
use model::{ContainerId, Recovered, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Deadline, Result, ResultExt};

/// What exists when an instance is created: the argument of `recover`.
#[derive(Debug, Clone)]
pub struct RecoverRequest {
    /// Running containers that the plugin has prepared, perhaps in an earlier version.
    pub containers: Vec<Recovered>,
    /// Containers that will be cleaned up sooner or later. They may still be running: the agent has yet to destroy
    /// them, or they were launched without the plugin. Everything else of the plugin's own on the host belongs to no
    /// container, and is the plugin's to remove.
    pub orphans: Vec<ContainerId>,
    deadline: Deadline,
}

impl RecoverRequest {
    pub(crate) fn new(request: model::RecoverRequest, deadline: Deadline) -> Self {
        Self { containers: request.containers, orphans: request.orphans, deadline }
    }

    /// When the agent stops waiting for this call.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }
}

/// Reply of `recover`: a verdict per container. One that is not mentioned is accepted as it is.
#[derive(Debug, Default)]
pub struct Recovery(pub(crate) BTreeMap<ContainerId, model::Verdict>);

impl Recovery {
    /// Accepts every container as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Migrates the states that another version of the plugin wrote; `own` is the version of this one,
    /// `env!("CARGO_PKG_VERSION")`.
    ///
    /// - A state of an older series is read as `Old`, and `migrate` returns the new one; its second argument is the
    ///   version that wrote the old one. A state that cannot be read or migrated is refused with the error.
    /// - A state of a newer series is refused, with the versions that can read it.
    /// - A state of the same series is accepted as it is, as is a container without a state.
    ///
    /// A series is a set of versions that are compatible by semver: with the same major number or, before 1.0, the same
    /// minor number. Within a series, states must be readable both ways.
    ///
    /// # Errors
    /// If `own` is not a version.
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

    /// Accepts a container, with a new state instead of the old one.
    ///
    /// # Errors
    /// If the state cannot be encoded as JSON.
    pub fn migrate(&mut self, container: &ContainerId, state: &impl Serialize) -> Result<()> {
        let state = serde_json::to_value(state)?;
        self.0.insert(container.clone(), model::Verdict::Migrated { state });
        Ok(())
    }

    /// Refuses a container, which the plugin has not changed. The container continues without it, and the operator is
    /// told the reason.
    pub fn refuse(&mut self, container: &ContainerId, reason: impl Into<String>) {
        self.0.insert(container.clone(), model::Verdict::Refused { reason: reason.into() });
    }
}

/// What versions have in common that can read each other's states.
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

    impl crate::Isolator for Counter {
        const NAME: &'static str = "test/counter";
        type Config = String;

        fn create(version: String, _: crate::Host) -> Result<Self> {
            Ok(Self(version))
        }

        fn recover(&self, request: &RecoverRequest) -> Result<Recovery> {
            Recovery::upgrade(&request.containers, &self.0, |Old { count }, writer| {
                let count = u32::try_from(count).map_err(|_| Error::new("the count is negative"))?;
                Ok(json!({ "counted": count, "by": writer }))
            })
        }
    }

    /// The verdict of version `own` on a state.
    fn verdict(own: &str, writer: Option<&str>, state: Json) -> Option<Verdict> {
        let harness = PluginHarness::<Counter>::isolator(json!(own)).unwrap();
        let container = Recovered {
            id: "web".parse().unwrap(),
            details: ContainerDetails { state, ..ContainerDetails::default() },
            written_by: writer.map(|version| Version::parse(version).unwrap()),
        };
        harness.recover(vec![container], Vec::new()).unwrap().verdicts.remove("web")
    }

    fn refused(own: &str, writer: &str, state: Json) -> String {
        match verdict(own, Some(writer), state) {
            Some(Verdict::Refused { reason }) => reason,
            other => panic!("{own} said of what {writer} wrote: {other:?}"),
        }
    }

    #[test]
    fn states_of_an_older_series_are_migrated() {
        for (own, writer) in [("2.0.0", "1.4.2"), ("3.1.0", "1.0.0"), ("0.3.0", "0.2.9"), ("1.0.0", "0.9.0")]
        {
            let Some(Verdict::Migrated { state }) = verdict(own, Some(writer), json!({ "count": 7 })) else {
                panic!("{own} did not migrate what {writer} wrote")
            };
            assert_eq!(state, json!({ "counted": 7, "by": writer }));
        }
    }

    #[test]
    fn states_of_a_newer_series_are_refused_and_both_versions_named() {
        for (own, writer) in [("2.9.9", "3.1.0"), ("0.2.9", "0.3.0"), ("0.9.0", "1.0.0")] {
            let reason = format!(
                "version {writer} of the plugin wrote its state, which version {own} cannot read: use {writer} \
                 or a later version"
            );
            assert_eq!(refused(own, writer, json!({ "count": 7 })), reason);
        }
    }

    #[test]
    fn states_that_cannot_be_read_or_migrated_are_refused_with_the_error() {
        let damaged = refused("2.0.0", "1.4.2", json!({ "cuont": 7 }));
        let reason = "cannot read the state that version 1.4.2 of the plugin wrote: missing field `count`";
        assert_eq!(damaged, reason);
        assert_eq!(refused("2.0.0", "1.4.2", json!({ "count": -1 })), "the count is negative");
    }

    #[test]
    fn states_of_the_same_series_and_missing_ones_are_accepted() {
        for (own, writer) in [("2.0.0", "2.0.0"), ("2.0.0", "2.7.1"), ("2.7.1", "2.0.0"), ("0.3.0", "0.3.4")]
        {
            assert!(verdict(own, Some(writer), json!({ "counted": 7 })).is_none(), "{own} after {writer}");
        }
        assert!(verdict("2.0.0", None, Json::Null).is_none());
    }

    #[test]
    fn an_invalid_version_is_named() {
        let harness = PluginHarness::<Counter>::isolator(json!("two")).unwrap();
        let error = harness.recover(Vec::new(), Vec::new()).unwrap_err();
        assert!(error.message.starts_with("`two` is not a version"), "{error}");
    }
}
