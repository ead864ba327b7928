//! Launch requests.

use std::path::Path;

use super::id::encode_id;
use super::resources::{encode_limits, encode_resources};
use crate::api::operator::types as wire;
use cofferdam_core::model::{Command, Request, Uri};

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
    }
}

fn encode_command(command: &Command, uris: &[Uri]) -> wire::CommandInfo {
    let encode_variable = |(name, value): (&String, &String)| wire::Variable {
        name: name.clone(),
        value: Some(value.clone()),
        ..wire::Variable::default()
    };
    let variables: Vec<wire::Variable> = command.environment.iter().map(encode_variable).collect();
    wire::CommandInfo {
        uris: uris.iter().map(encode_uri).collect(),
        environment: (!variables.is_empty()).then_some(wire::Environment { variables }),
        shell: Some(command.shell),
        value: command.value.clone(),
        arguments: command.arguments.clone(),
        user: command.user.clone(),
        working_directory: command.working_directory.as_deref().map(encode_path),
    }
}

fn encode_uri(uri: &Uri) -> wire::Uri {
    wire::Uri {
        value: uri.value.clone(),
        executable: Some(uri.executable),
        extract: Some(uri.extract),
        cache: None,
        output_file: uri.output_file.clone(),
        sha256: uri.sha256.clone(),
    }
}

fn encode_container(request: &Request) -> wire::ContainerInfo {
    wire::ContainerInfo {
        kind: wire::ContainerKind::Mesos,
        hostname: request.linux.hostname.clone(),
        mesos: request
            .rootfs
            .as_deref()
            .map(|rootfs| wire::MesosInfo { image: None, rootfs: Some(encode_path(rootfs)) }),
        linux_info: Some(wire::LinuxInfo {
            share_pid_namespace: Some(request.linux.share_pid_namespace),
            share_cgroups: request.id.is_nested().then_some(request.linux.share_cgroups),
            ..wire::LinuxInfo::default()
        }),
        ..wire::ContainerInfo::default()
    }
}

fn encode_path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
