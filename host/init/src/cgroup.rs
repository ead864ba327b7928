//! Where the processes of a container are created: in its cgroup of v2, and in its cgroup namespace.
//!
//! The setup process is in neither, so that its work is not limited by, or charged to, the container. A process can be moved
//! to a cgroup of v2 only at the price of a grace period, so those of the container are created in it.

use crate::sys::{self, CGROUP_NAMESPACE, Creation, Errno, Fd, Parent};

/// Where processes are created; by default, where their creator is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Membership {
    /// Directory of the cgroup of v2.
    pub(crate) cgroup: Option<Fd>,
    pub(crate) namespace: CgroupNamespace,
}

/// The cgroup namespace of a process, which it enters itself: where namespaces are delegated, a process can neither be moved
/// nor create others from a cgroup outside of its namespace.
#[derive(Clone, Copy, Default)]
pub(crate) enum CgroupNamespace {
    /// That of its creator.
    #[default]
    Inherited,
    /// A new one, rooted at the cgroups that it is in.
    New,
    /// That of a process, which is open as a pidfd.
    OfProcess(Fd),
    /// One that is open.
    Open(Fd),
}

impl Membership {
    /// Creates a process there, which then has to enter its namespace.
    pub(crate) fn create_process(&self, parent: Parent) -> Result<Creation, Errno> {
        sys::create_process(parent, self.cgroup)
    }
}

impl CgroupNamespace {
    pub(crate) fn enter(self) -> Result<(), Errno> {
        match self {
            Self::Inherited => Ok(()),
            Self::New => sys::create_namespaces(CGROUP_NAMESPACE),
            Self::OfProcess(process) => sys::enter_namespaces_of(process, CGROUP_NAMESPACE),
            Self::Open(namespace) => sys::enter_namespace(namespace, CGROUP_NAMESPACE as u32),
        }
    }
}
