//! The root file system of a container, before any plugin relies on it: that of its image, which may have to be pulled, or
//! a directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use cofferdam_plugin_model::Container;

use super::begin::{Begun, inherited_user};
use super::progress::check_cancelled;
use super::record::Handle;
use super::{LaunchError, Shared};
use crate::containerizer::user::{self, User};
use crate::provisioner::{ProvisionError, Provisioned, Pull, Pulled, View, Wanted};

/// A container with its root file system.
pub(super) struct Provided {
    /// What plugins are asked to prepare.
    pub(super) container: Container,
    /// What shows its root file system, if that is assembled from an image.
    pub(super) view: Option<View>,
    /// Environment variables of the agent that are not recorded.
    pub(super) secrets: BTreeMap<String, String>,
}

/// What has to be pulled before a container can be provided with its root file system, if anything.
pub(super) fn missing(
    shared: &Shared,
    handle: &Handle,
    image: Option<&Wanted>,
) -> Result<Option<Pull>, LaunchError> {
    let Some(wanted) = image else { return Ok(None) };
    shared.backend.provisioner.missing(wanted, handle.id()).map_err(|source| failed(handle, source))
}

/// Waits until the image of a container was pulled, or the container is to stop: then the pull is cancelled, unless others
/// wait for it.
pub(super) async fn pull(shared: &Shared, handle: &Handle, pull: Pull) -> Result<Pulled, LaunchError> {
    tracing::info!(container = %handle.id(), image = %pull.image.familiar(), "waiting for its image to be pulled");
    let mut waiting = shared.backend.provisioner.wait_for(pull).map_err(|source| failed(handle, source))?;
    let outcome = tokio::select! {
        biased;
        _ = handle.stop_requested() => None,
        outcome = waiting.pulled(|progress| handle.set_pull(Some(progress))) => Some(outcome),
    };
    waiting.leave().await;
    handle.set_pull(None);
    check_cancelled(handle)?;
    match outcome {
        Some(outcome) => outcome.map_err(|error| failed(handle, error.into())),
        None => Err(super::progress::internal(handle, "its pull has ended without a reason")),
    }
}

/// Provides a container with its root file system, and looks its user up there.
pub(super) fn provide(shared: &Shared, handle: &Handle, begun: Begun) -> Result<Provided, LaunchError> {
    let id = handle.id().clone();
    let Begun { mut container, image, mut user, secrets } = begun;
    let mut view = None;
    if let Some(wanted) = image {
        let shown = assemble(shared, handle, &wanted.image, &mut container)?;
        let inherited = inherited_user(shared, &id);
        user = user::resolve(container.command.user.as_deref(), Some(&shown.path()), inherited)
            .map_err(|source| LaunchError::User { id: id.clone(), source })?;
        view = Some(shown);
        (container.uid, container.gid) = (user.uid, user.gid);
        let User { uid, gid, groups } = user.clone();
        // Written to disk with the first process.
        handle.update_in_memory(|record| (record.uid, record.gid, record.groups) = (uid, gid, groups));
    }
    own_sandbox(handle, (user.uid, user.gid))?;
    if let (Some(path), None) = (container.rootfs.clone(), &view) {
        fs::read_dir(&path).map(drop).map_err(|source| LaunchError::Rootfs { id, path, source })?;
    }
    Ok(Provided { container, view, secrets })
}

/// Assembles the root file system of an image, and adds the configuration of the image.
fn assemble(
    shared: &Shared,
    handle: &Handle,
    image: &str,
    container: &mut Container,
) -> Result<View, LaunchError> {
    let is_cancelled = || check_cancelled(handle).is_err();
    let provisioned =
        shared.backend.provisioner.provision(image, handle.id(), &container.scratch, &is_cancelled);
    check_cancelled(handle)?;
    let Provisioned { image, root } = provisioned.map_err(|source| failed(handle, source))?;
    let view = View::of(&root).map_err(|source| failed(handle, ProvisionError::View { source }))?;
    container.rootfs = Some(view.path());
    container.image = Some(image.config);
    container.image_root = Some(root.clone());
    handle.update_in_memory(|record| {
        record.part.image_root = Some(root);
        record.part.image_manifest = Some(image.manifest);
    });
    Ok(view)
}

/// Makes the sandbox of a container that of the user of its command.
pub(super) fn own_sandbox(handle: &Handle, (uid, gid): (u32, u32)) -> Result<(), LaunchError> {
    let path = handle.record().sandbox.clone();
    let found = fs::symlink_metadata(&path);
    let owned = found.and_then(|found| match (found.uid(), found.gid()) == (uid, gid) {
        true => Ok(()),
        false => chown(&path, Some(uid), Some(gid)),
    });
    owned.map_err(|source| LaunchError::Directory { id: handle.id().clone(), path, source })
}

fn failed(handle: &Handle, source: ProvisionError) -> LaunchError {
    let image = handle.record().request.image.clone().unwrap_or_default();
    LaunchError::Image { id: handle.id().clone(), image, source }
}
