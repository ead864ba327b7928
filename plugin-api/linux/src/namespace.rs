//! Kinds of namespaces, and sets of them as clone3(2), setns(2) and unshare(2) take them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of namespace, named as in namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Control groups.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mount points.
    Mount,
    /// Network devices, addresses, routes, ports.
    Network,
    /// Process ids.
    Pid,
    /// Offsets of the monotonic and boot clocks.
    Time,
    /// User and group ids.
    User,
    /// Host name and domain name.
    Uts,
}

impl Namespace {
    /// All kinds, sorted by name.
    pub const ALL: [Self; 8] =
        [Self::Cgroup, Self::Ipc, Self::Mount, Self::Network, Self::Pid, Self::Time, Self::User, Self::Uts];

    /// The kernel's `CLONE_NEW…` bit.
    pub const fn bit(self) -> u64 {
        match self {
            Self::Cgroup => 0x0200_0000,
            Self::Ipc => 0x0800_0000,
            Self::Mount => 0x0002_0000,
            Self::Network => 0x4000_0000,
            Self::Pid => 0x2000_0000,
            Self::Time => 0x0000_0080,
            Self::User => 0x1000_0000,
            Self::Uts => 0x0400_0000,
        }
    }

    /// The file of this kind in `/proc/PID/ns`.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Network => "network",
            other => other.file(),
        })
    }
}

/// A set of kinds of namespaces. Serialised as a list of names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Namespace>", into = "Vec<Namespace>")]
pub struct Namespaces(u64);

impl Namespaces {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Whether `kind` is a member.
    pub const fn contains(self, kind: Namespace) -> bool {
        self.0 & kind.bit() != 0
    }

    /// This set with `kind`.
    #[must_use]
    pub const fn with(self, kind: Namespace) -> Self {
        Self(self.0 | kind.bit())
    }

    /// This set without `kind`.
    #[must_use]
    pub const fn without(self, kind: Namespace) -> Self {
        Self(self.0 & !kind.bit())
    }

    /// Members of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Members of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members as `CLONE_NEW…` bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The members, sorted by name.
    pub fn iter(self) -> impl Iterator<Item = Namespace> {
        Namespace::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }
}

impl FromIterator<Namespace> for Namespaces {
    fn from_iter<I: IntoIterator<Item = Namespace>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl From<Vec<Namespace>> for Namespaces {
    fn from(kinds: Vec<Namespace>) -> Self {
        kinds.into_iter().collect()
    }
}

impl From<Namespaces> for Vec<Namespace> {
    fn from(set: Namespaces) -> Self {
        set.iter().collect()
    }
}

impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, kind) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Namespace, Namespaces};

    #[test]
    fn bits_are_the_kernels() {
        let ours = Namespaces::from_iter(Namespace::ALL).bits();
        let kernels = libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWTIME
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWUTS;
        assert_eq!(ours, u64::from(kernels.cast_unsigned()));
    }

    #[test]
    fn a_set_is_serialised_as_names() {
        let set = Namespaces::EMPTY.with(Namespace::Pid).with(Namespace::Mount);
        let wire = serde_json::to_string(&set).unwrap();
        assert_eq!(wire, r#"["mount","pid"]"#);
        assert_eq!(serde_json::from_str::<Namespaces>(&wire).unwrap(), set);
        assert_eq!(set.to_string(), "mount, pid");
        assert_eq!(set.without(Namespace::Pid).iter().collect::<Vec<_>>(), [Namespace::Mount]);
    }
}
