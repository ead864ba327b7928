//! Identifies the current boot, so that a pid recorded before a reboot is not used after it.

use std::fmt;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// The random id that the kernel generates at every boot, from `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BootId(String);

impl BootId {
    /// The id of the running boot.
    pub fn current() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self(text.trim_end().to_owned()))
    }

    /// The id as the kernel prints it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::BootId;

    #[test]
    fn the_boot_id_is_constant() {
        let id = BootId::current().unwrap();
        assert_eq!(id, BootId::current().unwrap());
        assert_eq!(id.as_str().len(), "00000000-0000-0000-0000-000000000000".len());
    }
}
