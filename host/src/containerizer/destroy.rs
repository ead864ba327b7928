//! The way down: the same for failure, kill, limit, own end and restart.
//!
//! ```text
//! children ─▶ the cause on record ─▶ processes ─▶ exit status ─▶ chain, backwards ─▶ cgroup ─▶ scratch ─▶ the end on record
//! ```
//!
//! It never asks how far the container came: every step may be taken again, and does nothing where there is nothing
//! to do. All steps are taken in one go on one thread. When one fails, the way is walked again from its beginning,
//! later and later, and the container stays visible with the reason until it succeeds: it is gone only when
//! everything is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_init::report::Status;

use super::House;
use super::cell::Cell;
use crate::chain::ChainError;
use crate::container::{Event, Phase, Reason, Termination};
use crate::errand::Errand;
use crate::ledger::{Cause, now_unix_ms};
use crate::report;

/// How long to wait before the way is walked again: first, and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// How long the kernel may take to make a process that was killed one that can be reaped.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of the record and the sandbox.
#[derive(Clone, Copy)]
enum Last {
    /// They stay, for those who come later.
    Keep,
    /// They go: the container never was.
    Forget,
}

/// Ends and undoes a container, keeps how it ended, and tells whoever waits.
pub(super) async fn bring_down(house: &Arc<House>, cell: &Arc<Cell>, cause: Cause) {
    let termination = undo(house, cell, cause, Last::Keep).await;
    tracing::info!(
        container = %cell.id(),
        status = termination.ended().map(|ended| ended.to_string()),
        reason = termination.reason.as_ref().map(Reason::mesos_name),
        "ended"
    );
    cell.announce(termination);
}

/// Undoes a launch that failed, and forgets that it was tried.
pub(super) async fn undo_launch(house: &Arc<House>, cell: &Arc<Cell>, cause: Cause) {
    let termination = undo(house, cell, cause, Last::Forget).await;
    house.table.forget(cell.id());
    cell.announce(termination);
}

/// Walks the way down until its end.
async fn undo(house: &Arc<House>, cell: &Arc<Cell>, cause: Cause, last: Last) -> Termination {
    // From here on it is on its way down, whoever else wishes so.
    cell.end(cause.clone());
    cell.note(|record| {
        record.phase = record.phase.after(Event::Ending).unwrap_or(Phase::Destroying);
        record.cause = Some(cause.clone());
    });
    end_children(house, cell, &cause).await;
    let mut pause = AGAIN.0;
    let mut late = BTreeSet::new();
    let mut first = true;
    loop {
        let walked = walk(house, cell, last, std::mem::take(&mut first), late.clone()).await;
        let trouble = match walked {
            Ok(termination) => {
                cell.set_stuck(Vec::new());
                return termination;
            }
            // The others get their turn before it is asked again.
            Err(Trouble::Late(plugin, words)) if late.insert(plugin.clone()) => {
                cell.set_stuck(vec![words]);
                continue;
            }
            Err(Trouble::Late(_, words)) => vec![words],
            Err(Trouble::Steps(words)) => words,
        };
        for words in &trouble {
            tracing::warn!(container = %cell.id(), "not gone yet: {words}");
        }
        cell.set_stuck(trouble);
        late.clear();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Why the way down did not lead to its end.
enum Trouble {
    /// Steps that failed, in words.
    Steps(Vec<String>),
    /// A plugin that did not answer in time, and that in words.
    Late(String, String),
}

impl Trouble {
    fn with(doing: &str, error: &dyn std::error::Error) -> Self {
        Self::Steps(vec![format!("cannot {doing}: {}", report::chain(error))])
    }
}

/// Walks the way down once, without asking plugins that were late a moment ago.
async fn walk(
    house: &Arc<House>,
    cell: &Arc<Cell>,
    last: Last,
    first: bool,
    late: BTreeSet<String>,
) -> Result<Termination, Trouble> {
    let _turn = cell.turn().await;
    let (house2, cell2) = (Arc::clone(house), Arc::clone(cell));
    let patience = house.chain.patience_down();
    let work = move |errand: &Errand| {
        // Asked once only: whoever does not answer this must not keep others from cleaning up.
        if first {
            settle_cause(errand, &house2, &cell2);
        }
        take_down(errand, &house2, &cell2, last, &late)
    };
    match house.errands.run(patience, work).await {
        Ok(outcome) => outcome,
        Err(abandoned) => Err(match house.chain.left_behind(abandoned) {
            ChainError::Call(error) => Trouble::Late(error.plugin().to_owned(), error.to_string()),
            other => Trouble::with("undo it", &other),
        }),
    }
}

/// Takes every step down. Blocks.
fn take_down(
    errand: &Errand,
    house: &House,
    cell: &Cell,
    last: Last,
    late: &BTreeSet<String>,
) -> Result<Termination, Trouble> {
    let id = cell.id();
    let cause = cell.record().cause.clone().unwrap_or_default();
    house
        .launcher
        .destroy(id.as_str(), cell.process().as_deref())
        .map_err(|error| Trouble::with("end its processes", &error))?;
    let status = collect(house, cell);
    let failed = house.chain.cleanup(errand, &cell.case(), late);
    // The last of them may have come back after everybody stopped waiting. Then somebody else walks already.
    if !failed.is_empty() || errand.is_abandoned() {
        return Err(Trouble::Steps(failed.iter().map(ToString::to_string).collect()));
    }
    house
        .launcher
        .cleanup(id.as_str())
        .map_err(|error| Trouble::with("remove its control groups", &error))?;
    remove_tree(&cell.record().scratch)
        .map_err(|error| Trouble::with("remove its scratch directory", &error))?;
    let termination = Termination {
        // Nobody was told that the command of a launch that failed ever ran.
        status: status.filter(|_| {
            !matches!((last, &cause.reason), (Last::Forget, _) | (_, Some(Reason::LaunchFailed)))
        }),
        reason: cause.reason,
        message: cause.message,
        limited: cause.limited,
        at_unix_ms: now_unix_ms(),
    };
    close(house, cell, last, &termination)?;
    Ok(termination)
}

/// Finds out why the container ends, if nobody wished for it, and puts that on record.
///
/// An end by itself needs no record of its own: another agent would find the process gone, and ask the same.
fn settle_cause(errand: &Errand, house: &House, cell: &Cell) {
    let nobody_wished = cell.record().cause.as_ref().is_none_or(|cause| cause.reason.is_none());
    if nobody_wished {
        match house.chain.limitations(errand, &cell.case()) {
            Some(limitation) => cell.note(|record| record.cause = Some(Cause::over_limit(limitation))),
            None => return,
        }
    }
    // An end must not wait for a full disk: it may be what makes room. All that an agent would not know that came
    // after this one is who wished for it.
    if let Err(error) = house.ledger.write(&cell.record()) {
        tracing::warn!(container = %cell.id(), "ends without a word of why on disk: {}", report::chain(&error));
    }
}

/// Reaps the first process and reads what it left. All processes are gone.
///
/// A first process that was killed could not leave anything: then its command was killed with it.
fn collect(house: &House, cell: &Cell) -> Option<i32> {
    if let Some(process) = cell.process() {
        // One that is not our child, after a restart, is reaped by whoever took it over.
        drop(process.wait(Some(PATIENCE)).and_then(|_| process.reap()));
        cell.set_process(None);
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
}

/// Closes the record: the last step.
fn close(house: &House, cell: &Cell, last: Last, termination: &Termination) -> Result<(), Trouble> {
    match last {
        Last::Keep => cell
            .amend(&house.ledger, |record| {
                record.phase = Phase::Ended;
                record.process = None;
                record.termination = Some(termination.clone());
            })
            .map_err(|error| Trouble::with("keep how it ended", &error)),
        Last::Forget => {
            remove_tree(&cell.record().sandbox)
                .map_err(|error| Trouble::with("remove its sandbox", &error))?;
            house.ledger.remove(cell.id()).map_err(|error| Trouble::with("remove its record", &error))?;
            cell.note(|record| {
                record.phase = Phase::Ended;
                record.termination = Some(termination.clone());
            });
            Ok(())
        }
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

/// Removes a folder with all that is in it, never following a symbolic link. One that is not there is
/// removed already.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    // Most are empty by the time they are removed.
    let removed = fs::remove_dir(path).or_else(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(path),
        _ => Err(error),
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
