//! What an assembled root file system looks like, without a place on the host.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use cofferdam_linux::overlay;
use cofferdam_plugin_model::ImageRoot;

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

    /// A path by which this process and its threads find it.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Directory(path) => path.clone(),
            Self::Mount(mount) => format!("/proc/{}/fd/{}", std::process::id(), mount.as_raw_fd()).into(),
        }
    }
}
