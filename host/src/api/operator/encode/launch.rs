//! Launch requests.

use super::id::encode_id;
use super::image::encode_image;
use super::linux::{encode_linux, encode_network, encode_port_mapping, encode_rlimits, encode_tty};
use super::resources::{encode_limits, encode_resources};
use super::volume::{encode_path, encode_secret, encode_volume};
use crate::api::operator::types as wire;
use cofferdam_core::model::{Command, DockerNetwork, DockerOptions, DockerParameter, Request, Secret, Uri};

/// Encodes a request as `LAUNCH_CONTAINER`. Decoding the result gives the same request, except for its class, which
/// the API does not have.
#[must_use]
pub fn encode_launch(request: &Request) -> wire::LaunchContainer {
    let encode_label =
        |(key, value): (&String, &String)| wire::Label { key: key.clone(), value: Some(value.clone()) };
    let labels: Vec<wire::Label> = request.labels.iter().map(encode_label).collect();
    wire::LaunchContainer {
        container_id: encode_id(&request.id),
        command: Some(encode_command(&request.command, &request.uris)),
        resources: encode_resources(&request.resources),
        limits: encode_limits(&request.resources),
        container: Some(encode_container(request)),
        labels: (!labels.is_empty()).then_some(wire::Labels { labels }),
        attach: (request.interactive || request.attached).then_some(wire::AttachInfo {
            stdin: request.interactive.then_some(true),
            output: request.attached.then_some(true),
        }),
    }
}

fn encode_command(command: &Command, uris: &[Uri]) -> wire::CommandInfo {
    let encode_variable = |(name, value): (&String, &String)| wire::Variable {
        name: name.clone(),
        value: Some(value.clone()),
        ..wire::Variable::default()
    };
    let encode_secret_variable = |(name, secret): (&String, &Secret)| wire::Variable {
        name: name.clone(),
        kind: Some(wire::VariableKind::Secret),
        secret: Some(encode_secret(secret)),
        ..wire::Variable::default()
    };
    let secrets = command.secrets.iter().map(encode_secret_variable);
    let variables: Vec<wire::Variable> =
        command.environment.iter().map(encode_variable).chain(secrets).collect();
    wire::CommandInfo {
        uris: uris.iter().map(encode_uri).collect(),
        environment: (!variables.is_empty()).then_some(wire::Environment { variables }),
        shell: Some(command.shell),
        value: command.value.clone(),
        arguments: command.arguments.clone(),
        user: command.user.clone(),
        working_directory: command.working_directory.as_deref().map(encode_path),
        replaces_cmd: command.replaces_cmd.then_some(true),
    }
}

fn encode_uri(uri: &Uri) -> wire::Uri {
    wire::Uri {
        value: uri.value.clone(),
        executable: Some(uri.executable),
        extract: Some(uri.extract),
        cache: uri.cache.then_some(true),
        output_file: uri.output_file.clone(),
        sha256: uri.sha256.clone(),
    }
}

fn encode_docker(docker: &DockerOptions) -> wire::DockerInfo {
    let parameter = |it: &DockerParameter| wire::Parameter { key: it.key.clone(), value: it.value.clone() };
    wire::DockerInfo {
        image: docker.image.clone(),
        network: Some(match docker.network {
            DockerNetwork::Host => wire::DockerNetwork::Host,
            DockerNetwork::Bridge => wire::DockerNetwork::Bridge,
            DockerNetwork::None => wire::DockerNetwork::None,
            DockerNetwork::User => wire::DockerNetwork::User,
        }),
        port_mappings: docker.port_mappings.iter().map(encode_port_mapping).collect(),
        privileged: docker.privileged.then_some(true),
        parameters: docker.parameters.iter().map(parameter).collect(),
        force_pull_image: docker.force_pull_image.then_some(true),
        volume_driver: docker.volume_driver.clone(),
    }
}

fn encode_container(request: &Request) -> wire::ContainerInfo {
    if let Some(docker) = &request.docker {
        return wire::ContainerInfo {
            kind: wire::ContainerKind::Docker,
            hostname: request.linux.hostname.clone(),
            volumes: request.volumes.iter().map(encode_volume).collect(),
            docker: Some(encode_docker(docker)),
            network_infos: request.networks.iter().map(encode_network).collect(),
            ..wire::ContainerInfo::default()
        };
    }
    wire::ContainerInfo {
        kind: wire::ContainerKind::Mesos,
        hostname: request.linux.hostname.clone(),
        mesos: (request.rootfs.is_some() || request.image.is_some()).then(|| wire::MesosInfo {
            image: request.image.as_deref().map(|image| encode_image(image, request.force_pull_image)),
            rootfs: request.rootfs.as_deref().map(encode_path),
        }),
        volumes: request.volumes.iter().map(encode_volume).collect(),
        docker: None,
        network_infos: request.networks.iter().map(encode_network).collect(),
        linux_info: Some(encode_linux(request)),
        rlimit_info: encode_rlimits(&request.rlimits),
        tty_info: request.tty.as_ref().map(encode_tty),
    }
}
