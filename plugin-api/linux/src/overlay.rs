//! Overlays that are mounted nowhere.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use rustix::thread::UnshareFlags;

use crate::foreign;

/// Limit of fsconfig(2) for a value.
const MAX_VALUE: usize = 255;

/// Where the changes to an overlay are written.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// The directory that has the changes; on the same file system as `work`.
    pub upper: &'a Path,
    /// An empty directory for use by the kernel.
    pub work: &'a Path,
}

/// Mounts an overlay of directories that are not changed, the topmost first, and returns the detached mount. Without an upper
/// layer it is read-only, and needs at least two directories.
///
/// A value may have 255 bytes, which paths do not fit into, and a colon would separate two paths. So each layer is opened
/// and named by the number of its descriptor, relative to a working directory, which a thread of its own has.
///
/// # Errors
/// If a directory cannot be opened, or the kernel refuses the overlay. More layers than have descriptors of 255 characters
/// need Linux 6.5.
pub fn mount(lower: &[impl AsRef<Path>], upper: Option<Upper<'_>>) -> io::Result<OwnedFd> {
    let open = |path: &Path| foreign::directory(path);
    let directories: Vec<OwnedFd> = lower.iter().map(|path| open(path.as_ref())).collect::<Result<_, _>>()?;
    let upper = upper.map(|Upper { upper, work }| Ok::<_, Errno>((open(upper)?, open(work)?))).transpose()?;
    let work = move || {
        leave_process()?;
        rustix::process::chdir("/proc/thread-self/fd")?;
        configure(&directories, upper.as_ref().map(|(upper, work)| (upper, work)))
    };
    let thread = thread::Builder::new().name("overlay".into()).spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts the overlay panicked")))
}

/// Gives the calling thread a working directory of its own.
#[expect(deprecated, reason = "its replacement is unsafe for `FILES` only")]
fn leave_process() -> Result<(), Errno> {
    rustix::thread::unshare(UnshareFlags::FS)
}

fn configure(lower: &[OwnedFd], upper: Option<(&OwnedFd, &OwnedFd)>) -> io::Result<OwnedFd> {
    let number = |directory: &OwnedFd| directory.as_raw_fd().to_string();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let joined = lower.iter().map(number).collect::<Vec<_>>().join(":");
    if joined.len() <= MAX_VALUE {
        fsconfig_set_string(&context, "lowerdir", joined)?;
    } else {
        // Adding one layer at a time needs Linux 6.5.
        for directory in lower {
            fsconfig_set_string(&context, "lowerdir+", number(directory))?;
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use rustix::fs::{Mode, OFlags, openat};

    use super::*;

    fn read(root: &OwnedFd, name: &str) -> Result<String, Errno> {
        let file = openat(root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(io::read_to_string(File::from(file)).unwrap())
    }

    #[test]
    fn layers_are_one_directory_and_changes_go_to_the_upper_one() {
        if let Err(error) = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            assert!(std::env::var_os("CI").is_none(), "with CI set, this must not be skipped: {error}");
            eprintln!("SKIPPED: overlays need root: {error}");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["lower", "top", "upper", "work"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("lower/a"), "lower").unwrap();
        fs::write(path("lower/b"), "lower").unwrap();
        fs::write(path("top/a"), "top").unwrap();
        let lower = [path("top"), path("lower")];
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;

        let read_only = mount(&lower, None).unwrap();
        let seen = ["a", "b"].map(|name| read(&read_only, name).unwrap());
        assert_eq!(seen, ["top", "lower"]);
        assert_eq!(openat(&read_only, "c", create, Mode::RUSR).unwrap_err(), Errno::ROFS);

        let (upper, work) = (path("upper"), path("work"));
        let writable = match mount(&lower, Some(Upper { upper: &upper, work: &work })) {
            Ok(mounted) => mounted,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "with CI set, this must not be skipped: {error}");
                eprintln!("SKIPPED: changes cannot be where the directory for temporary files is: {error}");
                return;
            }
        };
        openat(&writable, "c", create, Mode::RUSR).unwrap();
        assert!(upper.join("c").exists() && !path("top/c").exists());
        assert!(mount(&[path("missing"), path("top")], None).is_err());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(directory.path().to_str().unwrap()), "it is mounted nowhere: {mounts}");
    }
}
