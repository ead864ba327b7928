//! Attributes of a process that the kernel passes on to its children and over an exec, and that a container must not
//! have from the agent. `docs/security.md` lists all of them, and where each one is set.
//!
//! Each is set separately, and a failure is no error: the kernel may not have it, or the agent was denied the privilege
//! to give up a restriction that it was started with, which then also holds for containers.
#![allow(unsafe_code)]

use super::{O_WRONLY, call, close, nr, open, prctl, write};

/// Resets everything that does not differ between containers. The keeper calls it once, and its children inherit it.
pub(crate) fn reset_attributes() {
    reset_scheduling();
    reset_memory();
    reset_limits();
    const PR_SET_TSC: usize = 26;
    const PR_SET_SECUREBITS: usize = 28;
    const PR_MCE_KILL: usize = 33;
    const PR_SET_IO_FLUSHER: usize = 57;
    for (option, argument) in
        [(PR_SET_SECUREBITS, 0), (PR_SET_IO_FLUSHER, 0), (PR_SET_TSC, 1), (PR_MCE_KILL, 0)]
    {
        let _ = prctl(option, argument, 0);
    }
    reset_speculation();
}

/// Policy, priority, nice value, utilization clamps, CPUs, input/output priority and timer slack.
fn reset_scheduling() {
    /// The kernel's `struct sched_attr` since Linux 5.3.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        clamp_min: u32,
        clamp_max: u32,
    }
    const CLAMPS: u64 = 0x60;
    const RESET: u32 = u32::MAX;
    for flags in [0, CLAMPS] {
        // SCHED_OTHER with its default slice.
        let attributes = Attributes {
            size: size_of::<Attributes>() as u32,
            policy: 0,
            flags,
            nice: 0,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
            clamp_min: if flags == 0 { 0 } else { RESET },
            clamp_max: if flags == 0 { 0 } else { RESET },
        };
        // SAFETY: the kernel reads as many bytes as the structure states.
        let _ = unsafe { call(nr::SCHED_SETATTR, [0, (&raw const attributes) as usize, 0]) };
    }
    let cpus = [u8::MAX; 1024];
    // SAFETY: the kernel reads the mask, and ignores CPUs that do not exist.
    let _ = unsafe { call(nr::SCHED_SETAFFINITY, [0, cpus.len(), cpus.as_ptr() as usize]) };
    const IOPRIO_WHO_PROCESS: usize = 1;
    // SAFETY: touches no memory.
    let _ = unsafe { call(nr::IOPRIO_SET, [IOPRIO_WHO_PROCESS, 0, 0]) };
    const PR_SET_TIMERSLACK: usize = 29;
    let _ = prctl(PR_SET_TIMERSLACK, 50_000, 0);
}

/// Personality, which can switch off the randomization of addresses, memory policy, huge pages, merging, and the filter
/// for core dumps.
fn reset_memory() {
    const MPOL_DEFAULT: usize = 0;
    const PR_SET_THP_DISABLE: usize = 41;
    const PR_SET_MEMORY_MERGE: usize = 67;
    // SAFETY: touches no memory.
    let _ = unsafe { call(nr::PERSONALITY, [0]) };
    // SAFETY: the kernel reads no mask, as its length is 0.
    let _ = unsafe { call(nr::SET_MEMPOLICY, [MPOL_DEFAULT, 0, 0]) };
    let _ = prctl(PR_SET_THP_DISABLE, 0, 0);
    let _ = prctl(PR_SET_MEMORY_MERGE, 0, 0);
    if let Ok(file) = open(c"/proc/self/coredump_filter", O_WRONLY) {
        let _ = write(file, b"0x33");
        close(file);
    }
}

/// The kernel's defaults for threads. What was disabled by force stays so.
fn reset_speculation() {
    const PR_SET_SPECULATION_CTRL: usize = 53;
    const STORE_BYPASS: usize = 0;
    const INDIRECT_BRANCH: usize = 1;
    const L1D_FLUSH: usize = 2;
    const ENABLE: usize = 2;
    const DISABLE: usize = 4;
    for (feature, state) in [(STORE_BYPASS, ENABLE), (INDIRECT_BRANCH, ENABLE), (L1D_FLUSH, DISABLE)] {
        let _ = prctl(PR_SET_SPECULATION_CTRL, feature, state);
    }
}

const UNLIMITED: u64 = u64::MAX;

/// Resource limits by number, soft and hard: those of the kernel, but for core dumps, of which there are none, and for
/// descriptors, of which a container may have as many as in other engines.
const LIMITS: [(u32, u64, u64); 14] = [
    (0, UNLIMITED, UNLIMITED),  // CPU
    (1, UNLIMITED, UNLIMITED),  // FSIZE
    (2, UNLIMITED, UNLIMITED),  // DATA
    (3, 8 << 20, UNLIMITED),    // STACK
    (4, 0, UNLIMITED),          // CORE
    (5, UNLIMITED, UNLIMITED),  // RSS
    (7, 1024, 524_288),         // NOFILE
    (8, 8 << 20, 8 << 20),      // MEMLOCK
    (9, UNLIMITED, UNLIMITED),  // AS
    (10, UNLIMITED, UNLIMITED), // LOCKS
    (12, 819_200, 819_200),     // MSGQUEUE
    (13, 0, 0),                 // NICE
    (14, 0, 0),                 // RTPRIO
    (15, UNLIMITED, UNLIMITED), // RTTIME
];
/// NPROC and SIGPENDING, which the kernel derives from the size of memory: those of process 1.
const OF_PROCESS_1: [u32; 2] = [6, 11];

fn reset_limits() {
    for (resource, soft, hard) in LIMITS {
        set_limit(resource, soft, hard);
    }
    for resource in OF_PROCESS_1 {
        let mut limit = [0_u64; 2];
        // SAFETY: the kernel writes `limit`, and reads nothing because no new limit is set.
        let read = unsafe { call(nr::PRLIMIT64, [1, resource as usize, 0, (&raw mut limit) as usize]) };
        // SAFETY: `limit` is initialised; the kernel wrote it through the pointer above.
        let [soft, hard] = unsafe { (&raw const limit).read_volatile() };
        if read.is_ok() {
            set_limit(resource, soft, hard);
        }
    }
}

/// Sets a limit, as far as the hard limit can be raised.
fn set_limit(resource: u32, soft: u64, hard: u64) {
    if super::set_limit(resource, soft, hard).is_err()
        && let Ok((_, most)) = super::limit(resource)
    {
        let _ = super::set_limit(resource, soft.min(most), hard.min(most));
    }
}
