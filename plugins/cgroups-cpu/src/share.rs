//! CPU weight and limit of a container.

use cofferdam_plugin_api::Changes;
use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::model::Limit;
use cofferdam_plugin_api::prelude::*;

/// CFS period in microseconds, as in Mesos.
pub const PERIOD: u64 = 100_000;

/// The smallest quota that the kernel accepts, in microseconds.
const MINIMUM_QUOTA: u64 = 1_000;

/// The largest quota that the kernel accepts, in microseconds: that of 175 million CPUs.
const MAXIMUM_QUOTA: u64 = (1 << 44) - 1;

/// Interface files of v1.
const PERIOD_V1: &str = "cpu.cfs_period_us";
const QUOTA_V1: &str = "cpu.cfs_quota_us";

/// Values for the interface files.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// CPUs that the container gets when all are busy; `None` if there is no request. A new cgroup has the weight of one.
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

    /// This, for a cgroup that is not new: without a request it has the kernel's default weight, that of one CPU.
    pub fn complete(self) -> Self {
        Self { cpus: self.cpus.or(Some(1.0)), ..self }
    }

    /// Writes the interface files, all or none.
    pub fn apply(self, cgroup: &Cgroup) -> Result<()> {
        let mut changes = cgroup.changes();
        match cgroup.version() {
            CgroupVersion::V1 => self.apply_v1(cgroup, &mut changes)?,
            CgroupVersion::V2 => self.apply_v2(cgroup, &mut changes)?,
        }
        changes.keep();
        Ok(())
    }

    fn apply_v1(self, cgroup: &Cgroup, changes: &mut Changes<'_>) -> Result<()> {
        if let Some(quota) = self.quota {
            changes.write(PERIOD_V1, PERIOD)?;
            changes.write(QUOTA_V1, quota).or_else(|error| refused(cgroup, quota, error))?;
        } else if cgroup.has(QUOTA_V1) {
            // Missing in a kernel without bandwidth control.
            changes.write(QUOTA_V1, -1)?;
        }
        if let Some(cpus) = self.cpus {
            changes.write("cpu.shares", scaled(1024, cpus).clamp(2, 262_144))?;
        }
        Ok(())
    }

    fn apply_v2(self, cgroup: &Cgroup, changes: &mut Changes<'_>) -> Result<()> {
        const QUOTA: &str = "cpu.max";
        if let Some(quota) = self.quota {
            changes.write(QUOTA, format!("{quota} {PERIOD}"))?;
        } else if cgroup.has(QUOTA) {
            changes.write(QUOTA, format!("max {PERIOD}"))?;
        }
        if let Some(cpus) = self.cpus {
            changes.write("cpu.weight", scaled(100, cpus).clamp(1, 10_000))?;
        }
        Ok(())
    }
}

/// On v1 the kernel refuses a quota above that of a cgroup above, and one below that of a cgroup below.
fn refused(cgroup: &Cgroup, quota: u64, error: CgroupError) -> Result<()> {
    if !error.is_invalid() {
        return Err(error.into());
    }
    let asked = in_cpus(quota, PERIOD);
    let limited = cgroup.above().into_iter().filter_map(|above| {
        let (quota, period) = (above.read_as(QUOTA_V1).ok()?, above.read_as(PERIOD_V1).ok()?);
        Some((in_cpus(quota, period), above))
    });
    let lowest = limited.min_by(|(one, _), (other, _)| one.total_cmp(other));
    let why = match lowest {
        Some((limit, above)) if limit < asked => format!(
            "the control group above it that has the lowest limit, `{}`, has {limit:.2}; request at most that, or raise the \
             limit of the parent first",
            above.directory().display()
        ),
        _ => "a container that is nested in it has a higher limit; lower that first".to_owned(),
    };
    Err(error).context(format!("cannot limit the container to {asked:.2} CPUs: {why}"))
}

#[expect(clippy::cast_precision_loss, reason = "for comparisons and messages")]
fn in_cpus(quota: u64, period: u64) -> f64 {
    quota as f64 / period as f64
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
