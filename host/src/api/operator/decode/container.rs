//! `ContainerInfo`: what surrounds the command.

use std::path::PathBuf;

use super::error::{DecodeError, Result};
use super::linux::{decode_linux, decode_rlimits, decode_tty};
use super::network::decode_networks;
use super::volume::decode_volumes;
use crate::api::operator::types as wire;
use cofferdam_core::model::{LinuxOptions, Request};

/// Adds the container options of a launch to its request.
pub(super) fn decode_container(request: Request, info: Option<&wire::ContainerInfo>) -> Result<Request> {
    let Some(info) = info else {
        let linux = LinuxOptions { share_cgroups: request.id.is_nested(), ..LinuxOptions::default() };
        return Ok(Request { linux, ..request });
    };
    reject_unsupported(info)?;
    Ok(Request {
        rootfs: info.mesos.as_ref().and_then(|mesos| mesos.rootfs.as_ref()).map(PathBuf::from),
        linux: decode_linux(&request.id, info)?,
        volumes: decode_volumes(&info.volumes)?,
        networks: decode_networks(&info.network_infos)?,
        rlimits: decode_rlimits(info.rlimit_info.as_ref())?,
        tty: decode_tty(info.tty_info.as_ref())?,
        ..request
    })
}

fn reject_unsupported(info: &wire::ContainerInfo) -> Result<()> {
    let has_image = info.mesos.as_ref().is_some_and(|mesos| mesos.image.is_some());
    let fields = [
        (
            "type",
            info.kind == wire::ContainerKind::Docker,
            ": `DOCKER` needs a container engine; use `MESOS`",
        ),
        ("docker", info.docker.is_some(), ": it needs a container engine; use `mesos`"),
        ("mesos.image", has_image, "; unpack it and give the directory as `mesos.rootfs`"),
    ];
    match fields.into_iter().find(|(_, present, _)| *present) {
        Some((field, _, advice)) => {
            Err(DecodeError::Unsupported { field: format!("container.{field}"), advice })
        }
        None => Ok(()),
    }
}
