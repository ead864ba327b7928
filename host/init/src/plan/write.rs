//! The encoder of the plan: owned values, checked and encoded by the agent.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{HEADER, MAGIC, MAX_LENGTH, VERSION, flag};

/// Everything that init is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Bits of [`flag`].
    pub flags: u32,
    /// Namespaces to enter, before anything else.
    pub entered: Vec<EnteredNamespace>,
    /// Creates a time namespace with these offsets for the task.
    pub time_offsets: Option<TimeOffsets>,
    /// Kernel parameters to set, after all namespaces are entered or created.
    pub sysctls: Vec<Sysctl>,
    /// Commands to run, in this order within a stage. They inherit the standard streams of the container.
    pub hooks: Vec<Hook>,
    /// Host name to set; only in its own UTS namespace.
    pub hostname: Option<OsString>,
    /// The root file system.
    pub root: Root,
    /// Operations inside the root, in this order; only in its own mount namespace.
    pub operations: Vec<Operation>,
    /// Written to `/proc/self/oom_score_adj` of init, from which the task inherits it.
    pub oom_score_adj: Option<i32>,
    /// The task's working directory; `/` if `None`.
    pub working_directory: Option<WorkingDirectory>,
    /// A terminal to open for the task, which becomes its standard streams.
    pub terminal: Option<Terminal>,
    /// Resource limits of the task; they do not apply to init.
    pub limits: Vec<Limit>,
    /// The task's user and groups; unchanged if `None`.
    pub user: Option<User>,
    /// The task's capabilities. If `None`, those that the change of user leaves, with an empty inheritable set.
    pub capabilities: Option<Capabilities>,
    /// A seccomp filter for the task: an array of `struct sock_filter`, empty for none.
    pub seccomp: Vec<u8>,
    /// Flags of seccomp(2) for the filter.
    pub seccomp_flags: u32,
    /// The task's umask.
    pub umask: u32,
    /// The program to execute: a path if it contains a slash, otherwise a name that is looked up in `PATH` of
    /// [`Plan::environment`].
    pub program: OsString,
    /// Its arguments, starting with `argv[0]`.
    pub arguments: Vec<OsString>,
    /// Its environment: names and values.
    pub environment: Vec<(OsString, OsString)>,
}

/// The root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Root {
    /// The root of the mount namespace, unchanged.
    #[default]
    Host,
    /// A directory of the host, with the mounts below it.
    Directory(PathBuf),
    /// Likewise, read-only from the beginning: operations create nothing in it.
    ReadOnly(PathBuf),
    /// An overlay of directories of the host.
    Overlay {
        /// Read-only layers, topmost first; at least one.
        lowers: Vec<PathBuf>,
        /// The directory that receives all changes; without it the root is read-only. The overlay is mounted over
        /// it in the new mount namespace, so later binds cannot use it as a source.
        upper: Option<PathBuf>,
        /// An empty directory on the same file system as `upper`, for use by the kernel.
        work: Option<PathBuf>,
        /// Never sync: for an upper directory that is not needed after a crash of the machine.
        volatile: bool,
    },
}

/// An operation inside the root. Targets are resolved as if the root were `/` already: no symbolic link leads out of
/// it. Missing parents of a target are created.
///
/// What is at or below the target of an earlier mount is resolved inside that mount, whatever happens in the root
/// meanwhile: there, a symbolic link that leads out of the mount fails the operation. A `..` after a name fails it as
/// well, and so does a mount over the root itself, which would be invisible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Bind-mounts `source` of the host at `target`; a missing target is created as a directory or a file, like the
    /// source.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Path inside the root.
        target: PathBuf,
        /// Attributes of the new mount.
        attributes: Attributes,
        /// Include the mounts below the source.
        recursive: bool,
    },
    /// Mounts a new file system.
    Filesystem {
        /// Type of the file system, such as `proc` or `tmpfs`.
        kind: OsString,
        /// Path inside the root.
        target: PathBuf,
        /// Attributes of the new mount.
        attributes: Attributes,
        /// Options of the file system.
        options: Vec<MountOption>,
    },
    /// Attaches a detached mount.
    BindDescriptor {
        /// Number of its descriptor, from [`super::DESCRIPTORS`] on.
        descriptor: u32,
        /// Path inside the root.
        target: PathBuf,
        /// Attributes to add.
        attributes: Attributes,
        /// Add them to the mounts below as well.
        recursive: bool,
    },
    /// Moves a mount.
    Move {
        /// Path inside the root, at which something is mounted.
        source: PathBuf,
        /// Path inside the root.
        target: PathBuf,
    },
    /// Creates a device node or a FIFO, unless the same one exists.
    Device {
        /// Path inside the root.
        path: PathBuf,
        /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, and permissions.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Creates a symbolic link, unless the same one exists.
    Symlink {
        /// Path of the link inside the root.
        path: PathBuf,
        /// Content of the link.
        target: PathBuf,
    },
    /// Creates a directory unless it exists, and sets mode and owner.
    Directory {
        /// Path inside the root.
        path: PathBuf,
        /// Permissions.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Creates a regular file, or replaces its content, and sets mode and owner.
    WriteFile {
        /// Path inside the root.
        path: PathBuf,
        /// The content.
        content: Vec<u8>,
        /// Permissions.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Mounts the null device over a file, or an empty directory over a directory; nothing if the path is missing.
    Mask {
        /// Path inside the root.
        path: PathBuf,
    },
    /// Makes a path read-only; nothing if it is missing.
    ReadOnly {
        /// Path inside the root.
        path: PathBuf,
    },
    /// Sets the propagation of a mount.
    Propagation {
        /// Path inside the root, at which something is mounted.
        path: PathBuf,
        /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`.
        propagation: u64,
        /// Include the mounts below.
        recursive: bool,
    },
}

/// A namespace to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnteredNamespace {
    /// Number of its descriptor, from [`super::DESCRIPTORS`] on.
    pub descriptor: u32,
    /// The `CLONE_NEW…` flag of its kind.
    pub kind: u32,
}

/// Clock offsets of a time namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeOffsets {
    /// Added to `CLOCK_MONOTONIC`.
    pub monotonic_nanos: i64,
    /// Added to `CLOCK_BOOTTIME`.
    pub boottime_nanos: i64,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Absolute path, below `/proc/sys`.
    pub path: PathBuf,
    /// Its value.
    pub value: String,
}

/// A command to run at a stage of the launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hook {
    /// One of [`super::stage`].
    pub stage: u8,
    /// Absolute path.
    pub program: PathBuf,
    /// Its arguments, starting with `argv[0]`.
    pub arguments: Vec<OsString>,
    /// Its environment: names and values.
    pub environment: Vec<(OsString, OsString)>,
    /// Time after which it is killed.
    pub timeout_millis: u64,
}

/// Attributes of a mount: the `MOUNT_ATTR_…` bits of mount_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes(pub u64);

impl Attributes {
    /// Read-only.
    pub const READ_ONLY: Self = Self(0x1);
    /// Set-uid and set-gid bits are ignored.
    pub const NO_SUID: Self = Self(0x2);
    /// Devices cannot be opened.
    pub const NO_DEV: Self = Self(0x4);
    /// Programs cannot be executed.
    pub const NO_EXEC: Self = Self(0x8);
    /// Access times are not updated.
    pub const NO_ATIME: Self = Self(0x10);
    /// Access times are always updated.
    pub const STRICT_ATIME: Self = Self(0x20);
    /// Symbolic links are not followed.
    pub const NO_SYMFOLLOW: Self = Self(0x20_0000);

    /// The union of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An option of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOption {
    /// Such as `size`.
    pub name: OsString,
    /// Such as `64m`; `None` for flags like `newinstance`. At most 255 bytes.
    pub value: Option<OsString>,
}

/// The task's working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingDirectory {
    /// An absolute path inside the root.
    pub path: PathBuf,
    /// Create missing components, owned by [`Plan::user`].
    pub create: bool,
}

/// A terminal that is opened in the root of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Number of the socket over which the other side of the terminal is sent, from [`super::DESCRIPTORS`] on.
    pub descriptor: u32,
    /// Initial size in characters, 0 if unknown.
    pub rows: u16,
    /// As above.
    pub columns: u16,
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

/// The task's user and groups, numeric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups; all others are dropped.
    pub groups: Vec<u32>,
}

/// The five sets, bit n for capability n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Limit for what any program executed later can gain.
    pub bounding: u64,
    /// In effect.
    pub effective: u64,
    /// May be added to the effective set.
    pub permitted: u64,
    /// Kept over an exec of a file that has them inheritable. Leave it empty unless [`Capabilities::ambient`] is set.
    pub inheritable: u64,
    /// Kept over any exec; must be permitted and inheritable.
    pub ambient: u64,
}

/// A plan that cannot be encoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    /// The kernel's strings end at the first NUL.
    #[error("the {what} `{value}` contains a NUL character")]
    Nul {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The name of a variable would end at the first `=`.
    #[error("the name of the environment variable `{name}` is empty or contains `=`")]
    VariableName {
        /// The name.
        name: String,
    },
    /// A bit of [`Plan::flags`] is not defined.
    #[error("the plan has unknown flags `{flags:#x}`")]
    Flags {
        /// All flags of the plan.
        flags: u32,
    },
    /// The plan is longer than init accepts.
    #[error("the plan has {length} bytes; at most {MAX_LENGTH} are possible")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
}

impl Plan {
    /// Encodes the plan as the message to send on [`super::CONTROL`].
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        if self.flags & !flag::ALL != 0 {
            return Err(EncodeError::Flags { flags: self.flags });
        }
        let mut out = Message { bytes: Vec::with_capacity(2048) };
        out.bytes.extend(MAGIC);
        out.u32(VERSION);
        out.u32(0);

        out.u32(self.flags);
        out.list(&self.entered, |out, entered| {
            out.u32(entered.descriptor);
            out.u32(entered.kind);
            Ok(())
        })?;
        out.option(self.time_offsets, |out, offsets| {
            out.u64(offsets.monotonic_nanos.cast_unsigned());
            out.u64(offsets.boottime_nanos.cast_unsigned());
            Ok(())
        })?;
        out.list(&self.sysctls, |out, sysctl| {
            out.text("kernel parameter", &sysctl.path)?;
            out.text("kernel parameter", &sysctl.value)
        })?;
        out.list(&self.hooks, |out, hook| hook.encode(out))?;
        out.option(self.hostname.as_ref(), |out, name| out.text("host name", name))?;
        self.root.encode(&mut out)?;
        out.list(&self.operations, |out, operation| operation.encode(out))?;
        out.option(self.oom_score_adj, |out, score| {
            out.u32(score.cast_unsigned());
            Ok(())
        })?;
        out.option(self.working_directory.as_ref(), |out, working_directory| {
            out.text("working directory", &working_directory.path)?;
            out.bool(working_directory.create);
            Ok(())
        })?;
        out.option(self.terminal, |out, terminal| {
            out.u32(terminal.descriptor);
            out.u32(u32::from(terminal.rows) << 16 | u32::from(terminal.columns));
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
        out.bytes(&self.seccomp);
        out.u32(self.seccomp_flags);
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
            Self::ReadOnly(path) => {
                out.u8(3);
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
            Self::Device { path, mode, major, minor, uid, gid } => {
                out.u8(3);
                out.text("device", path)?;
                [*mode, *major, *minor, *uid, *gid].into_iter().for_each(|number| out.u32(number));
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
            Self::BindDescriptor { descriptor, target, attributes, recursive } => {
                out.u8(8);
                out.u32(*descriptor);
                out.text("mount target", target)?;
                out.u64(attributes.0);
                out.bool(*recursive);
            }
            Self::Move { source, target } => {
                out.u8(9);
                out.text("mount to move", source)?;
                out.text("mount target", target)?;
            }
            Self::WriteFile { path, content, mode, uid, gid } => {
                out.u8(10);
                out.text("file", path)?;
                out.bytes(content);
                [*mode, *uid, *gid].into_iter().for_each(|number| out.u32(number));
            }
            Self::Propagation { path, propagation, recursive } => {
                out.u8(11);
                out.text("mount", path)?;
                out.u64(*propagation);
                out.bool(*recursive);
            }
        }
        Ok(())
    }
}

impl Hook {
    fn encode(&self, out: &mut Message) -> Result<(), EncodeError> {
        out.u8(self.stage);
        out.text("hook", &self.program)?;
        out.list(&self.arguments, |out, argument| out.text("hook's argument", argument))?;
        out.list(&self.environment, |out, (name, value)| out.variable(name, value))?;
        out.u64(self.timeout_millis);
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

    /// The cast may truncate: `finish` refuses a message of that length.
    fn length(&mut self, length: usize) {
        self.u32(length as u32);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.bytes.extend(bytes);
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
        if length > MAX_LENGTH {
            return Err(EncodeError::TooLong { length });
        }
        self.bytes[HEADER - 4..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(self.bytes)
    }
}
