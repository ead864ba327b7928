//! Credentials for registries: the files that clients of Docker write when they log in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cofferdam_linux::foreign::{self, OpenError, Resolve};
use data_encoding::BASE64;
use serde::Deserialize;

use crate::engine::Credentials;

/// Maximum length of a file.
const MAX_LENGTH: u64 = 1 << 20;

/// The registry of images that name none.
const DEFAULT: &str = "docker.io";

/// Names of the default registry in files.
const DEFAULT_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Files in a sandbox, which may have been fetched.
const IN_SANDBOX: [&str; 2] = [".docker/config.json", ".dockercfg"];

/// Why a file with credentials cannot be used. Its content is not part of the message.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("cannot read the credentials in `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has another format.
    #[error("`{}` is not a file of credentials as written by `docker login`: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A registry's entry.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// The new format; the old one is its only member.
#[derive(Deserialize)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

/// The credentials for the registry of an image: from a file in the sandbox if there is one, otherwise from `file`. `None` if
/// there are none.
pub(super) fn find(
    image: &str,
    sandbox: &Path,
    file: Option<&Path>,
) -> Result<Option<Credentials>, CredentialsError> {
    for name in IN_SANDBOX {
        let path = sandbox.join(name);
        if let Some(text) = read_in(sandbox, name).map_err(|source| read_error(&path, source))? {
            return parse(&path, &text, image);
        }
    }
    let Some(path) = file else { return Ok(None) };
    let opened = File::open(path).and_then(read);
    parse(path, &opened.map_err(|source| read_error(path, source))?, image)
}

fn read_error(path: &Path, source: io::Error) -> CredentialsError {
    CredentialsError::Read { path: path.to_owned(), source }
}

/// A file in a sandbox, which may be anything. `None` if there is none.
fn read_in(sandbox: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let open = || {
        let found = foreign::find(foreign::directory(sandbox)?, Path::new(name), Resolve::WithoutLinks)?;
        foreign::open_regular(found)
    };
    match open() {
        Ok(file) => read(file).map(Some),
        Err(error) if error.is_missing() => Ok(None),
        Err(OpenError::System(error)) => Err(error),
        Err(other) => Err(io::Error::other(other)),
    }
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_LENGTH + 1).read_to_end(&mut text)?;
    match text.len() as u64 > MAX_LENGTH {
        true => Err(io::Error::other(format!("it has more than {MAX_LENGTH} bytes"))),
        false => Ok(text),
    }
}

fn parse(path: &Path, text: &[u8], image: &str) -> Result<Option<Credentials>, CredentialsError> {
    let malformed =
        |reason: &str| CredentialsError::Format { path: path.to_owned(), reason: reason.to_owned() };
    let entries = match serde_json::from_slice::<Config>(text) {
        Ok(config) => config.auths,
        Err(_) => serde_json::from_slice(text).map_err(|_| malformed("it has no `auths`"))?,
    };
    let registry = registry_of(image);
    let Some((address, entry)) = entries.into_iter().find(|(name, _)| is_of(name, registry)) else {
        return Ok(None);
    };
    let pair = match (entry.auth.filter(|auth| !auth.is_empty()), entry.username, entry.password) {
        (Some(auth), ..) => {
            let decoded = BASE64.decode(auth.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or_else(|| malformed("an `auth` is not base64"))?;
            let decoded = decoded.trim_end_matches('\0');
            decoded.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
        }
        (None, Some(username), Some(password)) => Some((username, password)),
        // Kept by a helper of the client, which the engine cannot ask.
        _ => None,
    };
    Ok(pair.map(|(username, password)| Credentials { username, password, serveraddress: address }))
}

/// The registry that an image is pulled from, as the engine reads its name.
fn registry_of(image: &str) -> &str {
    let is_host = |first: &str| {
        // Only a host can have upper-case letters.
        first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first
    };
    match image.split_once('/') {
        Some((first, _)) if is_host(first) => host_of(first),
        _ => DEFAULT,
    }
}

/// Whether an entry is for all of a registry. What other clients write for a path of it is not: its images are nobody else's.
fn is_of(name: &str, registry: &str) -> bool {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let path = name.split_once('/').map_or("", |(_, path)| path);
    host_of(name) == registry && matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
}

/// The host of a registry, which may be written as a URL.
fn host_of(name: &str) -> &str {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    let host = name.split('/').next().unwrap_or(name);
    if DEFAULT_NAMES.contains(&host) { DEFAULT } else { host }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `user:secret`.
    const AUTH: &str = "dXNlcjpzZWNyZXQ=";

    fn found(sandbox: &Path, image: &str, file: Option<&Path>) -> Option<(String, String)> {
        let found = find(image, sandbox, file).unwrap()?;
        Some((found.username, found.password))
    }

    #[test]
    fn both_formats_are_read_and_the_sandbox_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("docker.json");
        fs::write(&own, format!(r#"{{"auths":{{"host:5000":{{"auth":"{AUTH}"}}}}}}"#)).unwrap();
        let sandbox = directory.path().join("sandbox");
        fs::create_dir_all(sandbox.join(".docker")).unwrap();
        let expected = Some(("user".to_owned(), "secret".to_owned()));
        assert_eq!(found(&sandbox, "host:5000/a:1", Some(&own)), expected);
        assert_eq!(found(&sandbox, "host:5000/a:1", None), None);
        assert_eq!(found(&sandbox, "other:5000/a:1", Some(&own)), None);
        assert_eq!(found(&sandbox, "busybox", Some(&own)), None);

        let old = format!(r#"{{"https://index.docker.io/v1/":{{"auth":"{AUTH}","email":"a@b"}}}}"#);
        fs::write(sandbox.join(".dockercfg"), old).unwrap();
        assert_eq!(found(&sandbox, "busybox", Some(&own)), expected);
        // Also where it has nothing for the registry.
        assert_eq!(found(&sandbox, "host:5000/a:1", Some(&own)), None);
        let new = r#"{"auths":{"https://host:5000":{"username":"u","password":"p"},"helped":{}}}"#;
        fs::write(sandbox.join(".docker/config.json"), new).unwrap();
        assert_eq!(found(&sandbox, "host:5000/a:1", None), Some(("u".into(), "p".into())));
    }

    #[test]
    fn credentials_are_for_the_registry_that_the_engine_asks() {
        for (image, expected) in [
            ("busybox", DEFAULT),
            ("library/busybox", DEFAULT),
            ("docker.io/library/busybox", DEFAULT),
            ("Registry/busybox", "Registry"),
            ("localhost/busybox", "localhost"),
            ("host:5000/a/b:1", "host:5000"),
            ("example.org/a", "example.org"),
        ] {
            assert_eq!(registry_of(image), expected, "{image}");
        }
        for name in ["host:5000", "https://host:5000", "http://host:5000/v1/", "host:5000/v2"] {
            assert!(is_of(name, "host:5000"), "{name}");
        }
        for name in
            ["host:5000/team", "https://host:5000/team/app", "host:5000/v1/team", "other:5000", "host"]
        {
            assert!(!is_of(name, "host:5000"), "{name}");
        }
        assert!(is_of("https://index.docker.io/v1/", DEFAULT));
    }

    #[test]
    fn what_is_no_file_of_credentials_is_an_error_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(".dockercfg"), "root:hunter2").unwrap();
        let error = find("a", directory.path(), None).unwrap_err();
        assert!(error.to_string().contains("has no `auths`") && !error.to_string().contains("hunter2"));
        fs::remove_file(directory.path().join(".dockercfg")).unwrap();
        symlink("/etc/shadow", directory.path().join(".dockercfg")).unwrap();
        assert!(find("a", directory.path(), None).is_err());
    }
}
