//! The first step of a launch: intent on record, directories, and a cgroup.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use cofferdam_plugin_model::{Container, ContainerClass, ContainerId};

use super::phase::Event;
use super::progress::advance;
use super::record::Handle;
use super::{LaunchError, Shared};
use crate::chain::Participant;
use crate::containerizer::user::{self, User, UserError};
use crate::model::Request;

/// Records the intent, creates the container's directories and cgroup, and checks its root file system before any
/// plugin relies on it.
pub(super) fn begin(shared: &Shared, handle: &Handle, request: Request) -> Result<Container, LaunchError> {
    let id = handle.id().clone();
    let user =
        resolve_user(shared, &request).map_err(|source| LaunchError::User { id: id.clone(), source })?;
    let mut container = Container::new(id.clone());
    container.class = request.class;
    container.standalone = true;
    container.command = request.command;
    container.rootfs = request.rootfs;
    container.resources = request.resources;
    container.labels = request.labels;
    container.linux = request.linux;
    container.volumes = request.volumes;
    // One below another is mounted after it, those in the sandbox last.
    container.volumes.sort_by_key(|volume| {
        (volume.container_path.is_relative(), volume.container_path.components().count())
    });
    container.networks = request.networks;
    container.rlimits = request.rlimits;
    container.tty = request.tty;
    (container.uid, container.gid) = (user.uid, user.gid);
    let record = handle.record();
    container.sandbox.clone_from(&record.sandbox);
    container.scratch.clone_from(&record.part.scratch);
    container.cgroups = record.part.cgroups.clone();
    let participants = shared.chain.participants(&container);
    check_handled(shared, handle, &participants)?;
    handle
        .update_persisted(&shared.ledger, |record| {
            (record.uid, record.gid, record.groups) = (user.uid, user.gid, user.groups.clone());
            record.part.participants = participants;
        })
        .map_err(|source| LaunchError::Ledger { id: id.clone(), source })?;

    let directory_error =
        |path: &Path, source| LaunchError::Directory { id: id.clone(), path: path.to_owned(), source };
    create_directory(&record.sandbox).map_err(|source| directory_error(&record.sandbox, source))?;
    // Only plugins put anything there.
    if shared.chain.has_isolators() {
        let scratch = &record.part.scratch;
        create_directory(scratch).map_err(|source| directory_error(scratch, source))?;
    }
    let agent = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if (user.uid, user.gid) != agent {
        chown(&record.sandbox, Some(user.uid), Some(user.gid))
            .map_err(|source| directory_error(&record.sandbox, source))?;
    }
    // On v2, a nested container with limits of its own needs controllers enabled in its parent's cgroup, which
    // then must not contain processes.
    let controllers: Vec<&str> = match id.is_nested() && !record.shares_cgroups() {
        true => record.part.cgroups.v2_controllers.iter().map(String::as_str).collect(),
        false => Vec::new(),
    };
    shared
        .launcher
        .create_cgroup(&id, &controllers)
        .map_err(|source| LaunchError::Cgroup { id: id.clone(), source })?;
    advance(handle, Event::Begun)?;
    if let Some(path) = container.rootfs.clone() {
        fs::read_dir(&path).map(drop).map_err(|source| LaunchError::Rootfs { id, path, source })?;
    }
    Ok(container)
}

/// Whom the command runs as. A nested container inherits the user of its parent; a debug container sees the files of its
/// parent, or of the nearest ancestor that is none.
fn resolve_user(shared: &Shared, request: &Request) -> Result<User, UserError> {
    let parent_of = |id: &ContainerId| Some(shared.table.get(&id.parent()?)?.record());
    let parent = parent_of(&request.id);
    let inherited = parent.as_ref().map(|parent| User {
        uid: parent.uid,
        gid: parent.gid,
        groups: parent.groups.clone(),
    });
    let (mut rootfs, mut class, mut seen) = (request.rootfs.clone(), request.class, parent);
    while let (None, ContainerClass::Debug, Some(ancestor)) = (&rootfs, class, &seen) {
        (rootfs, class) = (ancestor.request.rootfs.clone(), ancestor.request.class);
        seen = parent_of(&ancestor.id);
    }
    user::resolve(request.command.user.as_deref(), rootfs.as_deref(), inherited)
}

/// Checks that every part of the request has a participant that handles it.
pub(super) fn check_handled(
    shared: &Shared,
    handle: &Handle,
    participants: &[Participant],
) -> Result<(), LaunchError> {
    match shared.chain.unhandled(handle.record().request.parts(), participants) {
        Some(part) => Err(LaunchError::Unhandled { id: handle.id().clone(), part }),
        None => Ok(()),
    }
}

/// Creates a directory, which must not exist.
fn create_directory(path: &Path) -> io::Result<()> {
    let create = || fs::DirBuilder::new().mode(0o750).create(path);
    match (create(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            // Container users pass through on the way to their sandboxes, but must not list it.
            fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
            create()
        }
        (created, _) => created,
    }
}
