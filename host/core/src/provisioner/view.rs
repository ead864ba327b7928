//! What an assembled root file system looks like, without a place on the host.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use cofferdam_linux::overlay;
use cofferdam_plugin_model::ImageRoot;

/// Directories that the kernel's file systems are mounted on. A link there would have them mounted elsewhere, and whatever
/// uses them by these paths would use files of the image.
const MOUNT_POINTS: [&str; 3] = ["proc", "sys", "dev"];

/// What an assembled root file system looks like, for as long as this exists.
#[derive(Debug)]
pub(crate) enum View {
    /// A directory.
    Directory(PathBuf),
    /// A read-only mount that only this process has.
    Mount(OwnedFd),
}

impl View {
    /// Shows a root file system without changing it.
    pub(crate) fn of(root: &ImageRoot) -> io::Result<Self> {
        match root {
            ImageRoot::Layers { directories } => match &directories[..] {
                [only] => Ok(Self::Directory(only.clone())),
                layers => overlay::mount(layers, None).map(Self::Mount),
            },
            ImageRoot::Directory { path } | ImageRoot::ReadOnly { path } => Ok(Self::Directory(path.clone())),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The directory for a file system of the kernel in whose place the image has a symbolic link.
    pub(crate) fn linked_mount_point(&self) -> io::Result<Option<&'static str>> {
        for name in MOUNT_POINTS {
            match fs::symlink_metadata(self.path().join(name)) {
                Ok(found) if found.is_symlink() => return Ok(Some(name)),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(None)
    }

    /// A path by which this process and its threads find it.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Mount(mount) => format!("/proc/{}/fd/{}", std::process::id(), mount.as_raw_fd()).into(),
        }
    }
}
