//! Volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{DecodeError, Result};
use super::image::{decode_image_credentials, decode_image_name};
use super::secret::decode_secret;
use crate::api::operator::types as wire;
use cofferdam_core::model::{Volume, VolumeSource};

/// Decodes the volumes of a container.
pub(super) fn decode_volumes(volumes: &[wire::Volume]) -> Result<Vec<Volume>> {
    let decode = |(index, volume): (usize, &wire::Volume)| {
        let field = format!("container.volumes[{index}]");
        if volume.container_path.is_empty() {
            return Err(DecodeError::field(format!("{field}.container_path"), "it is empty"));
        }
        Ok(Volume {
            container_path: PathBuf::from(&volume.container_path),
            read_only: volume.mode == wire::VolumeMode::Ro,
            source: decode_source(&field, volume)?,
        })
    };
    volumes.iter().enumerate().map(decode).collect()
}

/// Decodes the credentials of a request for the registries of the images of its volumes, by the path of the volume.
pub(super) fn decode_volume_credentials(volumes: &[wire::Volume]) -> Result<BTreeMap<PathBuf, String>> {
    let mut credentials = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let Some(image) = &volume.image else { continue };
        if let Some(config) = decode_image_credentials(&format!("container.volumes[{index}].image"), image)? {
            credentials.insert(PathBuf::from(&volume.container_path), config);
        }
    }
    Ok(credentials)
}

fn decode_source(field: &str, volume: &wire::Volume) -> Result<VolumeSource> {
    match (&volume.host_path, &volume.image, &volume.source) {
        (Some(path), None, None) => {
            Ok(VolumeSource::HostPath { path: PathBuf::from(path), propagation: None })
        }
        (None, Some(image), None) => Ok(VolumeSource::Image {
            image: decode_image_name(&format!("{field}.image"), image)?,
            force_pull: image.cached == Some(false),
            root: None,
        }),
        (None, None, Some(source)) => decode_typed_source(&format!("{field}.source"), source),
        _ => Err(DecodeError::field(field, "expected exactly one of `host_path`, `image` and `source`")),
    }
}

fn decode_typed_source(field: &str, source: &wire::VolumeSource) -> Result<VolumeSource> {
    let missing = |name: &str| DecodeError::field(format!("{field}.{name}"), "it is missing");
    match source.kind.unwrap_or_default() {
        wire::VolumeSourceKind::HostPath => {
            let host = source.host_path.as_ref().ok_or_else(|| missing("host_path"))?;
            let mode = host.mount_propagation.as_ref().and_then(|propagation| propagation.mode);
            let propagation = match mode.unwrap_or_default() {
                wire::PropagationMode::Unknown => None,
                wire::PropagationMode::HostToContainer => Some("slave".to_owned()),
                wire::PropagationMode::Bidirectional => Some("shared".to_owned()),
            };
            Ok(VolumeSource::HostPath { path: PathBuf::from(&host.path), propagation })
        }
        wire::VolumeSourceKind::SandboxPath => {
            let sandbox = source.sandbox_path.as_ref().ok_or_else(|| missing("sandbox_path"))?;
            let parent = match sandbox.kind.unwrap_or_default() {
                wire::SandboxPathKind::Own => false,
                wire::SandboxPathKind::Parent => true,
                wire::SandboxPathKind::Unknown => return Err(missing("sandbox_path.type")),
            };
            Ok(VolumeSource::SandboxPath { parent, path: PathBuf::from(&sandbox.path) })
        }
        wire::VolumeSourceKind::Secret => {
            let secret = source.secret.as_ref().ok_or_else(|| missing("secret"))?;
            Ok(VolumeSource::Secret { secret: decode_secret(&format!("{field}.secret"), secret)? })
        }
        wire::VolumeSourceKind::DockerVolume => {
            let volume = source.docker_volume.as_ref().ok_or_else(|| missing("docker_volume"))?;
            let options = volume.driver_options.iter().flat_map(|options| &options.parameter);
            Ok(VolumeSource::DockerVolume {
                driver: volume.driver.clone().unwrap_or_else(|| "local".to_owned()),
                name: volume.name.clone(),
                options: options.map(|option| (option.key.clone(), option.value.clone())).collect(),
            })
        }
        wire::VolumeSourceKind::CsiVolume => {
            Err(DecodeError::Unsupported { field: format!("{field}.csi_volume"), advice: "" })
        }
        wire::VolumeSourceKind::Unknown => Err(missing("type")),
    }
}
