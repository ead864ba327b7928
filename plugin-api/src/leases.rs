//! The lease service.

use std::ops::RangeInclusive;

use cofferdam_plugin_model::ContainerId;
use cofferdam_plugin_model::service::{
    self, AcquireLease, LEASES_ACQUIRE, LEASES_LIST, LEASES_RELEASE, Lease, ListLeases, ReleaseLease,
};

use crate::{Host, Result};

/// Leases numbers that are unique among all plugins of an agent: network classes, project ids, ports.
///
/// A pool is a name that plugins agree on (`net_cls`, `xfs_project`, …). A lease belongs to a container, is on disk
/// when [`Leases::acquire`] returns, and survives restarts of the agent. It ends with [`Leases::release`], or when the
/// agent has removed the container. From [`Host::leases`]; requires the feature `service.leases`.
///
/// ```no_run
/// # use cofferdam_plugin_api::prelude::*;
/// # struct NetCls { host: Host }
/// # impl NetCls {
/// fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
///     let class = self.host.leases().acquire("net_cls", 0x10001..=0x1ffff, container)?;
///     // The agent releases it at the latest when the container is removed, even if this method fails.
///     # let _ = class;
///     Ok(Prepared::new())
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Leases(Host);

impl Host {
    /// The service that leases numbers which are unique among all plugins of the agent.
    #[must_use]
    pub fn leases(&self) -> Leases {
        Leases(self.clone())
    }
}

impl Leases {
    /// Leases the smallest free number of `range` in `pool` for a container. Each call leases another number.
    ///
    /// # Errors
    /// If no number of the range is free (retryable), if the range is empty, if the plugin does not participate in that
    /// container, or if the agent cannot write the lease.
    pub fn acquire(&self, pool: &str, range: RangeInclusive<u32>, container: impl AsRef<str>) -> Result<u32> {
        let container = ContainerId::parse(container.as_ref())?;
        let request =
            AcquireLease { pool: pool.to_owned(), first: *range.start(), last: *range.end(), container };
        self.0.request(LEASES_ACQUIRE, &request).map(|lease: Lease| lease.number)
    }

    /// Releases a number. Succeeds if the number is not leased.
    ///
    /// # Errors
    /// If another plugin has leased it, or the agent cannot write the release.
    pub fn release(&self, pool: &str, number: u32) -> Result<()> {
        self.0.request(LEASES_RELEASE, &ReleaseLease { pool: pool.to_owned(), number })
    }

    /// Releases a number if it is leased for this container: one whose lease was lost may have the number of another one.
    ///
    /// # Errors
    /// As of [`Leases::release`], or if the agent does not provide the service.
    pub fn release_of(&self, pool: &str, number: u32, container: impl AsRef<str>) -> Result<()> {
        let container = container.as_ref();
        let is_own = |lease: &Lease| lease.number == number && lease.container.as_str() == container;
        if self.list(pool)?.iter().any(is_own) { self.release(pool, number) } else { Ok(()) }
    }

    /// The leases of all plugins in `pool`, by number.
    ///
    /// # Errors
    /// If the agent does not provide the service.
    pub fn list(&self, pool: &str) -> Result<Vec<Lease>> {
        let request = ListLeases { pool: pool.to_owned() };
        self.0.request(LEASES_LIST, &request).map(|reply: service::Leases| reply.leases)
    }
}
