//! What a container uses an image for.

use std::path::{Path, PathBuf};

/// Between the key of an agent and the number of a volume.
const SEPARATOR: char = '.';

/// What a container uses an image for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its root file system.
    Root,
    /// A volume.
    Volume {
        /// Its number among the volumes with images, from 1.
        number: usize,
        /// Whether nobody writes to it.
        read_only: bool,
    },
}

impl Place {
    /// Directory of its own in the scratch directory of the container.
    pub(super) fn directory(self, scratch: &Path) -> PathBuf {
        match self {
            Self::Root => scratch.join("image"),
            Self::Volume { number, .. } => scratch.join(format!("image-{number}")),
        }
    }

    /// Name of the directory for what the containers of an agent use for this. In it, each has a file with its id as the name:
    /// an id can be as long as a name, and so cannot be part of one.
    pub(super) fn uses(self, agent: &str) -> String {
        match self {
            Self::Root => agent.to_owned(),
            Self::Volume { number, .. } => format!("{agent}{SEPARATOR}{number}"),
        }
    }

    /// Whether a directory is one of [`Self::uses`] of an agent.
    pub(super) fn is_of(directory: &str, agent: &str) -> bool {
        directory.strip_prefix(agent).is_some_and(|rest| rest.is_empty() || rest.starts_with(SEPARATOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_a_directory_of_its_agent() {
        let volume = |number| Place::Volume { number, read_only: false };
        let names = [Place::Root, volume(1), volume(12)].map(|place| place.uses("0a1b"));
        assert_eq!(names, ["0a1b", "0a1b.1", "0a1b.12"]);
        assert!(names.iter().all(|name| Place::is_of(name, "0a1b") && !Place::is_of(name, "0a1")));
    }
}
