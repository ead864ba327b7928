//! What an earlier agent left, taken over.
//!
//! ```text
//! ledger ─▶ what is on record      launcher ─▶ what left traces
//!              │                                  │ no record: undone by name
//!              ▼                                  ▼
//!   ended: kept   runs: goes on   anything else: undone
//! ```
//!
//! A container goes on only if it was on record as running, in this boot, and its first process is the
//! very one. Plugins are told of those before anything is done to any container; one that refuses or is
//! missing harms none.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cofferdam_linux::process::{Process, ProcessError};

use super::cell::Cell;
use super::task::{Running, resume};
use super::{House, PATIENCE, destroy};
use crate::chain::{Brought, Round, Watch};
use crate::container::{Command, ContainerClass, ContainerId, Phase, Reason, Request, Termination};
use crate::launcher;
use crate::ledger::{Cause, Entry, LedgerError, Record, RecordError, now_unix_ms};

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Containers that go on.
    pub(crate) running: usize,
    /// Containers that had ended before.
    pub(crate) ended: usize,
    /// Containers that are being undone.
    pub(crate) undone: usize,
}

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A record cannot be read by this agent, though nothing is wrong with it.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The launcher's traces cannot be read.
    #[error(transparent)]
    Launcher(#[from] launcher::RecoverError),
    /// A thread of the agent died under it.
    #[error("the recovery was lost: {0}")]
    Lost(#[from] crate::errand::Abandoned),
}

/// What is to become of a container.
enum Fate {
    GoesOn(Arc<Process>),
    Undone(Cause),
    Kept,
}

pub(super) async fn recover(house: &Arc<House>) -> Result<Recovered, RecoverError> {
    let found = {
        let house = Arc::clone(house);
        house.clone().errands.run(PATIENCE, move |_| look(&house)).await??
    };
    house.chain.recover().await;
    let mut recovered = Recovered::default();
    for (cell, fate) in found {
        match fate {
            Fate::Kept => recovered.ended += 1,
            Fate::Undone(cause) => {
                recovered.undone += 1;
                let house = Arc::clone(house);
                tokio::spawn(async move { destroy::bring_down(&house, &cell, cause).await });
            }
            Fate::GoesOn(process) => {
                recovered.running += 1;
                go_on(house, cell, process).await;
            }
        }
    }
    Ok(recovered)
}

/// Finds every container and decides on it. Nothing is changed yet but the table.
fn look(house: &House) -> Result<Vec<(Arc<Cell>, Fate)>, RecoverError> {
    let mut found = Vec::new();
    for Entry { id, record } in house.ledger.entries()? {
        let (record, fate) = match record {
            Ok(record) => {
                let fate = decide(house, &record);
                (record, fate)
            }
            // The container may be as healthy as can be; another agent will know.
            Err(error) if !error.is_damage() => return Err(error.into()),
            Err(error) => {
                let trouble = crate::report::chain(&error);
                tracing::error!(container = %id, "undone by name: {trouble}");
                (unknown(house, id), Fate::Undone(Cause::because(Reason::Unrecoverable, trouble)))
            }
        };
        add(house, &mut found, record, fate);
    }
    for id in house.launcher.recover()? {
        let Ok(id) = ContainerId::parse(&id) else { continue };
        if house.table.get(&id).is_none() {
            tracing::warn!(container = %id, "left processes or control groups, and no record; undone");
            let cause = Cause::because(Reason::Unrecoverable, "it left traces and no record");
            let record = unknown(house, id);
            add(house, &mut found, record, Fate::Undone(cause));
        }
    }
    find_forgotten(house, &mut found)?;
    sweep_scratch(house);
    Ok(found)
}

/// Sandboxes of containers that nobody knows: after a reboot, the runtime directory may be gone and the work
/// directory not. Their logs are somebody's, so they are kept as containers that have ended, to be looked at
/// and removed like others.
fn find_forgotten(house: &House, found: &mut Vec<(Arc<Cell>, Fate)>) -> Result<(), RecoverError> {
    for id in named_in(&house.sandboxes()) {
        if house.table.get(&id).is_some() {
            continue;
        }
        let message = "its record is gone: the machine was restarted, or the runtime directory was removed";
        tracing::warn!(container = %id, "{message}; its sandbox is kept until the container is removed");
        let mut record = unknown(house, id);
        record.phase = Phase::Ended;
        record.parties.clear();
        record.termination = Some(Termination {
            reason: Some(Reason::Rebooted),
            message: Some(message.to_owned()),
            at_unix_ms: now_unix_ms(),
            ..Termination::default()
        });
        house.ledger.write(&record)?;
        add(house, found, record, Fate::Kept);
    }
    Ok(())
}

/// The containers that have a folder in `folder`.
fn named_in(folder: &Path) -> Vec<ContainerId> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| ContainerId::parse(name.to_str()?).ok()).collect()
}

fn add(house: &House, found: &mut Vec<(Arc<Cell>, Fate)>, mut record: Record, fate: Fate) {
    // What will be undone must not be told to plugins as running.
    if matches!(fate, Fate::Undone(_)) {
        record.phase = Phase::Destroying;
    }
    for party in record.parties.iter_mut().filter(|party| !party.left_out) {
        // One that was missing or refused has another chance: if it refuses again, it says so.
        party.absent = None;
        if house.chain.plugin(&party.plugin).is_none() && record.phase.is_live() {
            let reason = "it is not in the chain any more; the container goes on without it, and cannot be \
                          cleaned up until it is back";
            tracing::warn!(container = %record.id, plugin = party.plugin, "{reason}");
            party.absent = Some(reason.to_owned());
        }
    }
    if let Some(cell) = house.table.admit(record) {
        cell.set_process(match &fate {
            Fate::GoesOn(process) => Some(Arc::clone(process)),
            // Some launchers have nothing else by which to find the others.
            Fate::Undone(_) => first_process(house, &cell.record()).and_then(Result::ok).map(Arc::new),
            Fate::Kept => None,
        });
        found.push((cell, fate));
    }
}

fn decide(house: &House, record: &Record) -> Fate {
    let undone = |reason, message: &str| Fate::Undone(Cause::because(reason, message));
    match record.phase {
        Phase::Ended => Fate::Kept,
        _ if record.boot_id != house.boot_id => undone(Reason::Rebooted, "the machine was restarted"),
        Phase::Destroying => Fate::Undone(record.cause.clone().unwrap_or_default()),
        Phase::Running if record.request.class == ContainerClass::Debug => {
            undone(Reason::Unrecoverable, "a debug container ends when the agent restarts")
        }
        Phase::Running => match first_process(house, record) {
            Some(Ok(process)) if !process.has_ended().unwrap_or(true) => Fate::GoesOn(Arc::new(process)),
            Some(Ok(_) | Err(ProcessError::Gone { .. } | ProcessError::Recycled { .. })) => {
                Fate::Undone(Cause::by_itself())
            }
            Some(Err(error)) => undone(Reason::Unrecoverable, &crate::report::chain(&error)),
            None => undone(Reason::Unrecoverable, "its record names no process"),
        },
        _ => undone(Reason::LaunchFailed, "the agent died while it was being launched"),
    }
}

/// The first process that is on record, if it can be there at all: numbers of another boot are others'.
fn first_process(house: &House, record: &Record) -> Option<Result<Process, ProcessError>> {
    let born = record.process.filter(|_| record.boot_id == house.boot_id)?;
    Some(Process::open(born.pid, born.start_time))
}

/// A record for a container of which only the id is known.
fn unknown(house: &House, id: ContainerId) -> Record {
    let mut record = Record::new(Request::new(id.clone(), Command::default()), house.boot_id.clone());
    record.sandbox = house.sandbox(&id);
    record.scratch = house.scratch(&id);
    record.cgroups = house.cgroups_of(&id);
    let container = cofferdam_plugin_model::Container::new(id);
    // Whoever may have been asked to prepare it must be asked to clean up.
    record.parties = house.chain.parties(&container);
    record
}

/// Takes over a container that runs.
async fn go_on(house: &Arc<House>, cell: Arc<Cell>, process: Arc<Process>) {
    take_back_update(house, &cell).await;
    let Brought { brought: watches, failed, .. } = watch(house, &cell).await;
    for error in failed {
        // A healthy container is not ended because a plugin is not well.
        tracing::error!(container = %cell.id(), "goes on without being watched for all limits: {error}");
    }
    let running = Running { process, watches };
    tokio::spawn(resume(Arc::clone(house), cell, running));
}

/// Asks the chain what to wait for, whoever cannot say.
async fn watch(house: &Arc<House>, cell: &Arc<Cell>) -> Brought<Vec<Watch>> {
    let _turn = cell.turn().await;
    let case = cell.case();
    let round = Arc::new(Round::of_running(case.parties.clone()));
    let (house2, round2) = (Arc::clone(house), Arc::clone(&round));
    let asked = house
        .chain
        .rounds(
            move |errand| house2.chain.watch(errand, &case, &round2),
            |late| house.chain.go_on_without(&round, late),
        )
        .await;
    if let Err(error) = asked {
        tracing::error!(container = %cell.id(), "is not watched for all limits: {}", crate::report::chain(&error));
    }
    round.take()
}

/// Takes back an update in which the agent died: nobody was told that it succeeded.
async fn take_back_update(house: &House, cell: &Arc<Cell>) {
    let record = cell.record();
    let Some(half_done) = record.updating.clone() else { return };
    let _turn = cell.turn().await;
    tracing::warn!(container = %cell.id(), "an update was not finished, and is taken back");
    let resources = record.resources.clone();
    let trouble = match house.chain.update(&cell.case(), half_done, resources.clone()).await {
        Ok(states) => {
            let amended = house.amend(cell, |record| record.updated(resources, states)).await;
            amended.err().map(|error| crate::report::chain(&error))
        }
        Err(error) => Some(crate::report::chain(&error)),
    };
    if let Some(trouble) = trouble {
        // The next agent tries again.
        tracing::error!(container = %cell.id(), "its limits may be other than its record says: {trouble}");
    }
}

/// Removes scratch directories of containers that nobody knows, or that have ended.
fn sweep_scratch(house: &House) {
    for id in named_in(&house.work_dir.join("scratch").join("containers")) {
        let is_live = house.table.get(&id).is_some_and(|cell| cell.phase().is_live());
        if !is_live && let Err(error) = destroy::remove_tree(&house.scratch(&id)) {
            tracing::warn!(container = %id, "its scratch directory is left over, and cannot be removed: {error}");
        }
    }
}
