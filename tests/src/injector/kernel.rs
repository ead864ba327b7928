//! What the kernel gives for stopping a process at its system calls: a filter that asks, and the descriptor
//! on which it does.
//!
//! The filter is laid on a child between fork and exec, and everything that comes of the child inherits it.
//! Each call it names waits until [`answer`] says whether it is made or fails.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// What the answer has to name.
    pub(super) id: u64,
    /// The thread, in our numbering.
    pub(super) tid: i32,
    /// The call's number.
    pub(super) call: i64,
    /// Its arguments.
    pub(super) args: [u64; 6],
}

/// Makes `command` ask before each of `calls`. Answers the socket from which [`listener`] takes the descriptor
/// once the child is there.
pub(super) fn make_ask(command: &mut Command, calls: &[i64]) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let filter = filter(calls);
    let ask = move || lay(&filter, &theirs);
    // SAFETY: `lay` calls the kernel and nothing else: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(ask) };
    Ok(ours)
}

/// `call` is looked for in a list; if it is there, the kernel asks.
fn filter(calls: &[i64]) -> Vec<libc::sock_filter> {
    const LOAD_NUMBER: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let instruction = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: u8::try_from(jt).expect("fewer calls than a jump is long"),
        jf: 0,
        k,
    };
    let number = |call: &i64| u32::try_from(*call).expect("a number");
    let mut filter = vec![instruction(LOAD_NUMBER, 0, 0)];
    let compare = calls.iter().enumerate();
    filter.extend(compare.map(|(index, call)| instruction(IF_EQUAL, calls.len() - index, number(call))));
    filter.push(instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(instruction(RETURN, 0, libc::SECCOMP_RET_USER_NOTIF));
    filter
}

/// Lays the filter on the calling process and sends the descriptor on which it asks.
fn lay(filter: &[libc::sock_filter], socket: &UnixStream) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // Without the second flag, a call that a signal interrupts would be asked about twice.
    // Only root may put others under a filter who could gain privileges.
    // SAFETY: prctl(2) with these takes no pointer.
    if unsafe { libc::geteuid() != 0 && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 } {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let program = &raw const program;
    // SAFETY: the kernel copies `program` and the filter that it points to, both of which live until it returns.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    send(socket.as_raw_fd(), listener as RawFd)
}

/// Room for one descriptor, as `sendmsg` wants it.
#[repr(C)]
struct Envelope {
    header: libc::cmsghdr,
    descriptor: RawFd,
}

const fn envelope_length() -> usize {
    mem::offset_of!(Envelope, descriptor) + size_of::<RawFd>()
}

fn send(socket: RawFd, descriptor: RawFd) -> io::Result<()> {
    // SAFETY: all of these are plain data, for which zeros are values.
    let (mut envelope, mut message): (Envelope, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    envelope.header.cmsg_level = libc::SOL_SOCKET;
    envelope.header.cmsg_type = libc::SCM_RIGHTS;
    envelope.header.cmsg_len = envelope_length();
    envelope.descriptor = descriptor;
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut envelope).cast();
    message.msg_controllen = size_of::<Envelope>();
    // SAFETY: `message` points to values of this frame.
    match unsafe { libc::sendmsg(socket, &raw const message, 0) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the descriptor on which a child asks.
pub(super) fn listener(socket: &UnixStream) -> io::Result<OwnedFd> {
    // SAFETY: all of these are plain data, for which zeros are values.
    let (mut envelope, mut message): (Envelope, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut envelope).cast();
    message.msg_controllen = size_of::<Envelope>();
    // SAFETY: `message` points to values of this frame, which are as long as it says.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    if received == 0 || envelope.header.cmsg_len != envelope_length() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the kernel has put this descriptor into our table a moment ago, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(envelope.descriptor) })
}

/// Takes the next call that waits; waits for one itself. `None` if whoever asked is gone.
pub(super) fn next(listener: &OwnedFd) -> io::Result<Option<Asked>> {
    let mut asked = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the kernel wants a zeroed structure of this size, which it fills.
    let answer =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, asked.as_mut_ptr()) };
    if answer < 0 {
        let error = io::Error::last_os_error();
        let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR));
        return if gone { Ok(None) } else { Err(error) };
    }
    // SAFETY: it was all zeros, for which it is valid, and the kernel has filled it.
    let asked = unsafe { asked.assume_init() };
    Ok(Some(Asked { id: asked.id, tid: asked.pid as i32, call: asked.data.nr.into(), args: asked.data.args }))
}

/// Lets a call be made, or fail with an error number without having been made.
pub(super) fn answer(listener: &OwnedFd, id: u64, failure: Option<i32>) -> io::Result<()> {
    let flags = if failure.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: failure.map_or(0, |errno| -errno), flags };
    // SAFETY: the kernel reads a structure of this size.
    let sent = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, ptr::from_mut(&mut answer))
    };
    let error = io::Error::last_os_error();
    // Whoever asked may have been killed meanwhile.
    if sent == 0 || error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) }
}
