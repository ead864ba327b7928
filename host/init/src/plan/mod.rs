//! The plan: all that init is told, in one message on [`CONTROL`].
//!
//! ```text
//! header   magic "COFFERDM" · version u32 · length u32 of the whole message
//! body     the fields of `read::Plan` in their order
//! ```
//!
//! Numbers are little-endian. A text is its length as u32 without the final NUL, its bytes, and the NUL, so that
//! it can be handed to the kernel where it lies. A list is its length in bytes, its count, and its members. An
//! option is a byte, 0 or 1, and the value. Both ends come out of one build, so a version other than ours is
//! refused rather than interpreted.

pub mod read;
#[cfg(feature = "writer")]
pub mod write;

#[cfg(feature = "writer")]
pub use write::{
    Attributes, Capabilities, EncodeError, Limit, MountOption, Operation, Plan, Root, User, Workplace,
};

/// The descriptor on which init reads the plan and answers: one end of a stream socket pair.
pub const CONTROL: i32 = 3;
/// How many descriptors init is born with: three of the container, [`CONTROL`] and [`crate::report::STATUS`].
pub const DESCRIPTORS: usize = 5;

/// The first bytes of every plan.
pub const MAGIC: [u8; 8] = *b"COFFERDM";
/// The version of the format.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER: usize = 16;
/// The most bytes a plan may have. The kernel takes 2 MiB of arguments and environment at most.
pub const LONGEST: usize = 8 << 20;

/// Bits of [`read::Plan::flags`].
pub mod flag {
    /// Init has its own pid namespace, in which it is process 1 already.
    pub const PID_NAMESPACE: u32 = 1 << 0;
    /// Init has its own mount namespace, so that it may mount.
    pub const MOUNT_NAMESPACE: u32 = 1 << 1;
    /// Init is to make its own cgroup namespace, rooted where it was put.
    pub const CGROUP_NAMESPACE: u32 = 1 << 2;
    /// Mounts of the host are to be private, rather than slaves of the host's.
    pub const PRIVATE_MOUNTS: u32 = 1 << 3;
    /// The root file system is to be read-only once the operations are done.
    pub const READ_ONLY_ROOT: u32 = 1 << 4;
    /// The task cannot gain privileges by executing.
    pub const NO_NEW_PRIVILEGES: u32 = 1 << 5;
    /// The task's standard input is a terminal that is to be its controlling one.
    pub const TERMINAL: u32 = 1 << 6;
    /// Init kills what is left of its descendants when the task has ended, because nothing else holds them.
    pub const SWEEP: u32 = 1 << 7;
    /// Every flag there is.
    pub const ALL: u32 = (1 << 8) - 1;
}

#[cfg(test)]
#[cfg(feature = "writer")]
mod tests;
