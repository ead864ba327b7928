//! Credentials for the images of a container engine: in the sandbox of a container, or in a file of the agent.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use cofferdam_linux::foreign::{self, OpenError, Resolve};

use crate::credentials::{CredentialsFile, DEFAULT_REGISTRY, Found, InvalidCredentials, host_of};
use crate::engine::Credentials;

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
        reason: InvalidCredentials,
    },
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
    let opened = File::open(path).and_then(CredentialsFile::text);
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
        Ok(file) => CredentialsFile::text(file).map(Some),
        Err(error) if error.is_missing() => Ok(None),
        Err(OpenError::System(error)) => Err(error),
        Err(other) => Err(io::Error::other(other)),
    }
}

fn parse(path: &Path, text: &[u8], image: &str) -> Result<Option<Credentials>, CredentialsError> {
    let malformed = |reason| CredentialsError::Format { path: path.to_owned(), reason };
    let file = CredentialsFile::parse(text).map_err(malformed)?;
    Ok(match file.find(registry_of(image)).map_err(malformed)? {
        Some(Found::Password { server: serveraddress, username, password }) => {
            Some(Credentials { username, password, serveraddress })
        }
        // What a helper of the client keeps is not asked for, and the engine gets no tokens.
        _ => None,
    })
}

/// The registry that an image is pulled from, as the engine reads its name.
fn registry_of(image: &str) -> &str {
    let is_host = |first: &str| {
        // Only a host can have upper-case letters.
        first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first
    };
    match image.split_once('/') {
        Some((first, _)) if is_host(first) => host_of(first),
        _ => DEFAULT_REGISTRY,
    }
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
            ("busybox", DEFAULT_REGISTRY),
            ("library/busybox", DEFAULT_REGISTRY),
            ("docker.io/library/busybox", DEFAULT_REGISTRY),
            ("Registry/busybox", "Registry"),
            ("localhost/busybox", "localhost"),
            ("host:5000/a/b:1", "host:5000"),
            ("example.org/a", "example.org"),
        ] {
            assert_eq!(registry_of(image), expected, "{image}");
        }
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
