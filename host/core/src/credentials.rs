//! Credentials for registries: the files that clients of Docker write when they log in.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use data_encoding::BASE64;
use serde::Deserialize;

/// Maximum length of a file.
const MAX_LENGTH: u64 = 1 << 20;

/// The registry of images that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// Names of the default registry in files.
const DEFAULT_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The name of the default registry for helpers.
const DEFAULT_SERVER: &str = "https://index.docker.io/v1/";

/// A file with credentials.
#[derive(Debug, Clone, Default)]
pub struct CredentialsFile {
    entries: BTreeMap<String, Entry>,
    /// Helpers for single registries.
    helpers: BTreeMap<String, String>,
    /// The helper for all others.
    store: Option<String>,
}

/// What a file has for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Found {
    /// A user and a password.
    Password {
        /// The registry, as the file names it.
        server: String,
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that the authorization server of the registry exchanges for others.
    RefreshToken(String),
    /// A program keeps them: `docker-credential-NAME`.
    Helper {
        /// Its name.
        name: String,
        /// What it is asked for.
        server: String,
    },
}

/// Without secrets.
impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::RefreshToken(_) => "RefreshToken",
            Self::Helper { .. } => "Helper",
        })
    }
}

/// A text is no file of credentials. Its content is not part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCredentials {
    /// It is neither of the two formats.
    #[error("it has no `auths`, as it is no JSON object with them")]
    Format,
    /// An entry of the old format is malformed.
    #[error("the entry of a registry is no JSON object with `auth`")]
    Entry,
    /// The credentials of an entry are malformed.
    #[error("an `auth` is not base64")]
    Base64,
}

/// A registry's entry.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry")
    }
}

/// The new format; the old one is the first of its members.
#[derive(Deserialize)]
struct Config {
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

impl CredentialsFile {
    /// Reads an open file.
    ///
    /// # Errors
    /// If it cannot be read, or is too long.
    pub fn text(file: File) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        file.take(MAX_LENGTH + 1).read_to_end(&mut text)?;
        match text.len() as u64 > MAX_LENGTH {
            true => Err(io::Error::other(format!("it has more than {MAX_LENGTH} bytes"))),
            false => Ok(text),
        }
    }

    /// Parses `config.json` or `.dockercfg`.
    ///
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn parse(text: &[u8]) -> Result<Self, InvalidCredentials> {
        let config: Config = serde_json::from_slice(text).map_err(|_| InvalidCredentials::Format)?;
        if config.auths.is_some() || config.helpers.is_some() || config.store.is_some() {
            let store = config.store.filter(|store| !store.is_empty());
            let (entries, helpers) = (config.auths.unwrap_or_default(), config.helpers.unwrap_or_default());
            return Ok(Self { entries, helpers, store });
        }
        // A `config.json` may have other settings only.
        let members: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|_| InvalidCredentials::Format)?;
        let is_entry = |name: &str, member: &serde_json::Value| {
            name.contains(['.', ':', '/']) || member.get("auth").is_some()
        };
        let members = members.into_iter().filter(|(name, member)| is_entry(name, member));
        let entries = members.map(|(name, member)| Some((name, serde_json::from_value(member).ok()?)));
        let entries = entries.collect::<Option<_>>().ok_or(InvalidCredentials::Entry)?;
        Ok(Self { entries, ..Self::default() })
    }

    /// What there is for a registry: a host with an optional port, or [`DEFAULT_REGISTRY`].
    ///
    /// # Errors
    /// If its entry is malformed.
    pub fn find(&self, registry: &str) -> Result<Option<Found>, InvalidCredentials> {
        let server = match registry {
            DEFAULT_REGISTRY => DEFAULT_SERVER,
            other => other,
        };
        if let Some((_, name)) = self.helpers.iter().find(|(server, _)| is_of(server, registry)) {
            return Ok(Some(Found::Helper { name: name.clone(), server: server.to_owned() }));
        }
        for (server, entry) in self.entries.iter().filter(|(name, _)| is_of(name, registry)) {
            if let Some(found) = entry.found(server)? {
                return Ok(Some(found));
            }
        }
        let helper = |name: &String| Found::Helper { name: name.clone(), server: server.to_owned() };
        Ok(self.store.as_ref().map(helper))
    }
}

impl Entry {
    /// What it contains. An entry whose secrets a helper keeps is empty.
    fn found(&self, server: &str) -> Result<Option<Found>, InvalidCredentials> {
        let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Ok(Some(Found::RefreshToken(token)));
        }
        let pair = match (set(&self.auth), &self.username, &self.password) {
            (Some(auth), ..) => {
                let decoded = BASE64.decode(auth.as_bytes()).ok();
                let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
                let decoded = decoded.ok_or(InvalidCredentials::Base64)?;
                let decoded = decoded.trim_end_matches('\0');
                decoded.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
            }
            (None, Some(username), Some(password)) => Some((username.clone(), password.clone())),
            _ => None,
        };
        let server = server.to_owned();
        Ok(pair.map(|(username, password)| Found::Password { server, username, password }))
    }
}

/// Whether an entry is for all of a registry. What other clients write for a path of it is not: its images are nobody else's.
fn is_of(name: &str, registry: &str) -> bool {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let path = name.split_once('/').map_or("", |(_, path)| path);
    host_of(name) == registry && matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
}

/// The host of a registry, which may be written as a URL. All names of the default registry are [`DEFAULT_REGISTRY`].
#[must_use]
pub fn host_of(name: &str) -> &str {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let host = name.split('/').next().unwrap_or(name);
    if DEFAULT_NAMES.contains(&host) { DEFAULT_REGISTRY } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `user:secret`.
    const AUTH: &str = "dXNlcjpzZWNyZXQ=";

    fn find(text: &str, registry: &str) -> Option<Found> {
        CredentialsFile::parse(text.as_bytes()).unwrap().find(registry).unwrap()
    }

    fn password(server: &str) -> Option<Found> {
        let (username, password) = ("user".to_owned(), "secret".to_owned());
        Some(Found::Password { server: server.to_owned(), username, password })
    }

    #[test]
    fn entries_are_found_by_host_and_port() {
        for name in ["host:5000", "https://host:5000", "http://host:5000/v1/", "host:5000/v2"] {
            let text = format!(r#"{{"auths": {{"{name}": {{"auth": "{AUTH}"}}}}}}"#);
            assert_eq!(find(&text, "host:5000"), password(name), "{name}");
        }
        for name in
            ["host:5000/team", "https://host:5000/team/app", "host:5000/v1/team", "other:5000", "host"]
        {
            assert!(!is_of(name, "host:5000"), "{name}");
        }
        let old = format!(r#"{{"https://index.docker.io/v1/": {{"auth": "{AUTH}", "email": "a@b"}}}}"#);
        assert_eq!(find(&old, DEFAULT_REGISTRY), password("https://index.docker.io/v1/"));
        assert_eq!(find(&old, "other"), None);
    }

    #[test]
    fn an_empty_entry_hides_no_other_and_a_malformed_one_is_an_error() {
        let text = format!(r#"{{"auths": {{"host": {{}}, "https://host": {{"auth": "{AUTH}"}}}}}}"#);
        assert_eq!(find(&text, "host"), password("https://host"));
        for old in
            [r#"{"host.example": "text"}"#, r#"{"host": {"auth": 1}}"#, r#"{"host:1": {"username": []}}"#]
        {
            let error = CredentialsFile::parse(old.as_bytes()).unwrap_err();
            assert_eq!(error, InvalidCredentials::Entry, "{old}");
        }
        assert_eq!(find(r#"{"detachKeys": "ctrl-e", "HttpHeaders": {"a": "b"}}"#, "host"), None);
    }

    #[test]
    fn helpers_and_tokens_are_found() {
        let text = r#"{"auths": {"host": {}, "own": {"username": "user", "password": "secret"},
                                 "token": {"auth": "dTo=", "identitytoken": "refresh"}},
                       "credHelpers": {"cloud.example": "cloud"}, "credsStore": "pass"}"#;
        let helper = |name: &str, server: &str| {
            Some(Found::Helper { name: name.to_owned(), server: server.to_owned() })
        };
        assert_eq!(find(text, "host"), helper("pass", "host"));
        assert_eq!(find(text, "cloud.example"), helper("cloud", "cloud.example"));
        assert_eq!(find(text, DEFAULT_REGISTRY), helper("pass", "https://index.docker.io/v1/"));
        assert_eq!(find(text, "own"), password("own"));
        assert_eq!(find(text, "token"), Some(Found::RefreshToken("refresh".to_owned())));
        assert_eq!(find(r#"{"credHelpers": {"a": "b"}}"#, "host"), None);
    }

    #[test]
    fn errors_and_debugging_show_no_secrets() {
        let error = CredentialsFile::parse(b"root:hunter2").unwrap_err();
        assert!(error.to_string().contains("has no `auths`"));
        let malformed = r#"{"auths": {"host": {"auth": "hunter2!"}}}"#;
        let file = CredentialsFile::parse(malformed.as_bytes()).unwrap();
        let error = file.find("host").unwrap_err();
        let shown = format!("{error} {file:?} {:?}", password("host"));
        assert!(!shown.contains("hunter2") && !shown.contains("secret"), "{shown}");
    }
}
