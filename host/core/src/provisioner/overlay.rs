//! Overlays that are mounted nowhere.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::thread;

use cofferdam_linux::foreign;
use cofferdam_plugin_model::ImageRoot;
use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

/// Limit of fsconfig(2) for a value.
const MAX_VALUE: usize = 255;

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
                layers => mount(layers, None).map(Self::Mount),
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

/// Mounts an overlay, without a place. The topmost layer comes first.
///
/// A value may have 255 bytes, which paths do not fit into, and a colon would separate two paths. So each layer is opened
/// and named by the number of its descriptor, relative to a working directory, which a thread of its own has.
pub(super) fn mount(lowers: &[PathBuf], upper: Option<(PathBuf, PathBuf)>) -> io::Result<OwnedFd> {
    let directories: Vec<OwnedFd> =
        lowers.iter().map(|path| foreign::directory(path)).collect::<Result<_, _>>()?;
    let open = |path: PathBuf| foreign::directory(&path);
    let upper = upper.map(|(upper, work)| Ok::<_, Errno>((open(upper)?, open(work)?))).transpose()?;
    let work = move || {
        unshare(CloneFlags::CLONE_FS)?;
        rustix::process::chdir("/proc/thread-self/fd")?;
        configure(&directories, upper.as_ref().map(|(upper, work)| (upper, work)))
    };
    let thread = thread::Builder::new().name("overlay".into()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts the overlay panicked")))
}

fn configure(lowers: &[OwnedFd], upper: Option<(&OwnedFd, &OwnedFd)>) -> io::Result<OwnedFd> {
    let number = |directory: &OwnedFd| directory.as_raw_fd().to_string();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let joined = lowers.iter().map(number).collect::<Vec<_>>().join(":");
    if joined.len() <= MAX_VALUE {
        fsconfig_set_string(&context, "lowerdir", joined)?;
    } else {
        // Adding one layer at a time needs Linux 6.5.
        for lower in lowers {
            fsconfig_set_string(&context, "lowerdir+", number(lower))?;
        }
    }
    match upper {
        Some((upper, work)) => {
            fsconfig_set_string(&context, "upperdir", number(upper))?;
            fsconfig_set_string(&context, "workdir", number(work))?;
        }
        None => fsconfig_set_flag(&context, "ro")?,
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
