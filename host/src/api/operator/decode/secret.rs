//! Secrets.

use super::error::{DecodeError, Result};
use crate::api::operator::types as wire;
use cofferdam_core::model::Secret;

/// Decodes a secret. `field` is its name in error messages.
pub(super) fn decode_secret(field: &str, secret: &wire::Secret) -> Result<Secret> {
    let missing = |name: &str| DecodeError::field(format!("{field}.{name}"), "it is missing");
    match secret.kind.unwrap_or_default() {
        wire::SecretKind::Reference => {
            let reference = secret.reference.as_ref().ok_or_else(|| missing("reference"))?;
            Ok(Secret::Reference { name: reference.name.clone(), key: reference.key.clone() })
        }
        wire::SecretKind::Value => {
            let value = secret.value.as_ref().ok_or_else(|| missing("value"))?;
            let text = String::from_utf8(value.data.0.clone()).map_err(|_| {
                DecodeError::field(format!("{field}.value"), "it is not UTF-8; give the secret by reference")
            })?;
            Ok(Secret::Value(text))
        }
        wire::SecretKind::Unknown => Err(missing("type")),
    }
}
