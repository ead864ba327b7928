//! Memory limits of a container.

use std::fs;

use cofferdam_plugin_api::cgroup::{CgroupError, CgroupVersion};
use cofferdam_plugin_api::prelude::*;

/// Values for the interface files, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory that is reclaimed only if there is nothing else to reclaim; `None` if there is no request. A new cgroup has 0.
    pub protected: Option<u64>,
    /// The limit; `None` for none.
    pub hard: Option<u64>,
}

impl Limits {
    /// `None` if the container requests no memory and has no limit.
    pub fn of(resources: &Resources, minimum: u64) -> Option<Self> {
        let hard = resources.mem_limit_bytes()?;
        Some(Self {
            protected: resources.mem_bytes().map(|bytes| bytes.max(minimum)),
            hard: hard.map(|bytes| bytes.max(minimum)),
        })
    }

    /// These, for a cgroup that is not new: without a request, nothing is protected.
    pub fn complete(self) -> Self {
        Self { protected: self.protected.or(Some(0)), ..self }
    }

    /// Writes the interface files. If that fails, the old limit is still in force.
    pub fn apply(self, cgroup: &Cgroup, limit_swap: bool) -> Result<()> {
        match cgroup.version() {
            CgroupVersion::V1 => self.apply_v1(cgroup, limit_swap),
            CgroupVersion::V2 => self.apply_v2(cgroup, limit_swap),
        }
    }

    fn apply_v1(self, cgroup: &Cgroup, limit_swap: bool) -> Result<()> {
        const HARD: &str = "memory.limit_in_bytes";
        const SWAP: &str = "memory.memsw.limit_in_bytes";
        if limit_swap && !cgroup.has(SWAP) {
            return Err(Error::new(
                "`limit_swap` is on, but this kernel does not account for swap: boot it with `swapaccount=1`, or \
                 turn `limit_swap` off",
            ));
        }
        let (hard, unlimited) = (unlimited_or(self.hard, "-1"), "-1".to_owned());
        let mut changes = cgroup.changes();
        // The kernel refuses a memory limit above that of memory and swap, so the latter is raised first and lowered
        // last. `limit_swap` may have been on before.
        if let Err(error) = changes.write(HARD, &hard) {
            if error.is_busy() || !cgroup.has(SWAP) {
                return refused(cgroup, self.hard, error);
            }
            changes.write(SWAP, if limit_swap { &hard } else { &unlimited })?;
            changes.write(HARD, &hard).or_else(|error| refused(cgroup, self.hard, error))?;
        }
        if limit_swap {
            changes.write(SWAP, &hard).or_else(|error| refused(cgroup, self.hard, error))?;
        }
        if let Some(protected) = self.protected {
            // No request, no limit that the kernel prefers to reclaim from.
            let value = if protected == 0 { unlimited } else { protected.to_string() };
            changes.write("memory.soft_limit_in_bytes", value)?;
        }
        changes.keep();
        Ok(())
    }

    fn apply_v2(self, cgroup: &Cgroup, limit_swap: bool) -> Result<()> {
        if let Some(hard) = self.hard {
            reclaim(cgroup, hard)?;
        }
        let mut changes = cgroup.changes();
        changes.write("memory.max", unlimited_or(self.hard, "max"))?;
        // v2 has no limit of memory and swap together.
        if limit_swap && cgroup.has("memory.swap.max") {
            changes.write("memory.swap.max", if self.hard.is_some() { "0" } else { "max" })?;
        }
        if let Some(protected) = self.protected {
            changes.write("memory.low", protected)?;
        }
        changes.keep();
        Ok(())
    }

    /// Adjustment for the OOM killer when the host is out of memory: a container that may use more than it requested is
    /// killed earlier, the sooner the less it requested. `None` for others.
    pub fn oom_score_adj(self) -> Result<Option<i32>> {
        let Some(protected) = self.protected.filter(|&protected| at_most(self.hard) > protected) else {
            return Ok(None);
        };
        let total = host_memory()?.max(1);
        let share = u128::from(protected.min(total)) * 1000 / u128::from(total);
        Ok(Some(1000 - i32::try_from(share).unwrap_or(1000)))
    }
}

/// Reclaims memory before a limit is lowered: on v2 the kernel kills processes that do not fit below a new limit.
fn reclaim(cgroup: &Cgroup, hard: u64) -> Result<()> {
    const USED: &str = "memory.current";
    let used: u64 = cgroup.read_as(USED)?;
    if used > hard && cgroup.has("memory.reclaim") {
        // Fails if it reclaimed less than requested; the remaining usage is checked below.
        let _ = cgroup.write("memory.reclaim", used - hard);
    }
    let used: u64 = cgroup.read_as(USED)?;
    if used > hard { Err(too_small(hard, used)) } else { Ok(()) }
}

/// On v1 the kernel reclaims what it can, and refuses the limit if that is not enough.
fn refused(cgroup: &Cgroup, hard: Option<u64>, error: CgroupError) -> Result<()> {
    let Some(hard) = hard.filter(|_| error.is_busy()) else { return Err(error.into()) };
    Err(too_small(hard, cgroup.read_as("memory.usage_in_bytes")?))
}

fn too_small(hard: u64, used: u64) -> Error {
    Error::new(format!(
        "cannot lower the memory limit to {}: the container uses {}, which cannot be reclaimed",
        mebibytes(hard),
        mebibytes(used)
    ))
    .retryable()
}

/// For messages: `31.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn at_most(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}

fn unlimited_or(limit: Option<u64>, unlimited: &str) -> String {
    limit.map_or_else(|| unlimited.to_owned(), |limit| limit.to_string())
}

fn host_memory() -> Result<u64> {
    const PATH: &str = "/proc/meminfo";
    let text = fs::read_to_string(PATH).context(format!("cannot read `{PATH}`"))?;
    let kibibytes = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    Ok(kibibytes.ok_or_else(|| Error::new(format!("`{PATH}` does not contain `MemTotal`")))? * 1024)
}

#[cfg(test)]
mod tests {
    use cofferdam_plugin_api::model::Limit;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(resources: &Resources) -> Option<(Option<u64>, Option<u64>)> {
        Limits::of(resources, 32 * MIB).map(|limits| (limits.protected, limits.hard))
    }

    #[test]
    fn limits_follow_from_requests() {
        let resources = Resources::default();
        assert_eq!(limits(&resources), None);
        assert_eq!(limits(&resources.clone().with("cpus", 1.0)), None);
        let both = |mib| Some((Some(mib * MIB), Some(mib * MIB)));
        assert_eq!(limits(&resources.clone().with("mem", 64.0)), both(64));
        assert_eq!(limits(&resources.clone().with("mem", 1.0)), both(32), "the minimum holds");
        let resources = resources.with("mem", 64.0);
        let burst = resources.clone().with_limit("mem", Limit::At(128.0));
        assert_eq!(limits(&burst), Some((Some(64 * MIB), Some(128 * MIB))));
        let free = resources.with_limit("mem", Limit::Unlimited);
        assert_eq!(limits(&free), Some((Some(64 * MIB), None)));
        let only = Resources::default().with_limit("mem", Limit::At(128.0));
        assert_eq!(limits(&only), Some((None, Some(128 * MIB))));
    }

    #[test]
    fn only_containers_that_may_use_more_than_requested_are_killed_earlier() {
        let adj = |protected, hard| Limits { protected, hard }.oom_score_adj().unwrap();
        let total = host_memory().unwrap();
        assert_eq!(adj(Some(64 * MIB), Some(64 * MIB)), None);
        assert_eq!(adj(None, None), None);
        assert_eq!(adj(Some(0), None), Some(1000));
        assert_eq!(adj(Some(total / 4 + 1), None), Some(750));
        assert_eq!(adj(Some(total), None), Some(0));
    }
}
