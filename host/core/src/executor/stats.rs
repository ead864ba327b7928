//! Counts executors, tasks and updates.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Executors;
use super::state::{Entry, ExecutorPhase};
use super::update::TaskState;

/// Counters since the agent started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    updates: [AtomicU64; TaskState::ALL.len()],
    refused: AtomicU64,
    terminated: AtomicU64,
}

/// Executors and tasks of one moment, and what has happened since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutorStats {
    /// Frameworks with an executor that has not ended.
    pub frameworks: u64,
    /// Executors that have not ended, by phase.
    pub executors: BTreeMap<ExecutorPhase, u64>,
    /// Executors that have ended since the start.
    pub terminated: u64,
    /// Tasks that have not ended, by state.
    pub tasks: BTreeMap<TaskState, u64>,
    /// Updates since the start, by state: of the agent, and those of executors that were accepted.
    pub updates: BTreeMap<TaskState, u64>,
    /// Updates of executors that were refused since the start.
    pub refused: u64,
}

impl Counters {
    /// Counts what was written.
    pub(super) fn count(&self, entry: &Entry) {
        match entry {
            Entry::Update(update) => self.updates[update.state as usize].fetch_add(1, Ordering::Relaxed),
            Entry::Terminated { .. } => self.terminated.fetch_add(1, Ordering::Relaxed),
            _ => return,
        };
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl Executors {
    /// Counts executors, tasks and updates.
    #[must_use]
    pub fn stats(&self) -> ExecutorStats {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = ExecutorStats {
            terminated: read(&counters.terminated),
            refused: read(&counters.refused),
            updates: TaskState::ALL.into_iter().zip(counters.updates.iter().map(read)).collect(),
            executors: ExecutorPhase::LIVE.map(|phase| (phase, 0)).into(),
            tasks: TaskState::ALL
                .into_iter()
                .filter(|state| !state.is_terminal())
                .map(|state| (state, 0))
                .collect(),
            ..ExecutorStats::default()
        };
        let mut frameworks = Vec::new();
        self.visit(|executor| {
            let Some(executors) = stats.executors.get_mut(&executor.phase) else { return };
            *executors += 1;
            frameworks.push(executor.framework.id.clone());
            for task in executor.tasks.values() {
                if let Some(tasks) = stats.tasks.get_mut(&task.state) {
                    *tasks += 1;
                }
            }
        });
        frameworks.sort_unstable();
        frameworks.dedup();
        stats.frameworks = u64::try_from(frameworks.len()).unwrap_or(u64::MAX);
        stats
    }
}
