//! A snapshot of everything that the agent counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cofferdam_core::agent::Agent;
use cofferdam_core::executor::ExecutorStats;
use cofferdam_core::fetcher::FetchStats;
use cofferdam_core::model::Phase;
use cofferdam_core::model::view::{KeepersView, PluginView};
use cofferdam_core::stats::LaunchStats;

use super::containers::ContainerUsage;
use super::number::{count, seconds};

/// A snapshot of everything that the agent counts.
#[derive(Debug)]
pub struct Snapshot {
    /// Launches since the start.
    pub launches: LaunchStats,
    /// Files of containers, and the cache of these.
    pub fetches: FetchStats,
    /// Number of containers in each phase of [`Phase::ALL`].
    pub containers: [u64; Phase::ALL.len()],
    /// Executors, their tasks, and updates of these.
    pub executors: ExecutorStats,
    /// The keepers.
    pub keepers: KeepersView,
    /// The plugins with their call counters.
    pub plugins: Vec<PluginView>,
    /// Time since the start.
    pub uptime: Duration,
    /// CPUs that are reserved for containers.
    pub(super) reserved_cpus: f64,
    /// Memory that is reserved for containers, in MiB.
    pub(super) reserved_mem: f64,
    /// Disk space that is reserved for containers, in MiB.
    pub(super) reserved_disk: f64,
    /// Size of the file system of the work directory, in MiB.
    pub(super) disk: f64,
    /// Usage of single containers, if it was asked for.
    pub(super) usage: ContainerUsage,
}

impl Snapshot {
    /// Reads all counters of an agent that was started at `started`.
    #[must_use]
    pub fn take(agent: &Agent, started: Instant) -> Self {
        let mut containers = [0; Phase::ALL.len()];
        let (mut reserved_cpus, mut reserved_mem, mut reserved_disk) = (0.0, 0.0, 0.0);
        for container in agent.containers() {
            containers[container.phase as usize] += 1;
            if container.phase.is_live() {
                reserved_cpus += container.resources.scalar("cpus").unwrap_or_default();
                reserved_mem += container.resources.scalar("mem").unwrap_or_default();
                reserved_disk += container.resources.scalar("disk").unwrap_or_default();
            }
        }
        let disk = rustix::fs::statvfs(&agent.config().work_dir)
            .map_or(0.0, |disk| count(disk.f_blocks.saturating_mul(disk.f_frsize) >> 20));
        Self {
            launches: agent.launch_stats(),
            fetches: agent.fetch_stats(),
            containers,
            executors: agent.executors().stats(),
            keepers: agent.keepers(),
            plugins: agent.plugins(),
            uptime: started.elapsed(),
            reserved_cpus,
            reserved_mem,
            reserved_disk,
            disk,
            usage: ContainerUsage::default(),
        }
    }

    /// As [`Self::take`], with the usage of single containers, for which plugins are asked.
    pub async fn take_with_usage(agent: &Agent, started: Instant) -> Self {
        let usage = ContainerUsage::take(agent).await;
        Self { usage, ..Self::take(agent, started) }
    }

    /// Containers whose files were fetched, by outcome.
    pub(super) fn fetch_outcomes(&self) -> [(&'static str, u64); 2] {
        [("succeeded", self.fetches.succeeded), ("failed", self.fetches.failed)]
    }

    /// Files that were to be cached, by what the cache had of them.
    pub(super) fn cache_lookups(&self) -> [(&'static str, u64); 3] {
        let FetchStats { hits, misses, bypasses, .. } = self.fetches;
        [("hit", hits), ("miss", misses), ("bypass", bypasses)]
    }

    /// Bytes of output that each logger has lost of each stream.
    pub(super) fn lost_output(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.plugins
            .iter()
            .filter_map(|plugin| Some((plugin.name.as_str(), plugin.lost_output?)))
            .flat_map(|(name, lost)| [(name, "stdout", lost.stdout), (name, "stderr", lost.stderr)])
    }

    /// One flat object from names with slashes to numbers, as Mesos lists metrics, and those of Mesos by their names. Histogram
    /// buckets and the usage of single containers are left out.
    #[must_use]
    pub fn flatten(&self) -> BTreeMap<String, f64> {
        let mut flat = self.mesos();
        let mut add = |name: String, value: f64| flat.insert(name, value);
        let launches = &self.launches;
        add("cofferdam_uptime_seconds".into(), self.uptime.as_secs_f64());
        add("cofferdam_launches_total/started".into(), count(launches.started));
        add("cofferdam_launches_total/failed".into(), count(launches.failed));
        add("cofferdam_launch_seconds_count".into(), count(launches.started));
        add("cofferdam_launch_seconds_sum".into(), seconds(launches.micros));
        for (outcome, number) in self.fetch_outcomes() {
            add(format!("cofferdam_fetches_total/{outcome}"), count(number));
        }
        for (result, number) in self.cache_lookups() {
            add(format!("cofferdam_fetch_cache_lookups_total/{result}"), count(number));
        }
        add("cofferdam_fetch_cache_evictions_total".into(), count(self.fetches.evictions));
        add("cofferdam_fetch_cache_files".into(), count(self.fetches.cache_files));
        add("cofferdam_fetch_cache_used_bytes".into(), count(self.fetches.cache_used));
        add("cofferdam_fetch_cache_size_bytes".into(), count(self.fetches.cache_size));
        for (phase, containers) in Phase::ALL.into_iter().zip(self.containers) {
            add(format!("cofferdam_containers/{phase}"), count(containers));
        }
        for (phase, executors) in &self.executors.executors {
            add(format!("cofferdam_executors/{}", phase.name()), count(*executors));
        }
        for (state, tasks) in &self.executors.tasks {
            add(format!("cofferdam_tasks/{}", state.name()), count(*tasks));
        }
        for (state, updates) in &self.executors.updates {
            add(format!("cofferdam_task_updates_total/{}", state.name()), count(*updates));
        }
        add("cofferdam_task_updates_refused_total".into(), count(self.executors.refused));
        add("cofferdam_keepers/current".into(), count(self.keepers.pid.is_some().into()));
        add("cofferdam_keepers/older".into(), count(self.keepers.older));
        add("cofferdam_keepers_lost_total".into(), count(self.keepers.lost));
        for (logger, stream, bytes) in self.lost_output() {
            add(format!("cofferdam_logger_lost_bytes_total/{logger}/{stream}"), count(bytes));
        }
        for plugin in &self.plugins {
            let name = &plugin.name;
            for (method, calls) in &plugin.calls {
                let mut add_call = |metric: &str, value: f64| {
                    flat.insert(format!("cofferdam_{metric}/{name}/{method}"), value);
                };
                add_call("plugin_calls_total", count(calls.calls));
                add_call("plugin_failures_total", count(calls.failures));
                add_call("plugin_timeouts_total", count(calls.timeouts));
                add_call("plugin_panics_total", count(calls.panics));
                add_call("plugin_call_seconds_total", seconds(calls.micros));
            }
        }
        flat
    }
}

#[cfg(test)]
pub(super) mod tests {
    use cofferdam_core::executor::{ExecutorPhase, TaskState};
    use cofferdam_core::model::view::{CallCount, LostOutputView};

    use super::*;

    pub(in crate::telemetry) fn snapshot() -> Snapshot {
        let mut launches = LaunchStats { started: 3, failed: 1, micros: 2_500_000, ..LaunchStats::default() };
        (launches.buckets[0], launches.buckets[2]) = (2, 1);
        let mut containers = [0; Phase::ALL.len()];
        containers[Phase::Running as usize] = 2;
        let calls = CallCount { calls: 7, failures: 1, timeouts: 1, panics: 0, micros: 1500 };
        let plugin = PluginView {
            name: "cgroups/mem".into(),
            kind: "isolator".into(),
            version: "1.0.0".into(),
            api: "1.0.0".into(),
            description: String::new(),
            file: "/p.so".into(),
            sha256: String::new(),
            methods: Vec::new(),
            nesting: true,
            standalone: true,
            health: "ok".into(),
            health_reason: None,
            interrupted_calls: Vec::new(),
            calls: [("prepare".to_owned(), calls)].into(),
            lost_output: None,
        };
        let lost_output = Some(LostOutputView { stdout: 5, stderr: 0 });
        let logger =
            PluginView { name: "journald".into(), calls: BTreeMap::new(), lost_output, ..plugin.clone() };
        let keepers = KeepersView { pid: Some(7), older: 2, lost: 3 };
        let uptime = Duration::from_millis(1500);
        let executors = ExecutorStats {
            frameworks: 1,
            executors: [(ExecutorPhase::Running, 2)].into(),
            terminated: 4,
            tasks: [(TaskState::TaskRunning, 3)].into(),
            updates: [(TaskState::TaskRunning, 8), (TaskState::TaskFinished, 5)].into(),
            refused: 6,
        };
        let fetches = FetchStats {
            succeeded: 4,
            failed: 1,
            hits: 5,
            misses: 6,
            bypasses: 7,
            evictions: 8,
            cache_size: 2048,
            cache_used: 1024,
            cache_files: 9,
        };
        Snapshot {
            launches,
            fetches,
            containers,
            executors,
            keepers,
            plugins: vec![plugin, logger],
            uptime,
            reserved_cpus: 0.5,
            reserved_mem: 64.0,
            reserved_disk: 32.0,
            disk: 128.0,
            usage: ContainerUsage::sample(),
        }
    }

    #[test]
    fn labels_become_parts_of_the_name() {
        let flat = snapshot().flatten();
        for (name, value) in [
            ("cofferdam_uptime_seconds", 1.5),
            ("slave/uptime_secs", 1.5),
            ("slave/container_launch_errors", 1.0),
            ("slave/cpus_used", 0.5),
            ("slave/mem_used", 64.0),
            ("slave/disk_percent", 0.25),
            ("slave/frameworks_active", 1.0),
            ("slave/executors_running", 2.0),
            ("slave/executors_terminated", 4.0),
            ("slave/tasks_running", 3.0),
            ("slave/tasks_finished", 5.0),
            ("slave/valid_status_updates", 13.0),
            ("slave/invalid_status_updates", 6.0),
            ("cofferdam_executors/RUNNING", 2.0),
            ("cofferdam_tasks/TASK_RUNNING", 3.0),
            ("cofferdam_task_updates_total/TASK_FINISHED", 5.0),
            ("cofferdam_launches_total/started", 3.0),
            ("cofferdam_launch_seconds_sum", 2.5),
            ("cofferdam_containers/RUNNING", 2.0),
            ("cofferdam_containers/ENDED", 0.0),
            ("cofferdam_keepers/current", 1.0),
            ("cofferdam_keepers/older", 2.0),
            ("cofferdam_keepers_lost_total", 3.0),
            ("cofferdam_logger_lost_bytes_total/journald/stdout", 5.0),
            ("cofferdam_plugin_calls_total/cgroups/mem/prepare", 7.0),
            ("cofferdam_plugin_call_seconds_total/cgroups/mem/prepare", 0.0015),
        ] {
            assert_eq!(flat.get(name), Some(&value), "{name} in {flat:?}");
        }
        for name in ["slave/cpus_total", "slave/mem_total", "system/mem_total_bytes", "system/load_1min"] {
            assert!(flat.contains_key(name), "{name} in {flat:?}");
        }
    }
}
