//! Devices of the host, and their nodes in containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cofferdam_plugin_api::prelude::*;

/// What users other than root may do with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    read: bool,
    write: bool,
}

impl Access {
    /// `r`, `w` or both.
    pub fn parse(text: &str) -> Result<Self> {
        let access = Self { read: text.contains('r'), write: text.contains('w') };
        let is_valid = match text.len() {
            1 => access.read || access.write,
            2 => access.read && access.write,
            _ => false,
        };
        if is_valid {
            Ok(access)
        } else {
            Err(Error::new(format!("its `access` is `{text}`; expected `r`, `w` or `rw`")))
        }
    }

    pub const fn read_only(self) -> Self {
        Self { read: self.read, write: false }
    }

    /// Permission bits of the node, the same for everybody.
    const fn mode(self) -> u32 {
        (if self.read { 0o444 } else { 0 }) | (if self.write { 0o222 } else { 0 })
    }
}

/// A device of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    kind: DeviceKind,
    major: u32,
    minor: u32,
}

impl Node {
    /// The device at a path of the host. Links are followed: `/dev/disk/by-id/…` are links.
    pub fn of_host(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).context("it cannot be found on the host")?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => DeviceKind::Char,
            kind if kind.is_block_device() => DeviceKind::Block,
            _ => return Err(Error::new("it is neither a character nor a block device")),
        };
        let (major, minor) = numbers(metadata.rdev());
        Ok(Self { kind, major, minor })
    }

    pub fn operation(self, path: &Path, access: Access) -> Operation {
        let Self { kind, major, minor } = self;
        Operation::Device {
            path: path.to_owned(),
            kind,
            major,
            minor,
            mode: access.mode(),
            owner: Owner::default(),
        }
    }
}

/// Major and minor number of a `dev_t` of the C library, as gnu_dev_major(3) and gnu_dev_minor(3).
const fn numbers(device: u64) -> (u32, u32) {
    let major = (device >> 8 & 0xfff) | (device >> 32 & 0xffff_f000);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    (major as u32, minor as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let encode = |major: u64, minor: u64| {
            (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | minor & 0xff
        };
        for (major, minor) in [(1, 3), (0xfff, 0xff), (0x1000, 0x100), (0x1_2345, 0x6_789a)] {
            assert_eq!(numbers(encode(major.into(), minor.into())), (major, minor));
        }
        let null = Node::of_host(Path::new("/dev/null")).unwrap();
        assert_eq!(null, Node { kind: DeviceKind::Char, major: 1, minor: 3 });
    }

    #[test]
    fn permissions_follow_the_access() {
        for (text, mode) in [("r", 0o444), ("w", 0o222), ("rw", 0o666), ("wr", 0o666)] {
            assert_eq!(Access::parse(text).unwrap().mode(), mode, "{text}");
        }
        assert_eq!(Access::parse("rw").unwrap().read_only().mode(), 0o444);
        for text in ["", "x", "rr", "rwm", "rx"] {
            assert!(Access::parse(text).is_err(), "{text}");
        }
    }
}
