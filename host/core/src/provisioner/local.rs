//! Images in files and directories of this machine.
//!
//! The name of such an image is its absolute path, which is no name of a registry. It is opened once, and what was found is
//! what is checked and read.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use cofferdam_linux::foreign::{self, OpenError, Resolve};
use serde::{Deserialize, Serialize};

/// A file or directory that an image is imported from.
#[derive(Debug)]
pub struct LocalImage {
    found: OwnedFd,
    stamp: Option<Stamp>,
}

/// What tells a file from a later version of it. Who has changed the content cannot set the time of the change back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Why an image is not read from a path.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The path is not one that leads to one place only.
    #[error("`{}` is not the absolute path of an image; write it without `..`", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// There is nothing.
    #[error("there is no file or directory `{}` with an image", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It is in no permitted directory.
    #[error(
        "`{}` is in no directory that images may be read from; the operator permits one with `local_images`, or imports the \
         image with `cofferdam image import`",
        path.display()
    )]
    NotPermitted {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot read the image `{}`", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LocalError {
    /// Whether the error is in what was asked for.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        !matches!(self, Self::Open { .. })
    }
}

/// The path of an image in a file or directory, if a text is one.
#[must_use]
pub fn path_of(image: &str) -> Option<&Path> {
    image.starts_with('/').then_some(Path::new(image))
}

impl LocalImage {
    /// Opens a file or directory without an effect on it. Links are followed; what they lead to has to be in one of the
    /// directories that are permitted, if only these are.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn open(path: &Path, permitted: Option<&[PathBuf]>) -> Result<Self, LocalError> {
        let owned = || path.to_owned();
        let is_normal = path.components().skip(1).all(|component| matches!(component, Component::Normal(_)));
        let Some(relative) = path.strip_prefix("/").ok().filter(|_| is_normal) else {
            return Err(LocalError::Path { path: owned() });
        };
        let is_permitted = |real: &Path| {
            let inside = |directory: &PathBuf| {
                fs::canonicalize(directory).is_ok_and(|directory| real.starts_with(directory))
            };
            permitted.is_none_or(|directories| directories.iter().any(inside))
        };
        let open = || foreign::find(foreign::directory(Path::new("/"))?, relative, Resolve::InRoot);
        let found = match open() {
            Ok(found) => found,
            // Whether something is there that is not permitted is nobody's business.
            Err(_) if !is_permitted(path) => return Err(LocalError::NotPermitted { path: owned() }),
            Err(error) if error.is_missing() => return Err(LocalError::Missing { path: owned() }),
            Err(OpenError::System(source)) => return Err(LocalError::Open { path: owned(), source }),
            Err(other) => return Err(LocalError::Open { path: owned(), source: io::Error::other(other) }),
        };
        let failed = |source| LocalError::Open { path: owned(), source };
        if !is_permitted(&fs::read_link(descriptor(&found)).map_err(failed)?) {
            return Err(LocalError::NotPermitted { path: owned() });
        }
        let stamp = stamp(&found).map_err(failed)?;
        Ok(Self { found, stamp })
    }

    /// What tells a file from a later version of it; `None` for a directory.
    #[must_use]
    pub fn stamp(&self) -> Option<&Stamp> {
        self.stamp.as_ref()
    }

    /// A path of this process that leads to what was opened, for a directory.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        // With the dot, it is a directory also for those who follow no link.
        self.stamp.is_none().then(|| descriptor(&self.found).join("."))
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// If it is not a regular file, or the kernel refuses.
    pub fn file(&self) -> io::Result<File> {
        foreign::open_regular(&self.found).map_err(|error| match error {
            OpenError::System(source) => source,
            other => io::Error::other(other),
        })
    }
}

/// What tells a file from a later version of it; `None` for a directory, whose content has no such time.
fn stamp(found: &OwnedFd) -> io::Result<Option<Stamp>> {
    let metadata = fs::metadata(descriptor(found))?;
    let stamp = Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    Ok((!metadata.is_dir()).then_some(stamp))
}

fn descriptor(found: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", found.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_is_in_a_permitted_directory_is_opened_also_by_links() {
        let base = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(base.path()).unwrap();
        let (inside, outside) = (base.join("inside"), base.join("outside"));
        for directory in [&inside, &outside, &base.join("inside-too")] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("web.tar"), "content").unwrap();
        }
        symlink(&outside, inside.join("out")).unwrap();
        symlink(&inside, outside.join("in")).unwrap();
        let permitted = [inside.clone(), base.join("none")];
        let open = |path: &Path| LocalImage::open(path, Some(&permitted));
        for path in [inside.clone(), inside.join("web.tar"), outside.join("in/web.tar")] {
            open(&path).unwrap();
        }
        let is_refused = |path: PathBuf| matches!(open(&path), Err(LocalError::NotPermitted { .. }));
        for path in [
            outside.join("web.tar"),
            outside.join("missing"),
            inside.join("out/web.tar"),
            base.join("inside-too/web.tar"),
            "/".into(),
        ] {
            assert!(is_refused(path.clone()), "{}", path.display());
        }
        assert!(matches!(open(&inside.join("missing")), Err(LocalError::Missing { .. })));
        for path in ["relative", "/a/../b", ""] {
            assert!(matches!(open(Path::new(path)), Err(LocalError::Path { .. })), "{path}");
        }
        assert!(matches!(LocalImage::open(&inside, Some(&[])), Err(LocalError::NotPermitted { .. })));
        assert!(LocalImage::open(&outside, None).is_ok());
    }

    #[test]
    fn a_file_that_was_changed_has_another_stamp() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("web.tar");
        fs::write(&path, "content").unwrap();
        let open = || LocalImage::open(&path, None).unwrap();
        let first = open();
        assert_eq!(open().stamp(), first.stamp());
        assert!(first.stamp().is_some() && first.directory().is_none());
        fs::write(base.path().join("new"), "another").unwrap();
        fs::rename(base.path().join("new"), &path).unwrap();
        assert_ne!(open().stamp(), first.stamp());
        assert_eq!(io::read_to_string(first.file().unwrap()).unwrap(), "content", "what was opened");
        let directory = LocalImage::open(base.path(), None).unwrap();
        assert!(directory.stamp().is_none() && directory.directory().unwrap().is_dir());
    }
}
