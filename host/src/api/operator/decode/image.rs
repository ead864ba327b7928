//! Images.

use super::error::{DecodeError, Result};
use super::secret::decode_secret;
use crate::api::operator::types as wire;
use cofferdam_core::model::Secret;
use cofferdam_core::provisioner::{ImageName, PrunePolicy};

/// The name of an image, or its id in the store. `field` is that of the image in error messages.
pub(super) fn decode_image_name(field: &str, image: &wire::Image) -> Result<String> {
    match image {
        wire::Image { kind: wire::ImageKind::Appc, .. } => {
            let field = format!("{field}.type");
            Err(DecodeError::Unsupported { field, advice: ": `APPC`; use `DOCKER`" })
        }
        wire::Image { docker: Some(docker), .. } => Ok(docker.name.clone()),
        wire::Image { docker: None, .. } => {
            Err(DecodeError::field(format!("{field}.docker"), "it is missing"))
        }
    }
}

/// The credentials of a request for the registry of its image.
pub(super) fn decode_image_credentials(field: &str, image: &wire::Image) -> Result<Option<String>> {
    let Some(config) = image.docker.as_ref().and_then(|docker| docker.config.as_ref()) else {
        return Ok(None);
    };
    let field = format!("{field}.docker.config");
    match decode_secret(&field, config)? {
        Secret::Value(value) => Ok(Some(value)),
        _ => Err(DecodeError::Unsupported {
            field: format!("{field}.reference"),
            advice: "; give the content of `config.json` as `value`, or name a file in `credentials` of `[registry]`",
        }),
    }
}

/// Decodes `PRUNE_IMAGES`.
pub(in crate::api) fn decode_prune(prune: &wire::PruneImages) -> Result<PrunePolicy> {
    let decode = |(index, image): (usize, &wire::Image)| {
        let field = format!("prune_images.excluded_images[{index}]");
        let name = decode_image_name(&field, image)?;
        name.parse::<ImageName>().map_err(|error| DecodeError::field(field, error.to_string()))
    };
    let excluded = prune.excluded_images.iter().enumerate().map(decode).collect::<Result<_>>()?;
    Ok(PrunePolicy { named: !prune.keep_named.unwrap_or(false), excluded })
}
