//! Recovery of the containers of an earlier agent.
//!
//! ```text
//! ledger ─▶ records            backend ─▶ traces
//!              │                              │ without a record: destroyed by id
//!              ▼                              ▼
//!   ended: kept   running: continues   anything else: destroyed
//! ```
//!
//! A record of another version, and what is no record, is left alone with everything of its container: see `../foreign.rs`.
//!
//! Plugins recover before anything is done to any container; one that refuses or is missing harms none.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use cofferdam_linux::process::Process;

use super::launch::Launch;
use super::teardown;
use super::update::Update;
use super::{Handle, STALL_WARNING, Shared, task_name};
use crate::containerizer::record_part::RecordPart;
use crate::containerizer::sandboxes::ids_in;
use crate::containerizer::{RecoverError, Recovered, Recovery};
use crate::error_chain;
use crate::ledger::{Entry, RecordError};
use crate::model::{Cause, Command, ContainerId, Phase, Reason, Record, Request, Termination, now_unix_ms};
use crate::parallel;

/// How a backend takes over the containers of an earlier agent.
pub(crate) trait Recover: Launch + Update {
    /// Its part of the record of a container of which only the id is known.
    fn unknown(shared: &Shared<Self>, id: &ContainerId) -> Self::Part;

    /// What happens to a container, and its first process if there is one. An error keeps the agent from starting.
    fn decide(
        shared: &Shared<Self>,
        record: &Record<Self::Part>,
    ) -> Result<(Option<Process>, RecoveryAction), RecoverError>;

    /// Keeps the first process of a container that was found.
    fn keep_process(shared: &Shared<Self>, handle: &Handle<Self>, process: Process);

    /// Containers of which there are traces outside of the ledger.
    fn traces(_shared: &Shared<Self>) -> Result<Vec<ContainerId>, RecoverError> {
        Ok(Vec::new())
    }

    /// Removes what is left of containers that have ended. `live` are the records of all others.
    fn sweep(_shared: &Shared<Self>, _live: &[Arc<Record<Self::Part>>]) -> Result<(), RecoverError> {
        Ok(())
    }

    /// Supervises the containers that are running, in tasks. Called once, also if there are none.
    fn resume(shared: &Arc<Shared<Self>>, running: Vec<Arc<Handle<Self>>>)
    -> impl Future<Output = ()> + Send;
}

/// What happens to a container after a restart.
pub(crate) enum RecoveryAction {
    /// It is running, and is supervised again.
    Continue,
    /// It is destroyed, or its destruction is completed.
    Destroy(Cause),
    /// It has ended, and is kept until it is removed.
    Keep,
}

impl RecoveryAction {
    pub(crate) fn destroy(reason: Reason, message: &str) -> Self {
        Self::Destroy(Cause::because(reason, message))
    }
}

type Found<B> = Vec<(Arc<Handle<B>>, RecoveryAction)>;

/// The containers that were found, and what happens to each.
pub(super) struct FoundContainers<B: Recover> {
    shared: Arc<Shared<B>>,
    found: Found<B>,
}

/// Finds every container, and decides what happens to it.
pub(super) async fn find<B: Recover>(
    shared: &Arc<Shared<B>>,
    entries: Vec<Entry>,
    recorded: Arc<BTreeSet<ContainerId>>,
) -> Result<FoundContainers<B>, RecoverError> {
    let scanning = Arc::clone(shared);
    let found = shared.pool.run(STALL_WARNING, move |_| scan(&scanning, entries, &recorded)).await??;
    Ok(FoundContainers { shared: Arc::clone(shared), found })
}

#[async_trait]
impl<B: Recover> Recovery for FoundContainers<B> {
    async fn resume(self: Box<Self>) -> Recovered {
        let Self { shared, found } = *self;
        let mut recovered = Recovered::default();
        let mut running = Vec::new();
        for (handle, action) in found {
            match action {
                RecoveryAction::Keep => {
                    recovered.ended += 1;
                    teardown::finish_later(&shared, &handle);
                }
                RecoveryAction::Destroy(cause) => {
                    recovered.destroyed += 1;
                    let (shared2, task) = (Arc::clone(&shared), task_name(handle.id()));
                    let destroy = async move { teardown::bring_down(&shared2, &handle, cause).await };
                    shared.fatal.spawn(task, destroy);
                }
                RecoveryAction::Continue => {
                    recovered.running += 1;
                    running.push(handle);
                }
            }
        }
        B::resume(&shared, running).await;
        recovered
    }
}

/// Finds every container and decides what happens to it. Destroys none.
fn scan<B: Recover>(
    shared: &Shared<B>,
    entries: Vec<Entry>,
    recorded: &BTreeSet<ContainerId>,
) -> Result<Found<B>, RecoverError> {
    let mut found = Vec::new();
    let decode = |Entry { id, record }| {
        let record = record.and_then(|record| record.of(B::NAME));
        (id, record)
    };
    for (id, record) in parallel::map_owned(entries, decode) {
        // Nested in one that is left alone.
        if shared.foreign.containing(&id).is_some() {
            continue;
        }
        find_recorded(shared, &mut found, id, record)?;
    }
    for id in B::traces(shared)? {
        if shared.table.get(&id).is_none() && shared.foreign.containing(&id).is_none() {
            tracing::warn!(container = %id, "processes or cgroups without a record; destroyed");
            let message = "it has processes or cgroups and no record";
            let action = RecoveryAction::destroy(Reason::Unrecoverable, message);
            insert(shared, &mut found, unknown(shared, id), None, action);
        }
    }
    find_sandboxes(shared, recorded, &mut found)?;
    let mut live: Vec<_> = found.iter().map(|(handle, _)| handle.record()).collect();
    live.retain(|record| record.phase.is_live());
    for record in &live {
        if let Err(error) = shared.ledger.reserve(&record.id) {
            let error = error_chain::describe(&error);
            tracing::error!(container = %record.id, "its end may not be recorded: {error}");
        }
    }
    B::sweep(shared, &live)?;
    Ok(found)
}

/// Finds a container that has a record.
fn find_recorded<B: Recover>(
    shared: &Shared<B>,
    found: &mut Found<B>,
    id: ContainerId,
    record: Result<Record<B::Part>, RecordError>,
) -> Result<(), RecoverError> {
    match record {
        Ok(record) => {
            let (process, action) = B::decide(shared, &record)?;
            insert(shared, found, record, process, action);
        }
        // The container may be healthy; another version of the agent can tell.
        Err(error) if !error.is_damage() => {
            let reason = error_chain::describe(&error);
            let directory = shared.ledger.directory(&id);
            tracing::error!(container = %id, directory = %directory.display(), "left alone: {reason}");
            shared.foreign.add(id, reason);
        }
        Err(error) => {
            let reason = error_chain::describe(&error);
            tracing::error!(container = %id, "destroyed without a record: {reason}");
            let action = RecoveryAction::destroy(Reason::Unrecoverable, &reason);
            insert(shared, found, unknown(shared, id), None, action);
        }
    }
    Ok(())
}

/// Sandboxes without a record: after a reboot, the runtime directory may be gone but not the work directory. Their
/// logs are kept, as those of containers that have ended, until they are removed.
fn find_sandboxes<B: Recover>(
    shared: &Shared<B>,
    recorded: &BTreeSet<ContainerId>,
    found: &mut Found<B>,
) -> Result<(), RecoverError> {
    for id in ids_in(&shared.sandboxes())? {
        // It may be another containerizer's that it is recorded for.
        let is_known = recorded.contains(&id) || shared.table.get(&id).is_some();
        if is_known || shared.foreign.containing(&id).is_some() {
            continue;
        }
        let message = "its record is gone: the machine was rebooted, or the runtime directory was removed";
        tracing::warn!(container = %id, "{message}; its sandbox is kept until the container is removed");
        let mut record = unknown(shared, id);
        record.phase = Phase::Ended;
        record.part.participants_mut().clear();
        record.termination = Some(Termination {
            reason: Some(Reason::Rebooted),
            message: Some(message.to_owned()),
            at_unix_ms: now_unix_ms(),
            ..Termination::default()
        });
        if let Err(error) = shared.ledger.write(&record) {
            // The next agent finds the same.
            tracing::warn!(container = %record.id, "{}", error_chain::describe(&error));
        }
        insert(shared, found, record, None, RecoveryAction::Keep);
    }
    Ok(())
}

/// Adds a container to the table.
fn insert<B: Recover>(
    shared: &Shared<B>,
    found: &mut Found<B>,
    mut record: Record<B::Part>,
    process: Option<Process>,
    action: RecoveryAction,
) {
    // Plugins must not recover it as running.
    if matches!(action, RecoveryAction::Destroy(_)) {
        record.phase = Phase::Destroying;
    }
    let (id, live) = (record.id.clone(), record.phase.is_live());
    let participants = record.part.participants_mut().iter_mut();
    for participant in participants.filter(|participant| !participant.excluded) {
        // A plugin that refused or was missing may serve it again; if it refuses again, its verdict says so.
        participant.unavailable = None;
        if shared.chain.plugin(&participant.plugin).is_none() && live {
            let reason = "it is not in the chain any more; the container continues without it, and cannot be \
                          cleaned up until it is back or its end is forced";
            tracing::warn!(container = %id, plugin = participant.plugin, "{reason}");
            participant.unavailable = Some(reason.to_owned());
        }
    }
    if let Some(handle) = shared.table.insert(record) {
        if let Some(process) = process {
            B::keep_process(shared, &handle, process);
        }
        found.push((handle, action));
    }
}

/// A record for a container of which only the id is known.
fn unknown<B: Recover>(shared: &Shared<B>, id: ContainerId) -> Record<B::Part> {
    let part = B::unknown(shared, &id);
    let sandbox = shared.sandbox(&id);
    let request = Request::new(id, Command::default());
    let mut record = Record::new(B::NAME, request, shared.boot_id.clone(), part);
    record.created_unix_ms = 0;
    record.sandbox = sandbox;
    record
}
