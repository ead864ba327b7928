//! Removal of containers from the engine: of those that have ended, after a delay, and of those that nobody knows any more.
//!
//! What is to be removed is found by its labels, with the record of its container or without one. So nothing has to be
//! remembered over restarts, and a container that the engine has created for a request that was cancelled is found as well.
//! Its name has to be the one that the agent gives: labels are copied from containers to images, and from these to others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::record::Handle;
use super::spec::{AGENT_LABEL, CONTAINER_LABEL, LAUNCH_LABEL, PREFIX};
use super::{Shared, engine_name, is_named_after, older_names};
use crate::engine::{ContainerSummary, EngineError};
use crate::error_chain;
use crate::model::{ContainerId, now_unix_ms};

/// The longest pause between two searches.
const PAUSE: Duration = Duration::from_secs(60);

/// The shortest one.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Removes the container of a handle from the engine, if it is there.
pub(super) async fn remove(shared: &Shared, handle: &Handle) -> Result<(), EngineError> {
    let record = handle.record();
    if !record.part.requested {
        return Ok(());
    }
    // Its name may be that of a container of somebody else.
    let found = shared.backend.engine.container(&engine_name(&record)).await?;
    if let Some(found) = found.filter(|found| shared.owns(found, &record)) {
        match shared.backend.engine.remove(&found.id).await {
            // It is being removed already.
            Err(error) if error.is_conflict() => shared.backend.engine.wait_removed(&found.id).await?,
            removed => removed?,
        }
    }
    handle.update_in_memory(|record| record.part.requested = false);
    Ok(())
}

/// Starts the task that removes what is to be removed, for as long as the containerizer exists.
pub(super) fn start(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    tokio::spawn(async move {
        let (mut logged, mut older) = (HashSet::new(), Some(Instant::now()));
        let mut delays = Delays::default();
        while let Some(pause) = sweep(&weak, &mut delays).await {
            let Some(shared) = weak.upgrade() else { return };
            if older.is_some_and(|at| at <= Instant::now()) {
                let complete = remove_older(&shared, &mut logged).await;
                older = (!complete).then(|| Instant::now() + PAUSE);
            }
            let woken = async move { shared.backend.sweep.notified().await };
            drop(tokio::time::timeout(pause, woken).await);
        }
    });
}

/// What is left of the delays of containers that have ended, by their ids in the engine, and since when. The system's clock,
/// which may be set, only counts when a container is found for the first time.
#[derive(Debug, Default)]
struct Delays(HashMap<String, (Instant, Duration)>);

impl Delays {
    /// What is left of a delay, which was `left` if the container is found for the first time.
    fn left(&mut self, engine_id: &str, left: Duration) -> Duration {
        let (since, left) = *self.0.entry(engine_id.to_owned()).or_insert_with(|| (Instant::now(), left));
        left.saturating_sub(since.elapsed())
    }

    fn retain(&mut self, listed: &[ContainerSummary]) {
        let listed: HashSet<&str> = listed.iter().map(|container| container.id.as_str()).collect();
        self.0.retain(|id, _| listed.contains(id.as_str()));
    }
}

/// Searches once. Returns when to search again. `None` if the containerizer does not exist any more.
async fn sweep(shared: &Weak<Shared>, delays: &mut Delays) -> Option<Duration> {
    let shared = shared.upgrade()?;
    let listed = shared.backend.engine.containers(&format!("{AGENT_LABEL}={}", shared.backend.agent)).await;
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => {
            tracing::debug!("cannot search for containers to remove: {}", error_chain::describe(&error));
            return Some(PAUSE);
        }
    };
    delays.retain(&listed);
    let mut next = PAUSE;
    for container in listed {
        match due_in(&shared, &container, delays) {
            Some(Duration::ZERO) => {
                if let Err(error) = shared.backend.engine.remove(&container.id).await {
                    let error = error_chain::describe(&error);
                    tracing::warn!(
                        engine_id = container.id,
                        "cannot remove a container from the engine yet: {error}"
                    );
                } else {
                    tracing::debug!(engine_id = container.id, "container removed from the engine");
                }
            }
            Some(due) => next = next.min(due),
            None => {}
        }
    }
    Some(next.max(MIN_PAUSE))
}

/// Removes what agents of Mesos with the id of this one have left, which has no labels. Returns false if it has to be searched
/// for again.
async fn remove_older(shared: &Shared, logged: &mut HashSet<String>) -> bool {
    let listed = match shared.backend.engine.containers_named(PREFIX).await {
        Ok(listed) => listed,
        Err(error) => {
            let error = error_chain::describe(&error);
            tracing::debug!("cannot search for containers of agents of Mesos: {error}");
            return false;
        }
    };
    let mut complete = true;
    let unlabelled = listed.iter().filter(|container| !container.labels.contains_key(AGENT_LABEL));
    for container in unlabelled {
        let Some(name) = container.names.iter().find_map(|name| older_names::parse(name)) else { continue };
        let (id, names) = (&name.id, container.names.join(", "));
        if name.agent != Some(shared.backend.agent.as_str()) {
            if logged.insert(names.clone()) {
                tracing::warn!(
                    names,
                    "left alone: it may be of another agent; if it is not, remove it by the engine's client"
                );
            }
        } else if shared.backend.config.kill_orphans && shared.foreign.containing(id).is_none() {
            match shared.backend.engine.remove(&container.id).await {
                Ok(()) => {
                    tracing::warn!(names, "removed: a container of an agent of Mesos, without a record")
                }
                Err(error) => {
                    let error = error_chain::describe(&error);
                    tracing::warn!(names, "cannot remove a container of an agent of Mesos yet: {error}");
                    complete = false;
                }
            }
        }
    }
    complete
}

/// When a container of this agent is to be removed. `None` as long as it is in use, and if it is not the agent's.
fn due_in(shared: &Shared, container: &ContainerSummary, delays: &mut Delays) -> Option<Duration> {
    let id = container.labels.get(CONTAINER_LABEL).and_then(|id| ContainerId::parse(id).ok())?;
    if !has_name_of(container, &id) || shared.foreign.containing(&id).is_some() {
        return None;
    }
    let record = shared.table.get(&id).map(|handle| handle.record());
    let launch = container.labels.get(LAUNCH_LABEL);
    let is_of = |number: u64| number == 0 || launch.is_some_and(|launch| *launch == number.to_string());
    match record.filter(|record| is_of(record.created_unix_ms)) {
        Some(record) if record.part.engine_id.as_ref().is_some_and(|id| *id != container.id) => None,
        Some(record) if record.phase.is_live() => None,
        // Of a launch that has failed: it has never run.
        Some(_) if container.state == "created" => Some(Duration::ZERO),
        // Only its sandbox was found after the loss of its record.
        Some(record) if record.created_unix_ms == 0 && may_run(container) => {
            shared.backend.config.kill_orphans.then_some(Duration::ZERO)
        }
        Some(record) => {
            let ended = record.termination.as_ref().map_or(0, |termination| termination.at_unix_ms);
            let left = left_of(shared.backend.config.remove_delay, ended, now_unix_ms());
            Some(delays.left(&container.id, left))
        }
        // It has never run: of a launch that was given up, or whose agent died.
        None if container.state == "created" => Some(Duration::ZERO),
        None if shared.backend.config.kill_orphans => {
            let names = container.names.join(", ");
            tracing::warn!(
                engine_id = container.id,
                names,
                "a container of the engine without a record; removed"
            );
            Some(Duration::ZERO)
        }
        None => None,
    }
}

/// What is left of the delay of a container that has ended, by the system's clock.
fn left_of(delay: Duration, ended_unix_ms: u64, now_unix_ms: u64) -> Duration {
    delay.saturating_sub(Duration::from_millis(now_unix_ms.saturating_sub(ended_unix_ms)))
}

/// Whether a container has the name that the agent gives to one of that id. Links to it are other names.
fn has_name_of(container: &ContainerSummary, id: &ContainerId) -> bool {
    container.names.iter().any(|name| is_named_after(name, id))
}

/// Whether a container may have processes: it is in any state but those that are known to have none.
fn may_run(container: &ContainerSummary) -> bool {
    !["created", "exited", "dead"].contains(&container.state.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(names: &[&str], state: &str) -> ContainerSummary {
        ContainerSummary {
            id: "0f".repeat(32),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            labels: std::collections::BTreeMap::default(),
            state: state.to_owned(),
        }
    }

    #[test]
    fn a_container_is_of_the_agent_by_its_exact_name_only() {
        let id = ContainerId::parse("web").unwrap();
        for (names, expected) in [
            (&["/mesos-web"][..], true),
            (&["/other/alias", "/mesos-web"], true),
            (&["/mesos-web.executor"], true),
            (&["/mesos-web2"], false),
            (&["/mesos-web.other"], false),
            (&["/my-mesos-web", "/other/mesos-web"], false),
            (&[], false),
        ] {
            assert_eq!(has_name_of(&container(names, "exited"), &id), expected, "{names:?}");
        }
    }

    #[test]
    fn what_has_passed_of_a_delay_counts_for_the_next_agent_too() {
        let (delay, ended) = (Duration::from_secs(60), 1_000_000);
        for (now, left) in [
            (ended, 60_000),
            (ended + 1, 59_999),
            (ended + 45_000, 15_000),
            (ended + 60_000, 0),
            (ended + 3_600_000, 0),
            // The clock was set back.
            (ended - 45_000, 60_000),
        ] {
            assert_eq!(left_of(delay, ended, now), Duration::from_millis(left), "{now}");
        }
        // The next agent finds the container for the first time, and waits for the rest.
        let rest = left_of(delay, ended, ended + 45_000);
        assert!(Delays::default().left(&container(&[], "exited").id, rest) <= rest);
    }

    #[test]
    fn a_delay_does_not_depend_on_the_clock_once_it_has_begun() {
        let hour = Duration::from_secs(3600);
        let mut delays = Delays::default();
        let engine_id = container(&[], "exited").id;
        assert!(delays.left(&engine_id, hour) <= hour);
        // The clock was set, forward or back.
        for left in [Duration::ZERO, 24 * hour] {
            assert!(!delays.left(&engine_id, left).is_zero());
            assert!(delays.left(&engine_id, left) <= hour);
        }
        delays.retain(&[container(&[], "exited")]);
        assert!(!delays.left(&engine_id, Duration::ZERO).is_zero());
        delays.retain(&[]);
        assert!(delays.left(&engine_id, Duration::ZERO).is_zero());
    }

    #[test]
    fn a_container_in_an_unknown_state_may_run() {
        for state in ["running", "paused", "restarting", "removing", "", "stopping"] {
            assert!(may_run(&container(&[], state)), "{state}");
        }
        for state in ["created", "exited", "dead"] {
            assert!(!may_run(&container(&[], state)), "{state}");
        }
    }
}
