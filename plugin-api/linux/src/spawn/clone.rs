//! clone3(2) with shared memory, and the code of the child up to its exec: raw system calls only.
//!
//! Rules for every line that runs in the child, which only review can enforce: no allocation, no panic, no lock, no
//! thread-local, no libc (its `errno` is that of the sleeping thread). Only system calls, on memory that the sleeping
//! thread has prepared in its stack frame.
#![allow(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "plugin-api/linux/src/spawn/clone.rs implements clone3 for x86_64 only; port `clone3_raw` and `syscall5`"
);

use std::arch::asm;
use std::ffi::c_char;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::{Spawn, SpawnError, Step};

// Defined here because libc's constants are `int`s, which have no bits above 31.
const CLONE_VM: u64 = 0x0000_0100;
const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_VFORK: u64 = 0x0000_4000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// The kernel's `struct clone_args` since Linux 5.7, which added `cgroup`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Stack of a child, in the frame of the sleeping thread. The child needs less than 1 KiB optimised and about 4 KiB
/// otherwise.
#[repr(C, align(16))]
struct Stack(MaybeUninit<[u8; Stack::SIZE]>);

impl Stack {
    const SIZE: usize = 16 * 1024;

    fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

/// Everything that a child reads and writes, in the frame of the sleeping thread.
struct ChildContext {
    /// Descriptors to renumber to 0, 1, 2, …; the child replaces those that it has to move above.
    descriptors: [RawFd; Spawn::MAX_DESCRIPTORS],
    descriptor_count: usize,
    tasks: *const RawFd,
    task_count: usize,
    image: RawFd,
    arguments: [*const c_char; Spawn::MAX_ARGUMENTS + 1],
    environment: [*const c_char; 1],

    /// The step that failed, as a `Step`; 0 if none has.
    failed_step: u32,
    failed_index: usize,
    failed_errno: i32,
}

/// Creates the process. Returns its pid and pidfd.
pub(super) fn spawn(request: &Spawn<'_>) -> Result<(i32, OwnedFd), SpawnError> {
    let too_many = |what, max, given| Err(SpawnError::TooMany { what, max, given });
    if request.arguments.len() > Spawn::MAX_ARGUMENTS {
        return too_many("arguments", Spawn::MAX_ARGUMENTS, request.arguments.len());
    }
    if request.descriptors.len() > Spawn::MAX_DESCRIPTORS {
        return too_many("descriptors", Spawn::MAX_DESCRIPTORS, request.descriptors.len());
    }

    let tasks: Vec<RawFd> = request.tasks.iter().map(AsRawFd::as_raw_fd).collect();
    let mut arguments = [ptr::null(); Spawn::MAX_ARGUMENTS + 1];
    for (slot, argument) in arguments.iter_mut().zip(request.arguments) {
        *slot = argument.as_ptr();
    }
    let mut descriptors = [-1; Spawn::MAX_DESCRIPTORS];
    for (slot, descriptor) in descriptors.iter_mut().zip(request.descriptors) {
        *slot = descriptor.as_raw_fd();
    }

    let mut pidfd: RawFd = -1;
    let mut stack = Stack::new();
    let mut args = CloneArgs {
        flags: CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: (&raw mut stack) as u64,
        stack_size: Stack::SIZE as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = request.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let mut context = ChildContext {
        descriptors,
        descriptor_count: request.descriptors.len(),
        tasks: tasks.as_ptr(),
        task_count: tasks.len(),
        image: request.image.as_fd().as_raw_fd(),
        arguments,
        environment: [ptr::null()],
        failed_step: 0,
        failed_index: 0,
        failed_errno: 0,
    };

    let blocked = SignalsBlocked::all();
    // SAFETY: `args` describes a stack and a pidfd slot in this frame, which outlives the child's use of both because
    // CLONE_VFORK suspends this thread until the child has executed or ended. `child` never returns, and accesses only
    // `context`, which lives as long.
    let spawned = unsafe { clone3(&args, child, &mut context) };
    drop(blocked);
    let pid = spawned.map_err(|source| SpawnError::Step { step: Step::Clone, source })?;

    // SAFETY: the kernel has opened the descriptor for this call, and nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // The child has written to `context`, to which a pointer was passed to `clone3`, so the compiler reloads it.
    match failure(&context) {
        None => Ok((pid, pidfd)),
        Some(error) => {
            reap(pidfd);
            Err(error)
        }
    }
}

fn failure(context: &ChildContext) -> Option<SpawnError> {
    let source = io::Error::from_raw_os_error(context.failed_errno);
    let step = match context.failed_step {
        0 => return None,
        step if step == Step::Join as u32 => {
            return Some(SpawnError::Join { index: context.failed_index, source });
        }
        step if step == Step::Clone as u32 => Step::Clone,
        step if step == Step::Descriptors as u32 => Step::Descriptors,
        _ => Step::Exec,
    };
    Some(SpawnError::Step { step, source })
}

/// Entry of the child that executes the image.
extern "C" fn child(context: *mut ChildContext) -> ! {
    // SAFETY: the parent sleeps and does not access `context`, in which it has set all pointers and counts.
    unsafe {
        let mut index = 0;
        while index < (*context).task_count {
            let task = *(*context).tasks.add(index);
            let written = syscall3(libc::SYS_write, task as usize, c"0".as_ptr() as usize, 1);
            if written < 0 {
                fail(context, Step::Join, index, written);
            }
            index += 1;
        }

        // Descriptors with a number that is a target are first moved above all targets, so that none is overwritten.
        let count = (*context).descriptor_count;
        let descriptors = (&raw mut (*context).descriptors).cast::<RawFd>();
        let mut index = 0;
        while index < count {
            let slot = descriptors.add(index);
            *slot = moved_above(context, *slot, count);
            index += 1;
        }
        let image = moved_above(context, (*context).image, count);

        let mut index = 0;
        while index < count {
            let moved = syscall3(libc::SYS_dup3, *descriptors.add(index) as usize, index, 0);
            if moved < 0 {
                fail(context, Step::Descriptors, index, moved);
            }
            index += 1;
        }
        if image as usize != count {
            let moved = syscall3(libc::SYS_dup3, image as usize, count, libc::O_CLOEXEC as usize);
            if moved < 0 {
                fail(context, Step::Descriptors, count, moved);
            }
        }
        let closed = syscall3(libc::SYS_close_range, count + 1, u32::MAX as usize, 0);
        if closed < 0 {
            fail(context, Step::Descriptors, count + 1, closed);
        }

        let arguments = (&raw const (*context).arguments) as usize;
        let environment = (&raw const (*context).environment) as usize;
        let empty = c"".as_ptr() as usize;
        let error =
            syscall5(libc::SYS_execveat, count, empty, arguments, environment, libc::AT_EMPTY_PATH as usize);
        fail(context, Step::Exec, 0, error)
    }
}

/// `descriptor`, or a copy of it above `count` if it is not above.
///
/// # Safety
/// The calling child has exclusive access to `context`.
unsafe fn moved_above(context: *mut ChildContext, descriptor: RawFd, count: usize) -> RawFd {
    if descriptor as usize > count {
        return descriptor;
    }
    // SAFETY: fcntl(2) with F_DUPFD touches no memory.
    let copy =
        unsafe { syscall3(libc::SYS_fcntl, descriptor as usize, libc::F_DUPFD_CLOEXEC as usize, count + 1) };
    if copy < 0 {
        // SAFETY: promised by the caller.
        unsafe { fail(context, Step::Descriptors, descriptor as usize, copy) }
    }
    copy as RawFd
}

/// Records the failure for the sleeping thread, and ends the child.
///
/// # Safety
/// The calling child has exclusive access to `context`.
unsafe fn fail(context: *mut ChildContext, step: Step, index: usize, result: isize) -> ! {
    // SAFETY: promised by the caller.
    unsafe {
        (*context).failed_step = step as u32;
        (*context).failed_index = index;
        (*context).failed_errno = -(result as i32);
        exit(127)
    }
}

/// Ends the child without running exit handlers.
fn exit(code: usize) -> ! {
    loop {
        // SAFETY: exit_group(2) touches no memory and does not return.
        unsafe { syscall3(libc::SYS_exit_group, code, 0, 0) };
    }
}

/// clone3(2), called in the agent.
///
/// # Safety
/// As [`clone3_raw`].
unsafe fn clone3(
    args: &CloneArgs,
    entry: extern "C" fn(*mut ChildContext) -> !,
    context: &mut ChildContext,
) -> io::Result<i32> {
    // SAFETY: promised by the caller.
    match unsafe { clone3_raw(args, entry, context) } {
        negative if negative < 0 => Err(io::Error::from_raw_os_error(-(negative as i32))),
        pid => Ok(pid as i32),
    }
}

/// clone3(2), the child continuing in `entry` on the stack that `args` names.
///
/// # Safety
/// `args` has CLONE_VM and CLONE_VFORK and describes an unused stack; `entry` follows the rules of this file; it has
/// exclusive access to `context` until it has executed or ended.
unsafe fn clone3_raw(
    args: *const CloneArgs,
    entry: extern "C" fn(*mut ChildContext) -> !,
    context: *mut ChildContext,
) -> isize {
    let result: isize;
    // SAFETY: the kernel reads `args`. The parent continues at 2 with its own stack pointer. The child's stack pointer
    // is the 16-byte-aligned end of its stack, as `call` requires, and `entry` never returns.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") entry,
            in("r13") context,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// # Safety
/// As the system call.
unsafe fn syscall3(number: i64, a: usize, b: usize, c: usize) -> isize {
    // SAFETY: promised by the caller.
    unsafe { syscall5(number, a, b, c, 0, 0) }
}

/// A system call without libc, whose `errno` is that of the sleeping thread.
///
/// # Safety
/// As the system call.
unsafe fn syscall5(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; the rest is promised by the caller.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

/// Reaps a child that has ended or is about to.
fn reap(pidfd: OwnedFd) {
    loop {
        // SAFETY: waitid(2) accepts a null `siginfo`.
        let result = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                pidfd.as_raw_fd() as libc::id_t,
                ptr::null_mut(),
                libc::WEXITED | libc::__WALL,
            )
        };
        // ECHILD: SIGCHLD is ignored, so the kernel has reaped the child.
        if result == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Blocks all signals of the calling thread until dropped.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn all() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises `all`; pthread_sigmask initialises `before` and cannot fail with SIG_SETMASK.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self { before: before.assume_init() }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the previous mask of this thread; the kernel only reads it.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

// The child never returns, so nothing in its context may need to be dropped.
const _: () = assert!(!std::mem::needs_drop::<ChildContext>());
