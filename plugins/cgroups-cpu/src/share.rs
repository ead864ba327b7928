//! CPU weight and limit of a container.

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::prelude::*;

/// CFS period in microseconds, as in Mesos.
pub const PERIOD: u64 = 100_000;

/// The smallest quota that the kernel accepts, in microseconds.
const MINIMUM_QUOTA: u64 = 1_000;

/// The largest quota that the kernel accepts, in microseconds: that of 175 million CPUs.
const MAXIMUM_QUOTA: u64 = (1 << 44) - 1;

/// Values for the interface files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// CPUs that the container gets when all are busy; `None` leaves the kernel's default weight.
    pub cpus: Option<f64>,
    /// Microseconds of CPU time per period; `None` for no limit.
    pub quota: Option<u64>,
}

impl Share {
    /// `None` if the container requests no CPUs and has no limit. With `cfs`, the request is also the limit.
    pub fn of(resources: &Resources, cfs: bool) -> Option<Self> {
        let cpus = resources.cpus();
        let own = resources.limits.get("cpus").copied();
        if cpus.is_none() && own.is_none() {
            return None;
        }
        let limit = own.or_else(|| cpus.filter(|_| cfs).map(Limit::At));
        let quota = limit.and_then(|limit| match limit {
            Limit::At(cpus) => Some(scaled(PERIOD, cpus).clamp(MINIMUM_QUOTA, MAXIMUM_QUOTA)),
            _ => None,
        });
        Some(Self { cpus, quota })
    }

    /// Writes the interface files.
    pub fn apply(self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        match cgroup.version() {
            CgroupVersion::V1 => self.apply_v1(cgroup),
            CgroupVersion::V2 => self.apply_v2(cgroup),
        }
    }

    fn apply_v1(self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        const QUOTA: &str = "cpu.cfs_quota_us";
        if let Some(quota) = self.quota {
            cgroup.write("cpu.cfs_period_us", PERIOD)?;
            cgroup.write(QUOTA, quota)?;
        } else if cgroup.has(QUOTA) {
            // Missing in a kernel without bandwidth control.
            cgroup.write(QUOTA, -1)?;
        }
        if let Some(cpus) = self.cpus {
            cgroup.write("cpu.shares", scaled(1024, cpus).clamp(2, 262_144))?;
        }
        Ok(())
    }

    fn apply_v2(self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        const QUOTA: &str = "cpu.max";
        if let Some(quota) = self.quota {
            cgroup.write(QUOTA, format!("{quota} {PERIOD}"))?;
        } else if cgroup.has(QUOTA) {
            cgroup.write(QUOTA, format!("max {PERIOD}"))?;
        }
        if let Some(cpus) = self.cpus {
            cgroup.write("cpu.weight", scaled(100, cpus).clamp(1, 10_000))?;
        }
        Ok(())
    }
}

/// `one` per CPU.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "`one` is small, and float casts saturate"
)]
fn scaled(one: u64, cpus: f64) -> u64 {
    // Rounded, as a fraction such as 0.29 has no exact float.
    (one as f64 * cpus).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(resources: &Resources, cfs: bool) -> Option<Option<u64>> {
        Share::of(resources, cfs).map(|share| share.quota)
    }

    #[test]
    fn a_request_is_a_limit_where_the_operator_wants_it_and_a_limit_always_is() {
        let resources = Resources::default();
        assert_eq!(quota(&resources, true), None);
        assert_eq!(quota(&resources.clone().with("mem", 1.0), true), None);
        let resources = resources.with("cpus", 1.5);
        assert_eq!(quota(&resources, true), Some(Some(150_000)));
        assert_eq!(quota(&resources, false), Some(None));
        let limited = resources.clone().with_limit("cpus", Limit::At(2.0));
        assert_eq!(quota(&limited, false), Some(Some(200_000)));
        assert_eq!(quota(&limited, true), Some(Some(200_000)));
        let free = resources.with_limit("cpus", Limit::Unlimited);
        assert_eq!(quota(&free, true), Some(None));
        assert_eq!(quota(&Resources::default().with("cpus", 0.001), true), Some(Some(1_000)));
    }
}
