//! Container ids.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of one value in bytes. Values become names of directories, and may become host names.
const MAX_VALUE: usize = 242;

/// Maximum length of the whole id in bytes. Ids become names of directories, which the kernel limits to this.
const MAX_LENGTH: usize = 255;

/// A directory that file systems create. Containers have directories of the names of their values, which must not be mistaken
/// for it.
const LOST_AND_FOUND: &str = "lost+found";

/// Maximum number of levels. The kernel allows 32 levels of pid namespaces.
const MAX_DEPTH: usize = 32;

/// The id of a container: one value per level of nesting, outermost first, joined with dots.
///
/// `pod.web` is the container `web` inside the container `pod`. A value has 1 to 242 bytes and contains
/// no dot, slash, backslash, white space or control character, and is not `lost+found`. There are at most 32 levels, and
/// 255 bytes in all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// Why a string is not a container id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// A value is empty.
    #[error("container id `{id}` has an empty value; every level of a container id needs a name")]
    Empty {
        /// The whole id.
        id: String,
    },
    /// A value is longer than 242 bytes.
    #[error("container id value `{value}` has {length} bytes; at most {MAX_VALUE} are allowed")]
    TooLong {
        /// The value.
        value: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A value contains a character that is not allowed.
    #[error(
        "container id value `{}` contains {character:?}; dots, slashes, backslashes, spaces and control \
         characters are not allowed",
        .value.escape_debug()
    )]
    Character {
        /// The value.
        value: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// A value is `lost+found`.
    #[error(
        "container id value `{LOST_AND_FOUND}` is not allowed: file systems create directories of this name"
    )]
    LostAndFound,
    /// The id is longer than 255 bytes.
    #[error("container id has {length} bytes with those of its parents; at most {MAX_LENGTH} are allowed")]
    WholeTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The id has more than 32 levels.
    #[error("container id has {depth} levels; at most {MAX_DEPTH} are allowed")]
    TooDeep {
        /// The number of levels.
        depth: usize,
    },
}

impl ContainerId {
    /// Parses a dotted id such as `pod.web`.
    ///
    /// # Errors
    /// [`InvalidId`] if a value is empty, is too long, contains a character that is not allowed or is `lost+found`, if there
    /// are too many levels, or if the whole is too long.
    pub fn parse(id: &str) -> Result<Self, InvalidId> {
        let mut depth = 0;
        for value in id.split('.') {
            depth += 1;
            check_value(id, value)?;
        }
        if depth > MAX_DEPTH {
            return Err(InvalidId::TooDeep { depth });
        }
        if id.len() > MAX_LENGTH {
            return Err(InvalidId::WholeTooLong { length: id.len() });
        }
        Ok(Self(id.to_owned()))
    }

    /// The id of a child of this container.
    ///
    /// # Errors
    /// [`InvalidId`] if `value` is not a valid single value, or the child has too many levels.
    pub fn child(&self, value: &str) -> Result<Self, InvalidId> {
        // With a dot, the id would be that of a grandchild.
        if let Some(character) = value.chars().find(|&c| c == '.') {
            return Err(InvalidId::Character { value: value.to_owned(), character });
        }
        Self::parse(&format!("{}.{value}", self.0))
    }

    /// The id in its dotted form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The values from the outermost container to this one.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The last value, which is the container's own.
    #[must_use]
    pub fn value(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or(&self.0)
    }

    /// The id of the container that this one is nested in; `None` for a top-level container.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('.').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The id of the top-level container that this one belongs to, which may be itself.
    #[must_use]
    pub fn root(&self) -> Self {
        Self(self.0.split('.').next().unwrap_or(&self.0).to_owned())
    }

    /// Whether this container is nested in another.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.0.contains('.')
    }

    /// Whether this container is `ancestor` or nested in it at any depth.
    #[must_use]
    pub fn is_within(&self, ancestor: &Self) -> bool {
        self.0.strip_prefix(&ancestor.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

fn check_value(id: &str, value: &str) -> Result<(), InvalidId> {
    if value.is_empty() {
        return Err(InvalidId::Empty { id: id.to_owned() });
    }
    if value.len() > MAX_VALUE {
        return Err(InvalidId::TooLong { value: value.to_owned(), length: value.len() });
    }
    if value == LOST_AND_FOUND {
        return Err(InvalidId::LostAndFound);
    }
    let forbidden = |c: &char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '\\' | '.');
    match value.chars().find(forbidden) {
        Some(character) => Err(InvalidId::Character { value: value.to_owned(), character }),
        None => Ok(()),
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(id: &str) -> Result<Self, InvalidId> {
        Self::parse(id)
    }
}

impl Borrow<str> for ContainerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for ContainerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        Self::parse(&id).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_separate_the_levels_of_an_id() {
        let id = ContainerId::parse("pod.web.probe").unwrap();
        assert_eq!(id.value(), "probe");
        assert_eq!(id.parent().unwrap().as_str(), "pod.web");
        assert_eq!(id.root().as_str(), "pod");
        assert!(id.is_nested() && !id.root().is_nested());
        assert!(id.is_within(&id.root()) && id.is_within(&id));
        assert!(!ContainerId::parse("podium").unwrap().is_within(&id.root()));
    }

    #[test]
    fn invalid_ids_are_rejected() {
        for bad in ["", ".", "..", "a..b", "a/b", "a\\b", "a b", "a\nb", "a.", ".a", "a\u{0}"] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(matches!(ContainerId::parse(&"x".repeat(243)), Err(InvalidId::TooLong { length: 243, .. })));
        let whole = |length: usize| format!("{}.{}", "x".repeat(200), "y".repeat(length - 201));
        assert!(ContainerId::parse(&whole(255)).is_ok());
        assert!(matches!(ContainerId::parse(&whole(256)), Err(InvalidId::WholeTooLong { length: 256 })));
        assert!(matches!(ContainerId::parse(&["a"; 33].join(".")), Err(InvalidId::TooDeep { depth: 33 })));
    }

    #[test]
    fn a_directory_of_the_file_system_is_no_container_at_any_level() {
        for bad in ["lost+found", "pod.lost+found", "lost+found.web", "pod.lost+found.web"] {
            assert_eq!(ContainerId::parse(bad), Err(InvalidId::LostAndFound), "{bad}");
        }
        let pod = ContainerId::parse("pod").unwrap();
        let error = pod.child("lost+found").unwrap_err();
        assert!(error.to_string().contains("`lost+found`"), "{error}");
        for good in ["lost-found", "lost+found2", "LOST+FOUND", "lost+", "+found"] {
            assert!(ContainerId::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_child_is_one_level_deeper() {
        let pod = ContainerId::parse("pod").unwrap();
        assert_eq!(pod.child("web").unwrap().as_str(), "pod.web");
        assert!(pod.child("web.probe").is_err());
    }
}
