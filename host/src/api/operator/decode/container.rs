//! `ContainerInfo`: what surrounds the command.

use std::path::PathBuf;

use super::error::{DecodeError, Result};
use super::image::{decode_image_credentials, decode_image_name};
use super::linux::{decode_linux, decode_rlimits, decode_tty};
use super::network::{decode_networks, decode_port_mapping};
use super::volume::{decode_volume_credentials, decode_volumes};
use crate::api::operator::types as wire;
use cofferdam_core::model::{DockerNetwork, DockerOptions, DockerParameter, LinuxOptions, Request};

/// Adds the container options of a launch to its request.
pub(super) fn decode_container(request: Request, info: Option<&wire::ContainerInfo>) -> Result<Request> {
    let Some(info) = info else {
        let linux = LinuxOptions { share_cgroups: request.id.is_nested(), ..LinuxOptions::default() };
        return Ok(Request { linux, ..request });
    };
    if info.kind == wire::ContainerKind::Docker {
        return decode_docker(request, info);
    }
    reject_unsupported(info)?;
    let image = info.mesos.as_ref().and_then(|mesos| mesos.image.as_ref());
    let credentials =
        image.map(|image| decode_image_credentials("container.mesos.image", image)).transpose()?;
    Ok(Request {
        image: image.map(|image| decode_image_name("container.mesos.image", image)).transpose()?,
        force_pull_image: image.is_some_and(|image| image.cached == Some(false)),
        image_credentials: credentials.flatten(),
        volume_image_credentials: decode_volume_credentials(&info.volumes)?,
        rootfs: info.mesos.as_ref().and_then(|mesos| mesos.rootfs.as_ref()).map(PathBuf::from),
        linux: decode_linux(&request.id, info)?,
        volumes: decode_volumes(&info.volumes)?,
        networks: decode_networks(&info.network_infos)?,
        rlimits: decode_rlimits(info.rlimit_info.as_ref())?,
        tty: decode_tty(info.tty_info.as_ref())?,
        ..request
    })
}

/// Adds the options of a container of an engine.
fn decode_docker(request: Request, info: &wire::ContainerInfo) -> Result<Request> {
    let fields = [
        ("mesos", info.mesos.is_some(), "; use `docker`"),
        ("linux_info", info.linux_info.is_some(), "; use `docker.parameters`"),
        ("rlimit_info", info.rlimit_info.is_some(), "; use the parameter `ulimit`"),
        ("tty_info", info.tty_info.is_some(), ": containers of an engine have no terminal"),
    ];
    if let Some((field, _, advice)) = fields.into_iter().find(|(_, present, _)| *present) {
        let field = format!("container.{field} with `type` `DOCKER`");
        return Err(DecodeError::Unsupported { field, advice });
    }
    let missing = || DecodeError::field("container.docker", "it is missing");
    let docker = info.docker.as_ref().ok_or_else(missing)?;
    let mapping =
        |mapping: &wire::PortMapping| decode_port_mapping("container.docker.port_mappings", mapping);
    let parameter = |parameter: &wire::Parameter| DockerParameter {
        key: parameter.key.clone(),
        value: parameter.value.clone(),
    };
    Ok(Request {
        docker: Some(DockerOptions {
            image: docker.image.clone(),
            network: match docker.network.unwrap_or_default() {
                wire::DockerNetwork::Host => DockerNetwork::Host,
                wire::DockerNetwork::Bridge => DockerNetwork::Bridge,
                wire::DockerNetwork::None => DockerNetwork::None,
                wire::DockerNetwork::User => DockerNetwork::User,
            },
            port_mappings: docker.port_mappings.iter().map(mapping).collect::<Result<_>>()?,
            privileged: docker.privileged.unwrap_or(false),
            parameters: docker.parameters.iter().map(parameter).collect(),
            force_pull_image: docker.force_pull_image.unwrap_or(false),
            volume_driver: docker.volume_driver.clone(),
        }),
        linux: LinuxOptions { hostname: info.hostname.clone(), ..LinuxOptions::default() },
        volumes: decode_volumes(&info.volumes)?,
        networks: decode_networks(&info.network_infos)?,
        ..request
    })
}

fn reject_unsupported(info: &wire::ContainerInfo) -> Result<()> {
    let fields = [("docker", info.docker.is_some(), " with `type` `MESOS`; use `mesos`, or `type` `DOCKER`")];
    match fields.into_iter().find(|(_, present, _)| *present) {
        Some((field, _, advice)) => {
            Err(DecodeError::Unsupported { field: format!("container.{field}"), advice })
        }
        None => Ok(()),
    }
}
