//! Stops a process at its system calls: a seccomp filter with user notification, and its listener.
//!
//! The filter is installed in a child between fork and exec, and all its descendants inherit it. Each of the calls waits
//! until [`respond`] continues it or lets it fail.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// A system call that waits for a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingCall {
    /// Id of the notification.
    pub(super) id: u64,
    /// The thread, in the pid namespace of this process.
    pub(super) tid: i32,
    /// The call's number.
    pub(super) call: i64,
    /// Its arguments.
    pub(super) args: [u64; 6],
}

/// Makes `command` install a filter that notifies of each of `calls`. Returns the socket from which [`listener`] receives
/// the listener of the child.
pub(super) fn install(command: &mut Command, calls: &[i64]) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let filter = filter(calls);
    let install = move || install_filter(&filter, &theirs);
    // SAFETY: `install_filter` only makes system calls: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(install) };
    Ok(ours)
}

/// The program of the filter: notifies if the call is in the list.
fn filter(calls: &[i64]) -> Vec<libc::sock_filter> {
    const LOAD_NUMBER: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let instruction = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: u8::try_from(jt).expect("a jump within the filter"),
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

/// Installs the filter in the calling process and sends the descriptor of its listener.
fn install_filter(filter: &[libc::sock_filter], socket: &UnixStream) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // Without root, a filter needs PR_SET_NO_NEW_PRIVS.
    // SAFETY: prctl(2) with these arguments takes no pointer.
    if unsafe { libc::geteuid() != 0 && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 } {
        return Err(io::Error::last_os_error());
    }
    // Without the second flag, there would be two notifications for a call that a signal interrupts.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let program = &raw const program;
    // SAFETY: the kernel copies `program` and the filter that it points to, both of which live until it returns.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, program) };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    send(socket.as_raw_fd(), listener as RawFd)
}

/// Buffer for a control message with one descriptor.
#[repr(C)]
struct ControlMessage {
    header: libc::cmsghdr,
    descriptor: RawFd,
}

const fn control_length() -> usize {
    mem::offset_of!(ControlMessage, descriptor) + size_of::<RawFd>()
}

fn send(socket: RawFd, descriptor: RawFd) -> io::Result<()> {
    // SAFETY: all of these are plain data, for which zeros are valid.
    let (mut control, mut message): (ControlMessage, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    control.header.cmsg_level = libc::SOL_SOCKET;
    control.header.cmsg_type = libc::SCM_RIGHTS;
    control.header.cmsg_len = control_length();
    control.descriptor = descriptor;
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<ControlMessage>();
    // SAFETY: `message` points to values of this frame.
    match unsafe { libc::sendmsg(socket, &raw const message, 0) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receives the descriptor of a child's listener.
pub(super) fn listener(socket: &UnixStream) -> io::Result<OwnedFd> {
    // SAFETY: all of these are plain data, for which zeros are valid.
    let (mut control, mut message): (ControlMessage, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<ControlMessage>();
    // SAFETY: `message` points to values of this frame, which are as long as it says.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    if received == 0 || control.header.cmsg_len != control_length() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the kernel has just opened this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(control.descriptor) })
}

/// Receives the next waiting call; blocks until there is one. `None` if its process has ended.
pub(super) fn next(listener: &OwnedFd) -> io::Result<Option<PendingCall>> {
    let mut call = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the kernel requires a zeroed structure of this size, which it fills.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, call.as_mut_ptr()) };
    if received < 0 {
        let error = io::Error::last_os_error();
        let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR));
        return if gone { Ok(None) } else { Err(error) };
    }
    // SAFETY: it was all zeros, for which it is valid, and the kernel has filled it.
    let call = unsafe { call.assume_init() };
    Ok(Some(PendingCall {
        id: call.id,
        tid: call.pid as i32,
        call: call.data.nr.into(),
        args: call.data.args,
    }))
}

/// Continues a call, or lets it fail with an error number without being made.
pub(super) fn respond(listener: &OwnedFd, id: u64, failure: Option<i32>) -> io::Result<()> {
    let flags = if failure.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: failure.map_or(0, |errno| -errno), flags };
    // SAFETY: the kernel reads a structure of this size.
    let sent = unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, ptr::from_mut(&mut answer))
    };
    let error = io::Error::last_os_error();
    // The process may have been killed meanwhile.
    if sent == 0 || error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) }
}
