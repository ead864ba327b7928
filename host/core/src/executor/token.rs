//! What authenticates an executor. The agent keeps the hash of a token, never the token.

use std::fmt;
use std::io;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::random;

/// The token of an executor. Whoever has it may act as this executor.
#[derive(Clone)]
pub struct Token(String);

/// The hash of a token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct TokenHash(String);

impl Token {
    /// A new token: 256 random bits.
    pub(super) fn generate() -> io::Result<Self> {
        Ok(Self(HEXLOWER.encode(&random::bytes::<32>()?)))
    }

    /// The token that somebody presents.
    #[must_use]
    pub fn presented(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn hash(&self) -> TokenHash {
        TokenHash(HEXLOWER.encode(&Sha256::digest(self.0.as_bytes())))
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Does not show it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}
