//! Metrics by the names of Mesos agents, for the collectors that exist.

use std::collections::BTreeMap;
use std::fs;

use super::number::count;
use super::snapshot::Snapshot;

impl Snapshot {
    /// Those that have a meaning for an agent without a master. Memory is in MiB, as in Mesos, except for `system/`.
    pub(super) fn mesos(&self) -> BTreeMap<String, f64> {
        let mut flat = BTreeMap::new();
        let mut add = |name: &str, value: f64| flat.insert(name.to_owned(), value);
        add("slave/uptime_secs", self.uptime.as_secs_f64());
        add("slave/registered", 0.0);
        add("slave/frameworks_active", 0.0);
        add("slave/container_launch_errors", count(self.launches.failed));
        let machine = rustix::system::sysinfo();
        let bytes = |amount: u64| count(amount.saturating_mul(u64::from(machine.mem_unit)));
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let cpus = count(u64::try_from(cpus).unwrap_or(1));
        let mib = (bytes(machine.totalram as u64) / f64::from(1 << 20)).floor();
        for (name, total, used) in [("cpus", cpus, self.reserved_cpus), ("mem", mib, self.reserved_mem)] {
            add(&format!("slave/{name}_total"), total);
            add(&format!("slave/{name}_used"), used);
            add(&format!("slave/{name}_percent"), if total > 0.0 { used / total } else { 0.0 });
        }
        add("system/cpus_total", cpus);
        add("system/mem_total_bytes", bytes(machine.totalram as u64));
        add("system/mem_free_bytes", bytes(machine.freeram as u64));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let loads = load.split_ascii_whitespace().map_while(|number| number.parse().ok());
        for (name, load) in ["1min", "5min", "15min"].into_iter().zip(loads) {
            add(&format!("system/load_{name}"), load);
        }
        flat
    }
}
