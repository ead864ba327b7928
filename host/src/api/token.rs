//! The token of the operator API, which clients that connect over TCP present.

use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::secret_file::{self, SecretFileError};

/// Shortest and longest token. The shortest one has 128 bits or more, if it is random and in hexadecimal.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=4096;

/// The token of the operator API. Its hash is kept, which is of no use to whoever reads the agent's memory.
#[derive(Clone)]
pub(super) struct OperatorToken([u8; 32]);

/// Why a token cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// What it contains is not a token.
    #[error(
        "the file of the token, `{path}`, must contain {} to {} characters without spaces, of those of base64 and URLs; \
         create it with `(umask 077; head -c 32 /dev/urandom | base64 > {path})`", LENGTHS.start(), LENGTHS.end()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

impl OperatorToken {
    /// Reads the token from a file that nobody but its owner has access to.
    pub(super) fn read(path: &Path) -> Result<Self, TokenError> {
        let content = secret_file::read(path, *LENGTHS.end() as u64 + 2)?;
        let token = content.strip_suffix(b"\n").unwrap_or(&content);
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
        match LENGTHS.contains(&token.len()) && token.iter().all(is_token) {
            true => Ok(Self::of(token)),
            false => Err(TokenError::Content { path: path.to_owned() }),
        }
    }

    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether it is what a client presents. How long that takes tells nothing about the token.
    pub(super) fn is(&self, presented: &str) -> bool {
        self.0.ct_eq(&Self::of(presented.as_bytes()).0).into()
    }
}

/// Does not show it.
impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorToken")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    const TOKEN: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn file(directory: &Path, content: &str, mode: u32) -> PathBuf {
        let path = directory.join("token");
        drop(fs::remove_file(&path));
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_token_is_that_of_its_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for content in [TOKEN.to_owned(), format!("{TOKEN}\n")] {
            let token = OperatorToken::read(&file(directory.path(), &content, 0o600)).unwrap();
            assert!(token.is(TOKEN));
            for other in ["", &TOKEN[1..], &format!("{TOKEN}\n"), &TOKEN.to_lowercase()] {
                assert!(!token.is(other), "{other:?}");
            }
            assert!(!format!("{token:?}").contains(&TOKEN[..4]));
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610] {
            let error = OperatorToken::read(&file(directory.path(), TOKEN, mode)).unwrap_err();
            assert!(
                matches!(error, TokenError::File(SecretFileError::Mode { mode: found, .. }) if found == mode),
                "{error}"
            );
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            OperatorToken::read(&file(directory.path(), TOKEN, mode)).unwrap();
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let long = "x".repeat(4097);
        for content in [
            "",
            "\n",
            "too-short",
            &format!("{TOKEN}\n\n"),
            &format!("{TOKEN} x"),
            &format!("{TOKEN}\0"),
            &long,
        ] {
            let error = OperatorToken::read(&file(directory.path(), content, 0o600)).unwrap_err();
            assert!(matches!(error, TokenError::Content { .. }), "{error}");
            assert!(!error.to_string().contains(TOKEN));
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = OperatorToken::read(&directory.path().join("none")).unwrap_err();
        assert!(matches!(error, TokenError::File(SecretFileError::Read { .. })), "{error}");
        assert!(matches!(
            OperatorToken::read(directory.path()),
            Err(TokenError::File(SecretFileError::NotAFile { .. }))
        ));
        let fifo = directory.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(
            OperatorToken::read(&fifo),
            Err(TokenError::File(SecretFileError::NotAFile { .. }))
        ));
        // A link is what an operator may use; what it leads to is checked.
        let link = directory.path().join("link");
        symlink(file(directory.path(), TOKEN, 0o644), &link).unwrap();
        assert!(matches!(OperatorToken::read(&link), Err(TokenError::File(SecretFileError::Mode { .. }))));
    }
}
