//! What the setup process reports to the agent on [`crate::plan::CONTROL`].
//!
//! [`READY`] in its namespaces and first cgroups. After the plan: [`STARTED`] with the pid of the container's first
//! process as four bytes, native-endian, and its pidfd as ancillary data; or a [`Record`] of the step that failed. Then
//! end of file. Without one of the two, it was killed.
//!
//! The command's process reports to the setup process in the same way: [`RUNNING`], when only the exec is left, and a
//! [`Record`] if a step failed, the exec among them. Then end of file.

use core::fmt;

/// Sent when the setup process waits for its plan.
pub const READY: u8 = b'N';
/// Sent when the command was executed.
pub const STARTED: u8 = b'S';
/// Sent before the exec.
pub const RUNNING: u8 = b'R';
/// First byte of a [`Record`].
pub const FAILED: u8 = b'F';
/// Maximum length in bytes of the detail in a record.
pub const MAX_DETAIL: usize = 480;
/// Bytes of a record before its detail.
pub const RECORD_HEAD: usize = 9;

/// The step of a launch that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Step {
    /// Reading the plan.
    Plan = 1,
    /// Creating a session, and becoming a subreaper.
    Session = 2,
    /// Setting the host name.
    Hostname = 3,
    /// Creating a cgroup namespace.
    CgroupNamespace = 4,
    /// Setting the mount propagation.
    Propagation = 5,
    /// Mounting the root file system.
    Root = 6,
    /// A bind mount.
    Bind = 7,
    /// Mounting a file system.
    Filesystem = 8,
    /// Creating a device node.
    Device = 9,
    /// Creating a symbolic link.
    Symlink = 10,
    /// Creating a directory.
    Directory = 11,
    /// Masking a path.
    Mask = 12,
    /// Making a path read-only.
    ReadOnly = 13,
    /// Changing the root.
    Pivot = 14,
    /// Setting the score for the out-of-memory killer.
    OomScore = 15,
    /// Changing to the working directory.
    WorkingDirectory = 16,
    /// Forking the task.
    Fork = 17,
    /// Setting the controlling terminal.
    Terminal = 18,
    /// Setting a resource limit.
    Limit = 19,
    /// Changing user and groups.
    User = 20,
    /// Setting capabilities.
    Capabilities = 21,
    /// Forbidding new privileges.
    NoNewPrivileges = 22,
    /// Loading the seccomp filter.
    Seccomp = 23,
    /// Closing descriptors.
    Descriptors = 24,
    /// Executing the program.
    Exec = 25,
    /// Entering a namespace.
    EnterNamespace = 26,
    /// Creating a time namespace.
    TimeNamespace = 27,
    /// Setting a kernel parameter.
    Sysctl = 28,
    /// Moving a mount.
    Move = 29,
    /// Writing a file.
    WriteFile = 30,
    /// Creating a session keyring.
    Keyring = 31,
    /// Starting a hook.
    Hook = 32,
    /// A hook exited with an error.
    HookFailed = 33,
    /// Joining a cgroup.
    JoinCgroup = 34,
    /// Creating namespaces.
    Namespaces = 35,
    /// Registering with the keeper, or telling the agent.
    Register = 36,
}

impl Step {
    const ALL: [Self; 36] = [
        Self::Plan,
        Self::Session,
        Self::Hostname,
        Self::CgroupNamespace,
        Self::Propagation,
        Self::Root,
        Self::Bind,
        Self::Filesystem,
        Self::Device,
        Self::Symlink,
        Self::Directory,
        Self::Mask,
        Self::ReadOnly,
        Self::Pivot,
        Self::OomScore,
        Self::WorkingDirectory,
        Self::Fork,
        Self::Terminal,
        Self::Limit,
        Self::User,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Seccomp,
        Self::Descriptors,
        Self::Exec,
        Self::EnterNamespace,
        Self::TimeNamespace,
        Self::Sysctl,
        Self::Move,
        Self::WriteFile,
        Self::Keyring,
        Self::Hook,
        Self::HookFailed,
        Self::JoinCgroup,
        Self::Namespaces,
        Self::Register,
    ];

    /// The step of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u16 == number)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "reading the plan",
            Self::Session => "creating a session",
            Self::Hostname => "setting the host name",
            Self::CgroupNamespace => "creating a cgroup namespace",
            Self::Propagation => "setting the mount propagation",
            Self::Root => "mounting the root file system",
            Self::Bind => "bind-mounting",
            Self::Filesystem => "mounting a file system",
            Self::Device => "creating a device node",
            Self::Symlink => "creating a symbolic link",
            Self::Directory => "creating a directory",
            Self::Mask => "masking a path",
            Self::ReadOnly => "making a path read-only",
            Self::Pivot => "changing the root",
            Self::OomScore => "setting the OOM score adjustment",
            Self::WorkingDirectory => "changing to the working directory",
            Self::Fork => "creating the process of the command",
            Self::Terminal => "setting the controlling terminal",
            Self::Limit => "setting a resource limit",
            Self::User => "changing the user",
            Self::Capabilities => "setting capabilities",
            Self::NoNewPrivileges => "forbidding new privileges",
            Self::Seccomp => "loading the seccomp filter",
            Self::Descriptors => "closing descriptors",
            Self::Exec => "executing the program",
            Self::EnterNamespace => "entering a namespace",
            Self::TimeNamespace => "creating a time namespace",
            Self::Sysctl => "setting a kernel parameter",
            Self::Move => "moving a mount",
            Self::WriteFile => "writing a file",
            Self::Keyring => "creating a session keyring",
            Self::Hook => "starting a hook",
            Self::HookFailed => "running a hook, which exited with an error",
            Self::JoinCgroup => "joining a cgroup",
            Self::Namespaces => "creating namespaces",
            Self::Register => "registering with the keeper",
        })
    }
}

/// A failed step, as bytes: [`FAILED`], step u16, errno i32, length of the detail u16, detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The step that failed.
    pub step: Step,
    /// The error that the kernel returned.
    pub errno: i32,
    /// The path or name concerned, and the kernel's message if there is one. Truncated to [`MAX_DETAIL`] bytes.
    pub detail: &'a [u8],
}

impl<'a> Record<'a> {
    /// Parses a record. `None` if it is not one, or incomplete.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let [FAILED, s0, s1, e0, e1, e2, e3, l0, l1, rest @ ..] = bytes else { return None };
        Some(Self {
            step: Step::from_number(u16::from_le_bytes([*s0, *s1]))?,
            errno: i32::from_le_bytes([*e0, *e1, *e2, *e3]),
            detail: rest.get(..u16::from_le_bytes([*l0, *l1]).into())?,
        })
    }

    /// The encoded record up to the detail.
    pub(crate) fn head(step: Step, errno: i32, length: usize) -> [u8; RECORD_HEAD] {
        let [s0, s1] = (step as u16).to_le_bytes();
        let [e0, e1, e2, e3] = errno.to_le_bytes();
        let [l0, l1] = (length as u16).to_le_bytes();
        [FAILED, s0, s1, e0, e1, e2, e3, l0, l1]
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_DETAIL, Record, Step};

    #[test]
    fn steps_have_their_numbers() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index + 1);
            assert_eq!(Step::from_number(step as u16), Some(step));
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(37), None);
    }

    #[test]
    fn a_complete_record_is_parsed_and_an_incomplete_one_is_not() {
        let detail = [b'x'; MAX_DETAIL];
        let mut bytes = Record::head(Step::Exec, 2, detail.len()).to_vec();
        bytes.extend(detail);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record, Record { step: Step::Exec, errno: 2, detail: &detail });
        for length in 0..bytes.len() {
            assert_eq!(Record::parse(&bytes[..length]), None, "{length}");
        }
    }
}
