//! The first step of a launch: intent on record, directories, and a cgroup.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cofferdam_plugin_model::{Container, ContainerClass, ContainerId, VolumeSource};

use super::phase::Event;
use super::progress::advance;
use super::record::Handle;
use super::{LaunchError, Shared};
use crate::chain::Participant;
use crate::containerizer::user::{self, User, UserError};
use crate::directory::create_searchable;
use crate::model::Request;
use crate::provisioner::{Place, View, Wanted};

/// A container that has begun.
pub(super) struct Begun {
    /// What is known of what plugins will be asked to prepare.
    pub(super) container: Container,
    /// The image that its root file system is assembled from.
    pub(super) image: Option<Wanted>,
    /// The images of its volumes, with the paths of the volumes.
    pub(super) volume_images: Vec<(PathBuf, Wanted)>,
    /// Whom its command runs as, unless its image is needed to tell.
    pub(super) user: User,
    /// Environment variables of the agent that are not recorded.
    pub(super) secrets: BTreeMap<String, String>,
}

/// Records the intent, and creates the container's directories and cgroup.
pub(super) fn begin(shared: &Shared, handle: &Handle, request: Request) -> Result<Begun, LaunchError> {
    let id = handle.id().clone();
    let image = request.image.clone().map(|image| Wanted {
        image,
        place: Place::Root,
        force_pull: request.force_pull_image,
        credentials: request.image_credentials.clone(),
    });
    let volume_images = volume_images(&request);
    // A name is looked up in the image, which is not there yet.
    let user = match image {
        Some(_) => user::resolve(None, None, None),
        None => resolve_user(shared, &request),
    };
    let user = user.map_err(|source| LaunchError::User { id: id.clone(), source })?;
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
    // On v2, a nested container with limits of its own needs controllers enabled in its parent's cgroup, which
    // then must not contain processes.
    let controllers: Vec<&str> = match id.is_nested() && !record.shares_cgroups() {
        true => record.part.cgroups.v2_controllers.iter().map(String::as_str).collect(),
        false => Vec::new(),
    };
    shared
        .backend
        .launcher
        .create_cgroup(&id, &controllers)
        .map_err(|source| LaunchError::Cgroup { id: id.clone(), source })?;
    advance(handle, Event::Begun)?;
    Ok(Begun { container, image, volume_images, user, secrets: request.secret_environment })
}

/// The images of the volumes of a request, with the paths of the volumes.
fn volume_images(request: &Request) -> Vec<(PathBuf, Wanted)> {
    let mut images = Vec::new();
    for volume in &request.volumes {
        let VolumeSource::Image { image, force_pull, .. } = &volume.source else { continue };
        let path = volume.container_path.clone();
        let wanted = Wanted {
            image: image.clone(),
            place: Place::Volume { number: images.len() + 1, read_only: volume.read_only },
            force_pull: *force_pull,
            credentials: request.volume_image_credentials.get(&path).cloned(),
        };
        images.push((path, wanted));
    }
    images
}

/// Whom the command runs as. A nested container inherits the user of its parent; a debug container sees the files of its
/// parent, or of the nearest ancestor that is none.
fn resolve_user(shared: &Shared, request: &Request) -> Result<User, UserError> {
    let parent_of = |id: &ContainerId| Some(shared.table.get(&id.parent()?)?.record());
    let inherited = inherited_user(shared, &request.id);
    let (mut rootfs, mut class, mut seen) = (request.rootfs.clone(), request.class, parent_of(&request.id));
    let mut view = None;
    while let (None, None, ContainerClass::Debug, Some(ancestor)) = (&rootfs, &view, class, &seen) {
        (rootfs, class) = (ancestor.request.rootfs.clone(), ancestor.request.class);
        view = ancestor.part.image_root.as_ref().map(View::of);
        seen = parent_of(&ancestor.id);
    }
    let view = view.transpose().map_err(|source| UserError::Image { source })?;
    let rootfs = rootfs.or(view.as_ref().map(View::path));
    user::resolve(request.command.user.as_deref(), rootfs.as_deref(), inherited)
}

/// The user of the container that another is nested in.
pub(super) fn inherited_user(shared: &Shared, id: &ContainerId) -> Option<User> {
    let parent = shared.table.get(&id.parent()?)?.record();
    Some(User { uid: parent.uid, gid: parent.gid, groups: parent.groups.clone() })
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
            create_searchable(parent)?;
            create()
        }
        (created, _) => created,
    }
}
