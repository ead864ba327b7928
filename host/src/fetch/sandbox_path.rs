//! Paths relative to a sandbox.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// A path relative to a sandbox, without `..`. It may contain symbolic links, which
/// [`Sandbox`](super::sandbox::Sandbox) does not follow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SandboxPath(PathBuf);

/// Why a path is not a valid [`SandboxPath`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a valid path in the sandbox: it {problem}", path.display())]
pub(super) struct InvalidPath {
    path: PathBuf,
    problem: &'static str,
}

impl SandboxPath {
    /// Parses a path; `.` is removed.
    pub(super) fn parse(path: &Path) -> Result<Self, InvalidPath> {
        let invalid = |problem| Err(InvalidPath { path: path.to_owned(), problem });
        let mut normal = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => normal.push(name),
                Component::CurDir => {}
                Component::ParentDir => return invalid("contains `..`"),
                Component::RootDir | Component::Prefix(_) => return invalid("is absolute"),
            }
        }
        if normal.as_os_str().is_empty() {
            return invalid("is empty");
        }
        Ok(Self(normal))
    }

    /// Parses the path of a file, which must not end with `/`.
    pub(super) fn parse_file(path: &str) -> Result<Self, InvalidPath> {
        if path.ends_with('/') {
            return Err(InvalidPath { path: path.into(), problem: "is the path of a directory" });
        }
        Self::parse(Path::new(path))
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The directory that contains it; empty for the sandbox itself.
    pub(super) fn directory(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new(""))
    }

    /// Its last component.
    pub(super) fn file_name(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_sandbox_are_rejected() {
        for (path, problem) in [
            ("", "is empty"),
            (".", "is empty"),
            ("/etc/passwd", "is absolute"),
            ("//x", "is absolute"),
            ("..", "contains `..`"),
            ("a/../../b", "contains `..`"),
            ("a/..", "contains `..`"),
        ] {
            assert_eq!(SandboxPath::parse(Path::new(path)), Err(InvalidPath { path: path.into(), problem }));
        }
        assert!(SandboxPath::parse_file("a/").is_err());
    }

    #[test]
    fn a_path_has_a_directory_and_a_file_name() {
        let path = SandboxPath::parse(Path::new("./a//b/./..c")).unwrap();
        assert_eq!(path.as_path(), Path::new("a/b/..c"));
        assert_eq!((path.directory(), path.file_name()), (Path::new("a/b"), OsStr::new("..c")));
        assert_eq!(SandboxPath::parse_file("x").unwrap().directory(), Path::new(""));
    }
}
