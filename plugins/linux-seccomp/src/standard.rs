//! The profile that is part of the plugin: what Docker allows to its containers, by what it is needed for.
//!
//! A system call is allowed if containers need it and the kernel checks by itself what a process may do with it, within
//! its namespaces. Others are allowed with the capability that makes them useful.

use std::collections::BTreeSet;

use crate::bpf::{Action, Comparison, Condition};
use crate::numbers::Architecture;
use crate::profile::{Filter, Profile, Rule};

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

const FILES: &[&str] = &[
    "access",
    "cachestat",
    "chdir",
    "chmod",
    "chown",
    "chown32",
    "close",
    "close_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fanotify_mark",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchown32",
    "fchownat",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstat64",
    "fstatat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "getxattr",
    "getxattrat",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "lchown",
    "lchown32",
    "lgetxattr",
    "link",
    "linkat",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "lstat",
    "lstat64",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "readlink",
    "readlinkat",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "setxattr",
    "setxattrat",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "truncate",
    "truncate64",
    "umask",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimensat_time64",
    "utimes",
];

/// Without `ioctl`, see [`rules`].
const INPUT_AND_OUTPUT: &[&str] = &[
    "_llseek",
    "_newselect",
    "copy_file_range",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_setup",
    "io_submit",
    "ioprio_get",
    "ioprio_set",
    "lseek",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "ppoll_time64",
    "pread64",
    "preadv",
    "preadv2",
    "pselect6",
    "pselect6_time64",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readv",
    "select",
    "sendfile",
    "sendfile64",
    "signalfd",
    "signalfd4",
    "splice",
    "tee",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_gettime64",
    "timerfd_settime",
    "timerfd_settime64",
    "vmsplice",
    "write",
    "writev",
];

const MEMORY: &[&str] = &[
    "brk",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_mrelease",
    "remap_file_pages",
];

/// Without `socket`, see [`rules`], and without `socketcall`, through which a 32-bit program could open a socket of any
/// family: a filter does not see its arguments.
const SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketpair",
];

const PROCESSES: &[&str] = &[
    "capget",
    "capset",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "futex",
    "futex_requeue",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_robust_list",
    "get_thread_area",
    "getcpu",
    "getegid",
    "getegid32",
    "geteuid",
    "geteuid32",
    "getgid",
    "getgid32",
    "getgroups",
    "getgroups32",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getresgid",
    "getresgid32",
    "getresuid",
    "getresuid32",
    "getrlimit",
    "getrusage",
    "getsid",
    "gettid",
    "getuid",
    "getuid32",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "prlimit64",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "restart_syscall",
    "rseq",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_rr_get_interval_time64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setpgid",
    "setpriority",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setrlimit",
    "setsid",
    "setuid",
    "setuid32",
    "sysinfo",
    "tgkill",
    "tkill",
    "ugetrlimit",
    "uname",
    "vfork",
    "wait4",
    "waitid",
    "waitpid",
];

const SIGNALS_AND_TIME: &[&str] = &[
    "adjtimex",
    "alarm",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_getres",
    "clock_getres_time64",
    "clock_gettime",
    "clock_gettime64",
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "getitimer",
    "getrandom",
    "gettimeofday",
    "nanosleep",
    "pause",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo",
    "setitimer",
    "sigaltstack",
    "sigprocmask",
    "sigreturn",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_gettime64",
    "timer_settime",
    "timer_settime64",
    "times",
];

/// `ipc` is that of 32-bit programs for what the others of this list do.
const MESSAGES: &[&str] = &[
    "ipc",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "mq_timedsend",
    "mq_timedsend_time64",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
];

/// Of x86: thread-local storage and segments.
const X86: &[&str] = &["arch_prctl", "modify_ldt"];

/// What is allowed with a capability in the bounding set.
const WITH_CAPABILITY: &[(&str, &[&str])] = &[
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYSLOG", &["syslog"]),
];

/// Personalities that are allowed: Linux and BSD, both also with `UNAME26`, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Flags of clone(2) that create namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Family of sockets to the hypervisor and other virtual machines, which has no namespaces.
const AF_VSOCK: u64 = 40;

/// `FS_IOC_FSSETXATTR`, of all file systems and for 32-bit programs too. With it, the owner of a file could give it to the
/// project of another container, and so to the quota of that. `file_setattr`, which does the same, is not allowed.
const SET_PROJECT: u64 = 0x401c_5820;

pub fn profile() -> Profile {
    Profile {
        default: Action::errno(EPERM),
        architectures: BTreeSet::from([Architecture::X86_64, Architecture::X86]),
        rules: rules(),
        flags: BTreeSet::new(),
    }
}

fn rules() -> Vec<Rule> {
    let allow = |names: &[&str]| Rule {
        place: "standard".to_owned(),
        names: names.iter().map(|&name| name.to_owned()).collect(),
        action: Action::ALLOW,
        conditions: Vec::new(),
        includes: Filter::default(),
        excludes: Filter::default(),
    };
    let filter =
        |capability: &str| Filter { capabilities: [capability.to_owned()].into(), ..Filter::default() };
    let when = |condition, rule: Rule| Rule { conditions: vec![condition], ..rule };
    let first = |comparison, value| Condition { argument: 0, comparison, value };
    let without_admin = |rule: Rule| Rule { excludes: filter("SYS_ADMIN"), ..rule };

    let groups = [FILES, INPUT_AND_OUTPUT, MEMORY, SOCKETS, PROCESSES, SIGNALS_AND_TIME, MESSAGES, X86];
    let mut rules: Vec<Rule> = groups.into_iter().map(allow).collect();
    rules.extend(
        WITH_CAPABILITY
            .iter()
            .map(|(capability, names)| Rule { includes: filter(capability), ..allow(names) }),
    );
    rules.extend(PERSONALITIES.map(|value| when(first(Comparison::Equal, value), allow(&["personality"]))));
    rules.push(without_admin(when(first(Comparison::Masked(NEW_NAMESPACES), 0), allow(&["clone"]))));
    // Its flags are in memory. C libraries continue with `clone`.
    rules.push(without_admin(Rule { action: Action::errno(ENOSYS), ..allow(&["clone3"]) }));
    // The kernel looks at the lower half only.
    let vsock = first(Comparison::Masked(0xffff_ffff), AF_VSOCK);
    rules.push(when(vsock, Rule { action: Action::errno(EPERM), ..allow(&["socket"]) }));
    rules.push(allow(&["socket"]));
    let project = Condition { argument: 1, comparison: Comparison::Masked(0xffff_ffff), value: SET_PROJECT };
    rules.push(when(project, Rule { action: Action::errno(EPERM), ..allow(&["ioctl"]) }));
    rules.push(allow(&["ioctl"]));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers;

    #[test]
    fn every_name_is_known_and_occurs_once_for_each_condition() {
        let mut unconditional = BTreeSet::new();
        for rule in rules() {
            for name in &rule.names {
                assert!(numbers::is_known(name), "{name}");
                let native = Architecture::X86_64.number(name).or(Architecture::X86.number(name));
                assert!(native.is_some(), "{name} is of another architecture");
                if rule.conditions.is_empty() && rule.includes == Filter::default() {
                    assert!(unconditional.insert((name.clone(), rule.action)), "{name} occurs twice");
                }
            }
        }
        assert!(unconditional.len() > 300);
    }

    #[test]
    fn what_changes_the_host_needs_a_capability() {
        let always: BTreeSet<String> = rules()
            .into_iter()
            .filter(|rule| {
                rule.action == Action::ALLOW
                    && rule.includes == Filter::default()
                    && rule.conditions.is_empty()
            })
            .flat_map(|rule| rule.names)
            .collect();
        for name in [
            "add_key",
            "keyctl",
            "request_key",
            "mount",
            "umount2",
            "pivot_root",
            "unshare",
            "setns",
            "swapon",
            "reboot",
            "init_module",
            "kexec_load",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "ioperm",
            "iopl",
            "settimeofday",
            "clone",
            "clone3",
            "socketcall",
            "uselib",
            "nfsservctl",
            "vm86",
            "personality",
            "quotactl",
            "sethostname",
            "acct",
            "syslog",
            "chroot",
            "file_setattr",
        ] {
            assert!(!always.contains(name), "{name}");
        }
    }
}
