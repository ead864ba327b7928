//! The container that a call after `prepare` is about.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::Path;

use cofferdam_plugin_model as model;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::process::{self, Process};
use crate::{Cgroup, Deadline, Error, Result, ResultExt};

/// The container that a call after `prepare` is about.
///
/// The id and the deadline cost nothing; the rest is decoded at the first access. The methods that return a `Result`
/// fail if the agent's message cannot be decoded.
pub struct ContainerRef<'a> {
    id: &'a str,
    payload: &'a [u8],
    details: OnceCell<model::ContainerDetails>,
    parts: OnceCell<Option<Parts<'a>>>,
    descriptors: Vec<BorrowedFd<'a>>,
    deadline: Deadline,
}

/// Parts of [`model::ContainerDetails`].
#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(default)]
    pid: Option<i32>,
    #[serde(default)]
    shares_cgroups: bool,
    #[serde(default, borrow)]
    cgroups: PartsOfCgroups<'a>,
    #[serde(default, borrow)]
    resources: Option<&'a RawValue>,
}

/// [`model::Cgroups`], borrowed.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PartsOfCgroups<'a> {
    #[serde(borrow)]
    v1: BTreeMap<&'a str, &'a str>,
    v2: Option<&'a str>,
    v2_controllers: Vec<&'a str>,
    path: &'a str,
}

impl<'a> ContainerRef<'a> {
    /// The details are decoded from `payload` when they are needed.
    pub(crate) fn new(
        id: &'a str,
        payload: &'a [u8],
        descriptors: Vec<BorrowedFd<'a>>,
        deadline: Deadline,
    ) -> Self {
        Self { id, payload, details: OnceCell::new(), parts: OnceCell::new(), descriptors, deadline }
    }

    /// With details that have been decoded already.
    pub(crate) fn with_details(self, details: model::ContainerDetails) -> Self {
        Self { details: OnceCell::from(details), ..self }
    }

    /// The container's dotted id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.id
    }

    /// When the agent stops waiting for this call.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// What is known of the container: class, user, resources, labels, how it ended, ….
    ///
    /// # Errors
    /// If the agent's message cannot be decoded.
    pub fn details(&self) -> Result<&model::ContainerDetails> {
        if let Some(details) = self.details.get() {
            return Ok(details);
        }
        let details = if self.payload.is_empty() {
            model::ContainerDetails::default()
        } else {
            serde_json::from_slice(self.payload).context("cannot decode the agent's message")?
        };
        Ok(self.details.get_or_init(|| details))
    }

    /// Pid of the container's first process in the agent's pid namespace. The process may have exited by the time the
    /// pid is used; [`ContainerRef::descriptor`] 0 of `isolate` is a pidfd, which stays valid.
    ///
    /// # Errors
    /// If the container has no process now.
    pub fn pid(&self) -> Result<i32> {
        self.details()?.pid.ok_or_else(|| Error::new(format!("container `{}` has no process", self.id)))
    }

    /// The parts, without the rest of the details, which takes longer to decode than reading a file of the kernel. `None` if
    /// they cannot be borrowed.
    fn parts(&self) -> Option<&Parts<'a>> {
        let decode =
            || serde_json::from_slice(if self.payload.is_empty() { b"{}" } else { self.payload }).ok();
        match self.details.get() {
            Some(_) => None,
            None => self.parts.get_or_init(decode).as_ref(),
        }
    }

    /// Its first process, if it has one now.
    fn first_process(&self) -> Result<Option<i32>> {
        match self.parts() {
            Some(parts) => Ok(parts.pid),
            None => Ok(self.details()?.pid),
        }
    }

    /// Where its cgroups are, of v1 those of some controllers only, and whether it shares those of its parent.
    pub(crate) fn cgroups_of(&self, controllers: &[&str]) -> Result<(model::Cgroups, bool)> {
        let Some(Parts { cgroups, shares_cgroups, .. }) = self.parts() else {
            let details = self.details()?;
            return Ok((details.cgroups.clone(), details.shares_cgroups));
        };
        let v1 = controllers.iter().filter_map(|name| cgroups.v1.get_key_value(name));
        let some = model::Cgroups {
            v1: v1.map(|(name, mount)| ((*name).to_owned(), mount.into())).collect(),
            v2: cgroups.v2.map(Into::into),
            v2_controllers: cgroups.v2_controllers.iter().map(|&name| name.to_owned()).collect(),
            path: cgroups.path.into(),
        };
        Ok((some, *shares_cgroups))
    }

    /// Its current resources. Takes less time than [`ContainerRef::details`].
    ///
    /// # Errors
    /// If the agent's message cannot be decoded.
    pub fn resources(&self) -> Result<model::Resources> {
        match self.parts() {
            Some(Parts { resources: Some(resources), .. }) => {
                serde_json::from_str(resources.get()).context("cannot decode the agent's message")
            }
            Some(_) => Ok(model::Resources::default()),
            None => Ok(self.details()?.resources.clone()),
        }
    }

    /// In `update`: whether the request or the limit of that name in `resources`, the new ones, differs from the old ones. Only
    /// then is there something to apply: the complete new value, or what a container has that was launched without one.
    ///
    /// # Errors
    /// If the agent's message cannot be decoded.
    pub fn changes(&self, resources: &model::Resources, name: &str) -> Result<bool> {
        Ok(!resources.has_same(&self.resources()?, name))
    }

    /// The directory of the host with the container's files and logs.
    ///
    /// # Errors
    /// If the agent's message cannot be decoded.
    pub fn sandbox(&self) -> Result<&Path> {
        Ok(&self.details()?.sandbox)
    }

    /// The plugin's state for this container; the default if there is none.
    ///
    /// # Errors
    /// If `T` cannot be read from the state.
    pub fn state<T: DeserializeOwned + Default>(&self) -> Result<T> {
        let state = &self.details()?.state;
        if state.is_null() {
            return Ok(T::default());
        }
        T::deserialize(state).context("cannot read the plugin's own state")
    }

    /// The container's cgroup of one controller (`memory`, `cpuacct`, …). For a container that shares the cgroups of
    /// its parent it is the parent's, see [`ContainerDetails::shares_cgroups`](crate::model::ContainerDetails::shares_cgroups).
    ///
    /// # Errors
    /// If this host has no such controller.
    pub fn cgroup(&self, controller: &str) -> Result<Cgroup> {
        Ok(Cgroup::of(&self.details()?.cgroups, controller)?)
    }

    /// The container's first process and its descendants; none before it exists and after it exited. See
    /// [`process::tree`](crate::process::tree) for what is left out.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let Some(pid) = self.first_process()? else { return Ok(Vec::new()) };
        match process::tree(pid) {
            Ok(processes) => Ok(processes),
            // It has exited, and the agent has not noticed yet.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context(format!("cannot read process {pid} and its descendants")),
        }
    }

    /// The descriptor of that index that came with the call: the pidfd (0) of `isolate`, the watched descriptor (0) of
    /// `limitation`.
    #[must_use]
    pub fn descriptor(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(index).copied()
    }
}

/// The dotted id.
impl AsRef<str> for ContainerRef<'_> {
    fn as_ref(&self) -> &str {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use model::{Cgroups, ContainerDetails, Resources};

    use super::*;

    #[test]
    fn parts_are_those_of_the_details() {
        let mut details = ContainerDetails {
            pid: Some(7),
            shares_cgroups: true,
            cgroups: Cgroups {
                v1: [("cpu".to_owned(), "/cg/cpu".into()), ("pids".to_owned(), "/cg/pids".into())].into(),
                v2: Some("/cg/unified".into()),
                v2_controllers: vec!["io".into()],
                path: "c/web".into(),
            },
            resources: Resources::default().with("mem", 64.0),
            ..ContainerDetails::default()
        };
        // With an escaped character nothing can be borrowed.
        for path in ["c/web", "c/\"web\""] {
            details.cgroups.path = path.into();
            let payload = serde_json::to_vec(&details).unwrap();
            let container = ContainerRef::new("web", &payload, Vec::new(), Deadline::from_unix_ms(0));
            assert_eq!(container.parts().is_some(), path == "c/web");
            assert_eq!(container.first_process().unwrap(), Some(7));
            assert_eq!(container.resources().unwrap(), details.resources);
            let (cgroups, shares) = container.cgroups_of(&["cpu"]).unwrap();
            assert!(shares);
            assert_eq!(cgroups.v1["cpu"], details.cgroups.v1["cpu"]);
            let wanted = Cgroups { v1: cgroups.v1.clone(), ..details.cgroups.clone() };
            assert_eq!(cgroups, wanted);
        }
        let none = ContainerRef::new("web", &[], Vec::new(), Deadline::from_unix_ms(0));
        assert_eq!(none.first_process().unwrap(), None);
        assert_eq!(none.resources().unwrap(), Resources::default());
        let wrong = ContainerRef::new("web", b"[", Vec::new(), Deadline::from_unix_ms(0));
        assert!(wrong.first_process().is_err() && wrong.cgroups_of(&[]).is_err());
    }
}
