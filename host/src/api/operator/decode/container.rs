//! `ContainerInfo`: root file system and Linux options.

use std::path::PathBuf;

use super::error::{DecodeError, Result};
use crate::api::operator::types as wire;
use cofferdam_core::model::{ContainerId, LinuxOptions};

/// Decodes the root file system and Linux options of a container.
pub(super) fn decode_container(
    id: &ContainerId,
    info: Option<&wire::ContainerInfo>,
) -> Result<(Option<PathBuf>, LinuxOptions)> {
    let default = LinuxOptions { share_cgroups: id.is_nested(), ..LinuxOptions::default() };
    let Some(info) = info else { return Ok((None, default)) };
    reject_unsupported(info)?;
    let linux_default = wire::LinuxInfo::default();
    let linux = info.linux_info.as_ref().unwrap_or(&linux_default);
    if !id.is_nested() && linux.share_cgroups == Some(true) {
        return Err(DecodeError::field(
            "container.linux_info.share_cgroups",
            "a top-level container has no parent to share cgroups with",
        ));
    }
    let rootfs = info.mesos.as_ref().and_then(|mesos| mesos.rootfs.as_ref()).map(PathBuf::from);
    let options = LinuxOptions {
        hostname: info.hostname.clone(),
        share_pid_namespace: linux.share_pid_namespace.unwrap_or(false),
        share_cgroups: id.is_nested() && linux.shares_cgroups(),
        ..default
    };
    Ok((rootfs, options))
}

fn reject_unsupported(info: &wire::ContainerInfo) -> Result<()> {
    let linux_default = wire::LinuxInfo::default();
    let linux = info.linux_info.as_ref().unwrap_or(&linux_default);
    let has_image = info.mesos.as_ref().is_some_and(|mesos| mesos.image.is_some());
    let has_ipc_mode = !matches!(linux.ipc_mode, None | Some(wire::IpcMode::Unknown));
    let fields = [
        (
            "type",
            info.kind == wire::ContainerKind::Docker,
            ": `DOCKER` needs a container engine; use `MESOS`",
        ),
        ("docker", info.docker.is_some(), ": it needs a container engine; use `mesos`"),
        ("mesos.image", has_image, "; unpack it and give the directory as `mesos.rootfs`"),
        ("volumes", !info.volumes.is_empty(), ""),
        ("network_infos", !info.network_infos.is_empty(), ""),
        ("rlimit_info", info.rlimit_info.is_some(), ""),
        ("tty_info", info.tty_info.is_some(), ""),
        ("linux_info.capability_info", linux.capability_info.is_some(), ""),
        ("linux_info.bounding_capabilities", linux.bounding_capabilities.is_some(), ""),
        ("linux_info.effective_capabilities", linux.effective_capabilities.is_some(), ""),
        ("linux_info.seccomp", linux.seccomp.is_some(), ""),
        ("linux_info.ipc_mode", has_ipc_mode, ""),
        ("linux_info.shm_size", linux.shm_size.is_some(), ""),
    ];
    match fields.into_iter().find(|(_, present, _)| *present) {
        Some((field, _, advice)) => {
            Err(DecodeError::Unsupported { field: format!("container.{field}"), advice })
        }
        None => Ok(()),
    }
}
