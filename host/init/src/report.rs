//! What init reports: on [`crate::plan::CONTROL`] to a connected agent, and in the status file to any later one.
//!
//! On the control socket: nothing, if init ended before any step; [`RUNNING`], when only the exec is left; a
//! [`Record`], when a step failed, after [`RUNNING`] if that step is the exec. Then end of file.
//!
//! In the status file: nothing, while init runs or if it was killed; otherwise the wait status of the task as
//! wait(2) gives it, in decimal, or `not started: STEP ERRNO` if the task never ran, numbers as in a [`Record`].

use core::fmt;

/// The descriptor of the status file, opened for writing by the agent.
pub const STATUS: i32 = 4;

/// Sent before the exec.
pub const RUNNING: u8 = b'R';
/// First byte of a [`Record`].
pub const FAILED: u8 = b'F';
/// Maximum length in bytes of the detail in a record.
pub const MAX_DETAIL: usize = 480;
/// Bytes of a record before its detail.
pub const RECORD_HEAD: usize = 9;

/// The step at which init failed.
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
}

impl Step {
    const ALL: [Self; 33] = [
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
            Self::Fork => "forking the task",
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

/// Content of the status file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing: init is running, or was killed.
    Empty,
    /// The task ended with this wait status.
    Ended(i32),
    /// The task never ran.
    NotStarted {
        /// The step that failed; `None` if the number is unknown.
        step: Option<Step>,
        /// The error that the kernel returned.
        errno: i32,
    },
    /// Anything else: incomplete, or not written by init.
    Malformed,
}

pub(crate) const NOT_STARTED: &[u8] = b"not started: ";

impl Status {
    /// Parses the content of a status file.
    pub fn parse(content: &[u8]) -> Self {
        let Ok(text) = core::str::from_utf8(content) else { return Self::Malformed };
        let text = text.trim_ascii_end();
        if text.is_empty() {
            return Self::Empty;
        }
        let Some(numbers) = text.as_bytes().strip_prefix(NOT_STARTED) else {
            return text.parse().map_or(Self::Malformed, Self::Ended);
        };
        let mut numbers = core::str::from_utf8(numbers).unwrap_or_default().split(' ');
        let step = numbers.next().and_then(|step| step.parse().ok());
        let errno = numbers.next().and_then(|errno| errno.parse().ok());
        match (step, errno) {
            (Some(step), Some(errno)) => Self::NotStarted { step: Step::from_number(step), errno },
            _ => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_DETAIL, Record, Status, Step};

    #[test]
    fn steps_have_their_numbers() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index + 1);
            assert_eq!(Step::from_number(step as u16), Some(step));
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(34), None);
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

    #[test]
    fn a_status_is_one_of_four_things() {
        assert_eq!(Status::parse(b""), Status::Empty);
        assert_eq!(Status::parse(b"256"), Status::Ended(256));
        assert_eq!(Status::parse(b"9\n"), Status::Ended(9));
        let not_started = Status::NotStarted { step: Some(Step::Exec), errno: 13 };
        assert_eq!(Status::parse(b"not started: 25 13"), not_started);
        for malformed in [&b"x"[..], b"\xff", b"not started: ", b"not started: 25", b"2 56"] {
            assert_eq!(Status::parse(malformed), Status::Malformed, "{malformed:?}");
        }
    }
}
