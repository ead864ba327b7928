//! Requested resources and limits of a container.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One MiB: the unit of `mem` and `disk`.
const MIB: f64 = 1024.0 * 1024.0;

/// Requested resources and limits of a container, by resource name.
///
/// The units are those of Mesos: `cpus` is a number of CPUs, `mem` and `disk` are in MiB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Resources to reserve for the container, by resource name.
    pub requests: BTreeMap<String, Value>,
    /// Limits, by resource name. The limit of a resource without an entry is its request.
    pub limits: BTreeMap<String, Limit>,
}

/// The amount of one resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Value {
    /// A number, in the resource's unit.
    Scalar(f64),
    /// Inclusive ranges, such as ports.
    Ranges(Vec<(u64, u64)>),
    /// Named items.
    Set(Vec<String>),
}

/// The limit of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// This amount, in the resource's unit.
    At(f64),
    /// No limit.
    Unlimited,
}

impl Resources {
    /// The requested amount of a scalar resource, in its unit; `None` if none is requested.
    #[must_use]
    pub fn scalar(&self, name: &str) -> Option<f64> {
        match self.requests.get(name)? {
            Value::Scalar(amount) => Some(*amount),
            Value::Ranges(_) | Value::Set(_) => None,
        }
    }

    /// The limit of a resource, or else its scalar request; `None` if it has neither.
    #[must_use]
    pub fn limit(&self, name: &str) -> Option<Limit> {
        self.limits.get(name).copied().or_else(|| self.scalar(name).map(Limit::At))
    }

    /// Requested CPUs; `None` if none are requested.
    #[must_use]
    pub fn cpus(&self) -> Option<f64> {
        self.scalar("cpus")
    }

    /// Requested memory in bytes; `None` if none is requested.
    #[must_use]
    pub fn mem_bytes(&self) -> Option<u64> {
        self.scalar("mem").map(mib_to_bytes)
    }

    /// The memory limit in bytes: `Some(None)` if it is unlimited, `None` if neither a limit nor a request is set.
    #[must_use]
    pub fn mem_limit_bytes(&self) -> Option<Option<u64>> {
        self.limit_bytes("mem")
    }

    /// The limit of disk space in bytes: `Some(None)` if it is unlimited, `None` if neither a limit nor a request is set.
    #[must_use]
    pub fn disk_limit_bytes(&self) -> Option<Option<u64>> {
        self.limit_bytes("disk")
    }

    fn limit_bytes(&self, name: &str) -> Option<Option<u64>> {
        self.limit(name).map(|limit| match limit {
            Limit::At(mib) => Some(mib_to_bytes(mib)),
            Limit::Unlimited => None,
        })
    }

    /// These, with the requests and limits of an update in place of those of the resources that it names.
    #[must_use]
    pub fn updated(mut self, update: &Self) -> Self {
        for name in update.names() {
            self.requests.remove(name);
            self.limits.remove(name);
        }
        self.requests.extend(update.requests.clone());
        self.limits.extend(update.limits.clone());
        self
    }

    /// Whether there is a request or a limit of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.requests.contains_key(name) || self.limits.contains_key(name)
    }

    /// Whether the request and the limit of that name are those that `other` has.
    #[must_use]
    pub fn has_same(&self, other: &Self, name: &str) -> bool {
        self.requests.get(name) == other.requests.get(name) && self.limits.get(name) == other.limits.get(name)
    }

    /// The names of which the request or the limit is not that of `other`.
    #[must_use]
    pub fn differing(&self, other: &Self) -> BTreeSet<String> {
        self.names().chain(other.names()).filter(|name| !self.has_same(other, name)).cloned().collect()
    }

    /// Removes the requests and limits whose names are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.requests.retain(|name, _| keep(name));
        self.limits.retain(|name, _| keep(name));
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.requests.keys().chain(self.limits.keys())
    }

    /// Adds a scalar request, in the resource's unit.
    #[must_use]
    pub fn with(mut self, name: &str, amount: f64) -> Self {
        self.requests.insert(name.to_owned(), Value::Scalar(amount));
        self
    }

    /// Adds a limit.
    #[must_use]
    pub fn with_limit(mut self, name: &str, limit: Limit) -> Self {
        self.limits.insert(name.to_owned(), limit);
        self
    }
}

/// Saturates. Amounts are validated when a request is accepted.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn mib_to_bytes(mib: f64) -> u64 {
    (mib * MIB) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_replaces_the_resources_that_it_names_and_no_others() {
        let before = Resources::default().with("mem", 64.0).with("cpus", 0.5);
        let before = before.with_limit("cpus", Limit::At(2.0)).with_limit("disk", Limit::At(9.0));
        let after =
            before.updated(&Resources::default().with("cpus", 1.0).with_limit("disk", Limit::Unlimited));
        let expected = Resources::default().with("mem", 64.0).with("cpus", 1.0);
        assert_eq!(after, expected.with_limit("disk", Limit::Unlimited));
        assert!(after.has("disk") && after.has("mem") && !after.has("pids"));
    }

    #[test]
    fn a_limit_falls_back_to_the_request() {
        let resources = Resources::default().with("mem", 64.0).with("cpus", 0.5);
        assert_eq!(resources.mem_bytes(), Some(64 << 20));
        assert_eq!(resources.mem_limit_bytes(), Some(Some(64 << 20)));
        assert_eq!(resources.clone().with_limit("mem", Limit::Unlimited).mem_limit_bytes(), Some(None));
        assert_eq!((resources.limit("disk"), resources.disk_limit_bytes()), (None, None));
        assert_eq!(resources.with("disk", 2.0).disk_limit_bytes(), Some(Some(2 << 20)));
    }
}
