//! File systems that are full.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_linux::mounts::Mount;
use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

/// What a file system can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Space for data.
    Blocks,
    /// Space for files.
    Inodes,
}

/// Uses up a resource of a file system, until this is dropped.
#[derive(Debug)]
pub struct Full {
    files: Vec<PathBuf>,
    shrunk: Option<Shrunk>,
}

/// A tmpfs that has no more blocks than are used, and the size that it had.
#[derive(Debug)]
struct Shrunk {
    directory: PathBuf,
    size: u64,
}

impl Full {
    /// Takes all free blocks from a tmpfs, without using memory for it.
    ///
    /// # Panics
    /// If it cannot be remounted.
    #[must_use]
    pub fn shrink(directory: &Path) -> Self {
        let size = statvfs(directory).map(|space| space.f_blocks * space.f_frsize).expect("a file system");
        let shrunk = Shrunk { directory: directory.to_owned(), size };
        loop {
            let space = statvfs(directory).expect("a file system");
            let used = (space.f_blocks - space.f_bfree) * space.f_frsize;
            // A size of 0 is none.
            match resize(directory, used.max(space.f_frsize)) {
                // Somebody has written something meanwhile.
                Err(Errno::INVAL) => {}
                resized => {
                    resized.expect("a tmpfs");
                    return Self { files: Vec::new(), shrunk: Some(shrunk) };
                }
            }
        }
    }

    /// Creates files in a directory until there is nothing left of a resource.
    ///
    /// # Panics
    /// If it fails for another reason.
    #[must_use]
    pub fn make(directory: &Path, resource: Resource) -> Self {
        Self::fill(directory, resource, ".fill")
    }

    /// Uses up what has become free since [`Full::make`].
    ///
    /// # Panics
    /// If it fails for another reason.
    #[must_use]
    pub fn make_more(directory: &Path, resource: Resource) -> Self {
        Self::fill(directory, resource, ".more")
    }

    fn fill(directory: &Path, resource: Resource, name: &str) -> Self {
        let mut files = Vec::new();
        loop {
            let path = directory.join(format!("{name}-{}", files.len()));
            let mut file = match File::create(&path) {
                Err(error) if error.kind() == ErrorKind::StorageFull && resource == Resource::Inodes => {
                    return Self { files, shrunk: None };
                }
                file => file.expect("a file"),
            };
            files.push(path);
            if resource == Resource::Blocks {
                // The last bytes too.
                for chunk in [1 << 16, 1] {
                    while file.write_all(&vec![b'x'; chunk]).is_ok() {}
                }
                return Self { files, shrunk: None };
            }
        }
    }
}

impl Full {
    /// Removes some of the files.
    ///
    /// # Panics
    /// If there are not as many, or they cannot be removed.
    pub fn free(&mut self, count: usize) {
        let kept = self.files.len().checked_sub(count).expect("as many files");
        self.files.drain(kept..).for_each(|path| fs::remove_file(path).expect("a file"));
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.files.iter().for_each(|path| drop(fs::remove_file(path)));
        if let Some(Shrunk { directory, size }) = &self.shrunk {
            // Fails if it was unmounted.
            let _ = resize(directory, *size);
        }
    }
}

fn resize(tmpfs: &Path, size: u64) -> Result<(), Errno> {
    let options = CString::new(format!("size={size}")).expect("no NUL");
    mount_remount(tmpfs, MountFlags::empty(), &*options)
}

/// A file system in a file, on a loop device. Detached on drop.
#[derive(Debug)]
pub struct Image {
    directory: PathBuf,
    device: PathBuf,
}

impl Image {
    /// Creates a file of 1 GiB with a file system, and mounts it on a directory, which is created. `None` if the kernel has no
    /// such file system.
    ///
    /// # Panics
    /// If it cannot be created or mounted.
    #[must_use]
    pub fn mount(file: &Path, kind: &str, directory: &Path) -> Option<Self> {
        // If they are no modules, or there are none, it fails.
        let _ = Command::new("modprobe").args(["-aq", "loop", kind]).status();
        let known = fs::read_to_string("/proc/filesystems").expect("a list");
        if !known.lines().any(|line| line.trim() == kind) {
            eprintln!("\n*** SKIPPED: this kernel has no {kind}, so it was NOT tested ***\n");
            return None;
        }
        File::create(file).and_then(|file| file.set_len(1 << 30)).expect("a file");
        fs::create_dir_all(directory).expect("a directory");
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(file));
        run(Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(file).arg(directory));
        let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("the mount table");
        let mount = table.lines().filter_map(Mount::parse).find(|mount| mount.target == directory);
        let device = mount.expect("it was just mounted").source.into();
        Some(Self { directory: directory.to_owned(), device })
    }

    /// The block device.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The kernel frees the loop device with it.
        let _ = unmount(&self.directory, UnmountFlags::DETACH);
    }
}

/// A block device of zeros: a file without blocks, on a loop device. Detached on drop.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Creates the file, with a size in bytes, and finds a device for it.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn of_zeros(file: &Path, size: u64) -> Self {
        // If it is no module, or there are none, it fails.
        let _ = Command::new("modprobe").args(["-aq", "loop"]).status();
        File::create(file).and_then(|file| file.set_len(size)).expect("a file");
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self(device.trim().into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The kernel does it when nobody has it open any more.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Runs a command to its end. Returns its output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}
