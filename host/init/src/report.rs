//! What init answers: to a listening agent on [`crate::plan::CONTROL`], and to any later one in the status file.
//!
//! On the control socket: nothing, when init ended before it came to anything; [`RUNNING`], when all is done but
//! the exec; a [`Record`], when a step failed, after [`RUNNING`] if that step is the exec. Then end of file.
//!
//! In the status file: nothing, as long as init lives or if it was killed; else a decimal wait status as wait(2)
//! gives it; or `not started: STEP ERRNO`, when the task never ran, numbers as in a [`Record`].

use core::fmt;

/// The descriptor of the status file, opened for writing by the agent.
pub const STATUS: i32 = 4;

/// Sent before the exec.
pub const RUNNING: u8 = b'R';
/// Begins a [`Record`].
pub const FAILED: u8 = b'F';
/// The most bytes of detail in a record.
pub const LONGEST_DETAIL: usize = 480;
/// Bytes of a record before its detail.
pub const RECORD_HEAD: usize = 9;

/// What init was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Step {
    /// Reading the plan.
    Plan = 1,
    /// Starting a session, and becoming its orphans' parent.
    Session = 2,
    /// Setting the host name.
    Hostname = 3,
    /// Making a cgroup namespace.
    CgroupNamespace = 4,
    /// Cutting mounts off from the host's.
    Propagation = 5,
    /// Mounting the root file system.
    Root = 6,
    /// A bind mount.
    Bind = 7,
    /// Mounting a file system.
    Filesystem = 8,
    /// Making a device node.
    Device = 9,
    /// Making a symbolic link.
    Symlink = 10,
    /// Making a directory.
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
    Workplace = 16,
    /// Forking the task.
    Fork = 17,
    /// Taking the terminal.
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
}

impl Step {
    const ALL: [Self; 25] = [
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
        Self::Workplace,
        Self::Fork,
        Self::Terminal,
        Self::Limit,
        Self::User,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Seccomp,
        Self::Descriptors,
        Self::Exec,
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
            Self::Session => "starting a session",
            Self::Hostname => "setting the host name",
            Self::CgroupNamespace => "making a cgroup namespace",
            Self::Propagation => "cutting off mount propagation",
            Self::Root => "mounting the root file system",
            Self::Bind => "bind-mounting",
            Self::Filesystem => "mounting a file system",
            Self::Device => "making a device node",
            Self::Symlink => "making a symbolic link",
            Self::Directory => "making a directory",
            Self::Mask => "masking a path",
            Self::ReadOnly => "making a path read-only",
            Self::Pivot => "changing the root",
            Self::OomScore => "setting the oom score adjustment",
            Self::Workplace => "changing to the working directory",
            Self::Fork => "forking the task",
            Self::Terminal => "taking the terminal",
            Self::Limit => "setting a resource limit",
            Self::User => "changing the user",
            Self::Capabilities => "setting capabilities",
            Self::NoNewPrivileges => "forbidding new privileges",
            Self::Seccomp => "loading the seccomp filter",
            Self::Descriptors => "closing descriptors",
            Self::Exec => "executing the program",
        })
    }
}

/// A failed step, as bytes: [`FAILED`], step u16, errno i32, length of the detail u16, detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Which step.
    pub step: Step,
    /// The kernel's reason.
    pub errno: i32,
    /// Of what, as a path; and what else the kernel said. Cut after [`LONGEST_DETAIL`] bytes.
    pub detail: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads a record. `None` if it is none, or not all of one.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let [FAILED, s0, s1, e0, e1, e2, e3, l0, l1, rest @ ..] = bytes else { return None };
        Some(Self {
            step: Step::from_number(u16::from_le_bytes([*s0, *s1]))?,
            errno: i32::from_le_bytes([*e0, *e1, *e2, *e3]),
            detail: rest.get(..u16::from_le_bytes([*l0, *l1]).into())?,
        })
    }

    /// Writes the record's head; the detail follows it as it is.
    pub(crate) fn head(step: Step, errno: i32, length: usize) -> [u8; RECORD_HEAD] {
        let [s0, s1] = (step as u16).to_le_bytes();
        let [e0, e1, e2, e3] = errno.to_le_bytes();
        let [l0, l1] = (length as u16).to_le_bytes();
        [FAILED, s0, s1, e0, e1, e2, e3, l0, l1]
    }
}

/// What the status file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing: init lives, or was killed.
    Open,
    /// The task ended with this wait status.
    Ended(i32),
    /// The task never ran.
    NotStarted {
        /// What failed; `None` if the number is unknown.
        step: Option<Step>,
        /// Why.
        errno: i32,
    },
    /// Something else: not written by us, or not all of it.
    Garbled,
}

pub(crate) const NOT_STARTED: &[u8] = b"not started: ";

impl Status {
    /// Reads the content of a status file.
    pub fn parse(content: &[u8]) -> Self {
        let Ok(text) = core::str::from_utf8(content) else { return Self::Garbled };
        let text = text.trim_ascii_end();
        if text.is_empty() {
            return Self::Open;
        }
        let Some(numbers) = text.as_bytes().strip_prefix(NOT_STARTED) else {
            return text.parse().map_or(Self::Garbled, Self::Ended);
        };
        let mut numbers = core::str::from_utf8(numbers).unwrap_or_default().split(' ');
        let step = numbers.next().and_then(|step| step.parse().ok());
        let errno = numbers.next().and_then(|errno| errno.parse().ok());
        match (step, errno) {
            (Some(step), Some(errno)) => Self::NotStarted { step: Step::from_number(step), errno },
            _ => Self::Garbled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_DETAIL, Record, Status, Step};

    #[test]
    fn steps_have_their_numbers() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(step as usize, index + 1);
            assert_eq!(Step::from_number(step as u16), Some(step));
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(26), None);
    }

    #[test]
    fn a_record_is_read_back_and_a_part_of_one_is_not() {
        let detail = [b'x'; LONGEST_DETAIL];
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
        assert_eq!(Status::parse(b""), Status::Open);
        assert_eq!(Status::parse(b"256"), Status::Ended(256));
        assert_eq!(Status::parse(b"9\n"), Status::Ended(9));
        let not_started = Status::NotStarted { step: Some(Step::Exec), errno: 13 };
        assert_eq!(Status::parse(b"not started: 25 13"), not_started);
        for garbled in [&b"x"[..], b"\xff", b"not started: ", b"not started: 25", b"2 56"] {
            assert_eq!(Status::parse(garbled), Status::Garbled, "{garbled:?}");
        }
    }
}
