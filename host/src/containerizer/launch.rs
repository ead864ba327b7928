//! The way up: one straight line from a request to a command that runs.
//!
//! A wish that the container end stops it before its next step; inside a step, only what can be stopped
//! without harm is: fetching, and the wait for the command to start. Whatever stops it, undoing is not done
//! here.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_init::plan::Plan;
use cofferdam_linux::birth::Enter;
use cofferdam_linux::process::Process;
use cofferdam_plugin_model::Container;

use super::cell::Cell;
use super::streams::{self, Opened};
use super::task::Running;
use super::{House, LaunchError, PATIENCE, translate, user};
use crate::chain::{LaunchPlan, Prepared, Watch};
use crate::container::{ContainerClass, Event};
use crate::launcher::{Birth, Held, Stdio};
use crate::ledger::{Birthmark, Record};
use crate::plugin::CallError;

/// Brings a container up.
pub(super) async fn bring_up(house: &Arc<House>, cell: &Arc<Cell>) -> Result<Running, LaunchError> {
    let container = errand(house, cell, begin).await?;
    advance(cell, Event::Provisioned)?;
    let prepared = prepare(house, cell, container).await?;
    let waiting = errand(house, cell, move |house, cell| hold(house, cell, prepared)).await?;
    advance(cell, Event::Prepared)?;
    let watches = isolate(house, cell).await?;
    advance(cell, Event::Isolated)?;
    fetch(house, cell).await?;
    let process = start(house, cell, waiting).await?;
    Ok(Running { process, watches })
}

/// A first process that waits.
struct Waiting {
    held: Held,
    /// What it is to be told.
    plan: Plan,
}

/// Goes on to the next phase, unless the container is to end.
fn advance(cell: &Cell, event: Event) -> Result<(), LaunchError> {
    let phase = cell.phase();
    if let Some(cause) = cell.wish() {
        let message = cause.message.unwrap_or_default();
        return Err(LaunchError::Ended { id: cell.id().clone(), phase, message });
    }
    match phase.after(event) {
        Ok(next) => {
            cell.note(|record| record.phase = next);
            tracing::debug!(container = %cell.id(), phase = %next, "advances");
            Ok(())
        }
        Err(error) => Err(LaunchError::Lost { id: cell.id().clone(), reason: error.to_string() }),
    }
}

/// Runs blocking work of the launch on a thread where it hurts nobody.
async fn errand<T: Send + 'static>(
    house: &Arc<House>,
    cell: &Arc<Cell>,
    work: impl FnOnce(&Arc<House>, &Arc<Cell>) -> Result<T, LaunchError> + Send + 'static,
) -> Result<T, LaunchError> {
    let (house2, cell2) = (Arc::clone(house), Arc::clone(cell));
    match house.errands.run(PATIENCE, move |_| work(&house2, &cell2)).await {
        Ok(outcome) => outcome,
        Err(abandoned) => Err(LaunchError::Lost { id: cell.id().clone(), reason: abandoned.to_string() }),
    }
}

/// Puts the intent on record, makes the directories and what the container is tracked by, and looks at the root
/// file system that was asked for before any plugin relies on it.
fn begin(house: &Arc<House>, cell: &Arc<Cell>) -> Result<Container, LaunchError> {
    let id = cell.id().clone();
    let request = cell.record().request.clone();
    let who = user::resolve(request.command.user.as_deref(), request.rootfs.as_deref())
        .map_err(|source| LaunchError::User { id: id.clone(), source })?;
    let mut container = Container::new(id.clone());
    container.class = request.class;
    container.standalone = true;
    container.command = request.command;
    container.rootfs = request.rootfs;
    container.resources = request.resources;
    container.labels = request.labels;
    container.linux = request.linux;
    (container.uid, container.gid) = (who.uid, who.gid);
    let record = cell.record();
    container.sandbox.clone_from(&record.sandbox);
    container.scratch.clone_from(&record.scratch);
    container.cgroups = record.cgroups.clone();
    let parties = house.chain.parties(&container);
    cell.amend(&house.ledger, |record| {
        (record.uid, record.gid) = (who.uid, who.gid);
        record.parties = parties;
    })
    .map_err(|source| LaunchError::Ledger { id: id.clone(), source })?;

    let make = |path: &Path| {
        make_directory(path).map_err(|source| LaunchError::Directory {
            id: id.clone(),
            path: path.to_owned(),
            source,
        })
    };
    make(&record.sandbox)?;
    // Nobody else puts anything there.
    if house.chain.has_isolators() {
        make(&record.scratch)?;
    }
    if who.uid != nix::unistd::geteuid().as_raw() {
        chown(&record.sandbox, Some(who.uid), Some(who.gid)).map_err(|source| LaunchError::Directory {
            id: id.clone(),
            path: record.sandbox.clone(),
            source,
        })?;
    }
    // On v2, a nested container with limits of its own needs the controllers handed down to it, for which
    // its parent's processes have to make room.
    let handed_down: Vec<&str> = match id.is_nested() && !shares_cgroups(&record) {
        true => record.cgroups.v2_controllers.iter().map(String::as_str).collect(),
        false => Vec::new(),
    };
    house
        .launcher
        .ready(id.as_str(), &handed_down)
        .map_err(|source| LaunchError::Ready { id: id.clone(), source })?;
    advance(cell, Event::Began)?;
    if let Some(path) = container.rootfs.clone() {
        fs::read_dir(&path).map(drop).map_err(|source| LaunchError::Rootfs { id, path, source })?;
    }
    Ok(container)
}

/// A directory of the container's own; one that is there already is somebody else's.
fn make_directory(path: &Path) -> io::Result<()> {
    let make = || fs::DirBuilder::new().mode(0o750).create(path);
    match (make(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            // Walked through by container users on the way to their sandboxes, and listed by nobody else.
            fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
            make()
        }
        (made, _) => made,
    }
}

/// Asks the chain what the launch needs.
async fn prepare(house: &House, cell: &Cell, container: Container) -> Result<Prepared, LaunchError> {
    let wants_rootfs = container.rootfs.is_some();
    let parties = cell.record().parties.clone();
    let prepared = {
        let _turn = cell.turn().await;
        house.chain.prepare(container, parties).await
    };
    let prepared = prepared.map_err(|source| chain_error(cell, source))?;
    if wants_rootfs && prepared.plan.root.is_none() {
        return Err(LaunchError::NoFilesystem { id: cell.id().clone() });
    }
    Ok(prepared)
}

/// Makes the first process, which waits, and puts it on record with everything the plugins keep for it.
fn hold(house: &Arc<House>, cell: &Arc<Cell>, prepared: Prepared) -> Result<Waiting, LaunchError> {
    let parent = cell.id().parent().and_then(|parent| house.table.get(&parent));
    let id = cell.id().clone();
    let record = cell.record();
    let parent_record = parent.as_ref().map(|parent| parent.record());
    let joined = translate::namespaces(&prepared.plan);
    let plan = translate::plan(&record, &prepared.plan, parent_record.as_deref(), house.descriptors)
        .map_err(|reason| LaunchError::Plan { id: id.clone(), reason })?;

    let Opened { stdin, stdout, stderr, logs } = streams::open(prepared.streams, record.uid, record.gid)
        .map_err(|(path, source)| LaunchError::Directory { id: id.clone(), path, source })?;
    let status_path = house.ledger.status_file(&id);
    let status = streams::create_status(&status_path).map_err(|source| LaunchError::Directory {
        id: id.clone(),
        path: status_path,
        source,
    })?;

    let parent_process = parent.as_ref().and_then(|parent| parent.process());
    let enter = match (&parent_process, joined.enter.is_empty()) {
        (_, true) => None,
        (Some(process), false) => Some(Enter { process: process.as_ref(), namespaces: joined.enter }),
        (None, false) => {
            let reason = "it asks to enter its parent's namespaces, and its parent has no process".into();
            return Err(LaunchError::Plan { id, reason });
        }
    };
    let held = house
        .launcher
        .hold(Birth {
            id: id.as_str(),
            stdio: Stdio { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() },
            status: status.as_fd(),
            clone: joined.clone,
            enter,
            cgroups: homes(house, &record, &prepared.plan),
        })
        .map_err(|source| LaunchError::Hold { id: id.clone(), source })?;
    let process = held.process();
    let born = Birthmark { pid: process.pid(), start_time: process.start_time() };
    // Whatever happens from here on, the way down finds the process here.
    match process.try_clone() {
        Ok(process) => cell.set_process(Some(Arc::new(process))),
        Err(error) => {
            cell.set_process(Some(Arc::new(held.abandon())));
            return Err(LaunchError::Lost { id, reason: error.to_string() });
        }
    }
    cell.amend(&house.ledger, |record| {
        record.process = Some(born);
        record.parties = prepared.parties;
        record.plan = prepared.plan;
        record.logs = logs;
    })
    .map_err(|source| LaunchError::Ledger { id, source })?;
    Ok(Waiting { held, plan })
}

/// The cgroup v1 directories that the first process is born in. Who shares its parent's control groups is
/// born in those of its nearest ancestor that has its own.
fn homes(house: &House, record: &Record, plan: &LaunchPlan) -> Vec<PathBuf> {
    let own = |plan: &LaunchPlan| plan.cgroups.iter().map(|cgroup| cgroup.value.clone()).collect::<Vec<_>>();
    let mut homes = own(plan);
    let mut sharing = shares_cgroups(record);
    let mut next = record.id.parent();
    while let (true, Some(id)) = (sharing, next) {
        let Some(ancestor) = house.table.get(&id).map(|cell| cell.record()) else { break };
        homes.extend(own(&ancestor.plan));
        sharing = shares_cgroups(&ancestor);
        next = id.parent();
    }
    homes
}

fn shares_cgroups(record: &Record) -> bool {
    let request = &record.request;
    record.id.is_nested() && (request.linux.share_cgroups || request.class == ContainerClass::Debug)
}

/// Lets the plugins get hold of the first process.
async fn isolate(house: &House, cell: &Cell) -> Result<Vec<Watch>, LaunchError> {
    let _turn = cell.turn().await;
    let (watches, failed) = house.chain.watch(&cell.case()).await;
    do_without(house, cell, failed)?;
    if let Some(process) = cell.process() {
        let failed = house.chain.isolate(&cell.case(), process.as_fd()).await;
        do_without(house, cell, failed)?;
    }
    Ok(watches)
}

/// Fails the launch, unless it can do without all who failed; the container then says so.
fn do_without(house: &House, cell: &Cell, failed: Vec<CallError>) -> Result<(), LaunchError> {
    if failed.is_empty() {
        return Ok(());
    }
    let mut parties = cell.record().parties.clone();
    house.chain.do_without(failed, &mut parties).map_err(|source| chain_error(cell, source))?;
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

/// Hands over the plan, waits until the command runs, and puts that on record.
async fn start(house: &Arc<House>, cell: &Arc<Cell>, waiting: Waiting) -> Result<Arc<Process>, LaunchError> {
    if let Some(cause) = cell.wish() {
        let message = cause.message.unwrap_or_default();
        return Err(LaunchError::Ended { id: cell.id().clone(), phase: cell.phase(), message });
    }
    let Waiting { held, plan } = waiting;
    let release = errand(house, cell, move |house, cell| {
        let id = || cell.id().clone();
        let process = held.release(plan).map_err(|source| LaunchError::Start { id: id(), source })?;
        let process = Arc::new(process);
        cell.set_process(Some(Arc::clone(&process)));
        advance(cell, Event::Started)?;
        cell.amend(&house.ledger, |_| {}).map_err(|source| LaunchError::Ledger { id: id(), source })?;
        tracing::info!(container = %cell.id(), pid = process.pid(), "runs");
        Ok(process)
    });
    tokio::pin!(release);
    tokio::select! {
        outcome = &mut release => outcome,
        _ = cell.wished() => {
            // Its end is what the release is waiting for. Not by a kill of the first process alone: its command may
            // have been forked already, and without it some launchers would not find that any more.
            let (house2, cell2) = (Arc::clone(house), Arc::clone(cell));
            let destroy = house.errands.run(PATIENCE, move |_| {
                house2.launcher.destroy(cell2.id().as_str(), cell2.process().as_deref())
            });
            let (destroyed, released) = tokio::join!(destroy, release);
            if let Ok(Err(error)) = destroyed {
                // The way down tries again, and insists.
                tracing::debug!(container = %cell.id(), "not ended yet: {}", crate::report::chain(&error));
            }
            released
        }
    }
}

fn chain_error(cell: &Cell, source: crate::chain::ChainError) -> LaunchError {
    LaunchError::Chain { id: cell.id().clone(), phase: cell.phase(), source }
}
