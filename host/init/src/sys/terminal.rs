//! Pseudo terminals.
#![allow(unsafe_code)]

use super::{
    Errno, Fd, O_CLOEXEC, O_NONBLOCK, O_PATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, Result, Stat, call, nr,
    openat2, stat,
};

const O_RDWR: u64 = 2;
const O_NOCTTY: u64 = 0o400;

/// `/dev/ptmx`.
const MULTIPLEXER: (u32, u32) = (5, 2);

/// Opens a new pseudo terminal of the multiplexer at a path below `root`, which must be one. Returns the side of the
/// terminal emulator.
pub(crate) fn open_terminal(root: Fd, path: &core::ffi::CStr) -> Result<Fd> {
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    let open = |flags| openat2(root, path, &super::OpenHow { flags: flags | O_CLOEXEC, mode: 0, resolve });
    // Opening another device may have an effect.
    let found = open(O_PATH)?;
    let is_multiplexer = is_terminal_master(found);
    super::close(found);
    if !is_multiplexer {
        return Err(Errno::NODEV);
    }
    let master = open(O_RDWR | O_NOCTTY | O_NONBLOCK)?;
    if is_terminal_master(master) {
        return Ok(master);
    }
    super::close(master);
    Err(Errno::NODEV)
}

/// Whether a descriptor is a terminal emulator's side of a pseudo terminal.
pub(crate) fn is_terminal_master(fd: Fd) -> bool {
    const CHARACTER_DEVICE: u32 = 0o020_000;
    let is_multiplexer = |stat: Stat| stat.is_kind_of(CHARACTER_DEVICE) && stat.device == MULTIPLEXER;
    stat(fd).is_ok_and(is_multiplexer)
}

/// Opens the other side of a pseudo terminal, which is for programs.
pub(crate) fn open_terminal_peer(master: Fd) -> Result<Fd> {
    const TIOCSPTLCK: usize = 0x4004_5431;
    const TIOCGPTPEER: usize = 0x5441;
    let locked = 0_i32;
    // SAFETY: the kernel reads one number.
    unsafe { call(nr::IOCTL, [master.0 as usize, TIOCSPTLCK, (&raw const locked) as usize]) }?;
    let flags = (O_RDWR | O_NOCTTY | O_CLOEXEC) as usize;
    // SAFETY: touches no memory.
    unsafe { call(nr::IOCTL, [master.0 as usize, TIOCGPTPEER, flags]) }.map(|fd| Fd(fd as i32))
}

/// Sets the size of a terminal in characters. Its foreground processes get SIGWINCH if it changes.
pub(crate) fn set_terminal_size(terminal: Fd, rows: u16, columns: u16) -> Result<()> {
    const TIOCSWINSZ: usize = 0x5414;
    // Rows, columns, and two numbers of pixels.
    let size = [rows, columns, 0, 0];
    // SAFETY: the kernel reads a `struct winsize`, four numbers of 16 bits.
    unsafe { call(nr::IOCTL, [terminal.0 as usize, TIOCSWINSZ, (&raw const size) as usize]) }.map(drop)
}

/// Makes the terminal that is open as `fd` the controlling terminal of this session.
pub(crate) fn take_terminal(fd: Fd) -> Result<()> {
    const TIOCSCTTY: usize = 0x540e;
    // SAFETY: touches no memory.
    unsafe { call(nr::IOCTL, [fd.0 as usize, TIOCSCTTY, 0]) }.map(drop)
}

/// Reads and writes of what is open as `fd` never wait; also those of other descriptors of it.
pub(crate) fn set_nonblocking(fd: Fd) -> Result<()> {
    const F_GETFL: usize = 3;
    const F_SETFL: usize = 4;
    // SAFETY: touches no memory.
    let flags = unsafe { call(nr::FCNTL, [fd.0 as usize, F_GETFL, 0]) }?;
    // SAFETY: touches no memory.
    unsafe { call(nr::FCNTL, [fd.0 as usize, F_SETFL, flags | O_NONBLOCK as usize]) }.map(drop)
}
