//! The container's first process: made, and put on record, before anything of the container runs.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_init::plan::Plan;
use cofferdam_linux::birth::Enter;

use super::cell::Cell;
use super::streams::{self, Opened};
use super::{House, LaunchError, translate};
use crate::chain::{Brought, LaunchPlan, Wishes};
use crate::container::ContainerClass;
use crate::launcher::{Birth, Held, Stdio};
use crate::ledger::{Birthmark, Record};

/// A first process that waits.
pub(super) struct Waiting {
    pub(super) held: Held,
    /// What it is to be told.
    pub(super) plan: Plan,
}

/// Makes the first process, which waits, and puts it on record with everything the plugins keep for it.
pub(super) fn hold(house: &House, cell: &Cell, prepared: Brought<Wishes>) -> Result<Waiting, LaunchError> {
    let parent = cell.id().parent().and_then(|parent| house.table.get(&parent));
    let id = cell.id().clone();
    let record = cell.record();
    let parent_record = parent.as_ref().map(|parent| parent.record());
    let Brought { parties, brought: Wishes { plan: wishes, streams }, .. } = prepared;
    let joined = translate::namespaces(&wishes);
    let plan = translate::plan(&record, &wishes, parent_record.as_deref(), house.descriptors)
        .map_err(|reason| LaunchError::Plan { id: id.clone(), reason })?;

    let Opened { stdin, stdout, stderr, logs } = streams::open(streams, record.uid, record.gid)
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
            cgroups: homes(house, &record, &wishes),
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
        record.parties = parties;
        record.plan = wishes;
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

pub(super) fn shares_cgroups(record: &Record) -> bool {
    let request = &record.request;
    record.id.is_nested() && (request.linux.share_cgroups || request.class == ContainerClass::Debug)
}
