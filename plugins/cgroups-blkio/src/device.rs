//! Block devices, by number.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cofferdam_plugin_api::prelude::*;

/// Number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    pub major: u64,
    pub minor: u64,
}

impl Device {
    /// That of a device file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs::metadata(path).context(format!("cannot read `{}` of `devices`", path.display()))?;
        if !file.file_type().is_block_device() {
            return Err(Error::new(format!("`{}` of `devices` is not a block device", path.display())));
        }
        Ok(Self::from_number(file.rdev()))
    }

    /// See makedev(3).
    fn from_number(number: u64) -> Self {
        Self {
            major: (number >> 32 & 0xffff_f000) | (number >> 8 & 0xfff),
            minor: (number >> 12 & 0xffff_ff00) | (number & 0xff),
        }
    }

    /// From `8:0`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_split_as_the_kernel_does() {
        assert_eq!(Device::from_number(0x0803), Device { major: 8, minor: 3 });
        assert_eq!(Device::from_number(0x11_032c), Device { major: 259, minor: 300 });
        assert_eq!(Device::from_number(0x1000_0000_0100), Device { major: 0x1001, minor: 0 });
        assert_eq!(Device::parse("259:17"), Some(Device { major: 259, minor: 17 }));
        assert_eq!(Device::parse("Total"), None);
        assert!(Device::open(Path::new("/dev/null")).unwrap_err().to_string().contains("not a block device"));
    }
}
