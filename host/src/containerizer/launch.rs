//! The way up: one straight line from a request to a command that runs.
//!
//! ```text
//! begin ─▶ prepare ─▶ hold ─▶ watch ─┬───────────────────────────────┬─▶ start
//!                                    └─▶ isolate, together ─▶ fetch ─┘
//! ```
//!
//! All that blocks is done by one errand, as on the way down; where something has to be awaited between watching and
//! starting, by two. When a plugin that can be done without is late, its errand is lost, and the next one goes on from
//! the phase that the container is in.
//!
//! A wish that the container end stops it before its next step; inside a step, only what can be stopped
//! without harm is: fetching, and the wait for the command to start. Whatever stops it, undoing is not done
//! here.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cofferdam_linux::process::Process;
use cofferdam_plugin_model::Container;

use super::begin::begin;
use super::birth::{Waiting, hold};
use super::cell::Cell;
use super::task::Running;
use super::{House, LaunchError, PATIENCE};
use crate::chain::{Brought, ChainError, Round, Watch, Wishes};
use crate::container::{Event, Phase};
use crate::errand::Errand;

/// Between two attempts to end a start that does not end.
const AGAIN: Duration = Duration::from_millis(100);

/// Brings a container up.
pub(super) async fn bring_up(house: &Arc<House>, cell: &Arc<Cell>) -> Result<Running, LaunchError> {
    let ascent = Arc::new(Ascent::new(house, cell));
    let outcome = climb_all(&ascent).await;
    // Someone who is late may hold the rest of it for ever.
    let (made, watching) = (std::mem::take(&mut *ascent.made()), ascent.watching.get().map(Round::take));
    match (outcome, made) {
        (Ok(()), Made { process: Some(process), watches, .. }) => Ok(Running { process, watches }),
        (Ok(()), _) => Err(lost(cell, "it was not started; this is a bug of the agent")),
        (Err(error), made) => {
            house.errands.send(move || drop((made, watching)));
            Err(error)
        }
    }
}

async fn climb_all(ascent: &Arc<Ascent>) -> Result<(), LaunchError> {
    let Ascent { house, cell, .. } = &**ascent;
    climb(ascent).await?;
    if cell.phase() == Phase::Isolating {
        heed(cell)?;
        isolate(house, cell).await?;
        advance(cell, Event::Isolated)?;
        fetch(house, cell).await?;
        climb(ascent).await?;
    }
    Ok(())
}

/// Climbs until there is something to await. A wish that comes while the command is being started ends that.
async fn climb(ascent: &Arc<Ascent>) -> Result<(), LaunchError> {
    let Ascent { house, cell, .. } = &**ascent;
    let on_thread = Arc::clone(ascent);
    let climbing =
        house.chain.rounds(move |errand| on_thread.climb(errand), |late| ascent.go_on_without(late));
    tokio::pin!(climbing);
    tokio::select! {
        outcome = &mut climbing => return outcome,
        _ = cell.wished() => {}
    }
    // Until the start begins, each step but those of a round looks for a wish before it is taken.
    if cell.phase() != Phase::Fetching {
        return climbing.await;
    }
    // Its end is what the start is waiting for. Not by a kill of the first process alone: its command may
    // have been forked already, and without it some launchers would not find that any more.
    loop {
        let (house2, cell2) = (Arc::clone(house), Arc::clone(cell));
        let destroy =
            move |_: &Errand| house2.launcher.destroy(cell2.id().as_str(), cell2.process().as_deref());
        // Waited for in any case, so that it cannot meet the next container of this id.
        match house.errands.run(PATIENCE, destroy).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(container = %cell.id(), "not ended yet: {}", crate::report::chain(&error));
            }
            Err(abandoned) => tracing::error!(container = %cell.id(), "not ended yet: {abandoned}"),
        }
        tokio::select! {
            outcome = &mut climbing => return outcome,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// A launch, as far as it has come: what one errand leaves to the next.
struct Ascent {
    house: Arc<House>,
    cell: Arc<Cell>,
    /// What the plugins are told of it, and what they wish.
    preparing: OnceLock<(Container, Round<Wishes>)>,
    watching: OnceLock<Round<Vec<Watch>>>,
    made: Mutex<Made>,
}

/// What is there of a container.
#[derive(Default)]
struct Made {
    waiting: Option<Waiting>,
    watches: Vec<Watch>,
    process: Option<Arc<Process>>,
}

impl Ascent {
    fn new(house: &Arc<House>, cell: &Arc<Cell>) -> Self {
        Self {
            house: Arc::clone(house),
            cell: Arc::clone(cell),
            preparing: OnceLock::new(),
            watching: OnceLock::new(),
            made: Mutex::default(),
        }
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Climbs from the phase that the container is in, until there is something to await. Blocks.
    fn climb(&self, errand: &Errand) -> Result<(), LaunchError> {
        let cell = &self.cell;
        heed(cell)?;
        if cell.phase() == Phase::Starting {
            let container = begin(&self.house, cell)?;
            drop(self.preparing.set((container, Round::of_launch(cell.record().parties.clone()))));
            advance(cell, Event::Provisioned)?;
        }
        if cell.phase() == Phase::Preparing {
            let wishes = self.prepare(errand)?;
            heed(cell)?;
            self.made().waiting = Some(hold(&self.house, cell, wishes)?);
            advance(cell, Event::Prepared)?;
        }
        if cell.phase() == Phase::Isolating {
            self.watch(errand)?;
            if self.is_straight() {
                advance(cell, Event::Isolated)?;
            }
        }
        if cell.phase() == Phase::Fetching {
            self.start()?;
        }
        Ok(())
    }

    /// Goes on without a plugin that was late, if the container can do without.
    fn go_on_without(&self, late: ChainError) -> Result<(), LaunchError> {
        let chain = &self.house.chain;
        let outcome = match (self.watching.get(), self.preparing.get()) {
            (Some(round), _) => chain.go_on_without(round, late),
            (None, Some((_, round))) => chain.go_on_without(round, late),
            (None, None) => Err(late),
        };
        outcome.map_err(|source| chain_error(&self.cell, source))
    }

    /// Asks the chain what the launch needs.
    fn prepare(&self, errand: &Errand) -> Result<Brought<Wishes>, LaunchError> {
        let cell = &self.cell;
        let (container, round) = self.preparing.get().ok_or_else(|| lost(cell, "it never began"))?;
        self.house.chain.prepare(errand, container, round).map_err(|source| chain_error(cell, source))?;
        let brought = round.take();
        if container.rootfs.is_some() && brought.brought.plan.root.is_none() {
            return Err(LaunchError::NoFilesystem { id: cell.id().clone() });
        }
        Ok(brought)
    }

    /// Asks the chain what to wait for.
    fn watch(&self, errand: &Errand) -> Result<(), LaunchError> {
        let Self { house, cell, .. } = self;
        let round = self.watching.get_or_init(|| Round::of_launch(cell.record().parties.clone()));
        house.chain.watch(errand, &cell.case(), round).map_err(|source| chain_error(cell, source))?;
        let Brought { parties, brought: watches, failed } = round.take();
        if !failed.is_empty() {
            // On disk once the command runs.
            cell.note(|record| record.parties = parties);
        }
        self.made().watches = watches;
        Ok(())
    }

    /// Whether there is nothing to await before the start.
    fn is_straight(&self) -> bool {
        let record = self.cell.record();
        record.request.uris.is_empty() && !self.house.chain.isolates(&record.parties)
    }

    /// Hands over the plan, waits until the command runs, and puts that on record.
    fn start(&self) -> Result<(), LaunchError> {
        let Self { house, cell, .. } = self;
        let id = || cell.id().clone();
        // Who wishes its end after this look sees that it is being started.
        heed(cell)?;
        let waiting = self.made().waiting.take();
        let Waiting { held, plan } = waiting.ok_or_else(|| lost(cell, "it has no first process"))?;
        let process = held.release(plan).map_err(|source| LaunchError::Start { id: id(), source })?;
        let process = Arc::new(process);
        cell.set_process(Some(Arc::clone(&process)));
        advance(cell, Event::Started)?;
        cell.amend(&house.ledger, |_| {}).map_err(|source| LaunchError::Ledger { id: id(), source })?;
        tracing::info!(container = %cell.id(), pid = process.pid(), "runs");
        self.made().process = Some(process);
        Ok(())
    }
}

/// Goes on to the next phase, unless the container is to end.
pub(super) fn advance(cell: &Cell, event: Event) -> Result<(), LaunchError> {
    heed(cell)?;
    let next = cell.phase().after(event).map_err(|error| lost(cell, &error.to_string()))?;
    cell.note(|record| record.phase = next);
    tracing::debug!(container = %cell.id(), phase = %next, "advances");
    Ok(())
}

/// Goes no further if somebody wishes that the container end.
fn heed(cell: &Cell) -> Result<(), LaunchError> {
    let Some(cause) = cell.wish() else { return Ok(()) };
    let message = cause.message.unwrap_or_default();
    Err(LaunchError::Ended { id: cell.id().clone(), phase: cell.phase(), message })
}

/// Lets the plugins get hold of the first process, all at once.
async fn isolate(house: &House, cell: &Cell) -> Result<(), LaunchError> {
    let Some(process) = cell.process() else { return Ok(()) };
    let failed = house.chain.isolate(&cell.case(), process.as_fd()).await;
    if failed.is_empty() {
        return Ok(());
    }
    let mut parties = cell.record().parties.clone();
    for error in failed {
        house.chain.do_without(&error, &mut parties).map_err(|source| chain_error(cell, source))?;
    }
    // On disk once the command runs.
    cell.note(|record| record.parties = parties);
    Ok(())
}

/// Brings in the container's files.
async fn fetch(house: &House, cell: &Cell) -> Result<(), LaunchError> {
    let record = cell.record();
    if record.request.uris.is_empty() {
        return Ok(());
    }
    let fetched =
        house.fetcher.fetch(&record.request.uris, &record.sandbox, record.uid, record.gid, cell.wished());
    fetched.await.map_err(|source| LaunchError::Fetch { id: cell.id().clone(), source })
}

fn chain_error(cell: &Cell, source: ChainError) -> LaunchError {
    LaunchError::Chain { id: cell.id().clone(), phase: cell.phase(), source }
}

fn lost(cell: &Cell, reason: &str) -> LaunchError {
    LaunchError::Lost { id: cell.id().clone(), reason: reason.to_owned() }
}
