//! How much of the host a container asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One MiB: the unit of `mem` and `disk`.
const MIB: f64 = 1024.0 * 1024.0;

/// What a container asked for, and where it must stop.
///
/// `cpus` is in processors, `mem` and `disk` are in MiB, as everywhere in Mesos.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// What is set aside for the container, by resource name.
    pub requests: BTreeMap<String, Value>,
    /// Where the container must stop, by resource name. A resource without an entry stops at its request.
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

/// Where a container must stop using a resource.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// At this amount, in the resource's unit.
    At(f64),
    /// Nowhere.
    Unlimited,
}

impl Resources {
    /// The requested amount of a scalar resource.
    #[must_use]
    pub fn scalar(&self, name: &str) -> Option<f64> {
        match self.requests.get(name)? {
            Value::Scalar(amount) => Some(*amount),
            Value::Ranges(_) | Value::Set(_) => None,
        }
    }

    /// The limit of a resource: its own, or else its request.
    #[must_use]
    pub fn limit(&self, name: &str) -> Option<Limit> {
        self.limits.get(name).copied().or_else(|| self.scalar(name).map(Limit::At))
    }

    /// Requested processors.
    #[must_use]
    pub fn cpus(&self) -> Option<f64> {
        self.scalar("cpus")
    }

    /// Requested memory in bytes.
    #[must_use]
    pub fn mem_bytes(&self) -> Option<u64> {
        self.scalar("mem").map(mib_to_bytes)
    }

    /// The memory limit in bytes; `Some(None)` when it was set to unlimited, `None` when nothing was said.
    #[must_use]
    pub fn mem_limit_bytes(&self) -> Option<Option<u64>> {
        self.limit("mem").map(|limit| match limit {
            Limit::At(mib) => Some(mib_to_bytes(mib)),
            Limit::Unlimited => None,
        })
    }

    /// Adds a scalar request.
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

/// Saturates: a negative or absurd amount is refused where it enters, not here.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn mib_to_bytes(mib: f64) -> u64 {
    (mib * MIB) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_falls_back_to_the_request() {
        let resources = Resources::default().with("mem", 64.0).with("cpus", 0.5);
        assert_eq!(resources.mem_bytes(), Some(64 << 20));
        assert_eq!(resources.mem_limit_bytes(), Some(Some(64 << 20)));
        assert_eq!(resources.clone().with_limit("mem", Limit::Unlimited).mem_limit_bytes(), Some(None));
        assert_eq!(resources.limit("disk"), None);
    }
}
