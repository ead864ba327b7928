//! Names of things in a sandbox, which cannot lead out of it by spelling.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// A path below the sandbox: relative, not empty, of plain names only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(PathBuf);

/// Why a text is no name in a sandbox.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` cannot be a name in the sandbox: it {fault}", path.display())]
pub(super) struct NameError {
    path: PathBuf,
    fault: &'static str,
}

impl Name {
    /// Understands a path, of which `.` is ignored.
    pub(super) fn parse(path: &Path) -> Result<Self, NameError> {
        let refuse = |fault| Err(NameError { path: path.to_owned(), fault });
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => plain.push(name),
                Component::CurDir => {}
                Component::ParentDir => return refuse("has `..` in it"),
                Component::RootDir | Component::Prefix(_) => return refuse("is absolute"),
            }
        }
        if plain.as_os_str().is_empty() {
            return refuse("names nothing");
        }
        Ok(Self(plain))
    }

    /// Understands the name of a file that somebody chose, in which a `/` at the end is a mistake.
    pub(super) fn parse_file(text: &str) -> Result<Self, NameError> {
        if text.ends_with('/') {
            return Err(NameError { path: text.into(), fault: "is the name of a folder" });
        }
        Self::parse(Path::new(text))
    }

    /// The whole.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The folder that it is in; empty for the sandbox itself.
    pub(super) fn directory(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new(""))
    }

    /// Its last part.
    pub(super) fn last(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        for (text, fault) in [
            ("", "names nothing"),
            (".", "names nothing"),
            ("/etc/passwd", "is absolute"),
            ("//x", "is absolute"),
            ("..", "has `..` in it"),
            ("a/../../b", "has `..` in it"),
            ("a/..", "has `..` in it"),
        ] {
            assert_eq!(Name::parse(Path::new(text)), Err(NameError { path: text.into(), fault }));
        }
        assert!(Name::parse_file("a/").is_err());
    }

    #[test]
    fn a_name_has_a_folder_and_a_last_part() {
        let name = Name::parse(Path::new("./a//b/./..c")).unwrap();
        assert_eq!(name.path(), Path::new("a/b/..c"));
        assert_eq!((name.directory(), name.last()), (Path::new("a/b"), OsStr::new("..c")));
        assert_eq!(Name::parse_file("x").unwrap().directory(), Path::new(""));
    }
}
