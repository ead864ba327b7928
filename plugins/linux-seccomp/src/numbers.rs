//! Names and numbers of system calls.

use std::str::FromStr;

use syscalls::{aarch64, arm, mips64, powerpc64, riscv64, s390x, x86, x86_64};

/// An architecture of which programs can run on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// x86-64, with the numbers of x32 refused.
    X86_64,
    /// i386, in 64-bit programs too, by its interrupt.
    X86,
}

impl Architecture {
    /// The number of a system call; `None` if this architecture does not have it.
    pub fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => x86_64::Sysno::from_str(name).ok()?.id(),
            Self::X86 => x86::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }

    /// The first number above those of all known system calls.
    pub fn end(self) -> u32 {
        let last = match self {
            Self::X86_64 => x86_64::Sysno::last().id(),
            Self::X86 => x86::Sysno::last().id(),
        };
        u32::try_from(last).map_or(u32::MAX, |last| last + 1)
    }

    /// As in `linux/audit.h`.
    pub const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
        }
    }
}

/// System calls of other architectures that the tables of `syscalls` do not have.
const OTHERS: [&str; 14] = [
    "arm_sync_file_range",
    "bdflush",
    "breakpoint",
    "cacheflush",
    "get_tls",
    "parisc_pipe2",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "s390_guarded_storage",
    "s390_sthyi",
    "set_tls",
    "sync_file_range2",
    "usr26",
    "usr32",
];

/// Whether any architecture has a system call of that name. Profiles are written for all of them.
pub fn is_known(name: &str) -> bool {
    Architecture::X86_64.number(name).is_some()
        || Architecture::X86.number(name).is_some()
        || aarch64::Sysno::from_str(name).is_ok()
        || arm::Sysno::from_str(name).is_ok()
        || mips64::Sysno::from_str(name).is_ok()
        || powerpc64::Sysno::from_str(name).is_ok()
        || riscv64::Sysno::from_str(name).is_ok()
        || s390x::Sysno::from_str(name).is_ok()
        || OTHERS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, x86_64, x86) in [
            ("read", Some(0), Some(3)),
            ("mount", Some(165), Some(21)),
            ("socketcall", None, Some(102)),
            ("arch_prctl", Some(158), Some(384)),
            ("clone3", Some(435), Some(435)),
            ("s390_pci_mmio_read", None, None),
        ] {
            assert_eq!(Architecture::X86_64.number(name), x86_64, "{name}");
            assert_eq!(Architecture::X86.number(name), x86, "{name}");
            assert!(is_known(name), "{name}");
        }
        assert!(!is_known("fly"));
        assert!(Architecture::X86_64.end() > 460 && Architecture::X86.end() > 460);
    }
}
