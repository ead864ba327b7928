//! The writing half of the plan's format: owned values, checked and encoded by the host.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{HEADER, LONGEST, MAGIC, VERSION, flag};

/// All that init is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Bits of [`flag`].
    pub flags: u32,
    /// Host name to set; only with an own UTS namespace.
    pub hostname: Option<OsString>,
    /// What becomes `/`.
    pub root: Root,
    /// What to do inside it, in this order; only with an own mount namespace.
    pub operations: Vec<Operation>,
    /// Written to `/proc/self/oom_score_adj` of init and so inherited by the task.
    pub oom_score_adj: Option<i32>,
    /// Where the task starts; `/` if not said.
    pub workplace: Option<Workplace>,
    /// Resource limits of the task; init itself has none of them.
    pub limits: Vec<Limit>,
    /// Whom the task runs as; not changed if not said.
    pub user: Option<User>,
    /// The task's capabilities. If not said they are what the change of user leaves, without inheritable ones.
    pub capabilities: Option<Capabilities>,
    /// A seccomp filter for the task: an array of `struct sock_filter`, empty for none.
    pub seccomp: Vec<u8>,
    /// The task's umask.
    pub umask: u32,
    /// What the task executes: a path if there is a slash in it, else a name to look up in `PATH` of
    /// [`Plan::environment`].
    pub program: OsString,
    /// Its arguments, the first being its name.
    pub arguments: Vec<OsString>,
    /// Its environment, names and values.
    pub environment: Vec<(OsString, OsString)>,
}

/// What becomes `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Root {
    /// The mount namespace's own root: no change.
    #[default]
    Host,
    /// This directory of the host, with what is mounted in it.
    Directory(PathBuf),
    /// Layers of directories of the host, the topmost first.
    Overlay {
        /// Read-only layers, topmost first; at least one.
        lowers: Vec<PathBuf>,
        /// The directory that takes all changes; without it the root is read-only. Mounted over in the new mount
        /// namespace, and so out of reach for later binds.
        upper: Option<PathBuf>,
        /// Scratch space of the kernel on the same file system, empty.
        work: Option<PathBuf>,
        /// Never sync: for an upper directory that nobody wants after a crash of the machine.
        volatile: bool,
    },
}

/// One thing to do inside the root. Targets are resolved as if the root were `/` already: no symbolic link and no
/// `..` leads out. What is missing on the way to a target is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Shows `source` of the host at `target`; a missing target becomes a file if the source is one.
    Bind {
        /// On the host.
        source: PathBuf,
        /// Inside.
        target: PathBuf,
        /// Of the new mount.
        attributes: Attributes,
        /// With what is mounted below the source.
        recursive: bool,
    },
    /// Mounts a new file system.
    Filesystem {
        /// Its type, as `proc` or `tmpfs`.
        kind: OsString,
        /// Inside.
        target: PathBuf,
        /// Of the new mount.
        attributes: Attributes,
        /// Of the file system.
        options: Vec<MountOption>,
    },
    /// Makes a device node, unless the very same is there.
    Device {
        /// Inside.
        path: PathBuf,
        /// `S_IFCHR` or `S_IFBLK`, and permissions.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Makes a symbolic link, unless the very same is there.
    Symlink {
        /// Where, inside.
        path: PathBuf,
        /// What it says.
        target: PathBuf,
    },
    /// Makes a directory, unless there is one, and gives it mode and owner.
    Directory {
        /// Inside.
        path: PathBuf,
        /// Permissions.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Hides a file behind the null device, a directory behind an empty one; what is missing needs no hiding.
    Mask {
        /// Inside.
        path: PathBuf,
    },
    /// Makes what is there unwritable; what is missing is so already.
    ReadOnly {
        /// Inside.
        path: PathBuf,
    },
}

/// Attributes of a mount, as mount_setattr(2) numbers them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes(pub u64);

impl Attributes {
    /// Nothing can be written.
    pub const READ_ONLY: Self = Self(0x1);
    /// Set-uid bits mean nothing.
    pub const NO_SUID: Self = Self(0x2);
    /// Devices cannot be opened.
    pub const NO_DEV: Self = Self(0x4);
    /// Programs cannot be executed.
    pub const NO_EXEC: Self = Self(0x8);
    /// Access times are not kept.
    pub const NO_ATIME: Self = Self(0x10);
    /// Access times are kept exactly.
    pub const STRICT_ATIME: Self = Self(0x20);
    /// Symbolic links are not followed.
    pub const NO_SYMFOLLOW: Self = Self(0x20_0000);

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An option of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOption {
    /// As `size`.
    pub name: OsString,
    /// As `64m`; options like `newinstance` have none. At most 255 bytes.
    pub value: Option<OsString>,
}

/// Where the task starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workplace {
    /// An absolute path inside.
    pub path: PathBuf,
    /// Make it if it is missing, and what is made belong to [`Plan::user`].
    pub create: bool,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The `RLIMIT_…` number.
    pub resource: u32,
    /// The soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// The hard limit, `u64::MAX` for none.
    pub hard: u64,
}

/// Whom the task runs as, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; all others are dropped.
    pub groups: Vec<u32>,
}

/// The five sets, bit n for capability n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The most that any program executed later can get.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over an exec of a file that asks for them. Leave it empty unless [`Capabilities::ambient`] is not.
    pub inheritable: u64,
    /// Kept over any exec; must be permitted and inheritable.
    pub ambient: u64,
}

/// A plan that cannot be written down.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    /// The kernel's texts end at the first NUL.
    #[error("the {what} `{value}` holds a NUL character")]
    Nul {
        /// Which text.
        what: &'static str,
        /// It.
        value: String,
    },
    /// The name of a variable would end at the first `=`.
    #[error("the name of the environment variable `{name}` is empty or holds `=`")]
    VariableName {
        /// It.
        name: String,
    },
    /// A bit of [`Plan::flags`] that nobody defined.
    #[error("the plan has unknown flags `{flags:#x}`")]
    Flags {
        /// All flags.
        flags: u32,
    },
    /// More than init reads.
    #[error("the plan has {length} bytes, and {LONGEST} is the most there may be")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
}

impl Plan {
    /// The message to send on [`super::CONTROL`].
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        if self.flags & !flag::ALL != 0 {
            return Err(EncodeError::Flags { flags: self.flags });
        }
        let mut out = Message { bytes: Vec::with_capacity(2048) };
        out.bytes.extend(MAGIC);
        out.u32(VERSION);
        out.u32(0);

        out.u32(self.flags);
        out.option(self.hostname.as_ref(), |out, name| out.text("host name", name))?;
        self.root.encode(&mut out)?;
        out.list(&self.operations, |out, operation| operation.encode(out))?;
        out.option(self.oom_score_adj, |out, score| {
            out.u32(score.cast_unsigned());
            Ok(())
        })?;
        out.option(self.workplace.as_ref(), |out, workplace| {
            out.text("working directory", &workplace.path)?;
            out.bool(workplace.create);
            Ok(())
        })?;
        out.list(&self.limits, |out, limit| {
            out.u32(limit.resource);
            out.u64(limit.soft);
            out.u64(limit.hard);
            Ok(())
        })?;
        out.option(self.user.as_ref(), |out, user| {
            out.u32(user.uid);
            out.u32(user.gid);
            out.list(&user.groups, |out, group| {
                out.u32(*group);
                Ok(())
            })
        })?;
        out.option(self.capabilities, |out, sets| {
            let Capabilities { bounding, effective, permitted, inheritable, ambient } = sets;
            [bounding, effective, permitted, inheritable, ambient].into_iter().for_each(|set| out.u64(set));
            Ok(())
        })?;
        out.length(self.seccomp.len());
        out.bytes.extend(&self.seccomp);
        out.u32(self.umask);
        out.text("program", &self.program)?;
        out.list(&self.arguments, |out, argument| out.text("argument", argument))?;
        out.list(&self.environment, |out, (name, value)| out.variable(name, value))?;
        out.finish()
    }
}

impl Root {
    fn encode(&self, out: &mut Message) -> Result<(), EncodeError> {
        match self {
            Self::Host => out.u8(0),
            Self::Directory(path) => {
                out.u8(1);
                out.text("root", path)?;
            }
            Self::Overlay { lowers, upper, work, volatile } => {
                out.u8(2);
                out.list(lowers, |out, lower| out.text("layer", lower))?;
                out.option(upper.as_ref(), |out, path| out.text("upper directory", path))?;
                out.option(work.as_ref(), |out, path| out.text("work directory", path))?;
                out.bool(*volatile);
            }
        }
        Ok(())
    }
}

impl Operation {
    fn encode(&self, out: &mut Message) -> Result<(), EncodeError> {
        match self {
            Self::Bind { source, target, attributes, recursive } => {
                out.u8(1);
                out.text("mount source", source)?;
                out.text("mount target", target)?;
                out.u64(attributes.0);
                out.bool(*recursive);
            }
            Self::Filesystem { kind, target, attributes, options } => {
                out.u8(2);
                out.text("file system type", kind)?;
                out.text("mount target", target)?;
                out.u64(attributes.0);
                out.list(options, |out, option| {
                    out.text("mount option", &option.name)?;
                    out.option(option.value.as_ref(), |out, value| out.text("mount option", value))
                })?;
            }
            Self::Device { path, mode, major, minor } => {
                out.u8(3);
                out.text("device", path)?;
                [*mode, *major, *minor].into_iter().for_each(|number| out.u32(number));
            }
            Self::Symlink { path, target } => {
                out.u8(4);
                out.text("symbolic link", path)?;
                out.text("symbolic link's target", target)?;
            }
            Self::Directory { path, mode, uid, gid } => {
                out.u8(5);
                out.text("directory", path)?;
                [*mode, *uid, *gid].into_iter().for_each(|number| out.u32(number));
            }
            Self::Mask { path } => {
                out.u8(6);
                out.text("masked path", path)?;
            }
            Self::ReadOnly { path } => {
                out.u8(7);
                out.text("read-only path", path)?;
            }
        }
        Ok(())
    }
}

struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    fn bool(&mut self, value: bool) {
        self.bytes.push(value.into());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// A length that may be cut here, because then `finish` refuses the whole.
    fn length(&mut self, length: usize) {
        self.u32(length as u32);
    }

    fn text(&mut self, what: &'static str, text: impl AsRef<OsStr>) -> Result<(), EncodeError> {
        let text = text.as_ref();
        if text.as_bytes().contains(&0) {
            return Err(EncodeError::Nul { what, value: text.to_string_lossy().into_owned() });
        }
        self.length(text.len());
        self.bytes.extend(text.as_bytes());
        self.u8(0);
        Ok(())
    }

    fn variable(&mut self, name: &OsStr, value: &OsStr) -> Result<(), EncodeError> {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(EncodeError::VariableName { name: name.to_string_lossy().into_owned() });
        }
        let mut text = OsString::with_capacity(name.len() + 1 + value.len());
        text.push(name);
        text.push("=");
        text.push(value);
        self.text("environment variable", text)
    }

    fn option<T>(
        &mut self,
        value: Option<T>,
        write: impl FnOnce(&mut Self, T) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        self.bool(value.is_some());
        value.map_or(Ok(()), |value| write(self, value))
    }

    fn list<T>(
        &mut self,
        members: &[T],
        mut write: impl FnMut(&mut Self, &T) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let start = self.bytes.len();
        self.u32(0);
        self.length(members.len());
        for member in members {
            write(self, member)?;
        }
        let length = self.bytes.len() - start - 8;
        self.bytes[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, EncodeError> {
        let length = self.bytes.len();
        if length > LONGEST {
            return Err(EncodeError::TooLong { length });
        }
        self.bytes[HEADER - 4..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(self.bytes)
    }
}
