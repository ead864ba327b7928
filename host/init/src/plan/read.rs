//! The decoder of the plan: views into the message, without a copy.
//!
//! A plan is decoded completely before anything is done, so that a truncated or malformed one has no effect.

use core::ffi::CStr;
use core::marker::PhantomData;

use super::{HEADER, MAGIC, MAX_LENGTH, VERSION, flag, stage};

/// Why a message is not a plan of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It does not begin with the magic bytes.
    Magic,
    /// It was written by another version.
    Version(u32),
    /// Its length is less than a header's, more than allowed, or not that of the message.
    Length,
    /// It ends within a value.
    Truncated,
    /// A text contains a NUL, or does not end with one.
    Text,
    /// A discriminant has no variant.
    Variant(u8),
    /// A flag is not defined.
    Flags(u32),
    /// A user or group is the number that means none.
    Id,
    /// Bytes follow the last value.
    Trailing,
}

impl Malformed {
    /// A short description.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Magic => "not a plan",
            Self::Version(_) => "a plan of another version",
            Self::Length => "a plan of the wrong length",
            Self::Truncated => "a truncated plan",
            Self::Text => "a plan with an invalid text",
            Self::Variant(_) => "a plan with an unknown variant",
            Self::Flags(_) => "a plan with an unknown flag",
            Self::Id => "a plan with an invalid user or group",
            Self::Trailing => "a plan with trailing bytes",
        }
    }
}

/// Reads a header and returns the length of the whole message.
pub fn header(bytes: &[u8; HEADER]) -> Result<usize, Malformed> {
    let mut cursor = Cursor { rest: bytes };
    if cursor.take(MAGIC.len())? != MAGIC {
        return Err(Malformed::Magic);
    }
    let version = u32::read(&mut cursor)?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let length = u32::read(&mut cursor)? as usize;
    if (HEADER..=MAX_LENGTH).contains(&length) { Ok(length) } else { Err(Malformed::Length) }
}

/// A decoded plan. [`super::write::Plan`] documents the fields.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct Plan<'a> {
    pub flags: u32,
    pub entered: List<'a, EnteredNamespace>,
    pub time_offsets: Option<TimeOffsets>,
    pub sysctls: List<'a, Sysctl<'a>>,
    pub hooks: List<'a, Hook<'a>>,
    pub hostname: Option<&'a CStr>,
    pub root: Root<'a>,
    pub operations: List<'a, Operation<'a>>,
    pub oom_score_adj: Option<i32>,
    pub working_directory: Option<WorkingDirectory<'a>>,
    pub terminal: Option<Terminal>,
    pub limits: List<'a, Limit>,
    pub user: Option<User<'a>>,
    pub capabilities: Option<Capabilities>,
    pub seccomp: &'a [u8],
    pub seccomp_flags: u32,
    pub umask: u32,
    pub program: &'a CStr,
    pub arguments: List<'a, &'a CStr>,
    pub environment: List<'a, &'a CStr>,
}

impl<'a> Plan<'a> {
    /// Reads a whole message, header included.
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let (head, body) = message.split_first_chunk::<HEADER>().ok_or(Malformed::Truncated)?;
        if header(head)? != message.len() {
            return Err(Malformed::Length);
        }
        let mut cursor = Cursor { rest: body };
        let plan = Self {
            flags: flags(&mut cursor)?,
            entered: List::read(&mut cursor)?,
            time_offsets: Option::read(&mut cursor)?,
            sysctls: List::read(&mut cursor)?,
            hooks: List::read(&mut cursor)?,
            hostname: Option::read(&mut cursor)?,
            root: Root::read(&mut cursor)?,
            operations: List::read(&mut cursor)?,
            oom_score_adj: Option::read(&mut cursor)?,
            working_directory: Option::read(&mut cursor)?,
            terminal: Option::read(&mut cursor)?,
            limits: List::read(&mut cursor)?,
            user: Option::read(&mut cursor)?,
            capabilities: Option::read(&mut cursor)?,
            seccomp: <&[u8]>::read(&mut cursor)?,
            seccomp_flags: u32::read(&mut cursor)?,
            umask: u32::read(&mut cursor)?,
            program: <&CStr>::read(&mut cursor)?,
            arguments: List::read(&mut cursor)?,
            environment: List::read(&mut cursor)?,
        };
        if cursor.rest.is_empty() { Ok(plan) } else { Err(Malformed::Trailing) }
    }

    /// Whether a bit of [`flag`] is set.
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

fn flags(cursor: &mut Cursor<'_>) -> Result<u32, Malformed> {
    let flags = u32::read(cursor)?;
    if flags & !flag::ALL == 0 { Ok(flags) } else { Err(Malformed::Flags(flags)) }
}

/// A user or group. The largest number is none: the kernel would leave the ids of the agent unchanged.
fn id(cursor: &mut Cursor<'_>) -> Result<u32, Malformed> {
    match u32::read(cursor)? {
        u32::MAX => Err(Malformed::Id),
        id => Ok(id),
    }
}

/// A namespace to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct EnteredNamespace {
    pub descriptor: u32,
    pub kind: u32,
}

impl Read<'_> for EnteredNamespace {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Self { descriptor: u32::read(cursor)?, kind: u32::read(cursor)? })
    }
}

/// A terminal that is opened in the root of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct Terminal {
    pub descriptor: u32,
    pub rows: u16,
    pub columns: u16,
}

impl Read<'_> for Terminal {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let descriptor = u32::read(cursor)?;
        let size = u32::read(cursor)?;
        Ok(Self { descriptor, rows: (size >> 16) as u16, columns: size as u16 })
    }
}

/// Clock offsets of the task's time namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct TimeOffsets {
    pub monotonic_nanos: i64,
    pub boottime_nanos: i64,
}

impl Read<'_> for TimeOffsets {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let mut nanos = || u64::read(cursor).map(u64::cast_signed);
        Ok(Self { monotonic_nanos: nanos()?, boottime_nanos: nanos()? })
    }
}

/// A kernel parameter.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct Sysctl<'a> {
    pub path: &'a CStr,
    pub value: &'a CStr,
}

impl<'a> Read<'a> for Sysctl<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(Self { path: <&CStr>::read(cursor)?, value: <&CStr>::read(cursor)? })
    }
}

/// A command to run at a stage of the launch.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct Hook<'a> {
    pub stage: u8,
    pub program: &'a CStr,
    pub arguments: List<'a, &'a CStr>,
    pub environment: List<'a, &'a CStr>,
    pub timeout_millis: u64,
}

impl<'a> Read<'a> for Hook<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            stage: match u8::read(cursor)? {
                stage if stage <= stage::BEFORE_EXEC => stage,
                other => return Err(Malformed::Variant(other)),
            },
            program: <&CStr>::read(cursor)?,
            arguments: List::read(cursor)?,
            environment: List::read(cursor)?,
            timeout_millis: u64::read(cursor)?,
        })
    }
}

/// The root file system.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub enum Root<'a> {
    Host,
    Directory(&'a CStr),
    ReadOnly(&'a CStr),
    Overlay { lowers: List<'a, &'a CStr>, upper: Option<&'a CStr>, work: Option<&'a CStr>, volatile: bool },
}

impl<'a> Read<'a> for Root<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(match u8::read(cursor)? {
            0 => Self::Host,
            1 => Self::Directory(<&CStr>::read(cursor)?),
            2 => Self::Overlay {
                lowers: List::read(cursor)?,
                upper: Option::read(cursor)?,
                work: Option::read(cursor)?,
                volatile: bool::read(cursor)?,
            },
            3 => Self::ReadOnly(<&CStr>::read(cursor)?),
            other => return Err(Malformed::Variant(other)),
        })
    }
}

/// An operation inside the root.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub enum Operation<'a> {
    Bind { source: &'a CStr, target: &'a CStr, attributes: u64, recursive: bool },
    Filesystem { kind: &'a CStr, target: &'a CStr, attributes: u64, options: List<'a, MountOption<'a>> },
    BindDescriptor { descriptor: u32, target: &'a CStr, attributes: u64, recursive: bool },
    Move { source: &'a CStr, target: &'a CStr },
    Device { path: &'a CStr, mode: u32, major: u32, minor: u32, uid: u32, gid: u32 },
    Symlink { path: &'a CStr, target: &'a CStr },
    Directory { path: &'a CStr, mode: u32, uid: u32, gid: u32 },
    WriteFile { path: &'a CStr, content: &'a [u8], mode: u32, uid: u32, gid: u32 },
    Mask { path: &'a CStr },
    ReadOnly { path: &'a CStr },
    Propagation { path: &'a CStr, propagation: u64, recursive: bool },
}

impl<'a> Read<'a> for Operation<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(match u8::read(cursor)? {
            1 => Self::Bind {
                source: <&CStr>::read(cursor)?,
                target: <&CStr>::read(cursor)?,
                attributes: u64::read(cursor)?,
                recursive: bool::read(cursor)?,
            },
            2 => Self::Filesystem {
                kind: <&CStr>::read(cursor)?,
                target: <&CStr>::read(cursor)?,
                attributes: u64::read(cursor)?,
                options: List::read(cursor)?,
            },
            3 => Self::Device {
                path: <&CStr>::read(cursor)?,
                mode: u32::read(cursor)?,
                major: u32::read(cursor)?,
                minor: u32::read(cursor)?,
                uid: id(cursor)?,
                gid: id(cursor)?,
            },
            4 => Self::Symlink { path: <&CStr>::read(cursor)?, target: <&CStr>::read(cursor)? },
            5 => Self::Directory {
                path: <&CStr>::read(cursor)?,
                mode: u32::read(cursor)?,
                uid: id(cursor)?,
                gid: id(cursor)?,
            },
            6 => Self::Mask { path: <&CStr>::read(cursor)? },
            7 => Self::ReadOnly { path: <&CStr>::read(cursor)? },
            8 => Self::BindDescriptor {
                descriptor: u32::read(cursor)?,
                target: <&CStr>::read(cursor)?,
                attributes: u64::read(cursor)?,
                recursive: bool::read(cursor)?,
            },
            9 => Self::Move { source: <&CStr>::read(cursor)?, target: <&CStr>::read(cursor)? },
            10 => Self::WriteFile {
                path: <&CStr>::read(cursor)?,
                content: <&[u8]>::read(cursor)?,
                mode: u32::read(cursor)?,
                uid: id(cursor)?,
                gid: id(cursor)?,
            },
            11 => Self::Propagation {
                path: <&CStr>::read(cursor)?,
                propagation: u64::read(cursor)?,
                recursive: bool::read(cursor)?,
            },
            other => return Err(Malformed::Variant(other)),
        })
    }
}

/// An option of a file system, with its value if it has one.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct MountOption<'a> {
    pub name: &'a CStr,
    pub value: Option<&'a CStr>,
}

impl<'a> Read<'a> for MountOption<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(Self { name: <&CStr>::read(cursor)?, value: Option::read(cursor)? })
    }
}

/// The task's working directory.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct WorkingDirectory<'a> {
    pub path: &'a CStr,
    pub create: bool,
}

impl<'a> Read<'a> for WorkingDirectory<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(Self { path: <&CStr>::read(cursor)?, create: bool::read(cursor)? })
    }
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct Limit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

impl Read<'_> for Limit {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Self { resource: u32::read(cursor)?, soft: u64::read(cursor)?, hard: u64::read(cursor)? })
    }
}

/// The task's user and groups.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct User<'a> {
    pub uid: u32,
    pub gid: u32,
    pub groups: List<'a, u32>,
}

impl<'a> Read<'a> for User<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(Self { uid: id(cursor)?, gid: id(cursor)?, groups: List::read(cursor)? })
    }
}

/// The five sets, bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented where they are written")]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Read<'_> for Capabilities {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            bounding: u64::read(cursor)?,
            effective: u64::read(cursor)?,
            permitted: u64::read(cursor)?,
            inheritable: u64::read(cursor)?,
            ambient: u64::read(cursor)?,
        })
    }
}

/// Members of one type, decoded at every iteration. `List::read` has checked that all of them can be.
#[derive(Debug)]
pub struct List<'a, T> {
    bytes: &'a [u8],
    count: usize,
    members: PhantomData<fn() -> T>,
}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

impl<'a, T: Read<'a>> List<'a, T> {
    /// The number of members.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether the list is empty.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded members.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Iterates over the members.
    pub fn iter(&self) -> Members<'a, T> {
        Members { cursor: Cursor { rest: self.bytes }, members: PhantomData }
    }
}

impl<'a, T: Read<'a>> Read<'a> for List<'a, T> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let length = u32::read(cursor)? as usize;
        let count = u32::read(cursor)? as usize;
        let bytes = cursor.take(length)?;
        let mut members = Cursor { rest: bytes };
        let mut seen = 0;
        while !members.rest.is_empty() {
            T::read(&mut members)?;
            seen += 1;
        }
        if seen == count { Ok(Self { bytes, count, members: PhantomData }) } else { Err(Malformed::Length) }
    }
}

/// An iterator over a [`List`].
pub struct Members<'a, T> {
    cursor: Cursor<'a>,
    members: PhantomData<fn() -> T>,
}

impl<'a, T: Read<'a>> Iterator for Members<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        T::read(&mut self.cursor).ok()
    }
}

/// The bytes that remain to be decoded.
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*chunk)
    }
}

/// A value that can be decoded from a cursor. Every value takes at least one byte.
pub trait Read<'a>: Sized {
    /// Decodes a value and advances the cursor past it.
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed>;
}

impl Read<'_> for u8 {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        cursor.chunk().map(u8::from_le_bytes)
    }
}

impl Read<'_> for u32 {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        cursor.chunk().map(u32::from_le_bytes)
    }
}

impl Read<'_> for i32 {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        cursor.chunk().map(i32::from_le_bytes)
    }
}

impl Read<'_> for u64 {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        cursor.chunk().map(u64::from_le_bytes)
    }
}

impl Read<'_> for bool {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Malformed> {
        match u8::read(cursor)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::Variant(other)),
        }
    }
}

impl<'a> Read<'a> for &'a CStr {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let length = u32::read(cursor)? as usize;
        let bytes = cursor.take(length.checked_add(1).ok_or(Malformed::Truncated)?)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| Malformed::Text)
    }
}

impl<'a> Read<'a> for &'a [u8] {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let length = u32::read(cursor)? as usize;
        cursor.take(length)
    }
}

impl<'a, T: Read<'a>> Read<'a> for Option<T> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        bool::read(cursor)?.then(|| T::read(cursor)).transpose()
    }
}
