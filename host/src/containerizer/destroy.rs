//! The way down: the same for failure, kill, limit, own end and restart.
//!
//! ```text
//! record the cause ─▶ children ─▶ processes ─▶ exit status ─▶ chain, backwards ─▶ cgroup ─▶ scratch ─▶ record
//! ```
//!
//! It never asks how far the container came: every step may be taken again, and does nothing where there
//! is nothing to do. A step that fails is taken again, later and later, and the container stays visible
//! with the reason until it succeeds: it is gone only when everything is.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_init::report::Status;

use super::cell::Cell;
use super::{House, PATIENCE};
use crate::container::{Event, Phase, Reason, Termination};
use crate::ledger::{Cause, Record, now_unix_ms};

/// How long to wait before a failed step is taken again: first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// Ends and undoes a container, keeps how it ended, and tells whoever waits.
pub(super) async fn bring_down(house: &Arc<House>, cell: &Arc<Cell>, cause: Cause) {
    let termination = undo(house, cell, cause).await;
    tracing::info!(
        container = %cell.id(),
        status = termination.ended().map(|ended| ended.to_string()),
        reason = termination.reason.as_ref().map(Reason::mesos_name),
        "ended"
    );
    let kept = termination.clone();
    insist(house, cell, "keep how it ended", move |house, cell| {
        let termination = kept.clone();
        cell.amend(&house.ledger, |record| {
            record.phase = Phase::Ended;
            record.process = None;
            record.termination = Some(termination);
        })
    })
    .await;
    cell.announce(termination);
}

/// Undoes a launch that failed, and forgets that it was tried.
pub(super) async fn undo_launch(house: &Arc<House>, cell: &Arc<Cell>, cause: Cause) {
    let mut termination = undo(house, cell, cause).await;
    termination.status = None;
    insist(house, cell, "remove its sandbox", |_, cell| remove_tree(&cell.record().sandbox)).await;
    insist(house, cell, "remove its record", |house, cell| house.ledger.remove(cell.id())).await;
    house.table.forget(cell.id());
    cell.note(|record| {
        record.phase = Phase::Ended;
        record.termination = Some(termination.clone());
    });
    cell.announce(termination);
}

/// Every step but the last: nothing is left of the container but its record and its sandbox.
async fn undo(house: &Arc<House>, cell: &Arc<Cell>, cause: Cause) -> Termination {
    // From here on it is on its way down, whoever else wishes so.
    cell.end(cause.clone());
    let phase = cell.phase().after(Event::Ending).unwrap_or(Phase::Destroying);
    let kept = cause.clone();
    let end = move |record: &mut Record| {
        record.phase = phase;
        record.cause = Some(kept);
    };
    // An end must not wait for a full disk: it may be what makes room. All that an agent would not know that came
    // after this one is who wished for it.
    if let Err(error) = house.amend(cell, end.clone()).await {
        tracing::warn!(container = %cell.id(), "ends without a word of why on disk: {}", crate::report::chain(&error));
        cell.note(end);
    }
    end_children(house, cell, &cause).await;
    insist(house, cell, "end its processes", |house, cell| {
        house.launcher.destroy(cell.id().as_str(), cell.process().as_deref())
    })
    .await;
    let status = collect(house, cell).await;
    clean_up(house, cell).await;
    insist(house, cell, "remove its control groups", |house, cell| {
        house.launcher.cleanup(cell.id().as_str())
    })
    .await;
    insist(house, cell, "remove its scratch directory", |_, cell| remove_tree(&cell.record().scratch)).await;
    Termination {
        // Nobody was told that the command of a launch that failed ever ran.
        status: status.filter(|_| cause.reason != Some(Reason::LaunchFailed)),
        reason: cause.reason,
        message: cause.message,
        limited: cause.limited,
        at_unix_ms: now_unix_ms(),
    }
}

/// Ends all containers nested in this one, and waits for them.
async fn end_children(house: &House, cell: &Cell, cause: &Cause) {
    let children = house.table.children(cell.id());
    for child in &children {
        let message = match &cause.message {
            Some(message) => format!("container `{}` ended: {message}", cell.id()),
            None => format!("container `{}` ended", cell.id()),
        };
        // They share the fate of their parent, and its reason where a limit was the reason.
        let reason = match &cause.reason {
            Some(limitation @ Reason::Limitation(_)) => limitation.clone(),
            _ => Reason::ParentEnded,
        };
        child.end(Cause { reason: Some(reason), message: Some(message), limited: cause.limited.clone() });
    }
    for child in children {
        if child.phase().is_live() {
            child.ended().await;
        }
    }
}

/// Reaps the first process and reads what it left. All processes are gone.
///
/// A first process that was killed could not leave anything: then its command was killed with it.
async fn collect(house: &Arc<House>, cell: &Arc<Cell>) -> Option<i32> {
    let (house2, cell2) = (Arc::clone(house), Arc::clone(cell));
    let read = house.errands.run(PATIENCE, move |_| {
        let (house, cell) = (house2, cell2);
        if let Some(process) = cell.process() {
            // One that is not our child, after a restart, is reaped by whoever took it over.
            drop(process.wait(Some(PATIENCE)).and_then(|_| process.reap()));
        }
        match fs::read(house.ledger.status_file(cell.id())).map(|content| Status::parse(&content)) {
            Ok(Status::Ended(status)) => Some(status),
            Ok(Status::NotStarted { .. }) => None,
            // It never got as far as having a first process.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(container = %cell.id(), "how its command ended cannot be read: {error}");
                None
            }
            Ok(Status::Open | Status::Garbled) => cell.record().process.map(|_| libc::SIGKILL),
        }
    });
    let status = read.await.ok().flatten();
    cell.set_process(None);
    status
}

/// Lets every plugin undo what it did, until every one has.
async fn clean_up(house: &House, cell: &Cell) {
    let mut pause = AGAIN.0;
    loop {
        let failed = {
            let _turn = cell.turn().await;
            house.chain.cleanup(&cell.case()).await
        };
        if failed.is_empty() {
            cell.set_stuck(Vec::new());
            return;
        }
        for error in &failed {
            tracing::warn!(container = %cell.id(), "not cleaned up yet: {error}");
        }
        cell.set_stuck(failed.iter().map(ToString::to_string).collect());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Takes a step until it succeeds.
async fn insist<E>(
    house: &Arc<House>,
    cell: &Arc<Cell>,
    what: &str,
    step: impl Fn(&House, &Cell) -> Result<(), E> + Clone + Send + 'static,
) where
    E: std::error::Error + Send + 'static,
{
    let mut pause = AGAIN.0;
    loop {
        let (house2, cell2, step) = (Arc::clone(house), Arc::clone(cell), step.clone());
        let taken = house
            .errands
            .run(PATIENCE, move |_| step(&house2, &cell2).map_err(|error| crate::report::chain(&error)));
        let trouble = match taken.await {
            Ok(Ok(())) => {
                cell.set_stuck(Vec::new());
                return;
            }
            Ok(Err(trouble)) => trouble,
            Err(abandoned) => abandoned.to_string(),
        };
        tracing::warn!(container = %cell.id(), "cannot {what} yet: {trouble}");
        cell.set_stuck(vec![format!("cannot {what}: {trouble}")]);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Removes a folder with all that is in it, never following a symbolic link. One that is not there is
/// removed already.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
