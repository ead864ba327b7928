//! clone3(2) with shared memory, and what the child may do before it executes: raw system calls only.
//!
//! Rules for every line that runs in the child, enforced by review because nothing else can: no allocation, no
//! panic, no lock, no thread-local, no libc (its `errno` is the sleeping thread's). Only system calls, on memory
//! the sleeping thread has laid out in its frame.
#![allow(unsafe_code)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "plugin-api/linux/src/birth/clone.rs knows how to be born on x86_64 only; port `clone3` and `syscall`"
);

use std::arch::asm;
use std::ffi::c_char;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::{Spawn, SpawnError, Step};
use crate::namespace::Namespace;

// Spelled out, because libc's are `int`s, in which bits above 31 do not exist.
const CLONE_VM: u64 = 0x0000_0100;
const CLONE_FILES: u64 = 0x0000_0400;
const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_VFORK: u64 = 0x0000_4000;
const CLONE_PARENT: u64 = 0x0000_8000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// The kernel's `struct clone_args`, as of the version that learnt `cgroup` (5.7).
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

/// A child's stack, in the frame of the thread that sleeps meanwhile. The child's few frames need under 1 KiB
/// optimised and some 4 KiB otherwise.
#[repr(C, align(16))]
struct Stack(MaybeUninit<[u8; Stack::SIZE]>);

impl Stack {
    const SIZE: usize = 16 * 1024;

    fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

/// All that a child reads and writes. It lives in the frame of the sleeping thread.
struct Orders {
    /// Descriptors to become 0, 1, 2, …; the child overwrites those it has to lift out of the way.
    descriptors: [RawFd; Spawn::MAX_DESCRIPTORS],
    descriptor_count: usize,
    tasks: *const RawFd,
    task_count: usize,
    image: RawFd,
    arguments: [*const c_char; Spawn::MAX_ARGUMENTS + 1],
    environment: [*const c_char; 1],

    enter_pidfd: RawFd,
    enter_flags: u64,
    /// How the midwife makes her sister, if there has to be one.
    sister: Option<CloneArgs>,
    /// How the newborn is made by either of them.
    newborn: CloneArgs,

    /// What failed, as a `Step`, 0 while nothing has.
    failed_step: u32,
    failed_index: usize,
    failed_errno: i32,
}

/// Makes the process and returns its pidfd, and its pid if that was told in our namespace.
pub(super) fn birth(birth: &Spawn<'_>) -> Result<(Option<i32>, OwnedFd), SpawnError> {
    let too_many = |what, max, given| Err(SpawnError::TooMany { what, max, given });
    if birth.arguments.len() > Spawn::MAX_ARGUMENTS {
        return too_many("arguments", Spawn::MAX_ARGUMENTS, birth.arguments.len());
    }
    if birth.descriptors.len() > Spawn::MAX_DESCRIPTORS {
        return too_many("descriptors", Spawn::MAX_DESCRIPTORS, birth.descriptors.len());
    }

    let tasks: Vec<RawFd> = birth.tasks.iter().map(AsRawFd::as_raw_fd).collect();
    let mut arguments = [ptr::null(); Spawn::MAX_ARGUMENTS + 1];
    for (slot, argument) in arguments.iter_mut().zip(birth.arguments) {
        *slot = argument.as_ptr();
    }
    let mut descriptors = [-1; Spawn::MAX_DESCRIPTORS];
    for (slot, descriptor) in descriptors.iter_mut().zip(birth.descriptors) {
        *slot = descriptor.as_raw_fd();
    }

    let mut pidfd: RawFd = -1;
    let mut stack = Stack::new();
    let mut real = CloneArgs {
        flags: CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | birth.clone.bits(),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: (&raw mut stack) as u64,
        stack_size: Stack::SIZE as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = birth.cgroup {
        real.flags |= CLONE_INTO_CGROUP;
        real.cgroup = cgroup.as_raw_fd() as u64;
    }
    let mut orders = Orders {
        descriptors,
        descriptor_count: birth.descriptors.len(),
        tasks: tasks.as_ptr(),
        task_count: tasks.len(),
        image: birth.image.as_fd().as_raw_fd(),
        arguments,
        environment: [ptr::null()],
        enter_pidfd: -1,
        enter_flags: 0,
        sister: None,
        newborn: CloneArgs::default(),
        failed_step: 0,
        failed_index: 0,
        failed_errno: 0,
    };

    let born = match birth.enter {
        None => {
            let _blocked = SignalsBlocked::all();
            // SAFETY: `real` describes a stack and a pidfd slot in this frame, which outlives the child's use of
            // both because CLONE_VFORK holds us here until it has executed or ended. `newborn` never returns and
            // reads and writes only `orders`, alive as long.
            unsafe { clone3(&real, newborn, &mut orders) }.map(Some)
        }
        Some(enter) => {
            // The kernel takes the exit signal of a CLONE_PARENT child from its maker, and wants none given.
            real.flags |= CLONE_PARENT;
            real.exit_signal = 0;
            orders.newborn = real;
            orders.enter_pidfd = enter.process.as_fd().as_raw_fd();
            orders.enter_flags = enter.namespaces.bits();

            let mut stacks = (Stack::new(), Stack::new());
            let mut pidfds: [RawFd; 2] = [-1; 2];
            let helper = CloneArgs {
                flags: CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_FILES,
                pidfd: (&raw mut pidfds[0]) as u64,
                exit_signal: libc::SIGCHLD as u64,
                stack: (&raw mut stacks.0) as u64,
                stack_size: Stack::SIZE as u64,
                ..CloneArgs::default()
            };
            // Who has joined a pid namespace is not in it, only its children are; and the kernel makes a new pid
            // namespace only below the one its maker is in.
            if enter.namespaces.intersection(birth.clone).contains(Namespace::Pid) {
                orders.sister = Some(CloneArgs {
                    flags: helper.flags | CLONE_PARENT,
                    pidfd: (&raw mut pidfds[1]) as u64,
                    exit_signal: 0,
                    stack: (&raw mut stacks.1) as u64,
                    ..helper
                });
            }

            let blocked = SignalsBlocked::all();
            // SAFETY: as above. Each child has a stack of its own, and sleeps while its own child lives on another.
            let outcome = unsafe { clone3(&helper, midwife, &mut orders) };
            drop(blocked);
            for helper in pidfds.into_iter().filter(|pidfd| *pidfd >= 0) {
                // SAFETY: the kernel opened the descriptor in our table for us, and nobody else knows it.
                reap(unsafe { OwnedFd::from_raw_fd(helper) });
            }
            // The pid that the newborn's maker saw may be of another pid namespace.
            outcome.map(|_| None)
        }
    };
    let pid = born.map_err(|source| SpawnError::Step { step: Step::Clone, source })?;

    // SAFETY: if set, the kernel opened the descriptor in our table for us, and nobody else knows it.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    // The children wrote through pointers that the compiler has seen escape into `clone3`.
    match (failure(&orders), pidfd) {
        (None, Some(pidfd)) => Ok((pid, pidfd)),
        (Some(error), pidfd) => {
            pidfd.into_iter().for_each(reap);
            Err(error)
        }
        // A helper was killed before it could clone or complain.
        (None, None) => {
            Err(SpawnError::Step { step: Step::Enter, source: io::Error::from_raw_os_error(libc::ECHILD) })
        }
    }
}

fn failure(orders: &Orders) -> Option<SpawnError> {
    let source = io::Error::from_raw_os_error(orders.failed_errno);
    let step = match orders.failed_step {
        0 => return None,
        step if step == Step::Join as u32 => {
            return Some(SpawnError::Join { index: orders.failed_index, source });
        }
        step if step == Step::Clone as u32 => Step::Clone,
        step if step == Step::Enter as u32 => Step::Enter,
        step if step == Step::Descriptors as u32 => Step::Descriptors,
        _ => Step::Exec,
    };
    Some(SpawnError::Step { step, source })
}

/// The first of several children: joins namespaces, and makes the newborn or has it made.
extern "C" fn midwife(orders: *mut Orders) -> ! {
    // SAFETY: our maker sleeps and lent us `orders`; our own child uses it only while we sleep in `clone3_raw`.
    unsafe {
        let entered =
            syscall3(libc::SYS_setns, (*orders).enter_pidfd as usize, (*orders).enter_flags as usize, 0);
        if entered < 0 {
            fail(orders, Step::Enter, 0, entered);
        }
        if let Some(args) = &(*orders).sister {
            let made = clone3_raw(args, sister, orders);
            if made < 0 {
                fail(orders, Step::Enter, 0, made);
            }
            exit(0)
        }
    }
    sister(orders)
}

/// Makes the newborn, from inside of the namespaces that the midwife has joined.
extern "C" fn sister(orders: *mut Orders) -> ! {
    // SAFETY: as for the midwife.
    unsafe {
        let made = clone3_raw(&raw const (*orders).newborn, newborn, orders);
        if made < 0 {
            fail(orders, Step::Clone, 0, made);
        }
        exit(0)
    }
}

/// The child that becomes the image.
extern "C" fn newborn(orders: *mut Orders) -> ! {
    // SAFETY: our maker sleeps and lent us `orders`, in which all pointers and counts are its own.
    unsafe {
        let mut index = 0;
        while index < (*orders).task_count {
            let task = *(*orders).tasks.add(index);
            let written = syscall3(libc::SYS_write, task as usize, c"0".as_ptr() as usize, 1);
            if written < 0 {
                fail(orders, Step::Join, index, written);
            }
            index += 1;
        }

        // Whatever lies where a descriptor is to go moves above first, so that no move overwrites a source.
        let count = (*orders).descriptor_count;
        let descriptors = (&raw mut (*orders).descriptors).cast::<RawFd>();
        let mut index = 0;
        while index < count {
            let slot = descriptors.add(index);
            *slot = lifted(orders, *slot, count);
            index += 1;
        }
        let image = lifted(orders, (*orders).image, count);

        let mut index = 0;
        while index < count {
            let moved = syscall3(libc::SYS_dup3, *descriptors.add(index) as usize, index, 0);
            if moved < 0 {
                fail(orders, Step::Descriptors, index, moved);
            }
            index += 1;
        }
        if image as usize != count {
            let moved = syscall3(libc::SYS_dup3, image as usize, count, libc::O_CLOEXEC as usize);
            if moved < 0 {
                fail(orders, Step::Descriptors, count, moved);
            }
        }
        let closed = syscall3(libc::SYS_close_range, count + 1, u32::MAX as usize, 0);
        if closed < 0 {
            fail(orders, Step::Descriptors, count + 1, closed);
        }

        let arguments = (&raw const (*orders).arguments) as usize;
        let environment = (&raw const (*orders).environment) as usize;
        let empty = c"".as_ptr() as usize;
        let error =
            syscall5(libc::SYS_execveat, count, empty, arguments, environment, libc::AT_EMPTY_PATH as usize);
        fail(orders, Step::Exec, 0, error)
    }
}

/// `descriptor`, or a copy of it above `count` if it lies at or below.
///
/// # Safety
/// `orders` is lent to the calling child.
unsafe fn lifted(orders: *mut Orders, descriptor: RawFd, count: usize) -> RawFd {
    if descriptor as usize > count {
        return descriptor;
    }
    // SAFETY: fcntl(2) with F_DUPFD touches no memory.
    let copy =
        unsafe { syscall3(libc::SYS_fcntl, descriptor as usize, libc::F_DUPFD_CLOEXEC as usize, count + 1) };
    if copy < 0 {
        // SAFETY: handed on.
        unsafe { fail(orders, Step::Descriptors, descriptor as usize, copy) }
    }
    copy as RawFd
}

/// Leaves word for the sleeping thread, and ends the child.
///
/// # Safety
/// `orders` is lent to the calling child.
unsafe fn fail(orders: *mut Orders, step: Step, index: usize, answer: isize) -> ! {
    // SAFETY: promised by the caller.
    unsafe {
        (*orders).failed_step = step as u32;
        (*orders).failed_index = index;
        (*orders).failed_errno = -(answer as i32);
        exit(127)
    }
}

/// Ends the child without running anything of ours.
fn exit(code: usize) -> ! {
    loop {
        // SAFETY: exit_group(2) touches no memory and does not return.
        unsafe { syscall3(libc::SYS_exit_group, code, 0, 0) };
    }
}

/// clone3(2) as seen by the agent.
///
/// # Safety
/// As [`clone3_raw`].
unsafe fn clone3(
    args: &CloneArgs,
    entry: extern "C" fn(*mut Orders) -> !,
    orders: &mut Orders,
) -> io::Result<i32> {
    // SAFETY: promised by the caller.
    match unsafe { clone3_raw(args, entry, orders) } {
        negative if negative < 0 => Err(io::Error::from_raw_os_error(-(negative as i32))),
        pid => Ok(pid as i32),
    }
}

/// clone3(2), the child continuing in `entry` on the stack that `args` names.
///
/// # Safety
/// `args` has CLONE_VM and CLONE_VFORK and describes a stack that nobody else uses; `entry` obeys the rules of
/// this file; `orders` is lent to it until it has executed or ended.
unsafe fn clone3_raw(
    args: *const CloneArgs,
    entry: extern "C" fn(*mut Orders) -> !,
    orders: *mut Orders,
) -> isize {
    let answer: isize;
    // SAFETY: the kernel reads `args`. The parent continues at 2 with its own stack pointer. The child's stack
    // pointer is the 16-byte-aligned end of its stack, as `call` at a function's door wants it, and it never
    // comes back here.
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
            inlateout("rax") libc::SYS_clone3 as isize => answer,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") entry,
            in("r13") orders,
            out("rcx") _,
            out("r11") _,
        );
    }
    answer
}

/// # Safety
/// As the system call.
unsafe fn syscall3(number: i64, a: usize, b: usize, c: usize) -> isize {
    // SAFETY: promised by the caller.
    unsafe { syscall5(number, a, b, c, 0, 0) }
}

/// A system call without libc, whose `errno` belongs to the sleeping thread.
///
/// # Safety
/// As the system call.
unsafe fn syscall5(number: i64, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let answer: isize;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; the rest is promised by the caller.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
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
    answer
}

/// Collects a child that has ended or is about to.
fn reap(pidfd: OwnedFd) {
    loop {
        // SAFETY: waitid(2) accepts a null `siginfo`.
        let answer = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                pidfd.as_raw_fd() as libc::id_t,
                ptr::null_mut(),
                libc::WEXITED | libc::__WALL,
            )
        };
        // ECHILD: somebody ignores SIGCHLD, and the kernel has reaped already.
        if answer == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// All signals of the calling thread are blocked while this lives.
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
        // SAFETY: `before` is the mask this thread had; the kernel reads it only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

// The child's memory is ours, so what it leaves behind must not need dropping.
const _: () = assert!(!std::mem::needs_drop::<Orders>());
