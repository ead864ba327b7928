//! Credentials for registries, from the files and helpers of clients of Docker.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use cofferdam_core::credentials::{CredentialsFile, Found, host_of};

use super::error::{PullError, Result};
use super::helper;
use super::secret::Secret;

/// The first file that exists.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    file: Option<(PathBuf, CredentialsFile)>,
}

impl Credentials {
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self> {
        for path in paths {
            let text = match File::open(path).and_then(CredentialsFile::text) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(|source| PullError::ReadCredentials { path: path.clone(), source })?,
            };
            let file = CredentialsFile::parse(&text)
                .map_err(|source| PullError::Credentials { path: path.clone(), source })?;
            return Ok(Self { file: Some((path.clone(), file)) });
        }
        Ok(Self::default())
    }

    /// Those for a registry. May run a helper.
    pub(super) fn find(&self, host: &str) -> Result<Option<Secret>> {
        let Some((path, file)) = &self.file else { return Ok(None) };
        let found = file.find(host_of(host));
        match found.map_err(|source| PullError::Credentials { path: path.clone(), source })? {
            None => Ok(None),
            Some(Found::Password { username, password, .. }) => {
                Ok(Some(Secret::Password { username, password }))
            }
            Some(Found::RefreshToken(token)) => Ok(Some(Secret::RefreshToken(token))),
            Some(Found::Helper { name, server }) => helper::ask(&name, &server),
        }
    }
}
