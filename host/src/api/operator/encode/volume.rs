//! Volumes and secrets.

use std::path::Path;

use super::image::encode_image;
use crate::api::operator::types as wire;
use cofferdam_core::model::{Secret, Volume, VolumeSource};

pub(super) fn encode_volume(volume: &Volume) -> wire::Volume {
    let (host_path, source) = encode_source(&volume.source);
    let image = match &volume.source {
        VolumeSource::Image { image, force_pull, .. } => Some(encode_image(image, *force_pull)),
        _ => None,
    };
    wire::Volume {
        mode: if volume.read_only { wire::VolumeMode::Ro } else { wire::VolumeMode::Rw },
        container_path: encode_path(&volume.container_path),
        host_path,
        image,
        source,
    }
}

/// The host path or the other source of a volume; neither for an image. A device has no form in the API.
fn encode_source(source: &VolumeSource) -> (Option<String>, Option<wire::VolumeSource>) {
    let none = wire::VolumeSource::default;
    let source = match source {
        VolumeSource::HostPath { path, propagation: None } => return (Some(encode_path(path)), None),
        VolumeSource::HostPath { path, propagation: Some(propagation) } => {
            let mode = match propagation.as_str() {
                "slave" => Some(wire::PropagationMode::HostToContainer),
                "shared" => Some(wire::PropagationMode::Bidirectional),
                _ => None,
            };
            let mount_propagation = Some(wire::MountPropagation { mode });
            wire::VolumeSource {
                kind: Some(wire::VolumeSourceKind::HostPath),
                host_path: Some(wire::HostPathVolume { path: encode_path(path), mount_propagation }),
                ..none()
            }
        }
        VolumeSource::Image { .. } => return (None, None),
        VolumeSource::SandboxPath { parent, path } => {
            let kind = if *parent { wire::SandboxPathKind::Parent } else { wire::SandboxPathKind::Own };
            wire::VolumeSource {
                kind: Some(wire::VolumeSourceKind::SandboxPath),
                sandbox_path: Some(wire::SandboxPathVolume { kind: Some(kind), path: encode_path(path) }),
                ..none()
            }
        }
        VolumeSource::Secret { secret } => wire::VolumeSource {
            kind: Some(wire::VolumeSourceKind::Secret),
            secret: Some(encode_secret(secret)),
            ..none()
        },
        VolumeSource::DockerVolume { driver, name, options } => {
            let parameter =
                |(key, value): (&String, &String)| wire::Parameter { key: key.clone(), value: value.clone() };
            let options = wire::DriverOptions { parameter: options.iter().map(parameter).collect() };
            wire::VolumeSource {
                kind: Some(wire::VolumeSourceKind::DockerVolume),
                docker_volume: Some(wire::DockerVolume {
                    driver: Some(driver.clone()),
                    name: name.clone(),
                    driver_options: Some(options),
                }),
                ..none()
            }
        }
        _ => none(),
    };
    (None, Some(source))
}

pub(super) fn encode_secret(secret: &Secret) -> wire::Secret {
    match secret {
        Secret::Reference { name, key } => wire::Secret {
            kind: Some(wire::SecretKind::Reference),
            reference: Some(wire::SecretReference { name: name.clone(), key: key.clone() }),
            value: None,
        },
        Secret::Value(value) => wire::Secret {
            kind: Some(wire::SecretKind::Value),
            reference: None,
            value: Some(wire::SecretValue { data: wire::Bytes(value.clone().into_bytes()) }),
        },
        _ => wire::Secret::default(),
    }
}

pub(super) fn encode_path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
