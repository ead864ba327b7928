//! Creating, awaiting and identifying processes.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Errno, Fd, O_CLOEXEC, Pid, Result, SIGCHLD, SIGSET_SIZE, call, nr};

/// The kernel's `struct clone_args` since Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
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

/// What [`create_process`] returns, in each of the two processes.
pub(crate) enum Creation {
    Parent(Child),
    Child,
}

/// A new process, with its pidfd.
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) pidfd: Fd,
}

/// Whose child a new process is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// The caller's.
    Caller,
    /// That of the caller's parent.
    CallersParent,
}

/// Creates a process with a copy of the memory, in a v2 cgroup if a directory of one is given.
pub(crate) fn create_process(parent: Parent, cgroup: Option<Fd>) -> Result<Creation> {
    const CLONE_PIDFD: u64 = 0x1000;
    const CLONE_PARENT: u64 = 0x8000;
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let mut pidfd = -1_i32;
    let mut arguments =
        CloneArguments { flags: CLONE_PIDFD, pidfd: (&raw mut pidfd) as u64, ..CloneArguments::default() };
    match parent {
        Parent::Caller => arguments.exit_signal = SIGCHLD as u64,
        // The kernel copies the exit signal of the caller, and requires this one to be 0.
        Parent::CallersParent => arguments.flags |= CLONE_PARENT,
    }
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.0 as u64;
    }
    // SAFETY: the kernel reads the arguments and writes the pidfd. Without CLONE_VM the child continues on a copy of
    // the memory and the stack; the caller has one thread, so the child may run any code.
    let pid =
        unsafe { call(nr::CLONE3, [(&raw const arguments) as usize, size_of::<CloneArguments>()]) }? as i32;
    // SAFETY: `pidfd` is initialised; the kernel wrote it through the pointer above.
    let pidfd = unsafe { (&raw const pidfd).read_volatile() };
    Ok(if pid == 0 { Creation::Child } else { Creation::Parent(Child { pid: Pid(pid), pidfd: Fd(pidfd) }) })
}

/// Waits until a process that is open as a pidfd has ended.
pub(crate) fn wait_until_ended(process: Fd) {
    let mut set = PollSet::new([Some(process)]);
    while !set.is_ready(0) {
        set.wait(None);
    }
}

impl Pid {
    pub(crate) const fn number(self) -> i32 {
        self.0
    }
}

/// Pid of this process.
pub(crate) fn current_pid() -> Pid {
    // SAFETY: touches no memory.
    Pid(unsafe { call(nr::GETPID, []) }.map_or(0, |pid| pid as i32))
}

/// Opens a child that has not been reaped.
pub(crate) fn open_process(child: Pid) -> Result<Fd> {
    // SAFETY: touches no memory.
    unsafe { call(nr::PIDFD_OPEN, [child.0 as usize, 0]) }.map(|fd| Fd(fd as i32))
}

/// A child that has ended: its pid and its wait status.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pid: Pid,
    pub(crate) status: i32,
}

/// The part of the kernel's `siginfo_t` that waitid(2) fills in.
#[repr(C)]
struct SignalInfo {
    signal: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    pid: i32,
    uid: u32,
    status: i32,
    _rest: [i32; 25],
}

const P_ALL: usize = 0;
const P_PID: usize = 1;

/// Looks for a child that has ended, without reaping it or waiting for it.
fn peek_any(kind: usize, pid: usize) -> Result<Option<Ended>> {
    const WNOHANG: usize = 1;
    const WEXITED: usize = 4;
    const WNOWAIT: usize = 0x0100_0000;
    const WALL: usize = 0x4000_0000;
    const CLD_EXITED: i32 = 1;
    const CLD_DUMPED: i32 = 3;
    let mut info =
        SignalInfo { signal: 0, errno: 0, code: 0, _pad: 0, pid: 0, uid: 0, status: 0, _rest: [0; 25] };
    let options = WNOHANG | WEXITED | WNOWAIT | WALL;
    // SAFETY: the kernel writes one `siginfo_t`, and no `rusage`.
    unsafe { call(nr::WAITID, [kind, pid, (&raw mut info) as usize, options, 0]) }?;
    // SAFETY: `info` is initialised; the kernel wrote it through the pointer above.
    let info = unsafe { (&raw const info).read_volatile() };
    let status = match info.code {
        CLD_EXITED => (info.status & 0xff) << 8,
        CLD_DUMPED => info.status & 0x7f | 0x80,
        _ => info.status & 0x7f,
    };
    Ok((info.pid != 0).then_some(Ended { pid: Pid(info.pid), status }))
}

/// The wait status of a child that has ended, which is not reaped. `None` while it runs; an error if there is no such
/// child.
pub(crate) fn peek(child: Pid) -> Result<Option<i32>> {
    peek_any(P_PID, child.0 as usize).map(|ended| ended.map(|ended| ended.status))
}

/// Any child that has ended, which is not reaped.
pub(crate) fn next_exited() -> Option<Ended> {
    peek_any(P_ALL, 0).ok().flatten()
}

/// Waits for a child and reaps it.
pub(crate) fn wait_for(child: Pid) {
    while super::reap_child(child) == Err(Errno::INTR) {}
}

/// A descriptor that is readable when a child has ended. SIGCHLD is blocked.
pub(crate) fn exit_signals() -> Result<Fd> {
    const SFD_NONBLOCK: usize = 0o4000;
    let mask = 1_u64 << (SIGCHLD - 1);
    let flags = SFD_NONBLOCK | O_CLOEXEC as usize;
    // SAFETY: the kernel reads the mask.
    unsafe { call(nr::SIGNALFD4, [usize::MAX, (&raw const mask) as usize, SIGSET_SIZE, flags]) }
        .map(|fd| Fd(fd as i32))
}

/// Takes the next signal from [`exit_signals`]: the pid of a child that has ended.
pub(crate) fn next_exit_signal(signals: Fd) -> Option<Pid> {
    // The kernel's `struct signalfd_siginfo`; the pid is its fourth field.
    let mut info = [0; 128];
    let length = super::read(signals, &mut info).ok()?;
    let pid = info.get(12..).filter(|_| length == info.len())?.first_chunk()?;
    Some(Pid(i32::from_ne_bytes(*pid)))
}

/// Children that end are reaped by the kernel.
pub(crate) fn ignore_child_exits() {
    // The kernel's `struct sigaction`: handler (1 ignores), flags, restorer, mask.
    let ignore = [1_u64, 0, 0, 0];
    // SAFETY: the kernel reads `ignore`.
    let _ =
        unsafe { call(nr::RT_SIGACTION, [SIGCHLD as usize, (&raw const ignore) as usize, 0, SIGSET_SIZE]) };
}

/// Does nothing until this process is killed. Gives the memory of the stack back first.
pub(crate) fn rest() -> ! {
    const MADV_DONTNEED: usize = 4;
    const PAGE: usize = 4096;
    const BELOW: usize = 64 * PAGE;
    const ABOVE: usize = 16 * PAGE;
    let here = 0_u8;
    let start = ((&raw const here) as usize & !(PAGE - 1)) - BELOW;
    // SAFETY: from the first system call on, only registers are used, and this never ends. If a part of the range is
    // not mapped, the call fails after it has processed the rest.
    unsafe {
        asm!(
            "syscall",
            "2:",
            "mov eax, {pause}",
            "syscall",
            "jmp 2b",
            pause = const nr::PAUSE,
            in("rax") nr::MADVISE,
            in("rdi") start,
            in("rsi") BELOW + ABOVE,
            in("rdx") MADV_DONTNEED,
            options(noreturn),
        )
    }
}

/// Ends this process by a signal, of which no core is dumped. Returns only if the signal does not end processes.
pub(crate) fn raise(signal: i32) {
    const RLIMIT_CORE: u32 = 4;
    let _ = super::set_limit(RLIMIT_CORE, 0, 0);
    super::unblock_signals();
    super::send_signal(current_pid(), signal);
}

/// Milliseconds of a clock that never goes back.
pub(crate) fn milliseconds() -> u64 {
    const CLOCK_MONOTONIC_COARSE: usize = 6;
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes one `struct timespec`.
    let _ = unsafe { call(nr::CLOCK_GETTIME, [CLOCK_MONOTONIC_COARSE, (&raw mut time) as usize]) };
    // SAFETY: `time` is initialised; the kernel wrote it through the pointer above.
    let [seconds, nanos] = unsafe { (&raw const time).read_volatile() };
    seconds * 1000 + nanos / 1_000_000
}

/// Up to `N` descriptors to wait for.
#[repr(C)]
pub(crate) struct PollSet<const N: usize> {
    entries: [Entry; N],
}

/// What a descriptor is waited for. The end of the other side counts as either.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing: it is not waited for.
    Nothing,
    /// The end of the other side only.
    End,
    /// Something to read.
    Read,
    /// Space to write to.
    Write,
    /// Either.
    Both,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    fd: i32,
    events: i16,
    returned: i16,
}

impl<const N: usize> PollSet<N> {
    const POLLIN: i16 = 1;
    const POLLOUT: i16 = 4;

    /// A set of descriptors to read from. Those that are `None` are never ready.
    pub(crate) fn new(descriptors: [Option<Fd>; N]) -> Self {
        let entry =
            |fd: Option<Fd>| Entry { fd: fd.map_or(-1, |fd| fd.0), events: Self::POLLIN, returned: 0 };
        Self { entries: descriptors.map(entry) }
    }

    /// Sets what the descriptor at an index is waited for.
    pub(crate) fn set(&mut self, index: usize, fd: Option<Fd>, wanted: Wanted) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let events = match wanted {
            Wanted::Nothing | Wanted::End => 0,
            Wanted::Read => Self::POLLIN,
            Wanted::Write => Self::POLLOUT,
            Wanted::Both => Self::POLLIN | Self::POLLOUT,
        };
        // The end of the other side is reported whatever is waited for, so that one that nothing is wanted of is left out.
        let fd = fd.filter(|_| wanted != Wanted::Nothing);
        *entry = Entry { fd: fd.map_or(-1, |fd| fd.0), events, returned: 0 };
    }

    /// Waits until one is ready, at most for `millis` if given.
    pub(crate) fn wait(&mut self, millis: Option<u64>) {
        let timeout = millis.map(|millis| [millis / 1000, millis % 1000 * 1_000_000]);
        let timeout = timeout.as_ref().map_or(0, |timeout| (&raw const *timeout) as usize);
        // SAFETY: the kernel reads and writes `N` entries, and reads a `struct timespec` if there is one.
        let _ = unsafe { call(nr::PPOLL, [(&raw mut self.entries) as usize, N, timeout, 0, SIGSET_SIZE]) };
    }
}

impl PollSet<1> {
    /// Whether there is something to read from a descriptor now.
    pub(crate) fn is_readable(fd: Fd) -> bool {
        let mut set = Self::new([Some(fd)]);
        set.wait(Some(0));
        set.is_ready(0)
    }
}

impl<const N: usize> PollSet<N> {
    /// Whether any descriptor is ready, or broken.
    pub(crate) fn is_any_ready(&self) -> bool {
        (0..N).any(|index| self.is_ready(index))
    }

    /// Whether the descriptor at an index is ready, or broken.
    pub(crate) fn is_ready(&self, index: usize) -> bool {
        // SAFETY: the entries are initialised; the kernel wrote them through the pointer above.
        let entries = unsafe { (&raw const self.entries).read_volatile() };
        entries.get(index).is_some_and(|entry| entry.returned != 0)
    }
}
