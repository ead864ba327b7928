//! Safe wrappers of the system calls that init uses.
//!
//! A [`Fd`] is a plain number. Init opens few files, all of them close-on-exec, and then closes all of them at once;
//! owned descriptors would only add code to a program of which every container maps a copy.
#![allow(unsafe_code)]

mod attributes;
mod memory;
mod process;
mod raw;
mod socket;
mod terminal;

use core::ffi::CStr;

pub(crate) use attributes::reset_attributes;
pub(crate) use memory::{Mapping, SharedNumber, Table, release_unused_stack};
pub(crate) use process::{
    Child, Creation, Parent, PollSet, Wanted, create_process, current_pid, exit_signals, ignore_child_exits,
    milliseconds, next_exit_signal, next_exited, open_process, peek, raise, rest, wait_for, wait_until_ended,
};
use raw::nr;
#[cfg(feature = "writer")]
pub(crate) use socket::MAX_DESCRIPTORS;
pub(crate) use socket::{Descriptors, accept, end_sending, peer_uid, receive, send};
pub(crate) use terminal::{
    is_terminal_master, open_terminal, open_terminal_peer, set_nonblocking, set_terminal_size, take_terminal,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fd(pub(crate) i32);

/// `AT_FDCWD`.
pub(crate) const CWD: Fd = Fd(-100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pid(i32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const PERM: Self = Self(1);
    pub(crate) const NOENT: Self = Self(2);
    pub(crate) const SRCH: Self = Self(3);
    pub(crate) const INTR: Self = Self(4);
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const ACCES: Self = Self(13);
    pub(crate) const EXIST: Self = Self(17);
    pub(crate) const NODEV: Self = Self(19);
    pub(crate) const NOTDIR: Self = Self(20);
    pub(crate) const INVAL: Self = Self(22);
    pub(crate) const NOSPC: Self = Self(28);
    pub(crate) const ROFS: Self = Self(30);
    pub(crate) const NAMETOOLONG: Self = Self(36);
    pub(crate) const NOSYS: Self = Self(38);
    pub(crate) const BADMSG: Self = Self(74);
    pub(crate) const MSGSIZE: Self = Self(90);
    pub(crate) const TIMEDOUT: Self = Self(110);
    pub(crate) const STALE: Self = Self(116);
    pub(crate) const CANCELED: Self = Self(125);
}

type Result<T> = core::result::Result<T, Errno>;

fn check(result: isize) -> Result<usize> {
    if (-4095..0).contains(&result) { Err(Errno(-(result as i32))) } else { Ok(result as usize) }
}

/// # Safety
/// As [`raw::call`].
unsafe fn call<const N: usize>(number: usize, arguments: [usize; N]) -> Result<usize> {
    let mut all = [0; 6];
    let mut index = 0;
    while index < N {
        all[index] = arguments[index];
        index += 1;
    }
    // SAFETY: promised by the caller.
    check(unsafe { raw::call(number, all) })
}

fn text(text: &CStr) -> usize {
    text.as_ptr() as usize
}

// ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) const O_RDONLY: u64 = 0;
pub(crate) const O_WRONLY: u64 = 1;
pub(crate) const O_DIRECTORY: u64 = 0o20_0000;
pub(crate) const O_PATH: u64 = 0o1000_0000;
pub(crate) const O_NOFOLLOW: u64 = 0o40_0000;
const O_CREAT: u64 = 0o100;
const O_NONBLOCK: u64 = 0o4000;
const O_CLOEXEC: u64 = 0o200_0000;

const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn openat2(directory: Fd, path: &CStr, how: &OpenHow) -> Result<Fd> {
    loop {
        // SAFETY: the kernel reads `path` and `how`.
        let result = unsafe {
            call(
                nr::OPENAT2,
                [directory.0 as usize, text(path), (&raw const *how) as usize, size_of::<OpenHow>()],
            )
        };
        match result {
            // The resolution raced with a rename elsewhere, which can happen at any time.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other.map(|fd| Fd(fd as i32)),
        }
    }
}

/// Opens a path of the host.
pub(crate) fn open(path: &CStr, flags: u64) -> Result<Fd> {
    openat2(CWD, path, &OpenHow { flags: flags | O_CLOEXEC, mode: 0, resolve: 0 })
}

/// Opens a path as if `root` were `/`: neither symbolic links nor `..` lead out of it, and magic links lead nowhere.
pub(crate) fn open_in_root(root: Fd, path: &CStr, flags: u64) -> Result<Fd> {
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    openat2(root, path, &OpenHow { flags: flags | O_CLOEXEC, mode: 0, resolve })
}

/// Opens a path below `directory`. A symbolic link or `..` that leads out of it is an error.
pub(crate) fn open_beneath(directory: Fd, path: &CStr, flags: u64) -> Result<Fd> {
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    openat2(directory, path, &OpenHow { flags: flags | O_CLOEXEC, mode: 0, resolve })
}

/// Opens what is open as `fd` again, for use in other system calls only.
pub(crate) fn open_again(fd: Fd) -> Result<Fd> {
    open_tree(fd, c"", 0)
}

/// Opens a file `name` in `directory` for writing, created if missing. A symbolic link of that name is not followed,
/// and opening a FIFO does not block.
pub(crate) fn create(directory: Fd, name: &CStr) -> Result<Fd> {
    let flags = O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    openat2(directory, name, &OpenHow { flags, mode: 0o644, resolve: RESOLVE_NO_MAGICLINKS })
}

pub(crate) fn close(fd: Fd) {
    // SAFETY: touches no memory; descriptors are numbers here.
    let _ = unsafe { call(nr::CLOSE, [fd.0 as usize]) };
}

/// Closes all descriptors from `first` to `last`.
pub(crate) fn close_range(first: u32, last: u32) {
    // SAFETY: touches no memory.
    let _ = unsafe { call(nr::CLOSE_RANGE, [first as usize, last as usize, 0]) };
}

/// Marks all descriptors from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: touches no memory.
    unsafe { call(nr::CLOSE_RANGE, [first as usize, u32::MAX as usize, CLOSE_RANGE_CLOEXEC]) }.map(drop)
}

pub(crate) fn read(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    loop {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
        let result = unsafe { call(nr::READ, [fd.0 as usize, buffer.as_mut_ptr() as usize, buffer.len()]) };
        if result != Err(Errno::INTR) {
            return result;
        }
    }
}

/// Reads from the beginning of a file.
pub(crate) fn read_at_start(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    unsafe { call(nr::PREAD64, [fd.0 as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0]) }
}

pub(crate) fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads `bytes`.
    unsafe { call(nr::WRITE, [fd.0 as usize, bytes.as_ptr() as usize, bytes.len()]) }
}

/// Writes to a file at an offset, in one call.
pub(crate) fn write_at(fd: Fd, bytes: &[u8], offset: u64) -> Result<()> {
    let (address, length) = (bytes.as_ptr() as usize, bytes.len());
    // SAFETY: the kernel reads `bytes`.
    let written = unsafe { call(nr::PWRITE64, [fd.0 as usize, address, length, offset as usize]) }?;
    if written == length { Ok(()) } else { Err(Errno::NOSPC) }
}

/// Reserves space for a part of a file, which reads as zeros.
pub(crate) fn reserve(fd: Fd, offset: u64, length: u64) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::FALLOCATE, [fd.0 as usize, 0, offset as usize, length as usize]) }.map(drop)
}

/// The reading and the writing end of a pipe.
pub(crate) fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [-1_i32; 2];
    // SAFETY: the kernel writes two numbers.
    unsafe { call(nr::PIPE2, [(&raw mut ends) as usize, O_CLOEXEC as usize]) }?;
    // SAFETY: `ends` is initialised; the kernel wrote it through the pointer above.
    let [reader, writer] = unsafe { (&raw const ends).read_volatile() };
    Ok((Fd(reader), Fd(writer)))
}

/// Makes `number` another descriptor of the open file `fd`, close-on-exec or not.
pub(crate) fn duplicate_to(fd: Fd, number: i32, close_on_exec: bool) -> Result<()> {
    let flags = if close_on_exec { O_CLOEXEC as usize } else { 0 };
    // SAFETY: touches no memory; descriptors are numbers here.
    unsafe { call(nr::DUP3, [fd.0 as usize, number as usize, flags]) }.map(drop)
}

/// Some fields of `struct statx`, in the kernel's layout.
#[repr(C)]
pub(crate) struct Stat {
    _head: [u32; 2],
    attributes: u64,
    _links: u32,
    owner: (u32, u32),
    mode: u16,
    _pad: u16,
    inode: u64,
    pub(crate) size: u64,
    _middle: [u64; 10],
    pub(crate) device: (u32, u32),
    filesystem: (u32, u32),
    _tail: [u64; 14],
}

const _: () = assert!(size_of::<Stat>() == 256);

impl Stat {
    const KIND: u16 = 0o170_000;
    const DIRECTORY: u16 = 0o040_000;

    pub(crate) fn is_directory(&self) -> bool {
        self.mode & Self::KIND == Self::DIRECTORY
    }

    /// Whether the kind is that of `mode`, a `S_IF…`.
    pub(crate) fn is_kind_of(&self, mode: u32) -> bool {
        u32::from(self.mode & Self::KIND) == mode & u32::from(Self::KIND)
    }

    /// Whether the permissions are those of `mode`, and the user and group those of `owner`.
    pub(crate) fn is_accessible_as(&self, mode: u32, owner: (u32, u32)) -> bool {
        u32::from(self.mode & !Self::KIND) == mode & !u32::from(Self::KIND) && self.owner == owner
    }

    /// Whether something is mounted here, and it is the file or directory of `other`.
    pub(crate) fn is_mount_of_same(&self, other: &Self) -> bool {
        const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
        let same = (self.filesystem, self.inode) == (other.filesystem, other.inode);
        self.attributes & STATX_ATTR_MOUNT_ROOT != 0 && same
    }
}

const AT_EMPTY_PATH: usize = 0x1000;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_RECURSIVE: usize = 0x8000;

fn statx(directory: Fd, path: &CStr, flags: usize) -> Result<Stat> {
    const BASIC: usize = 0x7ff;
    let mut stat = Stat {
        _head: [0; 2],
        attributes: 0,
        _links: 0,
        owner: (0, 0),
        mode: 0,
        _pad: 0,
        inode: 0,
        size: 0,
        _middle: [0; 10],
        device: (0, 0),
        filesystem: (0, 0),
        _tail: [0; 14],
    };
    // SAFETY: the kernel reads `path` and writes 256 bytes, which `Stat` has.
    unsafe { call(nr::STATX, [directory.0 as usize, text(path), flags, BASIC, (&raw mut stat) as usize]) }?;
    Ok(stat)
}

pub(crate) fn stat(fd: Fd) -> Result<Stat> {
    statx(fd, c"", AT_EMPTY_PATH)
}

/// Does not follow a symbolic link.
pub(crate) fn stat_at(directory: Fd, name: &CStr) -> Result<Stat> {
    statx(directory, name, AT_SYMLINK_NOFOLLOW)
}

pub(crate) fn make_directory(directory: Fd, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the kernel reads `name`.
    unsafe { call(nr::MKDIRAT, [directory.0 as usize, text(name), mode as usize]) }.map(drop)
}

/// Removes anything but a directory.
pub(crate) fn unlink(directory: Fd, name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads `name`.
    unsafe { call(nr::UNLINKAT, [directory.0 as usize, text(name), 0]) }.map(drop)
}

pub(crate) fn make_node(directory: Fd, name: &CStr, mode: u32, major: u32, minor: u32) -> Result<()> {
    let (major, minor) = (u64::from(major), u64::from(minor));
    let device = (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12) | ((major & !0xfff) << 32);
    // SAFETY: the kernel reads `name`.
    unsafe { call(nr::MKNODAT, [directory.0 as usize, text(name), mode as usize, device as usize]) }.map(drop)
}

pub(crate) fn make_symlink(target: &CStr, directory: Fd, name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads both texts.
    unsafe { call(nr::SYMLINKAT, [text(target), directory.0 as usize, text(name)]) }.map(drop)
}

/// Reads a symbolic link, as much as fits into `buffer`.
pub(crate) fn read_symlink<'b>(directory: Fd, name: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    // SAFETY: the kernel reads `name` and writes at most `buffer.len()` bytes to `buffer`.
    let length = unsafe {
        call(nr::READLINKAT, [directory.0 as usize, text(name), buffer.as_mut_ptr() as usize, buffer.len()])
    }?;
    Ok(buffer.get(..length).unwrap_or_default())
}

pub(crate) fn change_owner(fd: Fd, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the kernel reads the empty text.
    unsafe { call(nr::FCHOWNAT, [fd.0 as usize, text(c""), uid as usize, gid as usize, AT_EMPTY_PATH]) }
        .map(drop)
}

/// Does not follow a symbolic link.
pub(crate) fn change_owner_at(directory: Fd, name: &CStr, uid: u32, gid: u32) -> Result<()> {
    let arguments = [directory.0 as usize, text(name), uid as usize, gid as usize, AT_SYMLINK_NOFOLLOW];
    // SAFETY: the kernel reads `name`.
    unsafe { call(nr::FCHOWNAT, arguments) }.map(drop)
}

/// Sets permissions of a file that is open for writing.
pub(crate) fn change_mode_of_file(fd: Fd, mode: u32) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::FCHMOD, [fd.0 as usize, mode as usize]) }.map(drop)
}

/// Empties a file.
pub(crate) fn truncate(fd: Fd) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::FTRUNCATE, [fd.0 as usize, 0]) }.map(drop)
}

/// Sets permissions of the directory that is open as `fd`.
pub(crate) fn change_mode(fd: Fd, mode: u32) -> Result<()> {
    // SAFETY: the kernel reads the text.
    unsafe { call(nr::FCHMODAT, [fd.0 as usize, text(c"."), mode as usize]) }.map(drop)
}

pub(crate) fn change_directory(path: &CStr) -> Result<()> {
    // SAFETY: the kernel reads `path`.
    unsafe { call(nr::CHDIR, [text(path)]) }.map(drop)
}

pub(crate) fn change_directory_to(fd: Fd) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::FCHDIR, [fd.0 as usize]) }.map(drop)
}

/// Whether the working directory is below the root: otherwise the kernel prefixes its path with `(unreachable)`.
pub(crate) fn inside_root() -> Result<bool> {
    let mut buffer = [0; 4096];
    // SAFETY: the kernel writes at most 4096 bytes to `buffer`.
    unsafe { call(nr::GETCWD, [buffer.as_mut_ptr() as usize, buffer.len()]) }?;
    Ok(buffer[0] == b'/')
}

pub(crate) fn set_umask(mask: u32) {
    // SAFETY: touches no memory, cannot fail.
    let _ = unsafe { call(nr::UMASK, [mask as usize]) };
}

// ── mounts ─────────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) const ATTR_READ_ONLY: u64 = 0x1;
pub(crate) const ATTR_NO_DEVICES: u64 = 0x4;
const MS_PRIVATE: u64 = 1 << 18;
pub(crate) const MS_SLAVE: u64 = 1 << 19;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn mount_setattr(fd: Fd, path: &CStr, flags: usize, attr: &MountAttr) -> Result<()> {
    let attr_at = (&raw const *attr) as usize;
    // SAFETY: the kernel reads `path` and `attr`.
    unsafe { call(nr::MOUNT_SETATTR, [fd.0 as usize, text(path), flags, attr_at, size_of::<MountAttr>()]) }
        .map(drop)
}

/// Gives this thread a mount namespace of its own.
#[cfg(test)]
pub(crate) fn new_mount_namespace() -> Result<()> {
    const CLONE_NEWNS: usize = 0x2_0000;
    // SAFETY: touches no memory.
    unsafe { call(nr::UNSHARE, [CLONE_NEWNS]) }.map(drop)
}

/// Makes all mounts of this namespace private, or slaves of the host's.
pub(crate) fn cut_propagation(private: bool) -> Result<()> {
    let propagation = if private { MS_PRIVATE } else { MS_SLAVE };
    mount_setattr(CWD, c"/", AT_RECURSIVE, &MountAttr { propagation, ..MountAttr::default() })
}

/// Sets the propagation of the mount that is open as `fd`, and of those below it.
pub(crate) fn set_propagation(fd: Fd, propagation: u64, recursive: bool) -> Result<()> {
    let flags = if recursive { AT_EMPTY_PATH | AT_RECURSIVE } else { AT_EMPTY_PATH };
    mount_setattr(fd, c"", flags, &MountAttr { propagation, ..MountAttr::default() })
}

/// Adds attributes to the mount that is open as `fd`, and to those below it.
pub(crate) fn set_attributes(fd: Fd, attributes: u64, recursive: bool) -> Result<()> {
    let flags = if recursive { AT_EMPTY_PATH | AT_RECURSIVE } else { AT_EMPTY_PATH };
    // The three access-time modes are one field, which has to be cleared to be set.
    const ATIME: u64 = 0x70;
    let clear = if attributes & ATIME == 0 { 0 } else { ATIME };
    mount_setattr(fd, c"", flags, &MountAttr { set: attributes, clear, ..MountAttr::default() })
}

/// A detached copy of the mount at `path` relative to `directory`; of `directory` itself if `path` is empty.
pub(crate) fn copy_mount(directory: Fd, path: &CStr, recursive: bool) -> Result<Fd> {
    const OPEN_TREE_CLONE: usize = 1;
    open_tree(directory, path, if recursive { OPEN_TREE_CLONE | AT_RECURSIVE } else { OPEN_TREE_CLONE })
}

fn open_tree(directory: Fd, path: &CStr, flags: usize) -> Result<Fd> {
    let flags = flags | O_CLOEXEC as usize | AT_EMPTY_PATH;
    // SAFETY: the kernel reads `path`.
    unsafe { call(nr::OPEN_TREE, [directory.0 as usize, text(path), flags]) }.map(|fd| Fd(fd as i32))
}

/// Attaches a detached mount at the file or directory that is open as `target`.
pub(crate) fn attach_mount(mount: Fd, target: Fd) -> Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: usize = 0x4;
    const MOVE_MOUNT_T_EMPTY_PATH: usize = 0x40;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the kernel reads the empty texts.
    unsafe { call(nr::MOVE_MOUNT, [mount.0 as usize, text(c""), target.0 as usize, text(c""), flags]) }
        .map(drop)
}

/// Opens a file system context. Reading from it returns the kernel's error messages.
pub(crate) fn filesystem(kind: &CStr) -> Result<Fd> {
    const FSOPEN_CLOEXEC: usize = 1;
    // SAFETY: the kernel reads `kind`.
    unsafe { call(nr::FSOPEN, [text(kind), FSOPEN_CLOEXEC]) }.map(|fd| Fd(fd as i32))
}

/// Sets an option.
pub(crate) fn configure(filesystem: Fd, name: &CStr, value: Option<&CStr>) -> Result<()> {
    const SET_FLAG: usize = 0;
    const SET_STRING: usize = 1;
    let (command, value) = match value {
        None => (SET_FLAG, 0),
        Some(value) => (SET_STRING, text(value)),
    };
    // SAFETY: the kernel reads `name` and `value`.
    unsafe { call(nr::FSCONFIG, [filesystem.0 as usize, command, text(name), value, 0]) }.map(drop)
}

/// Creates the file system and a detached mount of it.
pub(crate) fn mount(filesystem: Fd, attributes: u64) -> Result<Fd> {
    const CREATE: usize = 6;
    const FSMOUNT_CLOEXEC: usize = 1;
    // SAFETY: touches no memory.
    unsafe {
        call(nr::FSCONFIG, [filesystem.0 as usize, CREATE, 0, 0, 0])?;
        call(nr::FSMOUNT, [filesystem.0 as usize, FSMOUNT_CLOEXEC, attributes as usize])
    }
    .map(|fd| Fd(fd as i32))
}

/// Checks that files can be created in a directory.
pub(crate) fn check_writable(directory: Fd) -> Result<()> {
    const W_OK: usize = 2;
    // SAFETY: the kernel reads the text.
    unsafe { call(nr::FACCESSAT, [directory.0 as usize, text(c"."), W_OK]) }.map(drop)
}

/// Makes the working directory the root, and unmounts the old root.
pub(crate) fn pivot_here() -> Result<()> {
    const MNT_DETACH: usize = 2;
    // SAFETY: the kernel reads the texts.
    unsafe {
        // This stacks the old root on top of the new one, at the same path, where it can be unmounted.
        call(nr::PIVOT_ROOT, [text(c"."), text(c".")])?;
        call(nr::UMOUNT2, [text(c"."), MNT_DETACH])
    }
    .map(drop)
}

// ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────

pub(crate) const SIGCHLD: i32 = 17;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGCONT: i32 = 18;
const LAST_SIGNAL: usize = 64;
const SIGSET_SIZE: usize = 8;
const ALL_SIGNALS: u64 = u64::MAX;

fn set_signal_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the kernel reads `mask`; with a right size and command it cannot fail.
    let _ = unsafe { call(nr::RT_SIGPROCMASK, [SIG_SETMASK, (&raw const mask) as usize, 0, SIGSET_SIZE]) };
}

pub(crate) fn block_signals() {
    set_signal_mask(ALL_SIGNALS);
}

pub(crate) fn unblock_signals() {
    set_signal_mask(0);
}

/// Resets every signal to its default disposition, which exec does only for those with a handler.
pub(crate) fn reset_dispositions() {
    // The kernel's `struct sigaction`: handler (0 is the default one), flags, restorer, mask.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads `default`. It refuses SIGKILL and SIGSTOP, which have no other disposition.
        let _ = unsafe { call(nr::RT_SIGACTION, [signal, (&raw const default) as usize, 0, SIGSET_SIZE]) };
    }
}

/// Waits for the next signal, all being blocked.
pub(crate) fn next_signal() -> i32 {
    let all = ALL_SIGNALS;
    loop {
        // SAFETY: the kernel reads `all`, and neither writes a `siginfo` nor reads a timeout.
        let result = unsafe { call(nr::RT_SIGTIMEDWAIT, [(&raw const all) as usize, 0, 0, SIGSET_SIZE]) };
        if let Ok(signal) = result {
            return signal as i32;
        }
    }
}

pub(crate) fn send_signal(pid: Pid, signal: i32) {
    // SAFETY: touches no memory. A process that has ended and was not reaped takes signals without effect.
    let _ = unsafe { call(nr::KILL, [pid.0 as usize, signal as usize]) };
}

impl Pid {
    pub(crate) const fn new(number: i32) -> Self {
        Self(number)
    }
}

/// Reaps a child that has ended: its pid and its wait status. If none has, blocks if `wait`, otherwise `None`.
pub(crate) fn reap(wait: bool) -> Result<Option<(Pid, i32)>> {
    const WNOHANG: usize = 1;
    const WALL: usize = 0x4000_0000;
    let options = if wait { WALL } else { WALL | WNOHANG };
    let mut status = 0_i32;
    loop {
        // SAFETY: the kernel writes the status, and reads no `rusage`.
        let result = unsafe { call(nr::WAIT4, [usize::MAX, (&raw mut status) as usize, options, 0]) };
        match result {
            Err(Errno::INTR) => {}
            Ok(0) => return Ok(None),
            other => return other.map(|pid| Some((Pid(pid as i32), status))),
        }
    }
}

/// Waits until a process that is open as a pidfd has ended, at most for `millis`. Whether it has. It is not reaped.
pub(crate) fn wait_for_end(process: Fd, millis: u64) -> Result<bool> {
    #[repr(C)]
    struct Poll {
        fd: i32,
        events: i16,
        returned: i16,
    }
    const POLLIN: i16 = 1;
    let mut poll = Poll { fd: process.0, events: POLLIN, returned: 0 };
    let timeout = [millis / 1000, millis % 1000 * 1_000_000];
    // SAFETY: the kernel reads and writes one `struct pollfd`, and reads a `struct timespec`. All signals are blocked.
    let ready = unsafe {
        call(nr::PPOLL, [(&raw mut poll) as usize, 1, (&raw const timeout) as usize, 0, SIGSET_SIZE])
    };
    ready.map(|ready| ready > 0)
}

/// Reaps a child: its wait status.
pub(crate) fn reap_child(child: Pid) -> Result<i32> {
    const WALL: usize = 0x4000_0000;
    let mut status = 0_i32;
    // SAFETY: the kernel writes the status, and reads no `rusage`. All signals are blocked.
    unsafe { call(nr::WAIT4, [child.0 as usize, (&raw mut status) as usize, WALL, 0]) }?;
    Ok(status)
}

/// Kills all processes of the session and process group that a child leads.
pub(crate) fn kill_group(leader: Pid) {
    // SAFETY: touches no memory.
    let _ = unsafe { call(nr::KILL, [-leader.0 as isize as usize, SIGKILL as usize]) };
    send_signal(leader, SIGKILL);
}

pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: touches no memory, does not return.
        let _ = unsafe { call(nr::EXIT_GROUP, [status as usize]) };
    }
}

/// Executes `path` with pointers to the NUL-terminated texts in `arguments` and `environment`. Returns only on
/// failure.
pub(crate) fn execute(path: &CStr, arguments: &Vector<'_>, environment: &Vector<'_>) -> Errno {
    // SAFETY: the kernel reads `path` and the vectors, each of which ends with a null pointer and points to texts
    // that outlive it. If the call succeeds, the memory is replaced.
    let result = unsafe {
        call(nr::EXECVE, [text(path), arguments.slots.as_ptr() as usize, environment.slots.as_ptr() as usize])
    };
    result.err().unwrap_or(Errno::INVAL)
}

/// A null-terminated array of pointers to texts, as execve(2) takes it.
pub(crate) struct Vector<'a> {
    slots: &'a [usize],
}

impl<'a> Vector<'a> {
    /// Fills `slots`, which has one more element than there are `texts`.
    pub(crate) fn fill(slots: &'a mut [usize], texts: impl Iterator<Item = &'a CStr>) -> Self {
        let capacity = slots.len().saturating_sub(1);
        let mut used = 0;
        for (slot, entry) in slots.iter_mut().take(capacity).zip(texts) {
            *slot = text(entry);
            used += 1;
        }
        slots[used] = 0;
        Self { slots }
    }
}

pub(crate) fn new_session() -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::SETSID, []) }.map(drop)
}

/// The session of a process: the pid of the one that created it.
pub(crate) fn session_of(process: Pid) -> Result<Pid> {
    // SAFETY: touches no memory.
    unsafe { call(nr::GETSID, [process.0 as usize]) }.map(|session| Pid(session as i32))
}

fn prctl(option: usize, a: usize, b: usize) -> Result<usize> {
    // SAFETY: only options that take numbers are used in this file, except for the name, a text that outlives the call.
    unsafe { call(nr::PRCTL, [option, a, b, 0, 0]) }
}

/// Sets the name of this process, at most 15 bytes.
pub(crate) fn set_name(name: &CStr) {
    const PR_SET_NAME: usize = 15;
    let _ = prctl(PR_SET_NAME, text(name), 0);
}

const PR_SET_DUMPABLE: usize = 4;

/// Processes of the same user may trace this one, and its files in `/proc` belong to its user.
pub(crate) fn become_dumpable() {
    let _ = prctl(PR_SET_DUMPABLE, 1, 0);
}

/// Only a process with CAP_SYS_PTRACE may trace this one or read its memory.
pub(crate) fn become_undumpable() {
    let _ = prctl(PR_SET_DUMPABLE, 0, 0);
}

/// Orphaned descendants become children of this process instead of the machine's init.
pub(crate) fn become_subreaper() -> Result<()> {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

pub(crate) fn forbid_new_privileges() -> Result<()> {
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Keeps permitted capabilities over a change of user.
pub(crate) fn keep_capabilities() -> Result<()> {
    const PR_SET_KEEPCAPS: usize = 8;
    prctl(PR_SET_KEEPCAPS, 1, 0).map(drop)
}

/// Whether the capability is in the bounding set; an error if the kernel does not know it.
pub(crate) fn in_bounding_set(capability: u32) -> Result<bool> {
    const PR_CAPBSET_READ: usize = 23;
    prctl(PR_CAPBSET_READ, capability as usize, 0).map(|result| result == 1)
}

pub(crate) fn drop_from_bounding_set(capability: u32) -> Result<()> {
    const PR_CAPBSET_DROP: usize = 24;
    prctl(PR_CAPBSET_DROP, capability as usize, 0).map(drop)
}

const PR_CAP_AMBIENT: usize = 47;

pub(crate) fn clear_ambient_set() -> Result<()> {
    const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).map(drop)
}

pub(crate) fn raise_in_ambient_set(capability: u32) -> Result<()> {
    const PR_CAP_AMBIENT_RAISE: usize = 2;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability as usize).map(drop)
}

/// Effective, permitted and inheritable sets, bit n for capability n.
#[derive(Clone, Copy)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

/// Version 3 of the kernel's header, for the calling process.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

pub(crate) fn capabilities() -> Result<CapabilitySets> {
    let mut header = CAPABILITY_HEADER;
    let mut data = [0_u32; 6];
    // SAFETY: the kernel reads, and on a wrong version writes, the header, and writes two records of three numbers.
    unsafe { call(nr::CAPGET, [(&raw mut header) as usize, (&raw mut data) as usize]) }?;
    let join = |index: usize| u64::from(data[index]) | u64::from(data[index + 3]) << 32;
    Ok(CapabilitySets { effective: join(0), permitted: join(1), inheritable: join(2) })
}

pub(crate) fn set_capabilities(sets: CapabilitySets) -> Result<()> {
    let mut header = CAPABILITY_HEADER;
    let sets = [sets.effective, sets.permitted, sets.inheritable];
    let low = sets.map(|set| set as u32);
    let high = sets.map(|set| (set >> 32) as u32);
    let data = [low, high];
    // SAFETY: the kernel reads, and on a wrong version writes, the header, and reads two records of three numbers.
    unsafe { call(nr::CAPSET, [(&raw mut header) as usize, (&raw const data) as usize]) }.map(drop)
}

/// `groups` is an array of native-endian `u32`, possibly unaligned.
pub(crate) fn set_groups(groups: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads `groups.len() / 4` numbers of four bytes, at any alignment.
    unsafe { call(nr::SETGROUPS, [groups.len() / 4, groups.as_ptr() as usize]) }.map(drop)
}

pub(crate) fn set_group(gid: u32) -> Result<()> {
    let gid = gid as usize;
    // SAFETY: touches no memory.
    unsafe { call(nr::SETRESGID, [gid, gid, gid]) }.map(drop)
}

/// Effective user of this process.
pub(crate) fn user() -> u32 {
    // SAFETY: touches no memory; it cannot fail.
    unsafe { call(nr::GETEUID, []) }.map_or(u32::MAX, |uid| uid as u32)
}

pub(crate) fn is_root() -> bool {
    user() == 0
}

pub(crate) fn set_user(uid: u32) -> Result<()> {
    let uid = uid as usize;
    // SAFETY: touches no memory.
    unsafe { call(nr::SETRESUID, [uid, uid, uid]) }.map(drop)
}

pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    // SAFETY: the kernel reads `limit`, and writes nothing because the old limit is not requested.
    unsafe { call(nr::PRLIMIT64, [0, resource as usize, (&raw const limit) as usize, 0]) }.map(drop)
}

/// The soft and the hard limit.
pub(crate) fn limit(resource: u32) -> Result<(u64, u64)> {
    let mut limit = [0_u64; 2];
    // SAFETY: the kernel writes `limit`, and reads nothing because no new limit is set.
    unsafe { call(nr::PRLIMIT64, [0, resource as usize, 0, (&raw mut limit) as usize]) }?;
    Ok((limit[0], limit[1]))
}

/// Loads a seccomp filter, an array of `struct sock_filter` of eight bytes each.
pub(crate) fn set_filter(filter: &[u8], flags: u32) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const u8,
    }
    const INSTRUCTION: usize = 8;
    let length = u16::try_from(filter.len() / INSTRUCTION).map_err(|_| Errno::INVAL)?;
    let program = Program { length, instructions: filter.as_ptr() };
    // SAFETY: the kernel reads `program` and as many instructions as it states, at any alignment.
    unsafe { call(nr::SECCOMP, [SECCOMP_SET_MODE_FILTER, flags as usize, (&raw const program) as usize]) }
        .map(drop)
}

pub(crate) fn set_hostname(name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as `name` has.
    unsafe { call(nr::SETHOSTNAME, [text(name), name.count_bytes()]) }.map(drop)
}

/// Enters the namespace that is open as `fd`, of the kind of a `CLONE_NEW…` flag.
pub(crate) fn enter_namespace(fd: Fd, kind: u32) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::SETNS, [fd.0 as usize, kind as usize]) }.map(drop)
}

/// Enters namespaces of a process that is open as a pidfd. `kinds` are `CLONE_NEW…` flags.
pub(crate) fn enter_namespaces_of(process: Fd, kinds: u64) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::SETNS, [process.0 as usize, kinds as usize]) }.map(drop)
}

/// Creates namespaces. `kinds` are `CLONE_NEW…` flags.
pub(crate) fn create_namespaces(kinds: u64) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { call(nr::UNSHARE, [kinds as usize]) }.map(drop)
}

/// `CLONE_NEWNS`.
pub(crate) const MOUNT_NAMESPACE: u64 = 0x2_0000;
/// `CLONE_NEWPID`.
pub(crate) const PID_NAMESPACE: u64 = 0x2000_0000;
/// `CLONE_NEWCGROUP`.
pub(crate) const CGROUP_NAMESPACE: u64 = 0x0200_0000;

/// Creates a time namespace for future children.
pub(crate) fn new_time_namespace() -> Result<()> {
    const CLONE_NEWTIME: usize = 0x80;
    // SAFETY: touches no memory.
    unsafe { call(nr::UNSHARE, [CLONE_NEWTIME]) }.map(drop)
}

/// Replaces the session keyring by a new, unnamed one.
pub(crate) fn join_new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    // SAFETY: the kernel reads no name if there is none.
    unsafe { call(nr::KEYCTL, [KEYCTL_JOIN_SESSION_KEYRING, 0]) }.map(drop)
}
