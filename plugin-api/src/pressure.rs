//! Pressure stall information: how long processes waited for a resource.

use std::time::Duration;

use cofferdam_linux::cgroup as linux;

use crate::cgroup::CgroupVersion;
use crate::{ContainerRef, Result};

/// For how long processes of a container waited for a resource, since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// At least one process waited.
    pub some: Duration,
    /// All processes that were not idle waited.
    pub full: Duration,
}

impl Pressure {
    /// The pressure on `cpu`, `memory` or `io` in the container's cgroup of v2, which has this without any controller, also
    /// beside hierarchies of v1. `None` if v2 is not mounted or the kernel does not account for pressure.
    ///
    /// # Errors
    /// If the agent's message cannot be decoded, or the file cannot be read.
    pub fn read(container: &ContainerRef, resource: &str) -> Result<Option<Self>> {
        let (cgroups, _) = container.cgroups_of(&[])?;
        let Some(mount) = &cgroups.v2 else { return Ok(None) };
        let group = linux::Cgroup::at(mount.join(&cgroups.path), CgroupVersion::V2);
        match group.read(&format!("{resource}.pressure")) {
            Ok(text) => Ok(Some(Self::parse(&text))),
            Err(error) if error.is_missing() || is_disabled(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and a line `full`. The total is in microseconds.
    fn parse(text: &str) -> Self {
        let total = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
            let total = line.split(' ').find_map(|field| field.strip_prefix("total="))?;
            Some(Duration::from_micros(total.parse().ok()?))
        };
        Self { some: total("some").unwrap_or_default(), full: total("full").unwrap_or_default() }
    }
}

/// The kernel was booted without it, or it is turned off in the cgroup.
fn is_disabled(error: &linux::CgroupError) -> bool {
    matches!(error, linux::CgroupError::Read { source, .. } if source.kind() == std::io::ErrorKind::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=1234567\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=89";
        let expected = Pressure { some: Duration::from_micros(1_234_567), full: Duration::from_micros(89) };
        assert_eq!(Pressure::parse(text), expected);
        assert_eq!(Pressure::parse(""), Pressure::default());
    }
}
