//! What a container has used, as isolators count it.

use std::collections::BTreeMap;

use super::resource::{DiskPersistence, Range};

message! {
    /// The use of resources by one container. Every isolator fills in what it knows.
    ///
    /// Counters run from the start of the container; the unit is the last part of each name.
    pub struct ResourceStatistics {
        /// When it was taken: seconds since the Unix epoch.
        required timestamp: f64,

        /// Processes alive.
        optional processes: u32,
        /// Threads alive.
        optional threads: u32,

        /// CPU time spent in user mode.
        optional cpus_user_time_secs: f64,
        /// CPU time spent in the kernel.
        optional cpus_system_time_secs: f64,
        /// The most CPU time it may use per time, in cores.
        optional cpus_limit: f64,
        /// The CPU time it asked for per time, in cores.
        optional cpus_soft_limit: f64,
        /// Bandwidth periods that have passed.
        optional cpus_nr_periods: u32,
        /// Bandwidth periods in which it was stopped.
        optional cpus_nr_throttled: u32,
        /// How long it was stopped for.
        optional cpus_throttled_time_secs: f64,

        /// All memory charged to it.
        optional mem_total_bytes: u64,
        /// All memory and swap charged to it.
        optional mem_total_memsw_bytes: u64,
        /// Kernel memory.
        optional mem_kmem_usage_bytes: u64,
        /// Kernel memory for TCP buffers.
        optional mem_kmem_tcp_usage_bytes: u64,
        /// The most memory it may use.
        optional mem_limit_bytes: u64,
        /// The memory it asked for.
        optional mem_soft_limit_bytes: u64,
        /// Page cache, under its older name.
        optional mem_file_bytes: u64,
        /// Anonymous memory, under its older name.
        optional mem_anon_bytes: u64,
        /// Page cache.
        optional mem_cache_bytes: u64,
        /// Anonymous memory, transparent huge pages included.
        optional mem_rss_bytes: u64,
        /// Files mapped into processes.
        optional mem_mapped_file_bytes: u64,
        /// Swap.
        optional mem_swap_bytes: u64,
        /// Memory that cannot be reclaimed.
        optional mem_unevictable_bytes: u64,
        /// Notices of low memory pressure.
        optional mem_low_pressure_counter: u64,
        /// Notices of medium memory pressure.
        optional mem_medium_pressure_counter: u64,
        /// Notices of critical memory pressure.
        optional mem_critical_pressure_counter: u64,

        /// The most disk space its sandbox may take.
        optional disk_limit_bytes: u64,
        /// The disk space its sandbox takes.
        optional disk_used_bytes: u64,
        /// Disk space per disk and persistent volume.
        repeated disk_statistics: DiskStatistics,
        /// Block I/O.
        optional blkio_statistics: Blkio,

        /// Hardware and kernel event counts of the last sample.
        optional perf: PerfStatistics,

        /// Packets received.
        optional net_rx_packets: u64,
        /// Bytes received.
        optional net_rx_bytes: u64,
        /// Receive errors.
        optional net_rx_errors: u64,
        /// Packets dropped on receipt.
        optional net_rx_dropped: u64,
        /// Packets sent.
        optional net_tx_packets: u64,
        /// Bytes sent.
        optional net_tx_bytes: u64,
        /// Send errors.
        optional net_tx_errors: u64,
        /// Packets dropped on sending.
        optional net_tx_dropped: u64,
        /// Bytes per second it may send.
        optional net_tx_rate_limit: u64,
        /// Bytes per second it may send in a burst.
        optional net_tx_burst_rate_limit: u64,
        /// The size of such a burst, in bytes.
        optional net_tx_burst_size: u64,
        /// Bytes per second it may receive.
        optional net_rx_rate_limit: u64,
        /// Bytes per second it may receive in a burst.
        optional net_rx_burst_rate_limit: u64,
        /// The size of such a burst, in bytes.
        optional net_rx_burst_size: u64,
        /// How its rates were spread over the last window.
        optional net_rate_statistics: RateStatistics,
        /// The ports its outgoing connections come from.
        optional net_ephemeral_ports: Range,
        /// Median of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p50: f64,
        /// 90th percentile of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p90: f64,
        /// 95th percentile of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p95: f64,
        /// 99th percentile of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p99: f64,
        /// TCP connections open.
        optional net_tcp_active_connections: f64,
        /// TCP connections in TIME_WAIT.
        optional net_tcp_time_wait_connections: f64,
        /// Queueing disciplines, one by one.
        repeated net_traffic_control_statistics: TrafficControlStatistics,
        /// The kernel's protocol counters.
        optional net_snmp_statistics: SnmpStatistics,

        /// What plugins count that has no name above, as they call it.
        #[serde(flatten)]
        required others: BTreeMap<String, serde_json::Value>,
    }
}

message! {
    /// The use of one disk.
    pub struct DiskStatistics {
        /// The disk, as written; that of the sandboxes when absent.
        optional source: serde_json::Value,
        /// The persistent volume, if it is one.
        optional persistence: DiskPersistence,
        /// The most space it may take.
        optional limit_bytes: u64,
        /// The space it takes.
        optional used_bytes: u64,
    }
}

message! {
    /// Block I/O, by the policies that count it.
    pub struct Blkio {
        /// The CFQ scheduler, without descendants.
        repeated cfq: BlkioCfq,
        /// The CFQ scheduler, with descendants.
        repeated cfq_recursive: BlkioCfq,
        /// Throttling.
        repeated throttling: BlkioThrottling,
    }
}

message! {
    /// What the CFQ scheduler counted for one device, or for all when `device` is absent.
    pub struct BlkioCfq {
        /// The device.
        optional device: DeviceNumber,
        /// Sectors of 512 bytes moved.
        optional sectors: u64,
        /// Milliseconds of device time.
        optional time: u64,
        /// Requests completed.
        repeated io_serviced: BlkioValue,
        /// Bytes moved.
        repeated io_service_bytes: BlkioValue,
        /// Nanoseconds from dispatch to completion.
        repeated io_service_time: BlkioValue,
        /// Nanoseconds spent in queues.
        repeated io_wait_time: BlkioValue,
        /// Requests merged into others.
        repeated io_merged: BlkioValue,
        /// Requests waiting.
        repeated io_queued: BlkioValue,
    }
}

message! {
    /// What throttling counted for one device, or for all when `device` is absent.
    pub struct BlkioThrottling {
        /// The device.
        optional device: DeviceNumber,
        /// Requests completed.
        repeated io_serviced: BlkioValue,
        /// Bytes moved.
        repeated io_service_bytes: BlkioValue,
    }
}

message! {
    /// A count of one operation.
    pub struct BlkioValue {
        /// The operation.
        optional op: BlkioOperation,
        /// The count, in the unit of the field that holds it.
        optional value: u64,
    }
}

word! {
    /// Operations on block devices.
    pub enum BlkioOperation {
        #[default]
        Unknown,
        Total,
        Read,
        Write,
        Sync,
        Async,
        Discard,
    }
}

message! {
    /// The number of a device.
    pub struct DeviceNumber {
        /// Its driver.
        required major_number: u64,
        /// Its instance.
        required minor_number: u64,
    }
}

message! {
    /// How rates were spread over a window.
    pub struct RateStatistics {
        /// Bytes per second received.
        optional rx_rate: RatePercentiles,
        /// Packets per second received.
        optional rx_packet_rate: RatePercentiles,
        /// Packets per second dropped on receipt.
        optional rx_drop_rate: RatePercentiles,
        /// Receive errors per second.
        optional rx_error_rate: RatePercentiles,
        /// Bytes per second sent.
        optional tx_rate: RatePercentiles,
        /// Packets per second sent.
        optional tx_packet_rate: RatePercentiles,
        /// Packets per second dropped on sending.
        optional tx_drop_rate: RatePercentiles,
        /// Send errors per second.
        optional tx_error_rate: RatePercentiles,
        /// The length of the window.
        optional sampling_window_secs: f64,
        /// The time between two samples.
        optional sampling_interval_secs: f64,
    }
}

message! {
    /// A distribution, in the unit of the field that holds it.
    pub struct RatePercentiles {
        optional min: u64,
        optional max: u64,
        optional p50: u64,
        optional p90: u64,
        optional p95: u64,
        optional p99: u64,
        optional p999: u64,
        optional p9999: u64,
        /// How many samples there were.
        optional samples: u64,
    }
}

message! {
    /// One queueing discipline, in the terms of `tc -s qdisc`.
    pub struct TrafficControlStatistics {
        /// Which one it is.
        required id: String,
        /// Bytes waiting.
        optional backlog: u64,
        /// Bytes sent.
        optional bytes: u64,
        /// Packets dropped.
        optional drops: u64,
        /// Times the limit was met.
        optional overlimits: u64,
        /// Packets sent.
        optional packets: u64,
        /// Packets waiting.
        optional qlen: u64,
        /// Bytes per second.
        optional ratebps: u64,
        /// Packets per second.
        optional ratepps: u64,
        /// Packets put back.
        optional requeues: u64,
    }
}

/// Counters of one protocol, under the names the kernel gives them in `/proc/net/snmp` (`InReceives`,
/// `RetransSegs`, …).
pub type ProtocolCounters = BTreeMap<String, i64>;

message! {
    /// The kernel's counters per protocol.
    pub struct SnmpStatistics {
        /// The line `Ip`.
        optional ip_stats: ProtocolCounters,
        /// The line `Icmp`.
        optional icmp_stats: ProtocolCounters,
        /// The line `Tcp`.
        optional tcp_stats: ProtocolCounters,
        /// The line `Udp`.
        optional udp_stats: ProtocolCounters,
    }
}

message! {
    /// Event counts of one sample, under the names `perf` gives them with `_` for `-`.
    pub struct PerfStatistics {
        /// When the sample began: seconds since the Unix epoch.
        required timestamp: f64,
        /// How long it took, in seconds.
        required duration: f64,
        /// The counts. `cpu_clock` and `task_clock` are milliseconds and may be fractions.
        #[serde(flatten)]
        required events: BTreeMap<String, serde_json::Number>,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statistics_as_mesos_shows_them() {
        let wire = json!({
            "timestamp": 1_388_534_400.0,
            "cpus_limit": 8.25,
            "cpus_nr_periods": 769_021,
            "cpus_throttled_time_secs": 352.597_023_453,
            "mem_limit_bytes": 7_650_410_496u64,
            "blkio_statistics": {"throttling": [{
                "device": {"major_number": 8, "minor_number": 0},
                "io_serviced": [{"op": "READ", "value": 12}],
            }]},
            "net_snmp_statistics": {"tcp_stats": {"RetransSegs": 3, "MaxConn": -1}},
            "net_ephemeral_ports": {"begin": 32768, "end": 33791},
            "net_rate_statistics": {"rx_rate": {"p9999": 12}, "sampling_window_secs": 60.0},
        });
        let statistics: ResourceStatistics = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(statistics.cpus_nr_periods, Some(769_021));
        assert_eq!(serde_json::to_value(&statistics).unwrap(), wire);
    }

    #[test]
    fn event_counts_lie_beside_the_time_of_their_sample() {
        let wire = json!({"timestamp": 1.5, "duration": 10.0, "instructions": u64::MAX, "cpu_clock": 0.5});
        let perf: PerfStatistics = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(perf.events["instructions"].as_u64(), Some(u64::MAX));
        assert_eq!(serde_json::to_value(&perf).unwrap(), wire);
    }

    #[test]
    fn a_moment_without_isolators_is_a_timestamp() {
        let statistics = ResourceStatistics { timestamp: 2.0, ..Default::default() };
        assert_eq!(serde_json::to_value(&statistics).unwrap(), json!({"timestamp": 2.0}));
    }
}
