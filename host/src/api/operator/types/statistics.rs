//! Resource usage of a container.

use std::collections::BTreeMap;

use super::resource::{DiskPersistence, Range};

message! {
    /// Resource usage of a container. Each isolator reports the fields it measures.
    ///
    /// Counters start at zero when the container starts. The unit is the suffix of each name.
    pub struct ResourceStatistics {
        /// Time of measurement: seconds since the Unix epoch.
        required timestamp: f64,

        /// Number of processes.
        optional processes: u32,
        /// Number of threads.
        optional threads: u32,

        /// CPU time spent in user mode.
        optional cpus_user_time_secs: f64,
        /// CPU time spent in the kernel.
        optional cpus_system_time_secs: f64,
        /// CPU limit, in CPUs.
        optional cpus_limit: f64,
        /// Reserved CPUs.
        optional cpus_soft_limit: f64,
        /// Number of CFS bandwidth periods.
        optional cpus_nr_periods: u32,
        /// Number of CFS bandwidth periods in which it was throttled.
        optional cpus_nr_throttled: u32,
        /// Total duration of throttling.
        optional cpus_throttled_time_secs: f64,

        /// Memory charged to it.
        optional mem_total_bytes: u64,
        /// Memory and swap charged to it.
        optional mem_total_memsw_bytes: u64,
        /// Kernel memory.
        optional mem_kmem_usage_bytes: u64,
        /// Kernel memory for TCP buffers.
        optional mem_kmem_tcp_usage_bytes: u64,
        /// Memory limit.
        optional mem_limit_bytes: u64,
        /// Reserved memory.
        optional mem_soft_limit_bytes: u64,
        /// Page cache (older name).
        optional mem_file_bytes: u64,
        /// Anonymous memory (older name).
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
        /// Number of low memory pressure events.
        optional mem_low_pressure_counter: u64,
        /// Number of medium memory pressure events.
        optional mem_medium_pressure_counter: u64,
        /// Number of critical memory pressure events.
        optional mem_critical_pressure_counter: u64,

        /// Disk limit of its sandbox.
        optional disk_limit_bytes: u64,
        /// Disk usage of its sandbox.
        optional disk_used_bytes: u64,
        /// Disk usage per disk and persistent volume.
        repeated disk_statistics: DiskStatistics,
        /// Block I/O.
        optional blkio_statistics: Blkio,

        /// Hardware and kernel event counters of the last sample.
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
        /// Send rate limit in bytes per second.
        optional net_tx_rate_limit: u64,
        /// Send rate limit during a burst, in bytes per second.
        optional net_tx_burst_rate_limit: u64,
        /// Size of a burst, in bytes.
        optional net_tx_burst_size: u64,
        /// Receive rate limit in bytes per second.
        optional net_rx_rate_limit: u64,
        /// Receive rate limit during a burst, in bytes per second.
        optional net_rx_burst_rate_limit: u64,
        /// Size of a burst, in bytes.
        optional net_rx_burst_size: u64,
        /// Distribution of its rates over the last window.
        optional net_rate_statistics: RateStatistics,
        /// Source ports of its outgoing connections.
        optional net_ephemeral_ports: Range,
        /// Median of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p50: f64,
        /// 90th percentile of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p90: f64,
        /// 95th percentile of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p95: f64,
        /// 99th percentile of TCP round-trip times.
        optional net_tcp_rtt_microsecs_p99: f64,
        /// Open TCP connections.
        optional net_tcp_active_connections: f64,
        /// TCP connections in TIME_WAIT.
        optional net_tcp_time_wait_connections: f64,
        /// Statistics per queueing discipline.
        repeated net_traffic_control_statistics: TrafficControlStatistics,
        /// The kernel's protocol counters.
        optional net_snmp_statistics: SnmpStatistics,

        /// Statistics of plugins that Mesos has no field for.
        #[serde(flatten)]
        required others: BTreeMap<String, serde_json::Value>,
    }
}

message! {
    /// Usage of one disk.
    pub struct DiskStatistics {
        /// The disk, verbatim; that of the sandboxes when absent.
        optional source: serde_json::Value,
        /// The persistent volume, if it is one.
        optional persistence: DiskPersistence,
        optional limit_bytes: u64,
        optional used_bytes: u64,
    }
}

message! {
    /// Block I/O statistics by policy.
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
    /// CFQ statistics of one device, or of all when `device` is absent.
    pub struct BlkioCfq {
        /// The device.
        optional device: DeviceNumber,
        /// Sectors of 512 bytes transferred.
        optional sectors: u64,
        /// Milliseconds of device time.
        optional time: u64,
        /// Requests completed.
        repeated io_serviced: BlkioValue,
        /// Bytes transferred.
        repeated io_service_bytes: BlkioValue,
        /// Nanoseconds from dispatch to completion.
        repeated io_service_time: BlkioValue,
        /// Nanoseconds spent in queues.
        repeated io_wait_time: BlkioValue,
        /// Requests merged into others.
        repeated io_merged: BlkioValue,
        /// Requests queued.
        repeated io_queued: BlkioValue,
    }
}

message! {
    /// Throttling statistics of one device, or of all when `device` is absent.
    pub struct BlkioThrottling {
        /// The device.
        optional device: DeviceNumber,
        /// Requests completed.
        repeated io_serviced: BlkioValue,
        /// Bytes transferred.
        repeated io_service_bytes: BlkioValue,
    }
}

message! {
    /// Counter of one operation.
    pub struct BlkioValue {
        /// The operation.
        optional op: BlkioOperation,
        /// Value, in the unit of the field that contains it.
        optional value: u64,
    }
}

word! {
    /// Operation on a block device.
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
    /// A device number.
    pub struct DeviceNumber {
        required major_number: u64,
        required minor_number: u64,
    }
}

message! {
    /// Distribution of rates over a window.
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
        /// Length of the window.
        optional sampling_window_secs: f64,
        /// Interval between samples.
        optional sampling_interval_secs: f64,
    }
}

message! {
    /// A distribution, in the unit of the field that contains it.
    pub struct RatePercentiles {
        optional min: u64,
        optional max: u64,
        optional p50: u64,
        optional p90: u64,
        optional p95: u64,
        optional p99: u64,
        optional p999: u64,
        optional p9999: u64,
        /// Number of samples.
        optional samples: u64,
    }
}

message! {
    /// Statistics of a queueing discipline, as in `tc -s qdisc`.
    pub struct TrafficControlStatistics {
        /// Its id.
        required id: String,
        /// Bytes queued.
        optional backlog: u64,
        /// Bytes sent.
        optional bytes: u64,
        /// Packets dropped.
        optional drops: u64,
        /// Number of times the limit was exceeded.
        optional overlimits: u64,
        /// Packets sent.
        optional packets: u64,
        /// Packets queued.
        optional qlen: u64,
        /// Bytes per second.
        optional ratebps: u64,
        /// Packets per second.
        optional ratepps: u64,
        /// Packets requeued.
        optional requeues: u64,
    }
}

/// Counters of one protocol, named as in `/proc/net/snmp` (`InReceives`, `RetransSegs`, …).
pub type ProtocolCounters = BTreeMap<String, i64>;

message! {
    /// The kernel's protocol counters.
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
    /// Event counters of one sample, named as in perf(1) with `_` for `-`.
    pub struct PerfStatistics {
        /// Start of the sample: seconds since the Unix epoch.
        required timestamp: f64,
        /// Duration of the sample in seconds.
        required duration: f64,
        /// The counters. `cpu_clock` and `task_clock` are in milliseconds and may be fractional.
        #[serde(flatten)]
        required events: BTreeMap<String, serde_json::Number>,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statistics_survive_a_round_trip() {
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
    fn event_counters_survive_a_round_trip() {
        let wire = json!({"timestamp": 1.5, "duration": 10.0, "instructions": u64::MAX, "cpu_clock": 0.5});
        let perf: PerfStatistics = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(perf.events["instructions"].as_u64(), Some(u64::MAX));
        assert_eq!(serde_json::to_value(&perf).unwrap(), wire);
    }

    #[test]
    fn empty_statistics_have_a_timestamp() {
        let statistics = ResourceStatistics { timestamp: 2.0, ..Default::default() };
        assert_eq!(serde_json::to_value(&statistics).unwrap(), json!({"timestamp": 2.0}));
    }
}
