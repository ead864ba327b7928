//! The first rung of the way up: intent on record, a place on disk, and something to be tracked by.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use cofferdam_plugin_model::Container;

use super::birth::shares_cgroups;
use super::cell::Cell;
use super::launch::advance;
use super::{House, LaunchError, user};
use crate::container::Event;

/// Puts the intent on record, makes the directories and what the container is tracked by, and looks at the root
/// file system that was asked for before any plugin relies on it.
pub(super) fn begin(house: &House, cell: &Cell) -> Result<Container, LaunchError> {
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
