//! Creation of the container's first process, which is recorded before anything of the container runs.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_init::plan::Plan;
use cofferdam_linux::namespace::Namespace;
use cofferdam_plugin_model::LogFiles;

use super::init_plan::{self, InitPlan, Input};
use super::record::{Handle, NativeRecord};
use super::{LaunchError, Shared};
use crate::chain::{LaunchPlan, PreparedLaunch, SequenceOutcome};
use crate::containerizer::record_part::RecordPart;
use crate::containerizer::stdio::{self, Stdio};
use crate::launcher::{self, PendingInit, SpawnRequest};
use crate::model::view::Logs;
use crate::model::{ProcessId, Record};
use crate::switchboard::{Streams, Switched, first_attachment};

/// The containers that a debug container inspects, the nearest first: the last one is none.
fn inspected(shared: &Shared, record: &Record<NativeRecord>) -> Vec<Arc<Record<NativeRecord>>> {
    let mut inspected: Vec<Arc<Record<NativeRecord>>> = Vec::new();
    loop {
        let last = inspected.last().map_or(record, |last| &**last);
        let parent = last.id.parent().filter(|_| init_plan::inspects_parent(last));
        match parent.and_then(|parent| shared.table.get(&parent)) {
            Some(parent) => inspected.push(parent.record()),
            None => return inspected,
        }
    }
}

/// Creates the first process, which waits for its plan, and records it together with the plugins' states.
pub(super) fn create(
    shared: &Shared,
    handle: &Handle,
    prepared: SequenceOutcome<PreparedLaunch>,
) -> Result<(PendingInit, Plan), LaunchError> {
    let parent = handle.id().parent().and_then(|parent| shared.table.get(&parent));
    let id = handle.id().clone();
    let record = handle.record();
    let inspected = inspected(shared, &record);
    let SequenceOutcome { participants, result: launch, .. } = prepared;
    let PreparedLaunch { plan, descriptors, secrets, stdio, log_files, .. } = launch;
    let namespaces = init_plan::namespaces(&plan);
    let Stdio { stdin, stdout, stderr, logs } = stdio::open(stdio, record.uid, record.gid)
        .map_err(|(path, source)| LaunchError::Directory { id: id.clone(), path, source })?;
    let Switchable { stdio: [stdin, stdout, stderr], terminal, switchboard } =
        switch(shared, handle, &record, [stdin, stdout, stderr])?;
    let InitPlan { plan: init_plan, descriptors } = init_plan::build(Input {
        record: &record,
        merged: &plan,
        inspected: &inspected,
        descriptors: &descriptors,
        secrets: &secrets,
        terminal,
        cgroup_namespaces: shared.backend.launcher.namespaces().contains(Namespace::Cgroup),
        nofile: shared.backend.nofile,
    })
    .map_err(|reason| LaunchError::Plan { id: id.clone(), reason })?;

    let parent_process = match &parent {
        Some(parent) if !namespaces.enter.is_empty() => parent.open_process().map_err(|error| {
            let reason =
                format!("it is to enter its parent's namespaces, whose process cannot be opened: {error}");
            LaunchError::Plan { id: id.clone(), reason }
        })?,
        _ => None,
    };
    let enter = match (&parent_process, namespaces.enter.is_empty()) {
        (_, true) => None,
        (Some(process), false) => {
            Some(launcher::Enter { process: process.as_ref(), namespaces: namespaces.enter })
        }
        (None, false) => {
            let reason = "it is to enter its parent's namespaces, and its parent has no process".into();
            return Err(LaunchError::Plan { id, reason });
        }
    };
    let init = shared
        .backend
        .launcher
        .create(SpawnRequest {
            id: &id,
            stdio: launcher::Stdio { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() },
            clone: namespaces.clone,
            enter,
            cgroups: initial_cgroups(shared, &record, &plan),
            descriptors: descriptors.iter().map(AsFd::as_fd).collect(),
        })
        .map_err(|source| LaunchError::Create { id: id.clone(), source })?;
    let slot = init.slot().clone();
    handle.update_in_memory(|record| (record.part.keeper, record.part.is_setup) = (Some(slot), true));
    let process = init.process();
    let process_id = ProcessId { pid: process.pid(), start_time: process.start_time() };
    // From here on, a teardown finds the process through the handle.
    match process.try_clone() {
        Ok(process) => handle.set_process(Some(Arc::new(process))),
        Err(error) => {
            handle.set_process(Some(Arc::new(init.abandon())));
            return Err(LaunchError::Internal { id, reason: error.to_string() });
        }
    }
    handle
        .update_persisted(&shared.ledger, |record| {
            record.process = Some(process_id);
            // A logger that hands out pipes knows which files its output ends up in.
            record.logs = log_files.map_or(logs, |LogFiles { stdout, stderr, times }| Logs {
                stdout,
                stderr,
                times,
                ..Logs::default()
            });
            record.part.set_participants(participants);
            record.part.switchboard = switchboard;
            record.part.plan = plan.into();
        })
        .map_err(|source| LaunchError::Ledger { id, source })?;
    Ok((init, init_plan))
}

/// The standard streams of a container that may have a switchboard.
struct Switchable {
    stdio: [OwnedFd; 3],
    terminal: Option<OwnedFd>,
    switchboard: Option<ProcessId>,
}

/// Puts a switchboard between a container that has one and its logger, and attaches the first client.
fn switch(
    shared: &Shared,
    handle: &Handle,
    record: &Record<NativeRecord>,
    stdio: [OwnedFd; 3],
) -> Result<Switchable, LaunchError> {
    let Some(streams) = Streams::of(&record.request) else {
        return Ok(Switchable { stdio, terminal: None, switchboard: None });
    };
    let id = handle.id();
    let directory = shared.ledger.directory(id);
    let failed = |source| LaunchError::Streams { id: id.clone(), source };
    let keepers = shared.backend.launcher.keepers();
    let switched = Switched::create(streams, &directory, keepers, stdio, (record.uid, record.gid));
    let switched = switched.map_err(|source| LaunchError::Switchboard { id: id.clone(), source })?;
    let Switched { stdin, stdout, stderr, terminal, process } = switched.map_err(failed)?;
    if record.request.attached {
        handle.keep_attachment(first_attachment(&directory).map_err(failed)?);
    }
    let switchboard = ProcessId { pid: process.pid(), start_time: process.start_time() };
    Ok(Switchable { stdio: [stdin, stdout, stderr], terminal, switchboard: Some(switchboard) })
}

/// The cgroup v1 directories that the first process starts in. A container that shares its parent's cgroups starts
/// in those of its nearest ancestor that has its own.
fn initial_cgroups(shared: &Shared, record: &Record<NativeRecord>, plan: &LaunchPlan) -> Vec<PathBuf> {
    let own = |plan: &LaunchPlan| plan.cgroups.iter().map(|cgroup| cgroup.value.clone()).collect::<Vec<_>>();
    let mut cgroups = own(plan);
    let mut sharing = record.shares_cgroups();
    let mut next = record.id.parent();
    while let (true, Some(id)) = (sharing, next) {
        let Some(ancestor) = shared.table.get(&id).map(|handle| handle.record()) else { break };
        cgroups.extend(own(&ancestor.part.plan));
        sharing = ancestor.shares_cgroups();
        next = id.parent();
    }
    cgroups
}
