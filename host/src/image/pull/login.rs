//! Answers to the challenge of a registry.

use std::io::Read;

use data_encoding::BASE64;
use serde::Deserialize;
use ureq::http::{HeaderValue, StatusCode};

use super::challenge::Challenge;
use super::error::{PullError, Result};
use super::secret::Secret;
use crate::http::{Answer, Client, Headers, Method, redact};

/// Maximum length of what an authorization server responds with.
const MAX_TOKEN: u64 = 1 << 20;

/// The name of this program for authorization servers.
const CLIENT_ID: &str = "cofferdam";

/// Older servers use the first name, those of OAuth 2 the second; some send both.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The header that a registry accepts instead of a request that it has refused.
///
/// It names the authorization server itself, which is therefore checked like the target of a redirect: the credentials of a
/// registry with TLS are sent to a server with TLS, and no server that is closer than the registry is asked.
pub(super) fn authorize(
    client: &Client,
    refused: &Answer,
    secret: Option<&Secret>,
    repository: &str,
) -> Result<Option<HeaderValue>> {
    match (Challenge::of(refused.response.headers()), secret) {
        (Some(Challenge::Basic), Some(Secret::Password { username, password })) => {
            Ok(Some(basic(username, password)?))
        }
        (Some(Challenge::Basic), _) => Ok(None),
        (Some(Challenge::Bearer { realm, service }), secret) => {
            let scope = format!("repository:{repository}:pull");
            let mut fields = vec![("scope", scope.as_str())];
            fields.extend(service.as_deref().map(|service| ("service", service)));
            let token = request_token(client, refused, &realm, fields, secret)?;
            let header = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut header = header.map_err(|_| PullError::NoToken { url: redact(&realm) })?;
            header.set_sensitive(true);
            Ok(Some(header))
        }
        (None, _) => Err(PullError::Challenge),
    }
}

fn request_token<'f>(
    client: &Client,
    refused: &Answer,
    realm: &str,
    mut fields: Vec<(&str, &'f str)>,
    secret: Option<&'f Secret>,
) -> Result<String> {
    let what = || format!("a token from `{}`", redact(realm));
    let mut headers = Headers::default();
    let answer = match secret {
        Some(Secret::RefreshToken(token)) => {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", token.as_str()),
            ]);
            client.send(Method::PostForm(&form(&fields)), realm, &headers, Some(refused.origin))
        }
        other => {
            if let Some(Secret::Password { username, password }) = other {
                headers.authorization = Some(basic(username, password)?);
            }
            let separator = if realm.contains('?') { '&' } else { '?' };
            let url = format!("{realm}{separator}{}", form(&fields));
            client.send(Method::Get, &url, &headers, Some(refused.origin))
        }
    };
    let answer = answer.map_err(|source| PullError::Request { what: what(), source })?;
    match answer.response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if secret.is_some() => {
            return Err(PullError::Refused { what: what(), message: String::new() });
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(PullError::NoCredentials { what: what(), message: String::new() });
        }
        status => return Err(PullError::Status { what: what(), status, message: String::new(), wait: None }),
    }
    let mut text = Vec::new();
    let read = answer.into_reader().take(MAX_TOKEN + 1).read_to_end(&mut text);
    read.map_err(|error| PullError::Interrupted { what: what(), source: client.body_error(error) })?;
    if text.len() as u64 > MAX_TOKEN {
        return Err(PullError::TooLong { what: what(), limit: MAX_TOKEN });
    }
    let token: Option<Token> = serde_json::from_slice(&text).ok();
    let token = token.map(|token| if token.token.is_empty() { token.access_token } else { token.token });
    token.filter(|token| !token.is_empty()).ok_or_else(|| PullError::NoToken { url: redact(realm) })
}

fn basic(username: &str, password: &str) -> Result<HeaderValue> {
    let encoded = BASE64.encode(format!("{username}:{password}").as_bytes());
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}")).map_err(|_| PullError::Challenge)?;
    header.set_sensitive(true);
    Ok(header)
}

/// The fields of a form, encoded as in a query.
fn form(fields: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let mut encoded = String::with_capacity(text.len());
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    encoded.push(byte.into())
                }
                other => encoded.push_str(&format!("%{other:02X}")),
            }
        }
        encoded
    };
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    fields.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_form_are_encoded() {
        let fields = [("scope", "repository:a/b:pull"), ("service", "x y&z=é")];
        assert_eq!(form(&fields), "scope=repository%3Aa%2Fb%3Apull&service=x%20y%26z%3D%C3%A9");
    }
}
