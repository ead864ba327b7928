//! The root file system of a container, before any plugin relies on it: that of its image, which may have to be pulled, or
//! a directory. And those of its volumes that are images.

use std::collections::BTreeMap;
use std::fs;
use std::future::poll_fn;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::task::Poll;

use cofferdam_plugin_model::{Container, VolumeSource};

use super::begin::{Begun, inherited_user};
use super::progress::check_cancelled;
use super::record::Handle;
use super::{LaunchError, Shared};
use crate::containerizer::user::{self, User};
use crate::provisioner::{ProvisionError, Provisioned, Pull, Pulled, View, WaitingForPull, Wanted};

/// A container with its root file system.
pub(super) struct Provided {
    /// What plugins are asked to prepare.
    pub(super) container: Container,
    /// What shows its root file system, if that is assembled from an image.
    pub(super) view: Option<View>,
    /// Environment variables of the agent that are not recorded.
    pub(super) secrets: BTreeMap<String, String>,
}

/// An image that has to be pulled before a container can be provided with it.
#[derive(Clone)]
pub(super) struct MissingImage {
    /// The path of the volume that it is for; `None` for the root file system.
    volume: Option<PathBuf>,
    pull: Pull,
}

/// What has to be pulled before a container can be provided with its root file system and volumes.
pub(super) fn missing(
    shared: &Shared,
    handle: &Handle,
    begun: &Begun,
) -> Result<Vec<MissingImage>, LaunchError> {
    let of_volumes = begun.volume_images.iter().map(|(path, wanted)| (Some(path), wanted));
    let mut missing = Vec::new();
    for (volume, wanted) in begun.image.iter().map(|wanted| (None, wanted)).chain(of_volumes) {
        let pull = shared.backend.provisioner.missing(wanted, handle.id());
        let pull = pull.map_err(|source| failed(handle, volume.map(PathBuf::as_path), source))?;
        missing.extend(pull.map(|pull| MissingImage { volume: volume.cloned(), pull }));
    }
    Ok(missing)
}

/// Waits until the images of a container were pulled, all at once, one has failed, or the container is to stop: then those
/// pulls are cancelled that nobody else waits for.
pub(super) async fn pull(
    shared: &Shared,
    handle: &Handle,
    missing: Vec<MissingImage>,
) -> Result<Vec<Pulled>, LaunchError> {
    let mut waiting = Vec::new();
    for MissingImage { volume, pull } in missing {
        tracing::info!(container = %handle.id(), image = %pull.source, "waiting for its image to be pulled");
        let pull = shared.backend.provisioner.wait_for(pull);
        let pull = pull.map_err(|source| failed(handle, volume.as_deref(), source))?;
        waiting.push((volume, pull));
    }
    let outcome = tokio::select! {
        biased;
        _ = handle.stop_requested() => None,
        outcome = all_pulled(handle, &mut waiting) => Some(outcome),
    };
    // All are left before any is waited for: what one has pulled would keep the rest of another one from being removed.
    let left: Vec<_> = waiting.into_iter().map(|(_, pull)| pull.leave()).collect();
    for ended in left {
        ended.await;
    }
    handle.set_pull(None);
    check_cancelled(handle)?;
    outcome.unwrap_or_else(|| Err(super::progress::internal(handle, "its pull has ended without a reason")))
}

/// Waits for all pulls, or the first one that fails.
async fn all_pulled(
    handle: &Handle,
    waiting: &mut [(Option<PathBuf>, WaitingForPull)],
) -> Result<Vec<Pulled>, LaunchError> {
    let mut pending: Vec<_> = Vec::new();
    for (volume, pull) in waiting {
        pending.push(Box::pin(async move {
            let pulled = pull.pulled(|progress| handle.set_pull(Some(progress))).await;
            pulled.map_err(|error| failed(handle, volume.as_deref(), error.into()))
        }));
    }
    let mut pulled = Vec::new();
    poll_fn(|context| {
        let mut index = 0;
        while let Some(next) = pending.get_mut(index) {
            match next.as_mut().poll(context) {
                Poll::Pending => index += 1,
                Poll::Ready(ended) => {
                    drop(pending.swap_remove(index));
                    match ended {
                        Ok(image) => pulled.push(image),
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
        if pending.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await?;
    Ok(pulled)
}

/// Provides a container with its root file system, and looks its user up there.
pub(super) fn provide(shared: &Shared, handle: &Handle, begun: Begun) -> Result<Provided, LaunchError> {
    let id = handle.id().clone();
    let Begun { mut container, image, volume_images, mut user, secrets } = begun;
    let mut view = None;
    if let Some(wanted) = image {
        let shown = assemble(shared, handle, &wanted, &mut container)?;
        let inherited = inherited_user(shared, &id);
        user = user::resolve(container.command.user.as_deref(), Some(&shown.path()), inherited)
            .map_err(|source| LaunchError::User { id: id.clone(), source })?;
        view = Some(shown);
        (container.uid, container.gid) = (user.uid, user.gid);
        let User { uid, gid, groups } = user.clone();
        // Written to disk with the first process.
        handle.update_in_memory(|record| (record.uid, record.gid, record.groups) = (uid, gid, groups));
    }
    for (path, wanted) in volume_images {
        assemble_volume(shared, handle, &path, &wanted, &mut container)?;
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
    wanted: &Wanted,
    container: &mut Container,
) -> Result<View, LaunchError> {
    let Provisioned { image, root } = provision(shared, handle, None, wanted, container)?;
    let unseen = |source| failed(handle, None, ProvisionError::View { source });
    let view = View::of(&root).map_err(unseen)?;
    if let Some(name) = view.linked_mount_point().map_err(unseen)? {
        return Err(failed(handle, None, ProvisionError::Linked { name }));
    }
    container.rootfs = Some(view.path());
    container.image = Some(image.config);
    container.image_root = Some(root.clone());
    handle.update_in_memory(|record| {
        record.part.image_root = Some(root);
        record.part.image_manifest = Some(image.manifest);
    });
    Ok(view)
}

/// Assembles the root file system of the image of a volume.
fn assemble_volume(
    shared: &Shared,
    handle: &Handle,
    path: &Path,
    wanted: &Wanted,
    container: &mut Container,
) -> Result<(), LaunchError> {
    let provisioned = provision(shared, handle, Some(path), wanted, container)?;
    let volume = container.volumes.iter_mut().find(|volume| volume.container_path == path);
    if let Some(VolumeSource::Image { root, .. }) = volume.map(|volume| &mut volume.source) {
        *root = Some(provisioned.root);
    }
    Ok(())
}

fn provision(
    shared: &Shared,
    handle: &Handle,
    volume: Option<&Path>,
    wanted: &Wanted,
    container: &Container,
) -> Result<Provisioned, LaunchError> {
    let is_cancelled = || check_cancelled(handle).is_err();
    let provisioned =
        shared.backend.provisioner.provision(wanted, handle.id(), &container.scratch, &is_cancelled);
    check_cancelled(handle)?;
    provisioned.map_err(|source| failed(handle, volume, source))
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

/// An error of the image of a volume, or of the root file system.
fn failed(handle: &Handle, volume: Option<&Path>, source: ProvisionError) -> LaunchError {
    let id = handle.id().clone();
    let request = &handle.record().request;
    let Some(path) = volume else {
        return LaunchError::Image { id, image: request.image.clone().unwrap_or_default(), source };
    };
    let found = request.volumes.iter().find(|volume| volume.container_path == path);
    let image = match found.map(|volume| &volume.source) {
        Some(VolumeSource::Image { image, .. }) => image.clone(),
        _ => String::new(),
    };
    LaunchError::VolumeImage { id, path: path.to_owned(), image, source }
}
