//! Ids of frameworks, executors and tasks: any text that is safe as part of a path.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Maximum length of an id in bytes.
const MAX_LENGTH: usize = 255;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It is too long.
    #[error("it has {length} bytes; at most {MAX_LENGTH} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It is `.` or `..`.
    #[error("`{name}` is not allowed")]
    Dots {
        /// The text.
        name: String,
    },
    /// It contains a character that is not allowed.
    #[error("it contains {character:?}; slashes, backslashes and control characters are not allowed")]
    Character {
        /// The first character that is not allowed.
        character: char,
    },
}

fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    if name.len() > MAX_LENGTH {
        return Err(InvalidName::TooLong { length: name.len() });
    }
    if name == "." || name == ".." {
        return Err(InvalidName::Dots { name: name.to_owned() });
    }
    let is_refused = |character: &char| character.is_control() || matches!(character, '/' | '\\');
    match name.chars().find(is_refused) {
        Some(character) => Err(InvalidName::Character { character }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks an id: 1 to 255 bytes, not `.` or `..`, no slash, backslash or control character.
            ///
            /// # Errors
            /// [`InvalidName`].
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                check(&name)?;
                Ok(Self(name))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

id! {
    /// Id of a framework: whoever launches tasks.
    FrameworkId
}
id! {
    /// Id of an executor, unique within its framework while it runs.
    ExecutorId
}
id! {
    /// Id of a task, unique within its framework until its last update is acknowledged.
    TaskId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_unsafe_in_paths_are_refused() {
        for good in ["web", "a b", "ct:1.2", "ä", "..."] {
            assert!(TaskId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb", "\u{0}", &"x".repeat(256)] {
            assert!(TaskId::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<ExecutorId>("\"a/b\"").is_err());
    }
}
