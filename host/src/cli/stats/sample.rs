//! The usage of containers at one time, and what it says beside that of an earlier time.

use std::collections::BTreeMap;

use crate::api::operator::types::{BlkioOperation, Container, ResourceStatistics};
use crate::telemetry::usage;

/// Counters of one container at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counters {
    /// In seconds.
    time: f64,
    /// Seconds of CPU time that were used until then.
    cpu: Option<f64>,
    /// Bytes that were read and written.
    io: Option<(u64, u64)>,
}

/// The counters of all containers at a time, by id.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Sample(BTreeMap<String, Counters>);

impl Sample {
    pub(in crate::cli) fn of(containers: &[Container]) -> Self {
        let counted = |container: &Container| {
            let statistics = container.resource_statistics.as_ref()?;
            let counters = Counters {
                time: statistics.timestamp,
                cpu: cpu_time(statistics),
                io: block_bytes(statistics),
            };
            Some((container.container_id.to_string(), counters))
        };
        Self(containers.iter().filter_map(counted).collect())
    }

    /// CPUs that a container has used since then: 1 for all of one CPU. `None` if that is not known, as for one that was
    /// launched again in between.
    pub(in crate::cli) fn cpus(&self, container: &Container) -> Option<f64> {
        let statistics = container.resource_statistics.as_ref()?;
        let before = self.0.get(&container.container_id.to_string())?;
        let (elapsed, used) = (statistics.timestamp - before.time, cpu_time(statistics)? - before.cpu?);
        (elapsed > 0.0 && used >= 0.0).then(|| used / elapsed)
    }

    /// Bytes per second that a container has read and written since then.
    #[expect(clippy::cast_precision_loss, reason = "three significant digits are shown")]
    pub(in crate::cli) fn io_rate(&self, container: &Container) -> Option<f64> {
        let statistics = container.resource_statistics.as_ref()?;
        let before = self.0.get(&container.container_id.to_string())?;
        let (elapsed, now) = (statistics.timestamp - before.time, block_bytes(statistics)?);
        let sum = |(read, written): (u64, u64)| read.saturating_add(written);
        let moved = sum(now).checked_sub(sum(before.io?))?;
        (elapsed > 0.0).then(|| moved as f64 / elapsed)
    }
}

/// Seconds of CPU time.
pub(in crate::cli) fn cpu_time(statistics: &ResourceStatistics) -> Option<f64> {
    usage::cpu_time(statistics.cpus_user_time_secs, statistics.cpus_system_time_secs)
}

/// Memory in use.
pub(in crate::cli) fn memory(statistics: &ResourceStatistics) -> Option<u64> {
    usage::memory(statistics.mem_total_bytes, statistics.mem_rss_bytes)
}

/// Bytes read from and written to block devices.
pub(in crate::cli) fn block_bytes(statistics: &ResourceStatistics) -> Option<(u64, u64)> {
    let throttling = &statistics.blkio_statistics.as_ref()?.throttling;
    let devices = throttling.iter().filter(|device| device.device.is_some());
    let values = devices.flat_map(|device| &device.io_service_bytes);
    Some(values.fold((0, 0), |(read, written): (u64, u64), value| {
        let bytes = value.value.unwrap_or_default();
        match value.op {
            Some(BlkioOperation::Read) => (read.saturating_add(bytes), written),
            Some(BlkioOperation::Write) => (read, written.saturating_add(bytes)),
            _ => (read, written),
        }
    }))
}
