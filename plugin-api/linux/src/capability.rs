//! Names and numbers of capabilities, and those of this process.

use std::fs;
use std::io;

/// All names, indexed by number as in `linux/capability.h`, without the prefix `CAP_`.
pub const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability such as `NET_RAW`, with or without the prefix `CAP_`.
#[must_use]
pub fn number(name: &str) -> Option<usize> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name)
}

/// The capabilities of a process that limit what it can give to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnSets {
    /// Its permitted set: bit n for capability n.
    pub permitted: u64,
    /// Its bounding set: bit n for capability n.
    pub bounding: u64,
}

impl OwnSets {
    /// Those of this process, as of its first thread.
    ///
    /// # Errors
    /// If `/proc/self/status` cannot be read or has no such sets.
    pub fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/status")?).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "`/proc/self/status` has no capability sets")
        })
    }

    fn parse(status: &str) -> Option<Self> {
        let set = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            u64::from_str_radix(value.trim(), 16).ok()
        };
        Some(Self { permitted: set("CapPrm")?, bounding: set("CapBnd")? })
    }
}

/// Whether a set contains the capability of that number.
#[must_use]
pub const fn contains(set: u64, number: usize) -> bool {
    number < u64::BITS as usize && set >> number & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::{OwnSets, contains, number};

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        assert_eq!(number("CHOWN"), Some(0));
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(number("CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("sys_admin"), None);
        assert_eq!(number(""), None);
    }

    #[test]
    fn the_sets_of_a_process_are_read_from_its_status() {
        let status =
            "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000200001\nCapBnd:\t000001ffffffffff\n";
        let sets = OwnSets::parse(status).unwrap();
        assert_eq!(sets, OwnSets { permitted: 0x20_0001, bounding: 0x1ff_ffff_ffff });
        assert!(contains(sets.permitted, 21) && contains(sets.permitted, 0) && !contains(sets.permitted, 1));
        assert!(!contains(u64::MAX, 64));
        assert_eq!(OwnSets::parse("CapPrm:\tnone\n"), None);
        assert!(OwnSets::read().is_ok());
    }
}
