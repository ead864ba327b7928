//! The plan: everything that a setup process is to do, in one message on [`CONTROL`].
//!
//! ```text
//! header   magic "COFFERDM" · version u32 · length u32 of the whole message
//! body     the fields of `read::Plan` in their order
//! ```
//!
//! Numbers are little-endian. A text is its length as u32 without the final NUL, its bytes, and the NUL, so that it
//! can be passed to the kernel in place. A list is its length in bytes, its count, and its members. An option is a
//! byte, 0 or 1, and the value. Agent and keeper come from one build, so any other version is refused.

pub mod read;
#[cfg(feature = "writer")]
pub mod write;

#[cfg(feature = "writer")]
pub use write::{
    Attributes, Capabilities, EncodeError, EnteredNamespace, Hook, Limit, MountOption, Operation, Plan, Root,
    Sysctl, Terminal, TimeOffsets, User, WorkingDirectory,
};

/// The descriptor on which the setup process reads the plan and reports: one end of a stream socket pair.
pub const CONTROL: i32 = 3;
/// How many descriptors a setup process has in any case: three of the container, [`CONTROL`], and one for the keeper.
/// Those that the plan refers to follow.
pub const DESCRIPTORS: usize = 5;

/// The first bytes of every plan.
pub const MAGIC: [u8; 8] = *b"COFFERDM";
/// The version of the format.
pub const VERSION: u32 = 5;
/// Bytes of the header.
pub const HEADER: usize = 16;
/// Maximum length of a plan in bytes. The kernel accepts at most 2 MiB of arguments and environment.
pub const MAX_LENGTH: usize = 8 << 20;

/// Bits of [`read::Plan::flags`].
pub mod flag {
    /// If the container has its own pid namespace, another process than the command is process 1 there and reaps.
    pub const REAPER: u32 = 1 << 0;
    /// The container has its own mount namespace, so that it may be mounted in.
    pub const MOUNT_NAMESPACE: u32 = 1 << 1;
    /// The container's processes get cgroup namespaces that are rooted at its cgroups.
    pub const CGROUP_NAMESPACE: u32 = 1 << 2;
    /// The propagation of the host's mounts is private instead of slave.
    pub const PRIVATE_MOUNTS: u32 = 1 << 3;
    /// The root file system becomes read-only after the operations.
    pub const READ_ONLY_ROOT: u32 = 1 << 4;
    /// The task cannot gain privileges by executing.
    pub const NO_NEW_PRIVILEGES: u32 = 1 << 5;
    /// The task gets a session keyring of its own.
    pub const SESSION_KEYRING: u32 = 1 << 6;
    /// The root is the host's: operations must not create anything.
    pub const CREATE_NOTHING: u32 = 1 << 7;
    /// Devices that are files of the root cannot be opened, only those of what is mounted in it.
    pub const ROOT_WITHOUT_DEVICES: u32 = 1 << 8;
    /// All flags.
    pub const ALL: u32 = (1 << 9) - 1;
}

/// Stages of [`read::Hook`].
pub mod stage {
    /// In the namespaces, before the root is changed.
    pub const BEFORE_ROOT: u8 = 0;
    /// In the root, after all operations.
    pub const AFTER_ROOT: u8 = 1;
    /// With the task's user and capabilities, before its seccomp filter.
    pub const BEFORE_EXEC: u8 = 2;
}

#[cfg(test)]
#[cfg(feature = "writer")]
mod tests;
