//! Credentials for registries, from the files and helpers of clients of Docker.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use cofferdam_core::credentials::{CredentialsFile, Found, host_of};

use super::error::{PullError, Result, Source};
use super::helper;
use super::secret::Secret;

/// The first file that exists, or the credentials of a request.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    file: Option<(Source, CredentialsFile)>,
}

impl Credentials {
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self> {
        for path in paths {
            let text = match File::open(path).and_then(CredentialsFile::text) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(|source| PullError::ReadCredentials { path: path.clone(), source })?,
            };
            return Self::parse(Source::File(path.clone()), &text);
        }
        Ok(Self::default())
    }

    /// Those of a request, in the format of the files. No helper is run for them: they are not from the operator.
    pub(super) fn of_request(text: &str) -> Result<Self> {
        Self::parse(Source::Request, text.as_bytes())
    }

    fn parse(from: Source, text: &[u8]) -> Result<Self> {
        let file = CredentialsFile::parse(text);
        let file = file.map_err(|source| PullError::Credentials { from: from.clone(), source })?;
        Ok(Self { file: Some((from, file)) })
    }

    /// Those for a registry. May run a helper.
    pub(super) fn find(&self, host: &str) -> Result<Option<Secret>> {
        let Some((from, file)) = &self.file else { return Ok(None) };
        let found = file.find(host_of(host));
        match found.map_err(|source| PullError::Credentials { from: from.clone(), source })? {
            None => Ok(None),
            Some(Found::Password { username, password, .. }) => {
                Ok(Some(Secret::Password { username, password }))
            }
            Some(Found::RefreshToken(token)) => Ok(Some(Secret::RefreshToken(token))),
            Some(Found::Helper { .. }) if *from == Source::Request => Err(PullError::HelperOfRequest),
            Some(Found::Helper { name, server }) => helper::ask(&name, &server),
        }
    }
}
