//! Metrics by the names of Mesos agents, for the collectors that exist.

use std::collections::BTreeMap;
use std::fs;

use super::number::count;
use super::snapshot::Snapshot;

impl Snapshot {
    /// Those that have a meaning for an agent without a master. Memory and disk space are in MiB, as in Mesos, except for
    /// `system/`.
    pub(super) fn mesos(&self) -> BTreeMap<String, f64> {
        let mut flat = BTreeMap::new();
        let mut add = |name: &str, value: f64| flat.insert(name.to_owned(), value);
        add("slave/uptime_secs", self.uptime.as_secs_f64());
        add("slave/registered", 0.0);
        let executors = &self.executors;
        add("slave/frameworks_active", count(executors.frameworks));
        for (phase, number) in &executors.executors {
            add(&format!("slave/executors_{}", phase.name().to_lowercase()), count(*number));
        }
        add("slave/executors_terminated", count(executors.terminated));
        let ended = executors.updates.iter().filter(|(state, _)| state.is_terminal());
        for (state, number) in executors.tasks.iter().chain(ended) {
            add(
                &format!("slave/{}", state.name().to_lowercase().replacen("task", "tasks", 1)),
                count(*number),
            );
        }
        add("slave/valid_status_updates", count(executors.updates.values().sum()));
        add("slave/invalid_status_updates", count(executors.refused));
        add("slave/container_launch_errors", count(self.launches.failed));
        add("containerizer/fetcher/task_fetches_succeeded", count(self.fetches.succeeded));
        add("containerizer/fetcher/task_fetches_failed", count(self.fetches.failed));
        add("containerizer/fetcher/cache_size_total_bytes", count(self.fetches.cache_size));
        add("containerizer/fetcher/cache_size_used_bytes", count(self.fetches.cache_used));
        let machine = rustix::system::sysinfo();
        let bytes = |amount: u64| count(amount.saturating_mul(u64::from(machine.mem_unit)));
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let cpus = count(u64::try_from(cpus).unwrap_or(1));
        let mib = (bytes(machine.totalram as u64) / f64::from(1 << 20)).floor();
        for (name, total, used) in [
            ("cpus", cpus, self.reserved_cpus),
            ("mem", mib, self.reserved_mem),
            ("disk", self.disk, self.reserved_disk),
        ] {
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
