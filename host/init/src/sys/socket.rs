//! Sockets that carry messages and descriptors.
#![allow(unsafe_code)]

use super::{Errno, Fd, Result, call, close, nr};

/// Maximum number of descriptors of a message.
pub(crate) const MAX_DESCRIPTORS: usize = 96;

const SOL_SOCKET: usize = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_CTRUNC: i32 = 0x8;
const MSG_TRUNC: i32 = 0x20;
const MSG_DONTWAIT: usize = 0x40;
const MSG_NOSIGNAL: usize = 0x4000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const SOCK_CLOEXEC: usize = 0o200_0000;

#[repr(C)]
struct IoVec {
    base: usize,
    length: usize,
}

/// The kernel's `struct msghdr`.
#[repr(C)]
struct Header {
    name: usize,
    name_length: u32,
    parts: usize,
    part_count: usize,
    control: usize,
    control_length: usize,
    flags: i32,
}

/// Ancillary data with descriptors: `struct cmsghdr` and an array.
#[repr(C, align(8))]
struct Rights {
    length: usize,
    level: i32,
    kind: i32,
    descriptors: [i32; MAX_DESCRIPTORS],
}

impl Rights {
    const HEAD: usize = 16;
}

/// The descriptors of a message, closed on drop unless taken. All are close-on-exec.
pub(crate) struct Descriptors {
    numbers: [i32; MAX_DESCRIPTORS],
    count: usize,
}

impl Descriptors {
    pub(crate) const fn none() -> Self {
        Self { numbers: [-1; MAX_DESCRIPTORS], count: 0 }
    }

    pub(crate) fn as_slice(&self) -> &[i32] {
        self.numbers.get(..self.count).unwrap_or_default()
    }

    /// The only descriptor, which is not closed on drop any more. `None` if there is none, or several.
    pub(crate) fn take_only(mut self) -> Option<Fd> {
        match self.as_slice() {
            [only] => {
                let only = Fd(*only);
                self.count = 0;
                Some(only)
            }
            _ => None,
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.as_slice().iter().for_each(|fd| close(Fd(*fd)));
    }
}

/// Receives one message without blocking. Returns its length, 0 at the end of the connection; a message that is longer
/// than `buffer` or has too many descriptors is an error.
pub(crate) fn receive(socket: Fd, buffer: &mut [u8]) -> Result<(usize, Descriptors)> {
    let mut rights = Rights { length: 0, level: 0, kind: 0, descriptors: [-1; MAX_DESCRIPTORS] };
    let mut part = IoVec { base: buffer.as_mut_ptr() as usize, length: buffer.len() };
    let mut header = Header {
        name: 0,
        name_length: 0,
        parts: (&raw mut part) as usize,
        part_count: 1,
        control: (&raw mut rights) as usize,
        control_length: size_of::<Rights>(),
        flags: 0,
    };
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer` and `control_length` bytes to `rights`, and
    // updates `header`; all of them are exclusively borrowed here.
    let length = unsafe {
        call(nr::RECVMSG, [socket.0 as usize, (&raw mut header) as usize, MSG_CMSG_CLOEXEC | MSG_DONTWAIT])
    }?;
    let mut received = Descriptors::none();
    // SAFETY: `rights` is initialised; the kernel wrote it through the pointer above.
    let rights = unsafe { (&raw const rights).read_volatile() };
    if header.control_length >= Rights::HEAD && rights.level == SOL_SOCKET as i32 && rights.kind == SCM_RIGHTS
    {
        received.count = (rights.length.saturating_sub(Rights::HEAD) / size_of::<i32>()).min(MAX_DESCRIPTORS);
        received.numbers = rights.descriptors;
    }
    if header.flags & (MSG_TRUNC | MSG_CTRUNC) != 0 { Err(Errno::MSGSIZE) } else { Ok((length, received)) }
}

/// Sends one message, with at most one descriptor. Without a reader it fails, without a signal.
pub(crate) fn send(socket: Fd, message: &[u8], descriptor: Option<Fd>) -> Result<()> {
    let mut rights = Rights { length: 0, level: 0, kind: 0, descriptors: [-1; MAX_DESCRIPTORS] };
    let part = IoVec { base: message.as_ptr() as usize, length: message.len() };
    let mut header = Header {
        name: 0,
        name_length: 0,
        parts: (&raw const part) as usize,
        part_count: 1,
        control: 0,
        control_length: 0,
        flags: 0,
    };
    if let Some(descriptor) = descriptor {
        rights.length = Rights::HEAD + size_of::<i32>();
        rights.level = SOL_SOCKET as i32;
        rights.kind = SCM_RIGHTS;
        rights.descriptors[0] = descriptor.0;
        header.control = (&raw const rights) as usize;
        header.control_length = (rights.length + 7) & !7;
    }
    // SAFETY: the kernel reads the message and the ancillary data that `header` describes.
    unsafe { call(nr::SENDMSG, [socket.0 as usize, (&raw const header) as usize, MSG_NOSIGNAL]) }.map(drop)
}

/// Accepts a connection.
pub(crate) fn accept(listener: Fd) -> Result<Fd> {
    // SAFETY: the kernel writes no address if none is requested.
    unsafe { call(nr::ACCEPT4, [listener.0 as usize, 0, 0, SOCK_CLOEXEC]) }.map(|fd| Fd(fd as i32))
}

/// Ends what is sent over a connection: the other end reads end-of-file, and can still send.
pub(crate) fn end_sending(socket: Fd) {
    const SHUT_WR: usize = 1;
    // SAFETY: touches no memory.
    let _ = unsafe { call(nr::SHUTDOWN, [socket.0 as usize, SHUT_WR]) };
}

/// User of the process at the other end of a connection.
pub(crate) fn peer_uid(socket: Fd) -> Result<u32> {
    const SO_PEERCRED: usize = 17;
    // Pid, uid, gid.
    let mut credentials = [0_u32; 3];
    let mut length = size_of_val(&credentials) as u32;
    let (value, size) = ((&raw mut credentials) as usize, (&raw mut length) as usize);
    // SAFETY: the kernel writes at most `length` bytes to `credentials`, and their number to `length`.
    unsafe { call(nr::GETSOCKOPT, [socket.0 as usize, SOL_SOCKET, SO_PEERCRED, value, size]) }?;
    // SAFETY: `credentials` is initialised; the kernel wrote it through the pointer above.
    Ok(unsafe { (&raw const credentials).read_volatile() }[1])
}
